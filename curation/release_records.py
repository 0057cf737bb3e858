"""What the official release says of a video, as values: read by :mod:`curation.release`, used by whoever builds from them.

Frames count from 0 in the release's own rate (``fps`` of the video), end frames are exclusive. Times of shots and sounds are
seconds from the start of their *story*, exactly as told: whole seconds for the most part, and not checked against anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from animeshooter_dataset import Character, Scene


@dataclass(frozen=True)
class ReleaseMask:
    """A COCO run-length mask; :func:`curation.masks.decode_rle` makes it an array.

    Attributes:
        frame: frame of the video, in the release's rate.
        height: rows.
        width: columns.
        counts: runs column by column, background first: bytes in COCO's compressed letters, or the numbers themselves.
    """

    frame: int
    height: int
    width: int
    counts: bytes | tuple[int, ...]


@dataclass(frozen=True)
class ReleaseReference:
    """Where a main character is seen: its ID and at least one mask, in the order told."""

    character: str
    masks: tuple[ReleaseMask, ...]


@dataclass(frozen=True)
class ReleaseShot:
    """A shot. ``representative`` is its best four seconds; ``prologue_or_epilogue`` is one of these words or None.

    Characters and scene are among those of the story; captions that the release lacks are empty.
    """

    start: float
    end: float
    representative: tuple[float, float] | None
    prologue_or_epilogue: str | None
    characters: tuple[str, ...]
    scene: str | None
    narrative_caption: str
    descriptive_caption: str


@dataclass(frozen=True)
class ReleaseSound:
    """An audio-visually cut clip of AnimeShooter-audio; times are from the start of the story it was joined to."""

    start: float
    end: float
    type: str
    sound_description: str
    visual_context: str
    narrative_caption: str
    descriptive_caption: str
    scene: str | None
    characters: tuple[str, ...]


@dataclass(frozen=True)
class ReleaseSegment:
    """A story. ``number`` is its place in the file, from 1; it has at least one shot; shots stand in the order told."""

    number: int
    start_frame: int
    end_frame: int
    storyline: str
    characters: tuple[Character, ...]
    scenes: tuple[Scene, ...]
    shots: tuple[ReleaseShot, ...]
    sounds: tuple[ReleaseSound, ...]
    references: tuple[ReleaseReference, ...]


@dataclass(frozen=True)
class ReleaseVideo:
    """A video: at least one story, in the order of their frames, none overlapping another.

    ``notes`` say in one line each what was odd and how it was taken.
    """

    id: str
    url: str | None
    fps: float
    segments: tuple[ReleaseSegment, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class ReleaseEntry:
    """Where the annotation of one video is found, and what it is about; small, and fit to be sent to a worker.

    Attributes:
        id: the release's video ID; any text, so never a part of a path.
        key: the same as a key of the dataset.
        url: address of the video, http or https; None where none is told and the id is no YouTube id.
        archive: the zip, folder or JSON file.
        member: name inside the zip or folder; the file's own name where it is a JSON file.
        audio: archive and member of the video's audio annotation, if there is one.
        sha256: of the bytes of the annotation; where there is audio annotation, of the two hashes after one another.
        segments: stories listed, good or bad.
        shots: shots listed, good or bad.
        seconds: from the video's start to the end of its last story.
    """

    id: str
    key: str
    url: str | None
    archive: Path
    member: str
    audio: tuple[Path, str] | None
    sha256: str
    segments: int
    shots: int
    seconds: float
