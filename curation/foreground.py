"""What of a shot stands before its background, from pixels alone: frames registered on each other, what moves against the
rest, and where nothing moves, what its frame's border does not show.

Everything runs at a small working size and is deterministic.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curation.script import StoryView

WORK_SIDE = 240
"""Longer side of the working images, pixels."""


@dataclass(frozen=True)
class Shot:
    """One shot at working size.

    Attributes:
        images: RGB uint8 [h, w, 3].
        labels: palette index of every pixel, uint8 [h, w].
        moving: how surely each pixel moves against the background, float32 [h, w] in 0..1.
        foreground: ``moving`` joined with what the frame's border does not show, float32 [h, w] in 0..1.
        steps: 2 x 3 matrices that map each frame's points to the frame before it (the first is the identity).
    """

    images: list[np.ndarray]
    labels: list[np.ndarray]
    moving: list[np.ndarray]
    foreground: list[np.ndarray]
    steps: list[np.ndarray]


def shrink(image: np.ndarray) -> np.ndarray:
    """An RGB image at working size; smaller images stay as they are."""
    import cv2

    height, width = image.shape[:2]
    scale = WORK_SIDE / max(height, width)
    if scale >= 1:
        return np.ascontiguousarray(image)
    return cv2.resize(image, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_AREA)


class Palette:
    """The colours of a story as clusters in CIE Lab, and a table that looks up the cluster of any RGB colour.

    ``lab`` float32 [n, 3] are the clusters' centres; ``kernel`` [n, n] spreads a histogram over like clusters.
    """

    def __init__(self, images: Sequence[np.ndarray], size: int = 96, pixels: int = 40_000) -> None:
        """Cluster the colours of ``images``, taking about ``pixels`` evenly spaced pixels of them."""
        import cv2

        from curation.colours import to_lab

        step = max(1, sum(image.shape[0] * image.shape[1] for image in images) // pixels)
        lab = to_lab(np.concatenate([image.reshape(-1, 3) for image in images])[::step])
        cv2.setRNGSeed(0)
        size = max(1, min(size, len(np.unique(lab.round(), axis=0))))
        rule = (cv2.TERM_CRITERIA_EPS + cv2.TERM_CRITERIA_MAX_ITER, 12, 0.5)
        _, _, centres = cv2.kmeans(lab, size, None, rule, 1, cv2.KMEANS_PP_CENTERS)
        self.lab: np.ndarray = centres[np.lexsort(centres.T[::-1])]
        level = (np.arange(32) * 8 + 4).astype(np.uint8)
        cube = to_lab(np.stack(np.meshgrid(level, level, level, indexing="ij"), -1).reshape(-1, 3))
        table = ((cube[:, None] - self.lab[None]) ** 2).sum(-1).argmin(1).astype(np.uint8)
        self._table = table
        apart = (((self.lab[:, None] - self.lab[None]) * (0.5, 1, 1)) ** 2).sum(-1)  # light varies over one surface
        kernel = np.exp(-apart / (2 * 7.0**2))
        self.kernel: np.ndarray = kernel / kernel.sum(1, keepdims=True)

    def label(self, image: np.ndarray) -> np.ndarray:
        """The cluster of every pixel, uint8 [h, w]."""
        fine = (image >> 3).astype(np.uint16)
        return self._table[(fine[..., 0] << 10) | (fine[..., 1] << 5) | fine[..., 2]]

    def histogram(self, labels: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """The weight of each cluster, float [n]."""
        return np.bincount(labels.ravel(), weight.ravel().astype(np.float64), len(self.lab))


@dataclass(frozen=True)
class Study:
    """The palette of a story and its analysed shots; a shot without samples is analysed to None."""

    palette: Palette
    shots: list[Shot | None]


_latest: tuple[weakref.ref[StoryView], Study] | None = None


def analyse_story(view: StoryView) -> Study:
    """Analyse all samples of a story, once for whoever asks for the same view one after the other.

    Raises:
        ValueError: the story has no sample at all.
    """
    global _latest
    if _latest is not None and _latest[0]() is view:
        return _latest[1]
    made = analyse([[sample.image for sample in shot] for shot in view.samples])
    _latest = weakref.ref(view, _forget), made
    return made


def _forget(gone: weakref.ref[StoryView]) -> None:
    global _latest
    if _latest is not None and _latest[0] is gone:
        _latest = None


def analyse(shots: Sequence[Sequence[np.ndarray]]) -> Study:
    """Analyse shots, each a sequence of RGB uint8 frames of one size.

    Raises:
        ValueError: there is no frame at all.
    """
    if not any(shots):
        raise ValueError("there is no frame to analyse")
    small = [[shrink(image) for image in shot] for shot in shots]
    palette = Palette([image for shot in small for image in shot])
    return Study(palette, [look(shot, palette) if shot else None for shot in small])


def look(images: Sequence[np.ndarray], palette: Palette) -> Shot:
    """Analyse one shot's frames, RGB uint8 of one size each."""
    small = [shrink(image) for image in images]
    labels = [palette.label(image) for image in small]
    steps = align(small)
    moving = _moving(small, steps)
    stands = _unlike_border(labels, palette)
    share = float(np.mean([(frame > 0.5).mean() for frame in moving]))
    trust = 0.9 if share < 0.004 else 0.45  # a shot in which nothing moves has only its border to go by
    foreground = [1 - (1 - m) * (1 - trust * s) for m, s in zip(moving, stands, strict=True)]
    return Shot(small, labels, moving, foreground, steps)


