"""Streams over an index: samples made of its rows, in buckets; where a stream stands, and whether it may go on there; mixes."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset

from animeshooter_records import DataError
from streams.clips import ClipSpec, told_size
from streams.order import Mix, Plan, mix64
from streams.walk import Place, Request, Walk
from streams.watch import BadSamples
from streams.where import Condition, holds, offered


@dataclass(frozen=True)
class Bucket:
    """Samples of one shape: ``n`` rows a sample, each decoded to ``clip`` (None: no pictures).

    ``batch`` is its global batch, ``tokens`` are latent tokens of a sample, ``samples`` and ``steps`` are those of an epoch.
    """

    clip: ClipSpec | None
    n: int
    batch: int
    tokens: int = 0
    samples: int = 0
    steps: int = 0

    def __str__(self) -> str:
        return told_size(self.clip, self.n) if self.clip else "sound"


def told_clip(clip: ClipSpec) -> str:
    """A clip as text, with all that decides about its frames."""
    starts = f" of {clip.starts} starts" if clip.starts is not None else ""
    return f"{clip.frames}x{clip.height}x{clip.width}@{clip.fps:g} from {clip.min_frames}{starts}"


class IndexedStream(Walk):
    """A walk over samples that are made of rows of an index, in buckets.

    A subclass sets ``name``, ``split``, ``seed`` and ``index``, calls :meth:`lay_out`, and says what it is
    (:meth:`identity`), what it reads (:meth:`fingerprint`), and how (:meth:`reader`).

    Attributes:
        name: the dataset, as messages name it.
        index: the columns of the index that are needed, one row a shot or audio clip.
        sequences: rows that make each sample, int [samples, most rows a sample]; -1 where there are fewer.
        plan: which samples make which step.
        buckets: what :class:`Bucket` says.
    """

    carried: tuple[str, ...] = ()
    """Columns of the index that a worker needs."""
    name: str
    split: str
    seed: int
    index: pa.Table
    bad: BadSamples | None = None

    def identity(self) -> dict[str, Any]:
        """What, besides dataset and seed, decides which sample comes when, JSON-ready."""
        raise NotImplementedError

    def fingerprint(self) -> dict[str, Any]:
        """What the split consists of, by name, so that a change can be named, JSON-ready; asked once."""
        raise NotImplementedError

    def describe(self) -> str:
        """For the log: what the stream holds, what it left out, how long an epoch is, and its buckets."""
        raise NotImplementedError

    def lay_out(
        self, sequences: np.ndarray, bucket: np.ndarray, buckets: Sequence[Bucket], small: Literal["fill", "drop"] = "fill"
    ) -> None:
        """Take up the samples and the bucket of each (-1: left out)."""
        self.sequences = sequences
        self.plan = Plan(bucket, [one.batch for one in buckets], self.seed, small)
        self.buckets = [
            replace(one, samples=int(samples), steps=int(steps))
            for one, samples, steps in zip(buckets, self.plan.sizes, self.plan.steps)
        ]
        self._carried = self.index.select(self.carried)
        self._fingerprint = self.fingerprint()

    # ---- order ----

    def __len__(self) -> int:
        """Samples an epoch, repeated ones not counted."""
        return int(self.plan.sizes.sum())

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the last one of each bucket filled up."""
        return self.plan.steps_per_epoch

    def samples_read(self, steps: int) -> int:
        """Samples of the first ``steps`` steps, repeated ones counted again."""
        return self.plan.samples_read(steps)

    def rows_read(self, steps: int) -> np.ndarray:
        """Rows of the index that the first ``steps`` steps read, ascending, each once."""
        samples = np.flatnonzero(self.plan.bucket >= 0)
        if steps < self.steps_per_epoch:
            samples = np.concatenate([samples[:0], *(self.plan.locate(step)[2] for step in range(steps))])
        read = np.zeros(self.index.num_rows, dtype=bool)
        rows = self.sequences[samples]
        read[rows[rows >= 0]] = True
        return np.flatnonzero(read)

    def global_batches(self) -> list[int]:
        """The global batch of every bucket that is trained on."""
        return [one.batch for one in self.buckets if one.samples]

    def batch(self, step: int) -> list[Place]:
        """The global batch of a step, over all epochs."""
        epoch, bucket, samples = self.plan.locate(step)
        return [Place(epoch, int(sample), step, slot, bucket) for slot, sample in enumerate(samples)]

    def rows(self, place: Place) -> list[int]:
        """The rows of the index that make a sample."""
        return [int(row) for row in self.sequences[place.sample] if row >= 0]

    def batch_keys(self, step: int) -> list[tuple[str, ...]]:
        """Keys of the rows in each sample of the global batch of a step."""
        keys = self.index["key"]
        return [tuple(keys[row].as_py() for row in self.rows(place)) for place in self.batch(step)]

    def requests(self, places: Sequence[Place]) -> list[Request]:
        """See :meth:`Walk.requests`."""
        rows = [self.rows(place) for place in places]
        table = iter(self._carried.take(np.concatenate(rows)).to_pylist())
        return [
            Request(place, self.buckets[place.bucket].clip, tuple(next(table) for _ in some))
            for place, some in zip(places, rows)
        ]

    def other(self, place: Place, attempt: int) -> Place:
        """See :meth:`Walk.other`."""
        members = np.flatnonzero(self.plan.bucket == place.bucket)
        drawn = mix64(self.seed, place.epoch, 4, place.sample, attempt)[0] % np.uint64(len(members))
        return replace(place, sample=int(members[int(drawn)]))

    def budget(self, place: Place) -> BadSamples | None:
        """See :meth:`Walk.budget`."""
        return self.bad

    def allow_bad(self, bad_samples: int | float | BadSamples, ledger: Path | None = None) -> None:
        """How many samples may be bad: a number, a share, or what counts them.

        Args:
            bad_samples: see there; 0 allows none.
            ledger: file in which all processes that name it count together, over resumes too; None counts in each process.
        """
        if isinstance(bad_samples, BadSamples):
            self.bad = bad_samples
        else:
            self.bad = BadSamples(bad_samples, len(self), ledger) if bad_samples else None

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, JSON-ready: load it to continue with the first step that was not handed out."""
        return self.state_at(self.step)

    def state_at(self, step: int) -> dict[str, Any]:
        """The state of the stream when it stands at ``step``."""
        return {
            "seed": self.seed,
            "epoch": step // self.steps_per_epoch,
            "step": step,
            "fingerprint": self._fingerprint,
            "stream": {"kind": type(self).__name__, "split": self.split, **self.identity()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            DataError: the dataset, the seed or the stream's settings are not those of the state; says which.
        """
        mine = self.state_dict()
        was = {"seed": state["seed"], **state["stream"], **state["fingerprint"]}
        now = {"seed": self.seed, **mine["stream"], **mine["fingerprint"]}
        changed = [f"{name} was {was.get(name)}, is {now.get(name)}" for name in now if was.get(name) != now.get(name)]
        if changed:
            raise DataError(f"{self.name}: cannot resume: {'; '.join(changed)}. Start anew, or restore what was trained on")
        self.step = int(state["step"])


