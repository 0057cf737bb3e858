"""Gradual transitions: fades by their contrast, the others as ways from one scene to another.

Both searches work on thumbnails, so they cost little and need no second decode.

* A fade runs between a flat picture (black, white, any one colour), or a dip that comes near one, and a scene: contrast rises
  or falls steadily while the picture stays the same but for its contrast, or while TransNetV2 sees a transition.
* During a dissolve every picture is a blend of the two scenes, ``(1 - a) A + a B`` with ``a`` growing steadily from 0 to 1.
* During a wipe or an iris every place shows either the old scene or the new one, and the new one's share grows steadily.
* Where TransNetV2 sees a run of transition frames, a rougher blend (both scenes move), a short run (a whip of the camera that
  ends elsewhere) or great certainty is enough.

All but fades must lead to another scene. Light that goes on over one scene blends too, but its outlines stay; a slow pan or
zoom blends to first order, but parts of its first picture are found again in its last; what merely passes by leaves the old
picture behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from curation.changes import FLAT, FrameFeatures, Thumbnails, shared_outline

PARTS = ((0.2, 0.2, 0.6, 0.6), (0, 0.1, 0.45, 0.8), (0.55, 0.1, 0.45, 0.8), (0.1, 0, 0.8, 0.45), (0.1, 0.55, 0.8, 0.45))
"""Parts of a picture looked for in another: left, top, width and height as shares."""
SHORT_RUN = 16
"""Frames of a run of the network up to which the pictures in it need not blend; its ends reach a few frames into the shots."""
ZOOMS = (1.2, 1.45, 1.75, 2.1)


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
        max_replace_residue: Largest part of the change between the ends that may lie off both during a wipe, or off their
            joined pictures during a slide.
        slide_lengths: Lengths of slide tried, in frames.
        max_shared: Share of outlines the ends may have in common.
        max_moved: Correlation above which a part of one end is found again in the other (:func:`camera_moved`).
        return_seconds: Time after a transition in which the old picture must not come back.
        max_return: Distance from the old picture, as part of the whole change, under which it has come back.
        network_level: TransNetV2 probability that a frame is part of a transition, from which frames form a run.
        network_peak: Least greatest probability of a run.
        network_sure: The same from which no blend is asked for.
        dip: Contrast of a dip, as part of the contrast on both sides, that may be the middle of a fade.
    """

    flat: float = FLAT
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
    max_replace_residue: float = 0.2
    slide_lengths: tuple[int, ...] = (8, 12, 16, 20, 24, 32)
    max_shared: float = 0.25
    max_moved: float = 0.9
    return_seconds: float = 1.0
    max_return: float = 0.5
    network_level: float = 0.3
    network_peak: float = 0.5
    network_sure: float = 0.8
    dip: float = 0.3


