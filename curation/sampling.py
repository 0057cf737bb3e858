"""A few pictures of a film without decoding all of it: seek, take the key frame or roll on from it, go on to the next point.

The clock is that of ``curation.video``: seconds from the film's first picture. Pictures that no other picture is predicted
from are passed over where the decoder can tell, which halves the work and moves a sample by a frame or two at most.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import av.error
import numpy as np

from animeshooter_dataset import DataError
from curation.video import CONTAINERS, RgbScaler, decode, fit_short_side

LATE = 1.0
"""Seconds after the wanted time up to which a picture stands for it; a later one means that the seek went astray."""


@dataclass(frozen=True)
class Sample:
    """One sampled picture.

    Attributes:
        time: seconds from the film's first picture.
        frame: the picture as stored, in the codec's pixel format.
        turns: quarter turns counter-clockwise that display applies to it.
    """

    time: float
    frame: av.VideoFrame
    turns: int

    def rgb(self, size: tuple[int, int]) -> np.ndarray:
        """The picture upright, uint8 RGB of shape (height, width, 3); ``size`` is (width, height) as displayed."""
        picture = RgbScaler(size[::-1] if self.turns % 2 else size)(self.frame)
        return np.ascontiguousarray(np.rot90(picture, self.turns))

    def luma(self) -> np.ndarray:
        """Luma of every stored pixel, upright, uint8: black is 0 and white 255 whatever range the film uses."""
        return np.ascontiguousarray(np.rot90(self.frame.reformat(format="gray").to_ndarray(), self.turns))


class Sampler:
    """Reads single pictures of a film by seeking; a context manager.

    Args:
        path: the film.

    Raises:
        DataError: on entering: the film cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Sampler:
        options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
        try:
            self._container: Any = av.open(str(self.path.resolve()), container_options=options, metadata_errors="replace")
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise DataError(f"{self.path}: not a film that can be read; fetch it again or convert it to mp4") from error
        self._stream: Any = self._container.streams.best("video")
        if self._stream is None or self._stream.codec_context is None:
            self._container.close()
            raise DataError(f"{self.path}: holds no video that can be decoded; convert it to h264 in mp4")
        self._stream.codec_context.thread_count = 1
        self._stream.codec_context.skip_frame = "NONREF"
        self._origin = 0.0
        self._frames = self._decode()
        first = next(self._frames, None)
        self._origin, self._now = first.time if first else 0.0, 0.0
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._container.close()

    def at(self, time: float, earliest: float) -> Sample | None:
        """The picture at a point of the film.

        Args:
            time: seconds.
            earliest: a key frame from here to ``time`` serves as well: it needs no rolling on.

        Returns:
            The picture; None when the container cannot go there or nothing decodes there.
        """
        if not self._in_same_group(time):
            try:
                ticks = round((time + self._origin) / self._stream.time_base)
                self._container.seek(ticks, stream=self._stream, backward=True)
            except av.error.FFmpegError:
                return None
            self._frames = self._decode()
        sample = next(self._frames, None)
        if sample is not None and sample.time < earliest:
            sample = self.until(time)
        return sample if sample is not None and sample.time <= time + LATE else None

    def until(self, time: float) -> Sample | None:
        """The first picture at or after ``time``, rolling on from where the last one was read; None past the end."""
        return next((sample for sample in self._frames if sample.time >= time), None)

    def _in_same_group(self, time: float) -> bool:
        """Whether no key frame lies between the last picture read and ``time``: then rolling on is the shortest way."""
        index = self._stream.index_entries
        entry = index.search_timestamp(round((time + self._origin) / self._stream.time_base), backward=True, any_frame=False)
        if not 0 <= entry < len(index) - 1:  # the last one known says nothing of what comes after it
            return False
        return float(index[entry].timestamp * self._stream.time_base) - self._origin <= self._now <= time

    def _decode(self) -> Iterator[Sample]:
        """Pictures from here on; undecodable packets are passed over, as players do."""
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
                for frame in packet.decode() if packet is not None else ():
                    if frame.pts is not None:
                        self._now = float(frame.pts * self._stream.time_base) - self._origin
                        yield Sample(self._now, frame, round(frame.rotation / 90) % 4)
            except av.error.EOFError:
                return
            except (av.error.FFmpegError, OSError):
                continue
            if packet is None:
                return


class Reader:
    """The same from first picture to last, for films that cannot be sought in or are damaged; a context manager.

    Args:
        path: the film.

    Raises:
        DataError: while reading, at the latest on :meth:`finish`, as ``curation.video.decode``.
    """

    def __init__(self, path: Path) -> None:
        self._frames = (Sample(time, frame, 0) for _, time, frame in decode(path))

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._frames.close()

    def at(self, time: float, earliest: float) -> Sample | None:
        """As :meth:`Sampler.at`; times must ascend."""
        return self.until(time)

    def until(self, time: float) -> Sample | None:
        """As :meth:`Sampler.until`."""
        return next((sample for sample in self._frames if sample.time >= time), None)

    def finish(self) -> None:
        """Reads the rest, so that a film cut off there is found out."""
        for _ in self._frames:
            pass


def size_of(width: int, height: int, long_side: int) -> tuple[int, int]:
    """A size scaled down to a long side, aspect kept, both sides even."""
    return fit_short_side(width, height, max(2, round(min(width, height) * long_side / max(width, height))))
