"""Files of a cache of features: shards with their part of the index, all parts in one, the manifest, and forgetting a film.

Which folder holds what stands in ``streams.features``. A shard is written under another name and renamed when it is whole,
then its part of the index; an entry that no part lists is not there. So a run may be killed at any time, processes need not
know of one another, and the index can always be made again out of the parts.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from animeshooter_records import DataError

PART_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("video", pa.string()),
        ("part", pa.int16()),
        ("source", pa.binary(16)),
        ("clip", pa.binary(16)),  # of the clip alone, known from the dataset's index; null for captions
        ("shard", pa.string()),
        ("offset", pa.int64()),
        ("size", pa.int64()),
        ("crc32", pa.uint32()),
    ]
)
AGAIN = "run recipes/cache_features.py again with the settings it was made with: it makes what is missing"


@dataclass
class _Hashing:
    """A file that is written and hashed."""

    file: Any
    digest: Any = field(default_factory=hashlib.sha256)
    size: int = 0

    def write(self, blob: bytes) -> int:
        self.digest.update(blob)
        self.size += len(blob)
        return self.file.write(blob)


@dataclass(frozen=True)
class Entry:
    """One entry to be written: its row of the index without its place, and its safetensors file."""

    key: str
    video: str
    part: int
    source: bytes
    clip: bytes | None
    blob: bytes


def write_shard(directory: Path, name: str, entries: Iterable[Entry]) -> int:
    """Write a shard and its part of the index; both appear whole. Returns its bytes.

    Raises:
        OSError: the disk is full, or not to be written.
    """
    rows, partial = [], directory / f".{name}.tar.partial"
    with partial.open("wb") as file:
        target = _Hashing(file)
        with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
            for entry in entries:
                info = tarfile.TarInfo(f"{entry.key or '_'}.{entry.part}.safetensors")
                info.size = len(entry.blob)
                archive.addfile(info, io.BytesIO(entry.blob))
                archive.members.clear()  # tarfile would keep an object an entry
                offset = archive.offset - -(-info.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                rows.append(
                    {name: getattr(entry, name) for name in ("key", "video", "part", "source", "clip")}
                    | {"offset": offset, "size": info.size, "crc32": zlib.crc32(entry.blob)}
                )
        file.flush()
        os.fsync(file.fileno())
    told = {"bytes": str(target.size), "sha256": target.digest.hexdigest()}
    table = pa.Table.from_pylist([row | {"shard": f"{name}.tar"} for row in rows], schema=PART_SCHEMA.with_metadata(told))
    partial.rename(directory / f"{name}.tar")
    file_of = io.BytesIO()
    pq.write_table(table, file_of)
    replace_whole(directory / f"{name}.parquet", file_of.getvalue())
    return target.size


def replace_whole(path: Path, content: bytes) -> None:
    """Write a file whole, in the place of what was there."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with partial.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    partial.rename(path)


def part_files(directory: Path) -> list[Path]:
    """The parts of the index, by name, whose shard is there."""
    parts = (path for path in directory.glob("[!.]*.parquet") if path.name != "index.parquet")
    return sorted(path for path in parts if path.with_suffix(".tar").is_file())


def read_parts(directory: Path, parts: Collection[Path] | None = None) -> pa.Table:
    """The index of all shards that are whole, whether a run has finished or not: sorted by key, part and source, each once.

    Raises:
        DataError: a part of the index is damaged.
    """
    tables = [read_index_file(path) for path in (part_files(directory) if parts is None else parts)]
    table = pa.concat_tables(tables) if tables else PART_SCHEMA.empty_table()
    by = ["key", "part", "source"]
    table = table.sort_by([(name, "ascending") for name in [*by, "shard"]]).combine_chunks()
    if table.num_rows < 2:
        return table
    same = [np.asarray(pc.equal(table[name][1:], table[name][:-1])) for name in by]
    return table.filter(pa.array([True, *~np.logical_and.reduce(same)])).combine_chunks()


