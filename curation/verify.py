"""Whether a cut-out may stand for its character: one Protocol, :class:`Verifier`, what can be measured, and a judge that looks.

The paper (arXiv 2506.03126, section 3) asks a vision language model five things: is the figure complete, does it match its
description, does the description agree with itself, are pose and expression neutral, is it sharp. Of these, completeness and
sharpness can be measured in part; the other three need somebody who sees, see :class:`JudgeVerifier`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from animeshooter_dataset import Character, DataError
from curation.script import NoAnswer

if TYPE_CHECKING:
    from curation.judge import Judge

CHOICES = ("classical", "judge")


@dataclass(frozen=True)
class Verdict:
    """Whether a cut-out may be used; where not, why, in a few words."""

    ok: bool
    reason: str = ""


@dataclass(frozen=True)
class Cutout:
    """A figure cut out of a frame.

    Attributes:
        image: RGBA uint8 [h, w, 4], as it would be stored.
        mask: bool [H, W] in the frame.
        box: (x0, y0, x1, y1) of ``mask``, pixels of the frame, ends exclusive.
    """

    image: np.ndarray
    mask: np.ndarray
    box: tuple[int, int, int, int]


class Verifier(Protocol):
    """Who has the last word on a reference image."""

    @property
    def name(self) -> str:
        """Who it is, for records."""
        ...

    def verify(self, cutout: Cutout, frame: np.ndarray, character: Character) -> Verdict:
        """Look at one cut-out.

        Args:
            cutout: the figure.
            frame: the frame it was cut from, RGB uint8 [H, W, 3].
            character: whom it is to show.

        Raises:
            NoAnswer: whoever looks could not be asked; nothing is wrong with the image.
        """
        ...


def verifier_of(spec: str, judge: Judge | None = None) -> Verifier:
    """The verifier that a spec names.

    Args:
        spec: ``classical`` or ``judge``.
        judge: who judges, where one is configured.

    Raises:
        DataError: the spec names none, or no judge is configured.
    """
    if spec == "classical":
        return ClassicalVerifier()
    if spec != "judge":
        raise DataError(f"no verifier '{spec}'; there are {', '.join(CHOICES)}")
    if judge is None:
        raise DataError("verifier 'judge': no judge is configured; name a model for it, or take the verifier 'classical'")
    return JudgeVerifier(judge)


@dataclass(frozen=True)
class ClassicalVerifier:
    """What can be measured of a cut-out: that it is sharp, whole and of one piece.

    Attributes:
        sharpness: least :func:`sharpness`; what is blurred by 3 pixels has less.
        cut: most of a side of the figure's box that the frame may cut at its top, left or right, 0..1. A figure seen from
            the waist up, cut by the bottom of the frame, is common and useful; one seen in part from the side is not.
        straight: most of its box's sides that a figure may lie along, see :func:`straightness`: what more of is straight and
            upright is a panel, a door or a picture on a wall.
        solid: least share of its convex hull that a figure fills; a torn mask fills less.
        waist: most that a second piece may weigh, as a share of the first, when narrow bridges are cut: two figures in one
            mask, or one behind another thing, fall apart.
    """

    sharpness: float = 0.46
    cut: float = 0.3
    straight: float = 0.4
    solid: float = 0.42
    waist: float = 0.4

    @property
    def name(self) -> str:
        """See :class:`Verifier`."""
        return "classical"

    def verify(self, cutout: Cutout, frame: np.ndarray, character: Character) -> Verdict:
        """See :meth:`Verifier.verify`."""
        mask = cutout.mask
        if (sharp := sharpness(frame, mask)) < self.sharpness:
            return Verdict(False, f"blurred: sharpness {sharp:.2f}, under {self.sharpness:.2f}")
        if (cut := cut_off(mask)) > self.cut:
            return Verdict(False, f"incomplete: the frame cuts {cut:.2f} of a side, over {self.cut:.2f}")
        if (straight := straightness(mask)) > self.straight:
            return Verdict(False, f"a panel: lies along {straight:.2f} of the sides of its box, over {self.straight:.2f}")
        if (solid := solidity(mask)) < self.solid:
            return Verdict(False, f"torn: fills {solid:.2f} of its hull, under {self.solid:.2f}")
        if (second := second_piece(mask)) > self.waist:
            return Verdict(False, f"two pieces: the second weighs {second:.2f} of the first, over {self.waist:.2f}")
        return Verdict(True)


@dataclass(frozen=True)
class JudgeVerifier:
    """A judge that sees the picture, by the paper's five criteria; what can be measured is asked of nobody.

    Attributes:
        judge: who is asked.
        measured: what goes before; its refusals cost nothing.
    """

    judge: Judge
    measured: ClassicalVerifier = ClassicalVerifier()

    @property
    def name(self) -> str:
        """See :class:`Verifier`."""
        return self.judge.name

    def verify(self, cutout: Cutout, frame: np.ndarray, character: Character) -> Verdict:
        """See :meth:`Verifier.verify`; a judge that gives no usable answer accepts nothing."""
        first = self.measured.verify(cutout, frame, character)
        if not first.ok:
            return first
        alpha = cutout.image[..., 3:].astype(np.float32) / 255
        white = np.rint(cutout.image[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        try:
            verdict = self.judge.reference(white, frame, character)
        except NoAnswer:
            raise
        except DataError as error:
            return Verdict(False, f"no usable verdict: {error}")
        return Verdict(True) if verdict.ok else Verdict(False, f"the judge: not {', not '.join(verdict.failed)}")


def sharpness(image: np.ndarray, mask: np.ndarray) -> float:
    """Sharpness of what a mask shows, 0..1, whatever its contrast: how steep its steepest twentieth of edges is.

    Steepness is the gradient (Sobel) over the range of grey levels within 9 x 9 pixels, where that is at least 24 levels; an
    edge of a clean drawing reaches 1, one blurred by a Gaussian of 1.5 pixels 0.66, of 3 pixels 0.45. A surface without any
    such edge counts as sharp: nothing tells.
    """
    import cv2

    if not mask.any():
        return 0.0
    window = window_of(mask, 2)
    grey = cv2.cvtColor(np.ascontiguousarray(image[window]), cv2.COLOR_RGB2GRAY)
    block = np.ones((9, 9), np.uint8)
    levels = cv2.subtract(cv2.dilate(grey, block), cv2.erode(grey, block)).astype(np.float32)
    edges = mask[window] & (levels >= 24)
    if edges.sum() < 50:
        return 1.0
    slope = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1)) / 8
    return float(min(3 * np.percentile(slope[edges] / levels[edges], 95), 1.0))


def outlined(image: np.ndarray, mask: np.ndarray) -> float:
    """The share of a mask's outline, without the frame's edge, that lies on an edge of the picture, 0..1."""
    import cv2

    side = max(5, 2 * round(min(mask.shape) / 120) + 1)
    ring = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    ring[[0, 1, -1, -2]] = False
    ring[:, [0, 1, -1, -2]] = False
    if not ring.any():
        return 1.0
    window = window_of(ring, side)
    lab = cv2.cvtColor(np.ascontiguousarray(image[window]), cv2.COLOR_RGB2LAB)
    block = np.ones((side, side), np.uint8)
    spread = cv2.subtract(cv2.dilate(lab, block), cv2.erode(lab, block))
    return float((spread[ring[window]].max(-1) > 24).mean())


def touching(mask: np.ndarray) -> float:
    """How much of a figure the frame cuts off, 0..1: mask pixels on the frame's edge against the box's perimeter."""
    x0, y0, x1, y1 = box_of(mask)
    edge = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
    return float(min(4 * edge / (2 * (x1 - x0 + y1 - y0)), 1.0))


def cut_off(mask: np.ndarray) -> float:
    """The largest share of a side of a figure's box that the frame cuts, 0..1; the bottom side does not count."""
    x0, y0, x1, y1 = box_of(mask)
    across, along = max(x1 - x0, 1), max(y1 - y0, 1)
    return float(max(mask[0].sum() / across, mask[:, 0].sum() / along, mask[:, -1].sum() / along))


