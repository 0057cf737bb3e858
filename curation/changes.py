"""What changes from frame to frame: the measures on which shot boundaries rest.

Every frame comes as one small picture of 160 x 90. From it: the difference to the frame before and how much of the texture is
*held* (stays where it was, whatever the light does), PySceneDetect's content score, thumbnails for the search for gradual
transitions, and TransNetV2's opinion where the cheap measures are not quiet. What is kept of a frame for good is 42 bytes;
pictures are kept for a stretch of film at a time.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from curation import network

SMALL = (160, 90)
"""Width and height of the picture all measures are taken from."""
THUMBNAIL, OUTLINE = (16, 9), (64, 36)
BLOCK = 10
"""Pixels a side of a block of the small picture; also the size of a thumbnail's pixel."""
BAR_LEVEL = 24
"""Luma up to which a row or column along the border counts as a black bar (video black is 16)."""
FLAT = 2.5
"""Contrast (spatial standard deviation of the thumbnail, of 255) up to which a picture is of a single colour."""
REACH = 3
"""Frames before and after a change whose changes it is compared with."""
QUIET, QUIET_PICTURES = 0.4, 5
"""Pictures spread over a window of the network that must share at least so much of their outlines for it to be quiet."""


@dataclass
class FrameFeatures:
    """What was measured of every frame; arrays of length n_frames.

    Attributes:
        pts: Seconds from the first frame, float64, strictly increasing.
        mean_rgb: Mean colour, float32 (n, 3), 0 to 255.
        difference: Mean absolute difference to the frame before, float32, 0 to 255; 0 for the first frame.
        repeat: The frame repeats the one before, bool (films on twos, 24 frames carried at 30).
        held: Share of textured blocks unchanged since the frame before, float32, 0 to 1.
        content: PySceneDetect's content score of the picture inside black bars, float32.
        flat: The picture is of a single colour, such as black, bool.
        network: TransNetV2's probability that a new shot starts *here*, float32; NaN where it was not asked.
        network_all: TransNetV2's probability that the frame is part of a transition, float32; NaN where it was not asked.
    """

    pts: np.ndarray
    mean_rgb: np.ndarray
    difference: np.ndarray
    repeat: np.ndarray
    held: np.ndarray
    content: np.ndarray
    flat: np.ndarray
    network: np.ndarray
    network_all: np.ndarray


@dataclass
class Thumbnails:
    """Small pictures of consecutive frames.

    Attributes:
        colour: uint8 RGB (n, 9, 16, 3).
        grey: uint8 (n, 36, 64).
    """

    colour: np.ndarray
    grey: np.ndarray


