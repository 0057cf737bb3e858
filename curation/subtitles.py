"""Burnt-in subtitles and watermarks, told from other text by persistence and position.

At each point of the film two pictures half a second apart are searched for lines of text.

* Persistence: a line of an overlay stands at the same place with the same strokes in both, whatever the picture behind it does.
  Text painted into the world moves with the camera; rolling credits move.
* Position: subtitles come back to one place, the same distance from the edge at the same letter height, centred or flush left,
  with *different* words each time, all through the film. A watermark comes back with the same strokes. Title cards and credits
  stand on an empty picture, in the middle of it, or have many lines; a shop sign differs in place from shot to shot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import cv2
import numpy as np

from curation.text import text_mask

Box: TypeAlias = tuple[float, float, float, float]
"""x0, y0, x1, y1."""
SAME_PLACE = 0.5
"""Intersection over union from which two boxes, one picture apart, are the same line."""
PERSISTS, SAME_TEXT = 0.55, 0.65
"""Correlation of gradients from which a line persists for half a second, and from which two lines of one place are one text.
Measured: one text over two pictures 0.63 to 0.99, texts of one font, place and length up to 0.5, of kanji of one grid 0.61."""
LASTING = 15.0
"""Seconds after which a text that is still there, or there again, is no subtitle."""
EMPTY = 0.01
"""Share of pixels with an edge outside the text below which a picture is empty: a card, not a scene."""
EDGE = 16.0
"""Gradient as :func:`gradient` gives it from which a pixel counts as an edge."""
MAX_LINES = 3
"""Lines of an overlay at once; more are credits."""
BAND = (0.3, 0.62)
"""Centres of subtitles lie above or below this stretch of the picture's height (of its width, where they run downwards)."""
HEIGHTS = (0.015, 0.13)
"""Height of a line as detected, in picture heights."""


@dataclass(frozen=True)
class Line:
    """A line of text that persisted.

    Attributes:
        time: of the sampled point, seconds.
        box: x0, y0, x1, y1 in shares of the picture's width and height.
        upright: whether its letters run downwards.
        edges: gradient magnitude of the whole picture, uint8 [H, W].
    """

    time: float
    box: Box
    upright: bool
    edges: np.ndarray

    @property
    def along(self) -> tuple[float, float]:
        """Start and end in the direction of writing, in shares of the picture."""
        return (self.box[1], self.box[3]) if self.upright else (self.box[0], self.box[2])

    @property
    def across(self) -> tuple[float, float]:
        """Start and end across the direction of writing, in shares of the picture."""
        return (self.box[0], self.box[2]) if self.upright else (self.box[1], self.box[3])

    @property
    def centre(self) -> float:
        """Middle across the direction of writing."""
        return sum(self.across) / 2

    @property
    def height(self) -> float:
        """Extent across the direction of writing."""
        return self.across[1] - self.across[0]


@dataclass(frozen=True)
class Overlay:
    """Lines that keep one place all through a film.

    Attributes:
        texts: for each different text, the times of the points at which it stands, ascending.
        place: mean box of its lines, shares of width and height.
        upright: whether its letters run downwards.
    """

    texts: list[list[float]]
    place: Box
    upright: bool

    @property
    def lasting(self) -> list[float]:
        """Times of the text that stands longest, if that is longer than a subtitle does; else none."""
        longest = max(self.texts, key=len)
        return longest if longest[-1] - longest[0] > LASTING else []

    @property
    def passing(self) -> list[list[float]]:
        """Times of each text that comes and goes; none where a lasting text has half of the place's times or more.

        (Letters of a watermark that the picture behind them swallows in part look like another text.)
        """
        if 2 * len(self.lasting) >= sum(map(len, self.texts)):
            return []
        return [times for times in self.texts if times[-1] - times[0] <= LASTING]


def lines_at(
    time: float, first: np.ndarray, second: np.ndarray, before: Sequence[np.ndarray], after: Sequence[np.ndarray]
) -> list[Line]:
    """Lines that stand in two pictures about half a second apart and may be an overlay.

    Args:
        time: of the point, seconds.
        first: RGB, uint8 [H, W, 3].
        second: the later picture, same shape.
        before: polygons of text in ``first``.
        after: polygons of text in ``second``.

    Returns:
        The lines; none when the picture is empty but for text, or has more lines than an overlay has.
    """
    height, width = first.shape[:2]
    old, new = gradient(first), gradient(second)
    if is_card(old, text_mask(before, height, width)):
        return []
    later = [box for box, _ in join_words(after)]
    found = []
    for box, upright in join_words(before):
        partner = max(later, key=lambda other: overlap(box, other), default=None)
        if partner is None or overlap(box, partner) < SAME_PLACE:
            continue
        share = (box[0] / width, box[1] / height, box[2] / width, box[3] / height)
        pixels = _pixels(share, height, width)
        if correlation(old[pixels], new[pixels]) >= PERSISTS:
            found.append(Line(time, share, upright, old))
    return found if len(found) <= MAX_LINES else []


def is_card(edges: np.ndarray, text: np.ndarray) -> bool:
    """Whether a picture is empty but for text, given its gradient and which pixels lie under text."""
    around = cv2.dilate(text.astype(np.uint8), np.ones((9, 9), np.uint8)) == 0
    return not around.any() or float((edges[around] > EDGE).mean()) < EMPTY


