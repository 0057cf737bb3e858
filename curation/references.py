"""Stage ``references``: cut-outs of each character for training, by the mask rules of arXiv 2506.03126, section 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from animeshooter_dataset import Character
from curation import colours
from curation.script import Sample, StoryScript, StoryView
from curation.segment import Segmenter


@dataclass(frozen=True)
class ReferenceConfig:
    """Settings of :func:`find_references`.

    Attributes:
        kernel: side of the kernel of morphological opening and closing, pixels.
        max_contours: a mask with more contours is rejected.
        max_components: a mask with more connected components is rejected.
        min_share: a mask smaller than this share of the image is rejected. The paper takes 0.05; in 16:9 pictures a whole
            standing figure is often smaller and still 150 pixels high, and cut-outs under ``least_side`` are refused anyway.
        max_share: a mask larger than this share of the image is rejected.
        images: most images a character.
        per_shot: most of them from one shot; frames of one shot are much alike.
        side: longest side of a cut-out, pixels.
        frames: most frames looked at in one shot, evenly spaced.
        agreement: least likeness of colours (0..1) of a mask to the character's masks in its other shots.
        relative: the same, as a share of what the masks of the character's best-agreeing shot reach (their median).
        outline: least share (0..1) of a mask's outline that must lie on an edge of the picture; one that ends amid a smooth
            area is a guess.
        least_side: shorter side under which a cut-out is too small to use, pixels of the sampled frame.
    """

    kernel: int = 5
    max_contours: int = 15
    max_components: int = 5
    min_share: float = 0.02
    max_share: float = 0.90
    images: int = 4
    per_shot: int = 2
    side: int = 256
    frames: int = 6
    agreement: float = 0.45
    relative: float = 0.84
    outline: float = 0.7
    least_side: int = 24


@dataclass(frozen=True)
class ReferenceImage:
    """One cut-out of a character.

    Attributes:
        character: id of the character.
        position: position in the story of the shot it comes from.
        frame: frame of the source film.
        box: (x0, y0, x1, y1) in the sampled frame, ends exclusive.
        image: RGBA uint8 [h, w, 4], alpha is the mask with a soft edge, colours are 0 where alpha is.
        score: quality, 0..1.
    """

    character: str
    position: int
    frame: int
    box: tuple[int, int, int, int]
    image: np.ndarray
    score: float


@dataclass(frozen=True)
class Rejected:
    """A frame that gave no reference image of a character, and why."""

    character: str
    position: int
    frame: int
    reason: str


@dataclass(frozen=True)
class ReferenceResult:
    """The reference images of a story, best first within each character in the script's order, and what was rejected."""

    images: list[ReferenceImage] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)


@dataclass
class _Candidate:
    character: str
    position: int
    sample: Sample
    mask: np.ndarray
    signature: np.ndarray
    setting: np.ndarray  # the colours around it
    sharpness: float
    touching: float
    small: str | None = None  # why it is no reference itself, though it shows what its character looks like
    agreement: float = 1.0

    @property
    def score(self) -> float:
        share = float(self.mask.mean())
        size = min(share / 0.2, 1.0) ** 0.5 * (1.0 if share < 0.5 else 0.6)
        return round(self.agreement * (0.4 * self.sharpness + 0.35 * (1 - self.touching) + 0.25 * size), 4)


def find_references(script: StoryScript, view: StoryView, config: ReferenceConfig, segmenter: Segmenter) -> ReferenceResult:
    """Find reference images of every character of a story, from as many of the shots that list it as possible.

    A shot may use only images of other shots, so images of one character come from different shots where there are
    enough, and a second image of a shot is taken only after every shot gave one.
    """
    segmenter.study(script, view)
    result = ReferenceResult()
    passed: list[_Candidate] = []
    by_id = {character.id: character for character in script.characters}
    for position, (samples, shot) in enumerate(zip(view.samples, script.shots, strict=True)):
        cast = [by_id[name] for name in shot.characters if name in by_id]
        frames = _spread(samples, config.frames)
        for character in cast:
            masks = segmenter.segment(frames, character, cast)
            for sample, mask in zip(frames, masks, strict=True):
                found = _judge(character, position, sample, mask, config)
                if isinstance(found, Rejected):
                    result.rejected.append(found)
                else:
                    passed.append(found)
    least = 2 if script.annotator.kind == "measure" else 1  # nobody but the masks says that a measured figure is one
    for kept in _agreeing(passed, script.characters, config, result.rejected):
        if len({each.position for each in kept}) >= least:
            result.images.extend(_best(kept, config))
        else:
            lone = "a measured figure must show in two shots"
            result.rejected.extend(Rejected(each.character, each.position, each.sample.frame, lone) for each in kept)
    result.rejected.sort(key=lambda each: (each.position, each.frame, each.character))
    return result


