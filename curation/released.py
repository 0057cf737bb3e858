"""Reference images from the masks of the official release: each laid over the film's own frame, and what it covers cut out.

The release's masks have passed the paper's rules already (opening and closing, contours, share of the picture, a model that
looked), so nothing is done to them here but what another size of the film asks for.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import av.error
import numpy as np

from animeshooter_dataset import DataError
from curation.align import AlignedStory
from curation.clips import FilmShots
from curation.collect import Film
from curation.container import first_frame, open_film
from curation.identity import signature
from curation.masks import decode_rle
from curation.references import ReferenceImage, ReferenceResult, Rejected
from curation.release import ReleaseMask
from curation.verify import box_of, sharpness
from curation.video import RgbScaler, decode

VERIFIER = "release"
"""Who accepted the masks, for records: the release's own pipeline."""
ASPECT = 0.01
"""Relative difference up to which two pictures have one shape."""
FAR_SECONDS = 10.0
"""Seconds between two wanted frames from which seeking is quicker than decoding what lies between them."""
NOWHERE = -1
"""Position of a mask that lies in no shot of its story."""


@dataclass(frozen=True)
class ReleasedConfig:
    """Settings of :func:`release_references`.

    Attributes:
        side: longest side of a cut-out, pixels; smaller ones are kept to the pixel.
        images: most images a character.
        least_side: shorter side of its box under which a mask is too small to use, pixels of the film.
    """

    side: int = 384
    images: int = 6
    least_side: int = 24


@dataclass(frozen=True)
class _Wanted:
    """One mask with its place in the film: frame, and position of its shot in the story."""

    character: str
    mask: ReleaseMask
    frame: int
    position: int


def release_references(story: AlignedStory, whole: FilmShots, config: ReleasedConfig | None = None) -> ReferenceResult:
    """Cut a story's characters out of the film with the masks of the release.

    Alpha is the mask, hard-edged: to the pixel where mask and film have one size, resampled where they have one shape.
    A mask is refused, with the reason, if it cannot be decoded, is empty, too small or of another shape than the film; if its
    frame lies past the film's end or in no shot of the story; and, where the film has another frame rate than the release,
    if a cut lies within a frame of it, since it may then show the other shot.

    The score of an image is its :func:`curation.verify.sharpness` times the square root of its mask's share of the picture, a
    fifth of it counting as full; ``agreement`` is the mean likeness of its colours to the character's other images. A
    character's images come best first, one of each shot before a second one of any.

    Args:
        story: the story, placed on the film.
        whole: the film; its spans are those of the alignment.
        config: settings.

    Returns:
        The images, character by character in the script's order, and the masks that gave none (position :data:`NOWHERE`
        where no shot of the story holds the frame).

    Raises:
        DataError: the film cannot be read.
    """
    config = config or ReleasedConfig()
    result = ReferenceResult()
    wanted: dict[int, list[_Wanted]] = {}
    for one in _placed(story, whole, result.rejected):
        wanted.setdefault(one.frame, []).append(one)
    found: dict[str, list[tuple[ReferenceImage, np.ndarray]]] = {}
    for frame, picture in read_pictures(whole.film, whole.cuts.frames.pts, sorted(wanted)):
        for one in wanted.pop(frame):
            try:
                image, look = _cut_out(one, picture, whole, story, config)
            except DataError as problem:
                result.rejected.append(Rejected(one.character, one.position, frame, str(problem)))
            else:
                found.setdefault(one.character, []).append((image, look))
    for character in story.script.characters:
        ordered = _different_shots_first(found.get(character.id, []))
        kept, more = ordered[: config.images], ordered[config.images :]
        result.images.extend(_agreeing(kept))
        reason = f"more than {config.images} images of the character"
        result.rejected.extend(Rejected(image.character, image.position, image.frame, reason) for image, _ in more)
    result.rejected.sort(key=lambda each: (each.position, each.frame, each.character))
    return result


