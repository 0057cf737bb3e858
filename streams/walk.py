"""Handing out global batches: addresses of samples, reading them in workers, and sharing each batch among the processes.

What a worker needs to decode a sample travels to it with the sample's address (:class:`Request`: some hundred bytes a row
of the index), so that no worker holds the index.

Use :meth:`Walk.batches` as it is, under accelerate and DeepSpeed too: it shares every global batch among the processes by
itself. It is no ``DataLoader``, so ``accelerator.prepare`` hands it back unchanged and cannot share it a second time.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, cast

from torch.utils.data import DataLoader, Dataset, Sampler

from animeshooter_records import DataError
from streams.clips import ClipSpec
from streams.watch import BadSamples, Watchdog
from streams.workers import settle_in, without_main, worker_context

GAP = 4096
"""Bytes between the members of a sample that are rather read along than asked around."""
REPLACEMENTS = 8
"""Samples that are tried in place of a bad one."""


@dataclass(frozen=True)
class Place:
    """Address of a sample in the stream."""

    epoch: int
    sample: int
    step: int = 0
    slot: int = 0
    bucket: int = 0
    source: int = 0


@dataclass(frozen=True)
class Request:
    """Everything a worker needs to decode a sample: its address, its clip (None: no pictures), and its rows of the index."""

    place: Place
    clip: ClipSpec | None
    rows: tuple[dict[str, Any], ...]


class Ranges(Protocol):
    """Where shards are read from: see ``streams.store.Store``."""

    def range(self, name: str, offset: int, size: int, sha256: str | None = None) -> bytes:
        """Bytes of a file of the dataset, compared with their hash if it is given."""

    def prefetch(self, ranges: Sequence[tuple[str, int, int]]) -> None:
        """Say what will be read next."""


@dataclass(frozen=True)
class Spoiled:
    """A micro-batch of which some samples could not be read: ``problems`` says why, None where the sample is whole."""

    requests: list[Request]
    samples: list[Any]
    problems: list[str | None]


class MemberReader(Dataset):
    """Decodes samples in whichever process it is, and holds no index; a subclass says how.

    Args:
        store: of the dataset directory.
        name: how messages name it.
        forgive: report samples that cannot be read, rather than raise.
        verify: compare the member ``hashed`` with ``sha256`` of its row.
        patience: seconds that a sample may take until the stacks of the process are printed; twice that ends it. None waits on.

    Attributes:
        config: config of the dataset whose shards hold the samples: the folder they lie in.
        hashed: the member that ``sha256`` in the index is of.
    """

    config: ClassVar[str] = "shots"
    hashed: ClassVar[str] = "mp4"

    def __init__(
        self, store: Ranges, name: str, forgive: bool = False, verify: bool = False, patience: float | None = None
    ) -> None:
        self.store, self.name, self.forgive, self.verify = store, name, forgive, verify
        self.watchdog = nullcontext() if patience is None else Watchdog(patience, what=f"reading {name}")

    def first_read(self) -> tuple[str, ...]:
        """The members that are read of every row, for the hint to the store."""
        raise NotImplementedError

    def make_room(self, requests: list[Request]) -> Any:
        """What the samples of a micro-batch are decoded into; handed to :meth:`sample` and :meth:`collate`."""
        return None

    def sample(self, request: Request, room: Any = None, number: int = 0) -> Any:
        """Decode the sample of a request, ``number`` in its micro-batch.

        Raises:
            DataError: a shard is damaged or not to be had; names shard and key.
        """
        raise NotImplementedError

    def collate(self, requests: list[Request], samples: list[Any], room: Any = None) -> Any:
        """Put the samples of a micro-batch together."""
        raise NotImplementedError

    def __getitems__(self, requests: list[Request]) -> Any:
        """Decode one micro-batch."""
        members = self.first_read()
        self.store.prefetch([self._span(row, members) for request in requests for row in request.rows])
        room = self.make_room(requests)
        samples: list[Any] = []
        problems: list[str | None] = []
        for number, request in enumerate(requests):
            try:
                with self.watchdog:
                    samples.append(self.sample(request, room, number))
                problems.append(None)
            except DataError as error:
                if not self.forgive:
                    raise
                samples.append(None)
                problems.append(str(error))
        if any(problems):
            return Spoiled(requests, samples, problems)
        return self.collate(requests, samples, room)

    def shard(self, row: dict[str, Any]) -> str:
        """The shard of a row of the index. Only the file's name is taken from it: a path in it could point anywhere."""
        name = re.split(r"[/\\]", row["shard"])[-1]
        return f"{self.config}/{name}"

    def where(self, row: dict[str, Any]) -> str:
        """Shard and key, for messages."""
        return f"{self.name}/{self.shard(row)}: {row['key']}"

    def read(self, row: dict[str, Any], members: tuple[str, ...]) -> dict[str, bytes]:
        """Members of a row's sample, in one read where they lie side by side.

        Raises:
            DataError: the shard is not to be had, or ends early.
        """
        shard, first, size = self._span(row, members)
        spans = {member: (row[f"{member}_offset"], row[f"{member}_size"]) for member in members}
        hashes = {self.hashed: row["sha256"]} if self.verify else {}
        try:
            if size > sum(size for _, size in spans.values()) + GAP or self.hashed in hashes:
                return {member: self.store.range(shard, *span, sha256=hashes.get(member)) for member, span in spans.items()}
            blob = self.store.range(shard, first, size)
        except OSError as error:
            raise DataError(f"{self.where(row)}: {error}; build or download the shard again") from None
        except DataError as error:
            raise DataError(f"{error} (shot {row['key']})") from None
        return {member: blob[offset - first : offset - first + size] for member, (offset, size) in spans.items()}

    def _span(self, row: dict[str, Any], members: tuple[str, ...]) -> tuple[str, int, int]:
        """The one range of the shard that holds these members."""
        first = min(row[f"{member}_offset"] for member in members)
        last = max(row[f"{member}_offset"] + row[f"{member}_size"] for member in members)
        return self.shard(row), first, last - first


