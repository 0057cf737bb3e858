"""Whether a film is the one that was annotated: its length, and how often told boundaries lie at detected ones by chance.

Chance is measured and not assumed: all told times are moved through the film together, and what they then meet is what they
would meet in another film with cuts as dense.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from animeshooter_dataset import Evidence
from curation.release import ReleaseVideo
from curation.snapping import Clock, Edges

WINDOW, WIDE = 0.6, 1.1
"""Seconds on both sides of a told whole second, moved by the usual offset, in which its boundary lies: rounding and a frame or
two; and the same where the usual offset is not known."""
LEAST, ENOUGH = 6, 12
"""Fewest told boundaries from which anything is concluded, and from which a film is doubted."""
CLEAR, NOTHING, POWER = 3.0, 1.5, 4.0
"""Standard deviations over chance: from which the film is believed, under which it is doubted, and which a film that has nine
in ten of the boundaries at detected ones would have to reach for the doubt to mean anything."""
SHIFTS = 400
"""Displacements by which chance is measured."""


def resemblance(
    video: ReleaseVideo,
    clock: Clock,
    edges: Edges,
    told: Sequence[float],
    offset: float | None,
    met: Sequence[float | None],
    reach: float,
    tolerance: float,
    past: float,
) -> tuple[Evidence, ...]:
    """What tells that a film is, or is not, the annotated one.

    Args:
        video: what the release says.
        clock: its frames as the film's.
        edges: the film's boundaries.
        told: told boundaries between shots, seconds of the film.
        offset: how much boundaries lie after told times as a rule; None where it is not known.
        met: distances of the boundaries that met a detected one, None for the others.
        reach: most seconds between a told boundary between shots, moved by the offset, and the one it met.
        tolerance: seconds by which a story's border may miss a detected boundary.
        past: seconds by which the last story may end after the film.
    """
    times = np.array(told) + (offset or 0.0)
    numbers = {number for segment in video.segments for number in (segment.start_frame, segment.end_frame)}
    ends = np.array(sorted(clock.seconds(number) for number in numbers))
    ends = ends[(ends > tolerance) & (ends < clock.end - tolerance)]
    return (
        _cuts(times, edges, clock, offset, met, reach),
        _borders(ends, edges, clock, tolerance),
        _length(video, clock, past),
    )


def _cuts(
    times: np.ndarray, edges: Edges, clock: Clock, offset: float | None, met: Sequence[float | None], reach: float
) -> Evidence:
    distances = [each for each in met if each is not None]
    share = len(distances) / len(met) if met else None
    habit = f"told {abs(offset):.1f} s {'early' if offset > 0 else 'late'} as a rule" if offset and abs(offset) >= 0.05 else ""
    window = WIDE if offset is None else WINDOW
    mean = f"{np.mean(distances):.1f} s away on average" if distances else ""
    aside = ", ".join(filter(None, (mean, habit)))
    detail = f"{len(distances)} of {len(met)} told shot boundaries meet a detected one{f' ({aside})' if aside else ''}"
    verdict, chance, close = _against_chance(times, edges, clock, window)
    if chance is not None:
        detail += f"; {close:.0%} lie within {window} s of one, {chance:.0%} would by chance"
    if verdict is not True and (moved := _better_elsewhere(times, edges, window)) is not None:
        shift, there = moved
        way = "later" if shift > 0 else "earlier"
        detail += f"; {there:.0%} would if everything came about {abs(shift):.0f} s {way}: was its start cut or added to?"
    return _evidence("released cuts", verdict, share, _against_chance(times, edges, clock, reach)[1], detail)


def _borders(times: np.ndarray, edges: Edges, clock: Clock, tolerance: float) -> Evidence:
    verdict, chance, close = _against_chance(times, edges, clock, tolerance)
    near = round((close or 0.0) * len(times))
    detail = f"{near} of {len(times)} told story borders inside the film lie within {tolerance:.2f} s of a detected boundary"
    if chance is not None:
        detail += f", {chance * len(times):.1f} would by chance"
    return _evidence("released borders", verdict, close, chance, detail)


def _length(video: ReleaseVideo, clock: Clock, past: float) -> Evidence:
    told = max((clock.seconds(segment.end_frame) for segment in video.segments), default=0.0)
    detail = f"the release tells of {told:.1f} s, the film is {clock.end:.1f} s long"
    if not clock.exact:
        detail += f" and comes at {1 / clock.step:.3f} frames a second where the release counts {clock.fps:.3f}"
    passed = False if told > clock.end + past else True if told > clock.end - past else None
    if passed is False:
        detail = f"the film is shorter than the annotated video, or another one: {detail}"
    return Evidence(check="released length", passed=passed, value=round(clock.end, 3), limit=round(told, 3), detail=detail)


def _evidence(check: str, verdict: bool | None, share: float | None, chance: float | None, detail: str) -> Evidence:
    value, limit = (None if each is None else round(each, 4) for each in (share, chance))
    if verdict is False:
        detail = f"this looks like another video than the annotated one: {detail}"
    return Evidence(check=check, passed=verdict, value=value, limit=limit, detail=detail)


def _close(times: np.ndarray, edges: np.ndarray, window: float) -> np.ndarray:
    """Whether each time, in an array of any shape, has a boundary within a window."""
    padded = np.r_[-np.inf, edges, np.inf]
    after = np.searchsorted(padded, times)
    return np.minimum(times - padded[after - 1], padded[after] - times) <= window


def _against_chance(
    times: np.ndarray, edges: Edges, clock: Clock, window: float
) -> tuple[bool | None, float | None, float | None]:
    """Whether times meet more boundaries than moved ones do (None: cannot be told), the share these meet, and their own."""
    if not len(times):
        return None, None, None
    close = float(_close(times, edges.times, window).mean())
    aside = 4 * window + 1.0
    if len(times) < LEAST or clock.end < 4 * aside:
        return None, None, close
    moved = (times[None] + np.linspace(aside, clock.end - aside, SHIFTS)[:, None]) % clock.end
    shares = _close(moved, edges.times, window).mean(axis=1)
    chance = float(shares.mean())
    spread = max(float(shares.std()), float(np.sqrt(max(chance * (1 - chance), 1e-4) / len(times))))
    if close - chance >= CLEAR * spread:
        return True, chance, close
    doubted = len(times) >= ENOUGH and close - chance < NOTHING * spread and 0.9 - chance >= POWER * spread
    return (False if doubted else None), chance, close


def _better_elsewhere(times: np.ndarray, edges: Edges, window: float, reach: float = 30.0) -> tuple[float, float] | None:
    """By how many seconds all times would have to be moved to meet boundaries as those of the annotated film, and the share."""
    if len(times) < 2 * LEAST:
        return None
    shifts = np.round(np.arange(-reach, reach + 0.05, 0.1), 1)
    shares = _close(times[None] + shifts[:, None], edges.times, window).mean(axis=1)
    most = float(shares.max())
    if most < 0.8 or most - float(shares.mean()) < CLEAR * 1.5 * float(shares.std()):
        return None
    best = shifts[shares >= most - 1e-9]
    return float(best[len(best) // 2]), most
