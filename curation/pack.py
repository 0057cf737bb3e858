"""Stage ``pack``: curated stories become a dataset directory, all of it or nothing.

The directory is written beside its final place and moved there in one rename. Its bytes depend on the films and the settings
alone: stories lie in the order of their videos' ids, tars carry no times or owners, JSON is canonical.
"""

from __future__ import annotations

import ctypes
import hashlib
import io
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from animeshooter_dataset import (
    AUDIO_INDEX_SCHEMA,
    INDEX_SCHEMA,
    MEMBERS,
    SCHEMA_VERSION,
    AudioRecord,
    AvailabilityRecord,
    DataError,
    DroppedRecord,
    FilmRecord,
    Record,
    RemovalRecord,
    RightsRecord,
    ShotRecord,
    StoryRecord,
    dump,
    index_name,
    read_lines,
    split_of,
)
from curation.card import render_card

MIN_VIDEOS_TO_SPLIT = 20
"""Under this many videos everything is ``train`` unless the user gives shares: a split of one film measures that film."""
DEFAULT_SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}
INDEXED = {"shots": INDEX_SCHEMA, "audio": AUDIO_INDEX_SCHEMA}
"""The configs whose samples have rows in an index, and its columns."""
HASHED = {"shots": {"mp4": "sha256"}, "audio": {"flac": "sha256", "mp4": "mp4_sha256"}}
"""Of the configs with an index: the members that are hashed, and the columns of the hashes."""
INDEX_ROWS = 4096
"""Rows of the index written at a time: a row group of its file."""
AT_FDCWD, RENAME_EXCHANGE = -100, 2
"""Arguments of renameat2(2): paths as they are, and exchange both."""
LINES = ("films", "rights", "dropped")
"""Files of one line a film, a video or a loss."""
LEDGERS: dict[str, type[Any]] = {"availability": AvailabilityRecord, "removals": RemovalRecord}
"""Files of lines that outlive a build: they are there once there is something to say, see :meth:`Packer.keep_ledgers`."""


@dataclass(frozen=True)
class CuratedStory:
    """One story ready to pack; the media of record ``key`` lie in ``folder`` as ``key.mp4``, ``key.png`` and so on.

    ``refused`` counts, by reason, the masks of its characters that became no reference image.
    """

    story: StoryRecord
    shots: Sequence[ShotRecord]
    audio: Sequence[AudioRecord]
    folder: Path
    refused: Mapping[str, int]

    def media(self, key: str, member: str) -> bytes:
        """The bytes of one member of one of its samples."""
        return (self.folder / f"{key}.{member}").read_bytes()


class Hashed:
    """A file that is written from start to end, with its size and hash known at the end."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file: BinaryIO = path.open("wb")
        self.digest, self.bytes = hashlib.sha256(), 0

    def write(self, blob: Any) -> int:
        """Append bytes."""
        self.digest.update(blob)
        self.bytes += len(blob)
        return self.file.write(blob)

    def tell(self) -> int:
        """Bytes written."""
        return self.bytes

    def close(self) -> dict[str, Any]:
        """Finish; returns the file's line in the manifest."""
        self.file.close()
        return {"bytes": self.bytes, "sha256": self.digest.hexdigest()}