class Walk:
    """What hands out one global batch a step; a subclass says which samples those are and what reads them.

    Attributes:
        step: the first step that was not handed out.
    """

    def __init__(self) -> None:
        self.step = 0

    def __len__(self) -> int:
        """Samples an epoch."""
        raise NotImplementedError

    def batch(self, step: int) -> list[Place]:
        """The global batch of a step, over all epochs."""
        raise NotImplementedError

    def requests(self, places: Sequence[Place]) -> list[Request]:
        """What a worker needs to decode these samples."""
        raise NotImplementedError

    def reader(self) -> Any:
        """What decodes requests: ``__getitems__``, ``sample`` and ``collate`` as of :class:`MemberReader`."""
        raise NotImplementedError

    def other(self, place: Place, attempt: int) -> Place:
        """A sample of the same bucket to put in place of a bad one, a pure function of address and attempt."""
        raise NotImplementedError

    def budget(self, place: Place) -> BadSamples | None:
        """Counts bad samples; None where none are allowed."""
        raise NotImplementedError

    def global_batches(self) -> list[int]:
        """The sizes a global batch can have."""
        raise NotImplementedError

    def check(self, world_size: int, accumulate: int = 1) -> None:
        """Whether so many processes and micro-batches can share every global batch equally.

        Raises:
            DataError: they cannot, or there are fewer samples than processes.
        """
        for size in self.global_batches():
            share_of(len(self), size, world_size, accumulate)

    def share(self, world_size: int, accumulate: int = 1) -> int:
        """The most samples a micro-batch can have on one process."""
        return max(self.global_batches()) // (world_size * accumulate)

    def batches(
        self, rank: int = 0, world_size: int = 1, *, accumulate: int = 1, workers: int = 0, steps: int | None = None
    ) -> Iterator[list[Any]]:
        """Walk on from where the stream stands: one list of ``accumulate`` micro-batches a step, for one process.

        Args:
            rank: this process, 0 .. ``world_size`` - 1.
            world_size: processes that share the global batch.
            accumulate: micro-batches a step.
            workers: decoding processes (see :mod:`streams.workers`); 0 decodes in this one.
            steps: how many; None goes on for ever.

        Raises:
            DataError: a global batch cannot be shared equally, there are fewer samples than processes, or a sample cannot be
                read and no more bad ones are allowed.
        """
        self.check(world_size, accumulate)
        if not 0 <= rank < world_size:
            raise DataError(f"stream: there is no rank {rank} among {world_size} processes")
        reader = self.reader()
        loader = DataLoader(
            reader,
            batch_sampler=_Steps(self, rank, world_size, accumulate, steps),
            collate_fn=_as_it_is,
            num_workers=workers,
            multiprocessing_context=worker_context() if workers else None,
            worker_init_fn=settle_in if workers else None,
        )
        with without_main(reader) if workers else nullcontext():
            batches = iter(loader)
        micro: list[Any] = []
        try:
            for batch in batches:
                micro.append(self._mend(batch, reader) if isinstance(batch, Spoiled) else batch)
                if len(micro) == accumulate:
                    self.step = micro[0].step + 1
                    yield micro
                    micro = []
        except DataError as error:  # a worker's error arrives with its traceback in the message
            raise DataError(re.split(r"DataError: ", str(error).strip())[-1].splitlines()[0]) from None

    def _mend(self, spoiled: Spoiled, reader: Any) -> Any:
        """Put other samples in place of the bad ones, as many as are allowed."""
        samples = [
            sample if problem is None else self._replacement(request, problem, reader)
            for request, sample, problem in zip(spoiled.requests, spoiled.samples, spoiled.problems)
        ]
        return reader.collate(spoiled.requests, samples)

    def _replacement(self, request: Request, problem: str, reader: Any) -> Any:
        bad, instead = cast(BadSamples, self.budget(request.place)), request
        for attempt in range(1, REPLACEMENTS + 1):
            keys = "+".join(row["key"] for row in instead.rows)
            bad.met(keys, problem)
            (instead,) = self.requests([self.other(request.place, attempt)])
            try:
                sample = reader.sample(instead)
            except DataError as error:
                problem = str(error)
                continue
            warnings.warn(f"{keys} is bad; in its place comes {'+'.join(row['key'] for row in instead.rows)}", stacklevel=4)
            return sample
        raise DataError(f"{problem}; none of {REPLACEMENTS} samples in its place could be read either")


