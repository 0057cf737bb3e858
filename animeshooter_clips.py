"""From a stored shot to arrays: which of its frames, at which size, and which reference image off its sheet."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from animeshooter_dataset import DataError, Reference, ShotRecord

if TYPE_CHECKING:
    import av


@dataclass(frozen=True)
class ClipSpec:
    """How a shot becomes an array of frames.

    Frames are taken at ``fps`` by presentation time from the shot's clean part (no transition frames), from a start
    drawn by (seed, epoch, key). A shot too short for that is spread over ``frames`` evenly, at a higher rate up to
    consecutive frames; one with fewer than ``frames`` frames ends on its last frame, repeated. Black bars are cut off; what
    is left is scaled to cover height x width, aspect kept, and cropped at the centre.

    Args:
        frames: frames of a clip, 4k + 1 (what a causal video VAE that compresses time by 4 takes).
        height: pixels.
        width: pixels.
        fps: frames a second of the clip.
        min_frames: shots with fewer clean frames are left out, and counted.
    """

    frames: int
    height: int
    width: int
    fps: float
    min_frames: int = 2

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames % 4 != 1:
            raise DataError(f"clip: frames must be 4k + 1, not {self.frames}; try {self.frames // 4 * 4 + 1}")
        if min(self.height, self.width, self.min_frames) < 1 or not self.fps > 0:
            raise DataError(f"clip: sizes and rate must be positive: {self}")


def read_range(path: Path, offset: int, size: int) -> bytes:
    """Bytes ``offset`` to ``offset + size`` of a file: the one place where shards are read.

    Raises:
        OSError: not there, or the file ends before.
    """
    with open(path, "rb") as file:
        file.seek(offset)
        blob = file.read(size)
    if len(blob) != size:
        raise OSError(f"the file ends {size - len(blob)} bytes early")
    return blob


def sample_times(times: np.ndarray, spec: ClipSpec, at: float) -> np.ndarray:
    """Which frames of a shot make its clip: int64 [``spec.frames``] into ``times``, not decreasing.

    Args:
        times: presentation times of the clean frames, seconds, increasing.
        spec: rate and count.
        at: where the clip starts, as a share of the room there is, in [0, 1).
    """
    room = float(times[-1] - times[0]) - (spec.frames - 1) / spec.fps
    if room >= 0:
        wanted = times[0] + room * at + np.arange(spec.frames) / spec.fps
        return np.searchsorted(times, wanted + 1e-6, side="right") - 1
    if len(times) >= spec.frames:
        return np.linspace(0, len(times) - 1, spec.frames).round().astype(np.int64)
    return np.minimum(np.arange(spec.frames), len(times) - 1)


def decode_clip(
    clip: bytes,
    row: dict[str, Any],
    spec: ClipSpec,
    at: float,
    where: str,
    picture: tuple[int, int, int, int] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode the sampled, the first and the last clean frame of a stored clip.

    Args:
        clip: the mp4 member.
        row: the shot's row of the index.
        spec: what to decode it to.
        at: see :func:`sample_times`.
        where: shard and key, for errors.
        picture: what lies inside black bars, (x0, y0, x1, y1) in pixels of the clip, ends exclusive; None for all of it.

    Returns:
        uint8 [F, H, W, 3], uint8 [H, W, 3], uint8 [H, W, 3].

    Raises:
        DataError: the clip does not decode, or not to the frames the index promises.
    """
    import av

    try:
        with av.open(io.BytesIO(clip)) as container:
            stream = container.streams.video[0]
            base = stream.time_base
            ticks = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
            if len(ticks) != row["frames"]:
                raise DataError(f"{where}: the clip has {len(ticks)} frames, the index says {row['frames']}")
            clean = ticks[row["clean_start"] : row["clean_end"]]
            chosen = sample_times(np.array([float(tick * base) for tick in clean]), spec, at)
            wanted = {clean[which] for which in (*chosen, 0, -1)}
            container.seek(0, stream=stream)
            images = {}
            for frame in container.decode(stream):
                if frame.pts in wanted:
                    images[frame.pts] = _fit(frame, spec.height, spec.width, picture)
                    if len(images) == len(wanted):
                        break
    except (av.FFmpegError, IndexError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: the clip does not decode ({error}); build or download the shard again") from None
    missing = wanted - set(images)
    if missing:
        raise DataError(f"{where}: {len(missing)} frames of the clip do not decode; build or download the shard again")
    return np.stack([images[clean[which]] for which in chosen]), images[clean[0]], images[clean[-1]]


def _fit(frame: av.VideoFrame, height: int, width: int, picture: tuple[int, int, int, int] | None) -> np.ndarray:
    """Scale what lies in ``picture`` to cover height x width, aspect kept, and crop the centre: uint8 [height, width, 3]."""
    left, top, right, bottom = picture or (0, 0, frame.width, frame.height)
    if not (0 <= left < right <= frame.width and 0 <= top < bottom <= frame.height):
        raise ValueError(f"its picture {picture} lies outside the frame of {frame.width} x {frame.height}")
    scale = max(height / (bottom - top), width / (right - left))
    tall, wide = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
    how = "AREA" if scale < 1 else "BICUBIC"
    image = frame.reformat(width=wide, height=tall, format="rgb24", interpolation=how).to_ndarray()
    if picture is not None:
        top, bottom, left, right = (round(edge * scale) for edge in (top, bottom, left, right))
    else:
        bottom, right = tall, wide
    y = min(max((top + bottom - height) // 2, 0), tall - height)
    x = min(max((left + right - width) // 2, 0), wide - width)
    return np.ascontiguousarray(image[y : y + height, x : x + width])


def pick_reference(records: list[ShotRecord], at: float) -> tuple[int, Reference] | None:
    """The reference of a sequence: which record's sheet it is on, and which image there; None where there is none.

    The character comes first that has an image from outside the sequence, then the one in most of the shots, then the
    one listed first. Of its images (from outside, if there are any) ``at`` in [0, 1) chooses one.
    """
    keys = {record.key for record in records}
    listed = [character for record in records for character in record.characters]
    images: dict[tuple[str, str, int], tuple[int, Reference]] = {}
    for which, record in enumerate(records):
        for reference in record.references:
            images.setdefault((reference.character, reference.shot, reference.frame), (which, reference))
    by_character: dict[str, list[tuple[int, Reference]]] = {}
    for (character, _, _), image in sorted(images.items(), key=lambda item: item[0]):
        by_character.setdefault(character, []).append(image)
    if not by_character:
        return None

    def outside(character: str) -> list[tuple[int, Reference]]:
        return [image for image in by_character[character] if image[1].shot not in keys]

    def rank(character: str) -> tuple[bool, int, int]:
        first = listed.index(character) if character in listed else len(listed)
        return (bool(outside(character)), listed.count(character), -first)

    best = max(by_character, key=rank)
    candidates = outside(best) or by_character[best]
    return candidates[int(at * len(candidates))]


def cut_reference(sheet: bytes, reference: Reference, where: str) -> Image.Image:
    """Cut one reference off its sheet and put it on white: RGB.

    Raises:
        DataError: the sheet is no image, or the box lies outside it.
    """
    try:
        image = Image.open(io.BytesIO(sheet)).convert("RGBA")
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{where}: the reference sheet does not open ({error}); build the dataset again") from None
    left, top, right, bottom = reference.box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise DataError(f"{where}: reference box {reference.box} lies outside the sheet of {image.size}")
    return on_white(image.crop(reference.box))


def on_white(image: Image.Image) -> Image.Image:
    """An image as RGB, what is transparent made white."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
