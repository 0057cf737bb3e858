"""Times that somebody told, brought to the boundaries that were detected: clocks, boundaries, and the best assignment."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np

from curation.cuts import FilmCuts, shots

SAME_RATE = 5e-4
"""Relative difference of two frame rates that are one: told with two decimals, 23.976 is 23.98. (24 is another rate.)"""
UNMET = 1e6
"""What a boundary that meets no detected one costs: more than all distances, so that as many as possible meet one."""


@dataclass(frozen=True)
class Edge:
    """A detected boundary.

    Attributes:
        frame: first frame of the new shot.
        clean_end: frame after the last clean one before it.
        clean_start: first clean frame from it on.
        kind: how the new shot begins.
    """

    frame: int
    clean_end: int
    clean_start: int
    kind: Literal["start", "cut", "gradual"]


@dataclass(frozen=True)
class Clock:
    """Frames of the release as frames of the film that is at hand.

    With ``exact`` the release counted this film's own frames; otherwise frames are found by time. Times are seconds from the
    film's first frame.

    Attributes:
        pts: time of every frame of the film.
        end: time at which the last one ends.
        fps: rate in which the release counts.
        exact: whether its frame numbers are the film's.
        slack: seconds by which time stamps may be rounded: a thousandth, which some containers know no parts of.
    """

    pts: np.ndarray = field(repr=False, compare=False)
    end: float
    fps: float
    exact: bool
    slack: float = 1e-3

    @classmethod
    def of(cls, cuts: FilmCuts, fps: float, last: int) -> Clock:
        """The clock of a film for a release of rate ``fps`` whose last story ends at its frame ``last``.

        Numbers count as the film's own where the rates are one, or where the release ends on the film's very last frame
        and the rates are near: the average rate of an unsteady film is stated in more than one way.
        """
        apart = abs(cuts.fps / fps - 1)
        exact = apart <= SAME_RATE or (apart <= 0.05 and abs(last - cuts.n_frames) <= 1)
        pts = np.asarray(cuts.frames.pts, np.float64)
        return cls(pts, cuts.end, fps, exact, min(1e-3, 0.4 * float(np.diff(pts).min(initial=cuts.step))))

    @property
    def step(self) -> float:
        """Mean length of a frame of the film, seconds."""
        return self.end / len(self.pts)

    def seconds(self, number: int) -> float:
        """When the release's frame ``number`` begins; past the film's end by count."""
        if not self.exact:
            return number / self.fps
        count = len(self.pts)
        return float(self.pts[max(number, 0)]) if number < count else self.end + (number - count) * self.step

    def frame_at(self, seconds: float) -> int:
        """First frame that begins at or after a time, give or take :attr:`slack`; their count past the last."""
        return int(np.searchsorted(self.pts, seconds - self.slack)) if seconds <= self.pts[-1] else len(self.pts)

    def time_of(self, frame: int) -> float:
        """When a frame of the film begins; the film's end past the last."""
        return float(self.pts[frame]) if frame < len(self.pts) else self.end

    def picture(self, number: int) -> int | None:
        """The film's frame that shows the release's frame ``number``; None past the film's end.

        By time it depends on how long frames stay there. Shorter ones than the release's are repeats: the first that begins in
        its time is the picture, whether a converter took the nearest or the last one. Of slightly longer ones the nearest is;
        one that stays far longer is held, and the picture is the one on screen.
        """
        if self.exact:
            return number if 0 <= number < len(self.pts) else None
        time = number / self.fps
        if number < 0 or time >= self.end:
            return None
        shown = int(np.searchsorted(self.pts, time + self.slack, side="right")) - 1
        begun, following = self.time_of(shown), self.time_of(shown + 1)
        stays = (following - begun) * self.fps
        if shown + 1 == len(self.pts) or time - begun <= self.slack or stays > 1.5:
            return shown
        return shown + 1 if stays <= 1 or following - time < time - begun else shown


