"""Features of a dataset directory that a frozen part of a model made once: read by byte range, checked, forgotten.

``recipes/cache_features.py`` writes them next to the dataset, one folder a kind::

    <DIR>.features/<kind>/<fingerprint>/identity.json   what the fingerprint is the hash of
                                        <name>.tar      shards: one safetensors file an entry
                                        <name>.parquet  the shard's part of the index; a shard without it is not there
                                        index.parquet   all parts in one, sorted by key
                                        manifest.json   which datasets are there, whole or not; bytes and sha256 of every shard

``latents``   mean and log-variance of the VAE's posterior for the clip that starts at the k-th of ``ClipSpec.starts`` starts
``ends``      first and last frame of the shot's clean part, as PNG
``text``      the text encoder's features of a caption
``vision``    what the MLLM's vision tower makes of a picture

An entry is found by key and part (the start; 0 for the first and 1 for the last frame; 0 for a caption) and carries the hash
of its source, so that a clip or caption that changed is never taken for the one it was made of. Pictures, which many shots
share, are found by their hash alone. Nothing is pickled.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import zlib
from bisect import bisect_left
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from animeshooter_records import DataError, ShotRecord
from streams.clips import ClipSpec
from streams.feature_files import AGAIN, PART_SCHEMA, covers, forget_video, read_index_file, read_parts

__all__ = [
    "AGAIN",
    "KINDS",
    "KIND_OF",
    "PART_SCHEMA",
    "FeatureStore",
    "Features",
    "caption_of",
    "clip_hash",
    "differences",
    "fingerprint_of",
    "forget_video",
    "from_png",
    "identity_of",
    "open_store",
    "picture_hash",
    "png",
    "text_source",
    "video_source",
]

KINDS = ("latents", "ends", "text", "vision")
KIND_OF = {"latents": "latents", "first": "ends", "last": "ends", "text": "text", "blank": "text", "vision": "vision"}
"""Where what a stage needs is found; "blank" is the features of the empty caption, "vision" those of pictures."""
OF_CLIPS = ("latents", "ends")
"""Kinds that depend on the size of clips."""
REVISION = 1
"""Of decoding and encoding: raised when either gives other numbers, so that no older cache is taken for a newer one."""


# ---- what an entry is of ----


def clip_hash(sha256: str, clean_start: int, clean_end: int) -> bytes:
    """16 bytes that stand for the clean part of a stored clip."""
    return hashlib.sha256(f"{sha256} {clean_start} {clean_end}".encode()).digest()[:16]


def video_source(row: Mapping[str, Any], record: ShotRecord) -> bytes:
    """16 bytes that stand for all that decides which pixels a shot decodes to, but for the ClipSpec."""
    clip = clip_hash(row["sha256"], row["clean_start"], row["clean_end"])
    return hashlib.sha256(clip + json.dumps(record.picture).encode()).digest()[:16]


def text_source(caption: str) -> bytes:
    """16 bytes that stand for a caption."""
    return hashlib.sha256(caption.encode()).digest()[:16]


def picture_hash(picture: np.ndarray) -> bytes:
    """16 bytes that stand for a picture, uint8 [H, W, 3]."""
    digest = hashlib.sha256(f"{picture.dtype} {picture.shape} ".encode())
    digest.update(np.ascontiguousarray(picture).data)
    return digest.digest()[:16]


def caption_of(record: ShotRecord, which: str) -> str:
    """The caption a model reads: ``which`` is narrative, descriptive, or both, joined by a space."""
    narrative, descriptive = record.narrative_caption, record.descriptive_caption
    return {"narrative": narrative, "descriptive": descriptive, "both": f"{narrative} {descriptive}"}[which]


def fingerprint_of(identity: Mapping[str, Any]) -> str:
    """The name of a cache's folder: 16 hexadecimal digits of the SHA-256 of its identity."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]


def identity_of(kind: str, clip: ClipSpec | None = None, model: str | None = None, precision: str = "no") -> dict[str, Any]:
    """What decides the numbers of a kind of features.

    Args:
        kind: one of :data:`KINDS`.
        clip: of latents and ends; ``min_frames``, which changes no number, is left out.
        model: hash of the part of the model that made them (``recipes.parts.part_hash``).
        precision: of the arithmetic: no, bf16 or fp16.
    """
    identity: dict[str, Any] = {"kind": kind, "revision": REVISION}
    if kind == "ends":
        assert clip is not None
        return identity | {"clip": {"height": clip.height, "width": clip.width}}
    if kind == "latents":
        assert clip is not None
        identity["clip"] = {name: value for name, value in asdict(clip).items() if name != "min_frames"}
    return identity | {"model": model, "precision": precision}


