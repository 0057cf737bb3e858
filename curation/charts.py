"""Histograms as SVG, for pages that load nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from curation.tally import Distribution

WIDTH, HEIGHT = 320, 110
BAR, MEAN, PAPER, LIMIT = "#b9c6f4", "#3b5bdb", "#c23a22", "#9a6700"


def histogram(values: Distribution, label: str, *, paper: float | None = None, limits: Sequence[float] = ()) -> Markup:
    """A histogram with a line at the values' mean, a dashed one at the paper's, and a dotted one at each limit of a rule.

    The last bin also holds what lies above it, and the first what lies below, so that one outlier does not flatten all others.
    """
    numbers, counts = values.values()
    edges = _edges(values, numbers, paper, limits)
    heights, _ = np.histogram(np.clip(numbers, edges[0], edges[-1]), edges, weights=counts)
    bottom, scale = HEIGHT - 18, WIDTH / (edges[-1] - edges[0])
    bars = "".join(
        f'<rect x="{(left - edges[0]) * scale + 0.5:.1f}" y="{bottom - size:.1f}" '
        f'width="{max(1.0, (right - left) * scale - 1):.1f}" height="{size:.1f}" fill="{BAR}">'
        f"<title>{int(count)}</title></rect>"
        for left, right, count in zip(edges, edges[1:], heights)
        if (size := (bottom - 6) * count / heights.max())
    )
    lines = f'<line x1="0" x2="{WIDTH}" y1="{bottom}" y2="{bottom}" stroke="#cfcad8"/>'
    marked = [(values.total / values.number, f'stroke="{MEAN}"'), (paper, f'stroke="{PAPER}" stroke-dasharray="4 3"')]
    marked += [(limit, f'stroke="{LIMIT}" stroke-dasharray="1.5 2.5"') for limit in limits]
    for place, style in marked:
        if place is not None:
            x = min(max((place - edges[0]) * scale, 1), WIDTH - 1)
            lines += f'<line x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{bottom}" stroke-width="2" {style}/>'
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, _spoken(values, label, paper, limits), Markup(bars + lines + _ends(values, edges))
    )


def _edges(values: Distribution, numbers: np.ndarray, paper: float | None, limits: Sequence[float]) -> np.ndarray:
    """Borders of the bins: one a whole number where there are few of them, else up to 24 of equal width."""
    spread = values.quantile(0.99) - values.least
    if values.step == 1 and spread <= 24:
        low = min(values.least, np.inf if paper is None else paper)
        return np.arange(np.floor(low) - 0.5, np.ceil(max(values.quantile(0.99), 1.15 * (paper or 0), low + 1)) + 1)
    shown = [values.quantile(0.99), *([] if paper is None else [1.15 * paper]), *(1.15 * limit for limit in limits)]
    low = 0.0 if values.least >= 0 else min(values.quantile(0.01), *shown)
    high = max(*shown, low + 4 * values.step)
    return np.linspace(low, high, int(np.clip(2 * values.number**0.5, 8, 24)) + 1)


def _ends(values: Distribution, edges: np.ndarray) -> str:
    """What stands at both ends of the axis."""
    shift = 0.5 if edges[1] - edges[0] == 1 and values.step == 1 else 0.0
    over = " and over" if values.most > edges[-1] else ""
    ends = ((0, "start", f"{edges[0] + shift:.3g}"), (WIDTH, "end", f"{edges[-1] - shift:.3g}{over}"))
    return "".join(f'<text x="{x}" y="{HEIGHT - 4}" text-anchor="{side}">{text}</text>' for x, side, text in ends)


def _spoken(values: Distribution, label: str, paper: float | None, limits: Sequence[float]) -> str:
    """The histogram for those who do not see it."""
    parts = [f"histogram: {label}; mean {values.total / values.number:.3g}, from {values.least:.3g} to {values.most:.3g}"]
    parts += [f"the paper's mean {paper:.3g}"] if paper is not None else []
    parts += [f"a rule's limit {limit:g}" for limit in limits]
    return "; ".join(parts)