def surroundings(shots: Sequence[Shot], palette: Palette) -> list[np.ndarray]:
    """How much more of each palette colour than of the whole picture is foreground in a shot and in shots of like background.

    Where a figure stands still, shots of the same place in which figures move tell what belongs to the place.

    Returns:
        For each shot float32 [n] in -1..1 (log scale).
    """
    front, every, rest = [], [], []
    for shot in shots:
        share = float(np.mean([(moving > 0.5).mean() for moving in shot.moving]))
        telling = 0.004 < share < 0.35
        weight = (1.0 if telling else 0.3) / sum(labels.size for labels in shot.labels)
        fore = [m > 0.5 for m in shot.moving] if telling else shot.foreground
        front.append(weight * sum(palette.histogram(each, w) for each, w in zip(shot.labels, fore, strict=True)))
        every.append(weight * sum(palette.histogram(each, np.ones(each.shape)) for each in shot.labels))
        still = sum(palette.histogram(each, 1 - w) for each, w in zip(shot.labels, shot.foreground, strict=True))
        still = np.sqrt(still @ palette.kernel)
        rest.append(still / np.linalg.norm(still))
    alike = np.clip((np.array(rest) @ np.array(rest).T - 0.7) / 0.25, 0, 1)
    front, every = alike @ np.array(front), alike @ np.array(every)
    typical = front.sum(1, keepdims=True) / every.sum(1, keepdims=True)
    front, every = front @ palette.kernel, every @ palette.kernel
    lively = np.log((front / np.maximum(every, 1e-5) + 0.01) / (typical + 0.01)) / 1.5
    return list(np.clip(lively, -1, 1).astype(np.float32))


def align(images: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Camera motion between consecutive frames: 2 x 3 matrices from each frame's points to the frame before it."""
    import cv2

    greys = [cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) for image in images]
    detector = cv2.ORB.create(400, fastThreshold=8)
    points = [detector.detectAndCompute(grey, None) for grey in greys]
    following = zip(greys, greys[1:], points, points[1:])
    return [np.eye(2, 3), *(_pair(*pair) for pair in following)]


def _pair(before: np.ndarray, after: np.ndarray, points_before: tuple, points_after: tuple) -> np.ndarray:
    """The similarity that best lays ``after`` on ``before``: identity, phase correlation or matched ORB points."""
    import cv2

    shift, _ = cv2.phaseCorrelate(
        before.astype(np.float32), after.astype(np.float32), cv2.createHanningWindow(before.shape[::-1], cv2.CV_32F)
    )
    tries = [np.eye(2, 3), np.array([[1, 0, -shift[0]], [0, 1, -shift[1]]])]
    (keys_a, seen_a), (keys_b, seen_b) = points_before, points_after
    if seen_a is not None and seen_b is not None and min(len(keys_a), len(keys_b)) >= 8:
        matches = cv2.BFMatcher(cv2.NORM_HAMMING, crossCheck=True).match(seen_b, seen_a)
        if len(matches) >= 6:
            source = np.array([keys_b[m.queryIdx].pt for m in matches], np.float32)
            target = np.array([keys_a[m.trainIdx].pt for m in matches], np.float32)
            found, inside = cv2.estimateAffinePartial2D(source, target, ransacReprojThreshold=2.0)
            if found is not None and inside.sum() >= 6 and 0.6 < np.hypot(found[0, 0], found[1, 0]) < 1.6:
                tries.append(found)
    left = [_residual(before, after, matrix) * (0.97 if i == 0 else 1) for i, matrix in enumerate(tries)]
    return tries[int(np.argmin(left))]