def png(image: np.ndarray) -> Tensor:
    """An image uint8 [H, W, 3] as the bytes of a PNG, uint8 [bytes]."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG", compress_level=3)
    return torch.frombuffer(bytearray(file.getvalue()), dtype=torch.uint8)


def from_png(blob: Tensor) -> Tensor:
    """Undo :func:`png`: uint8 [H, W, 3]."""
    return torch.from_numpy(np.array(Image.open(io.BytesIO(blob.numpy().tobytes()), formats=["PNG"])))


# ---- reading ----


class FeatureStore:
    """The entries of one kind and fingerprint. Picklable; index and shards are opened in each process when first read.

    Args:
        directory: ``<DIR>.features/<kind>/<fingerprint>``.
        unfinished: also what a run wrote that has not finished.

    Raises:
        DataError: it is no such folder.
    """

    def __init__(self, directory: str | Path, *, unfinished: bool = False) -> None:
        self.directory, self.unfinished = Path(directory), unfinished
        try:
            self.identity: dict[str, Any] = json.loads((self.directory / "identity.json").read_text())
            self.kind: str = self.identity["kind"]
        except (OSError, ValueError, KeyError, TypeError):
            raise DataError(f"{self.directory}: no cache of features (no identity.json); {AGAIN}") from None
        self._index: pa.Table | None = None
        self._files: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Without what is open."""
        return self.__dict__ | {"_index": None, "_files": {}}

    def __del__(self) -> None:
        """Close the shards."""
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    @property
    def index(self) -> pa.Table:
        """One row an entry, columns of :data:`PART_SCHEMA`, sorted.

        Raises:
            DataError: it is damaged.
        """
        if self._index is None:
            whole = (self.directory / "manifest.json").is_file() and not self.unfinished
            self._index = read_index_file(self.directory / "index.parquet") if whole else read_parts(self.directory)
        return self._index

    def find(self, key: str, part: int = 0, source: bytes | None = None) -> int | None:
        """The row of an entry, any of them without ``source``; None where there is none."""
        keys, parts = self.index["key"], self.index["part"]
        rows = range(self.index.num_rows)
        row = bisect_left(rows, (key, part), key=lambda row: (keys[row].as_py(), parts[row].as_py()))
        while row < len(rows) and (keys[row].as_py(), parts[row].as_py()) == (key, part):
            if source is None or self.index["source"][row].as_py() == source:
                return row
            row += 1
        return None

    def get(self, key: str, part: int = 0, source: bytes | None = None) -> dict[str, Tensor] | None:
        """The tensors of an entry by name; None where there is none.

        Args:
            key: of the shot; "" for the empty caption.
            part: the start of the clip (latents), 0 or 1 for the first or last frame (ends), 0 (text).
            source: what the entry must have been made of, see :func:`video_source` and :func:`text_source`.

        Raises:
            DataError: its shard is missing or damaged.
        """
        row = self.find(key, part, source)
        if row is None:
            return None
        name, offset, size, crc = (self.index[column][row].as_py() for column in ("shard", "offset", "size", "crc32"))
        path = self.directory / Path(name).name  # a path in an index could point anywhere
        try:
            blob = os.pread(self._file(path), size, offset)
            if len(blob) != size or zlib.crc32(blob) != crc:
                raise OSError("the file is truncated" if len(blob) != size else "its bytes have changed")
            return load(blob)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{path}: {key}: {error}; delete this shard, and {AGAIN}") from None

    def _file(self, path: Path) -> int:
        if path.name not in self._files:
            if len(self._files) >= 64:  # shards open at a time
                os.close(self._files.pop(next(iter(self._files))))
            self._files[path.name] = os.open(path, os.O_RDONLY)
        return self._files[path.name]

    def datasets(self) -> dict[str, Any]:
        """What the manifest tells of each dataset and split that was cached; empty where no run has finished."""
        try:
            return json.loads((self.directory / "manifest.json").read_text())["datasets"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}


