"""From a stored audio clip to arrays that are in time with each other: a waveform, and the frames that belong to it."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from animeshooter_records import DataError
from streams.clips import ClipSpec, decode_clip

TAIL = 4096
"""Samples resampled before a waveform's start and beyond its end, which the filter looks at."""


@dataclass(frozen=True)
class SoundSpec:
    """How the sound of a clip becomes a waveform.

    Args:
        seconds: length; a longer clip is cropped at a start drawn by (seed, epoch, key), a shorter one padded.
        rate: samples a second.
        channels: 1 (both channels mixed in equal parts) or 2 (a mono sound twice).
    """

    seconds: float
    rate: int = 16_000
    channels: int = 1

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf or self.rate < 1 or self.samples < 1:
            raise DataError(f"sound: length and rate must be positive: {self}")
        if self.channels not in (1, 2):
            raise DataError(f"sound: channels must be 1 or 2, not {self.channels}")

    @property
    def samples(self) -> int:
        """Samples a channel."""
        return round(self.seconds * self.rate)


def decode_sound(flac: bytes, row: dict[str, Any], spec: SoundSpec, start: float, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Decode a stretch of a stored sound.

    Args:
        flac: the flac member.
        row: the clip's row of the index.
        spec: rate, length and channels.
        start: seconds from the clip's first sample; rounded to a sample of the result.
        where: shard and key, for errors.

    Returns:
        float32 [channels, samples], zero after the sound's end; bool [samples], True where there is sound.

    Raises:
        DataError: the flac does not decode, or not to the samples the index promises.
    """
    import av

    samples, rate = row["samples"], row["sample_rate"]
    first, whole = round(start * spec.rate), round(samples * spec.rate / rate)
    needed = min(samples, -(-(first + spec.samples) * rate // spec.rate) + TAIL)
    frames: list[av.AudioFrame] = []
    heard = skipped = 0
    try:
        with av.open(io.BytesIO(flac), format="flac") as container:
            stream = container.streams.audio[0]
            stream.codec_context.options = {"err_detect": "crccheck+explode"}  # damaged sound is an error, not a click
            if stream.rate and (stream.rate, stream.channels) != (rate, row["channels"]):
                told = f"{stream.rate} Hz in {stream.channels} channels, the index says {rate} Hz in {row['channels']}"
                raise DataError(f"{where}: its flac has {told}; get index and shard again, they do not belong together")
            ticks = stream.time_base * rate
            for frame in container.decode(stream):
                if heard >= needed or frame.pts is None or round(frame.pts * ticks) != heard:
                    break  # there is enough, or something damaged has been left out
                if (
                    heard + TAIL
                ) * spec.rate <= first * rate and heard * spec.rate % rate == 0:  # it begins on a sample of both
                    frames, skipped = [], heard * spec.rate // rate
                frames.append(frame)
                heard += frame.samples
        if heard < needed:
            raise DataError(
                f"{where}: its flac decodes to {heard} samples, the index says {samples}; build or download the shard again"
            )
        resampler = av.AudioResampler(format="fltp", layout="mono" if row["channels"] == 1 else "stereo", rate=spec.rate)
        pieces = [piece.to_ndarray() for frame in (*frames, None) for piece in resampler.resample(frame)]
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{where}: its flac does not decode ({error}); build or download the shard again") from None
    sound = np.concatenate(pieces, axis=1)[:, first - skipped : min(first + spec.samples, whole) - skipped]
    waveform = np.zeros((spec.channels, spec.samples), np.float32)
    # FFmpeg's own mix to mono is 3 dB louder where both channels are alike, and then leaves [-1, 1].
    waveform[:, : sound.shape[1]] = sound.mean(axis=0) if spec.channels == 1 else sound
    return waveform, np.arange(spec.samples) < sound.shape[1]


def frame_times(clip: bytes, frames: int, where: str) -> np.ndarray:
    """When the frames of a stored clip are shown, without decoding any: seconds from the first, float64 [frames].

    Raises:
        DataError: the clip does not open, or has another number of frames.
    """
    import av

    try:
        with av.open(io.BytesIO(clip)) as container:
            stream = container.streams.video[0]
            ticks = np.sort([packet.pts for packet in container.demux(stream) if packet.pts is not None])
            base = stream.time_base
    except (av.FFmpegError, IndexError) as error:
        raise DataError(f"{where}: the clip does not open ({error}); build or download the shard again") from None
    if len(ticks) != frames:
        raise DataError(f"{where}: the clip has {len(ticks)} frames, the index says {frames}")
    return (ticks - ticks[0]) * base.numerator / base.denominator


@dataclass(frozen=True)
class Chosen:
    """Frames of an audio clip: int64 [F] in presentation order, not decreasing.

    ``share`` says where they begin as a share of the room there is, which is how ``decode_clip`` chooses the same ones; None
    where they go on while the last frame stays on screen.
    """

    frames: np.ndarray
    share: float | None


def choose_frames(times: np.ndarray, seconds: float, clip: ClipSpec, length: float, at: float) -> Chosen:
    """Which frames of an audio clip make its pictures.

    Each is the one on screen at its time. Unlike a shot's (``sample_times``), they are never spread: sound has its own time.

    Args:
        times: when the clip's frames are shown, seconds from the first, increasing.
        seconds: length of the clip, to the end of its last frame.
        clip: rate and count.
        length: of the waveform, seconds.
        at: where both begin, as a share of the room that both have, in [0, 1); without room they begin at 0.
    """
    span = (clip.frames - 1) / clip.fps
    room, held = float(times[-1]) - span, times[-1] < span
    start = at * max(0.0, min(seconds - span if held else room, seconds - length))
    frames = np.searchsorted(times, start + np.arange(clip.frames) / clip.fps + 1e-6, side="right") - 1
    return Chosen(frames, None if held else start / room if room else 0.0)


def decode_frames(
    blob: bytes, times: np.ndarray, chosen: Chosen, clip: ClipSpec, where: str, picture: tuple[int, int, int, int] | None
) -> np.ndarray:
    """Decode chosen frames of a stored clip: uint8 [F, H, W, 3].

    Args:
        blob: the mp4 member.
        times: see :func:`choose_frames`.
        chosen: which of them.
        clip: their size.
        where: shard and key, for errors.
        picture: what lies inside black bars; see :func:`streams.clips.decode_clip`.

    Raises:
        DataError: the clip does not decode.
    """
    row = {"frames": len(times), "clean_start": 0, "clean_end": len(times)}
    if chosen.share is not None:
        return decode_clip(blob, row, clip, chosen.share, where, picture)[0]
    one = replace(clip, frames=1)
    shown = {
        int(frame): decode_clip(blob, row | {"clean_start": frame, "clean_end": frame + 1}, one, 0.0, where, picture)[1]
        for frame in np.unique(chosen.frames)
    }
    return np.stack([shown[int(frame)] for frame in chosen.frames])