def straightness(mask: np.ndarray, depth: float = 0.02) -> float:
    """The share of the sides of its box along which a mask lies, 0..1; sides on the frame's edge do not count.

    A pixel lies along a side that is within ``depth`` of the longer side.
    """
    x0, y0, x1, y1 = box_of(mask)
    height, width = mask.shape
    part = mask[y0:y1, x0:x1]
    near = max(1, round(depth * max(part.shape)))
    sides = [(y0 > 1, part[:near].any(0)), (y1 < height - 1, part[-near:].any(0))]
    sides += [(x0 > 1, part[:, :near].any(1)), (x1 < width - 1, part[:, -near:].any(1))]
    free = [side for inside, side in sides if inside]
    return float(np.concatenate(free).mean()) if free else 0.0


def solidity(mask: np.ndarray) -> float:
    """The share of its convex hull that a mask fills, 0..1."""
    import cv2

    points = cv2.findNonZero(np.ascontiguousarray(mask[window_of(mask, 0)], np.uint8))
    return float(min(len(points) / max(cv2.contourArea(cv2.convexHull(points)), 1.0), 1.0))


def second_piece(mask: np.ndarray, bridge: float = 0.2) -> float:
    """What the second largest piece weighs against the largest when bridges are cut, 0..1; 0 where it stays of one piece.

    A bridge is narrower than ``bridge`` of the side of a square of the mask's area.
    """
    import cv2

    part = np.pad(mask[window_of(mask, 0)].astype(np.uint8), 1)
    scale = min(1.0, 128 / max(part.shape))
    small = cv2.resize(part, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST) if scale < 1 else part
    width = bridge * float(small.sum()) ** 0.5
    core = (cv2.distanceTransform(small, cv2.DIST_L2, 3) > width / 2).astype(np.uint8)
    count, _, stats, _ = cv2.connectedComponentsWithStats(core)
    areas = sorted((int(stats[k, cv2.CC_STAT_AREA]) for k in range(1, count)), reverse=True)
    return areas[1] / areas[0] if len(areas) > 1 else 0.0


def window_of(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The box of a mask with a margin, as slices; cut off at the frame."""
    x0, y0, x1, y1 = box_of(mask)
    return slice(max(y0 - margin, 0), y1 + margin), slice(max(x0 - margin, 0), x1 + margin)


def box_of(mask: np.ndarray) -> tuple[int, int, int, int]:
    """(x0, y0, x1, y1) of the set pixels, ends exclusive."""
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
