"""What the detector would find in films that nobody drew: boundaries and time stamps, chosen by hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from curation.changes import FrameFeatures
from curation.cuts import FilmCuts


def film(
    frames: int,
    cuts: Sequence[int] = (),
    *,
    fps: float = 24.0,
    gradual: Sequence[Sequence[int]] = (),
    pts: Sequence[float] | np.ndarray | None = None,
    flat: Sequence[Sequence[int]] = (),
) -> FilmCuts:
    """The boundaries of a film.

    Args:
        frames: how many it has.
        cuts: first frame of each new shot.
        fps: average rate.
        gradual: first and last frame of each transition.
        pts: time of every frame, seconds; steady if None.
        flat: first and last frame of each stretch of black.
    """
    zero, black = np.zeros(frames, np.float32), np.zeros(frames, bool)
    for first, last in flat:
        black[first : last + 1] = True
    times = np.arange(frames) / fps if pts is None else np.asarray(pts, float)
    features = FrameFeatures(times, np.zeros((frames, 3), np.float32), zero, zero > 0, zero, zero, black, zero, zero)
    return FilmCuts("film.mp4", fps, frames, list(cuts), [1.0] * len(cuts), [list(each) for each in gradual], features)
