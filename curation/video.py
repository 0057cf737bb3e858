"""Reading films: what a file holds, its frames in the order FFmpeg counts them, and its sound by time.

Everything goes through PyAV, whose wheel carries FFmpeg. One clock serves pictures and sound: seconds from the start of
the film's first picture, read from the presentation time stamps, so variable frame rates and late-starting sound stay
right.

Damage: pictures that decode before it are delivered. When the film ends before 98 % of the length its container
declares, or when more than 2 % of its packets cannot be decoded, reading ends with
:class:`~animeshooter_dataset.DataError` instead of quietly delivering part of a film.
"""

from __future__ import annotations

import itertools
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar

import av
import av.error
import av.filter
import av.logging
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from animeshooter_dataset import DataError

MIN_DECODED = 0.98
"""Share of the declared duration that must decode; less is a truncated film."""
MAX_DAMAGED = 0.02
"""Share of packets that may fail to decode; a decoder conceals a lost packet, as players do."""
AUDIO_PREROLL = 0.5
"""Seconds of sound decoded before the wanted start: transform codecs need their predecessor to settle."""
AUDIO_JITTER = 0.005
"""Seconds by which a sound frame's time stamp may differ from the end of the frame before and still count as joined to
it (Matroska and FLV round time stamps to milliseconds)."""
CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,mxf,nut,ivf,yuv4mpegpipe,h264,hevc"
"""FFmpeg demuxers allowed. Playlists, concatenation scripts and picture lists are not: they may name other files."""

X264_REPRODUCIBLE = {"x264-params": "asm=SSE4.2"} if platform.machine() in ("x86_64", "AMD64") else {}
"""Encoder options under which x264 gives the same bytes every time and on every x86-64 machine: its AVX-512 code for rate
control does not (seen with the x264 inside PyAV 18.1: up to 8 different files in 8 runs). It costs no measurable time."""


@dataclass(frozen=True)
class VideoInfo:
    """What a film's container says, with the first picture looked at.

    Attributes:
        path: The file.
        width: Width in pixels as displayed: rotation applied, pixels made square.
        height: Height in pixels as displayed.
        fps: Average frame rate.
        fps_fraction: The same as an exact fraction (numerator, denominator), e.g. (30000, 1001).
        n_frames: Number of frames the container claims; None when it does not say.
        duration: Length of the video stream in seconds.
        has_audio: Whether there is a sound stream.
        codec: FFmpeg's name of the video codec, e.g. ``h264``.
        rotation: Counter-clockwise rotation in degrees that display applies: 0, 90, 180 or 270.
        audio_rate: Sampling rate of the sound in Hz; None without sound.
        audio_channels: Number of sound channels; None without sound.
    """

    path: Path
    width: int
    height: int
    fps: float
    fps_fraction: tuple[int, int]
    n_frames: int | None
    duration: float
    has_audio: bool
    codec: str
    rotation: int
    audio_rate: int | None
    audio_channels: int | None


@dataclass
class Frame:
    """One picture of a film.

    Attributes:
        index: Presentation order from 0, as FFmpeg counts.
        pts: Seconds from the film's first picture; strictly increasing.
        image: RGB, uint8, shape (height, width, 3).
    """

    index: int
    pts: float
    image: np.ndarray


def probe(path: Path | str) -> VideoInfo:
    """Reads a film's properties and its first picture.

    Args:
        path: The film.

    Returns:
        Its properties.

    Raises:
        DataError: The file is missing, empty, no film, cut off before its index, or no picture decodes.
    """
    with _open(path) as (container, stream):
        first = _first_frame(container, stream, Path(path))
        rotation = round(first.rotation / 90) * 90 % 360
        aspect = stream.sample_aspect_ratio or Fraction(1)
        width, height = max(1, round(first.width * aspect)), first.height
        if rotation in (90, 270):
            width, height = height, width
        rate = stream.average_rate or stream.guessed_rate
        duration = _declared_duration(container, stream, first.pts)
        duration = duration or (container.duration or 0) / av.time_base or _measured_duration(path)
        if not rate:
            rate = Fraction(stream.frames or 1) / Fraction(duration or 1).limit_denominator(1000)
        audio = _sound_stream(container)
        return VideoInfo(
            path=Path(path),
            width=width,
            height=height,
            fps=float(rate),
            fps_fraction=(rate.numerator, rate.denominator),
            n_frames=stream.frames or None,
            duration=duration or float((stream.frames or 1) / rate),
            has_audio=audio is not None,
            codec=stream.codec_context.name,
            rotation=rotation,
            audio_rate=audio.codec_context.sample_rate if audio else None,
            audio_channels=audio.codec_context.layout.nb_channels if audio else None,
        )