def read_index_file(path: Path) -> pa.Table:
    """A part of the index, or all of it.

    Raises:
        DataError: it is damaged.
    """
    try:
        return pq.read_table(path, schema=PART_SCHEMA).replace_schema_metadata(None).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        problem = str(error).splitlines()[0]
        raise DataError(f"{path}: not readable as an index of features ({problem}); delete it, and {AGAIN}") from None


def covers(index: pa.Table, keys: pa.Array, part: int, clips: pa.Array | None = None) -> np.ndarray:
    """Which shots have an entry: bool [shots].

    Args:
        index: of a cache.
        keys: of the shots.
        part: of the entries, see ``streams.features.FeatureStore.get``.
        clips: ``streams.features.clip_hash`` of each; None for captions, which are compared when they are read.
    """
    mine = index.filter(pc.equal(index["part"], part))
    if clips is not None:  # a shot may have several, of which one is of the clip as it is now
        keys, pairs = _pairs(keys, clips), _pairs(mine["key"].combine_chunks(), mine["clip"].combine_chunks())
    else:
        pairs = mine["key"].combine_chunks()
    return np.asarray(pc.is_in(keys, value_set=pairs))


def _pairs(keys: pa.Array, clips: pa.Array) -> pa.Array:
    """Key and clip in one value; keys hold no blank."""
    return pc.binary_join_element_wise(keys.cast(pa.binary()), clips.cast(pa.binary()), b" ")


@dataclass(frozen=True)
class Wanted:
    """What a dataset wants of a cache: for the manifest.

    Args:
        name: of the dataset's folder, and split.
        fingerprint: of the split, as streams have it.
        keys: of its shots.
        clips: hash of each clip; None for captions.
        parts: entries a shot.
    """

    name: str
    fingerprint: Mapping[str, Any]
    keys: pa.Array
    clips: pa.Array | None
    parts: range

    def told(self, index: pa.Table) -> dict[str, Any]:
        """What of it is there."""
        there = sum(int(covers(index, self.keys, part, self.clips).sum()) for part in self.parts)
        entries = len(self.keys) * len(self.parts)
        counts = {"shots": len(self.keys), "entries": entries, "cached": there, "complete": there == entries}
        return {"fingerprint": dict(self.fingerprint), **counts}