class MixedStream(Walk):
    """Several streams by weight: every global step belongs to one of them, so shapes agree (:class:`streams.order.Mix`).

    The epochs of each run on by themselves. A batch's ``source`` is the number of its stream.

    Args:
        parts: streams and their weights; a weight is a share of the steps, not of the samples.
        seed: of the turns.

    Raises:
        DataError: a weight is not positive, or there are no streams.
    """

    def __init__(self, parts: Sequence[tuple[IndexedStream, float]], seed: int = 0) -> None:
        self.streams = [stream for stream, _ in parts]
        super().__init__()
        self.seed, self.mix = seed, Mix([weight for _, weight in parts], seed)

    def __len__(self) -> int:
        """Samples of all streams."""
        return sum(len(stream) for stream in self.streams)

    def batch(self, step: int) -> list[Place]:
        """See :meth:`Walk.batch`."""
        number, inner = self.mix.locate(step)
        return [replace(place, step=step, source=number) for place in self.streams[number].batch(inner)]

    def batch_keys(self, step: int) -> list[tuple[str, ...]]:
        """Keys of the rows in each sample of the global batch of a step."""
        number, inner = self.mix.locate(step)
        return self.streams[number].batch_keys(inner)

    def requests(self, places: Sequence[Place]) -> list[Request]:
        """See :meth:`Walk.requests`."""
        return self.streams[places[0].source].requests(places)

    def other(self, place: Place, attempt: int) -> Place:
        """See :meth:`Walk.other`."""
        return self.streams[place.source].other(place, attempt)

    def budget(self, place: Place) -> BadSamples | None:
        """See :meth:`Walk.budget`: each stream has its own."""
        return self.streams[place.source].budget(place)

    def reader(self) -> MixedReader:
        """See :meth:`Walk.reader`."""
        return MixedReader([stream.reader() for stream in self.streams])

    def global_batches(self) -> list[int]:
        """See :meth:`Walk.global_batches`."""
        return [batch for stream in self.streams for batch in stream.global_batches()]

    def check(self, world_size: int, accumulate: int = 1) -> None:
        """See :meth:`Walk.check`; every stream must do."""
        for stream in self.streams:
            stream.check(world_size, accumulate)

    def samples_read(self, steps: int) -> int:
        """Samples of the first ``steps`` steps, repeated ones counted again."""
        return sum(stream.samples_read(count) for stream, count in zip(self.streams, self.mix.counts(steps)))

    def describe(self) -> str:
        """For the log: the share of each stream, and what it holds."""
        shares = self.mix.turns / self.mix.turns.sum()
        return "\n".join(f"{share:.2%} of the steps: {stream.describe()}" for share, stream in zip(shares, self.streams))

    def state_dict(self) -> dict[str, Any]:
        """Where the mix and each of its streams stand, JSON-ready."""
        counts = self.mix.counts(self.step)
        states = [stream.state_at(count) for stream, count in zip(self.streams, counts)]
        return {"seed": self.seed, "step": self.step, "turns": self.mix.turns.tolist(), "streams": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            DataError: a dataset, a seed, a weight or a stream's settings are not those of the state; says which.
        """
        now = {"seed": self.seed, "turns": self.mix.turns.tolist(), "streams": len(self.streams)}
        was = {"seed": state["seed"], "turns": state["turns"], "streams": len(state["streams"])}
        changed = [f"{name} was {was[name]}, is {now[name]}" for name in now if was[name] != now[name]]
        if changed:
            raise DataError(f"mixed stream: cannot resume: {'; '.join(changed)}. Start anew, or restore what was trained on")
        for stream, one in zip(self.streams, state["streams"]):
            stream.load_state_dict(one)
        self.step = int(state["step"])


class MixedReader(Dataset):
    """Hands the requests of each stream of a mix to that stream's reader."""

    def __init__(self, readers: list[Any]) -> None:
        self.readers = readers

    def __getitems__(self, requests: list[Request]) -> Any:
        """Decode one micro-batch: all of one stream."""
        return self.readers[requests[0].place.source].__getitems__(requests)

    def sample(self, request: Request) -> Any:
        """Decode one sample."""
        return self.readers[request.place.source].sample(request)

    def collate(self, requests: list[Request], samples: list[Any]) -> Any:
        """Put the samples of a micro-batch together."""
        return self.readers[requests[0].place.source].collate(requests, samples)


def chosen_rows(table: pa.Table, where: Sequence[Condition], name: str, split: str) -> np.ndarray:
    """Which rows of an index meet all conditions: bool [rows].

    Raises:
        DataError: no row meets one of them; says what values there are.
    """
    chosen = np.ones(table.num_rows, dtype=bool)
    for condition in where:
        met = holds(condition, table)
        if not met.any():
            raise DataError(f"{name}: no row with {condition} in split '{split}'; {offered(condition.column, table)}")
        chosen &= met
    return chosen


def hash_columns(table: pa.Table, names: Sequence[str]) -> str:
    """A short hash of what stands in these columns, the same however they are stored; null counts as 0 or ""."""
    digest = hashlib.blake2b(digest_size=8)
    for name in names:
        column = table[name].combine_chunks()
        if isinstance(column, pa.ChunkedArray):  # no rows
            continue
        if pa.types.is_dictionary(column.type):  # in long runs: where they begin, and what they say
            codes = column.indices.fill_null(-1).to_numpy()
            begins = np.flatnonzero(np.diff(codes, prepend=-2))
            digest.update(begins.astype("<i8").tobytes())
            column = column.take(begins).cast(pa.string())
        if pa.types.is_string(column.type):
            column = pc.fill_null(column, "") if column.null_count else column
            edges = np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]
            digest.update(np.diff(edges).data.cast("B"))
            digest.update(memoryview(column.buffers()[2] or b"")[edges[0] : edges[-1]])
        else:
            column = pc.fill_null(column, 0) if column.null_count else column
            digest.update(np.ascontiguousarray(column.to_numpy(zero_copy_only=False)).data.cast("B"))
    return digest.hexdigest()
