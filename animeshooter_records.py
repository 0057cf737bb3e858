"""The records of the AnimeShooter dataset: what the JSON of every sample, and every line beside the shards, may hold.

Frames count from 0 in presentation order of the source film; ``end_frame`` is exclusive; times are seconds from the
film's first frame, read from its presentation time stamps (variable frame rates are real). What was not measured is None
and never zero.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, Literal, get_args

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

SCHEMA_VERSION = "1.2"
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
    clip's size. ``score`` is its quality, 0 to 1, by which images are ordered; ``agreement`` its mean likeness of colours, 0 to
    1, to the character's other images (None for an only one); ``verifier`` who accepted it.
    """

    character: str
    box: tuple[int, int, int, int]
    shot: str = Field(pattern=KEY_PATTERN)
    frame: int = Field(ge=0)
    source_box: tuple[int, int, int, int]
    score: float | None = None
    agreement: float | None = None
    verifier: str | None = None


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
    ``possible_cuts`` are source frames inside the shot at which a detector or the annotator saw a cut that was not believed.
    """

    clean_start_frame: int = Field(ge=0)
    clean_end_frame: int = Field(ge=1)
    transition_in: Literal["start", "cut", "gradual"]
    annotated_start_time: float | None = None
    annotated_end_time: float | None = None
    representative_start_time: float | None = None
    representative_end_time: float | None = None
    possible_cuts: list[int] = []
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


class ShotScores(Record):
    """Measures of a shot's pictures; columns of the index too, so that rules can filter without touching media.

    Shares are 0 to 1; None where a measure needs what was not there (weights, a judge, a second unique frame).

    Attributes:
        text_cover: share of the picture under text, mean over sampled frames (union of the detected polygons).
        motion: 95th percentile of the optical flow between unique frames, in picture diagonals a second, over sampled
            stretches; None also where all of them are black.
        held_frames: share of frames that repeat the one before.
        brightness: mean luma.
        contrast: standard deviation of luma, mean over sampled frames.
        black_frames: share of frames that are black (mean luma of at most 3 of 255, so that small letters do not matter).
        grey_frames: share of sampled frames without colour, of those that are not black.
        sharpness: variance of the Laplacian of luma at 480 pixels short side, mean over sampled frames, grey levels squared.
        picture_share: share of the frame inside the black bars of the film; 1 without bars.
        cut_confidence: confidence of the cut at the shot's start; None where it starts otherwise.
        aesthetic: score of the LAION aesthetic head, about 1 to 10.
        style: what a judge takes it for.
        talking: whether a judge sees somebody talk.
        cuts_inside: hard cuts detected inside the shot, where an annotator's division stands against them (the official release
            has shots that hold several); None where shots are divided at every detected cut.
    """

    text_cover: float | None = None
    motion: float | None = None
    held_frames: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    black_frames: float | None = None
    grey_frames: float | None = None
    sharpness: float | None = None
    picture_share: float | None = None
    cut_confidence: float | None = None
    aesthetic: float | None = None
    style: Literal["2D", "3D"] | None = None
    talking: bool | None = None
    cuts_inside: float | None = None


class SoundScores(Record):
    """Measures of a stretch of sound; all None without sound.

    Attributes:
        speech: share of the time with speech (silero-vad).
        music: share of the time with music, by the declared measure of ``curation.sound``.
        silence: share of the time below the silence level.
        loudness: integrated loudness in LUFS (ITU-R BS.1770-4); None also where it is too short or too quiet to tell.
        peak: highest sample in dB below full scale, 0 at most.
        clipping: share of samples in runs at full scale.
    """

    speech: float | None = None
    music: float | None = None
    silence: float | None = None
    loudness: float | None = None
    peak: float | None = None
    clipping: float | None = None


class Evidence(Record):
    """One check of a film: what was measured, against which limit, and whether it passed (None: could not be told)."""

    check: str
    passed: bool | None
    value: float | None = None
    limit: float | None = None
    detail: str = ""


class _Origin(Record):
    """What every sample says of where it comes from.

    ``licence`` and ``attribution`` are the film's, ``annotation_licence`` is that of the words and masks where somebody else
    made them.
    """

    schema_version: str = Field(default=SCHEMA_VERSION, pattern=r"^1\.\d+$")
    video: str = Field(pattern=KEY_PATTERN)
    split: Literal["train", "validation", "test"]
    licence: str | None = None
    attribution: str | None = None
    annotation_licence: str | None = None
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
    ``characters_without_reference``. ``picture`` is what lies inside black bars, (x0, y0, x1, y1) in pixels of the clip, ends
    exclusive; None without bars. ``rejected_by`` names the rules that the shot fails: training leaves it out.
    """

    story: str = Field(pattern=KEY_PATTERN)
    shots_in_story: int = Field(ge=1)
    storyline: str
    story_characters: list[Character]
    story_scenes: list[Scene]
    references: list[Reference]
    characters_without_reference: list[str]
    scores: ShotScores = ShotScores()
    sound: SoundScores = SoundScores()
    picture: tuple[int, int, int, int] | None = None
    rejected_by: list[str] = []

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
    sound: SoundScores = SoundScores()

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
    sound: SoundScores = SoundScores()


