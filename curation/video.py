"""Reading films: what a file holds, its frames in the order FFmpeg counts them, and its sound by time.

Everything goes through PyAV, whose wheel carries FFmpeg. One clock serves pictures and sound: seconds from the start of
the film's first picture, read from the presentation time stamps, so variable frame rates and late-starting sound stay
right.

Damage: pictures that decode before it are delivered. When the film ends before 98 % of the length its container
declares, or when more than 2 % of its packets cannot be decoded, reading ends with
:class:`~animeshooter_dataset.DataError` instead of quietly delivering part of a film.

Interlaced pictures, those whose decoder says so, are made whole by FFmpeg's bwdif filter, one picture for each: the number of
frames and their times stay as they are. Combed pictures would be scaled, compared and learned from as if the combs were drawn.
"""

from __future__ import annotations

import itertools
import platform
from collections import deque
from collections.abc import Iterator
from contextlib import suppress
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

from curation.container import (
    CONTAINERS,
    Damage,
    declared_duration,
    first_frame,
    first_frames,
    measured_duration,
    open_film,
    sound_stream,
)

__all__ = [
    "CONTAINERS",
    "EXTENSIONS",
    "X264_REPRODUCIBLE",
    "Frame",
    "RgbScaler",
    "VideoInfo",
    "decode",
    "fit_short_side",
    "probe",
    "read_audio",
    "read_frames",
]

STEADY_PACKETS = 240
"""Packets whose time stamps are looked at to tell a variable frame rate."""
UNSTEADY = 0.01
"""Share of distances between pictures that differ from the usual one in a film of variable frame rate."""
AUDIO_PREROLL = 0.5
"""Seconds of sound decoded before the wanted start: transform codecs need their predecessor to settle."""
AUDIO_JITTER = 0.005
"""Seconds by which a sound frame's time stamp may differ from the end of the frame before and still count as joined to
it (Matroska and FLV round time stamps to milliseconds)."""
EXTENSIONS = frozenset(
    ".3gp .avi .flv .gif .ivf .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .nut .ogv .ts .webm .wmv .y4m".split()
)
"""What counts as a film inside a folder; a file that is named itself is tried whatever its extension."""

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
        variable_frame_rate: Whether the distances of the pictures differ: measured on the time stamps of the first packets, and
            by whether the container's average rate is another than theirs. Films drawn at 24 that repeat pictures to come at
            30 a second are steady; those that leave repeated pictures out are not.
        interlaced: Whether the stream or one of its first pictures is marked as two fields of different moments.
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
    variable_frame_rate: bool = False
    interlaced: bool = False


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
    with open_film(path) as (container, stream):
        pictures = first_frames(container, stream, Path(path))
        first = pictures[0]
        rotation = round(first.rotation / 90) * 90 % 360
        aspect = stream.sample_aspect_ratio or Fraction(1)
        width, height = max(1, round(first.width * aspect)), first.height
        if rotation in (90, 270):
            width, height = height, width
        rate = stream.average_rate or stream.guessed_rate
        duration = declared_duration(container, stream, first.pts)
        if not duration and container.format.name in ("mpegts", "mpeg") and stream.duration:
            duration = float(stream.duration * stream.time_base)  # of its own: found from the last packets of each stream
        duration = duration or (container.duration or 0) / av.time_base or measured_duration(path)
        if not rate:
            rate = Fraction(stream.frames or 1) / Fraction(duration or 1).limit_denominator(1000)
        audio = sound_stream(container)
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
            variable_frame_rate=_is_variable(path, stream.average_rate),
            interlaced=any(picture.interlaced_frame for picture in pictures),
        )


def _is_variable(path: Path | str, average: Fraction | None) -> bool:
    """Whether a film's pictures come at differing distances, see :class:`VideoInfo`."""
    with open_film(path) as (container, stream):
        packets: list[Any] = []
        with suppress(av.error.FFmpegError, OSError):
            packets.extend(itertools.islice(container.demux(stream), STEADY_PACKETS))
        shown = [packet.pts for packet in packets if packet.pts is not None]
        coded = [packet.dts for packet in packets if packet.dts is not None]
        stamps = shown if 2 * len(shown) > len(coded) else coded  # AVI notes only the order of decoding
        tick = float(stream.time_base)
    # Packets come in the order of decoding: behind the last ones lie pictures that are shown before them
    ordered = sorted(set(stamps))[: -16 if len(stamps) == STEADY_PACKETS else None]
    gaps = np.diff(ordered)
    if len(gaps) < 2:
        return False
    usual = float(np.median(gaps))
    if np.mean(np.abs(gaps - usual) > max(1.0, 0.02 * usual)) > UNSTEADY:
        return True
    rate = 1 / (float(gaps.mean()) * tick)
    return bool(average) and abs(rate / float(average or 1) - 1) > max(0.02, 2 / len(gaps))


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
    with open_film(path) as (container, stream):
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "FRAME" if threads > 1 else "SLICE"
        tick = float(stream.time_base)
        step = 1.0 / float(stream.average_rate or stream.guessed_rate or 25)
        damage = Damage(Path(path))
        upright = _Upright()
        origin: int | None = None
        index, time, length = 0, -step, step
        for frame in _whole_pictures(damage.frames(container, stream), stream):
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
        damage.judge(None if complete else declared_duration(container, stream, origin))


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
    with open_film(path) as (container, stream):
        audio = sound_stream(container)
        if audio is None or last == first:
            return out
        origin = float((first_frame(container, stream, Path(path)).pts or 0) * stream.time_base)
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


def _whole_pictures(frames: Iterator[av.VideoFrame], stream: Any) -> Iterator[av.VideoFrame]:
    """Passes pictures on in their order and with their times; from the first interlaced one on, through bwdif."""
    graph: Any = None
    key: tuple[int, int, str] | None = None
    times: deque[tuple[int | None, int | None]] = deque()

    def pull() -> Iterator[av.VideoFrame]:
        while times:
            try:
                frame = graph.pull()
            except (av.error.BlockingIOError, av.error.EOFError):
                return
            frame.pts, frame.duration = times.popleft()
            frame.time_base = stream.time_base
            yield frame

    for frame in frames:
        if graph is None and not frame.interlaced_frame:
            yield frame
            continue
        if key != (key := (frame.width, frame.height, frame.format.name)):
            if graph is not None:
                graph.push(None)
                yield from pull()
            graph = _graph(frame, stream, "bwdif=mode=send_frame:deint=interlaced")
        times.append((frame.pts, frame.duration))
        graph.push(frame)
        yield from pull()
    if graph is not None:
        graph.push(None)
        yield from pull()


def _graph(frame: av.VideoFrame, stream: Any, *filters: str) -> Any:
    """A chain of FFmpeg's filters for pictures like ``frame``."""
    graph = av.filter.Graph()
    graph.threads = 1
    nodes = [graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=stream.time_base)]
    for text in filters:
        name, _, argument = text.partition("=")
        nodes.append(graph.add(name, argument or None))
    nodes.append(graph.add("buffersink"))
    graph.link_nodes(*nodes)
    graph.configure()
    return graph


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
            self._graph, self._key = _graph(frame, stream, *self._FILTERS[angle]), key
        self._graph.push(frame)
        return self._graph.pull()


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
