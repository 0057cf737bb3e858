"""The parts of a question: text, pictures, film, sound; and how they go out to an OpenAI-compatible server."""

from __future__ import annotations

import base64
import hashlib
import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture, RGB uint8 [H, W, 3]."""

    image: np.ndarray


@dataclass(frozen=True, eq=False)
class Film:
    """A silent film: RGB uint8 frames [H, W, 3] of one size, ``fps`` of them a second."""

    frames: Sequence[np.ndarray]
    fps: float


@dataclass(frozen=True, eq=False)
class Sound:
    """A stretch of sound: float in [-1, 1], shape (channels, samples), at ``rate`` samples a second."""

    samples: np.ndarray
    rate: int


Part = str | Picture | Film | Sound


def digest(part: Part) -> bytes:
    """Hash of everything a part shows, whatever the encoder later makes of it."""
    if isinstance(part, str):
        return hashlib.sha256(b"text" + part.encode("utf-8", "surrogatepass")).digest()
    if isinstance(part, Sound):
        head, arrays = f"sound {part.rate}", [part.samples]
    elif isinstance(part, Film):
        head, arrays = f"film {part.fps!r}", list(part.frames)
    else:
        head, arrays = "picture", [part.image]
    whole = hashlib.sha256(head.encode())
    for array in arrays:
        whole.update(f"{array.dtype} {array.shape}".encode())
        whole.update(np.ascontiguousarray(array).tobytes())
    return whole.digest()


def as_json(part: Part, width: int) -> dict[str, Any]:
    """A part as chat completions take it; pictures and films at most ``width`` pixels wide."""
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if isinstance(part, Picture):
        stored = io.BytesIO()
        scaled(part.image, width).save(stored, "JPEG", quality=85)
        return {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{_base64(stored.getvalue())}"}}
    if isinstance(part, Film):
        return {"type": "video_url", "video_url": {"url": f"data:video/mp4;base64,{_base64(_mp4(part, width))}"}}
    return {"type": "input_audio", "input_audio": {"data": _base64(_wav(part)), "format": "wav"}}


def scaled(image: np.ndarray, width: int) -> Image.Image:
    """A picture at most ``width`` pixels wide, its aspect kept."""
    picture = Image.fromarray(image)
    if picture.width > width:
        picture = picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)
    return picture


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _wav(sound: Sound) -> bytes:
    """16-bit PCM."""
    stored = io.BytesIO()
    with wave.open(stored, "wb") as file:
        file.setnchannels(sound.samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(sound.rate)
        file.writeframes(np.round(np.clip(sound.samples, -1, 1) * 32767).astype("<i2").T.tobytes())
    return stored.getvalue()


def _mp4(film: Film, width: int) -> bytes:
    """H.264 in MP4, which every server's reader knows."""
    import av

    from curation.video import X264_REPRODUCIBLE

    pictures = [scaled(frame, width) for frame in film.frames]
    wide, high = (max(2, side - side % 2) for side in pictures[0].size)
    stored = io.BytesIO()
    with av.open(stored, "w", format="mp4", options={"fflags": "+bitexact"}) as container:
        stream: Any = container.add_stream("libx264", rate=Fraction(film.fps).limit_denominator(1000))
        stream.width, stream.height, stream.pix_fmt = wide, high, "yuv420p"
        stream.codec_context.thread_count = 1
        stream.options = {"crf": "23", "preset": "veryfast", **X264_REPRODUCIBLE}
        for picture in pictures:
            frame = av.VideoFrame.from_image(picture.crop((0, 0, wide, high)))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return stored.getvalue()