class RightsRecord(Record):
    """A line of ``rights.jsonl``: one video, where it came from and whether it may be used.

    ``state`` "dropped": it was looked at and not taken, see ``films.jsonl``; "unavailable": it could not be had; "withdrawn":
    whoever holds its rights does not want it used. The hash of the last two may be unknown.
    """

    video: str = Field(pattern=KEY_PATTERN)
    title: str | None = None
    source: str | None = None
    uploader: str | None = None
    licence: str | None = None
    attribution: str | None = None
    retrieved: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    state: Literal["kept", "dropped", "withdrawn", "unavailable"]

    @model_validator(mode="after")
    def _hashed(self) -> RightsRecord:
        if self.sha256 is None and self.state not in ("unavailable", "withdrawn"):
            raise ValueError("only a video that is unavailable or withdrawn may have no sha256")
        return self


class FilmRecord(Record):
    """A line of ``films.jsonl``: one film that was named to the build, what it is, and what was decided about it.

    ``film`` is its file name, or its address where there is no file; ``stage`` and ``reason`` say why it was dropped;
    ``picture`` is what lies inside black bars, (x0, y0, x1, y1) in pixels of the displayed film, ends exclusive. Everything
    that a file which cannot be read does not tell is None.
    """

    video: str | None = Field(default=None, pattern=KEY_PATTERN)
    film: str
    state: Literal["kept", "dropped", "unavailable", "withdrawn"]
    stage: str | None = None
    reason: str | None = None
    sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    width: int | None = None
    height: int | None = None
    fps: float | None = None
    duration: float | None = None
    codec: str | None = None
    rotation: int | None = None
    variable_frame_rate: bool | None = None
    interlaced: bool | None = None
    has_audio: bool | None = None
    picture: tuple[int, int, int, int] | None = None
    evidence: list[Evidence] = []
    sound: SoundScores = SoundScores()
    stories: int = 0
    shots: int = 0


class DroppedRecord(Record):
    """A line of ``dropped.jsonl``: something that did not reach the dataset, at which stage, and why, in one line."""

    film: str
    stage: str
    reason: str


class AvailabilityRecord(Record):
    """A line of ``availability.jsonl``: whether a video's source could be had on a day (ISO date), and what the site said."""

    video: str = Field(pattern=KEY_PATTERN)
    source: str
    state: Literal["available", "gone", "private", "blocked", "unknown"]
    reason: str = ""
    checked: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")


class RemovalRecord(Record):
    """A line of ``removals.jsonl``: a video that was taken out of the dataset, on which day, and how much went with it.

    ``reason`` is what whoever removed it wrote; ``matched`` by what it was found. Nothing here tells of its content.
    """

    video: str = Field(pattern=KEY_PATTERN)
    removed: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    reason: str | None = None
    matched: Literal["id", "hash", "url", "uploader"]
    stories: int = Field(ge=0)
    shots: int = Field(ge=0)
    audio: int = Field(ge=0)


RECORDS: dict[str, type[Record]] = {"shots": ShotRecord, "stories": StoryRecord, "audio": AudioRecord}


def _column(annotation: Any) -> pa.DataType:
    """The Arrow type of an optional field of scores."""
    kind = next(part for part in get_args(annotation) if part is not type(None))
    return {float: pa.float64(), bool: pa.bool_()}.get(kind, pa.string())


INDEX_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "story", "video")]
    + [("position", pa.int32()), ("shard", pa.string())]
    + [(f"{member}_{what}", pa.int64()) for member in MEMBERS["shots"] for what in ("offset", "size")]
    + [("frames", pa.int32()), ("fps", pa.float64()), ("height", pa.int32()), ("width", pa.int32())]
    + [("picture_height", pa.int32()), ("picture_width", pa.int32())]
    + [("clean_start", pa.int32()), ("clean_end", pa.int32()), ("has_audio", pa.bool_())]
    + [("prologue_or_epilogue", pa.string()), ("characters", pa.list_(pa.string())), ("references", pa.int32())]
    + [("licence", pa.string()), ("rejected_by", pa.list_(pa.string()))]
    + [(name, _column(field.annotation)) for kind in (ShotScores, SoundScores) for name, field in kind.model_fields.items()]
    + [("sha256", pa.string())]
)
"""Columns of ``index/<split>.parquet``, one row a shot in stream order. Offsets and sizes are bytes in ``shard``;
``picture_height`` and ``picture_width`` are what lies inside black bars; ``clean_start`` and ``clean_end`` are frames of the
clip; ``references`` counts images on the sheet; then come the fields of :class:`ShotScores` and :class:`SoundScores`;
``sha256`` is of the mp4 member."""

AUDIO_INDEX_SCHEMA = pa.schema(
    [(name, pa.string()) for name in ("key", "story", "video")]
    + [("position", pa.int32()), ("shard", pa.string())]
    + [(f"{member}_{what}", pa.int64()) for member in MEMBERS["audio"] for what in ("offset", "size")]
    + [("frames", pa.int32()), ("fps", pa.float64()), ("height", pa.int32()), ("width", pa.int32())]
    + [("samples", pa.int64()), ("sample_rate", pa.int32()), ("channels", pa.int32())]
    + [("type", pa.string()), ("characters", pa.list_(pa.string())), ("shots", pa.list_(pa.string())), ("licence", pa.string())]
    + [(name, _column(field.annotation)) for name, field in SoundScores.model_fields.items()]
    + [("sha256", pa.string()), ("mp4_sha256", pa.string())]
)
"""Columns of ``index/audio-<split>.parquet``, one row an audio clip in stream order. Offsets and sizes are bytes in ``shard``;
``samples`` are those of one channel of the flac member; ``shots`` are keys of the shots it overlaps; ``sha256`` is of the flac
member, ``mp4_sha256`` of the mp4."""


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