class _Steps(Sampler):
    """Micro-batches of one process from the walk's step on; a pure function of the walk's state and the rank."""

    def __init__(self, walk: Walk, rank: int, world_size: int, accumulate: int, steps: int | None) -> None:
        self.walk, self.rank, self.world_size, self.accumulate = walk, rank, world_size, accumulate
        self.start, self.steps = walk.step, steps

    def __iter__(self) -> Iterator[list[Request]]:
        step = self.start
        while self.steps is None or step < self.start + self.steps:
            places = self.walk.batch(step)
            share = len(places) // (self.world_size * self.accumulate)
            for micro in range(self.accumulate):
                begin = (self.rank * self.accumulate + micro) * share
                yield self.walk.requests(places[begin : begin + share])
            step += 1


def _as_it_is(batch: Any) -> Any:
    """The collate function: the reader has put the batch together."""
    return batch


def share_of(samples: int, global_batch: int, world_size: int, accumulate: int = 1) -> int:
    """Samples of a micro-batch on one process.

    Raises:
        DataError: the global batch cannot be shared equally, or there are fewer samples than processes.
    """
    if samples < world_size:
        raise DataError(f"{samples} samples for {world_size} processes: use at most {samples} processes, or more films")
    parts = world_size * accumulate
    if global_batch % parts:
        nearest = max(parts, global_batch // parts * parts)
        raise DataError(
            f"a global batch of {global_batch} does not divide over {world_size} processes x {accumulate} accumulated "
            f"micro-batches; use a multiple of {parts}, such as {nearest}"
        )
    return global_batch // parts
