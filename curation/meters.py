"""Meters of a stream of sound: levels, loudness, bands, onsets, steady tones and voices, each in little memory.

What they measure, and what they cannot tell, is said in ``curation.sound``, which asks them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from typing import Any

import av
import numpy as np

STEP, BLOCK = 0.01, 0.1
"""Seconds of the fine grid (levels, onsets) and of the middle one (loudness, bands)."""
RATE = 16_000
"""Sampling rate in Hz of the mono mix that speech, music and bands are taken from."""
FLOOR = -120.0
"""Level in dB that stands for silence without a signal."""
CLIPPED_RUN, FULL_SCALE = 3, 0.999
"""Least run of samples at full scale that counts as clipped, and what counts as full scale."""
BANDS = (100, 200, 320, 510, 800, 1270, 2000, 3000, 4500, 6400)
"""Edges of the bands in Hz, about three of the ear's critical bands each; the last ends where 16 kHz sound is still whole."""
SHORT, LONG, LONG_HOP = 640, 2048, 512
"""Samples at 16 kHz of the windows for bands (every 10 ms) and for steady tones, and the hop of the latter."""
TONES = 704
"""Bins of the long window that are looked at for steady tones: up to 5.5 kHz, 7.8 Hz each."""
PEAK_HEIGHT, PEAK_FLOOR = 8.0, -80.0
"""Level in dB over the mean of the 20 bins around it, and in dBFS, from which a spectral peak counts as a tone's."""
BAR_FRAMES, BAR_REACH, BARS = 40, 6, 5
"""Frames looked at on either side for steady tones, bins within which a bar must stand out, and bars that count."""
VAD_WINDOW, VAD_CONTEXT, VAD_BLOCK = 512, 64, 512
"""Samples silero-vad takes at a time, samples it sees before them (its ONNX model at 16 kHz), and windows sent at once."""


def sound_frame(samples: np.ndarray, rate: int) -> av.AudioFrame:
    """Samples float32 [1 or 2, n] as FFmpeg takes them."""
    frame = av.AudioFrame.from_ndarray(
        np.ascontiguousarray(samples), format="fltp", layout="mono" if len(samples) == 1 else "stereo"
    )
    frame.sample_rate = rate
    return frame


def levels(samples: np.ndarray, rate: int) -> dict[str, np.ndarray]:
    """RMS, peak and clipping of every 10 ms of a piece that begins on a step; a last part of a step counts as one."""
    count = max(1, int(np.ceil(samples.shape[1] / rate / STEP - 1e-6)))
    edges = np.round(np.arange(count) * STEP * rate).astype(np.int64)
    sizes = np.diff(np.append(edges, samples.shape[1]))
    power = np.add.reduceat((samples.astype(np.float64) ** 2).mean(0), edges) / sizes
    peak = np.maximum.reduceat(np.abs(samples).max(0), edges)
    clipped = np.add.reduceat(np.mean([_in_runs(np.abs(each) >= FULL_SCALE) for each in samples], axis=0), edges) / sizes
    return {
        "level": _decibel(power, 10).astype(np.float16),
        "peak": _decibel(peak, 20).astype(np.float16),
        "clipped": clipped.astype(np.float16),
    }


def _decibel(values: np.ndarray, factor: float) -> np.ndarray:
    return np.maximum(factor * np.log10(np.maximum(values, 1e-12)), FLOOR)


def runs(flags: np.ndarray) -> np.ndarray:
    """First and last index (exclusive) of every run of flags, int [n, 2]."""
    return np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).view(np.int8))).reshape(-1, 2)


def _in_runs(flags: np.ndarray) -> np.ndarray:
    """Which of the flags stand in runs of at least :data:`CLIPPED_RUN`."""
    edges = runs(flags)
    marked = np.zeros(flags.size + 1)
    kept = edges[edges[:, 1] - edges[:, 0] >= CLIPPED_RUN]
    marked[kept[:, 0]] += 1
    marked[kept[:, 1]] -= 1
    return np.cumsum(marked)[:-1]


def lasting(flags: np.ndarray, sounding: np.ndarray, shortest: float) -> np.ndarray:
    """Seconds that count: flagged and for the most part sounding, gaps of one second closed, then without short runs.

    Args:
        flags: bool, one a second.
        sounding: bool, one every 10 ms.
        shortest: seconds of the shortest run.
    """
    flags = flags & (_fit(sounding, 100 * flags.size).reshape(-1, 100).mean(1) >= 0.5)
    flags[1:-1] |= flags[:-2] & flags[2:]
    for first, last in runs(flags):
        if last - first < shortest:
            flags[first:last] = False
    return flags


