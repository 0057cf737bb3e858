"""Opening films safely: which files are read at all, which of their streams count, and when damage ends the reading."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import av
import av.error
from av.stream import Disposition

from animeshooter_dataset import DataError
from curation.lines import one_line

MIN_DECODED = 0.98
"""Share of the declared duration that must decode; less is a truncated film."""
MAX_DAMAGED = 0.02
"""Share of packets that may fail to decode; a decoder conceals a lost packet, as players do."""
CONTAINERS = "mov,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf,gif,mxf,nut,ivf,yuv4mpegpipe,h264,hevc"
"""FFmpeg demuxers allowed. Playlists, concatenation scripts and picture lists are not: they may name other files."""


class Damage:
    """Decodes packet by packet, goes on past undecodable ones as players do, and judges the film at its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = one_line(path)
        self.packets = self.failed = self.index = 0
        self.time = self.longest = 0.0  # seconds: end of the last frame, longest wait for a frame
        self.first: tuple[int, float] | None = None

    def frames(self, container: Any, stream: Any) -> Iterator[av.VideoFrame]:
        """The pictures that decode, in order; set :attr:`index` and :attr:`time` as they are used."""
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
        """Say whether what was decoded is the film.

        Args:
            declared: length in seconds by the container's word, if it says.

        Raises:
            DataError: it is not.
        """
        if self.index == 0:
            raise DataError(f"{self.name}: no picture decodes; the file is damaged: fetch it again")
        # A last frame whose length nobody wrote down may stand as long as any before it
        if declared and self.time + self.longest < MIN_DECODED * declared:
            raise DataError(
                f"{self.name}: truncated: the container declares {declared:.2f} s of film, the last of its "
                f"{self.index} decodable frames ends at {self.time:.2f} s; fetch the file again"
            )
        if self.first and self.failed > MAX_DAMAGED * self.packets:
            raise DataError(
                f"{self.name}: damaged: {self.failed} of {self.packets} packets do not decode, the first at frame "
                f"{self.first[0]} ({self.first[1]:.2f} s); fetch the file again"
            )


@contextmanager
def open_film(path: Path | str) -> Iterator[tuple[Any, Any]]:
    """Opens a film; yields its container and its main video stream."""
    path = Path(path)
    name = one_line(path)
    if not path.is_file():
        reason = "is a directory, not a film" if path.is_dir() else "is no file" if path.exists() else "no such file"
        raise DataError(f"{name}: {reason}; name a film file")
    if path.stat().st_size == 0:
        raise DataError(f"{name}: the file is empty; fetch it again")
    with _opened(path) as container:
        yield container, _main_stream(container, name)


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    name = one_line(path)
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
    try:
        container = av.open(str(path.resolve()), container_options=options, metadata_errors="replace")
    except PermissionError as error:
        raise DataError(f"{name}: cannot be read (permission denied); change its permissions") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise DataError(
            f"{name}: not a film that can be read (unknown format, or a download cut off before its index); "
            "fetch it again or convert it to mp4"
        ) from error
    with container:
        yield container


def _main_stream(container: Any, name: str) -> Any:
    stream = container.streams.best("video")
    if stream is None or stream.disposition & Disposition.attached_pic:  # the picture on the sleeve of a record
        raise DataError(f"{name}: holds no video stream; name a film, not a sound file")
    if stream.codec_context is None:
        raise DataError(f"{name}: this build of FFmpeg has no decoder for its video; convert it to h264 in mp4")
    return stream


def sound_stream(container: Any) -> Any:
    """The main sound stream, None without one that can be decoded."""
    stream = container.streams.best("audio")
    return stream if stream is not None and stream.codec_context is not None else None


def first_frame(container: Any, stream: Any, path: Path) -> av.VideoFrame:
    """The first picture that decodes; see :func:`first_frames`."""
    return first_frames(container, stream, path, 1)[0]


def first_frames(container: Any, stream: Any, path: Path, count: int = 8) -> list[av.VideoFrame]:
    """The first pictures that decode, at least one.

    Raises:
        DataError: none does.
    """
    found = list(itertools.islice(Damage(path).frames(container, stream), count))
    if found:
        return found
    raise DataError(f"{one_line(path)}: no picture decodes; the file is damaged or cut off: fetch it again")


def declared_duration(container: Any, stream: Any, origin: int | None) -> float | None:
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


def measured_duration(path: Path | str) -> float | None:
    """Length in seconds from the last packet's time stamp, for containers that declare none."""
    last = 0.0
    with open_film(path) as (container, stream):
        origin = stream.start_time or 0
        try:
            for packet in container.demux(stream):
                if packet.pts is not None:
                    last = max(last, float((packet.pts - origin + (packet.duration or 0)) * stream.time_base))
        except (av.error.FFmpegError, OSError):
            pass
    return last or None


def join(picture: Path, sound: Path, target: Path) -> None:
    """Store the picture of one file and the sound of another in one, as they are, without encoding.

    Raises:
        DataError: one of them holds no such stream, or the container cannot take it.
    """
    name = one_line(target)
    with _opened(picture) as seen, _opened(sound) as heard, av.open(str(target), "w") as joined:
        sources = (_main_stream(seen, one_line(picture)), sound_stream(heard))
        if sources[1] is None:
            raise DataError(f"{one_line(sound)}: holds no sound that can be decoded")
        try:
            places = [joined.add_stream_from_template(source) for source in sources]
            packets = heapq.merge(
                *(_timed(source, place) for source, place in zip(sources, places)), key=lambda timed: timed[0]
            )
            for _, packet in packets:
                joined.mux(packet)
        except (av.error.FFmpegError, ValueError) as error:
            raise DataError(f"{name}: cannot be joined ({one_line(str(error))}); fetch it again") from None


def _timed(source: Any, place: Any) -> Iterator[tuple[float, Any]]:
    """The packets of a stream, with the second at which each is due, for its place in another container."""
    for packet in source.container.demux(source):
        if packet.dts is not None:
            due = float(packet.dts * packet.time_base)
            packet.stream = place
            yield due, packet
