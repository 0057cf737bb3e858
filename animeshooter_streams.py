"""Training streams over a dataset directory: which shots, in which order, decoded to which arrays.

Three streams read the same shards by byte range, through ``index/<split>.parquet``:

``ShotStream``    one shot a sample
``StoryStream``   ``n`` consecutive shots of one story a sample (every window, so a shot is seen up to ``n`` times an epoch)
``DrawnStream``   ``n`` shots drawn at random from one film or one character, for fine-tuning on an IP

**Order.** A pure function of (seed, epoch): runs of 64 samples are permuted, then 16 runs at a time are mixed, so that
neighbours in a batch differ and reads stay near-sequential. Global step ``s`` takes samples ``[b * s, b * (s + 1))`` of
its epoch, ``b`` being the global batch; the last batch of an epoch is filled up from the epoch's beginning (wrap-around:
no shot is left out, every process takes the same number of steps). The processes share a global batch in equal slices, so
that what a step trains on does not depend on their number.

**State.** seed, epoch, step and a fingerprint of the dataset; resuming is exact, takes no time, and may change the number
of processes. A changed dataset is refused with what changed.

**Clips.** All samples of a stream have one size, :class:`ClipSpec`: one bucket of frames x height x width.

**References.** One image a sample: of the character in most of its shots, never from one of these shots where another
exists; where none exists (short stories) the image comes from inside the sequence and ``reference_inside`` says so.
"""

from __future__ import annotations

import hashlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, Sampler

from animeshooter_clips import ClipSpec, cut_reference, decode_clip, pick_reference, read_range
from animeshooter_dataset import DataError, ShotRecord, parse, read_index, read_manifest

RUN = 64
"""Samples that stay together when an epoch is shuffled."""
MIX = 16
"""Runs mixed with one another, so that a batch is not all of one film: 1,024 samples are in play at a time."""


@dataclass(frozen=True)
class Sample:
    """One sample: ``n`` shots. ``frames`` is uint8 [n, F, H, W, 3]; ``first`` and ``last`` are uint8 [n, H, W, 3].

    ``first`` and ``last`` are the ends of each shot's clean part, not of the sampled frames. ``reference`` is an RGB
    cut-out on white of ``character``, taken from ``reference_shot``; all three are None where there is none.
    """

    keys: tuple[str, ...]
    frames: np.ndarray
    first: np.ndarray
    last: np.ndarray
    narrative: list[str]
    descriptive: list[str]
    reference: Image.Image | None
    character: str | None
    reference_shot: str | None

    @property
    def reference_inside(self) -> bool:
        """Whether the reference comes from a shot of the sequence itself."""
        return self.reference_shot in self.keys


@dataclass(frozen=True)
class Batch:
    """A micro-batch: ``frames`` uint8 [B, n, F, H, W, 3], ``first`` and ``last`` uint8 [B, n, H, W, 3], the rest as lists.

    ``slots`` are the samples' places in the global batch, the same whatever the number of processes.
    """

    step: int
    slots: list[int]
    samples: list[Sample]
    frames: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """The shots of each sample."""
        return [sample.keys for sample in self.samples]


@dataclass(frozen=True)
class Place:
    """Address of a sample in the stream: everything a worker needs to decode it."""

    epoch: int
    sample: int
    step: int = 0
    slot: int = 0


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


@lru_cache(maxsize=4)
def epoch_order(samples: int, seed: int, epoch: int) -> np.ndarray:
    """The order of an epoch: a permutation of ``range(samples)``, int64, shuffled in two levels (see the module)."""
    index = np.arange(samples)
    runs = index // RUN
    order = np.lexsort((index, mix64(seed, epoch, 1, runs)))
    pools = index // (RUN * MIX)
    order = order[np.lexsort((mix64(seed, epoch, 2, order), pools))]
    order.flags.writeable = False  # it is remembered for the epoch's other steps
    return order