@dataclass
class Shards:
    """Writes the tars of one config and split; a new one begins when ``limit`` bytes are reached, never inside a story.

    ``files`` takes size and hash of every finished tar.
    """

    directory: Path
    config: str
    split: str
    limit: int
    files: dict[str, dict[str, Any]]
    count: int = 0
    archive: tarfile.TarFile | None = None
    file: Hashed | None = None

    @property
    def name(self) -> str:
        """Path of the current shard inside the directory."""
        return f"{self.config}/{self.split}-{self.count - 1:05d}.tar"

    def begin_story(self) -> None:
        """Move on to the next shard if this one is full."""
        if self.file is None or self.file.tell() >= self.limit:
            self.close()
            self.count += 1
            self.file = Hashed(self.directory / self.name)
            self.archive = tarfile.TarFile(fileobj=self.file, mode="w", format=tarfile.USTAR_FORMAT)  # type: ignore[arg-type]

    def add(self, key: str, blobs: Mapping[str, bytes]) -> dict[str, Any]:
        """Append one sample; returns the byte offset and size of each member, and the hashes that its index row has."""
        assert self.archive is not None
        places: dict[str, Any] = {}
        for member, blob in blobs.items():
            entry = tarfile.TarInfo(f"{key}.{member}")
            entry.size, entry.mode = len(blob), 0o644
            offset = self.archive.offset + tarfile.BLOCKSIZE
            self.archive.addfile(entry, io.BytesIO(blob))
            places |= {f"{member}_offset": offset, f"{member}_size": len(blob)}
            if column := HASHED.get(self.config, {}).get(member):
                places[column] = hashlib.sha256(blob).hexdigest()
        self.archive.members.clear()  # type: ignore[attr-defined] # tarfile keeps one object an entry, for reading back
        return places

    def close(self) -> None:
        """Finish the current shard."""
        if self.archive is not None and self.file is not None:
            self.archive.close()
            self.files[self.name] = self.file.close()
            self.archive = self.file = None


@dataclass
class Index:
    """Writes the index of one config and split, some thousand rows at a time."""

    path: Path
    schema: pa.Schema
    rows: list[dict[str, Any]] = field(default_factory=list)
    writer: pq.ParquetWriter | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Append a row."""
        self.rows.append(row)
        if len(self.rows) >= INDEX_ROWS:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait."""
        if self.writer is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.writer = pq.ParquetWriter(self.path, self.schema, compression="zstd")
        if self.rows:
            self.writer.write_table(pa.Table.from_pylist(self.rows, schema=self.schema))
            self.rows.clear()

    def close(self) -> None:
        """Finish the file."""
        self.flush()
        assert self.writer is not None
        self.writer.close()