class Loudness:
    """FFmpeg's loudness meter: one value every 100 ms."""

    def __init__(self, rate: int, channels: int) -> None:
        self.rate, self.samples, self.values = rate, 0, [np.zeros(0, np.float32)]
        self.graph = av.filter.Graph()
        layout = "mono" if channels == 1 else "stereo"
        source = self.graph.add_abuffer(sample_rate=rate, format="fltp", layout=layout, time_base=Fraction(1, rate))
        meter = self.graph.add("ebur128", "metadata=1:framelog=quiet")
        self.graph.link_nodes(source, meter, self.graph.add("abuffersink"))
        self.graph.configure()

    def add(self, samples: np.ndarray) -> None:
        """Measure the next samples, float32 [channels, n]."""
        frame = sound_frame(samples, self.rate)
        frame.pts, frame.time_base = self.samples, Fraction(1, self.rate)
        self.samples += samples.shape[1]
        self.graph.push(frame)
        self._pull()

    def _pull(self) -> None:
        found: list[float] = []
        while True:
            try:
                told = self.graph.pull().metadata.get("lavfi.r128.M")  # a last part of a step carries none
            except (BlockingIOError, EOFError):
                break
            found += [] if told is None else [float(told)]
        self.values.append(np.array(found, np.float32))

    def finish(self) -> np.ndarray:
        """Loudness in LUFS of the 400 ms that end with every whole 100 ms, float32."""
        self.graph.push(None)
        self._pull()
        return np.concatenate(self.values)