def decode(path: Path | str, *, threads: int = 1) -> Iterator[tuple[int, float, av.VideoFrame]]:
    """Decodes a film from its first frame to its last.

    Args:
        path: The film.
        threads: Decoder threads; several processes gain more than several threads.

    Yields:
        Index (from 0, as FFmpeg counts), time in seconds from the first frame (strictly increasing), and the picture
        as stored: turned upright, in the codec's pixel format and pixel aspect (display size: :func:`probe`).

    Raises:
        DataError: The film cannot be opened; or, after its last usable frame, it is damaged or truncated (see above).
    """
    with _open(path) as (container, stream):
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "FRAME" if threads > 1 else "SLICE"
        tick = float(stream.time_base)
        step = 1.0 / float(stream.average_rate or stream.guessed_rate or 25)
        damage = _Damage(Path(path))
        upright = _Upright()
        origin: int | None = None
        index, time, length = 0, -step, step
        for frame in damage.frames(container, stream):
            if frame.pts is None:
                time += step
            else:
                origin = frame.pts if origin is None else origin
                now = float((frame.pts - origin) * stream.time_base)
                length = step if frame.duration is None else float(frame.duration * stream.time_base) or step
                before, time = time, now if index == 0 or now > time else time + tick
                damage.longest = max(damage.longest, time - before)
            damage.index, damage.time = index + 1, time + length
            yield index, time, upright(frame, stream)
            index += 1
        complete = bool(stream.frames) and index >= stream.frames
        damage.judge(None if complete else _declared_duration(container, stream, origin))


def read_frames(path: Path | str, *, size: tuple[int, int] | None = None, threads: int = 1) -> Iterator[Frame]:
    """Decodes a film to RGB pictures, optionally scaled.

    Args:
        path: The film.
        size: (width, height) to scale to; None for the display size. Downscaling averages areas, upscaling is bicubic.
        threads: Decoder threads.

    Yields:
        Every frame in order.

    Raises:
        DataError: As :func:`decode`.
    """
    to_rgb = RgbScaler(size or _display_size(path))
    for index, time, frame in decode(path, threads=threads):
        yield Frame(index, time, to_rgb(frame))


