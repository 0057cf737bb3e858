"""Which sample comes when: buckets, batches and the order of epochs, in numpy alone.

**Buckets.** :func:`choose_buckets` sends every sample to exactly one clip size.

**Order.** A pure function of (seed, epoch), :class:`Plan`. All samples of an epoch are put into one sequence: runs of
:data:`RUN` neighbours are permuted, then :data:`MIX` runs at a time are mixed, so that neighbours in a batch differ and
reads stay near-sequential. Each bucket takes its samples from that sequence as they come and closes a batch as soon as it is
full, so that all buckets read from the same few shards at a time, and none comes all at the end.

**Padding.** The last batch of each bucket is filled up from the bucket's own beginning in that epoch (wrap-around): no sample
is left out, none of another bucket slips in, and every process takes the same number of steps.

**Mixing.** :class:`Mix` gives every step to one of several streams, also a pure function of the step.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from animeshooter_records import DataError
from streams.clips import ClipSpec

RUN = 64
"""Samples that stay together when an epoch is shuffled."""
MIX = 16
"""Runs mixed with one another, so that a batch is not all of one film: 1,024 samples are in play at a time."""
CROP_SLACK = 0.05
"""Clips that keep at most this share of the picture less than the best one count as equally near in aspect ratio."""
CHUNK = 1 << 18
"""Samples that :func:`choose_buckets` looks at together: bounds its memory."""
PERIOD = 10_000
"""Steps after which a :class:`Mix` repeats: weights are kept to one part in this many."""


def mix64(*parts: int | np.ndarray) -> np.ndarray:
    """Hash integers to uint64 (splitmix64), elementwise over arrays; the same on every machine and library version."""
    state = np.zeros(1, np.uint64)
    with np.errstate(over="ignore"):
        for part in parts:
            state = state + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
            state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            state = state ^ (state >> np.uint64(31))
    return state


def draw(*parts: object) -> float:
    """A number in [0, 1) that depends on ``parts`` and nothing else."""
    digest = hashlib.sha256("\x1f".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of ``range(samples)``, int64, shuffled in two levels (see the module)."""
    runs = np.argsort(mix64(seed, epoch, 1, np.arange(-(-samples // RUN))), kind="stable")
    order = (runs[:, None] * RUN + np.arange(RUN)).ravel()
    order = order[order < samples]
    pool = RUN * MIX
    hashed = mix64(seed, epoch, 2, np.arange(samples))
    # The place in the pool stands in the low bits: sorting the numbers themselves is several times as fast as argsort.
    keys = hashed & ~np.uint64(pool - 1) | (np.arange(samples, dtype=np.uint64) & np.uint64(pool - 1))
    whole = samples // pool * pool
    keys[:whole].reshape(-1, pool).sort(axis=1)
    keys[whole:].sort()
    mixed = (keys & np.uint64(pool - 1)).astype(np.int64) + np.arange(samples) // pool * pool
    return order[mixed]


# ---- buckets ----


@dataclass(frozen=True)
class Shots:
    """What decides about the bucket of shots, one number a shot; 0 where it is not known, which then decides nothing.

    ``clean``: clean frames; ``fps``: frames a second; ``height``, ``width``: the picture inside black bars, whole pixels.
    """

    clean: np.ndarray
    fps: np.ndarray
    height: np.ndarray
    width: np.ndarray

    @property
    def seconds(self) -> np.ndarray:
        """From the first to the last clean frame; endless where the rate is not known."""
        return np.divide(self.clean - 1, self.fps, out=np.full(len(self.clean), np.inf), where=self.fps > 0)


def choose_buckets(shots: Shots, rows: np.ndarray, clips: Sequence[ClipSpec], max_upscale: float) -> np.ndarray:
    """The clip of every sample, by number: int16 [samples], -1 where no clip's ``min_frames`` is met.

    Of the clips whose ``min_frames`` all shots of the sample have, only those are left, in this order,

    1. that enlarge the picture at most ``max_upscale`` times; where none does, the one that enlarges least;
    2. that the clean frames and the seconds of its shortest shot fill without repeats: of those the longest (most frames, then
       most seconds); where none can be filled, the shortest;
    3. whose aspect ratio is nearest: the largest share of the picture is kept, give or take :data:`CROP_SLACK`;
    4. with most pixels; then the largest share kept; then the first in ``clips``.

    Args:
        shots: of the whole index.
        rows: rows of the index that make each sample, int [samples, n].
        clips: the buckets.
        max_upscale: largest enlargement.
    """
    chosen, seconds = np.empty(len(rows), np.int16), shots.seconds
    size = _compact(_compact(shots.height) * (1 << 12) + _compact(shots.width))
    for begin in range(0, len(rows), CHUNK):
        some = slice(begin, begin + CHUNK)
        chosen[some] = _choose_some(shots, seconds, size, rows[some], clips, max_upscale)
    return chosen


def _choose_some(
    shots: Shots, seconds: np.ndarray, size: np.ndarray, rows: np.ndarray, clips: Sequence[ClipSpec], max_upscale: float
) -> np.ndarray:
    """See :func:`choose_buckets`; ``seconds`` of each shot, ``size`` numbers the sizes of their pictures."""
    shortest = shots.clean[rows].min(axis=1), seconds[rows].min(axis=1)
    # Samples differ in few ways that matter here: which clips they can fill, and the sizes of their pictures.
    usable = [shortest[0] >= clip.min_frames for clip in clips]
    fills = [(shortest[0] >= clip.frames) & (shortest[1] >= (clip.frames - 1) / clip.fps - 1e-6) for clip in clips]
    kind = np.zeros(len(rows), np.int64)
    for answers in {answer.tobytes(): answer for answer in (*usable, *fills)}.values():
        kind = _compact(kind * 2 + answers)
    for column in rows.T:
        kind = _compact(kind * (int(size.max()) + 1) + size[column])
    examples = np.zeros(int(kind.max(initial=-1)) + 1, np.int64)
    examples[kind] = np.arange(len(rows))
    scale, kept = (np.stack(each) for each in zip(*(fit(shots, rows[examples], clip) for clip in clips)))
    left, filled = (np.stack([answer[examples] for answer in each]) for each in (usable, fills))
    return _choose(clips, left, filled, scale, kept, max_upscale)[kind]


def _compact(codes: np.ndarray) -> np.ndarray:
    """The same classes, numbered from 0 without gaps, ascending by code."""
    limit = int(codes.max(initial=-1)) + 1
    if limit > 1 << 26:
        return np.unique(codes, return_inverse=True)[1]
    seen = np.zeros(limit, bool)
    seen[codes] = True
    return (np.cumsum(seen) - 1)[codes]


def fit(shots: Shots, rows: np.ndarray, clip: ClipSpec) -> tuple[np.ndarray, np.ndarray]:
    """Enlargement of samples in a clip, and the share of the picture left by its crop: the worst of their shots counts."""
    height, width = (
        np.where(size > 0, size, side)[rows] for size, side in ((shots.height, clip.height), (shots.width, clip.width))
    )
    scale = np.maximum(clip.height / height, clip.width / width)
    kept = clip.height * clip.width / (height * width * scale**2)
    return scale.max(axis=1), kept.min(axis=1)


def _choose(
    clips: Sequence[ClipSpec],
    left: np.ndarray,
    fills: np.ndarray,
    scale: np.ndarray,
    kept: np.ndarray,
    max_upscale: float,
) -> np.ndarray:
    """The rule of :func:`choose_buckets` over arrays [clips, samples]: int16 [samples]."""
    lengths = [(clip.frames, clip.frames / clip.fps) for clip in clips]
    length = np.array([sorted(set(lengths)).index(one) for one in lengths])[:, None]
    area = np.array([clip.height * clip.width for clip in clips])[:, None]
    found = left.any(axis=0)
    within = left & (scale <= max_upscale + 1e-6)
    left = np.where(within.any(axis=0), within, _least(scale, left))
    filled = left & fills
    left = np.where(filled.any(axis=0), _least(-length, filled), _least(length, left))
    left = left & (kept >= np.where(left, kept, -1).max(axis=0, initial=-1) - CROP_SLACK)
    left = _least(-area, left)
    return np.where(found, np.where(left, kept, -1).argmax(axis=0), -1).astype(np.int16)


def _least(values: np.ndarray, left: np.ndarray) -> np.ndarray:
    """Which of the ``left`` have the smallest value of their column."""
    held = np.where(left, values, np.inf)
    return left & (held <= held.min(axis=0, initial=np.inf))


def tokens_of(clip: ClipSpec, n: int, token: tuple[int, int, int] = (4, 16, 16)) -> int:
    """Latent tokens of a sample of ``n`` shots in the video transformer.

    Args:
        clip: frames, height and width of a shot.
        n: shots a sample.
        token: frames, height and width of a token in frames and pixels: what the VAE compresses times the patch. The first
            frame of a causal VAE stands for itself.
    """
    frames, height, width = token
    return (-(-(clip.frames - 1) // frames) + 1) * -(-clip.height // height) * -(-clip.width // width) * n


def batch_for(batch_tokens: int, tokens: int, multiple: int) -> int:
    """The global batch of a bucket: the largest multiple of ``multiple`` within ``batch_tokens``, and at least ``multiple``."""
    return max(1, batch_tokens // (tokens * multiple)) * multiple


# ---- order ----


@dataclass(frozen=True)
class Epoch:
    """An epoch, laid out: ``samples`` by bucket, each in its order; ``bucket`` and ``start`` (in the bucket) of each step."""

    samples: np.ndarray
    bucket: np.ndarray
    start: np.ndarray


class Plan:
    """Which samples make which step.

    Args:
        bucket: of each sample, int [samples]; -1 leaves it out.
        batches: global batch of each bucket.
        seed: of the order.
        small: what becomes of a bucket with less than one batch: "fill" repeats its samples, "drop" leaves it out.

    Attributes:
        sizes: samples of each bucket that are trained on.
        steps: steps an epoch of each bucket.
        steps_per_epoch: their sum, the same in every epoch.
    """

    def __init__(self, bucket: np.ndarray, batches: Sequence[int], seed: int, small: Literal["fill", "drop"] = "fill") -> None:
        self.batches, self.seed = np.asarray(batches, np.int64), seed
        sizes = np.bincount(bucket[bucket >= 0], minlength=len(batches)).astype(np.int64)
        self.dropped = np.where(sizes < self.batches, sizes, 0) if small == "drop" else np.zeros_like(sizes)
        self.sizes = sizes - self.dropped
        self.bucket = np.where((bucket >= 0) & (self.sizes[bucket] > 0), bucket, -1).astype(np.int16)
        self.steps = -(-self.sizes // self.batches)
        self.steps_per_epoch = int(self.steps.sum())
        self._first = np.cumsum(self.sizes) - self.sizes
        self._epochs: OrderedDict[int, Epoch] = OrderedDict()

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_epochs": OrderedDict()}

    def epoch(self, epoch: int) -> Epoch:
        """Lay out an epoch; the last two are remembered."""
        if epoch not in self._epochs:
            self._epochs[epoch] = self._lay_out(epoch)
            while len(self._epochs) > 2:
                self._epochs.popitem(last=False)
        self._epochs.move_to_end(epoch)
        return self._epochs[epoch]

    def _lay_out(self, epoch: int) -> Epoch:
        order = epoch_order(len(self.bucket), self.seed, epoch)
        bucket = self.bucket[order]
        grouped = np.argsort(bucket, kind="stable")[int((bucket < 0).sum()) :]
        starts, closes, buckets = [], [], []
        for number, (first, size, batch) in enumerate(zip(self._first, self.sizes, self.batches)):
            start = np.arange(0, size, batch)
            starts.append(start)
            closes.append(grouped[first + np.minimum(start + batch, size) - 1])
            buckets.append(np.full(len(start), number, np.int16))
        by_close = np.argsort(np.concatenate(closes))
        small = np.int32 if len(order) < 2**31 else np.int64
        return Epoch(
            samples=order[grouped].astype(small),
            bucket=np.concatenate(buckets)[by_close],
            start=np.concatenate(starts)[by_close],
        )

    def locate(self, step: int) -> tuple[int, int, np.ndarray]:
        """Epoch, bucket and samples of a step, counted over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        laid_out = self.epoch(epoch)
        bucket, start = int(laid_out.bucket[within]), int(laid_out.start[within])
        places = (start + np.arange(self.batches[bucket])) % self.sizes[bucket]
        return epoch, bucket, laid_out.samples[self._first[bucket] + places].astype(np.int64)

    def samples_read(self, steps: int) -> int:
        """Samples of the first ``steps`` steps, repeated ones counted again."""
        epochs, rest = divmod(steps, self.steps_per_epoch)
        read = epochs * int((self.steps * self.batches).sum())
        return read + (int(self.batches[self.epoch(epochs).bucket[:rest]].sum()) if rest else 0)


def shards_in_play(plan: Plan, shard: np.ndarray, epoch: int = 0, window: int = RUN * MIX) -> float:
    """Distinct shards among ``window`` samples that follow one another in an epoch, on average.

    Args:
        plan: the order.
        shard: number of the shard of each sample, int [samples].
        epoch: which one.
        window: samples looked at together.
    """
    first = epoch * plan.steps_per_epoch
    read = np.concatenate([plan.locate(first + step)[2] for step in range(plan.steps_per_epoch)])
    pieces = [read[begin : begin + window] for begin in range(0, max(1, len(read) - window + 1), window)]
    return float(np.mean([len(np.unique(shard[piece])) for piece in pieces]))


# ---- mixing ----


class Mix:
    """Gives every step to one of several streams so that the shares of any stretch of steps are close to the weights.

    Within a period of :data:`PERIOD` steps the turns of each stream are spread evenly, from an offset drawn by the seed, and
    merged; every period is the same.

    Args:
        weights: of the streams, positive; only their ratios count.
        seed: of the offsets.

    Raises:
        DataError: a weight is not positive, or there are none.
    """

    def __init__(self, weights: Sequence[float], seed: int) -> None:
        if not weights or not all(0 < weight < float("inf") for weight in weights):
            raise DataError(f"mixed stream: weights must be positive numbers, not {list(weights)}")
        exact = np.asarray(weights, float) / sum(weights) * PERIOD
        self.turns = np.maximum(1, np.floor(exact).astype(np.int64))
        while (missing := PERIOD - int(self.turns.sum())) != 0:
            which = int(np.argmax((exact - self.turns) * np.sign(missing)))
            self.turns[which] += np.sign(missing)
        at = [(np.arange(turns) + draw(seed, number, "mix")) / turns for number, turns in enumerate(self.turns)]
        whose = np.repeat(np.arange(len(weights)), self.turns)
        self.whose = whose[np.argsort(np.concatenate(at), kind="stable")]
        self.turn = np.zeros(PERIOD, np.int64)
        for number, turns in enumerate(self.turns):
            self.turn[self.whose == number] = np.arange(turns)

    def locate(self, step: int) -> tuple[int, int]:
        """The stream a step belongs to, and which step of that stream it is."""
        period, within = divmod(step, PERIOD)
        number = int(self.whose[within])
        return number, int(period * self.turns[number] + self.turn[within])

    def counts(self, steps: int) -> list[int]:
        """How many of the first ``steps`` steps belong to each stream."""
        periods, within = divmod(steps, PERIOD)
        extra = np.bincount(self.whose[:within], minlength=len(self.turns))
        return [int(count) for count in periods * self.turns + extra]