class _Windows:
    """Cuts a stream of samples into overlapping windows whose middles lie in the middles of its hops."""

    def __init__(self, size: int, hop: int) -> None:
        self.size, self.hop = size, hop
        self.rest = np.zeros((size - hop) // 2, np.float32)

    def add(self, samples: np.ndarray) -> np.ndarray:
        """Returns the windows that are whole now, float32 [n, size]."""
        self.rest = np.concatenate([self.rest, samples])
        count = max(0, (self.rest.size - self.size) // self.hop + 1)
        windows = np.lib.stride_tricks.sliding_window_view(self.rest, self.size)[:: self.hop][:count] if count else None
        self.rest = self.rest[count * self.hop :]
        return np.zeros((0, self.size), np.float32) if windows is None else windows


class Ear:
    """Bands, onsets, tonality and steady tones of 16 kHz sound."""

    def __init__(self) -> None:
        self.windows, self.bars = _Windows(SHORT, round(STEP * RATE)), _Bars()
        self.power: list[np.ndarray] = []
        self.edges = [round(edge * SHORT / RATE) for edge in BANDS]

    def add(self, samples: np.ndarray) -> None:
        """Listen to the next samples, float32 [n]."""
        power = _spectrum(self.windows.add(samples))
        bands = np.add.reduceat(power, self.edges, axis=1)[:, :-1]
        peaked = (power**2 / (_running_mean(power, 10) + 1e-20)).sum(1)
        self.power.append(np.column_stack([bands, peaked, power.sum(1)]).astype(np.float32))
        self.bars.add(samples)

    def finish(self, duration: float, silence_level: float) -> dict[str, np.ndarray]:
        """What was heard in ``duration`` seconds: arrays ``onset``, ``bands``, ``tonality`` and ``activation``."""
        self.add(np.zeros(LONG, np.float32))
        count = int(np.ceil(duration / BLOCK - 1e-6))
        power = _fit(np.concatenate(self.power), 10 * count)
        tens = np.add.reduceat(power, np.arange(0, 10 * count, 10), axis=0) / 10
        tonality = tens[:, -2] / np.maximum(tens[:, -1], 1e-12)
        heard = np.maximum(_decibel(power[:, :-2], 10), silence_level - 10).astype(np.float32)
        before = np.concatenate([heard[:1], heard[:1], heard[:-2]])[: len(heard)]
        rise = np.maximum(heard - before, 0).mean(1)
        return {
            "onset": rise[: int(np.ceil(duration / STEP - 1e-6))].astype(np.float16),
            "bands": _decibel(tens[:, :-2], 10).astype(np.float16),
            "tonality": np.minimum(tonality, 100).astype(np.float16),
            "activation": self.bars.finish(int(np.ceil(duration - 1e-6))),
        }


def _fit(values: np.ndarray, count: int) -> np.ndarray:
    """The first ``count`` rows, with zeros where there are fewer."""
    return np.concatenate([values[:count], np.zeros((max(0, count - len(values)), *values.shape[1:]), values.dtype)])


def _running_mean(values: np.ndarray, reach: int) -> np.ndarray:
    """Mean over up to ``reach`` neighbours on either side along the last axis."""
    total = np.concatenate([np.zeros((len(values), 1)), np.cumsum(values, axis=1, dtype=np.float64)], axis=1)
    low = np.maximum(np.arange(values.shape[1]) - reach, 0)
    high = np.minimum(np.arange(values.shape[1]) + reach + 1, values.shape[1])
    return (total[:, high] - total[:, low]) / (high - low)


def _spectrum(windows: np.ndarray) -> np.ndarray:
    """Power spectra of windows [n, size]: a full-scale sine has power 1/4 at its bin."""
    size = windows.shape[1]
    return np.abs(np.fft.rfft(windows * np.hanning(size).astype(np.float32))) ** 2 / (size / 2) ** 2


class _Bars:
    """Continuous frequency activation: the most marked bars of steady spectral peaks in the 2.6 s around every second."""

    def __init__(self) -> None:
        self.windows, self.first = _Windows(LONG, LONG_HOP), 0
        self.peaks = np.zeros((0, TONES), bool)
        self.values: list[float] = []

    def add(self, samples: np.ndarray) -> None:
        self.peaks = np.concatenate([self.peaks, _peaks(_spectrum(self.windows.add(samples))[:, :TONES])])
        while self._middle() + BAR_FRAMES < self.first + len(self.peaks):
            self._measure()

    def finish(self, seconds: int) -> np.ndarray:
        """Float16 [seconds], 0 to 5 each."""
        while len(self.values) < seconds:
            self._measure()
        return np.array(self.values[:seconds], np.float16)

    def _middle(self) -> int:
        return round((len(self.values) + 0.5) * RATE / LONG_HOP)

    def _measure(self) -> None:
        begin = max(0, self._middle() - BAR_FRAMES - self.first)
        block = self.peaks[begin : self._middle() + BAR_FRAMES + 1 - self.first]
        self.values.append(_marked(block.mean(0)) if len(block) > BAR_FRAMES // 2 else 0.0)
        self.first, self.peaks = self.first + begin, self.peaks[begin:]


def _peaks(power: np.ndarray) -> np.ndarray:
    """Which bins of spectra are peaks that stand out of their surroundings, with the bins beside them; bool."""
    level = np.pad(_decibel(power, 10), ((0, 0), (1, 1)), constant_values=FLOOR)
    middle = level[:, 1:-1]
    tops = (middle >= level[:, :-2]) & (middle >= level[:, 2:]) & (middle > PEAK_FLOOR)
    tops &= middle - _running_mean(middle, 10) > PEAK_HEIGHT
    wide = np.pad(tops, ((0, 0), (1, 1)))
    return wide[:, :-2] | wide[:, 1:-1] | wide[:, 2:]


def _marked(share: np.ndarray) -> float:
    """Sum of the highest peaks of a curve, each measured from the higher of the valleys near it."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(share, BAR_REACH, constant_values=1.0), BAR_REACH)
    valley = np.maximum(around[: share.size].min(1), around[BAR_REACH + 1 :].min(1))
    padded = np.pad(share, 1)
    tops = (share >= padded[:-2]) & (share > padded[2:])
    return float(np.sort(np.where(tops, share - valley, 0.0))[-BARS:].sum())


class Voice:
    """silero-vad over a stream: 32 ms at a time, in blocks, its state carried along."""

    def __init__(self) -> None:
        self.model = _vad()
        self.rest, self.context = np.zeros(0, np.float32), np.zeros((1, VAD_CONTEXT), np.float32)
        self.state = [np.zeros((1, 1, 128), np.float32)] * 2
        self.values: list[np.ndarray] = [np.zeros(0, np.float32)]

    def add(self, samples: np.ndarray) -> None:
        """Listen to the next samples, float32 [n]."""
        self.rest = np.concatenate([self.rest, samples])
        whole = self.rest.size // VAD_WINDOW * VAD_WINDOW
        windows, self.rest = self.rest[:whole].reshape(-1, VAD_WINDOW), self.rest[whole:]
        for first in range(0, len(windows), VAD_BLOCK):
            block = windows[first : first + VAD_BLOCK]
            context = np.concatenate([self.context, block[:-1, -VAD_CONTEXT:]])
            self.context = block[-1:, -VAD_CONTEXT:]
            inputs = {"input": np.concatenate([context, block], 1), "h": self.state[0], "c": self.state[1]}
            values, *self.state = self.model.session.run(["speech_probs", "hn", "cn"], inputs)
            self.values.append(values.reshape(-1))

    def finish(self, duration: float, probability: float, shortest: float) -> np.ndarray:
        """Stretches of speech in seconds, float64 [n, 2].

        Args:
            duration: seconds.
            probability: from which it is speech.
            shortest: seconds of the shortest stretch.
        """
        from silero_vad import get_speech_timestamps_from_probs

        self.add(np.zeros(-self.rest.size % VAD_WINDOW, np.float32))
        spans = get_speech_timestamps_from_probs(
            np.concatenate(self.values).tolist(),
            threshold=probability,
            min_speech_duration_ms=round(shortest * 1000),
            audio_length_samples=round(duration * RATE),
        )
        return np.array([(span["start"] / RATE, span["end"] / RATE) for span in spans], np.float64).reshape(-1, 2)


@cache
def _vad() -> Any:
    """silero-vad's model for whole sequences, on one thread."""
    with _torch_threads_kept():
        from silero_vad import load_silero_vad

        return load_silero_vad(sequence=True)


@contextmanager
def _torch_threads_kept() -> Iterator[None]:
    """Importing silero-vad sets the threads of the whole process to one; that is for the caller to decide."""
    import torch

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