class FrameMeter:
    """Measures frames as they come.

    Args:
        model: TransNetV2, or None to do without.
        repeat_level: Difference up to which a frame repeats the one before (a lossy codec's residue).
        suspicious: Least isolation, the same with another change near, and largest held share of a change that the network is
            asked about.
    """

    def __init__(self, model: Any, repeat_level: float, suspicious: tuple[float, float, float]) -> None:
        self._network = network.Network(model) if model is not None else None
        self._repeat_level, self._suspicious = repeat_level, suspicious
        self._content = _ContentScore()
        self._before: tuple[np.ndarray, np.ndarray] | None = None
        self._pts, self._flat = array("d"), bytearray()
        self._scalars = {name: array("f") for name in ("mean_rgb", "difference", "held", "content")}
        self._colour: list[np.ndarray] = []
        self._grey: list[np.ndarray] = []
        self._first = 0  # index of the first frame whose thumbnails are still here

    def __len__(self) -> int:
        return len(self._pts)

    def push(self, time: float, image: np.ndarray) -> None:
        """Takes the next frame: its time in seconds and its RGB picture of size :data:`SMALL`."""
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        difference, held, score = 0.0, 1.0, self._content(image)
        if self._before is not None:
            difference = cv2.norm(image, self._before[0], cv2.NORM_L1) / image.size
            if difference > self._repeat_level:
                inside = active_area(self._before[1], grey)
                held = held_share(self._before[1][inside], grey[inside])
                score *= min(2.0, grey.size / grey[inside].size)
        self._before = image, grey
        self._pts.append(time)
        self._scalars["mean_rgb"].extend(cv2.mean(image)[:3])
        for name, value in (("difference", difference), ("held", held), ("content", score)):
            self._scalars[name].append(value)
        self._colour.append(cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA))
        self._flat.append(float(cv2.meanStdDev(self._colour[-1])[1].mean()) <= FLAT)
        self._grey.append(cv2.resize(grey, OUTLINE, interpolation=cv2.INTER_AREA))
        if self._network:
            self._network.push(cv2.resize(image, network.SIZE, interpolation=cv2.INTER_AREA), self._worth_asking)

    def finish(self) -> None:
        """Says that no frame follows; the network's last windows are then run."""
        if self._network:
            self._network.finish(self._worth_asking)

    def features(self, first: int = 0, end: int | None = None) -> FrameFeatures:
        """Measures of frames ``first`` to ``end`` (exclusive; the last there is when None)."""
        end = len(self) if end is None else end
        single = ("difference", "held", "content")
        columns = {name: np.array(self._scalars[name][first:end], np.float32) for name in single}
        mean_rgb = np.array(self._scalars["mean_rgb"][3 * first : 3 * end], np.float32).reshape(-1, 3)
        both = np.full((end - first, 2), np.nan, np.float32)
        if self._network:
            # The network marks the last frame of the old shot
            both[:, 0] = self._network.probabilities(first - 1, end - 1)[:, 0]
            both[:, 1] = self._network.probabilities(first, end)[:, 1]
        return FrameFeatures(
            pts=np.array(self._pts[first:end], np.float64),
            mean_rgb=mean_rgb,
            repeat=(columns["difference"] <= self._repeat_level) & (np.arange(first, end) > 0),
            flat=np.array(self._flat[first:end], bool),
            network=both[:, 0],
            network_all=both[:, 1],
            **columns,
        )

    def thumbnails(self, first: int, end: int) -> Thumbnails:
        """Small pictures of frames ``first`` to ``end`` (exclusive)."""
        part = slice(first - self._first, end - self._first)
        return Thumbnails(np.stack(self._colour[part]), np.stack(self._grey[part]))

    def forget(self, before: int) -> None:
        """Lets go of the small pictures of frames up to ``before`` (exclusive)."""
        gone = before - self._first
        del self._colour[:gone], self._grey[:gone]
        self._first = before

    def _worth_asking(self, first: int, end: int) -> bool:
        """Whether a shot may begin in frames ``first`` to ``end``.

        It may where a change stands out and holds little of the picture, and where the pictures around do not all show one
        scene at one place.
        """
        isolated, outstanding, held = self._suspicious
        start = max(0, first - REACH)
        changes = np.array(self._scalars["difference"][start : end + REACH], np.float32)
        isolated_here = standing_out(changes, isolated, outstanding)[first - start : end - start]
        if (isolated_here & (np.array(self._scalars["held"][first:end]) <= held)).any():
            return True
        marks = np.linspace(max(0, first - network.MARGIN), len(self) - 1, QUIET_PICTURES).round().astype(int)
        pictures = [self._grey[mark - self._first] for mark in marks]
        return any(shared_outline(a, b) < QUIET for k, a in enumerate(pictures) for b in pictures[k + 1 :])


class _ContentScore:
    """PySceneDetect's content score of consecutive pictures."""

    def __init__(self) -> None:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import ContentDetector

        self._detector = ContentDetector()
        self._time = FrameTimecode(0, fps=24.0)  # the score does not depend on it

    def __call__(self, image: np.ndarray) -> float:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        return float(self._detector._calculate_frame_score(self._time, bgr))