class Packer:
    """Writes a dataset directory from films and curated stories, given in the order in which they shall lie.

    Memory does not grow with the dataset. Used in a ``with`` block, it closes what it opened whatever happens.

    Args:
        directory: an empty folder.
        shares: share of each split.
        shard_size: bytes after which the next story begins a new tar.
        reject: names of the rules that a shot fails, from its index row without places.
    """

    def __init__(
        self,
        directory: Path,
        shares: Mapping[str, float],
        shard_size: int,
        reject: Callable[[Mapping[str, Any]], list[str]] = lambda row: [],
    ) -> None:
        self.directory, self.shares, self.shard_size, self.reject = directory, shares, shard_size, reject
        self.counts: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.rejected: Counter[str] = Counter()
        self.files: dict[str, dict[str, Any]] = {}
        self.writers: dict[tuple[str, str], Shards] = {}
        self.indexes: dict[tuple[str, str], Index] = {}
        self.videos: set[str] = set()
        self.lines = {name: Hashed(directory / f"{name}.jsonl") for name in LINES}

    def __enter__(self) -> Packer:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is not None:
            open_files = [*self.lines.values(), *(writer.file for writer in self.writers.values() if writer.file is not None)]
            for each in open_files:
                each.file.close()

    def add_film(self, record: FilmRecord, rights: RightsRecord | None) -> None:
        """Append the lines on a film, kept or not; one that could not be read has no rights to state."""
        self.lines["films"].write(dump(record) + b"\n")
        if rights is not None:
            self.add_rights(rights)

    def add_rights(self, rights: RightsRecord) -> None:
        """Append the line of rights of a video."""
        self.videos.add(rights.video)
        self.lines["rights"].write(dump(rights) + b"\n")

    def keep_ledgers(self, earlier: Path, availability: Iterable[AvailabilityRecord] = ()) -> None:
        """Take over what outlives a dataset from an earlier one; comes after all films.

        That is: rights that were withdrawn, all removals, and the availability of the videos that have a line of rights here,
        for which ``availability`` may say something newer. Where there is nothing to say, there is no file.
        """
        if (earlier / "rights.jsonl").is_file():
            for rights in read_lines(earlier / "rights.jsonl", RightsRecord):
                if rights.state == "withdrawn" and rights.video not in self.videos:
                    self.add_rights(rights)
        removals, before = earlier / "removals.jsonl", earlier / "availability.jsonl"
        known = {line.video: line for line in read_lines(before, AvailabilityRecord)} if before.is_file() else {}
        known |= {line.video: line for line in availability}
        self._add_ledger("availability", (known[video] for video in sorted(known) if video in self.videos))
        self._add_ledger("removals", read_lines(removals, RemovalRecord) if removals.is_file() else ())

    def _add_ledger(self, name: str, records: Iterable[Record]) -> None:
        for record in records:
            if name not in self.lines:
                self.lines[name] = Hashed(self.directory / f"{name}.jsonl")
            self.lines[name].write(dump(record) + b"\n")

    def add_dropped(self, losses: Iterable[DroppedRecord]) -> None:
        """Append lines on what was dropped."""
        for loss in losses:
            self.dropped[loss.stage] += 1
            self.lines["dropped"].write(dump(loss) + b"\n")

    def add(self, curated: CuratedStory) -> None:
        """Append one story, its shots and its audio clips."""
        self.refused.update(curated.refused)
        shots = self.add_records("shots", curated.shots, curated.media)
        self.add_records("stories", [curated.story], curated.media)
        self.add_records("audio", curated.audio, curated.media)
        self.counts["rejected"] += sum(bool(shot.rejected_by) for shot in shots)

    def add_records(self, config: str, records: Sequence[Any], media: Callable[[str, str], bytes]) -> list[Any]:
        """Append samples of one story and config; returns the records as they were written.

        Args:
            config: where they belong.
            records: records of that config.
            media: the bytes of a member, given the sample's key and the member's name.
        """
        written = []
        for number, record in enumerate(records):
            split = split_of(record.video, self.shares)
            writer = self.writers.get((config, split))
            if writer is None:
                writer = Shards(self.directory, config, split, self.shard_size, self.files)
                self.writers[config, split] = writer
            if not number:
                writer.begin_story()
            record = record.model_copy(update={"split": split})
            if isinstance(record, ShotRecord):
                record = record.model_copy(update={"rejected_by": self.reject(index_values(record))})
                self.rejected.update(record.rejected_by)
            members = {name: dump(record) if name == "json" else media(record.key, name) for name in MEMBERS[config]}
            places = writer.add(record.key, members)
            self.counts[config] += 1
            if config in INDEXED:
                index = self.indexes.setdefault(
                    (config, split), Index(self.directory / index_name(config, split), INDEXED[config])
                )
                index.add({**index_values(record), **places, "shard": writer.name})
            written.append(record)
        return written

    def finish(self, settings: Mapping[str, Any]) -> None:
        """Close everything, then write card and manifest."""
        for writer in self.writers.values():
            writer.close()
        for index in self.indexes.values():
            index.close()
        self.files |= {f"{name}.jsonl": lines.close() for name, lines in self.lines.items()}
        values = {
            **settings,
            "dropped": dict(sorted(self.dropped.items())),
            "masks_refused": dict(sorted(self.refused.items())),
            "rejected_by": dict(sorted(self.rejected.items())),
        }
        self.files |= {path.relative_to(self.directory).as_posix(): file_hash(path) for path in self._index_files()}
        write_manifest(self.directory, values, self.files)

    def _index_files(self) -> list[Path]:
        return [index.path for index in self.indexes.values()]


def write_manifest(directory: Path, values: Mapping[str, Any], files: Mapping[str, dict[str, Any]]) -> None:
    """Write card and manifest of a dataset directory in which everything else stands.

    Args:
        directory: the dataset.
        values: what the manifest says besides the files; ``files`` in it does not count, ``schema_version`` is the current one
            if it is not in it.
        files: size and sha256 of every other file, by relative path.
    """
    manifest = {"schema_version": SCHEMA_VERSION, **{name: value for name, value in values.items() if name != "files"}}
    card = directory / "README.md"
    card.write_text(render_card(directory, manifest), encoding="utf-8")
    everything = dict(sorted({**files, card.name: file_hash(card)}.items()))
    text = json.dumps({**manifest, "files": everything}, indent=1, ensure_ascii=False) + "\n"
    (directory / "manifest.json").write_text(text, encoding="utf-8")