def finish(directory: Path, wanted: Wanted | None = None, made_with: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Make index and manifest of all shards that are there; every process may do it, the last one to do so lists all.

    Args:
        directory: ``<DIR>.features/<kind>/<fingerprint>``.
        wanted: the dataset that was cached; None where films were removed: what was said of datasets is then forgotten.
        made_with: more for the manifest.

    Returns:
        The manifest.
    """
    parts: list[Path] | None = None
    manifest: dict[str, Any] = {}
    while parts != (now := part_files(directory)):  # another process may have added one meanwhile
        parts = now
        index = read_parts(directory, parts)
        shards = {path.with_suffix(".tar").name: _told(path) for path in parts}
        file = io.BytesIO()
        pq.write_table(index, file)
        replace_whole(directory / "index.parquet", file.getvalue())
        before = _manifest(directory).get("datasets", {}) if wanted is not None else {}
        datasets = before | ({wanted.name: wanted.told(index)} if wanted is not None else {})
        manifest = dict(made_with or _manifest(directory).get("made_with", {}))
        manifest = {"datasets": datasets, "entries": index.num_rows, "made_with": manifest}
        manifest |= {"bytes": sum(one["bytes"] for one in shards.values()), "shards": shards}
        replace_whole(directory / "manifest.json", json.dumps(manifest, indent=2).encode())
    return manifest


def _told(part: Path) -> dict[str, Any]:
    told = pq.read_schema(part).metadata
    entries = pq.read_metadata(part).num_rows
    return {"bytes": int(told[b"bytes"]), "sha256": told[b"sha256"].decode(), "entries": entries}


def _manifest(directory: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((directory / "manifest.json").read_text()))
    except (OSError, ValueError, TypeError):
        return {}


def verify(directory: Path) -> list[str]:
    """What is wrong with the shards of a cache, a line each; reads every byte."""
    wrong = []
    for name, told in _manifest(directory).get("shards", {}).items():
        path = directory / Path(name).name
        try:
            with path.open("rb") as file:
                good = hashlib.file_digest(file, "sha256").hexdigest() == told["sha256"]
        except OSError as error:
            wrong.append(f"{path}: {error.strerror}")
            continue
        if not good:
            wrong.append(f"{path}: its bytes are not those of the manifest; delete it, and {AGAIN}")
    return wrong


def drop_damaged(directory: Path) -> list[Path]:
    """Remove the part of the index of every shard that is gone or of another size, so that its entries are made again."""
    dropped = []
    for part in directory.glob("[!.]*.parquet"):
        shard = part.with_suffix(".tar")
        if part.name != "index.parquet" and (not shard.is_file() or shard.stat().st_size != _told(part)["bytes"]):
            part.unlink(missing_ok=True)
            dropped.append(shard)
    return dropped


def folders(features: str | Path) -> list[Path]:
    """The folders of all kinds and fingerprints under ``<DIR>.features``."""
    return sorted(path.parent for path in Path(features).glob("*/*/identity.json"))


def forget_video(features: str | Path, videos: Collection[str]) -> list[Path]:
    """Remove all that a cache holds of some videos: latents, frames and captions' features, and their rows of the index.

    A shard with other videos in it is written anew without them. What killed runs left (files no index lists) goes as well,
    so no run that makes features may be going on. Killed itself at any time, it does the rest when called again.

    Args:
        features: ``<DIR>.features``; nothing happens where it is no folder.
        videos: ids, as in the column ``video`` of the index.

    Returns:
        The shards that were removed or written anew; empty where nothing of the videos was there.
    """
    touched: list[Path] = []
    for directory in folders(features):
        parts = [path for path in directory.glob("[!.]*.parquet") if path.name != "index.parquet"]
        mine = [path for path in sorted(parts) if _without(path, videos)]
        for part in mine:
            touched.append(part.with_suffix(".tar"))
            part.unlink()
        listed = {path.with_suffix(".tar").name for path in part_files(directory)}
        for path in (*directory.glob("*.tar"), *directory.glob(".*.partial")):
            if path.name not in listed:
                path.unlink()
        index = directory / "index.parquet"
        if mine or (index.is_file() and pc.any(pc.is_in(read_index_file(index)["video"], _values(videos))).as_py()):
            finish(directory)
    return touched


def _without(part: Path, videos: Collection[str]) -> bool:
    """Write the shard of ``part`` without some videos under another name, and remove it; False where it has none of them."""
    table, shard = read_index_file(part), part.with_suffix(".tar")
    gone = np.asarray(pc.is_in(table["video"], _values(videos)))
    if not gone.any():
        return False
    kept = table.filter(pa.array(~gone))
    if shard.is_file():
        if kept.num_rows:
            digest = hashlib.sha256("\n".join(sorted(videos)).encode()).hexdigest()[:6]
            write_shard(part.parent, f"{part.stem}-{digest}", _copied(shard, kept))
        shard.unlink()
    return True


def _copied(shard: Path, rows: pa.Table) -> Iterator[Entry]:
    with shard.open("rb") as file:
        for row in rows.to_pylist():
            file.seek(row["offset"])
            blob = file.read(row["size"])
            if zlib.crc32(blob) == row["crc32"]:  # a damaged entry is not worth keeping
                yield Entry(row["key"], row["video"], row["part"], row["source"], row["clip"], blob)


def _values(videos: Collection[str]) -> pa.Array:
    return pa.array(list(videos), pa.string())
