"""Training streams over a dataset directory: which shots, in which order, decoded to which arrays.

``ShotStream``    one shot a sample
``StoryStream``   ``n`` consecutive shots of one story a sample (every window, so a shot is seen up to ``n`` times an epoch),
                  a number drawn anew for every step, or whole stories
``DrawnStream``   ``n`` shots drawn at random from one film or one character, for fine-tuning on an IP
``MixedStream``   several of these, by weight

All read the same shards by byte range, through ``index/<split>.parquet``.

**Buckets.** A stream has one clip size or several (``clip``). Every usable sample goes to exactly one of them, by the rule of
:func:`streams.order.choose_buckets`: the longest clip that its shortest shot fills without repeats, of the nearest
aspect ratio, enlarged no more than ``max_upscale``. Every global step is of one bucket, on every process. Its batch is
``global_batch``, or as many samples as ``batch_tokens`` latent tokens hold, a multiple of ``multiple``: any number of
processes x accumulated micro-batches that divides it takes the same steps.

**Order.** A pure function of (seed, epoch), see :mod:`streams.order`; the last batch of each bucket is filled up from the
bucket's own beginning. The processes share a global batch in equal slices, so that what a step trains on does not depend on
their number, nor on the number of workers.

**State.** seed, epoch, step, and what dataset and stream are; resuming is exact, takes no time, and may change the number of
processes, of micro-batches and of workers. A changed dataset is refused with what changed.

**References.** One image each of the ``references`` characters in most of a sample's shots, never from one of these shots
where another exists; where none exists (short stories) the image comes from inside the sequence and ``reference_inside`` says
so.

**Use.** ``for micro in stream.batches(rank, world_size): ...`` under any launcher; leave it out of ``accelerator.prepare``.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from animeshooter_records import INDEX_SCHEMA, DataError
from streams.batches import Batch, Features, Sample, ShotReader, start_of
from streams.clips import ClipSpec
from streams.indexed import Bucket, IndexedStream, MixedStream, chosen_rows, hash_columns, told_clip
from streams.order import Shots, batch_for, choose_buckets, draw, epoch_order, mix64, tokens_of
from streams.store import REPETITIVE, Store, StoreOptions, store_index, store_manifest
from streams.walk import Place, share_of
from streams.watch import BadSamples
from streams.where import Condition, conditions

__all__ = [
    "Batch",
    "Bucket",
    "DrawnStream",
    "Features",
    "MixedStream",
    "Place",
    "Sample",
    "ShotStream",
    "StoryStream",
    "draw",
    "epoch_order",
    "mix64",
    "share_of",
    "start_of",
]

CARRIED = (
    "key story video position shard mp4_offset mp4_size json_offset json_size png_offset png_size frames fps height width "
    "clean_start clean_end"
).split()
"""Columns of the index that a worker needs to decode a shot."""
FILTERED = ["prologue_or_epilogue", "rejected_by", "references", "picture_height", "picture_width", "licence"]
"""Columns that say which shots are left out and in which bucket the others go, and what the record of a run tells."""
LONGEST = 16
"""Shots of a whole story that make one sample at most; longer ones are cut into equal parts."""


class _Stream(IndexedStream):
    """What the streams of shots share; a subclass says which rows of the index make a sample."""

    carried = tuple(CARRIED)

    def __init__(
        self,
        directory: str | Path,
        clip: ClipSpec | Sequence[ClipSpec],
        *,
        global_batch: int | None = None,
        batch_tokens: int | None = None,
        multiple: int = 8,
        token: tuple[int, int, int] = (4, 16, 16),
        max_upscale: float = 1.25,
        small_buckets: Literal["fill", "drop"] = "fill",
        split: str = "train",
        seed: int = 0,
        n: int | tuple[int, int] | Literal["story"] = 1,
        references: int = 1,
        require_reference: bool = False,
        video: str | None = None,
        character: str | None = None,
        where: Sequence[str | tuple[str, str, Any] | Condition] = (),
        prologue_and_epilogue: bool = False,
        rejected: bool = False,
        bad_samples: int | float | BadSamples = 0,
        patience: float | None = 300.0,
        features: Features | None = None,
        options: StoreOptions | None = None,
    ) -> None:
        """Open a dataset directory.

        Args:
            directory: dataset directory, or an https://, s3:// or hf://datasets/ address of one.
            clip: what each shot is decoded to; several make buckets.
            global_batch: samples a step, over all processes and accumulation; or
            batch_tokens: latent tokens a step, from which each bucket has its global batch.
            multiple: what the global batches by tokens are multiples of.
            token: frames, height and width of a latent token (see :func:`streams.order.tokens_of`).
            max_upscale: how many times a picture may be enlarged where another bucket can be had.
            small_buckets: "fill" repeats the samples of a bucket with less than one batch, "drop" leaves them out.
            split: train, validation or test.
            seed: of the order and of every draw.
            n: shots a sample; (least, most) draws their number for every step, "story" takes whole stories (both
                :class:`StoryStream` only).
            references: characters of a sample that come with a reference image, at most.
            require_reference: leave out samples without any reference image; else they come with ``reference=None``.
            video: only shots of this video; the same as ``where=["video==..."]``.
            character: only shots that list this character; the same as ``where=["characters has ..."]``.
            where: conditions over columns of the index (see :mod:`streams.where`); all must hold.
            prologue_and_epilogue: also title cards and credits.
            rejected: also shots that fail a rule of the dataset (see ``rejected_by`` in the index).
            bad_samples: how many samples (or which share of them) that cannot be read are replaced by others of their bucket,
                each one named; one more stops it. Each process counts for itself, unless it is a ``BadSamples`` with a ledger.
            patience: seconds a sample may take until the reading process prints its stacks; after twice that it stops.
            features: a cache to read along.
            options: how a dataset elsewhere is read.

        Raises:
            DataError: no such dataset, split or column, or nothing left to train on; the numbers are in the message.
        """
        super().__init__()
        self.clips = (clip,) if isinstance(clip, ClipSpec) else tuple(clip)
        if (global_batch is None) == (batch_tokens is None):
            raise DataError("stream: give either global_batch (samples a step) or batch_tokens (latent tokens a step)")
        if (
            not self.clips
            or (n != "story" and not 1 <= _least(n) <= _most(n))
            or min(x for x in (global_batch, batch_tokens, multiple, references) if x is not None) < 1
        ):
            raise DataError(f"stream: batch, references and shots a sample ({n}) must be at least 1, and there must be a clip")
        if len(set(self.clips)) < len(self.clips):
            raise DataError("stream: two of its clips are the same; name each size once")
        self.store = Store.open(directory, options)
        self.name = self.store.name
        self.split, self.seed, self.n, self.features = split, seed, n, features
        self.references = references
        self.require_reference, self._batch = require_reference, (global_batch, batch_tokens, multiple, token)
        self._rule = {"max_upscale": max_upscale, "small_buckets": small_buckets}
        self._verify, self._patience = bool(options and options.verify), patience
        asked = [
            *where,
            *([("video", "==", video)] if video else []),
            *([("characters", "has", character)] if character else []),
        ]
        self.where = conditions(asked, INDEX_SCHEMA)
        self._lists = {"prologue_and_epilogue": prologue_and_epilogue, "rejected": rejected}
        rows = self._usable_rows(self._read_index())
        sequences = self._sequences(rows)
        self._bare = (pc.fill_null(self.index["references"], 0).to_numpy()[sequences] * (sequences >= 0)).sum(axis=1) == 0
        self.without_reference = int(self._bare.sum())
        bucket, buckets = self._buckets(sequences)
        if require_reference:
            bucket[self._bare] = -1
        self._refuse_nothing(bucket)
        self.lay_out(sequences, bucket, buckets, small_buckets)
        self.allow_bad(bad_samples)
        self._warn()

    # ---- which rows ----

    def _read_index(self) -> np.ndarray:
        """Set ``index`` to the columns that are needed; returns the rows that the conditions leave."""
        hashed = ["sha256"] if self._verify or self.features is not None else []
        wanted = [*self.carried, *FILTERED, *hashed]
        asked = [condition.column for condition in self.where]
        columns = list(dict.fromkeys([*wanted, *asked]))
        chosen, self.index = self._chosen(store_index(self.store, self.split, columns=columns), wanted)
        self.carried = (*self.carried, *hashed)
        return chosen

    def _chosen(self, table: pa.Table, wanted: list[str]) -> tuple[np.ndarray, pa.Table]:
        """The rows that the conditions leave, and the wanted columns; nobody else holds the table, so that it can go."""
        chosen = chosen_rows(table, self.where, self.name, self.split)
        columns: dict[str, pa.Array] = {}
        for name in sorted(wanted, key=lambda name: name not in REPETITIVE):  # a column at a time, the largest first
            column = table[name]
            table = table.drop_columns([name])
            if name in REPETITIVE and not pa.types.is_dictionary(column.type):
                column = pc.dictionary_encode(column)
            columns[name] = column.unify_dictionaries().combine_chunks()
            del column
            pa.default_memory_pool().release_unused()  # or the chunks' memory stays with the process
        return chosen, pa.table({name: columns[name] for name in wanted})

    def _usable_rows(self, listed: np.ndarray) -> np.ndarray:
        """Rows that may be trained on, ascending; counts the others, and keeps in ``left_out`` which they are, by reason."""
        self.left_out = {"conditions (where)": ~listed}
        self.listed = int(listed.sum())
        cards = self.index["prologue_or_epilogue"].is_valid().to_numpy() & listed & (not self._lists["prologue_and_epilogue"])
        listed = listed & ~cards
        failing = pc.fill_null(pc.greater(pc.list_value_length(self.index["rejected_by"]), 0), False)
        failed = np.asarray(failing) & listed & (not self._lists["rejected"])
        listed &= ~failed
        short = listed & (self._clean() < min(clip.min_frames for clip in self.clips))
        self.left_out |= {"prologue or epilogue": cards, "rejected by a rule": failed, "too short": short}
        self.cards, self.rejected, self.too_short = (int(which.sum()) for which in (cards, failed, short))
        return np.flatnonzero(listed & ~short)

    def _clean(self) -> np.ndarray:
        return self.index["clean_end"].to_numpy() - self.index["clean_start"].to_numpy()

    def _sequences(self, rows: np.ndarray) -> np.ndarray:
        """Samples as rows of the index, int [samples, n], out of the usable ``rows``; -1 fills up."""
        raise NotImplementedError

    # ---- buckets ----

    def shots(self) -> Shots:
        """What decides about the buckets of the index's shots; the picture is the whole frame where no bars are known."""

        def numbers(*names: str) -> np.ndarray:
            return pc.fill_null(pc.coalesce(*(self.index[name] for name in names)), 0).to_numpy()

        return Shots(
            clean=self._clean(),
            fps=numbers("fps"),
            height=numbers("picture_height", "height"),
            width=numbers("picture_width", "width"),
        )

    def _buckets(self, sequences: np.ndarray) -> tuple[np.ndarray, list[Bucket]]:
        """The bucket of each sample, and the buckets: every clip, for every number of shots a sample there is."""
        shots, lengths = self.shots(), (sequences >= 0).sum(axis=1)
        bucket = np.full(len(sequences), -1, np.int16)
        buckets: list[Bucket] = []
        for n in np.unique(lengths).tolist():
            which = np.flatnonzero(lengths == n)
            chosen = choose_buckets(shots, sequences[which, :n], self.clips, cast(float, self._rule["max_upscale"]))
            bucket[which] = np.where(chosen >= 0, chosen + len(buckets), -1)
            buckets += [self._bucket(clip, n) for clip in self.clips]
        return bucket, buckets

    def _bucket(self, clip: ClipSpec, n: int) -> Bucket:
        global_batch, batch_tokens, multiple, token = self._batch
        tokens = tokens_of(clip, n, token)
        return Bucket(clip, n, global_batch or batch_for(cast(int, batch_tokens), tokens, multiple), tokens)

    def _refuse_nothing(self, bucket: np.ndarray) -> None:
        self._taken = int((bucket >= 0).sum())
        if not self._taken:
            raise DataError(f"{self.name}: nothing to train on in split '{self.split}': {self._counts()}")

    def _warn(self) -> None:
        if not len(self):
            raise DataError(
                f"{self.name}: no bucket has a whole batch in split '{self.split}': {self._counts()}; fill small buckets"
            )
        bare = int((self._bare & (self.plan.bucket >= 0)).sum())
        if bare:
            warnings.warn(
                f"{bare} of {len(self)} samples have no reference image: they train the model without one", stacklevel=3
            )
        several = len(self.buckets) > 1
        for one, dropped in zip(self.buckets, self.plan.dropped):
            which = f"bucket {one}: " if several else ""
            if dropped:
                warnings.warn(f"{which}{dropped} samples, fewer than the global batch of {one.batch}, left out", stacklevel=3)
            elif one.samples and one.samples < one.batch:
                warnings.warn(
                    f"{which}{one.samples} samples are fewer than the global batch of {one.batch}: every step repeats some of "
                    "them",
                    stacklevel=3,
                )
            if one.samples and self._batch[1] is not None and one.tokens * one.batch > self._batch[1]:
                warnings.warn(
                    f"{which}{one.batch} samples are {one.tokens * one.batch} latent tokens, more than batch_tokens "
                    f"({self._batch[1]}): lower multiple, or raise batch_tokens",
                    stacklevel=3,
                )

    # ---- telling ----

    @property
    def clip(self) -> ClipSpec:
        """The first clip size."""
        return self.clips[0]

    @property
    def global_batch(self) -> int:
        """The largest global batch of a bucket."""
        return max(self.global_batches())

    def _counts(self) -> str:
        left_out = self.without_reference if self.require_reference else 0
        shortest = min(clip.min_frames for clip in self.clips)
        return (
            f"{self.listed} shots, {self.cards} of prologue or epilogue, {self.rejected} rejected by a rule and "
            f"{self.too_short} with fewer than {shortest} clean frames left out, "
            f"{left_out} samples without reference left out, {self._taken} samples of {told_n(self.n)}"
        )

    def describe(self) -> str:
        """For the log: what the stream holds, what it left out, how long an epoch is, and its buckets."""
        bare = 0 if self.require_reference else self.without_reference
        told = f"{type(self).__name__} {self.name} [{self.split}]: {self._counts()}, {bare} without reference; "
        if len(self.buckets) == 1:
            return told + f"{self.steps_per_epoch} steps of {self.global_batch} an epoch"
        lines = [
            f"  {one}: {one.samples} samples, {one.steps} steps of {one.batch} ({one.tokens * one.batch} tokens)"
            for one in self.buckets
            if one.samples
        ]
        return "\n".join([told + f"{self.steps_per_epoch} steps an epoch in {len(lines)} buckets", *lines])

    # ---- state and reading ----

    def identity(self) -> dict[str, Any]:
        """See :meth:`IndexedStream.identity`."""
        global_batch, batch_tokens, multiple, token = self._batch
        size = (
            {"global_batch": global_batch} if global_batch else {"batch_tokens": f"{batch_tokens} by {multiple}, token {token}"}
        )
        layout = hashlib.blake2b(self.plan.bucket.tobytes(), digest_size=8)
        layout.update(self.sequences.astype("<i8").tobytes())
        return {
            "n": told_n(self.n),
            "references": self.references,
            **size,
            "clip": [told_clip(clip) for clip in self.clips],
            **self._rule,
            "where": [str(condition) for condition in self.where],
            "require_reference": self.require_reference,
            **self._lists,
            **({"features": self.features.settings()} if self.features and self.features.settings() else {}),
            "samples": layout.hexdigest(),
        }

    def fingerprint(self) -> dict[str, Any]:
        """What the split consists of, so that a change can be named.

        ``shots`` counts the rows; ``keys``, ``clips`` and ``shards`` are hashes of the shots and their order, of where and what
        the clips are, and of the tars as the manifest lists them (so of every picture and caption).
        """
        files = store_manifest(self.store).get("files", {})
        tars = [f"{name} {files[name]}" for name in sorted(files) if f"shots/{self.split}-" in name]
        return {
            "shots": self.index.num_rows,
            "keys": hash_columns(self.index, ["key", "story", "position"]),
            "clips": hash_columns(self.index, CARRIED[4:]),
            "shards": hashlib.sha256("\n".join(tars).encode()).hexdigest()[:16],
        }

    def reader(self) -> ShotReader:
        """See :meth:`Walk.reader`."""
        return ShotReader(
            self.store,
            self.name,
            self.seed,
            self.bad is not None,
            self.features,
            self._verify,
            self._patience,
            self.references,
        )

    def __getitem__(self, place: Place | int) -> Sample:
        """Decode a sample: of the first epoch if only its number is given.

        Raises:
            DataError: a shard is damaged; names shard and key.
        """
        if not isinstance(place, Place):
            number = range(len(self.sequences))[place]
            place = Place(0, number, bucket=int(self.plan.bucket[number]))
        return self.reader().sample(self.requests([place])[0])


