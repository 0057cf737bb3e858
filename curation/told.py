"""Shots as a story of the release tells them, made to follow one another: mended, put in order, or left out with a reason."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from curation.release import ReleaseSegment, ReleaseShot

ROUNDING = 1.5
"""Seconds between told times, or between the last of them and the story's end, that whole seconds may explain. In the
official release stories end up to 1.4 s after their last shot does."""
LEAST_ROOM = 0.1
"""Seconds under which there is no room for a shot."""


@dataclass(frozen=True)
class ToldShot:
    """One shot as it may be placed; times are seconds from the film's first frame.

    Attributes:
        place: which shot of the segment it is, from 0.
        start: where it starts, so far as told.
        end: where it ends; not after the next shot's start, and so not before its own.
        overlap: first and last second of the stretch around ``start`` that the shot before is told over as well; both are
            ``start`` where there is none.
    """

    place: int
    start: float
    end: float
    overlap: tuple[float, float]


@dataclass(frozen=True)
class Stage:
    """Where a story's shots may lie.

    Attributes:
        begin: the time from which the release counts, seconds of the film.
        low: start of the story's frames, seconds; after ``begin`` where another story has the first of them.
        high: end of its frames.
        offset: by how much boundaries lie after told times, see :func:`curation.snapping.typical_offset`.
        frame_at: the frame of a time.
    """

    begin: float
    low: float
    high: float
    offset: float
    frame_at: Callable[[float], int]

    def room(self, start: float, end: float) -> bool:
        """Whether a shot fits between two times."""
        return end - start >= LEAST_ROOM and self.frame_at(end) > self.frame_at(start)


def sentence(segment: ReleaseSegment, place: int, what: str) -> str:
    """A line on one shot of a story, with both numbers and its told times."""
    shot = segment.shots[place]
    told = f"told from {stamp(shot.start)} to {stamp(shot.end)}"
    return f"story {segment.number}, shot {place + 1} of {len(segment.shots)}, {told}, {what}"


def stamp(seconds: float) -> str:
    """A time as the release tells it, as 01:02; parts of a second only where there are any."""
    if not math.isfinite(seconds):
        return "no time"
    minutes, rest = divmod(round(abs(seconds), 1), 60)
    return f"{'-' if seconds < 0 else ''}{int(minutes):02d}:{f'{rest:04.1f}'.removesuffix('.0')}"


def in_order(segment: ReleaseSegment, stage: Stage) -> tuple[list[ToldShot], list[str]]:
    """A story's shots, one after another, each with room of its own.

    Reversed and empty times take the room that the neighbours leave. Of two shots that are told over the same stretch the
    later begins where the earlier ends; otherwise overlaps end where the later shot begins. What starts past the story's
    end, or has no room, is left out.

    Returns:
        The shots, and a line on each that was left out or lost a part of its length.
    """
    lines: list[str] = []
    inside = []
    for told in _mended(segment, stage, lines):
        if not stage.room(told.start, stage.high):
            lines.append(sentence(segment, told.place, f"is left out: the story ends at {stamp(stage.high - stage.begin)}"))
        elif not stage.room(stage.low, told.end):
            lines.append(sentence(segment, told.place, "is left out: those frames belong to the story before"))
        else:
            if told.end - stage.high > ROUNDING:
                lines.append(sentence(segment, told.place, f"is cut at the story's end, {stamp(stage.high - stage.begin)}"))
            inside.append(replace(told, start=max(told.start, stage.low), end=min(told.end, stage.high)))
    placed: list[ToldShot] = []
    for told in sorted(inside, key=lambda each: (each.start, each.end, each.place)):
        start, end = told.start, told.end
        before = placed[-1] if placed else None
        if before is not None and not stage.room(before.start, start):
            start = before.end
        if not stage.room(start, end):
            other = f" (shot {before.place + 1} is told over the same stretch)" if before is not None else ""
            lines.append(sentence(segment, told.place, f"is left out: no room is left for it{other}"))
            continue
        shared = (start, start)
        if before is not None and before.end > told.start:
            shared = (told.start, max(start, min(before.end, end)))
            placed[-1] = replace(before, end=start)
        placed.append(ToldShot(told.place, start, end, shared))
    return placed, lines


def _mended(segment: ReleaseSegment, stage: Stage, lines: list[str]) -> list[ToldShot]:
    """The shots in the order told, in seconds of the film, each ending after it starts."""
    times = [_span(shot, stage) for shot in segment.shots]
    found: list[ToldShot] = []
    end_before = stage.low
    for place, (start, end) in enumerate(times):
        if not _forward(start, end):
            later = [first for first, last in times[place + 1 :] if _forward(first, last)]
            until = min(later[0] if later else stage.high, stage.high)
            if _forward(end, start) and end >= end_before and start <= until:
                start, end = end, start  # only the two changed places
            elif stage.room(end_before, until):
                start, end = end_before, until
            else:
                lines.append(sentence(segment, place, "is left out: its times are no stretch and its neighbours leave no room"))
                continue
        end_before = max(end_before, min(end, stage.high))
        found.append(ToldShot(place, start, end, (start, start)))
    return found


def _span(shot: ReleaseShot, stage: Stage) -> tuple[float, float]:
    start, end = stage.begin + shot.start, stage.begin + shot.end
    if stage.high - LEAST_ROOM < start < stage.high + ROUNDING and stage.offset < 0:
        start += stage.offset  # rounded up, past the end of the story it is in
    return start, end


def _forward(start: float, end: float) -> bool:
    return math.isfinite(start) and math.isfinite(end) and end - start >= LEAST_ROOM


def contiguous(shots: Sequence[ReleaseShot]) -> list[float]:
    """Times, from the story's start, at which one shot is told to end and the next to begin."""
    return [
        before.end
        for before, after in pairwise(shots)
        if math.isfinite(before.end) and abs(before.end - after.start) < 0.5 and before.start < before.end < after.end
    ]
