"""The AnimeShooter dataset as its users see it: records, features, index and builder.

A dataset directory holds WebDataset tars of three kinds, one builder config each:

``shots``    one sample a shot: ``mp4`` (clip with sound), ``json`` (:class:`ShotRecord`), ``png`` (reference sheet)
``stories``  one sample a story: ``json`` (:class:`StoryRecord`), ``png`` (reference sheet), ``jpg`` (storyboard)
``audio``    one sample a clip cut by ear and eye: ``mp4``, ``flac``, ``json`` (:class:`AudioRecord`)

``load_dataset("animeshooter", "shots")`` needs nothing of this module: the directory's card declares the configs and
their features. This module is for those who write such a directory, or read it from Python::

    from animeshooter_dataset import AnimeShooter

    for shot in AnimeShooter(config_name="shots", data_dir="animeshooter").as_streaming_dataset("train"):
        print(shot["json"]["descriptive_caption"])

Frames count from 0 in presentation order of the source film; ``end_frame`` is exclusive; times are seconds from the
film's first frame, read from its presentation time stamps (variable frame rates are real).
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args, get_origin

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ValidationError

from animeshooter_records import (
    AUDIO_INDEX_SCHEMA,
    INDEX_SCHEMA,
    KEY_PATTERN,
    MEMBERS,
    RECORDS,
    SCHEMA_VERSION,
    SPLITS,
    AnnotatedBy,
    AudioRecord,
    AvailabilityRecord,
    Character,
    DataError,
    DroppedRecord,
    Evidence,
    FilmRecord,
    Record,
    Reference,
    RemovalRecord,
    RightsRecord,
    Scene,
    ShotAnnotation,
    ShotRecord,
    ShotScores,
    SoundScores,
    Storyboard,
    StoryRecord,
    dump,
    first_problem,
    parse,
    slug,
    split_of,
)

__all__ = [
    "AUDIO_INDEX_SCHEMA",
    "INDEX_SCHEMA",
    "KEY_PATTERN",
    "MEMBERS",
    "RECORDS",
    "SCHEMA_VERSION",
    "SPLITS",
    "AnimeShooter",
    "AnnotatedBy",
    "AudioRecord",
    "AvailabilityRecord",
    "Character",
    "DataError",
    "DroppedRecord",
    "Evidence",
    "FilmRecord",
    "Record",
    "Reference",
    "RemovalRecord",
    "RightsRecord",
    "Scene",
    "ShotAnnotation",
    "ShotRecord",
    "ShotScores",
    "SoundScores",
    "StoryRecord",
    "Storyboard",
    "dump",
    "features",
    "first_problem",
    "index_name",
    "parse",
    "read_audio_index",
    "read_entries",
    "read_index",
    "read_lines",
    "read_manifest",
    "read_records",
    "read_rights",
    "read_samples",
    "shards",
    "slug",
    "split_of",
    "splits",
]


Line = TypeVar("Line", bound=Record)


def features(config: str, *, decode: bool = True) -> datasets.Features:
    """The declared features of ``config``, as they stand in the card; derived from its record class.

    ``load_dataset(..., features=features(config, decode=False))`` leaves clips and sound as bytes, and so needs no torchcodec,
    which ``datasets`` otherwise wants even to store a row of ``audio`` in a table.
    """
    media: dict[str, Any] = {
        "mp4": datasets.Video(decode=decode),
        "flac": datasets.Audio() if decode else datasets.Value("binary"),
        "png": datasets.Image(),
        "jpg": datasets.Image(),
    }
    columns = {name: _feature(RECORDS[config]) if name == "json" else media[name] for name in MEMBERS[config]}
    return datasets.Features({"__key__": datasets.Value("string"), "__url__": datasets.Value("string"), **columns})


def _feature(kind: Any) -> Any:
    origin, args = get_origin(kind), [arg for arg in get_args(kind) if arg is not type(None)]
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return {name: _feature(field.annotation) for name, field in kind.model_fields.items()}
    if origin in (list, tuple):
        return datasets.List(_feature(args[0]))
    if origin is Literal:
        return datasets.Value("string")
    if origin is not None:  # X | None
        return _feature(args[0])
    return datasets.Value({str: "string", int: "int64", float: "float64", bool: "bool"}[kind])


def shards(directory: Path, config: str, split: str) -> list[Path]:
    """The tars of one config and split, in stream order."""
    return sorted((directory / config).glob(f"{split}-[0-9][0-9][0-9][0-9][0-9].tar"))


def splits(directory: Path, config: str = "shots") -> list[str]:
    """The splits of a config that have at least one shard."""
    return [split for split in SPLITS if shards(directory, config, split)]


def read_manifest(directory: str | Path) -> dict[str, Any]:
    """The manifest of a dataset directory.

    Raises:
        DataError: there is none, or it is of a schema this version cannot read.
    """
    path = Path(directory) / "manifest.json"
    try:
        manifest = json.loads(path.read_text())
        version = str(manifest["schema_version"])
    except FileNotFoundError:
        raise DataError(
            f"{directory}: not a dataset directory (no manifest.json); make one with `animeshooter build`"
        ) from None
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: not a manifest ({error}); build the dataset again") from None
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise DataError(f"{path}: schema {version}, this version reads {SCHEMA_VERSION}; build the dataset again")
    return manifest


def index_name(config: str, split: str) -> str:
    """Where the index of a split lies in a dataset directory: of its shots, or of its audio clips."""
    return f"index/{'' if config == 'shots' else f'{config}-'}{split}.parquet"


def read_index(directory: str | Path, split: str = "train") -> pa.Table:
    """The shard index of a split: one row a shot, columns of :data:`INDEX_SCHEMA`.

    Raises:
        DataError: the directory is no dataset, has no such split, or its index is of another schema.
    """
    path = Path(directory) / index_name("shots", split)
    if not path.is_file() or (Path(directory) / "manifest.json").is_file():
        read_manifest(directory)
    if not path.is_file():
        raise DataError(f"{directory}: no split '{split}'; it has {', '.join(splits(Path(directory))) or 'none'}")
    return _read_table(path, INDEX_SCHEMA)


def read_audio_index(directory: str | Path, split: str = "train") -> pa.Table:
    """The index of the audio clips of a split: one row a clip, columns of :data:`AUDIO_INDEX_SCHEMA`.

    Raises:
        DataError: the directory is no dataset, has no audio clips in this split, or none that are indexed: datasets of schema
            1.1 have no such index.
    """
    manifest, path = read_manifest(directory), Path(directory) / index_name("audio", split)
    if not path.is_file():
        raise no_audio_index(str(directory), split, manifest.get("files", ()))
    return _read_table(path, AUDIO_INDEX_SCHEMA)


def no_audio_index(where: str, split: str, files: Collection[str]) -> DataError:
    """The error that tells why a split has no index of audio clips.

    Args:
        where: the dataset, as messages name it.
        split: the split.
        files: the dataset's files by relative path.
    """
    holding = [name for name in SPLITS if any(file.startswith(f"audio/{name}-") for file in files)]
    if split in holding:
        return DataError(
            f"{where}: no {index_name('audio', split)}: it was made before audio clips had an index, or that is lost; "
            "write it anew with `animeshooter filter DIR --out NEW`"
        )
    return DataError(f"{where}: no audio clips in split '{split}'; the splits with audio clips: {', '.join(holding) or 'none'}")


def _read_table(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        return pq.read_table(path, schema=schema)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{path}: not readable as a shard index ({str(error).splitlines()[0]}); build the dataset again"
        ) from None


class AnimeShooter(datasets.GeneratorBasedBuilder):
    """Builder of a dataset directory for use from Python; gives the same rows as ``load_dataset(directory, config)``.

    ``AnimeShooter(config_name="shots", data_dir="animeshooter")``, then ``as_streaming_dataset()``, or
    ``download_and_prepare()`` and ``as_dataset()``, as with any builder of ``datasets``.
    """

    VERSION = datasets.Version(SCHEMA_VERSION + ".0")
    BUILDER_CONFIGS = [datasets.BuilderConfig(name=name) for name in MEMBERS]  # noqa: RUF012
    DEFAULT_CONFIG_NAME = "shots"

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(features=features(self.config.name))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        directory = Path(self.config.data_dir or "animeshooter")
        read_manifest(directory)
        found = {split: shards(directory, self.config.name, split) for split in SPLITS}
        if not any(found.values()):
            raise DataError(f"{directory}: the config '{self.config.name}' is empty; the others may have rows")
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"tars": [str(path) for path in paths]})
            for split, paths in found.items()
            if paths
        ]

    def _generate_examples(self, tars: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        for tar in tars:
            for key, members in read_samples(tar):
                row: dict[str, Any] = {"__key__": key, "__url__": tar}
                for name in MEMBERS[self.config.name]:
                    blob = members[name]
                    row[name] = json.loads(blob) if name == "json" else {"path": f"{key}.{name}", "bytes": blob}
                yield key, row


def read_samples(
    tar: str | Path, wanted: Collection[str] | None = None, keys: Collection[str] | None = None
) -> Iterator[tuple[str, dict[str, bytes]]]:
    """Samples of one shard in order: (key, member → bytes). Members of a sample must be adjacent.

    Args:
        tar: the shard.
        wanted: only these members; the others are skipped unread. None for all.
        keys: only the samples of these keys; None for all.

    Raises:
        DataError: the tar is truncated or not a tar, or a sample lacks a wanted member.
    """
    for key, entries in read_entries(tar, wanted, keys):
        members = {entry.name.partition(".")[2]: blob for entry, blob in entries}
        missing = sorted(set(wanted or ()) - members.keys())
        if missing:
            raise DataError(f"{tar}: {key} has no {missing[0]}; build or download it again")
        yield key, members


def read_entries(
    tar: str | Path, wanted: Collection[str] | None = None, keys: Collection[str] | None = None
) -> Iterator[tuple[str, list[tuple[tarfile.TarInfo, bytes]]]]:
    """Runs of entries of one key, in order, with what the tar says of each; arguments as of :func:`read_samples`."""
    key: str | None = None
    entries: list[tuple[tarfile.TarInfo, bytes]] = []
    try:
        with tarfile.open(tar, "r:") as archive:
            while entry := archive.next():
                archive.members.clear()  # type: ignore[attr-defined] # tarfile would keep an object an entry
                stem, _, extension = entry.name.partition(".")
                if keys is not None and stem not in keys:
                    continue
                if key is not None and stem != key:
                    yield key, entries
                    entries = []
                key = stem
                if wanted is None or extension in wanted:
                    blob = archive.extractfile(entry)
                    entries.append((entry, blob.read() if blob else b""))
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{tar}: not a whole tar ({error}); build or download it again") from None
    if key is not None:
        yield key, entries


def read_records(directory: Path, config: str, wanted: Collection[str] | None = None) -> Iterator[tuple[Any, dict[str, bytes]]]:
    """Records of a config with the members of their samples, over all splits, in stream order.

    Raises:
        DataError: a shard is damaged, or a record is none.
    """
    for split in splits(directory, config):
        for tar in shards(directory, config, split):
            for key, members in read_samples(tar, wanted):
                yield parse(config, members["json"], f"{tar}: {key}"), members


def read_rights(directory: Path) -> list[RightsRecord]:
    """The lines of ``rights.jsonl``; see :func:`read_lines`."""
    return list(read_lines(directory / "rights.jsonl", RightsRecord))


def read_lines(path: Path, kind: type[Line]) -> Iterator[Line]:
    """The lines of ``rights.jsonl``, ``films.jsonl`` or ``dropped.jsonl`` as records of their ``kind``, one at a time.

    Raises:
        DataError: the file is missing, or a line of it is none.
    """
    try:
        with path.open(encoding="utf-8") as lines:
            for line in lines:
                yield kind.model_validate_json(line)
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}; build the dataset again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable ({error}); build the dataset again") from None