def find_gradual(pictures: Thumbnails, frames: FrameFeatures, cuts: list[int], config: GradualConfig) -> list[list[int]]:
    """Finds fades and dissolves.

    Args:
        pictures: Thumbnails of consecutive frames.
        frames: Measures of the same frames.
        cuts: Hard cuts (first frames of shots); no transition contains one.
        config: Settings.

    Returns:
        [first, last] frame of each, ascending and disjoint.
    """
    colour = crop_bars(pictures.colour).astype(np.float32)
    outlines = crop_bars(pictures.grey[..., None])[..., 0]
    flat_pictures = colour.reshape(len(colour), -1)
    contrast = colour.std(axis=(1, 2)).mean(axis=-1)
    found = find_fades(colour, contrast, frames, cuts, config)
    blends = find_blends(flat_pictures, cuts, config) + find_network_runs(flat_pictures, frames.network_all, cuts, config)
    small = np.stack([cv2.resize(outline, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for outline in outlines])
    blends += find_slides(small.astype(np.float32), cuts, config)
    for score, first, last in sorted(blends, reverse=True):
        before, after = max(0, first - 1), min(last + 1, len(outlines) - 1)
        faded = contrast[before : after + 1].min() <= config.flat  # fades have been looked for
        if score <= 0 or faded or any(first <= b and a <= last for a, b in found):
            continue
        if _returns(flat_pictures, frames.pts, cuts, before, after, config) or same_scene(
            outlines[before], outlines[after], config
        ):
            continue
        found.append((first, last))
    return [[int(first), int(last)] for first, last in sorted(found)]


def _returns(pictures: np.ndarray, pts: np.ndarray, cuts: list[int], before: int, after: int, config: GradualConfig) -> bool:
    """Whether a picture from shortly before a transition is back shortly after it: something passed by."""
    low = int(np.searchsorted(pts, pts[before] - config.return_seconds))
    high = int(np.searchsorted(pts, pts[after] + config.return_seconds, side="right"))
    low = max([low, *(cut for cut in cuts if cut <= before)])
    high = min([high, *(cut for cut in cuts if cut > after)])
    change = np.abs(pictures[after] - pictures[before]).mean()
    nearest = min(np.abs(pictures[after:high] - old).mean(axis=1).min() for old in pictures[low : before + 1])
    return bool(nearest < config.max_return * change)


def same_scene(a: np.ndarray, b: np.ndarray, config: GradualConfig) -> bool:
    """Whether two grey pictures show one scene, whatever the light, or after the camera turned or zoomed."""
    small = [cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for picture in (a, b)]
    return shared_outline(*small) > config.max_shared or camera_moved(a, b) > config.max_moved


def camera_moved(a: np.ndarray, b: np.ndarray) -> float:
    """Greatest correlation of a part of one picture with any place of the other, as it is or enlarged up to twofold.

    Parts with little texture say nothing and are left out. High where the camera turned or zoomed between the two; unrelated
    pictures seldom reach 0.8.
    """
    best = 0.0
    height, width = a.shape
    for one, other in ((a, b), (b, a)):
        parts = [one[int(y * height) : int((y + h) * height), int(x * width) : int((x + w) * width)] for x, y, w, h in PARTS]
        for zoom in ZOOMS:
            top, left = int(height * (1 - 0.9 / zoom) / 2), int(width * (1 - 0.9 / zoom) / 2)
            middle = one[top : height - top, left : width - left]
            parts.append(cv2.resize(middle, (int(0.9 * width), int(0.9 * height)), interpolation=cv2.INTER_LINEAR))
        for part in parts:
            if part.size and part.std() >= max(3.0, 0.6 * one.std()):
                best = max(best, float(cv2.matchTemplate(other, part, cv2.TM_CCOEFF_NORMED).max()))
    return best


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
    pictures: np.ndarray, contrast: np.ndarray, frames: FrameFeatures, cuts: list[int], config: GradualConfig
) -> list[tuple[int, int]]:
    """Fades from and to flat pictures, by walking outwards from every stretch of them and every dip of contrast.

    Args:
        pictures: float32 (n, height, width, 3).
        contrast: Spatial standard deviation of each picture, (n,).
        frames: Measures of the same frames.
        cuts: Hard cuts.
        config: Settings.
    """
    flat = (contrast <= config.flat) | _dips(contrast, config)
    starts = np.flatnonzero(flat & ~np.r_[False, flat[:-1]])
    ends = np.flatnonzero(flat & ~np.r_[flat[1:], False])
    found: list[tuple[int, int]] = []
    for start, end in zip(starts, ends, strict=True):
        into = _walk(pictures, contrast, frames, set(cuts), int(start), -1, config)
        out = _walk(pictures, contrast, frames, set(cuts), int(end), 1, config)
        for span in _join(pictures, frames.pts, (into, int(start), int(end), out), config):
            if not any(a <= span[1] and span[0] <= b for a, b in found):
                found.append(span)
    return found


