"""``animeshooter lint DIR``: everything a dataset directory promises, checked against its bytes."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import pyarrow.parquet as pq
from PIL import Image
from pydantic import ValidationError

from animeshooter_dataset import (
    KEY_PATTERN,
    MEMBERS,
    RECORDS,
    SCHEMA_VERSION,
    SPLITS,
    AudioRecord,
    DataError,
    DroppedRecord,
    FilmRecord,
    Record,
    RightsRecord,
    ShotRecord,
    StoryRecord,
    first_problem,
    index_name,
    read_audio_index,
    read_entries,
    read_index,
    read_lines,
    read_manifest,
    shards,
    splits,
)
from curation.card import render_card
from curation.pack import HASHED, INDEXED, LEDGERS, file_hashes, index_values


@dataclass
class LintReport:
    """What lint found: one line a problem, and how much was looked at."""

    problems: list[str] = field(default_factory=list)
    samples: dict[str, int] = field(default_factory=dict)
    frames: int = 0


@dataclass
class _Seen:
    """What the shards hold, for the checks between them."""

    stories: dict[str, StoryRecord] = field(default_factory=dict)
    shots: dict[str, ShotRecord] = field(default_factory=dict)
    clips: dict[str, AudioRecord] = field(default_factory=dict)
    places: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    videos: dict[str, str] = field(default_factory=dict)


def lint(directory: Path, *, decode: bool = True, progress: Callable[[str], None] | None = None) -> LintReport:
    """Check a dataset directory: files and hashes, shards, records, references between them, index, card, and every clip.

    Args:
        directory: the dataset.
        decode: also decode every clip and picture; without it a lint takes seconds and proves less.
        progress: called with the name of each shard before it is read.

    Raises:
        DataError: it is not a dataset directory at all.
    """
    report, seen = LintReport(), _Seen()
    _check_files(directory, report)
    for config in MEMBERS:
        for split in splits(directory, config):
            for tar in shards(directory, config, split):
                if progress:
                    progress(f"{config}/{tar.name}")
                _check_shard(tar, config, split, decode, report, seen)
    _check_joins(report, seen)
    for config in INDEXED:
        _check_index(directory, config, report, seen)
    _check_rights(directory, report, seen)
    return report


def _check_files(directory: Path, report: LintReport) -> None:
    promised, found = read_manifest(directory).get("files", {}), file_hashes(directory)
    for name in sorted(promised.keys() | found.keys()):
        if name not in found:
            report.problems.append(f"{name}: named in manifest.json but not there")
        elif name not in promised:
            report.problems.append(f"{name}: not named in manifest.json")
        elif promised[name] != found[name]:
            report.problems.append(f"{name}: differs from the size or sha256 in manifest.json")
    try:
        if render_card(directory, read_manifest(directory)) != (directory / "README.md").read_text(encoding="utf-8"):
            report.problems.append("README.md: stale, says something else than the shards; `animeshooter card` writes it anew")
    except (OSError, DataError, ValueError, KeyError, IndexError) as error:
        report.problems.append(f"README.md: cannot be compared with the shards ({type(error).__name__}: {error})")


def _check_shard(tar: Path, config: str, split: str, decode: bool, report: LintReport, seen: _Seen) -> None:
    where, finished = f"{config}/{tar.name}", set()
    try:
        for key, entries in read_entries(tar):
            names = [entry.name.partition(".")[2] for entry, _ in entries]
            if key in finished:
                report.problems.append(f"{where}: members of {key} are not adjacent")
            finished.add(key)
            if names != list(MEMBERS[config]):
                report.problems.append(f"{where}: {key} has members {names}, not {list(MEMBERS[config])}")
                continue
            report.samples[config] = report.samples.get(config, 0) + 1
            _check_sample(f"{where}: {key}", key, config, split, entries, decode, report, seen)
    except DataError as error:
        report.problems.append(str(error))


def _check_sample(
    where: str,
    key: str,
    config: str,
    split: str,
    entries: list[tuple[tarfile.TarInfo, bytes]],
    decode: bool,
    report: LintReport,
    seen: _Seen,
) -> None:
    blobs = {entry.name.partition(".")[2]: blob for entry, blob in entries}
    if not re.fullmatch(KEY_PATTERN, key):
        report.problems.append(f"{where}: keys are lower case without dots")
    try:
        record: Any = RECORDS[config].model_validate_json(blobs["json"])
    except ValidationError as error:
        report.problems.append(f"{where}: {first_problem(error)}")
        return
    if record.key != key or record.split != split:
        report.problems.append(f"{where}: its json says key {record.key}, split {record.split}")
    seen.videos.setdefault(record.video, split)
    if seen.videos[record.video] != split:
        report.problems.append(f"{where}: video {record.video} is in two splits")
    if isinstance(record, StoryRecord):
        seen.stories[key] = record
    if isinstance(record, ShotRecord):
        seen.shots[key] = record
    if isinstance(record, AudioRecord):
        seen.clips[key] = record
    if config in INDEXED:
        place = seen.places[config, key] = {"shard": where.partition(":")[0]}
        place |= {column: hashlib.sha256(blobs[member]).hexdigest() for member, column in HASHED[config].items()}
        for entry, blob in entries:
            member = entry.name.partition(".")[2]
            place |= {f"{member}_offset": entry.offset_data, f"{member}_size": len(blob)}
    if decode:
        report.problems.extend(f"{where}: {problem}" for problem in _media_problems(record, blobs, report))


def _media_problems(record: Record, blobs: dict[str, bytes], report: LintReport) -> Iterator[str]:
    for name in ("png", "jpg"):
        if name in blobs:
            try:
                with Image.open(io.BytesIO(blobs[name])) as image:
                    image.load()
                    size = image.size
            except (OSError, SyntaxError) as error:
                yield f"its {name} does not decode ({error})"
                continue
            if name == "png" and isinstance(record, ShotRecord | StoryRecord):
                yield from (
                    f"box {reference.box} lies outside the reference sheet of {size[0]} x {size[1]}"
                    for reference in record.references
                    if not _inside(reference.box, size)
                )
    if isinstance(record, ShotRecord | AudioRecord):
        yield from _clip_problems(record, blobs["mp4"], report)
    if isinstance(record, AudioRecord):
        yield from _sound_problems(record, blobs["flac"])


def _inside(box: tuple[int, int, int, int], size: tuple[int, int]) -> bool:
    return 0 <= box[0] < box[2] <= size[0] and 0 <= box[1] < box[3] <= size[1]


def _clip_problems(record: ShotRecord | AudioRecord, blob: bytes, report: LintReport) -> Iterator[str]:
    try:
        with av.open(io.BytesIO(blob)) as container:
            decoded, shape = 0, (0, 0)
            for frame in container.decode(video=0):
                decoded, shape = decoded + 1, (frame.height, frame.width)
            sound = bool(container.streams.audio)
    except (av.error.FFmpegError, IndexError) as error:
        yield f"its clip does not decode ({error})"
        return
    report.frames += decoded
    if decoded != record.frames:
        yield f"its clip decodes to {decoded} frames, the record says {record.frames}"
    if isinstance(record, ShotRecord) and record.picture and not _inside(record.picture, (record.width, record.height)):
        yield f"its picture {record.picture} lies outside the frame of {record.width} x {record.height}"
    if shape != (record.height, record.width):
        yield f"its clip is {shape[1]} x {shape[0]}, the record says {record.width} x {record.height}"
    if sound != record.has_audio:
        yield f"its clip {'has' if sound else 'lacks'} sound, the record says otherwise"


def _sound_problems(record: AudioRecord, blob: bytes) -> Iterator[str]:
    try:
        with av.open(io.BytesIO(blob)) as container:
            samples = sum(frame.samples for frame in container.decode(audio=0))
    except (av.error.FFmpegError, IndexError) as error:
        yield f"its flac does not decode ({error})"
        return
    if samples != record.samples:
        yield f"its flac decodes to {samples} samples, the record says {record.samples}"


def _check_joins(report: LintReport, seen: _Seen) -> None:
    told = {shot.key: (story, shot) for story in seen.stories.values() for shot in story.shots}
    for key in sorted(told.keys() ^ seen.shots.keys()):
        report.problems.append(f"{key}: in {'stories' if key in told else 'shots'} only")
    for key in sorted(told.keys() & seen.shots.keys()):
        (story, said), shot = told[key], seen.shots[key]
        if shot.story != story.key or any(getattr(shot, name) != value for name, value in said):
            report.problems.append(f"{key}: the shot and its story {story.key} say different things")
        _check_references(key, shot, seen, report)
    for key, story in sorted(seen.stories.items()):
        _check_references(key, story, seen, report)


def _check_references(key: str, record: ShotRecord | StoryRecord, seen: _Seen, report: LintReport) -> None:
    """References come from shots that are there, of the same film: what has to go with a film must not show in another."""
    for reference in record.references:
        source = seen.shots.get(reference.shot)
        if source is None:
            report.problems.append(f"{key}: a reference comes from {reference.shot}, which is not there")
        elif source.video != record.video:
            report.problems.append(f"{key}: a reference comes from {reference.shot}, which is of another video")


def _check_index(directory: Path, config: str, report: LintReport, seen: _Seen) -> None:
    """An index has a row a sample, in the order of the shards, and every value is that of its sample."""
    present = [split for split in SPLITS if (directory / index_name(config, split)).is_file()]
    if config == "audio" and not present and str(read_manifest(directory)["schema_version"]) in ("1.0", "1.1"):
        return  # audio clips have an index since schema 1.2
    for split in SPLITS:
        name, sharded = index_name(config, split), split in splits(directory, config)
        if split not in present and sharded:
            mend = "" if config == "shots" else "; `animeshooter filter DIR --out NEW` writes the dataset anew with it"
            report.problems.append(f"{name}: the split has no index{mend}")
        elif split in present:
            if not sharded:
                report.problems.append(f"{name}: the split has no shards")
            _check_rows(directory, config, split, report, seen)


def _check_rows(directory: Path, config: str, split: str, report: LintReport, seen: _Seen) -> None:
    name, records = index_name(config, split), seen.shots if config == "shots" else seen.clips
    there = [key for key, record in records.items() if record.split == split]
    try:
        rows = (read_index if config == "shots" else read_audio_index)(directory, split).to_pylist()
        older = str(read_manifest(directory)["schema_version"]) != SCHEMA_VERSION
        has = set(pq.read_schema(directory / name).names) if older else None  # an older index has fewer columns
    except DataError as error:
        report.problems.append(str(error))
        return
    for row in rows:
        record = records.get(row["key"])
        if record is None:
            report.problems.append(f"{name}: {row['key']} is in no shard")
            continue
        true = index_values(record) | seen.places[config, row["key"]]
        wrong = sorted(column for column, value in true.items() if row[column] != value and (has is None or column in has))
        if wrong:
            report.problems.append(f"{name}: {row['key']} is wrong in {', '.join(wrong)}")
    listed = [row["key"] for row in rows]
    missing = sorted(set(there) - set(listed))
    report.problems.extend(f"{key}: in no index" for key in missing)
    if not missing and set(listed) == set(there) and listed != there:
        report.problems.append(f"{name}: rows stand twice, or in another order than their samples in the shards")


def _check_rights(directory: Path, report: LintReport, seen: _Seen) -> None:
    named: dict[str, str] = {}
    for right in _lines(directory / "rights.jsonl", RightsRecord, report):
        if right.video in named:
            report.problems.append(f"rights.jsonl: {right.video} stands twice")
        named[right.video] = right.state
        if right.state != "kept" and right.video in seen.videos:
            report.problems.append(f"rights.jsonl: {right.video} is {right.state} but still has rows")
    for video in sorted(seen.videos.keys() - named.keys()):
        report.problems.append(f"rights.jsonl: no line for {video}")
    told = Counter(story.video for story in seen.stories.values())
    kept = {film.video: film.stories for film in _lines(directory / "films.jsonl", FilmRecord, report) if film.state == "kept"}
    for video in sorted(kept.keys() | told.keys(), key=str):
        if kept.get(video, 0) != told[str(video)]:
            report.problems.append(f"films.jsonl: {video} has {told[str(video)]} stories, its line says {kept.get(video, 0)}")
    for _ in _lines(directory / "dropped.jsonl", DroppedRecord, report):
        pass
    for name, kind in LEDGERS.items():
        if (directory / f"{name}.jsonl").is_file():
            for line in _lines(directory / f"{name}.jsonl", kind, report):
                if line.video not in named:
                    report.problems.append(f"{name}.jsonl: rights.jsonl has no line for {line.video}")
                if name == "removals" and line.video in seen.videos:
                    report.problems.append(f"removals.jsonl: {line.video} was removed but still has rows")


def _lines(path: Path, kind: type[Any], report: LintReport) -> Iterator[Any]:
    try:
        yield from read_lines(path, kind)
    except DataError as error:
        report.problems.append(str(error))