def _placed(story: AlignedStory, whole: FilmShots, rejected: list[Rejected]) -> Iterator[_Wanted]:
    """The masks whose frames lie in a shot of their story; the others are noted as rejected."""
    spans = [whole.spans[number] for number in story.numbers]
    known = {character.id for character in story.script.characters}
    for reference in story.segment.references:
        seen: set[int] = set()
        for mask in reference.masks:
            frame = story.clock.picture(mask.frame)
            position = next(
                (k for k, span in enumerate(spans) if frame is not None and span.start_frame <= frame < span.end_frame), NOWHERE
            )
            if reference.character not in known:
                why = "is no main character of the story"
            elif frame is None:
                why = "its frame lies past the film's end"
            elif position == NOWHERE:
                why = "its frame lies in no shot of the story"
            elif frame in seen:
                why = "a mask of the same character and frame came before it"
            elif _beside_a_cut(story, whole, mask.frame):
                why = "a cut lies within a frame of it, and the film has another frame rate than the release"
            else:
                seen.add(frame)
                yield _Wanted(reference.character, mask, frame, position)
                continue
            rejected.append(Rejected(reference.character, position, mask.frame if frame is None else frame, why))


def _beside_a_cut(story: AlignedStory, whole: FilmShots, number: int) -> bool:
    """Whether a cut lies so near the release's frame ``number`` that counting by time may have found the other shot's."""
    clock = story.clock
    if clock.exact:
        return False
    margin, middle = max(clock.step, 1 / clock.fps), (number + 0.5) / clock.fps
    first = int(np.searchsorted(clock.pts, middle - margin, side="right")) - 1
    last = int(np.searchsorted(clock.pts, middle + margin, side="right")) - 1
    return any(first < cut <= last for cut in whole.cuts.cuts)


def fitted(mask: np.ndarray, width: int, height: int) -> np.ndarray:
    """A mask, bool [h, w], at the size of a picture, bool [height, width].

    Masks of another size are resampled as grey levels and end where these cross one half. Where they grow, their steps,
    which would grow with them, are smoothed by a Gaussian of half a pixel of theirs (on a mask halved and enlarged again,
    intersection over union with the true one .995, and .993 by the nearest pixel; from a third of the size .992 and .986).

    Raises:
        DataError: mask and picture have other shapes.
    """
    import cv2

    rows, columns = mask.shape
    if (rows, columns) == (height, width):
        return mask
    if abs(columns * height / (rows * width) - 1) > ASPECT:
        raise DataError(f"the mask is {columns} x {rows} pixels, another shape than the film's {width} x {height}")
    grows = width > columns
    kernel = cv2.INTER_LINEAR if grows else cv2.INTER_AREA
    levels = cv2.resize(mask.astype(np.float32), (width, height), interpolation=kernel)
    if grows:
        levels = cv2.GaussianBlur(levels, (0, 0), 0.5 * width / columns)
    return levels >= 0.5


def _cut_out(
    one: _Wanted, picture: np.ndarray, whole: FilmShots, story: AlignedStory, config: ReleasedConfig
) -> tuple[ReferenceImage, np.ndarray]:
    """One reference image and its colours, see :func:`curation.identity.signature`.

    Raises:
        DataError: why there is none.
    """
    height, width = picture.shape[:2]
    mask = fitted(decode_rle(one.mask), width, height)
    if not mask.any():
        raise DataError("the mask is empty")
    x0, y0, x1, y1 = box_of(mask)
    if min(x1 - x0, y1 - y0) < config.least_side:
        raise DataError(f"the mask is tiny: a side of its box is under {config.least_side} pixels")
    alpha = mask[y0:y1, x0:x1]
    image = np.dstack([picture[y0:y1, x0:x1], np.where(alpha, 255, 0).astype(np.uint8)])
    image[~alpha] = 0
    clip = whole.infos[story.numbers[one.position]]
    across, down = clip.width / width, clip.height / height
    left, top = int(x0 * across), int(y0 * down)
    right, bottom = max(left + 1, min(round(x1 * across), clip.width)), max(top + 1, min(round(y1 * down), clip.height))
    score = sharpness(picture, mask) * min(float(mask.mean()) / 0.2, 1.0) ** 0.5
    image = _within(image, config.side)
    box = (left, top, right, bottom)
    found = ReferenceImage(one.character, one.position, one.frame, box, image, round(score, 4), verifier=VERIFIER)
    return found, signature(picture, mask)


