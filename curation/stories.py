"""Stories: a film's shots grouped into consecutive stretches of about a minute, always at shot boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from curation.cuts import Span


@dataclass(frozen=True)
class StoriesConfig:
    """Settings of the division.

    Attributes:
        target_seconds: Wanted length of a story (the paper's stories average 56.7 s).
    """

    target_seconds: float = 60.0


def split_stories(
    spans: Sequence[Span], pts: np.ndarray, config: StoriesConfig | None = None, *, flat: Sequence[bool] = ()
) -> list[range]:
    """Groups shots into stories.

    The division minimises the sum over stories of (length - target)^2 exactly, by dynamic programming over shot boundaries;
    its time grows with the number of shots times the shots of two minutes. A film no longer than the target is one story,
    and so is a shot that nothing divides.

    Args:
        spans: Consecutive shots.
        pts: Time of every frame in seconds, ascending.
        config: Settings.
        flat: Whether each shot shows nothing but black or another single colour (:func:`curation.cuts.flat_shots`); no
            story but the film's first starts with such a shot.

    Returns:
        Ranges of shot indices: consecutive, none empty, together all shots; of equally good divisions the one with fewest
        stories.

    Raises:
        ValueError: The target is not positive, or ``flat`` does not have one value a shot.
    """
    target = (config or StoriesConfig()).target_seconds
    if target <= 0:
        raise ValueError(f"stories need a positive target length, got {target}")
    if flat and len(flat) != len(spans):
        raise ValueError(f"flat needs one value a shot, got {len(flat)} for {len(spans)} shots")
    if not spans:
        return []
    times = boundary_seconds(spans, pts)
    count = len(spans)
    if times[-1] - times[0] <= target:
        return [range(count)]
    best: list[tuple[float, int]] = [(0.0, 0)] + [(float("inf"), 0)] * count
    previous = [0] * (count + 1)
    for end in range(1, count + 1):
        for start in range(end - 1, -1, -1):
            length = times[end] - times[start]
            cost = (best[start][0] + (length - target) ** 2, best[start][1] + 1)
            if cost < best[end] and not (start and flat and flat[start]):
                best[end], previous[end] = cost, start
            if length > 2 * target and (length - target) ** 2 >= best[end][0]:
                break  # longer stories only cost more
    stories = []
    end = count
    while end:
        stories.append(range(previous[end], end))
        end = previous[end]
    return stories[::-1]


def boundary_seconds(spans: Sequence[Span], pts: np.ndarray) -> list[float]:
    """Times of the shots' boundaries, one more than there are shots; the last frame counts as long as the one before it."""
    step = float(pts[-1] - pts[-2]) if len(pts) > 1 else 0.0
    starts = [float(pts[span.start_frame]) for span in spans]
    end = spans[-1].end_frame
    return [*starts, float(pts[end]) if end < len(pts) else float(pts[-1]) + step]
