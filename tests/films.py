"""Small synthetic films for tests, written with PyAV.

Every picture of a numbered film says which frame it is: a strip of 16 cells along its top edge holds the index in
binary (white = 1, black = 0, most significant first), large enough to survive compression and downscaling.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

BITS = 16
Picture = Callable[[int, int, int], np.ndarray]


def numbered(index: int, width: int, height: int) -> np.ndarray:
    """A coloured, moving picture that carries its index; :func:`read_number` gets it back."""
    y, x = np.mgrid[0:height, 0:width]
    image = np.stack(
        [(x * 255 // max(1, width - 1) + 3 * index) % 256, y * 255 // max(1, height - 1), np.full_like(x, 90)], axis=-1
    ).astype(np.uint8)
    strip = max(1, height // 4)
    for bit in range(BITS):
        left, right = bit * width // BITS, (bit + 1) * width // BITS
        image[:strip, left:right] = 255 if index >> (BITS - 1 - bit) & 1 else 0
    return image


def read_number(image: np.ndarray) -> int:
    """The frame index written in a picture by :func:`numbered`, at whatever size it is now."""
    height, width = image.shape[:2]
    row = image[max(0, height // 8), :, :].mean(axis=-1)
    value = 0
    for bit in range(BITS):
        centre = (2 * bit + 1) * width // (2 * BITS)
        value = value << 1 | int(row[centre] > 127)
    return value


def tone(seconds: float, *, rate: int = 48000, channels: int = 2, hertz: float = 440.0) -> np.ndarray:
    """A sine of half amplitude, float32 of shape (channels, samples)."""
    wave = 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)
    return np.repeat(wave[None].astype(np.float32), channels, axis=0)


def clicks(seconds: float, times: Sequence[float], *, rate: int = 48000, channels: int = 2) -> np.ndarray:
    """Silence with 2 ms bursts that start at the given times."""
    sound = np.zeros((channels, round(seconds * rate)), np.float32)
    for time in times:
        first = round(time * rate)
        sound[:, first : first + rate // 500] = 0.8
    return sound


def write_film(
    path: Path | str,
    *,
    size: tuple[int, int] = (160, 96),
    fps: Fraction | int = 24,
    frames: int | Iterable[np.ndarray] = 24,
    picture: Picture = numbered,
    sound: np.ndarray | None = None,
    sound_rate: int = 48000,
    sound_codec: str = "aac",
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    pix_fmt: str | None = None,
    rotation: int = 0,
    crf: int = 12,
    options: dict[str, str] | None = None,
) -> Path:
    """Writes a film; the suffix of the path chooses the container.

    Args:
        path: Where to; returned as a Path.
        size: (width, height) of the stored pictures; odd sizes are stored without chroma subsampling.
        fps: Frame rate.
        frames: Number of frames drawn by ``picture``, or the pictures themselves (uint8 RGB).
        picture: Draws frame ``index`` at (width, height).
        sound: float32 (channels, samples), or None for a silent film.
        sound_rate: Sampling rate of ``sound``.
        sound_codec: Codec for the sound.
        times: Presentation time of every frame in seconds (variable frame rate), instead of index / fps.
        codec: Video encoder.
        pix_fmt: Pixel format; chosen by the size when None.
        rotation: Counter-clockwise display rotation in degrees.
        crf: Quality for x264.
        options: More encoder options.
    """
    path, (width, height) = Path(path), size
    odd = width % 2 or height % 2
    count = frames if isinstance(frames, int) else None
    pictures = (picture(i, width, height) for i in range(count)) if count is not None else iter(frames)  # type: ignore[arg-type]
    encoder_options = {"crf": str(crf), "preset": "ultrafast", "g": "12"} if codec == "libx264" else {}
    fast_start = {"movflags": "+faststart"} if path.suffix == ".mp4" else {}
    with av.open(str(path), "w", options=fast_start) as container:
        video: Any = container.add_stream(codec, rate=Fraction(fps), options={**encoder_options, **(options or {})})
        video.width, video.height = width, height
        video.pix_fmt = pix_fmt or ("yuv444p" if odd else "yuv420p")
        video.codec_context.time_base = Fraction(1, 90000) if times is not None else 1 / Fraction(fps)
        if rotation:
            video.set_display_rotation(rotation)
        voice = None
        if sound is not None:
            voice = container.add_stream(sound_codec, rate=sound_rate, layout="mono" if len(sound) == 1 else "stereo")
        for index, image in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.time_base = video.codec_context.time_base
            frame.pts = round(times[index] * 90000) if times is not None else index
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if voice is not None and sound is not None:
            _mux_sound(container, voice, sound, sound_rate)
    return path


def _mux_sound(container: Any, voice: Any, sound: np.ndarray, rate: int) -> None:
    layout = "mono" if len(sound) == 1 else "stereo"
    block = 1024
    for first in range(0, sound.shape[1], block):
        piece = np.ascontiguousarray(sound[:, first : first + block])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, first, Fraction(1, rate)
        container.mux(voice.encode(frame))
    container.mux(voice.encode(None))


def truncate(film: Path | str, target: Path | str, share: float = 0.5) -> Path:
    """Copies the first ``share`` of a film's bytes; an mp4 written here keeps its index at the front."""
    data = Path(film).read_bytes()
    Path(target).write_bytes(data[: int(len(data) * share)])
    return Path(target)


def corrupt(film: Path | str, target: Path | str, start: float = 0.4, stop: float = 0.6) -> Path:
    """Copies a film with the bytes between two shares of its length replaced by noise of a fixed seed."""
    data = bytearray(Path(film).read_bytes())
    first, last = int(len(data) * start), int(len(data) * stop)
    data[first:last] = np.random.default_rng(0).integers(0, 256, last - first, dtype=np.uint8).tobytes()
    Path(target).write_bytes(bytes(data))
    return Path(target)


def without_index(film: Path | str, target: Path | str) -> Path:
    """Copies an mp4 with its ``moov`` box spoiled, like a download cut off before an index written last."""
    Path(target).write_bytes(Path(film).read_bytes().replace(b"moov", b"lost", 1))
    return Path(target)
