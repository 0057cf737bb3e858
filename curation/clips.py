"""Stage ``clips``: shots become files of their own, cut to the frame, at training size, with their sound.

A film is decoded once from start to end whatever the number of clips, so a clip's frames are the film's frames by count and
not by seeking. Every frame keeps its time stamp (variable frame rates stay), the first becomes zero. The last frame is a key
frame like the first: the model's memory of a shot is its last frame, and an encoder spends least on what nothing refers to. The
encoder's settings, its thread count among them, are part of the configuration: equal settings give equal bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.frame import PictureType
from av.video.reformatter import Interpolation, VideoReformatter

from curation.collect import Film
from curation.cuts import FilmCuts, Span
from curation.video import X264_REPRODUCIBLE, RgbScaler, decode, fit_short_side, read_audio

TICKS = 90_000
"""Time stamps a second in a clip; a multiple of every usual frame rate."""
SOUND_RATE = 48_000
SOUND_PIECE = 10.0
"""Seconds of sound encoded at a time, so that memory does not grow with the shot and sound lies beside its pictures."""


EASY_TO_DECODE = {"coder": "cavlc", "b-pyramid": "none"}
"""What x264 leaves out, arithmetic coding and B-frames that others refer to: shots decode 1.5 times as fast, for 12 % more
bytes at the same likeness (``benchmarks.decoding``). Its "fastdecode" decodes 1.7 times as fast, but without the deblocking
that flat drawn areas need."""


@dataclass(frozen=True)
class ClipConfig:
    """How clips are stored.

    Attributes:
        short_side: pixels of the shorter side; films that are smaller keep their size.
        crf: constant rate factor of x264; 18 is visually lossless for most material.
        preset: speed preset of x264.
        keyframe_interval: frames from one key frame to the next, so that a window inside a long shot is reached quickly.
        threads: encoder threads. x264's output depends on their number, so it is a setting and not the machine's core count.
        audio_bitrate: bits a second of the AAC track.
    """

    short_side: int = 480
    crf: int = 18
    preset: str = "veryfast"
    keyframe_interval: int = 48
    threads: int = 2
    audio_bitrate: int = 128_000


@dataclass(frozen=True)
class ClipSpan:
    """A stretch of film to store as ``path``; ``end_frame`` is exclusive, times are seconds from the film's first frame."""

    path: Path
    start_frame: int
    end_frame: int
    start_time: float
    end_time: float


@dataclass(frozen=True)
class ClipInfo:
    """What a stored clip decodes to."""

    frames: int
    fps: float
    height: int
    width: int
    has_audio: bool


@dataclass(frozen=True)
class FilmShots:
    """A film's shots as the later stages need them; ``clips`` and ``infos`` are the stored clip of each."""

    film: Film
    cuts: FilmCuts
    spans: Sequence[Span]
    times: Sequence[float]
    clips: Sequence[Path]
    infos: Sequence[ClipInfo]


def cut_clips(film: Film, spans: Sequence[ClipSpan], config: ClipConfig) -> list[ClipInfo]:
    """Store stretches of a film, which may overlap, in one pass over it.

    Returns:
        One entry a span, in their order.

    Raises:
        DataError: the film turns out to be damaged.
        OSError: a clip cannot be written.
    """
    waiting = sorted(range(len(spans)), key=lambda number: spans[number].start_frame, reverse=True)
    size = fit_short_side(film.info.width, film.info.height, config.short_side)
    scaler = VideoReformatter()
    writers: dict[int, _ClipWriter] = {}
    infos: dict[int, ClipInfo] = {}
    for index, time, frame in decode(film.path, threads=config.threads):
        while waiting and spans[waiting[-1]].start_frame <= index:
            number = waiting.pop()
            writers[number] = _ClipWriter(film, spans[number], size, config, like=frame)
        if writers:
            picture = scaler.reformat(
                frame,
                *size,
                format="yuv420p",
                interpolation=Interpolation.BICUBIC | Interpolation.ACCURATE_RND,
                threads=1,
            )
        for number in list(writers):
            writers[number].add(time, picture)
            if index + 1 == spans[number].end_frame:
                infos[number] = writers.pop(number).close()
        if not writers and not waiting:
            break
    return [infos[number] for number in range(len(spans))]