def shares_for(asked: Mapping[str, float] | None, kept: Iterable[bool]) -> Mapping[str, float]:
    """The shares of splits: those asked for, else the default where there are videos enough.

    Args:
        asked: what the settings say.
        kept: of each film whether it is kept; looked at only where nothing is asked, and no further than needed.
    """
    if asked:
        return asked
    enough = islice((film for film in kept if film), MIN_VIDEOS_TO_SPLIT)
    return DEFAULT_SHARES if sum(enough) == MIN_VIDEOS_TO_SPLIT else {"train": 1.0}


def index_values(record: ShotRecord | AudioRecord) -> dict[str, Any]:
    """The columns of an index row that the record alone determines."""
    return _clip_values(record) if isinstance(record, AudioRecord) else _shot_values(record)


def _clip_values(clip: AudioRecord) -> dict[str, Any]:
    same = ("key", "story", "video", "position", "frames", "fps", "height", "width", "characters", "licence")
    heard = ("samples", "sample_rate", "channels", "type", "shots")
    return {**{name: getattr(clip, name) for name in (*same, *heard)}, **clip.sound.model_dump()}


def _shot_values(shot: ShotRecord) -> dict[str, Any]:
    picture = shot.picture or (0, 0, shot.width, shot.height)
    same = ("key", "story", "video", "position", "frames", "fps", "height", "width", "has_audio", "characters", "licence")
    return {
        **{name: getattr(shot, name) for name in (*same, "prologue_or_epilogue", "rejected_by")},
        **shot.scores.model_dump(),
        **shot.sound.model_dump(),
        "picture_height": picture[3] - picture[1],
        "picture_width": picture[2] - picture[0],
        "clean_start": shot.clean_start_frame - shot.start_frame,
        "clean_end": shot.clean_end_frame - shot.start_frame,
        "references": len(shot.references),
    }


def file_hashes(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file of a dataset directory but its manifest, by relative path.

    Files and folders whose names begin with a dot are not the dataset's: git and the Hub's client put theirs into copies.
    """
    names = sorted(path.relative_to(directory) for path in directory.rglob("*") if path.is_file())
    own = [name for name in names if name.name != "manifest.json" and not any(part.startswith(".") for part in name.parts)]
    return {name.as_posix(): file_hash(directory / name) for name in own}


def file_hash(path: Path) -> dict[str, Any]:
    """Size and sha256 of one file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def check_target(out: Path) -> None:
    """Refuse an output that holds something other than an earlier dataset.

    Raises:
        DataError: it is a file, or a folder that a build must not replace.
    """
    if out.exists() and not (out / "manifest.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not a dataset directory; name another --out or move it away")


def publish(finished: Path, out: Path) -> None:
    """Move a finished directory to its place; an earlier dataset there is replaced in one step and then removed.

    Where the system cannot exchange two folders, there is a moment between two renames in which a kill leaves the earlier
    dataset at ``OUT.old``; :func:`recover` puts it back.
    """
    old = out.with_name(f"{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if not out.exists():
        os.replace(finished, out)
    elif _exchange(finished, out):
        os.replace(finished, old)
    else:
        os.replace(out, old)
        os.replace(finished, out)
    shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders of one file system in one step; False where that cannot be done (not Linux, some network disks)."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    return rename(AT_FDCWD, os.fsencode(one.absolute()), AT_FDCWD, os.fsencode(other.absolute()), RENAME_EXCHANGE) == 0


def recover(out: Path) -> None:
    """Put right what a killed run left: a dataset that was moved away between the two renames of :func:`publish` comes back.

    What else such a run left beside the dataset goes: it may hold what was taken out of it.
    """
    old = out.with_name(f"{out.name}.old")
    if old.is_dir() and not out.exists():
        os.replace(old, out)
    for left in (old, out.with_name(f"{out.name}.edition")):
        shutil.rmtree(left, ignore_errors=True)