def edges_of(cuts: FilmCuts) -> list[Edge]:
    """The boundaries at which the film would be divided into shots, see :func:`curation.cuts.shots`."""
    spans = shots(cuts)
    return [Edge(span.start_frame, before.clean_end, span.clean_start, span.transition_in) for before, span in pairwise(spans)]


class Edges:
    """Detected boundaries by time.

    Args:
        edges: ascending.
        clock: the film's.
    """

    def __init__(self, edges: Sequence[Edge], clock: Clock) -> None:
        self.edges = list(edges)
        self.frames = [edge.frame for edge in edges]
        self.times = np.array([clock.time_of(edge.frame) for edge in edges])
        self._begins = np.array([clock.time_of(edge.clean_end) for edge in edges])
        self._over = np.array([clock.time_of(edge.clean_start) for edge in edges])
        self._longest = float((self._over - self._begins).max(initial=0.0))
        self._at = {edge.frame: edge for edge in edges}

    def at(self, frame: int) -> Edge | None:
        """The boundary whose new shot begins with a frame."""
        return self._at.get(frame)

    def between(self, first: int, last: int) -> list[int]:
        """Frames of the boundaries from ``first`` to ``last``, both exclusive."""
        return self.frames[bisect_right(self.frames, first) : bisect_left(self.frames, last)]

    def near(self, low: float, high: float, tolerance: float) -> list[tuple[Edge, float]]:
        """Boundaries within a tolerance of a stretch of time, ascending, with their distances in seconds.

        A gradual one reaches from its first frame to its last.
        """
        first = int(np.searchsorted(self.times, low - tolerance - self._longest - 1e-6))
        last = int(np.searchsorted(self.times, high + tolerance + self._longest + 1e-6, side="right"))
        found = []
        for k in range(first, last):
            apart = max(0.0, float(self._begins[k]) - high, low - float(self._over[k]))
            if apart <= tolerance + 1e-9:
                found.append((self.edges[k], apart))
        return found


@dataclass(frozen=True)
class Option:
    """A frame that a told boundary may become, what that costs, and whether it meets something detected (or a story's end)."""

    frame: int
    cost: float
    met: bool


def assign(wishes: Sequence[Sequence[Option]]) -> list[Option]:
    """Choose one option for each of a row of boundaries, their frames strictly ascending, at the least cost.

    Args:
        wishes: options of each boundary, ascending by frame. Some choice must exist.

    Returns:
        The choice; of equally good ones the one whose last, then last but one, ... boundary is earliest. It takes time in
        proportion to the number of options.
    """
    totals: list[list[float]] = []
    origins: list[list[int]] = []
    for k, options in enumerate(wishes):
        total, origin = [], []
        best, best_from, reached = (0.0, -1, 0) if k == 0 else (float("inf"), -1, 0)
        for option in options:
            if k:
                before = wishes[k - 1]
                while reached < len(before) and before[reached].frame < option.frame:
                    if totals[-1][reached] < best:
                        best, best_from = totals[-1][reached], reached
                    reached += 1
            total.append(best + option.cost)
            origin.append(best_from)
        totals.append(total)
        origins.append(origin)
    chosen: list[Option] = []
    place = int(np.argmin(totals[-1])) if wishes else -1
    for k in range(len(wishes) - 1, -1, -1):
        chosen.append(wishes[k][place])
        place = origins[k][place]
    return chosen[::-1]


def typical_offset(told: Sequence[float], edges: Edges, reach: float = 1.6, least: int = 8, most: float = 1.0) -> float | None:
    """By how much detected boundaries lie after told times, as a rule, in seconds.

    Whole seconds may be rounded down, to the nearest, or up, as whoever told them is used to. Only times count that have one
    detected boundary within ``reach`` seconds and no other; their median, at most ``most``, is the answer, and None
    where there are fewer than ``least`` of them.
    """
    found = []
    for time in told:
        first, last = np.searchsorted(edges.times, (time - reach, time + reach))
        if last - first == 1:
            found.append(float(edges.times[first]) - time)
    if len(found) < least:
        return None
    return round(float(np.clip(np.median(found), -most, most)), 3)
