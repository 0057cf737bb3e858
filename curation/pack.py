"""Stage ``pack``: curated stories become a dataset directory, all of it or nothing.

The directory is written beside its final place and moved there in one rename. Its bytes depend on the films and the settings
alone: stories lie in the order of their videos' ids, tars carry no times or owners, JSON is canonical.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from animeshooter_dataset import (
    INDEX_SCHEMA,
    MEMBERS,
    SCHEMA_VERSION,
    AudioRecord,
    DataError,
    Record,
    RightsRecord,
    ShotRecord,
    StoryRecord,
    dump,
    split_of,
)
from curation.card import render_card

MIN_VIDEOS_TO_SPLIT = 20
"""Under this many videos everything is ``train`` unless the user gives shares: a split of one film measures that film."""
DEFAULT_SHARES = {"train": 0.9, "validation": 0.05, "test": 0.05}


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


@dataclass
class Shards:
    """Writes the tars of one config and split; a new one begins when ``limit`` bytes are reached, never inside a story."""

    directory: Path
    config: str
    split: str
    limit: int
    count: int = 0
    archive: tarfile.TarFile | None = None
    file: BinaryIO | None = None

    @property
    def name(self) -> str:
        """Path of the current shard inside the directory."""
        return f"{self.config}/{self.split}-{self.count - 1:05d}.tar"

    def begin_story(self) -> None:
        """Move on to the next shard if this one is full."""
        if self.file is None or self.file.tell() >= self.limit:
            self.close()
            self.count += 1
            path = self.directory / self.name
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("wb")
            self.archive = tarfile.TarFile(fileobj=self.file, mode="w", format=tarfile.USTAR_FORMAT)

    def add(self, record: Record, folder: Path) -> dict[str, Any]:
        """Append one sample; returns the byte offset and size of each member, and the hash of its clip if it has one."""
        assert self.archive is not None
        key = str(record.key)  # type: ignore[attr-defined]
        places: dict[str, Any] = {}
        for member in MEMBERS[self.config]:
            blob = dump(record) if member == "json" else (folder / f"{key}.{member}").read_bytes()
            entry = tarfile.TarInfo(f"{key}.{member}")
            entry.size, entry.mode = len(blob), 0o644
            offset = self.archive.offset + tarfile.BLOCKSIZE
            self.archive.addfile(entry, io.BytesIO(blob))
            places |= {f"{member}_offset": offset, f"{member}_size": len(blob)}
            if member == "mp4":
                places["sha256"] = hashlib.sha256(blob).hexdigest()
        return places

    def close(self) -> None:
        """Finish the current shard."""
        if self.archive is not None and self.file is not None:
            self.archive.close()
            self.file.close()
            self.archive = self.file = None


@dataclass
class Packer:
    """Writes a dataset directory from curated stories, given in the order in which they shall lie."""

    directory: Path
    shares: Mapping[str, float]
    shard_size: int
    writers: dict[tuple[str, str], Shards] = field(default_factory=dict)
    rows: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def add(self, curated: CuratedStory) -> None:
        """Append one story, its shots and its audio clips."""
        split = split_of(curated.story.video, self.shares)
        by_config: dict[str, Sequence[Record]] = {
            "stories": [curated.story],
            "shots": curated.shots,
            "audio": curated.audio,
        }
        for config, records in by_config.items():
            if not records:
                continue
            writer = self.writers.setdefault((config, split), Shards(self.directory, config, split, self.shard_size))
            writer.begin_story()
            for record in records:
                record = record.model_copy(update={"split": split})
                places = writer.add(record, curated.folder)
                if isinstance(record, ShotRecord):
                    row = {**index_values(record), **places, "shard": writer.name}
                    self.rows.setdefault(split, []).append(row)

    def finish(self, rights: Iterable[RightsRecord], settings: Mapping[str, Any], report: Mapping[str, Any]) -> None:
        """Close the shards, then write index, rights, card and manifest."""
        for writer in self.writers.values():
            writer.close()
        (self.directory / "index").mkdir(parents=True, exist_ok=True)
        for split, rows in self.rows.items():
            table = pa.Table.from_pylist(rows, schema=INDEX_SCHEMA)
            pq.write_table(table, self.directory / "index" / f"{split}.parquet", compression="zstd")
        lines = b"".join(dump(line) + b"\n" for line in rights)
        (self.directory / "rights.jsonl").write_bytes(lines)
        (self.directory / "README.md").write_text(render_card(self.directory), encoding="utf-8")
        manifest = {"schema_version": SCHEMA_VERSION, **settings, **report, "files": file_hashes(self.directory)}
        (self.directory / "manifest.json").write_text(
            json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def index_values(shot: ShotRecord) -> dict[str, Any]:
    """The columns of a shot's index row that its record alone determines."""
    same = ("key", "story", "video", "position", "frames", "fps", "height", "width", "has_audio", "characters", "licence")
    return {
        **{name: getattr(shot, name) for name in (*same, "prologue_or_epilogue")},
        "clean_start": shot.clean_start_frame - shot.start_frame,
        "clean_end": shot.clean_end_frame - shot.start_frame,
        "references": len(shot.references),
    }


def file_hashes(directory: Path) -> dict[str, dict[str, Any]]:
    """Size and sha256 of every file of a dataset directory but its manifest, by relative path."""
    found = {}
    for path in sorted(path for path in directory.rglob("*") if path.is_file() and path.name != "manifest.json"):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        found[path.relative_to(directory).as_posix()] = {"bytes": path.stat().st_size, "sha256": digest}
    return found


def check_target(out: Path) -> None:
    """Refuse an output that holds something other than an earlier dataset.

    Raises:
        DataError: it is a file, or a folder that a build must not replace.
    """
    if out.exists() and not (out / "manifest.json").is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists and is not a dataset directory; name another --out or move it away")


def publish(finished: Path, out: Path) -> None:
    """Move a finished directory to its place; an earlier dataset there is replaced, and is whole until then."""
    old = out.with_name(f"{out.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if out.exists():
        os.replace(out, old)
    os.replace(finished, out)
    shutil.rmtree(old, ignore_errors=True)
