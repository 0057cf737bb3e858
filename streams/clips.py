"""From a stored shot to arrays: which of its frames, at which size, and which reference image off its sheet."""

from __future__ import annotations

import io
import itertools
import math
import re
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from animeshooter_records import DataError, Reference, ShotRecord

if TYPE_CHECKING:
    import av
    import torch
    from av.video.reformatter import VideoReformatter

_THREAD = threading.local()
_PROBE = {"skip_frame": "all", "threads": "1"}
"""Options under which FFmpeg opens a file without decoding a picture of it: mp4 says in its header what that would tell."""
_ALL = 48
"""FFmpeg's AVDISCARD_ALL: packets of a stream are not even read."""


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
        starts: None draws a start anew every epoch; K draws one of K starts that are fixed for each shot, so that what was
            computed from a clip can be kept.
    """

    frames: int
    height: int
    width: int
    fps: float
    min_frames: int = 2
    starts: int | None = None

    def __post_init__(self) -> None:
        if self.frames < 1 or self.frames % 4 != 1:
            raise DataError(f"clip: frames must be 4k + 1, not {self.frames}; try {self.frames // 4 * 4 + 1}")
        if min(self.height, self.width, self.min_frames) < 1 or not self.fps > 0:
            raise DataError(f"clip: sizes and rate must be positive: {self}")
        if self.starts is not None and self.starts < 1:
            raise DataError(f"clip: starts must be at least 1, or None for a start drawn anew every epoch, not {self.starts}")


def told_size(clip: ClipSpec, n: int = 1) -> str:
    """Size and rate of a sample of ``n`` shots, as logs name a bucket: ``3 x 49x480x720@8``."""
    return f"{f'{n} x ' if n > 1 else ''}{clip.frames}x{clip.height}x{clip.width}@{clip.fps:g}"


def read_clip(text: str, min_frames: int = 2, starts: int | None = None) -> ClipSpec:
    """A clip written as frames x height x width @ frames a second: ``49x480x720@8``.

    Raises:
        DataError: it is not written so, or no clip has that size.
    """
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)@(\d+(?:\.\d+)?)", text.strip())
    if not found:
        raise DataError(f"'{text}' is not like 49x480x720@8 (frames, height, width, frames a second)")
    frames, height, width = (int(number) for number in found.groups()[:3])
    return ClipSpec(frames, height, width, float(found[4]), min_frames, starts)


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


def shared_frames(shape: Sequence[int]) -> torch.Tensor:
    """An uninitialised uint8 tensor in shared memory: a worker that decodes into it (``.numpy()``) sends it without a copy."""
    import torch

    storage = torch.UntypedStorage._new_shared(math.prod(shape))  # as torch's own collate function does in a worker
    return torch.empty(0, dtype=torch.uint8).set_(storage, 0, tuple(shape))


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
    *,
    out: tuple[np.ndarray, np.ndarray, np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Decode the sampled, the first and the last clean frame of a stored clip.

    Only what these frames need is decoded: from the key frame before each of them on, and of the frames between only those
    that others refer to. The pictures are those of a full decode, bit by bit.

    Args:
        clip: the mp4 member.
        row: the shot's row of the index.
        spec: what to decode it to.
        at: see :func:`sample_times`.
        where: shard and key, for errors.
        picture: what lies inside black bars, (x0, y0, x1, y1) in pixels of the clip, ends exclusive; None for all of it.
        out: arrays of the shapes below to decode into, which saves a copy; None makes new ones.

    Returns:
        uint8 [F, H, W, 3], uint8 [H, W, 3], uint8 [H, W, 3].

    Raises:
        DataError: the clip does not decode, or not to the frames the index promises.
    """
    import av

    size = (spec.height, spec.width, 3)
    frames, first, last = out or (np.empty((spec.frames, *size), np.uint8), np.empty(size, np.uint8), np.empty(size, np.uint8))
    try:
        with av.open(io.BytesIO(clip), options=_PROBE, metadata_errors="replace") as container:
            stream = container.streams.video[0]
            for other in container.streams:
                if other is not stream:
                    other.discard = _ALL
            packets = [packet for packet in container.demux(stream) if packet.pts is not None]
            if len(packets) != row["frames"]:
                raise DataError(f"{where}: the clip has {len(packets)} frames, the index says {row['frames']}")
            ticks = np.sort(np.array([packet.pts for packet in packets], np.int64))
            clean = ticks[row["clean_start"] : row["clean_end"]]
            base = stream.time_base
            chosen = sample_times(clean * base.numerator / base.denominator, spec, at)
            slots: dict[int, list[np.ndarray]] = {}
            for which, slot in [*zip(chosen, frames), (0, first), (-1, last)]:
                slots.setdefault(int(clean[which]), []).append(slot)
            if stream.codec_context is None:
                raise ValueError("no decoder for its video")
            for frame in _wanted_frames(stream.codec_context, packets, set(slots)):
                image = _fit(frame, spec.height, spec.width, picture)
                for slot in slots.pop(frame.pts, ()):
                    slot[...] = image
    except (av.FFmpegError, IndexError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{where}: the clip does not decode ({error}); build or download the shard again") from None
    if slots:
        raise DataError(f"{where}: {len(slots)} frames of the clip do not decode; build or download the shard again")
    return frames, first, last


def _wanted_frames(codec: av.VideoCodecContext, packets: list[av.Packet], wanted: set[int]) -> Iterator[av.VideoFrame]:
    """Decode the frames whose time stamps are ``wanted``, and as few others as it takes, in order of decoding.

    A stretch begins with a key frame that no later packet is shown before, so that none of its frames needs what lies before
    the stretch (closed groups of pictures; with open ones, stretches join). Inside, frames that nothing refers to are passed
    over by the decoder unless they are wanted; that takes a single thread, which sees one packet at a time.
    """
    codec.thread_count = 1
    codec.options = {"err_detect": "explode"}  # a damaged picture is an error, not a picture patched up
    stamps = np.array([packet.pts for packet in packets], np.int64)
    earliest = np.minimum.accumulate(stamps[::-1])[::-1]
    starts = [n for n, packet in enumerate(packets) if n == 0 or (stamps[n] == earliest[n] and _begins_anew(codec, packet))]
    for start, end in zip(starts, [*starts[1:], len(packets)]):
        ahead = {packet.pts for packet in packets[start:end]} & wanted
        if not ahead:
            continue
        for packet in itertools.islice(packets, start, end):
            codec.skip_frame = "DEFAULT" if packet.pts in ahead else "NONREF"
            yield from (frame for frame in codec.decode(packet) if frame.pts in wanted)
            ahead.discard(packet.pts)
            if not ahead:
                break
        yield from (frame for frame in codec.decode(None) if frame.pts in wanted)  # what the decoder holds back for its order
        codec.flush_buffers()


def _begins_anew(codec: av.VideoCodecContext, packet: av.Packet) -> bool:
    """Whether decoding can start with a packet: in H.264 key frames count only if they are IDR pictures.

    Others are points from which decoding recovers little by little. ISO/IEC 14496-10, 7.4.1: the type of a NAL unit is the low
    five bits of its first byte, 5 an IDR slice, 1 another; 14496-15, 5.3.3: each stands behind its length.
    """
    if codec.name != "h264" or not packet.is_keyframe:
        return packet.is_keyframe
    setup = codec.extradata or b""
    if len(setup) < 5 or setup[0] != 1:
        return False
    data, at, prefix = memoryview(packet), 0, (setup[4] & 3) + 1
    while at + prefix < len(data):
        kind = data[at + prefix] & 31
        if kind in (1, 5):
            return kind == 5
        at += prefix + int.from_bytes(data[at : at + prefix], "big")
    return False


def _fit(frame: av.VideoFrame, height: int, width: int, picture: tuple[int, int, int, int] | None) -> np.ndarray:
    """Scale what lies in ``picture`` to cover height x width, aspect kept, and crop the centre: uint8 [height, width, 3]."""
    left, top, right, bottom = picture or (0, 0, frame.width, frame.height)
    if not (0 <= left < right <= frame.width and 0 <= top < bottom <= frame.height):
        raise ValueError(f"its picture {picture} lies outside the frame of {frame.width} x {frame.height}")
    scale = max(height / (bottom - top), width / (right - left))
    tall, wide = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
    how = "AREA" if scale < 1 else "BICUBIC"
    image = _scaler().reformat(frame, width=wide, height=tall, format="rgb24", interpolation=how, threads=1).to_ndarray()
    if picture is not None:
        top, bottom, left, right = (round(edge * scale) for edge in (top, bottom, left, right))
    else:
        bottom, right = tall, wide
    y = min(max((top + bottom - height) // 2, 0), tall - height)
    x = min(max((left + right - width) // 2, 0), wide - width)
    return image[y : y + height, x : x + width]


def _scaler() -> VideoReformatter:
    """This thread's scaler: its tables are made once a size, not once a frame."""
    if not hasattr(_THREAD, "scaler"):
        from av.video.reformatter import VideoReformatter

        _THREAD.scaler = VideoReformatter()
    return _THREAD.scaler


def pick_reference(records: list[ShotRecord], at: float) -> tuple[int, Reference] | None:
    """The first of :func:`pick_references`; None where there is none."""
    return next(iter(pick_references(records, [at])), None)


def pick_references(records: list[ShotRecord], at: Sequence[float]) -> list[tuple[int, Reference]]:
    """The references of a sequence, one a character: which record's sheet each is on, and which image there.

    The characters come first that have an image from outside the sequence, then those in most of the shots, then those
    listed first.

    Args:
        records: of the shots.
        at: as many numbers in [0, 1) as characters are wanted; each chooses among the images of its character (those from
            outside, if there are any).

    Returns:
        At most ``len(at)``, fewer where fewer characters have images.
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

    def outside(character: str) -> list[tuple[int, Reference]]:
        return [image for image in by_character[character] if image[1].shot not in keys]

    def rank(character: str) -> tuple[bool, int, int]:
        first = listed.index(character) if character in listed else len(listed)
        return (bool(outside(character)), listed.count(character), -first)

    found = []
    for character, share in zip(sorted(by_character, key=rank, reverse=True), at):
        candidates = outside(character) or by_character[character]
        found.append(candidates[int(share * len(candidates))])
    return found


def cut_reference(sheet: bytes, reference: Reference, where: str) -> Image.Image:
    """Cut one reference off its sheet and put it on white: RGB.

    Raises:
        DataError: the sheet is no image, or the box lies outside it.
    """
    try:
        image = Image.open(io.BytesIO(sheet))
        image.load()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # whatever PIL's readers of PNG raise
        raise DataError(f"{where}: the reference sheet does not open ({error}); build the dataset again") from None
    left, top, right, bottom = reference.box
    if not (0 <= left < right <= image.width and 0 <= top < bottom <= image.height):
        raise DataError(f"{where}: reference box {reference.box} lies outside the sheet of {image.size}")
    return on_white(image.crop(reference.box))


def on_white(image: Image.Image) -> Image.Image:
    """An image as RGB, what is transparent made white."""
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