def _within(image: np.ndarray, side: int) -> np.ndarray:
    """A cut-out, RGBA uint8, scaled down to a longest side; its edge stays hard and takes on no colour from outside."""
    import cv2

    height, width = image.shape[:2]
    if max(height, width) <= side:
        return image
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    share = cv2.resize((image[..., 3] > 0).astype(np.float32), size, interpolation=cv2.INTER_AREA)
    colour = cv2.resize(image[..., :3].astype(np.float32), size, interpolation=cv2.INTER_AREA)  # black where alpha is 0
    inside = share >= 0.5
    small = np.zeros((size[1], size[0], 4), np.uint8)
    small[inside, :3] = np.rint(colour[inside] / share[inside, None]).clip(0, 255)
    small[inside, 3] = 255
    return small


def _different_shots_first(found: Sequence[tuple[ReferenceImage, Any]]) -> list[tuple[ReferenceImage, Any]]:
    """Images best first, but one of each shot before a second one of any, and so on."""
    rank: dict[int, int] = {}
    turns = []
    for pair in sorted(found, key=lambda pair: (-pair[0].score, pair[0].position, pair[0].frame)):
        turn = rank[pair[0].position] = rank.get(pair[0].position, -1) + 1
        turns.append((turn, pair))
    return [pair for _, pair in sorted(turns, key=lambda turn: turn[0])]


def _agreeing(kept: Sequence[tuple[ReferenceImage, np.ndarray]]) -> list[ReferenceImage]:
    """The images with their agreement."""
    images = []
    for k, (image, look) in enumerate(kept):
        others = [float(np.minimum(look, other).sum()) for i, (_, other) in enumerate(kept) if i != k]
        images.append(replace(image, agreement=round(float(np.mean(others)), 4) if others else None))
    return images


# Frames of a film


def read_pictures(film: Film, pts: np.ndarray, frames: Sequence[int]) -> Iterator[tuple[int, np.ndarray]]:
    """Decode some frames of a film, those that lie near one another in one pass.

    A pass begins at the key frame before its first one where frames can be told by their time stamps. Where they cannot (no
    time stamps, or pictures that a filter must turn or make whole) all are had in one pass from the film's start: a frame is
    one of those that were asked for and no neighbour. One picture is in memory at a time.

    Args:
        film: the film.
        pts: time of every frame, seconds from the first.
        frames: which, ascending.

    Yields:
        Number of the frame and its picture, RGB uint8 [H, W, 3] at the film's displayed size; each frame once, ascending unless
        some had to be looked for a second time.

    Raises:
        DataError: the film cannot be read.
    """
    missing = list(frames)
    to_rgb = RgbScaler((film.info.width, film.info.height))
    if not film.info.rotation and not film.info.interlaced:
        for near in _together(pts, frames):
            for frame, picture in _sought(film, pts, near):
                missing.remove(frame)
                yield frame, to_rgb(picture)
    if not missing:
        return
    left = set(missing)
    for index, _, picture in decode(film.path):
        if index in left:
            left.discard(index)
            yield index, to_rgb(picture)
        if not left:
            return


def _together(pts: np.ndarray, frames: Sequence[int]) -> list[list[int]]:
    """Frames in groups of which none is far from the next."""
    groups: list[list[int]] = []
    for frame in frames:
        if groups and pts[frame] - pts[groups[-1][-1]] < FAR_SECONDS:
            groups[-1].append(frame)
        else:
            groups.append([frame])
    return groups


def _sought(film: Film, pts: np.ndarray, frames: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames from the key frame before the first of them on, as long as their time stamps are those of the wanted ones."""
    wanted = {round(float(pts[frame]), 6): frame for frame in frames}
    with open_film(film.path) as (container, stream):
        origin = first_frame(container, stream, film.path).pts
        if origin is None:
            return
        container.seek(origin + round(float(pts[frames[0]]) / stream.time_base), stream=stream, backward=True)
        key: int | None = None
        try:
            for picture in container.decode(stream):
                if picture.pts is None:
                    return
                key = picture.pts if key is None and picture.key_frame else key
                if key is None or picture.pts < key or picture.is_corrupt:
                    continue  # shown before the key frame: what it refers to was not decoded
                time = float((picture.pts - origin) * stream.time_base)
                frame = wanted.get(round(time, 6))
                if frame is not None:
                    yield frame, picture
                if time >= pts[frames[-1]]:
                    return
        except av.error.FFmpegError:
            return