def _dips(contrast: np.ndarray, config: GradualConfig, reach: int = 24) -> np.ndarray:
    """Frames at which contrast is least among the frames around and much less than on both sides."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(contrast, reach, mode="edge"), 2 * reach + 1)
    before, after = around[:, :reach].max(axis=1), around[:, reach + 1 :].max(axis=1)
    least = contrast <= around[:, reach - 4 : reach + 5].min(axis=1)
    return least & (contrast < config.dip * np.minimum(before, after)) & (np.minimum(before, after) >= config.min_contrast)


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
    frames: FrameFeatures,
    barriers: set[int],
    edge: int,
    step: int,
    config: GradualConfig,
    patience: int = 4,
) -> int | None:
    """Follows rising contrast from a flat frame; returns the last frame of the fade, None when it is none."""
    best, last, frame = contrast[edge], edge, edge + step
    while 0 <= frame < len(contrast) and abs(frames.pts[frame] - frames.pts[edge]) <= config.max_seconds:
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
    if likeness(pictures[half].ravel(), pictures[last].ravel()) > config.max_likeness:
        return last
    between = np.nan_to_num(frames.network_all[min(half, last) : max(half, last) + 1])
    return last if np.median(between) >= config.network_peak else None  # the scene moves while it fades


def find_blends(pictures: np.ndarray, cuts: list[int], config: GradualConfig) -> list[tuple[float, int, int]]:
    """Stretches whose pictures lead steadily from one scene to another: as a blend, or by one replacing the other.

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
    contrast = pictures.reshape(count, -1, 3).std(axis=1).mean(axis=1)
    found = []
    for length in config.lengths:
        starts = np.arange(0, count - length, max(1, length // 8))
        starts = starts[shot[starts] == shot[starts + length]]
        for chunk in np.array_split(starts, max(1, len(starts) // 512)):
            if len(chunk):
                found += _blends_of(pictures, contrast, chunk, length, config)
    return found


def _blends_of(
    pictures: np.ndarray, contrast: np.ndarray, starts: np.ndarray, length: int, config: GradualConfig
) -> list[tuple[float, int, int]]:
    first, last = pictures[starts], pictures[starts + length]
    way = last - first
    energy = np.maximum((way * way).mean(axis=1), 1e-6)
    needed = np.minimum(config.min_distance, 0.6 * np.minimum(contrast[starts], contrast[starts + length]))
    near = np.sqrt(energy) >= np.maximum(needed, 5.0)
    starts, first, last, way, energy = starts[near], first[near], last[near], way[near], energy[near]
    if not len(starts):
        return []
    amount = np.abs(way).mean(axis=1)
    samples = np.unique(np.linspace(0, length, 9).round().astype(int))
    blend, replaced = [], []
    for offset in samples:
        picture = pictures[starts + offset]
        gone = picture - first
        share = (gone * way).mean(axis=1) / energy
        rest = gone - share[:, None] * way
        blend.append((share, np.sqrt((rest * rest).mean(axis=1) / energy)))
        from_first, from_last = np.abs(gone), np.abs(picture - last)
        new = from_last < from_first
        replaced.append(
            (np.where(new, np.abs(way), 0).mean(axis=1) / amount, np.minimum(from_first, from_last).mean(axis=1) / amount)
        )
    found = []
    for kind, limit in ((blend, config.max_residue), (replaced, config.max_replace_residue)):
        steps = np.diff(np.stack([share for share, _ in kind]), axis=0)
        residue = np.stack([rest for _, rest in kind]).max(axis=0)
        good = (residue <= limit) & (steps.min(axis=0) >= -0.05) & (steps.max(axis=0) <= config.max_step)
        for start, distance, rest in zip(starts[good], np.sqrt(energy[good]), residue[good], strict=True):
            span = _trim(pictures, int(start), int(start) + length, config)
            if span:
                found.append((float(distance * (1 - 2 * rest)), *span))
    return found


def _trim(pictures: np.ndarray, first: int, last: int, config: GradualConfig) -> tuple[int, int] | None:
    """Narrows a transition to the frames that hold both; None when its ends show one scene or it is too sudden or short."""
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


def find_slides(pictures: np.ndarray, cuts: list[int], config: GradualConfig) -> list[tuple[float, int, int]]:
    """Stretches in which one picture pushes the other out, sideways or upright, at an even pace.

    Args:
        pictures: Grey, float32 (n, height, width).
        cuts: Hard cuts.
        config: Settings.

    Returns:
        As :func:`find_blends`.
    """
    count = len(pictures)
    path = np.cumsum(np.r_[0.0, np.abs(np.diff(pictures, axis=0)).mean(axis=(1, 2))])
    shot = np.searchsorted(cuts, np.arange(count), side="right")
    found = []
    for length in config.slide_lengths:
        starts = np.arange(0, count - length, max(1, length // 8))
        starts = starts[shot[starts] == shot[starts + length]]
        way = np.abs(pictures[starts + length] - pictures[starts]).mean(axis=(1, 2)) if len(starts) else np.zeros(0)
        fast = (way >= 0.5 * config.min_distance) & (path[starts + length] - path[starts] >= 1.5 * way)
        for start, distance in zip(starts[fast].tolist(), way[fast].tolist(), strict=True):
            residue = _slide_residue(pictures, start, length, config.max_replace_residue * distance) / distance
            if residue <= config.max_replace_residue:
                found.append((distance * (1 - 2 * residue), start + 1, start + length - 1))
    return found


def _slide_residue(pictures: np.ndarray, start: int, length: int, enough: float) -> float:
    """Mean difference, at its worst of three moments, from the two ends pushed side by side; best of four directions."""
    first, last = pictures[start], pictures[start + length]
    best = float("inf")
    for axis, before in ((1, True), (1, False), (0, True), (0, False)):
        both = np.concatenate([first, last] if before else [last, first], axis=axis)
        side, worst = first.shape[axis], 0.0
        for part in (0.5, 0.25, 0.75):
            picture, rests = pictures[start + round(part * length)], []
            for nearby in (-0.06, 0.0, 0.06):
                at = round((part + nearby if before else 1 - part - nearby) * side)
                window = both[:, at : at + side] if axis else both[at : at + side]
                rests.append(float(np.abs(picture - window).mean()))
            worst = max(worst, min(rests))
            if worst > enough:
                break
        best = min(best, worst)
    return best


def find_network_runs(
    pictures: np.ndarray, network: np.ndarray, cuts: list[int], config: GradualConfig
) -> list[tuple[float, int, int]]:
    """Runs of frames the network calls transitional, checked to lead from one scene to another by a rough blend.

    In a short run (a whip of the camera that ends elsewhere, a very short blend) the pictures between say
    little; that its ends show two scenes is enough.
    """
    high = np.nan_to_num(network) >= config.network_level
    starts = np.flatnonzero(high & ~np.r_[False, high[:-1]])
    ends = np.flatnonzero(high & ~np.r_[high[1:], False])
    found = []
    for start, end in zip(starts, ends, strict=True):
        first, last = max(0, int(start) - 3), min(len(high) - 1, int(end) + 3)
        peak = float(network[start : end + 1].max())
        if end - start + 1 < 3 or peak < config.network_peak or any(first < cut <= last for cut in cuts):
            continue
        way = pictures[last] - pictures[first]
        distance = float(np.sqrt((way * way).mean()))
        if distance < config.min_distance or likeness(pictures[first], pictures[last]) > config.max_likeness:
            continue
        gone = pictures[first : last + 1] - pictures[first]
        share = gone @ way / (way @ way)
        rest = np.sqrt(((gone - share[:, None] * way) ** 2).mean(axis=1)) / distance
        if (
            end - start < 16
            or peak >= config.network_sure
            or (rest.max() <= config.max_residue_network and np.diff(share).max() <= config.max_step)
        ):
            found.append((0.1 * distance, int(start), int(end)))
    return found


def likeness(a: np.ndarray, b: np.ndarray) -> float:
    """Correlation of two pictures; 0 when either is flat."""
    a, b = a - a.mean(), b - b.mean()
    scale = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / scale if scale > len(a) * 1.0 else 0.0
