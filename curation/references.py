"""Stage ``references``: cut-outs of each character for training, by the mask rules of arXiv 2506.03126, section 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from animeshooter_dataset import Character
from curation.identity import Candidate, agreeing
from curation.script import Sample, StoryScript, StoryView
from curation.segment import Segmenter
from curation.verify import ClassicalVerifier, Cutout, Verifier, box_of, outlined, window_of


@dataclass(frozen=True)
class ReferenceConfig:
    """Settings of :func:`find_references`. The paper's own numbers, where they differ, are :meth:`paper`.

    Attributes:
        segmenter: who finds characters in frames, see :func:`curation.segment_models.segmenter_of`.
        verifier: who has the last word, see :func:`curation.verify.verifier_of`.
        device: where a segmenter's model runs; ``auto`` is the accelerator where there is one.
        dtype: of a segmenter's weights.
        rate: frames looked at a second of a shot, of those that were sampled.
        kernel: side of the kernel of morphological opening and closing, pixels.
        max_contours: a mask with more contours is rejected.
        max_components: a mask with more connected components is rejected.
        min_share: a mask smaller than this share of the image is rejected. The paper takes 0.05; in 16:9 pictures a whole
            standing figure is often smaller and still 150 pixels high, and cut-outs under ``least_side`` are refused anyway.
        max_share: a mask larger than this share of the image is rejected.
        images: most images a character.
        per_shot: most of them from one shot; frames of one shot are much alike.
        side: longest side of a cut-out, pixels.
        frames: most frames looked at in one shot, evenly spaced; two at least where there are two.
        asks: most cut-outs of a character that the verifier is shown.
        unlike: least difference (mean over a thumbnail, 0..1) of a cut-out to a better one of its shot; one alike to those
            of other shots is taken when nothing else is left.
        look: least likeness of colours (0..1, mean) of two groups of shots to be one look of a character.
        fits: how much better than its surroundings a mask must fit the colours that the character's description names, to be
            believed where its look alone would not be (difference of means, 0..1).
        background: most likeness of colours (0..1) to the surroundings in any shot, unless the description bears the mask out.
        shared: most of a measured figure's colours (0..1) that another one may have too.
        agreement: least likeness of colours (0..1) of a mask to the character's masks in its other shots.
        relative: the same, as a share of what the masks of the character's best-agreeing shot reach (their median).
        outline: least share (0..1) of a mask's outline that must lie on an edge of the picture; one that ends amid a smooth
            area is a guess.
        least_side: shorter side under which a cut-out is too small to use, pixels of the sampled frame.
    """

    segmenter: str = "classical"
    verifier: str = "classical"
    device: str = "auto"
    dtype: str = "float32"
    rate: float = 1.0
    kernel: int = 5
    max_contours: int = 15
    max_components: int = 5
    min_share: float = 0.02
    max_share: float = 0.90
    images: int = 4
    per_shot: int = 2
    side: int = 256
    frames: int = 6
    asks: int = 12
    unlike: float = 0.04
    look: float = 0.58
    fits: float = 0.4
    background: float = 0.6
    shared: float = 0.55
    agreement: float = 0.45
    relative: float = 0.84
    outline: float = 0.7
    least_side: int = 24

    @classmethod
    def paper(cls, **settings: Any) -> ReferenceConfig:
        """The rules of arXiv 2506.03126 and no others: masks from 5 % of the image, checked by a judge, at any outline."""
        rules: dict[str, Any] = {"min_share": 0.05, "outline": 0.0, "least_side": 1, "verifier": "judge"}
        return cls(**(rules | settings))


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
        agreement: mean likeness of colours (0..1) to the character's other images; None for an only one.
        verifier: who accepted it.
    """

    character: str
    position: int
    frame: int
    box: tuple[int, int, int, int]
    image: np.ndarray
    score: float
    agreement: float | None = None
    verifier: str = ""


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


def find_references(
    script: StoryScript,
    view: StoryView,
    config: ReferenceConfig,
    segmenter: Segmenter,
    verifier: Verifier | None = None,
) -> ReferenceResult:
    """Find reference images of every character of a story, from as many of the shots that list it as possible.

    A shot may use only images of other shots, so images of one character come from different shots where there are
    enough, and a second image of a shot is taken only after every shot gave one. The verifier is shown the best first, and
    no more than are needed.

    Args:
        script: who is in which shot.
        view: the frames.
        config: the rules.
        segmenter: who finds characters.
        verifier: who has the last word; :class:`curation.verify.ClassicalVerifier` if None.

    Raises:
        NoAnswer: a segmenter or verifier could not be asked.
    """
    segmenter.study(script, view)
    verifier = verifier or ClassicalVerifier()
    result = ReferenceResult()
    passed: list[Candidate] = []
    by_id = {character.id: character for character in script.characters}
    for position, (samples, shot) in enumerate(zip(view.samples, script.shots, strict=True)):
        cast = [by_id[name] for name in shot.characters if name in by_id]
        seconds = view.times[position + 1] - view.times[position]
        frames = _spread(samples, min(config.frames, max(2, round(seconds * config.rate))))
        for character in cast:
            masks = segmenter.segment(frames, character, cast)
            for sample, mask in zip(frames, masks, strict=True):
                found = _judge(character, position, sample, mask, config)
                if isinstance(found, Rejected):
                    result.rejected.append(found)
                else:
                    passed.append(found)
    measured = script.annotator.kind == "measure"  # nobody but the masks says that a measured figure is one
    agreed, refused = agreeing(passed, script.characters, config, measured)
    result.rejected.extend(Rejected(each.character, each.position, each.sample.frame, why) for each, why in refused)
    least = 2 if measured else 1
    for kept in agreed:
        images = _best(kept, by_id, config, verifier, result.rejected) if len({each.position for each in kept}) >= least else []
        if len({image.position for image in images}) >= least:
            result.images.extend(images)
        else:
            lone = "a measured figure must show in two shots"
            seen = {(one.character, one.frame) for one in result.rejected}
            result.rejected.extend(
                Rejected(each.character, each.position, each.sample.frame, lone)
                for each in kept
                if (each.character, each.sample.frame) not in seen
            )
    result.rejected.sort(key=lambda each: (each.position, each.frame, each.character))
    return result