def clean_mask(mask: np.ndarray, config: ReferenceConfig) -> tuple[np.ndarray, str | None]:
    """The paper's rules on one mask [H, W]: the cleaned mask (its largest component), and why it is rejected or None."""
    import cv2

    largest = np.zeros(mask.shape, bool)
    if not mask.any():
        return largest, "nothing is left after opening"
    window = _window(mask, 3 * config.kernel)
    kernel = np.ones((config.kernel, config.kernel), np.uint8)
    clean = cv2.morphologyEx(np.ascontiguousarray(mask[window], np.uint8), cv2.MORPH_OPEN, kernel)
    clean = cv2.morphologyEx(clean, cv2.MORPH_CLOSE, kernel)
    contours, _ = cv2.findContours(clean, cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    count, labels, stats, _ = cv2.connectedComponentsWithStats(clean, connectivity=8)
    if count < 2:
        return largest, "nothing is left after opening"
    largest[window] = labels == 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    if len(contours) > config.max_contours:
        return largest, f"{len(contours)} contours, more than {config.max_contours}"
    if count - 1 > config.max_components:
        return largest, f"{count - 1} connected components, more than {config.max_components}"
    share = float(largest.mean())
    if share < config.min_share:
        return largest, f"{share:.1%} of the image, under {config.min_share:.0%}"
    if share > config.max_share:
        return largest, f"{share:.1%} of the image, over {config.max_share:.0%}"
    return largest, None


def sheet(images: Sequence[ReferenceImage]) -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """Lay reference images on one sheet, one row a character.

    Returns:
        RGBA uint8 [h, w, 4], transparent between the images, and the box of each image on it in the order given. No
        images give a transparent sheet of 16 x 16 pixels.
    """
    if not images:
        return np.zeros((16, 16, 4), np.uint8), []
    gap = 8
    rows: dict[str, list[int]] = {}
    for i, each in enumerate(images):
        rows.setdefault(each.character, []).append(i)
    boxes: list[tuple[int, int, int, int]] = [(0, 0, 0, 0)] * len(images)
    top, right = gap, 0
    for row in rows.values():
        tall = max(images[i].image.shape[0] for i in row)
        left = gap
        for i in row:
            height, width = images[i].image.shape[:2]
            boxes[i] = (left, top + tall - height, left + width, top + tall)
            left += width + gap
        top, right = top + tall + gap, max(right, left)
    canvas = np.zeros((top, right, 4), np.uint8)
    for each, (x0, y0, x1, y1) in zip(images, boxes, strict=True):
        canvas[y0:y1, x0:x1] = each.image
    return canvas, boxes


def _judge(
    character: Character, position: int, sample: Sample, mask: np.ndarray | None, config: ReferenceConfig
) -> _Candidate | Rejected:
    if mask is None:
        return Rejected(character.id, position, sample.frame, "not found by the segmenter")
    clean, reason = clean_mask(mask, config)
    small = reason
    if reason is not None:
        reason = clean_mask(mask, replace(config, min_share=min(config.min_share, 0.008)))[1]
    if reason is None:
        x0, y0, x1, y1 = _box(clean)
        if min(x1 - x0, y1 - y0) < config.least_side:
            reason = f"{x1 - x0} x {y1 - y0} pixels, a side under {config.least_side}"
        elif x0 == 0 and x1 == clean.shape[1]:
            reason = "reaches from side to side of the picture"
        elif (drawn := outlined(sample.image, clean)) < config.outline:
            reason = f"{drawn:.0%} of the outline lies on an edge of the picture, under {config.outline:.0%}"
    if reason is not None:
        return Rejected(character.id, position, sample.frame, reason)
    look, sharp = signature(sample.image, clean), sharpness(sample.image, clean)
    around = signature(sample.image[::3, ::3], ~clean[::3, ::3])
    return _Candidate(character.id, position, sample, clean, look, around, sharp, touching(clean), small)


def signature(image: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Colours of a masked image as a smoothed histogram over CIE Lab (6 x 8 x 8), summing to 1."""
    import cv2

    chosen = np.flatnonzero(mask)
    lab = colours.to_lab(image.reshape(-1, 3)[chosen[:: max(1, len(chosen) // 4000)]])
    cell = np.floor((lab + np.array([0, 64, 64])) * (6 / 100, 1 / 16, 1 / 16)).astype(int)
    cell = np.clip(cell, 0, (5, 7, 7)) @ (64, 8, 1)
    table = np.bincount(cell, minlength=384).astype(np.float64).reshape(6, 8, 8)
    smooth = np.stack([cv2.GaussianBlur(layer, (0, 0), 0.7) for layer in table])
    smooth = cv2.GaussianBlur(smooth.reshape(6, -1), (1, 3), 0.7).ravel()
    return smooth / max(smooth.sum(), 1e-9)


def sharpness(image: np.ndarray, mask: np.ndarray) -> float:
    """Sharpness of what a mask shows, 0..1: its steepest twentieth of gradients against a step of 64 grey levels."""
    import cv2

    if not mask.any():
        return 0.0
    window = _window(mask, 2)
    grey = cv2.cvtColor(np.ascontiguousarray(image[window]), cv2.COLOR_RGB2GRAY).astype(np.float32)
    steep = cv2.magnitude(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))[mask[window]] / 4
    return float(min(np.percentile(steep, 95) / 64, 1.0))


def outlined(image: np.ndarray, mask: np.ndarray) -> float:
    """The share of a mask's outline, without the frame's edge, that lies on an edge of the picture, 0..1."""
    import cv2

    side = max(5, 2 * round(min(mask.shape) / 120) + 1)
    ring = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8)) > 0
    ring[[0, 1, -1, -2]] = False
    ring[:, [0, 1, -1, -2]] = False
    if not ring.any():
        return 1.0
    window = _window(ring, side)
    lab = cv2.cvtColor(np.ascontiguousarray(image[window]), cv2.COLOR_RGB2LAB)
    block = np.ones((side, side), np.uint8)
    spread = cv2.subtract(cv2.dilate(lab, block), cv2.erode(lab, block))
    return float((spread[ring[window]].max(-1) > 24).mean())


def touching(mask: np.ndarray) -> float:
    """How much of a figure the frame cuts off, 0..1: mask pixels on the frame's edge against the box's perimeter."""
    x0, y0, x1, y1 = _box(mask)
    edge = mask[0].sum() + mask[-1].sum() + mask[:, 0].sum() + mask[:, -1].sum()
    return float(min(4 * edge / (2 * (x1 - x0 + y1 - y0)), 1.0))


def _agreeing(
    passed: list[_Candidate], characters: Sequence[Character], config: ReferenceConfig, rejected: list[Rejected]
) -> list[list[_Candidate]]:
    """Candidates of each character that look like its other shots' and not more like another character's.

    Masks too small for a reference have their say here before they are rejected. Where most masks of a shot are refused,
    the others of it are too.
    """
    shots: dict[tuple[str, int], list[_Candidate]] = {}
    for each in passed:
        shots.setdefault((each.character, each.position), []).append(each)
    typical: dict[str, dict[int, np.ndarray]] = {character.id: {} for character in characters}
    settings = {position: np.mean([each.setting for each in group], 0) for (_, position), group in shots.items()}
    for (name, position), group in shots.items():
        typical[name][position] = np.mean([each.signature for each in group], 0)
    levels = dict.fromkeys(typical, 0.0)
    for (name, position), group in shots.items():
        others = [mean for other, mean in typical[name].items() if other != position]
        for each in group:
            each.agreement = _likeness(each.signature, others) if others else 0.8
        levels[name] = max(levels[name], float(np.median([each.agreement for each in group])))
    kept: dict[str, list[_Candidate]] = {character.id: [] for character in characters}
    for (name, _), group in shots.items():
        reasons = [_refused(each, typical, settings, levels[name], config) for each in group]
        doubtful = sum(reason is not None for reason in reasons) > len(group) / 2
        for each, reason in zip(group, reasons, strict=True):
            reason = reason or ("most masks of the shot are refused" if doubtful else each.small)
            if reason is None:
                kept[name].append(each)
            else:
                rejected.append(Rejected(name, each.position, each.sample.frame, reason))
    return list(kept.values())


def _refused(
    each: _Candidate,
    typical: dict[str, dict[int, np.ndarray]],
    settings: dict[int, np.ndarray],
    level: float,
    config: ReferenceConfig,
) -> str | None:
    """Why a candidate does not show its character, by the colours of all candidates; None if it may."""
    if len(typical[each.character]) < 2:
        return None
    if each.agreement < max(config.agreement, config.relative * level):
        return f"looks unlike the character's other shots ({each.agreement:.2f})"
    elsewhere = _elsewhere(each, typical[each.character], settings)
    if elsewhere < config.agreement:
        return f"looks like none of the character's shots in other places ({elsewhere:.2f})"
    rivals = {
        name: _likeness(each.signature, list(means.values()))
        for name, means in typical.items()
        if name != each.character and means
    }
    rival = max(rivals, key=lambda name: rivals[name], default="")
    if rival and rivals[rival] > each.agreement:
        return f"looks more like {rival} ({rivals[rival]:.2f} against {each.agreement:.2f})"
    return None


def _elsewhere(each: _Candidate, typical: dict[int, np.ndarray], settings: dict[int, np.ndarray]) -> float:
    """The best histogram intersection with the character's shots before another background; 1 if there is none.

    A thing that belongs to a place is seen there in shot after shot, but nowhere else.
    """
    foreign = [k for k in typical if np.minimum(settings[each.position], settings[k]).sum() < 0.5]
    return max((float(np.minimum(each.signature, typical[k]).sum()) for k in foreign), default=1.0)


def _likeness(own: np.ndarray, others: Sequence[np.ndarray]) -> float:
    """The median histogram intersection with other signatures, 0..1."""
    return float(np.median([np.minimum(own, other).sum() for other in others]))


def _best(kept: list[_Candidate], config: ReferenceConfig) -> list[ReferenceImage]:
    """The best candidates, first one of every shot, then further ones."""
    ordered = sorted(kept, key=lambda each: (-each.score, each.position, each.sample.frame))
    turn: dict[int, int] = {}
    ranked = []
    for each in ordered:
        turn[each.position] = turn.get(each.position, -1) + 1
        ranked.append((turn[each.position], -each.score, each.position, each.sample.frame, each))
    chosen = [entry[-1] for entry in sorted(ranked, key=lambda entry: entry[:-1]) if entry[0] < config.per_shot]
    return [_cut_out(each, config) for each in sorted(chosen[: config.images], key=lambda each: -each.score)]


def _cut_out(each: _Candidate, config: ReferenceConfig) -> ReferenceImage:
    import cv2

    height, width = each.mask.shape
    x0, y0, x1, y1 = _box(each.mask)
    x0, y0, x1, y1 = max(x0 - 1, 0), max(y0 - 1, 0), min(x1 + 1, width), min(y1 + 1, height)
    soft = cv2.GaussianBlur(each.mask.astype(np.float32), (0, 0), 1.0)[y0:y1, x0:x1]
    alpha = np.clip((soft - 0.35) / 0.5, 0, 1)  # a little inside the edge, where background would shine through
    picture = each.sample.image[y0:y1, x0:x1].astype(np.float32) * alpha[..., None]
    scale = min(1.0, config.side / max(y1 - y0, x1 - x0))
    if scale < 1:
        size = (max(1, round((x1 - x0) * scale)), max(1, round((y1 - y0) * scale)))
        alpha = cv2.resize(alpha, size, interpolation=cv2.INTER_AREA)
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    colour = picture / np.maximum(alpha, 1e-3)[..., None]
    image = np.dstack([np.clip(np.rint(colour), 0, 255), np.rint(alpha * 255)]).astype(np.uint8)
    image[image[..., 3] == 0] = 0
    return ReferenceImage(each.character, each.position, each.sample.frame, (x0, y0, x1, y1), image, each.score)


def _spread(samples: Sequence[Sample], most: int) -> list[Sample]:
    if len(samples) <= most:
        return list(samples)
    return [samples[round(k)] for k in np.linspace(0, len(samples) - 1, most)]


def _window(mask: np.ndarray, margin: int) -> tuple[slice, slice]:
    """The box of a mask with a margin, as slices; cut off at the frame."""
    x0, y0, x1, y1 = _box(mask)
    return slice(max(y0 - margin, 0), y1 + margin), slice(max(x0 - margin, 0), x1 + margin)


def _box(mask: np.ndarray) -> tuple[int, int, int, int]:
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return int(xs[0]), int(ys[0]), int(xs[-1]) + 1, int(ys[-1]) + 1