class RgbScaler:
    """Scales decoded pictures to RGB arrays of one size, keeping the scaler's tables between frames.

    Args:
        size: (width, height) of the result.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.size = size
        self._reformatter = VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> np.ndarray:
        """Returns the picture as uint8 RGB of shape (height, width, 3)."""
        width, height = self.size
        kernel = Interpolation.AREA if width * 2 <= frame.width else Interpolation.BICUBIC
        scaled = self._reformatter.reformat(
            frame,
            width=width,
            height=height,
            format="rgb24",
            interpolation=kernel | Interpolation.ACCURATE_RND | Interpolation.BITEXACT,
            threads=1,
        )
        return scaled.to_ndarray()


def read_audio(path: Path | str, start: float, end: float, *, rate: int = 48000, channels: int = 2) -> np.ndarray:
    """Reads the sound of a stretch of film.

    The result always has ``round(end * rate) - round(start * rate)`` samples, so the sounds of adjacent shots join
    without gap or overlap. Where the film has no sound (no stream, before its start, after its end, gaps, undecodable
    packets) the samples are zero; :func:`probe` says whether there is a sound stream at all.

    Args:
        path: The film.
        start: First second, counted from the film's first picture.
        end: Second after the last; not before ``start``.
        rate: Sampling rate of the result in Hz.
        channels: 1 or 2; other layouts are mixed down by FFmpeg's rules.

    Returns:
        float32 in about [-1, 1], shape (channels, samples).

    Raises:
        DataError: The film cannot be opened.
        ValueError: Bad ``start``, ``end`` or ``channels``.
    """
    if channels not in (1, 2) or not 0 <= start <= end:
        raise ValueError(f"read_audio: need 0 <= start <= end and 1 or 2 channels, got {start}, {end}, {channels}")
    first, last = round(start * rate), round(end * rate)
    out = np.zeros((channels, last - first), np.float32)
    with _open(path) as (container, stream):
        audio = _sound_stream(container)
        if audio is None or last == first:
            return out
        origin = float((_first_frame(container, stream, Path(path)).pts or 0) * stream.time_base)
        pieces = _sound_pieces(container, audio, origin + start - AUDIO_PREROLL, origin + end + AUDIO_PREROLL)
        for native_rate, layout, time, samples in pieces:
            resampled = _resample(samples, native_rate, layout, rate, channels)
            at = round((time - origin) * rate) - first
            lo, hi = max(at, 0), min(at + resampled.shape[1], out.shape[1])
            if lo < hi:
                out[:, lo:hi] = resampled[:, lo - at : hi - at]
    return out


def fit_short_side(width: int, height: int, short_side: int) -> tuple[int, int]:
    """Scales a size down so that its short side is at most ``short_side``.

    Args:
        width: Pixels.
        height: Pixels.
        short_side: Wanted short side.

    Returns:
        (width, height), both even (chroma is stored at half size), aspect kept to the nearest even number, never
        enlarged except that a side is at least 2.
    """
    if min(width, height, short_side) < 1:
        raise ValueError(f"sizes must be positive, got {width} x {height}, short side {short_side}")
    scale = min(1.0, short_side / min(width, height))

    def even(side: int) -> int:
        return max(2, min(round(side * scale / 2) * 2, side // 2 * 2))

    return even(width), even(height)


class _Damage:
    """Decodes packet by packet, goes on past undecodable ones as players do, and judges the film at its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.packets = self.failed = self.index = 0
        self.time = self.longest = 0.0  # seconds: end of the last frame, longest wait for a frame
        self.first: tuple[int, float] | None = None

    def frames(self, container: Any, stream: Any) -> Iterator[av.VideoFrame]:
        packets = container.demux(stream)
        while True:
            try:
                packet = next(packets, None)
            except (av.error.FFmpegError, OSError):
                self._note()
                packet = None
            if packet is None:
                return
            self.packets += 1
            try:
                yield from packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                self._note()

    def _note(self) -> None:
        self.failed += 1
        self.first = self.first or (self.index, self.time)

    def judge(self, declared: float | None) -> None:
        if self.index == 0:
            raise DataError(f"{self.path}: no picture decodes; the file is damaged: fetch it again")
        # A last frame whose length nobody wrote down may stand as long as any before it
        if declared and self.time + self.longest < MIN_DECODED * declared:
            raise DataError(
                f"{self.path}: truncated: the container declares {declared:.2f} s of film, the last of its "
                f"{self.index} decodable frames ends at {self.time:.2f} s; fetch the file again"
            )
        if self.first and self.failed > MAX_DAMAGED * self.packets:
            raise DataError(
                f"{self.path}: damaged: {self.failed} of {self.packets} packets do not decode, the first at frame "
                f"{self.first[0]} ({self.first[1]:.2f} s); fetch the file again"
            )


class _Upright:
    """Turns pictures by their display matrix, through FFmpeg's own filters."""

    _FILTERS: ClassVar = {90: ("transpose=cclock",), 180: ("hflip", "vflip"), 270: ("transpose=clock",)}

    def __init__(self) -> None:
        self._graph: Any = None
        self._key: Any = None

    def __call__(self, frame: av.VideoFrame, stream: Any) -> av.VideoFrame:
        angle = round(frame.rotation / 90) * 90 % 360
        if angle == 0:
            return frame
        key = (angle, frame.width, frame.height, frame.format.name)
        if key != self._key:
            graph = av.filter.Graph()
            source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base)
            nodes = [source]
            for text in self._FILTERS[angle]:
                name, _, argument = text.partition("=")
                nodes.append(graph.add(name, argument or None))
            nodes.append(graph.add("buffersink"))
            graph.link_nodes(*nodes)
            graph.configure()
            self._graph, self._key = graph, key
        self._graph.push(frame)
        return self._graph.pull()


@contextmanager
def _open(path: Path | str) -> Iterator[tuple[Any, Any]]:
    """Opens a film; yields its container and its main video stream."""
    path = Path(path)
    if not path.is_file():
        reason = "is a directory, not a film" if path.is_dir() else "no such file"
        raise DataError(f"{path}: {reason}; name a film file")
    if path.stat().st_size == 0:
        raise DataError(f"{path}: the file is empty; fetch it again")
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        container = av.open(str(path.resolve()), container_options=options, metadata_errors="replace")
    except PermissionError as error:
        raise DataError(f"{path}: cannot be read (permission denied); change its permissions") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DataError(
            f"{path}: not a film that can be read (unknown format, or a download cut off before its index); "
            "fetch it again or convert it to mp4"
        ) from error
    with container:
        yield container, _main_stream(container, path)


def _main_stream(container: Any, path: Path) -> Any:
    stream = container.streams.best("video")
    if stream is None or "attached_pic" in str(stream.disposition).lower():
        raise DataError(f"{path}: holds no video stream; name a film, not a sound file")
    if stream.codec_context is None:
        raise DataError(f"{path}: this build of FFmpeg has no decoder for its video; convert it to h264 in mp4")
    return stream