class _ClipWriter:
    """One clip being written."""

    def __init__(self, film: Film, span: ClipSpan, size: tuple[int, int], config: ClipConfig, like: av.VideoFrame) -> None:
        self.film, self.span, self.size = film, span, size
        self.frames, self.last_tick, self.sound_until = 0, -1, span.start_time
        self.container: Any = av.open(
            str(span.path), "w", format="mp4", options={"fflags": "+bitexact", "movflags": "+faststart"}
        )
        self.video = self.container.add_stream("libx264", rate=self._rate(span))
        self.video.width, self.video.height, self.video.pix_fmt = *size, "yuv420p"
        self.video.time_base = self.video.codec_context.time_base = Fraction(1, TICKS)
        self.video.codec_context.thread_count = config.threads
        self.video.codec_context.gop_size = config.keyframe_interval
        self.video.codec_context.color_range, self.video.codec_context.colorspace = like.color_range, like.colorspace
        self.video.options = {"crf": str(config.crf), "preset": config.preset, **EASY_TO_DECODE, **X264_REPRODUCIBLE}
        self.sound = None
        if film.info.has_audio:
            self.sound = self.container.add_stream("aac", rate=SOUND_RATE, layout="stereo")
            self.sound.bit_rate = config.audio_bitrate

    @staticmethod
    def _rate(span: ClipSpan) -> Fraction:
        frames = span.end_frame - span.start_frame
        return Fraction(frames / (span.end_time - span.start_time)).limit_denominator(1001)

    def add(self, time: float, picture: av.VideoFrame) -> None:
        """Append a frame; sound is written up to a little beyond it."""
        tick = max(round((time - self.span.start_time) * TICKS), self.last_tick + 1)
        picture.pts, picture.time_base, self.last_tick = tick, Fraction(1, TICKS), tick
        last = self.frames + 1 == self.span.end_frame - self.span.start_frame
        picture.pict_type = PictureType.I if last else PictureType.NONE
        self.container.mux(self.video.encode(picture))
        self.frames += 1
        if time >= self.sound_until:
            self._add_sound(min(self.sound_until + SOUND_PIECE, self.span.end_time))

    def _add_sound(self, until: float) -> None:
        if self.sound is not None and until > self.sound_until:
            samples = read_audio(self.film.path, self.sound_until, until, rate=SOUND_RATE)
            if samples.shape[1]:
                self.container.mux(self.sound.encode(_audio_frame(samples, "fltp")))
        self.sound_until = until

    def close(self) -> ClipInfo:
        """Flush the encoders and finish the file."""
        self._add_sound(self.span.end_time)
        for stream in filter(None, (self.video, self.sound)):
            self.container.mux(stream.encode(None))
        self.container.close()
        seconds = self.span.end_time - self.span.start_time
        width, height = self.size
        return ClipInfo(self.frames, round(self.frames / seconds, 6), height, width, self.sound is not None)


def _audio_frame(samples: np.ndarray, layout_format: str) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(samples), format=layout_format, layout="stereo")
    frame.sample_rate = SOUND_RATE
    return frame


def write_flac(film: Film, span: ClipSpan, path: Path) -> int:
    """Store the sound of a stretch losslessly as ``path``: FLAC, 16 bit, stereo, 48 kHz.

    Returns:
        Number of samples a channel.
    """
    samples = read_audio(film.path, span.start_time, span.end_time, rate=SOUND_RATE)
    packed = (np.clip(samples, -1, 1) * 32767).round().astype(np.int16).T.reshape(1, -1)
    with av.open(str(path), "w", format="flac", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("flac", rate=SOUND_RATE, layout="stereo")
        stream.codec_context.format = "s16"
        container.mux(stream.encode(_audio_frame(packed, "s16")))
        container.mux(stream.encode(None))
    return samples.shape[1]


def sample_clip(clip: Path, start: int, end: int, count: int) -> Iterator[tuple[int, np.ndarray]]:
    """Decode ``count`` frames spread evenly over frames ``start`` to ``end`` (exclusive) of a stored clip.

    Yields:
        Index in the clip and the picture, RGB uint8 [H, W, 3].
    """
    count = min(count, end - start)
    wanted = {start + int((step + 0.5) * (end - start) / count) for step in range(count)}
    to_rgb = None
    for index, _, frame in decode(clip):
        to_rgb = to_rgb or RgbScaler((frame.width, frame.height))
        if index in wanted:
            yield index, to_rgb(frame)
        if index >= max(wanted):
            break
