"""Figures that recur in a story, found from pixels alone: foreground regions of like colours in several shots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from curation.foreground import Palette, Shot

DARK = 20.0
"""A figure whose mean lightness is lower (CIE L, 0..100) is left out: its shape is lost in shadow."""


@dataclass(frozen=True)
class Region:
    """A foreground region of one frame: ``box`` is (x0, y0, x1, y1) in shares of the frame, ``share`` of its area."""

    frame: int
    box: tuple[float, float, float, float]
    share: float
    signature: np.ndarray


@dataclass(frozen=True)
class Figure:
    """A recurring figure.

    Attributes:
        colours: its main colours that its surroundings lack, RGB [n, 3], largest first.
        height: median height as a share of the frame's.
        aspect: median width over height, in pixels.
        regions: where it was seen: position of the shot → regions in order of frames.
    """

    colours: np.ndarray
    height: float
    aspect: float
    regions: dict[int, list[Region]]


def discover_figures(
    shots: Sequence[Shot], palette: Palette, most: int = 3, likeness: float = 0.72, least_frames: int = 3
) -> list[Figure]:
    """Find figures that recur in a third of the shots or in three (in two at least), the most present first.

    Regions of a frame's foreground are described by the palette colours that they have and their surroundings lack,
    joined within each shot, and then across shots (average linkage on the cosine of the smoothed signatures).

    Args:
        shots: the story's analysed shots.
        palette: the palette that they were analysed with.
        most: most figures to return.
        likeness: least mean cosine at which two groups are the same figure.
        least_frames: a figure seen in fewer frames is dropped.
    """
    distance = ((palette.lab[:, None] - palette.lab[None]) ** 2).sum(-1)
    smooth = np.exp(-distance / (2 * 12.0**2))
    weight, overall = _foregroundness(shots, palette)
    tracks: list[tuple[int, list[Region]]] = []
    for position, shot in enumerate(shots):
        found = [region for i in range(len(shot.images)) for region in _regions(shot, i, palette, weight)]
        groups = link([region.signature @ smooth for region in found], likeness)
        tracks.extend((position, [found[k] for k in group]) for group in groups)
    tracks = [(position, group) for position, group in tracks if len(group) >= min(2, len(shots[position].images))]
    raw = [np.mean([region.signature for region in group], 0) for _, group in tracks]
    figures = []
    least_shots = min(max(-(-len(shots) // 3), 2), 3)
    for group in link([row @ smooth for row in raw], likeness):
        regions: dict[int, list[Region]] = {}
        for k in group:
            regions.setdefault(tracks[k][0], []).extend(tracks[k][1])
        mean = np.sum([raw[k] for k in group], 0)
        stands_out = float((mean * weight).sum() / mean.sum()) > 1.7 * overall  # else it is a piece of the background
        visible = float((mean * palette.lab[:, 0]).sum() / mean.sum()) > DARK
        if stands_out and visible and len(regions) >= least_shots and sum(map(len, regions.values())) >= least_frames:
            figures.append(_describe({k: _largest(regions[k]) for k in sorted(regions)}, shots, palette))
    figures.sort(key=lambda figure: (-_presence(figure), min(figure.regions)))
    return figures[:most]


def _foregroundness(shots: Sequence[Shot], palette: Palette) -> tuple[np.ndarray, float]:
    """The share of each palette colour's pixels that lie in the foreground over the whole story, and of all pixels."""
    front, every = np.full(len(palette.lab), 1e-6), np.full(len(palette.lab), 1e-3)
    for shot in shots:
        for labels, fore in zip(shot.labels, shot.foreground, strict=True):
            front += palette.histogram(labels, fore) / labels.size / len(shot.labels)
            every += palette.histogram(labels, np.ones(labels.shape)) / labels.size / len(shot.labels)
    return front / every, float(front.sum() / every.sum())