class _Stream(Dataset):
    """What the three streams share; a subclass says which rows of the index make a sample."""

    def __init__(
        self,
        directory: str | Path,
        clip: ClipSpec,
        *,
        global_batch: int,
        split: str = "train",
        seed: int = 0,
        n: int = 1,
        require_reference: bool = False,
        video: str | None = None,
        character: str | None = None,
        prologue_and_epilogue: bool = False,
        rejected: bool = False,
    ) -> None:
        """Open a dataset directory.

        Args:
            directory: dataset directory.
            clip: what each shot is decoded to.
            global_batch: samples a step, over all processes and accumulation.
            split: train, validation or test.
            seed: of the order and of every draw.
            n: shots a sample.
            require_reference: leave out samples without any reference image; else they come with ``reference=None``.
            video: only shots of this video.
            character: only shots that list this character.
            prologue_and_epilogue: also title cards and credits.
            rejected: also shots that fail a rule of the dataset (see ``rejected_by`` in the index).

        Raises:
            DataError: no such dataset or split, or nothing left to train on; the numbers are in the message.
        """
        if global_batch < 1 or n < 1:
            raise DataError(f"stream: global batch ({global_batch}) and shots a sample ({n}) must be at least 1")
        self.directory, self.clip, self.split, self.seed, self.n = Path(directory), clip, split, seed, n
        self.global_batch, self.step = global_batch, 0
        self.index = read_index(self.directory, split).combine_chunks()
        self._fingerprint = fingerprint(self.directory, split)
        length = self.index["clean_end"].to_numpy() - self.index["clean_start"].to_numpy()
        listed = self._listed(video, character)
        cards = self.index["prologue_or_epilogue"].is_valid().to_numpy() & listed & (not prologue_and_epilogue)
        self.listed, self.cards, listed = int(listed.sum()), int(cards.sum()), listed & ~cards
        failing = pc.fill_null(pc.greater(pc.list_value_length(self.index["rejected_by"]), 0), False)
        failed = np.asarray(failing) & listed & (not rejected)
        self.rejected, listed = int(failed.sum()), listed & ~failed
        usable = listed & (length >= clip.min_frames)
        self.too_short = int((listed & ~usable).sum())
        sequences = self._sequences(np.flatnonzero(usable))
        bare = self.index["references"].to_numpy()[sequences].sum(axis=1) == 0
        self.without_reference = int(bare.sum())
        self.require_reference = require_reference
        self.sequences = sequences[~bare] if require_reference else sequences
        self._filter = {
            "video": video,
            "character": character,
            "require_reference": require_reference,
            "prologue_and_epilogue": prologue_and_epilogue,
            "rejected": rejected,
        }
        self._warn_or_refuse()

    def _listed(self, video: str | None, character: str | None) -> np.ndarray:
        """Which rows the filters leave."""
        listed = np.ones(self.index.num_rows, dtype=bool)
        if video is not None:
            listed &= np.asarray(pc.equal(self.index["video"], video))
            self._check_any(listed, "video", video, self.index["video"])
        if character is not None:
            names, owners = pc.list_flatten(self.index["characters"]), pc.list_parent_indices(self.index["characters"])
            has = np.zeros(self.index.num_rows, dtype=bool)
            has[np.asarray(owners.filter(pc.equal(names, character)))] = True
            listed &= has
            self._check_any(listed, "character", character, names)
        return listed

    def _check_any(self, listed: np.ndarray, what: str, value: str, column: pa.ChunkedArray) -> None:
        if not listed.any():
            names = ", ".join(sorted(column.unique().to_pylist())[:12])
            raise DataError(f"{self.directory}: no shot of {what} '{value}' in split '{self.split}'; it has {names}")

    def _sequences(self, rows: np.ndarray) -> np.ndarray:
        """Samples as rows of the index, int64 [samples, n], out of the usable ``rows``."""
        raise NotImplementedError

    def _warn_or_refuse(self) -> None:
        if not len(self.sequences):
            raise DataError(f"{self.directory}: nothing to train on in split '{self.split}': {self._counts()}")
        if self.without_reference and not self.require_reference:
            warnings.warn(
                f"{self.without_reference} of {len(self.sequences)} samples have no reference image: "
                "they train the model without one",
                stacklevel=4,
            )
        if len(self) < self.global_batch:
            warnings.warn(
                f"{len(self)} samples are fewer than the global batch of {self.global_batch}: every step repeats some of them",
                stacklevel=4,
            )

    def _counts(self) -> str:
        left_out = self.without_reference if self.require_reference else 0
        return (
            f"{self.listed} shots, {self.cards} of prologue or epilogue, {self.rejected} rejected by a rule and "
            f"{self.too_short} with fewer than {self.clip.min_frames} clean frames left out, "
            f"{left_out} samples without reference left out, {len(self)} samples of {self.n}"
        )

    def describe(self) -> str:
        """One line for the log: what the stream holds, what it left out, and how long an epoch is."""
        bare = 0 if self.require_reference else self.without_reference
        return (
            f"{type(self).__name__} {self.directory} [{self.split}]: {self._counts()}, {bare} without reference; "
            f"{self.steps_per_epoch} steps of {self.global_batch} an epoch"
        )

    # ---- order ----

    def __len__(self) -> int:
        """Samples an epoch."""
        return len(self.sequences)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the last one filled up."""
        return -(-len(self) // self.global_batch)

    def order(self, epoch: int) -> np.ndarray:
        """Samples of an epoch in order: a permutation of ``range(len(self))``."""
        return epoch_order(len(self), self.seed, epoch)

    def batch(self, step: int) -> list[Place]:
        """The global batch of a step, over all epochs."""
        epoch, within = divmod(step, self.steps_per_epoch)
        order = self.order(epoch)
        first = within * self.global_batch
        places = np.arange(first, first + self.global_batch) % len(self)
        return [Place(epoch, int(order[place]), step, slot) for slot, place in enumerate(places)]

    def rows(self, place: Place) -> list[int]:
        """The rows of the index that make a sample."""
        return [int(row) for row in self.sequences[place.sample]]

    def batch_keys(self, step: int) -> list[tuple[str, ...]]:
        """Keys of the shots in each sample of the global batch of a step."""
        keys = self.index["key"]
        return [tuple(keys[row].as_py() for row in self.rows(place)) for place in self.batch(step)]

    # ---- state ----

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, JSON-ready: load it to continue with the first step that was not handed out."""
        return {
            "seed": self.seed,
            "epoch": self.step // self.steps_per_epoch,
            "step": self.step,
            "fingerprint": self._fingerprint,
            "stream": self._identity(),
        }

    def _identity(self) -> dict[str, Any]:
        """What, besides dataset and seed, decides which sample comes when."""
        return {
            "kind": type(self).__name__,
            "split": self.split,
            "n": self.n,
            "global_batch": self.global_batch,
            "clip": asdict(self.clip),
            **self._filter,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken.

        Raises:
            DataError: the dataset, the seed or the stream's settings are not those of the state; says which.
        """
        was = {"seed": state["seed"], **state["stream"], **state["fingerprint"]}
        now = {"seed": self.seed, **self._identity(), **self._fingerprint}
        changed = [f"{name} was {was.get(name)}, is {now.get(name)}" for name in now if was.get(name) != now.get(name)]
        if changed:
            raise DataError(
                f"{self.directory}: cannot resume: {'; '.join(changed)}. Start anew, or restore what was trained on"
            )
        self.step = int(state["step"])

    # ---- reading ----

    def __getitem__(self, place: Place | int) -> Sample:
        """Decode a sample: of the first epoch if only its number is given.

        Raises:
            DataError: a shard is damaged; names shard and key.
        """
        place = place if isinstance(place, Place) else Place(0, range(len(self))[place])
        table = self.index.take(self.rows(place)).to_pylist()
        decoded, records, sheets = [], [], []
        for row in table:
            clip, record, sheet = (self._member(row, member) for member in ("mp4", "json", "png"))
            where = f"{self._shard(row)}: {row['key']}"
            at = draw(self.seed, place.epoch, row["key"], "start")
            records.append(cast(ShotRecord, parse("shots", record, where)))
            decoded.append(decode_clip(clip, row, self.clip, at, where, records[-1].picture))
            sheets.append(sheet)
        frames, first, last = (np.stack(parts) for parts in zip(*decoded))
        picked = pick_reference(records, draw(self.seed, place.epoch, *(row["key"] for row in table), "reference"))
        reference = None
        if picked is not None:
            which, chosen = picked
            where = f"{self._shard(table[which])}: {table[which]['key']}"
            reference = cut_reference(sheets[which], chosen, where)
        return Sample(
            keys=tuple(row["key"] for row in table),
            frames=frames,
            first=first,
            last=last,
            narrative=[record.narrative_caption for record in records],
            descriptive=[record.descriptive_caption for record in records],
            reference=reference,
            character=picked[1].character if picked else None,
            reference_shot=picked[1].shot if picked else None,
        )

    def __getitems__(self, places: list[Place]) -> Batch:
        """Decode the samples of one micro-batch, in the worker that was handed it."""
        samples = [self[place] for place in places]
        frames, first, last = (
            torch.from_numpy(np.stack([getattr(sample, name) for sample in samples])) for name in ("frames", "first", "last")
        )
        return Batch(places[0].step, [place.slot for place in places], samples, frames, first, last)

    def _shard(self, row: dict[str, Any]) -> Path:
        # Only the file's name is taken from the index: a path in it could point anywhere.
        return self.directory / "shots" / Path(row["shard"]).name

    def _member(self, row: dict[str, Any], member: str) -> bytes:
        shard = self._shard(row)
        try:
            return read_range(shard, row[f"{member}_offset"], row[f"{member}_size"])
        except OSError as error:
            raise DataError(f"{shard}: {row['key']}.{member}: {error}; build or download the shard again") from None

    def batches(
        self, rank: int = 0, world_size: int = 1, *, accumulate: int = 1, workers: int = 0, steps: int | None = None
    ) -> Iterator[list[Batch]]:
        """Walk on from where the stream stands: one list of ``accumulate`` micro-batches a step, for one process.

        Args:
            rank: this process, 0 .. ``world_size`` - 1.
            world_size: processes that share the global batch.
            accumulate: micro-batches a step.
            workers: decoding processes (spawned); 0 decodes in this one.
            steps: how many; None goes on for ever.

        Raises:
            DataError: the global batch cannot be shared equally, or there are fewer samples than processes.
        """
        share = share_of(len(self), self.global_batch, world_size, accumulate)
        sampler = _StepSampler(self, rank * share * accumulate, share, accumulate, steps)
        loader = DataLoader(
            self,
            batch_sampler=sampler,
            collate_fn=_as_it_is,
            num_workers=workers,
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=False,
        )
        micro: list[Batch] = []
        try:
            for batch in loader:
                micro.append(batch)
                if len(micro) == accumulate:
                    self.step = batch.step + 1
                    yield micro
                    micro = []
        except DataError as error:  # a worker's error arrives with its traceback in the message
            raise DataError(re.split(r"DataError: ", str(error).strip())[-1].splitlines()[0]) from None


class ShotStream(_Stream):
    """One shot a sample, in the order of the index before shuffling; arguments as :meth:`_Stream.__init__`."""

    def _sequences(self, rows: np.ndarray) -> np.ndarray:
        if self.n != 1:
            raise DataError(f"ShotStream gives one shot a sample, not {self.n}; use StoryStream")
        return rows[:, None]


class StoryStream(_Stream):
    """``n`` consecutive shots of one story a sample: every window of the story, in story order."""

    def _sequences(self, rows: np.ndarray) -> np.ndarray:
        if len(rows) < self.n:
            return np.zeros((0, self.n), np.int64)
        story = self.index["story"].combine_chunks().dictionary_encode().indices.to_numpy()
        position = self.index["position"].to_numpy()
        windows = np.lib.stride_tricks.sliding_window_view(rows, self.n)
        same = (story[windows] == story[windows[:, :1]]).all(axis=1)
        follow = (np.diff(position[windows], axis=1) == 1).all(axis=1)
        return windows[same & follow].copy()


class DrawnStream(_Stream):
    """``n`` different shots a sample, drawn from all that the filters leave: each shot leads one sample an epoch."""

    def _sequences(self, rows: np.ndarray) -> np.ndarray:
        return np.repeat(rows[:, None], self.n, axis=1) if len(rows) >= self.n else np.zeros((0, self.n), np.int64)

    def rows(self, place: Place) -> list[int]:
        """The leading shot, then ``n`` - 1 others drawn by (seed, epoch, sample)."""
        others = np.delete(self.sequences[:, 0], place.sample)
        drawn = others[np.argsort(mix64(self.seed, place.epoch, 3, place.sample, others), kind="stable")]
        return [int(self.sequences[place.sample, 0]), *(int(row) for row in drawn[: self.n - 1])]


class _StepSampler(Sampler):
    """Micro-batches of one process from the stream's step on; a pure function of the stream's state and the rank."""

    def __init__(self, stream: _Stream, first: int, share: int, accumulate: int, steps: int | None) -> None:
        self.stream, self.first, self.share, self.accumulate = stream, first, share, accumulate
        self.start, self.steps = stream.step, steps

    def __iter__(self) -> Iterator[list[Place]]:
        step = self.start
        while self.steps is None or step < self.start + self.steps:
            places = self.stream.batch(step)
            for micro in range(self.accumulate):
                begin = self.first + micro * self.share
                yield places[begin : begin + self.share]
            step += 1


def _as_it_is(batch: Batch) -> Batch:
    """The collate function: the dataset has put the batch together."""
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


def fingerprint(directory: Path, split: str) -> dict[str, Any]:
    """What a split consists of, so that a change can be named.

    ``shots`` counts the rows; ``keys``, ``clips`` and ``shards`` are SHA-256 hashes of the shots and their order, of
    the clips, and of the tars as the manifest lists them (so captions and reference sheets too).
    """
    index = read_index(directory, split)
    files = read_manifest(directory).get("files", {})
    tars = {str(name): str(what) for name, what in sorted(files.items()) if f"shots/{split}-" in str(name)}
    hashes = {
        "keys": index["key"].to_pylist(),
        "clips": index["sha256"].to_pylist(),
        "shards": [f"{name} {what}" for name, what in tars.items()],
    }
    return {
        "shots": index.num_rows,
        **{name: hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16] for name, lines in hashes.items()},
    }