def clean_mask(mask: np.ndarray, config: ReferenceConfig) -> tuple[np.ndarray, str | None]:
    """The paper's rules on one mask [H, W]: the cleaned mask (its largest component), and why it is rejected or None."""
    import cv2

    largest = np.zeros(mask.shape, bool)
    if not mask.any():
        return largest, "nothing is left after opening"
    window = window_of(mask, 3 * config.kernel)
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
) -> Candidate | Rejected:
    if mask is None:
        return Rejected(character.id, position, sample.frame, "not found by the segmenter")
    clean, reason = clean_mask(mask, config)
    small = reason
    if reason is not None:
        reason = clean_mask(mask, replace(config, min_share=min(config.min_share, 0.008)))[1]
    if reason is None:
        x0, y0, x1, y1 = box_of(clean)
        if min(x1 - x0, y1 - y0) < config.least_side:
            reason = f"{x1 - x0} x {y1 - y0} pixels, a side under {config.least_side}"
        elif x0 == 0 and x1 == clean.shape[1]:
            reason = "reaches from side to side of the picture"
        elif (drawn := outlined(sample.image, clean)) < config.outline:
            reason = f"{drawn:.0%} of the outline lies on an edge of the picture, under {config.outline:.0%}"
    if reason is not None:
        return Rejected(character.id, position, sample.frame, reason)
    return Candidate.of(character, position, sample, clean, small)


def _best(
    kept: list[Candidate],
    characters: dict[str, Character],
    config: ReferenceConfig,
    verifier: Verifier,
    rejected: list[Rejected],
) -> list[ReferenceImage]:
    """The best candidates of a character that the verifier accepts, first one of every shot, then further ones."""
    waiting = sorted(kept, key=lambda each: (-each.score, each.position, each.sample.frame))
    alike: list[Candidate] = []  # to images of other shots: better than none, when nothing else is left
    chosen: list[tuple[Candidate, ReferenceImage]] = []
    shown: dict[int, int] = {}
    while (queue := waiting or alike) and len(chosen) < config.images and sum(shown.values()) < config.asks:
        each = min(queue, key=lambda one: shown.get(one.position, 0))
        queue.remove(each)
        if sum(other.position == each.position for other, _ in chosen) == config.per_shot:
            continue
        image = _cut_out(each, config)
        similar = [other.position for other, one in chosen if _difference(image.image, one.image) < config.unlike]
        if each.position in similar:
            rejected.append(Rejected(each.character, each.position, each.sample.frame, "much like a better one of its shot"))
            continue
        if similar and queue is waiting:
            alike.append(each)
            continue
        shown[each.position] = shown.get(each.position, 0) + 1
        cutout = Cutout(image.image, each.mask, box_of(each.mask))
        verdict = verifier.verify(cutout, each.sample.image, characters[each.character])
        if verdict.ok:
            chosen.append((each, image))
        else:
            rejected.append(Rejected(each.character, each.position, each.sample.frame, f"verifier: {verdict.reason}"))
    chosen.sort(key=lambda pair: -pair[1].score)
    looks = [each.signature for each, _ in chosen]
    for k in range(len(chosen)):
        others = [float(np.minimum(looks[k], look).sum()) for i, look in enumerate(looks) if i != k]
        agreement = round(float(np.mean(others)), 4) if others else None
        chosen[k] = chosen[k][0], replace(chosen[k][1], agreement=agreement, verifier=verifier.name)
    return [image for _, image in chosen]


def _difference(a: np.ndarray, b: np.ndarray, side: int = 24) -> float:
    """The mean absolute difference of two cut-outs, RGBA of any size, as thumbnails on grey, 0..1."""
    import cv2

    small = []
    for image in (a, b):
        thumb = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32) / 255
        small.append(thumb[..., :3] * thumb[..., 3:] + 0.5 * (1 - thumb[..., 3:]))
    return float(np.abs(small[0] - small[1]).mean())


def _cut_out(each: Candidate, config: ReferenceConfig) -> ReferenceImage:
    import cv2

    height, width = each.mask.shape
    x0, y0, x1, y1 = box_of(each.mask)
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