def _regions(shot: Shot, i: int, palette: Palette, weight: np.ndarray, most: int = 3) -> list[Region]:
    import cv2

    labels = shot.labels[i]
    evidence = shot.foreground[i] * (0.4 + 1.2 * weight[labels].astype(np.float32))
    mask = (cv2.GaussianBlur(evidence, (0, 0), 1.5) > 0.4).astype(np.uint8)
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (7, 7))
    mask = cv2.morphologyEx(cv2.morphologyEx(mask, cv2.MORPH_OPEN, disc[1:-1, 1:-1]), cv2.MORPH_CLOSE, disc)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask)
    height, width = mask.shape
    rest = palette.histogram(labels, mask == 0)
    rest /= max(rest.sum(), 1)
    order = sorted(range(1, count), key=lambda k: -stats[k, cv2.CC_STAT_AREA])[:most]
    found = []
    for k in order:
        x, y, w, h, area = (int(value) for value in stats[k])
        share = area / mask.size
        sides = (x == 0) + (y == 0) + (x + w == width)
        if not 0.012 <= share <= 0.6 or sides == 3 or w > 0.95 * width:
            continue
        own = palette.histogram(labels, parts == k) / area
        signature = np.maximum(own - rest, 0) * weight
        if np.maximum(own - rest, 0).sum() < 0.35:
            continue
        signature /= np.linalg.norm(signature)
        found.append(Region(i, (x / width, y / height, (x + w) / width, (y + h) / height), share, signature))
    return found


def link(signatures: Sequence[np.ndarray], likeness: float) -> list[list[int]]:
    """Average-linkage clustering by cosine, until no two groups are ``likeness`` alike; groups in order of members."""
    if not signatures:
        return []
    rows = np.stack([row / max(float(np.linalg.norm(row)), 1e-9) for row in signatures])
    return link_likeness(rows @ rows.T, likeness)


def link_likeness(alike: np.ndarray, likeness: float) -> list[list[int]]:
    """Average-linkage clustering by a matrix of likeness [n, n], until no two groups are ``likeness`` alike."""
    groups = [[k] for k in range(len(alike))]
    alike = np.array(alike, float).reshape(len(groups), len(groups))
    np.fill_diagonal(alike, -1)
    while len(groups) > 1:
        a, b = sorted(int(v) for v in np.unravel_index(int(alike.argmax()), alike.shape))
        if alike[a, b] < likeness:
            break
        size_a, size_b = len(groups[a]), len(groups[b])
        joined = (size_a * alike[a] + size_b * alike[b]) / (size_a + size_b)
        alike[a], alike[:, a] = joined, joined
        alike[a, a] = -1
        alike = np.delete(np.delete(alike, b, 0), b, 1)
        groups[a] += groups.pop(b)
    return sorted(sorted(group) for group in groups)


def _describe(regions: dict[int, list[Region]], shots: Sequence[Shot], palette: Palette) -> Figure:
    import cv2

    every = [region for group in regions.values() for region in group]
    mean = np.mean([np.mean([region.signature for region in group], 0) for group in regions.values()], 0)
    chosen: list[int] = []
    for k in np.argsort(-mean, kind="stable"):
        if mean[k] < 0.2 * mean.max() or len(chosen) == 3:
            break
        if all(np.linalg.norm(palette.lab[k] - palette.lab[other]) > 18 for other in chosen):
            chosen.append(int(k))
    rgb = cv2.cvtColor(palette.lab[chosen][:, None].astype(np.float32), cv2.COLOR_LAB2RGB)[:, 0] * 255
    height, width = shots[0].labels[0].shape
    heights = [region.box[3] - region.box[1] for region in every]
    aspects = [(r.box[2] - r.box[0]) * width / max((r.box[3] - r.box[1]) * height, 1) for r in every]
    return Figure(rgb, float(np.median(heights)), float(np.median(aspects)), regions)


def _largest(regions: Sequence[Region]) -> list[Region]:
    """The largest region of each frame, in order of frames."""
    best: dict[int, Region] = {}
    for region in sorted(regions, key=lambda region: (region.frame, -region.share, region.box)):
        best.setdefault(region.frame, region)
    return list(best.values())


def _presence(figure: Figure) -> float:
    return sum(float(np.median([region.share for region in group])) ** 0.5 for group in figure.regions.values())
