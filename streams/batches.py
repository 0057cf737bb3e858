"""Samples of shots and their batches: what training gets, and the reader that decodes it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.data import get_worker_info

from animeshooter_records import DataError, Reference, ShotRecord, parse
from streams.clips import ClipSpec, cut_reference, decode_clip, pick_references, told_size
from streams.order import draw
from streams.walk import MemberReader, Ranges, Request

PICTURES = ("frames", "first", "last")


@dataclass(frozen=True)
class Sample:
    """One sample: ``n`` shots. ``frames`` is uint8 [n, F, H, W, 3]; ``first`` and ``last`` are uint8 [n, H, W, 3].

    ``first`` and ``last`` are the ends of each shot's clean part, not of the sampled frames. ``references`` are cut-outs on
    white, uint8 [height, width, 3] of any size, one each of ``characters``, taken from ``reference_shots``; the most present
    character comes first, and all three are empty where there is none. ``starts`` says which of the clip's fixed starts each
    shot took, None where starts are drawn anew every epoch. ``features`` is what the stream's cache has of each shot, and
    ``vision`` what it has of the pictures, by their hash; None without a cache. Where the cache replaces decoding, ``frames``,
    ``first`` and ``last`` are None.
    """

    keys: tuple[str, ...]
    frames: np.ndarray
    first: np.ndarray
    last: np.ndarray
    narrative: list[str]
    descriptive: list[str]
    references: tuple[np.ndarray, ...] = ()
    characters: tuple[str, ...] = ()
    reference_shots: tuple[str, ...] = ()
    starts: tuple[int, ...] | None = None
    features: list[dict[str, Any]] | None = None
    vision: dict[bytes, dict[str, Any]] | None = None

    @property
    def reference(self) -> Image.Image | None:
        """The first reference as an RGB picture."""
        return Image.fromarray(self.references[0]) if self.references else None

    @property
    def character(self) -> str | None:
        """Whose the first reference is."""
        return self.characters[0] if self.characters else None

    @property
    def reference_shot(self) -> str | None:
        """The shot that the first reference is from."""
        return self.reference_shots[0] if self.reference_shots else None

    @property
    def reference_inside(self) -> bool:
        """Whether a reference comes from a shot of the sequence itself."""
        return not set(self.keys).isdisjoint(self.reference_shots)


@dataclass(frozen=True)
class Batch:
    """A micro-batch: ``frames`` uint8 [B, n, F, H, W, 3], ``first`` and ``last`` uint8 [B, n, H, W, 3], the rest as lists.

    ``slots`` are the samples' places in the global batch, the same whatever the number of processes. ``clip`` is the bucket of
    the step, the same on every process; ``source`` says which stream of a mix it came from, ``epoch`` which epoch of that. The
    arrays of the samples are views of the batch's tensors; where a cache replaces the decoding of some sample, those are None.
    """

    step: int
    slots: list[int]
    samples: list[Sample]
    frames: torch.Tensor
    first: torch.Tensor
    last: torch.Tensor
    clip: ClipSpec
    epoch: int = 0
    source: int = 0

    @property
    def keys(self) -> list[tuple[str, ...]]:
        """The shots of each sample."""
        return [sample.keys for sample in self.samples]

    @property
    def bucket(self) -> str:
        """The shape of the step for the log, such as ``3 x 49x480x720@8``: shots a sample, frames, height, width and rate."""
        return told_size(self.clip, len(self.samples[0].keys))

    def __getstate__(self) -> dict[str, Any]:
        """From a worker the pictures travel once: in the tensors, which lie in shared memory."""
        bare = self.samples if self.frames is None else [_with_pictures(one, None, None, None) for one in self.samples]
        return {**self.__dict__, "samples": bare}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if state["frames"] is not None:
            pictures = zip(*(state[name].numpy() for name in PICTURES))
            state["samples"] = [_with_pictures(one, *views) for one, views in zip(state["samples"], pictures)]
        self.__dict__.update(state)


def _with_pictures(sample: Sample, frames: Any, first: Any, last: Any) -> Sample:
    return replace(sample, frames=frames, first=first, last=last)


class Features(Protocol):
    """A cache of features that a stream reads along; it travels to the workers, so it must be picklable."""

    def load(self, row: dict[str, Any], record: ShotRecord, clip: ClipSpec, which: int | None) -> dict[str, Any]:
        """What is cached of a shot (its row of the index) at one of the clip's fixed starts."""

    def decodes(self, found: list[dict[str, Any]]) -> bool:
        """Whether a sample still needs its frames, given what is cached of each of its shots."""

    def vision(self, pictures: Sequence[Any]) -> dict[bytes, dict[str, Any]] | None:
        """What is cached of pictures (uint8 [H, W, 3]), by their hash; None where nothing is cached of any picture."""

    def ends(self) -> Sequence[str]:
        """Which of "first" and "last" frames the pictures for :meth:`vision` come from."""

    def settings(self) -> dict[str, Any]:
        """What the cache was made with as far as it decides which samples come, JSON-ready, for the stream's state."""