class Features:
    """What a stream takes: all that a stage needs and that is cached, for each sample.

    Args:
        stores: by kind, and by clip where the kind is one of :data:`OF_CLIPS`: (kind, clip or None).
        needs: what the stage needs, names of :data:`KIND_OF`.
        caption: which caption the model reads.
        again: the command that completes the cache, for messages.
    """

    def __init__(
        self,
        stores: Mapping[tuple[str, ClipSpec | None], FeatureStore],
        needs: Collection[str],
        caption: str = "descriptive",
        again: str = "recipes/cache_features.py",
    ) -> None:
        self.stores, self.needs, self.caption, self.again = dict(stores), frozenset(needs), caption, again
        self.required: frozenset[str] = frozenset()
        """Needs that nothing else than the cache can meet, because the part of the model is not in memory."""
        self._blank: Tensor | None = None

    def store(self, need: str, clip: ClipSpec) -> FeatureStore | None:
        """Where a need is met for clips of this kind."""
        kind = KIND_OF[need]
        return self.stores.get((kind, clip if kind in OF_CLIPS else None))

    def ends(self) -> list[str]:
        """Which ends of shots the MLLM is shown, as far as what it sees in them is cached."""
        return [which for which in ("first", "last") if which in self.needs and ("vision", None) in self.stores]

    def vision(self, pictures: Sequence[np.ndarray]) -> dict[bytes, dict[str, Tensor]] | None:
        """What is cached of pictures, uint8 [H, W, 3], by :func:`picture_hash`; None without a cache of the kind."""
        store = self.stores.get(("vision", None))
        if store is None:
            return None
        hashes = {picture_hash(picture) for picture in pictures}
        found = {which: store.get(which.hex(), 0, which) for which in sorted(hashes)}
        return {which: tensors for which, tensors in found.items() if tensors is not None}

    def load(self, row: Mapping[str, Any], record: ShotRecord, clip: ClipSpec, which: int | None) -> dict[str, Tensor]:
        """What is cached of one shot.

        Args:
            row: of the dataset's index.
            record: of the shot.
            clip: what the stream decodes it to.
            which: its start, 0 .. ``clip.starts`` - 1; None where starts are drawn anew.

        Returns:
            Of the needs those that are there: ``latents`` [2, F', C, h, w] (mean, log-variance), ``first`` and ``last``
            uint8 [H, W, 3], ``text`` and ``blank`` [L, D].

        Raises:
            DataError: a shard is damaged, or what is required is not there.
        """
        found = {}
        for need in sorted(self.needs - {"vision"}):
            store = self.store(need, clip)
            value = None if store is None else self._read(store, need, row, record, which)
            if value is not None:
                found[need] = value
            elif need in self.required:
                raise DataError(
                    f"{row['key']}: {KIND_OF[need]} not cached for the shot as it is now, and the part of the model that makes "
                    f"them is not in memory; complete the cache: {self.again}"
                )
        return found

    def _read(
        self, store: FeatureStore, need: str, row: Mapping[str, Any], record: ShotRecord, which: int | None
    ) -> Tensor | None:
        key = str(row["key"])
        if need == "text":
            return (store.get(key, 0, text_source(caption_of(record, self.caption))) or {}).get("text")
        if need == "blank":
            if self._blank is None:
                self._blank = (store.get("", 0, text_source("")) or {}).get("text")
            return self._blank
        source = video_source(row, record)
        if need == "latents":
            return None if which is None else (store.get(key, which, source) or {}).get("latents")
        entry = store.get(key, int(need == "last"), source)
        return None if entry is None else from_png(entry["png"])

    def decodes(self, found: Sequence[Mapping[str, Tensor]]) -> bool:
        """Whether the video of a sample must be decoded, given what :meth:`load` found of its shots."""
        return any(need not in one for one in found for need in self.needs & {"latents", "first", "last"})

    def settings(self) -> dict[str, Any]:
        """Nothing that a stream's state must hold: the same samples come with and without a cache."""
        return {}

    def coverage(self, index: pa.Table, clip: ClipSpec) -> dict[str, tuple[int, int]]:
        """Entries that are there, and that there could be, for the shots in ``index``, by need."""
        keys = index["key"].combine_chunks() if isinstance(index["key"], pa.ChunkedArray) else index["key"]
        columns = (index[name].to_pylist() for name in ("sha256", "clean_start", "clean_end"))
        clips = pa.array([clip_hash(*one) for one in zip(*columns)], pa.binary(16))
        counts = {}
        for need in sorted(self.needs - {"vision"}):
            starts = getattr(clip, "starts", None) or 0
            parts = {"latents": range(max(1, starts)), "last": range(1, 2)}.get(need, range(1))
            store = self.store(need, clip)
            if need == "blank":
                counts[need] = (int(store is not None and store.find("", 0) is not None), 1)
            elif store is None or (need == "latents" and not starts):
                counts[need] = (0, len(keys) * len(parts))
            else:
                covered = [covers(store.index, keys, part, None if need == "text" else clips) for part in parts]
                counts[need] = (int(np.sum(covered)), len(keys) * len(parts))
        return counts


def differences(was: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What differs between two identities, a phrase each."""
    found = []
    for name in sorted({*was, *now}):
        one, two = was.get(name), now.get(name)
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            found += differences(one, two, f"{prefix}{name}.")
        elif one != two:
            found.append(f"{prefix}{name} was {str(one)[:16]}, is {str(two)[:16]}")
    return found


def open_store(features: Path, identity: Mapping[str, Any]) -> FeatureStore | None:
    """The store of an identity; None where there is none of its kind at all.

    Raises:
        DataError: there are stores of this kind, but of another model, clip or precision; says what differs from the nearest.
    """
    kind = str(identity["kind"])
    place = features / kind / fingerprint_of(identity)
    if (place / "identity.json").is_file():
        return FeatureStore(place)
    others = [FeatureStore(path.parent) for path in sorted((features / kind).glob("*/identity.json"))]
    if not others:
        return None
    nearest = min((differences(other.identity, identity) for other in others), key=len)
    raise DataError(f"{features / kind}: not of this model and these clips: {'; '.join(nearest)}")