def _residual(before: np.ndarray, after: np.ndarray, matrix: np.ndarray) -> float:
    """Capped mean difference, so that a background of little contrast outweighs a figure of much."""
    import cv2

    size = before.shape[::-1]
    laid = cv2.warpAffine(after, matrix, size)
    valid = cv2.warpAffine(np.full_like(after, 255), matrix, size) > 250
    if valid.mean() < 0.3:
        return np.inf
    return float(np.minimum(cv2.absdiff(before, laid)[valid], 8).mean())


def _moving(images: Sequence[np.ndarray], steps: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Where each frame differs from what most other frames show at the same place of the background."""
    if len(images) < 3:  # with two frames a thing cannot be told from the background that it uncovers
        return [np.zeros(image.shape[:2], np.float32) for image in images]
    return [_against_others(images, steps, i) for i in range(len(images))]


def _against_others(images: Sequence[np.ndarray], steps: Sequence[np.ndarray], i: int, most: int = 9) -> np.ndarray:
    import cv2

    others = [j for j in range(len(images)) if j != i]
    if len(others) > most:
        others = [others[round(k)] for k in np.linspace(0, len(others) - 1, most)]
    height, width = images[i].shape[:2]
    frame = cv2.GaussianBlur(images[i], (0, 0), 0.8)
    off = np.full((len(others), height, width), 255, np.uint8)
    for slot, j in enumerate(others):
        matrix = _between(steps, j, i)
        laid = cv2.warpAffine(images[j], matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
        valid = cv2.warpAffine(np.full((height, width), 255, np.uint8), matrix, (width, height)) > 250
        # a background pixel may lie a little beside its place: parallax, and the registration's own error
        block = np.ones((3, 3), np.uint8) if abs(i - j) < 3 else np.ones((5, 5), np.uint8)
        above, below = cv2.subtract(frame, cv2.dilate(laid, block)), cv2.subtract(cv2.erode(laid, block), frame)
        red, green, blue = cv2.split(cv2.max(above, below))
        off[slot][valid] = cv2.max(cv2.max(red, green), blue)[valid]
    count = (off < 255).sum(0)
    ordered = np.sort(off, axis=0)
    pick = np.clip((count * 0.45).astype(int), 0, len(others) - 1)
    middle = np.take_along_axis(ordered, pick[None], 0)[0].astype(np.float32)
    middle[count < 2] = 0
    floor = 6 + 2.5 * float(np.median(middle))
    sure = np.clip((cv2.GaussianBlur(middle, (0, 0), 1.0) - floor) / 14, 0, 1)
    rim = np.concatenate([sure[:3].ravel(), sure[:, :3].ravel(), sure[:, -3:].ravel()])
    return np.zeros_like(sure) if (sure > 0.5).mean() > 0.6 or (rim > 0.5).mean() > 0.6 else sure


def _between(steps: Sequence[np.ndarray], source: int, target: int) -> np.ndarray:
    """The matrix from frame ``source``'s points to frame ``target``'s."""
    import cv2

    low, high = sorted((source, target))
    total = np.eye(3)
    for k in range(low + 1, high + 1):
        total = total @ np.vstack([steps[k], [0, 0, 1]])
    return total[:2] if source == high else cv2.invertAffineTransform(total[:2])


def _unlike_border(labels: Sequence[np.ndarray], palette: Palette) -> list[np.ndarray]:
    """How much more often a colour occurs inside the shot's frames than along their border, float32 in 0..1."""
    import cv2

    height, width = labels[0].shape
    edge = max(3, round(0.05 * min(height, width)))
    border = np.ones((height, width), bool)
    border[edge:, edge:-edge] = False
    border[-edge:, width // 5 : -width // 5] = False  # figures stand at the bottom
    clusters = len(palette.lab)
    inside = np.bincount(np.concatenate([frame[~border] for frame in labels]), minlength=clusters) / (~border).sum()
    around = np.bincount(np.concatenate([frame[border] for frame in labels]), minlength=clusters) / border.sum()
    inside, around = inside @ palette.kernel, around @ palette.kernel
    value = np.clip((inside / (inside + around + 1e-9) - 0.5) * 2.2, 0, 1).astype(np.float32)
    ys, xs = np.mgrid[0:height, 0:width]
    centre = np.exp(-0.5 * (((xs - width / 2) / (0.38 * width)) ** 2 + ((ys - height * 0.55) / (0.42 * height)) ** 2))
    return [cv2.GaussianBlur(value[frame], (0, 0), 2.0) * centre.astype(np.float32) for frame in labels]