def start_of(seed: int, epoch: int, key: str, clip: ClipSpec) -> tuple[float, int | None]:
    """Where a shot's clip starts, as a share of the room there is, and which of ``clip.starts`` fixed starts that is."""
    at, starts = draw(seed, epoch, key, "start"), getattr(clip, "starts", None)
    if starts is None:
        return at, None
    which = int(at * starts)
    return (which + 0.5) / starts, which


class Room:
    """The tensors of a micro-batch, made when the first sample is decoded into them; in a worker they lie in shared memory."""

    def __init__(self, requests: list[Request]) -> None:
        clip = cast(ClipSpec, requests[0].clip)
        size = (len(requests), len(requests[0].rows))
        self.shapes = [(*size, clip.frames, clip.height, clip.width, 3)] + [(*size, clip.height, clip.width, 3)] * 2
        self.tensors: list[torch.Tensor] | None = None

    def of(self, number: int) -> list[np.ndarray]:
        """Where the frames, first and last frames of a sample go."""
        if self.tensors is None:
            make = torch.empty if get_worker_info() is None else shared_empty
            self.tensors = [make(shape, dtype=torch.uint8) for shape in self.shapes]
        return [tensor[number].numpy() for tensor in self.tensors]


def shared_empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor in shared memory: sent to another process, it is not copied."""
    storage = torch.UntypedStorage._new_shared(math.prod(shape) * dtype.itemsize)  # as torch's own collate function does it
    return torch.empty(0, dtype=dtype).set_(storage, 0, shape)


class ShotReader(MemberReader):
    """Decodes samples of shots.

    Args:
        store: of the dataset directory.
        name: how messages name it.
        seed: of the draws of starts and references.
        forgive: report samples that cannot be read, rather than raise.
        features: a cache to read along.
        verify: compare clips with the SHA-256 of the index.
        patience: see :class:`MemberReader`.
        references: characters of each sample that a reference is cut out for, at most.
    """

    def __init__(
        self,
        store: Ranges,
        name: str,
        seed: int,
        forgive: bool = False,
        features: Features | None = None,
        verify: bool = False,
        patience: float | None = None,
        references: int = 1,
    ) -> None:
        super().__init__(store, name, forgive, verify, patience)
        self.seed, self.features, self.references = seed, features, references

    def first_read(self) -> tuple[str, ...]:
        """The clip too, unless a cache may do without."""
        return ("mp4", "json", "png") if self.features is None else ("json", "png")

    def make_room(self, requests: list[Request]) -> Room:
        """The batch's tensors."""
        return Room(requests)

    def sample(self, request: Request, room: Room | None = None, number: int = 0) -> Sample:
        """Decode one sample; see :meth:`MemberReader.sample`."""
        clip, rows = cast(ClipSpec, request.clip), request.rows
        blobs = [self.read(row, self.first_read()) for row in rows]
        records = [self._record(row, blob["json"]) for row, blob in zip(rows, blobs)]
        starts = [start_of(self.seed, request.place.epoch, row["key"], clip) for row in rows]
        found = None
        if self.features is not None:
            which = [which for _, which in starts]
            found = [self.features.load(*one) for one in zip(rows, records, [clip] * len(rows), which)]
        frames = first = last = None
        if found is None or cast(Features, self.features).decodes(found):
            frames, first, last = (room or Room([request])).of(number)
            for shot, (row, blob, record, (at, _)) in enumerate(zip(rows, blobs, records, starts)):
                mp4 = blob.get("mp4") or self.read(row, ("mp4",))["mp4"]
                out = (frames[shot], first[shot], last[shot])
                decode_clip(mp4, row, clip, at, self.where(row), record.picture, out=out)
        chosen = self._references(request, records, [blob["png"] for blob in blobs])
        fixed = tuple(which for _, which in starts if which is not None)
        return Sample(
            keys=tuple(row["key"] for row in rows),
            frames=cast(np.ndarray, frames),
            first=cast(np.ndarray, first),
            last=cast(np.ndarray, last),
            narrative=[record.narrative_caption for record in records],
            descriptive=[record.descriptive_caption for record in records],
            references=tuple(picture for picture, _ in chosen),
            characters=tuple(one.character for _, one in chosen),
            reference_shots=tuple(one.shot for _, one in chosen),
            starts=fixed or None,
            features=found,
            vision=self._vision([picture for picture, _ in chosen], found, {"first": first, "last": last}),
        )

    def _vision(
        self, pictures: list[np.ndarray], found: list[dict[str, Any]] | None, ends: dict[str, np.ndarray | None]
    ) -> dict[bytes, dict[str, Any]] | None:
        """What the cache has of the references and of the ends of the shots that are shown."""
        if self.features is None:
            return None
        for which in self.features.ends():
            cached = [one.get(which) for one in found or ()]
            decoded = ends[which]
            shown = cached if decoded is None else decoded
            pictures = [*pictures, *(np.asarray(one) for one in shown if one is not None)]
        return self.features.vision(pictures)

    def _record(self, row: dict[str, Any], text: bytes) -> ShotRecord:
        record = cast(ShotRecord, parse("shots", text, self.where(row)))
        if record.key != row["key"]:
            raise DataError(
                f"{self.where(row)}: the shard holds {record.key} there; get index and shard again, they do not belong together"
            )
        return record

    def _references(
        self, request: Request, records: list[ShotRecord], sheets: list[bytes]
    ) -> list[tuple[np.ndarray, Reference]]:
        keys = [row["key"] for row in request.rows]
        more = [("reference", number) for number in range(1, self.references)]
        at = [draw(self.seed, request.place.epoch, *keys, *which) for which in (("reference",), *more)]
        return [
            (np.asarray(cut_reference(sheets[which], one, self.where(request.rows[which]))), one)
            for which, one in pick_references(records, at)
        ]

    def collate(self, requests: list[Request], samples: list[Sample], room: Room | None = None) -> Batch:
        """Put the samples of one micro-batch together; see :class:`Batch`."""
        place, tensors = requests[0].place, [None] * len(PICTURES)
        if all(sample.frames is not None for sample in samples):
            stacked = (torch.from_numpy(np.stack([getattr(sample, name) for sample in samples])) for name in PICTURES)
            tensors = room.tensors if room is not None and room.tensors is not None else list(stacked)
        return Batch(
            step=place.step,
            slots=[request.place.slot for request in requests],
            samples=samples,
            frames=tensors[0],
            first=tensors[1],
            last=tensors[2],
            clip=cast(ClipSpec, requests[0].clip),
            epoch=place.epoch,
            source=place.source,
        )