def find_overlays(lines: Sequence[Line]) -> list[Overlay]:
    """Groups lines by place, the place with most different texts first; every line belongs to one place at most."""
    rest = [line for line in lines if HEIGHTS[0] <= line.height <= HEIGHTS[1]]
    found = []
    while rest:
        places = [[line for line in rest if same_place(seed, line)] for seed in rest]
        sorted_texts = [different_texts(place) for place in places]
        best = max(range(len(rest)), key=lambda k: (len(sorted_texts[k]), len(places[k]), -k))
        box = np.mean([line.box for line in places[best]], axis=0)
        x0, y0, x1, y1 = (float(value) for value in box)
        found.append(Overlay(sorted_texts[best], (x0, y0, x1, y1), rest[best].upright))
        taken = {id(line) for line in places[best]}
        rest = [line for line in rest if id(line) not in taken]
    return found


def same_place(seed: Line, line: Line) -> bool:
    """Whether two lines have one base line, one letter height, and one centre or one beginning."""
    if seed.upright != line.upright or not 0.6 <= line.height / seed.height <= 1.67:
        return False
    if abs(seed.centre - line.centre) > 0.45 * max(seed.height, line.height):
        return False
    centred = abs(sum(seed.along) - sum(line.along)) / 2 <= 0.03
    return centred or abs(seed.along[0] - line.along[0]) <= 0.015


def different_texts(lines: Sequence[Line]) -> list[list[float]]:
    """Times at which each different text of one place stands, texts in the order in which they come."""
    groups: list[tuple[Line, list[float]]] = []
    for line in sorted(lines, key=lambda line: line.time):
        for first, times in groups:
            if same_text(first, line):
                if line.time not in times:
                    times.append(line.time)
                break
        else:
            groups.append((line, [line.time]))
    return [times for _, times in groups]


def same_text(one: Line, other: Line) -> bool:
    """Whether two lines of one place have the same extent and the same strokes."""
    if max(abs(a - b) for a, b in zip(one.along, other.along)) > 0.035:
        return False
    pixels = _pixels(one.box, *one.edges.shape)
    return correlation(one.edges[pixels], other.edges[pixels]) >= SAME_TEXT


def subtitle_place(lines: Sequence[Line]) -> Overlay | None:
    """The place where most texts come and go, away from the middle of the picture and from any watermark; None without any."""
    overlays = find_overlays(lines)
    marks = [overlay.place for overlay in overlays if overlay.lasting and not overlay.passing]
    places = [overlay for overlay in overlays if overlay.passing and in_band(overlay)]
    free = [overlay for overlay in places if not any(covered(overlay.place, mark) > 0.5 for mark in marks)]
    return max(free, key=lambda overlay: len(overlay.passing), default=None)


def in_band(overlay: Overlay) -> bool:
    """Whether an overlay keeps away from the middle of the picture, where cards have their text."""
    x0, y0, x1, y1 = overlay.place
    middle = (x0 + x1) / 2 if overlay.upright else (y0 + y1) / 2
    return not BAND[0] < middle < BAND[1]


def _pixels(box: Box, height: int, width: int) -> tuple[slice, slice]:
    """Rows and columns of a box given in shares of the picture, at least two of each."""
    x0, y0, x1, y1 = round(box[0] * width), round(box[1] * height), round(box[2] * width), round(box[3] * height)
    return slice(min(y0, height - 2), max(y1, y0 + 2)), slice(min(x0, width - 2), max(x1, x0 + 2))


def join_words(polygons: Sequence[np.ndarray]) -> list[tuple[Box, bool]]:
    """Level or plumb polygons as boxes in pixels, the parts of a line joined, each with whether it runs downwards."""
    boxes = []
    for polygon in polygons:
        (ax, ay), (bx, by) = polygon[0], polygon[1]
        x0, y0 = polygon.min(axis=0)
        x1, y1 = polygon.max(axis=0)
        if abs(by - ay) <= 0.07 * max(1.0, abs(bx - ax)) + 2:
            boxes.append(((float(x0), float(y0), float(x1), float(y1)), y1 - y0 > 2.5 * (x1 - x0)))
    level = _join([box for box, upright in boxes if not upright])
    return [(box, False) for box in level] + [(box, True) for box, upright in boxes if upright]


def _join(boxes: list[Box]) -> list[Box]:
    joined: list[Box] = []
    for box in sorted(boxes):
        for at, line in enumerate(joined):
            height = min(line[3] - line[1], box[3] - box[1])
            shared = min(line[3], box[3]) - max(line[1], box[1])
            if shared >= 0.6 * height and box[0] - line[2] <= 2 * height:
                joined[at] = (line[0], min(line[1], box[1]), max(line[2], box[2]), max(line[3], box[3]))
                break
        else:
            joined.append(box)
    return joined


def covered(box: Box, by: Box) -> float:
    """Share of a box that lies in another."""
    width, height = min(box[2], by[2]) - max(box[0], by[0]), min(box[3], by[3]) - max(box[1], by[1])
    return max(0.0, width) * max(0.0, height) / ((box[2] - box[0]) * (box[3] - box[1]))


def overlap(a: Box, b: Box) -> float:
    """Intersection over union of two boxes."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    both = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / both


def gradient(image: np.ndarray) -> np.ndarray:
    """Gradient magnitude of luma, uint8 [H, W]: mean of the absolute Sobel responses of both directions, up to 255."""
    luma = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    dx, dy = cv2.Sobel(luma, cv2.CV_32F, 1, 0), cv2.Sobel(luma, cv2.CV_32F, 0, 1)
    return np.minimum((np.abs(dx) + np.abs(dy)) / 4, 255).astype(np.uint8)


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson correlation of two arrays; 0 where one is constant."""
    a, b = a - a.mean(dtype=np.float64), b - b.mean(dtype=np.float64)
    size = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / size if size > 0 else 0.0
