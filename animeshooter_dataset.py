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

import hashlib
import json
import re
import tarfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA_VERSION = "1.0"
"""Version of records and layout; the major number changes when a reader of the old one would fail."""

MEMBERS = {"shots": ("mp4", "json", "png"), "stories": ("json", "png", "jpg"), "audio": ("mp4", "flac", "json")}
"""The members of a sample of each config, in the order in which they lie in the tar."""

SPLITS = ("train", "validation", "test")
KEY_PATTERN = r"^[a-z0-9][a-z0-9_-]*$"
"""Sample keys: WebDataset ends a key at its first dot, and some file systems fold case."""


class DataError(ValueError):
    """An error its user can cause and mend: the message is one line that names the file, what is wrong and the mend."""


class Record(BaseModel):
    """Base of all records: immutable, and a field that is not declared is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Character(Record):
    """A main character of a story."""

    id: str = Field(min_length=1)
    appearance: str


class Scene(Record):
    """A main scene (place) of a story."""

    id: str = Field(min_length=1)
    environment: str


class AnnotatedBy(Record):
    """Who wrote the captions. ``kind`` "measure" marks text that says only what was measured, without any model."""

    kind: str
    model: str | None = None


class Reference(Record):
    """One reference image of a character: a cut-out on the sample's sheet, taken from a frame of another shot.

    ``box`` is (x0, y0, x1, y1) in pixels on the sheet, ends exclusive; ``source_box`` the same in the frame at the
    clip's size.
    """

    character: str
    box: tuple[int, int, int, int]
    shot: str = Field(pattern=KEY_PATTERN)
    frame: int = Field(ge=0)
    source_box: tuple[int, int, int, int]


class _Keyed(Record):
    """A sample's key, and its place among its siblings, from 0."""

    key: str = Field(pattern=KEY_PATTERN)
    position: int = Field(ge=0)


class _Span(Record):
    """A stretch of the source film."""

    start_frame: int = Field(ge=0)
    end_frame: int = Field(ge=1)
    start_time: float = Field(ge=0)
    end_time: float = Field(ge=0)

    @model_validator(mode="after")
    def _forward(self) -> _Span:
        if self.end_frame <= self.start_frame or self.end_time <= self.start_time:
            raise ValueError("a span must end after it starts")
        return self


class ShotAnnotation(_Span, _Keyed):
    """What is said of one shot, and where it lies in the film.

    ``clean_start_frame`` and ``clean_end_frame`` leave out the frames of gradual transitions. ``annotated_*`` are the
    times the annotator gave (None where it gave none), ``representative_*`` the best four seconds of a longer shot.
    """

    clean_start_frame: int = Field(ge=0)
    clean_end_frame: int = Field(ge=1)
    transition_in: Literal["start", "cut", "gradual"]
    annotated_start_time: float | None = None
    annotated_end_time: float | None = None
    representative_start_time: float | None = None
    representative_end_time: float | None = None
    prologue_or_epilogue: Literal["prologue", "epilogue"] | None = None
    scene: str | None = None
    characters: list[str]
    narrative_caption: str
    descriptive_caption: str

    @model_validator(mode="after")
    def _clean_inside(self) -> ShotAnnotation:
        if not self.start_frame <= self.clean_start_frame < self.clean_end_frame <= self.end_frame:
            raise ValueError("clean frames must lie inside the shot")
        return self


class _Origin(Record):
    """What every sample says of where it comes from."""

    schema_version: str = Field(default=SCHEMA_VERSION, pattern=r"^1\.\d+$")
    video: str = Field(pattern=KEY_PATTERN)
    split: Literal["train", "validation", "test"]
    licence: str | None = None
    attribution: str | None = None
    annotator: AnnotatedBy


class _Media(Record):
    """What the stored clip decodes to; ``fps`` is the average rate."""

    frames: int = Field(ge=1)
    fps: float = Field(gt=0)
    height: int = Field(ge=2)
    width: int = Field(ge=2)
    has_audio: bool


class ShotRecord(_Origin, _Media, ShotAnnotation):
    """The ``json`` of a shot: self-contained, with the story's text and the references of the characters in it.

    References come from other shots only; a character that no other shot gives one for is named in
    ``characters_without_reference``.
    """

    story: str = Field(pattern=KEY_PATTERN)
    shots_in_story: int = Field(ge=1)
    storyline: str
    story_characters: list[Character]
    story_scenes: list[Scene]
    references: list[Reference]
    characters_without_reference: list[str]

    @model_validator(mode="after")
    def _resolves(self) -> ShotRecord:
        _check_names(self, self.story_characters, self.story_scenes)
        if self.frames != self.end_frame - self.start_frame:
            raise ValueError("frames must equal end_frame - start_frame")
        if not 0 <= self.position < self.shots_in_story:
            raise ValueError("position must lie inside the story")
        if any(reference.shot == self.key for reference in self.references):
            raise ValueError("a reference must come from another shot")
        return self


class Storyboard(Record):
    """How the ``jpg`` of a story is laid out: one tile a shot, row by row; ``frames`` are the source frames shown."""

    columns: int = Field(ge=1)
    tile_height: int = Field(ge=1)
    tile_width: int = Field(ge=1)
    frames: list[int]


