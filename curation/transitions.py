"""Gradual transitions: fades by their contrast, dissolves as blends of their two ends.

Both searches work on thumbnails after the last frame, so they cost little and need no second decode.

* A fade runs between a flat picture (black, white, any one colour) and a scene: contrast rises or falls steadily while the
  picture stays the same but for its contrast.
* During a dissolve every picture is a blend of the two scenes, ``(1 - a) A + a B`` with ``a`` growing steadily from 0 to 1,
  and the scenes differ in structure: light going on over one scene blends too, but its ends correlate. Slow pans blend to
  first order as well, and their ends correlate likewise.
* Where TransNetV2 sees a run of transition frames, a blend with more residue (both scenes move) is enough.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GradualConfig:
    """Settings of the search; levels are of 255.

    Attributes:
        flat: Contrast (spatial standard deviation) up to which a picture is flat.
        min_contrast: Contrast a fade must reach.
        max_seconds: Longest fade.
        dip_seconds: Longest flat stretch between two fades of one transition.
        min_frames: Shortest transition.
        lengths: Lengths of dissolve tried, in frames.
        min_distance: Root mean square difference of a dissolve's ends.
        max_residue: Largest part of that difference a blended picture may lie off the blend.
        max_residue_network: The same where the network sees a transition.
        max_likeness: Correlation of the ends above which they show the same scene.
        max_step: Largest part of a transition that may happen in one frame.
        max_shared: Share of outlines the ends of a dissolve may have in common.
    """

    flat: float = 2.5
    min_contrast: float = 8.0
    max_seconds: float = 5.0
    dip_seconds: float = 0.5
    min_frames: int = 4
    lengths: tuple[int, ...] = (6, 8, 12, 16, 24, 32, 48, 64, 96)
    min_distance: float = 10.0
    max_residue: float = 0.25
    max_residue_network: float = 0.4
    max_likeness: float = 0.7
    max_step: float = 0.5
    max_shared: float = 0.25


def find_gradual(
    thumbnails: np.ndarray,
    outlines: np.ndarray,
    pts: np.ndarray,
    network: np.ndarray,
    cuts: list[int],
    config: GradualConfig,
) -> list[list[int]]:
    """Finds fades and dissolves.

    Args:
        thumbnails: uint8 RGB (n, height, width, 3).
        outlines: uint8 grey (n, height, width), finer than the thumbnails.
        pts: Seconds, (n,).
        network: Probability that a frame is part of a transition, (n,); NaN where unknown.
        cuts: Hard cuts (first frames of shots); no transition contains one.
        config: Settings.

    Returns:
        [first, last] frame of each, ascending and disjoint.
    """
    pictures = crop_bars(thumbnails).astype(np.float32)
    outlines = crop_bars(outlines[..., None])[..., 0]
    flat_pictures = pictures.reshape(len(pictures), -1)
    contrast = pictures.std(axis=(1, 2)).mean(axis=-1)
    found = find_fades(pictures, contrast, pts, cuts, config)
    blends = find_blends(flat_pictures, cuts, config) + find_network_runs(flat_pictures, network, cuts, config)
    for score, first, last in sorted(blends, reverse=True):
        ends = outlines[max(0, first - 1)], outlines[min(last + 1, len(outlines) - 1)]
        faded = contrast[max(0, first - 1) : last + 2].min() <= config.flat  # fades have been looked for
        if score <= 0 or faded or shared_outline(*ends) > config.max_shared:
            continue
        if not any(first <= b and a <= last for a, b in found):
            found.append((first, last))
    return [[int(first), int(last)] for first, last in sorted(found)]


def crop_bars(thumbnails: np.ndarray, level: int = 24) -> np.ndarray:
    """Cuts away rows and columns at the border that stay black through the whole film."""
    brightest = thumbnails.max(axis=(0, 3))
    if (brightest <= level).all():
        return thumbnails
    rows = np.flatnonzero((brightest > level).any(axis=1))
    columns = np.flatnonzero((brightest > level).any(axis=0))
    top, left = rows[0] + (rows[0] > 0), columns[0] + (columns[0] > 0)  # the pixel astride the edge goes too
    bottom, right = rows[-1] + (rows[-1] == len(brightest) - 1), columns[-1] + (columns[-1] == brightest.shape[1] - 1)
    return thumbnails[:, top : max(bottom, top + 1), left : max(right, left + 1)]


def find_fades(
    pictures: np.ndarray, contrast: np.ndarray, pts: np.ndarray, cuts: list[int], config: GradualConfig
) -> list[tuple[int, int]]:
    """Fades from and to flat pictures, by walking outwards from every stretch of them.

    Args:
        pictures: float32 (n, height, width, 3).
        contrast: Spatial standard deviation of each picture, (n,).
        pts: Seconds, (n,).
        cuts: Hard cuts.
        config: Settings.
    """
    flat = contrast <= config.flat
    starts = np.flatnonzero(flat & ~np.r_[False, flat[:-1]])
    ends = np.flatnonzero(flat & ~np.r_[flat[1:], False])
    found: list[tuple[int, int]] = []
    for start, end in zip(starts, ends, strict=True):
        into = _walk(pictures, contrast, pts, set(cuts), int(start), -1, config)
        out = _walk(pictures, contrast, pts, set(cuts), int(end), 1, config)
        for span in _join(pictures, pts, (into, int(start), int(end), out), config):
            if not any(a <= span[1] and span[0] <= b for a, b in found):
                found.append(span)
    return found


def _join(
    pictures: np.ndarray, pts: np.ndarray, around: tuple[int | None, int, int, int | None], config: GradualConfig
) -> list[tuple[int, int]]:
    """The transitions around one flat stretch.

    A short stretch joins its two fades to one transition and belongs to a fade at the film's start or end. When the same
    picture lies on both sides it was a flash or a blink, and nothing changed.

    Args:
        pictures: As for :func:`find_fades`.
        pts: Seconds.
        around: First frame of the fade into the stretch, the stretch's first and last frame, last frame of the fade out.
        config: Settings.
    """
    into, start, end, out = around
    if pts[end] - pts[start] > config.dip_seconds:
        return [*([(into, start - 1)] if into is not None else []), *([(end + 1, out)] if out is not None else [])]
    first, last = start if into is None else into, end if out is None else out
    before, after = first - 1, last + 1
    if before >= 0 and after < len(pictures) and pts[last] - pts[first] <= config.dip_seconds:
        change = np.abs(pictures[before] - pictures[start]).mean()
        if np.abs(pictures[before] - pictures[after]).mean() < 0.25 * change:
            return []
    if into is None and out is None:
        return []
    if into is None and start > 0:
        first = end + 1
    if out is None and end < len(pictures) - 1:
        last = start - 1
    return [(first, last)]


def _walk(
    pictures: np.ndarray,
    contrast: np.ndarray,
    pts: np.ndarray,
    barriers: set[int],
    edge: int,
    step: int,
    config: GradualConfig,
    patience: int = 4,
) -> int | None:
    """Follows rising contrast from a flat frame; returns the last frame of the fade, None when it is none."""
    best, last, frame = contrast[edge], edge, edge + step
    while 0 <= frame < len(contrast) and abs(pts[frame] - pts[edge]) <= config.max_seconds:
        if (frame if step > 0 else frame + 1) in barriers or contrast[frame] < best - max(1.0, 0.05 * best):
            break
        gone = abs(frame - edge)
        if contrast[frame] > best:
            best, last = contrast[frame], frame
        if gone > patience and best >= config.min_contrast:
            pace, recent = (best - contrast[edge]) / gone, (best - contrast[frame - patience * step]) / patience
            if recent < 0.25 * pace:  # what rises on is the scene
                last = frame - patience * step
                break
        frame += step
    length = abs(last - edge)
    rise = contrast[last] - contrast[edge]
    if length < config.min_frames or contrast[last] < config.min_contrast:
        return None
    path = contrast[edge : last + step : step] if last + step >= 0 else contrast[edge::step]
    if np.diff(path).max() > config.max_step * rise:
        return None
    half = edge + step * int(np.argmax(path >= contrast[edge] + 0.5 * rise))
    return last if likeness(pictures[half].ravel(), pictures[last].ravel()) > config.max_likeness else None


def find_blends(pictures: np.ndarray, cuts: list[int], config: GradualConfig) -> list[tuple[float, int, int]]:
    """Stretches whose pictures blend steadily from one scene to another.

    Args:
        pictures: float32 (n, values).
        cuts: Hard cuts.
        config: Settings.

    Returns:
        Score, first and last frame; they may overlap, the best score counts.
    """
    count = len(pictures)
    new_shot = np.zeros(count + 1, int)
    new_shot[[cut for cut in cuts if cut < count]] = 1
    shot = np.cumsum(new_shot)
    found = []
    for length in config.lengths:
        starts = np.arange(0, count - length, max(1, length // 8))
        starts = starts[shot[starts] == shot[starts + length]]
        for chunk in np.array_split(starts, max(1, len(starts) // 1024)):
            if len(chunk):
                found += _blends_of(pictures, chunk, length, config)
    return found


def _blends_of(pictures: np.ndarray, starts: np.ndarray, length: int, config: GradualConfig) -> list[tuple[float, int, int]]:
    first, last = pictures[starts], pictures[starts + length]
    way = last - first
    energy = np.maximum((way * way).mean(axis=1), 1e-6)
    near = np.sqrt(energy) >= config.min_distance
    starts, first, way, energy = starts[near], first[near], way[near], energy[near]
    if not len(starts):
        return []
    samples = np.unique(np.linspace(0, length, 9).round().astype(int))
    shares, residues = [], []
    for offset in samples:
        gone = pictures[starts + offset] - first
        share = (gone * way).mean(axis=1) / energy
        rest = gone - share[:, None] * way
        shares.append(share)
        residues.append(np.sqrt((rest * rest).mean(axis=1) / energy))
    steps = np.diff(np.stack(shares), axis=0)
    residue = np.stack(residues).max(axis=0)
    good = (residue <= config.max_residue) & (steps.min(axis=0) >= -0.05) & (steps.max(axis=0) <= config.max_step)
    found = []
    for start, distance, rest in zip(starts[good], np.sqrt(energy[good]), residue[good], strict=True):
        span = _trim(pictures, int(start), int(start) + length, config)
        if span:
            found.append((float(distance * (1 - 2 * rest)), *span))
    return found


def _trim(pictures: np.ndarray, first: int, last: int, config: GradualConfig) -> tuple[int, int] | None:
    """Narrows a blend to the frames that are a mixture; None when its ends show one scene or it is too sudden or short."""
    if likeness(pictures[first], pictures[last]) > config.max_likeness:
        return None
    way = pictures[last] - pictures[first]
    share = (pictures[first : last + 1] - pictures[first]) @ way / (way @ way)
    if np.diff(share).max() > config.max_step:
        return None
    mixed = np.flatnonzero((share > 0.03) & (share < 0.97))
    if len(mixed) < config.min_frames - 1:
        return None
    return first + int(mixed[0]), first + int(mixed[-1])


def find_network_runs(
    pictures: np.ndarray, network: np.ndarray, cuts: list[int], config: GradualConfig, level: float = 0.5
) -> list[tuple[float, int, int]]:
    """Runs of frames the network calls transitional, checked to lead from one scene to another by a rough blend."""
    high = np.nan_to_num(network) >= level
    starts = np.flatnonzero(high & ~np.r_[False, high[:-1]])
    ends = np.flatnonzero(high & ~np.r_[high[1:], False])
    found = []
    for start, end in zip(starts, ends, strict=True):
        first, last = max(0, int(start) - 3), min(len(high) - 1, int(end) + 3)
        if end - start + 1 < config.min_frames or any(first < cut <= last for cut in cuts):
            continue
        way = pictures[last] - pictures[first]
        distance = float(np.sqrt((way * way).mean()))
        if distance < config.min_distance or likeness(pictures[first], pictures[last]) > config.max_likeness:
            continue
        gone = pictures[first : last + 1] - pictures[first]
        share = gone @ way / (way @ way)
        rest = np.sqrt(((gone - share[:, None] * way) ** 2).mean(axis=1)) / distance
        if rest.max() <= config.max_residue_network and np.diff(share).max() <= config.max_step:
            found.append((0.1 * distance, int(start), int(end)))
    return found


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two pictures; 0 when either is flat."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > len(a) * 1.0 else 0.0


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