def _sound_stream(container: Any) -> Any:
    stream = container.streams.best("audio")
    return stream if stream is not None and stream.codec_context is not None else None


def _first_frame(container: Any, stream: Any, path: Path) -> av.VideoFrame:
    for frame in _Damage(path).frames(container, stream):
        return frame
    raise DataError(f"{path}: no picture decodes; the file is damaged or cut off: fetch it again")


def _declared_duration(container: Any, stream: Any, origin: int | None) -> float | None:
    """Length in seconds of a stream that starts at ``origin`` by its container's word, None where that says nothing."""
    kind, start = container.format.name, float((origin or 0) * stream.time_base)
    if "matroska" in kind:  # keeps each stream's end, not its length, in a tag: "00:01:02.345000000"
        parts = stream.metadata.get("DURATION", "").split(":")
        try:
            hours, minutes, seconds = parts
            return max(0.0, int(hours) * 3600 + int(minutes) * 60 + float(seconds) - start) or None
        except ValueError:
            return None
    # Others have one length for all streams, which FFmpeg copies to each: sound may well outlast the pictures
    if stream.duration and ("mov" in kind or kind == "avi" or len(container.streams) == 1):
        return float(stream.duration * stream.time_base)
    return None


def _measured_duration(path: Path | str) -> float | None:
    """Length in seconds from the last packet's time stamp, for containers that declare none."""
    last = 0.0
    with _open(path) as (container, stream):
        origin = stream.start_time or 0
        try:
            for packet in container.demux(stream):
                if packet.pts is not None:
                    last = max(last, float((packet.pts - origin + (packet.duration or 0)) * stream.time_base))
        except (av.error.FFmpegError, OSError):
            pass
    return last or None


def _display_size(path: Path | str) -> tuple[int, int]:
    info = probe(path)
    return info.width, info.height


def _sound_pieces(container: Any, stream: Any, start: float, end: float) -> Iterator[tuple[int, str, float, np.ndarray]]:
    """Joins decoded sound frames to unbroken pieces of [start, end], container time.

    Yields:
        Rate, channel layout, time of the first sample, samples as float32 of shape (channels, samples).
    """
    try:
        container.seek(max(0, int(start / stream.time_base)), stream=stream, backward=True)
    except av.error.FFmpegError:
        container.seek(0)
    key: tuple[int, str] | None = None
    begin = expected = 0.0
    parts: list[np.ndarray] = []
    for frame in _sound_frames(container, stream):
        time = expected if frame.pts is None else float(frame.pts * frame.time_base)
        if time >= end:
            break
        if time + frame.samples / frame.sample_rate <= start:
            continue
        if parts and ((frame.sample_rate, frame.layout.name) != key or abs(time - expected) > AUDIO_JITTER):
            yield *key, begin, np.concatenate(parts, axis=1)  # type: ignore[misc]
            parts = []
        if not parts:
            begin = expected = time
        key = (frame.sample_rate, frame.layout.name)
        expected += frame.samples / frame.sample_rate
        parts.append(_planar_float(frame))
    if parts and key:
        yield *key, begin, np.concatenate(parts, axis=1)


def _sound_frames(container: Any, stream: Any) -> Iterator[av.AudioFrame]:
    try:
        for packet in container.demux(stream):
            try:
                yield from packet.decode()
            except av.error.EOFError:
                return
            except av.error.FFmpegError:
                continue  # lost sound is silence, see read_audio
    except (av.error.FFmpegError, OSError):
        return


def _planar_float(frame: av.AudioFrame) -> np.ndarray:
    """Samples of a frame as float32, shape (channels, samples)."""
    resampler = av.AudioResampler(format="fltp", layout=frame.layout, rate=frame.sample_rate)
    frame.pts = None
    parts = [piece.to_ndarray() for piece in itertools.chain(resampler.resample(frame), resampler.resample(None))]
    return np.concatenate(parts, axis=1)


def _resample(samples: np.ndarray, rate: int, layout: str, new_rate: int, channels: int) -> np.ndarray:
    """Converts rate and layout of one piece of sound; the first sample keeps its time."""
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout=layout)
    frame.sample_rate = rate
    resampler = av.AudioResampler(format="fltp", layout="mono" if channels == 1 else "stereo", rate=new_rate)
    parts = [piece.to_ndarray() for piece in itertools.chain(resampler.resample(frame), resampler.resample(None))]
    return np.concatenate(parts, axis=1)