def active_area(before: np.ndarray, after: np.ndarray) -> tuple[slice, slice]:
    """The rectangle inside black bars common to two grey pictures; all of it when both are black."""
    bright = np.maximum(before, after) > BAR_LEVEL
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    if not len(rows):
        return slice(None), slice(None)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def held_share(before: np.ndarray, after: np.ndarray) -> float:
    """Share of textured blocks that look the same in two pictures, at the same place.

    Blocks of :data:`BLOCK` pixels a side count when either picture has texture in them; two blocks look the same when they
    correlate, so that a change of light does not matter.

    Args:
        before: Grey uint8 picture.
        after: Grey uint8 picture of the same size.

    Returns:
        0 to 1; of two flat pictures, 1 when they are about equally bright and 0 otherwise.
    """
    size = (max(1, before.shape[1] // BLOCK), max(1, before.shape[0] // BLOCK))
    a, b = before.astype(np.float32), after.astype(np.float32)

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.resize(x, size, interpolation=cv2.INTER_AREA)

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    textured = np.maximum(variance_a, variance_b) > 36
    if not textured.any():
        return float(np.abs(mean_a - mean_b).mean() <= 16)
    same = covariance > 0.8 * np.sqrt(np.maximum(variance_a * variance_b, 1e-6)) + 1e-3
    return float((same & textured).sum() / textured.sum())


def isolation(difference: np.ndarray, *, rank: int = 1, reach: int = REACH) -> np.ndarray:
    """How far each change stands out from the changes of the three frames before and the three after.

    Args:
        difference: Difference of each frame to the one before, (n,).
        rank: 1 compares with the strongest neighbour, 2 with the second strongest: then another cut may be near (a picture
            that stands for three frames or less), while motion, also on twos or threes, still counts.
        reach: Frames looked at on each side.

    Returns:
        (n,): the change divided by one grey level plus that neighbour's.
    """
    padded = np.pad(difference, reach)
    count = len(difference)
    neighbours = [padded[reach + shift : reach + shift + count] for shift in range(-reach, reach + 1) if shift]
    return difference / (np.sort(neighbours, axis=0)[-rank] + 1.0)


def standing_out(difference: np.ndarray, isolated: float, outstanding: float) -> np.ndarray:
    """Changes with the isolation of a cut: ``isolated``, or ``outstanding`` but for one more change as strong nearby."""
    return (isolation(difference) >= isolated) | (isolation(difference, rank=2) >= outstanding)


def isolation_among_moves(
    difference: np.ndarray, repeat_level: float, *, rank: int = 1, moves: int = 3, most: int = 12
) -> np.ndarray:
    """:func:`isolation` among the frames that move, so that a drawing held for four frames is as near as one held for one.

    Args:
        difference: Difference of each frame to the one before, (n,).
        repeat_level: Difference up to which a frame repeats the one before.
        rank: As for :func:`isolation`.
        moves: Changes looked at on each side.
        most: Frames looked at on each side, at most.
    """
    around = np.lib.stride_tricks.sliding_window_view(np.pad(difference, most, mode="reflect"), 2 * most + 1)
    rank_of_floor = int(1.2 * most)
    floor = np.partition(around, rank_of_floor, axis=1)[:, rank_of_floor]  # where drawings are held for long, their noise
    moving = np.flatnonzero(difference > np.maximum(repeat_level, 3 * floor))
    out = difference / 1.0
    values = np.pad(difference[moving], moves)
    places = np.pad(moving, moves, constant_values=-10 * most)
    neighbours = []
    for shift in range(-moves, moves + 1):
        if shift:
            part = slice(moves + shift, moves + shift + len(moving))
            neighbours.append(np.where(np.abs(places[part] - moving) <= most, values[part], 0))
    out[moving] = difference[moving] / (np.sort(neighbours, axis=0)[-rank] + 1.0)
    return out


def shared_outline(a: np.ndarray, b: np.ndarray) -> float:
    """Share of two grey pictures' gradients that agree in place and direction, 0 to 1; light and colour do not matter."""
    gradients = []
    for picture in (a.astype(np.float32), b.astype(np.float32)):
        dy, dx = np.gradient(picture)
        strength = np.hypot(dx, dy)
        gradients.append((dx, dy, strength / max(float(strength.mean()), 1.0)))
    (ax, ay, sa), (bx, by, sb) = gradients
    cosine = (ax * bx + ay * by) / np.maximum(np.hypot(ax, ay) * np.hypot(bx, by), 1e-3)
    whole = float(np.maximum(sa, sb).sum())
    return float((np.minimum(sa, sb) * np.maximum(cosine, 0)).sum()) / whole if whole else 1.0