class StoryRecord(_Origin, _Span, _Keyed):
    """The ``json`` of a story: the whole script."""

    title: str | None = None
    fps: float = Field(gt=0)
    source_height: int
    source_width: int
    storyline: str
    characters: list[Character]
    scenes: list[Scene]
    shots: list[ShotAnnotation] = Field(min_length=1)
    references: list[Reference]
    storyboard: Storyboard

    @model_validator(mode="after")
    def _covered(self) -> StoryRecord:
        edges = [shot.start_frame for shot in self.shots] + [self.end_frame]
        if edges[0] != self.start_frame or edges[1:] != [shot.end_frame for shot in self.shots]:
            raise ValueError("shots must cover their story without gap or overlap")
        for shot in self.shots:
            _check_names(shot, self.characters, self.scenes)
        return self


class AudioRecord(_Origin, _Media, _Span, _Keyed):
    """The ``json`` of an audio-visually cut clip (AnimeShooter-audio); ``shots`` are the shots it overlaps."""

    story: str = Field(pattern=KEY_PATTERN)
    shots: list[str]
    type: str
    sound_description: str
    visual_context: str
    narrative_caption: str
    descriptive_caption: str
    scene: str | None = None
    characters: list[str]
    sample_rate: int = Field(ge=1)
    channels: int = Field(ge=1)
    samples: int = Field(ge=1)


class RightsRecord(Record):
    """A line of ``rights.jsonl``: one video, where it came from and whether it may be used."""

    video: str = Field(pattern=KEY_PATTERN)
    title: str | None = None
    source: str | None = None
    uploader: str | None = None
    licence: str | None = None
    attribution: str | None = None
    retrieved: str | None = None
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    state: Literal["kept", "withdrawn", "unavailable"]


RECORDS: dict[str, type[Record]] = {"shots": ShotRecord, "stories": StoryRecord, "audio": AudioRecord}

INDEX_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "story", "video")]
    + [("position", pa.int32()), ("shard", pa.string())]
    + [(f"{member}_{what}", pa.int64()) for member in MEMBERS["shots"] for what in ("offset", "size")]
    + [("frames", pa.int32()), ("fps", pa.float64()), ("height", pa.int32()), ("width", pa.int32())]
    + [("clean_start", pa.int32()), ("clean_end", pa.int32()), ("has_audio", pa.bool_())]
    + [("prologue_or_epilogue", pa.string()), ("characters", pa.list_(pa.string())), ("references", pa.int32())]
    + [("licence", pa.string())]
    + [("sha256", pa.string())]
)
"""Columns of ``index/<split>.parquet``, one row a shot in stream order. Offsets and sizes are bytes in ``shard``;
``clean_start`` and ``clean_end`` are frames of the clip; ``references`` counts images on the sheet; ``sha256`` is of
the mp4 member."""


def _check_names(shot: ShotAnnotation, characters: Iterable[Character], scenes: Iterable[Scene]) -> None:
    unknown = set(shot.characters) - {character.id for character in characters}
    if unknown:
        raise ValueError(f"characters not in the story: {', '.join(sorted(unknown))}")
    if shot.scene is not None and shot.scene not in {scene.id for scene in scenes}:
        raise ValueError(f"scene not in the story: {shot.scene}")


def parse(config: str, text: str | bytes, where: str) -> Record:
    """Read and validate one record of ``config`` from its JSON.

    Raises:
        DataError: one line that names ``where``, the first field that is wrong, and why.
    """
    try:
        return RECORDS[config].model_validate_json(text)
    except ValidationError as error:
        raise DataError(f"{where}: {first_problem(error)}") from None


def first_problem(error: ValidationError) -> str:
    """The first problem of a validation as one line, with the path of its field."""
    problem = error.errors(include_url=False)[0]
    path = ".".join(str(part) for part in problem["loc"])
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    message = " ".join(problem["msg"].split())
    return f"{path + ': ' if path else ''}{message}{more}"


def dump(record: Record) -> bytes:
    """The canonical JSON of a record: declared order, UTF-8, no white space, so that equal records are equal bytes."""
    return json.dumps(record.model_dump(mode="json"), ensure_ascii=False, separators=(",", ":")).encode()


def slug(name: str) -> str:
    """A name as part of a key: lower case, letters, digits, ``_`` and ``-`` only, at most 48 characters."""
    return re.sub(r"[^a-z0-9_-]+", "-", name.lower()).strip("-_")[:48].rstrip("-_") or "film"


def split_of(video: str, shares: Mapping[str, float]) -> str:
    """The split of a video, by a hash of its id alone, so that it stays the same whichever other videos come or go.

    Args:
        video: the video's id.
        shares: share of each split, summing to 1, in the order train, validation, test.
    """
    point, total = int.from_bytes(hashlib.sha256(video.encode()).digest()[:8], "big") / 2**64, 0.0
    for split in SPLITS:
        total += shares.get(split, 0.0)
        if point < total:
            return split
    return "train"


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


def read_index(directory: str | Path, split: str = "train") -> pa.Table:
    """The shard index of a split: one row a shot, columns of :data:`INDEX_SCHEMA`.

    Raises:
        DataError: the directory is no dataset, has no such split, or its index is of another schema.
    """
    read_manifest(directory)
    path = Path(directory) / "index" / f"{split}.parquet"
    if not path.is_file():
        raise DataError(f"{directory}: no split '{split}'; it has {', '.join(splits(Path(directory))) or 'none'}")
    try:
        return pq.read_table(path, schema=INDEX_SCHEMA)
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
            for entry in archive:
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
    """The lines of ``rights.jsonl``.

    Raises:
        DataError: the file is missing, or a line of it is none.
    """
    path = directory / "rights.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [RightsRecord.model_validate_json(line) for line in lines]
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}; build the dataset again") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable ({error}); build the dataset again") from None