class ShotStream(_Stream):
    """One shot a sample, in the order of the index before shuffling; arguments as :meth:`_Stream.__init__`."""

    def _sequences(self, rows: np.ndarray) -> np.ndarray:
        if self.n != 1:
            raise DataError(f"ShotStream gives one shot a sample, not {told_n(self.n)}; use StoryStream")
        return rows[:, None]


class StoryStream(_Stream):
    """``n`` consecutive shots of one story a sample: every window of the story, in story order.

    ``n="story"`` takes whole stories: every run of usable consecutive shots once, cut into equal parts where it is longer than
    :data:`LONGEST`; a bucket then is a clip size and a number of shots.

    ``n=(2, 4)`` draws the number of shots of every step, by (seed, epoch, step) alone, so that it is the same on all
    processes. An epoch holds every window of 2, every window of 3 and every window of 4 consecutive shots, each once, so each
    number comes about equally often, and a shot is seen up to 2 + 3 + 4 times.
    """

    def _sequences(self, rows: np.ndarray) -> np.ndarray:
        story = self.index["story"].combine_chunks().indices.to_numpy()[rows]
        follows = (np.diff(story) == 0) & (np.diff(self.index["position"].to_numpy()[rows]) == 1)
        begins = np.flatnonzero(np.concatenate([[True], ~follows])[: len(rows)])
        ends = np.concatenate([begins[1:], [len(rows)]])[: len(begins)]
        if self.n != "story":
            return _windows(rows, begins, ends, _least(self.n), _most(self.n))
        parts = -(-(ends - begins) // LONGEST)
        owner, part = (
            np.repeat(np.arange(len(begins)), parts),
            np.arange(parts.sum()) - np.repeat(np.cumsum(parts) - parts, parts),
        )
        size = (ends - begins)[owner]
        first, last = (begins[owner] + size * (part + after) // parts[owner] for after in (0, 1))
        cells = first[:, None] + np.arange(int((last - first).max(initial=1)))
        return np.where(cells < last[:, None], rows[np.minimum(cells, len(rows) - 1)], -1) if len(rows) else cells


def _windows(rows: np.ndarray, begins: np.ndarray, ends: np.ndarray, least: int, most: int) -> np.ndarray:
    """Every window of ``least`` to ``most`` shots of the runs, by its first shot: rows [windows, ``most``], -1 fills up."""
    left = np.repeat(ends, ends - begins) - np.arange(len(rows))  # shots from each on to the end of its run
    counts = np.clip(np.minimum(left, most) - least + 1, 0, None)
    first = np.repeat(np.arange(len(rows)), counts)
    length = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts) + least
    places = np.arange(most)
    cells = np.minimum(first[:, None] + places, max(0, len(rows) - 1))
    return np.where(places < length[:, None], rows[cells], -1) if len(rows) else cells


def _least(n: int | tuple[int, int]) -> int:
    return n[0] if isinstance(n, tuple) else n


def _most(n: int | tuple[int, int]) -> int:
    return n[1] if isinstance(n, tuple) else n


def told_n(n: int | tuple[int, int] | str) -> int | str:
    """Shots a sample as settings and logs write them: 3, "2-4" or "story"."""
    return f"{n[0]}-{n[1]}" if isinstance(n, tuple) else n


class DrawnStream(_Stream):
    """``n`` different shots a sample, drawn from all of the same bucket: each shot leads one sample an epoch."""

    def _sequences(self, rows: np.ndarray) -> np.ndarray:
        if not isinstance(self.n, int):
            raise DataError(f"DrawnStream draws a fixed number of shots a sample, not {told_n(self.n)}; give one number")
        return rows[:, None]

    def _buckets(self, sequences: np.ndarray) -> tuple[np.ndarray, list[Bucket]]:
        bucket, _ = super()._buckets(sequences)
        n = cast(int, self.n)
        few = np.bincount(bucket[bucket >= 0], minlength=len(self.clips)) < n
        return np.where((bucket >= 0) & few[bucket], -1, bucket).astype(np.int16), [
            self._bucket(clip, n) for clip in self.clips
        ]

    def rows(self, place: Place) -> list[int]:
        """The leading shot, then ``n`` - 1 others drawn by (seed, epoch, sample)."""
        members, drawn, attempt = self._members(place.bucket), [place.sample], 0
        while len(drawn) < cast(int, self.n):
            number = int(mix64(self.seed, place.epoch, 3, place.sample, attempt)[0] % np.uint64(len(members)))
            attempt += 1
            if members[number] not in drawn:
                drawn.append(int(members[number]))
        return [int(self.sequences[sample, 0]) for sample in drawn]

    def rows_read(self, steps: int) -> np.ndarray:
        """See :meth:`IndexedStream.rows_read`; what is drawn differs from epoch to epoch."""
        read = [row for step in range(steps) for place in self.batch(step) for row in self.rows(place)]
        return np.unique(np.array(read, np.int64))

    def _members(self, bucket: int) -> np.ndarray:
        """Samples of a bucket."""
        if not hasattr(self, "_of_bucket"):
            self._of_bucket: dict[int, np.ndarray] = {}
        if bucket not in self._of_bucket:
            self._of_bucket[bucket] = np.flatnonzero(self.plan.bucket == bucket)
        return self._of_bucket[bucket]
