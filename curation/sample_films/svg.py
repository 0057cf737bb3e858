"""Vector drawing: short helpers that write SVG elements, and their rasterisation to premultiplied pixels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

Point = tuple[float, float]
Box = tuple[float, float, float, float]


def num(value: float) -> str:
    """A number as short SVG text, with one decimal (also makes equal drawings equal strings)."""
    text = f"{value:.1f}"
    return text[:-2] if text.endswith(".0") else text


def _paint(fill: str, stroke: str | None, width: float, extra: str) -> str:
    line = f' stroke="{stroke}" stroke-width="{num(width)}" stroke-linejoin="round" stroke-linecap="round"'
    return f'fill="{fill}"{line if stroke and width else ""} {extra}'.rstrip()


def path(d: str, fill: str = "none", stroke: str | None = None, width: float = 3, extra: str = "") -> str:
    """A path element from its `d` data."""
    return f'<path d="{d}" {_paint(fill, stroke, width, extra)}/>'


def ellipse(
    x: float, y: float, rx: float, ry: float, fill: str, stroke: str | None = None, width: float = 3, extra: str = ""
) -> str:
    """An ellipse with centre (x, y)."""
    return (
        f'<ellipse cx="{num(x)}" cy="{num(y)}" rx="{num(max(rx, 0.1))}" ry="{num(max(ry, 0.1))}" '
        f"{_paint(fill, stroke, width, extra)}/>"
    )


def rect(
    x: float,
    y: float,
    w: float,
    h: float,
    fill: str,
    r: float = 0,
    stroke: str | None = None,
    width: float = 3,
    extra: str = "",
) -> str:
    """A rectangle with corner radius `r`."""
    return (
        f'<rect x="{num(x)}" y="{num(y)}" width="{num(w)}" height="{num(h)}" rx="{num(r)}" '
        f"{_paint(fill, stroke, width, extra)}/>"
    )


def group(content: str | Iterable[str], transform: str = "", extra: str = "") -> str:
    """A group with an optional transform."""
    body = content if isinstance(content, str) else "".join(content)
    move = f' transform="{transform}"' if transform else ""
    return f"<g{move} {extra}>{body}</g>" if extra else f"<g{move}>{body}</g>"


def turn(content: str | Iterable[str], degrees: float, x: float, y: float) -> str:
    """Content rotated by `degrees` about (x, y)."""
    return group(content, f"rotate({num(degrees)} {num(x)} {num(y)})")


def polygon(points: Sequence[Point], closed: bool = True) -> str:
    """Straight-edged `d` data through the points."""
    return "M" + " L".join(f"{num(x)} {num(y)}" for x, y in points) + ("Z" if closed else "")


def blob(points: Sequence[Point], closed: bool = True, tension: float = 1.0) -> str:
    """Smooth `d` data through the points (Catmull-Rom splines written as cubic Béziers)."""
    n = len(points)

    def at(i: int) -> Point:
        return points[i % n] if closed else points[min(max(i, 0), n - 1)]

    data = [f"M{num(points[0][0])} {num(points[0][1])}"]
    for i in range(n if closed else n - 1):
        before, start, end, after = at(i - 1), at(i), at(i + 1), at(i + 2)
        c1 = (start[0] + (end[0] - before[0]) * tension / 6, start[1] + (end[1] - before[1]) * tension / 6)
        c2 = (end[0] - (after[0] - start[0]) * tension / 6, end[1] - (after[1] - start[1]) * tension / 6)
        data.append("C" + " ".join(f"{num(x)} {num(y)}" for x, y in (c1, c2, end)))
    return "".join(data) + ("Z" if closed else "")


def limb(start: Point, end: Point, bend: float, w0: float, w1: float) -> str:
    """`d` data of a tapered, bent limb: half-widths `w0` at the start and `w1` at the end, bowed sideways by `bend`."""
    dx, dy = end[0] - start[0], end[1] - start[1]
    length = math.hypot(dx, dy) or 1.0
    nx, ny = -dy / length, dx / length
    mx, my = (start[0] + end[0]) / 2 + nx * bend, (start[1] + end[1]) / 2 + ny * bend
    wm = (w0 + w1) / 2
    ux, uy = dx / length * w1, dy / length * w1
    return blob(
        [
            (start[0] + nx * w0, start[1] + ny * w0),
            (mx + nx * wm, my + ny * wm),
            (end[0] + nx * w1, end[1] + ny * w1),
            (end[0] + ux, end[1] + uy),
            (end[0] - nx * w1, end[1] - ny * w1),
            (mx - nx * wm, my - ny * wm),
            (start[0] - nx * w0, start[1] - ny * w0),
        ]
    )


def polar(x: float, y: float, radius: float, degrees: float) -> Point:
    """The point at `radius` from (x, y); 0 degrees hangs down, 90 points to +x, 180 up."""
    a = math.radians(degrees)
    return x + radius * math.sin(a), y + radius * math.cos(a)


def linear(name: str, *stops: str, x2: float = 0, y2: float = 1) -> str:
    """A linear gradient over the shape's own box, from the top left towards (x2, y2); a stop is a colour."""
    return f'<linearGradient id="{name}" x1="0" y1="0" x2="{x2}" y2="{y2}">{_stops(stops)}</linearGradient>'


def radial(name: str, *stops: str, cx: float = 0.5, cy: float = 0.5, r: float = 0.6) -> str:
    """A radial gradient over the shape's own box; a stop is `colour` or `colour/opacity`."""
    return f'<radialGradient id="{name}" cx="{cx}" cy="{cy}" r="{r}">{_stops(stops)}</radialGradient>'


def _stops(stops: Sequence[str]) -> str:
    rows = []
    for i, stop in enumerate(stops):
        colour, _, opacity = stop.partition("/")
        alpha = f' stop-opacity="{opacity}"' if opacity else ""
        rows.append(f'<stop offset="{i / max(len(stops) - 1, 1):.3f}" stop-color="{colour}"{alpha}/>')
    return "".join(rows)


def raster(body: str, box: Box, scale: float, defs: str = "") -> np.ndarray:
    """Rasterise SVG elements.

    Args:
        body: Elements in user units.
        box: The part to draw, (x0, y0, x1, y1) in user units.
        scale: Pixels a unit.
        defs: Gradients and other definitions.

    Returns:
        uint8 [height, width, 4], blue-green-red-alpha, premultiplied by alpha.
    """
    import cv2
    import numpy as np
    import resvg_py

    w, h = max(1, round((box[2] - box[0]) * scale)), max(1, round((box[3] - box[1]) * scale))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{w}" height="{h}" preserveAspectRatio="none" '
        f'viewBox="{box[0]:.2f} {box[1]:.2f} {box[2] - box[0]:.2f} {box[3] - box[1]:.2f}">'
        f"<defs>{defs}</defs>{body}</svg>"
    )
    png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
    image = np.asarray(cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED))
    if image.shape[2] == 3:
        return cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
    alpha = image[:, :, 3]
    flat = cv2.multiply(image, cv2.merge([alpha, alpha, alpha, np.full_like(alpha, 255)]), scale=1 / 255)
    return np.ascontiguousarray(flat)
