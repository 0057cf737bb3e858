"""The official AnimeShooter release, read as it is published: one JSON a video, in ``dataset_anime_shooter.zip``.

:func:`open_release` lists the videos of a zip, of a folder it was unzipped to, or of one JSON file, and joins the audio release
(``dataset_anime_shooter_audio.zip``) to them; :func:`read_video` reads one of them whole. What the files say is trusted in
nothing: no name in them becomes a path, no text or number becomes more than a bounded value.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from animeshooter_dataset import DataError, slug
from curation.archive import Archive, open_archive, shown
from curation.collect import Dropped
from curation.lines import one_line
from curation.loose import Fields, Notes, clean, load_json, quoted, rate, whole
from curation.origin import YOUTUBE_ID, Address
from curation.release_records import (
    ReleaseEntry,
    ReleaseMask,
    ReleaseReference,
    ReleaseSegment,
    ReleaseShot,
    ReleaseSound,
    ReleaseVideo,
)
from curation.release_story import RawStory, StoryReader, raw_stories

__all__ = [
    "Release",
    "ReleaseEntry",
    "ReleaseMask",
    "ReleaseReference",
    "ReleaseSegment",
    "ReleaseShot",
    "ReleaseSound",
    "ReleaseVideo",
    "open_release",
    "read_video",
]

LONGEST_ID = 200
IDS_NAME = "video_ids.txt"
_NAMED = 5
"""Ids that a line about many of them names."""


@dataclass(frozen=True)
class Release:
    """A release as a whole: its videos in the order of their keys, and what cannot be used, each with a line."""

    entries: list[ReleaseEntry]
    problems: list[Dropped]


@dataclass(frozen=True)
class _Listed:
    """What was learned of one file by reading it once."""

    id: str
    url: str | None
    member: str
    sha256: str
    segments: int
    shots: int
    seconds: float


@dataclass
class _Listing:
    """The files of an archive by video id, and the ids that its list of ids names."""

    archive: Archive
    videos: dict[str, _Listed] = field(default_factory=dict)
    failed: set[str] = field(default_factory=set)
    ids: dict[str, None] = field(default_factory=dict)


def open_release(
    main: Path,
    audio: Path | None = None,
    *,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
) -> Release:
    """List the videos of the release. Every file is read once; what is kept in memory is about a kilobyte a video.

    Args:
        main: the release's zip, a folder it was unzipped to (with any folders inside), or one of its JSON files. A folder
            without JSON that holds the zips as they are downloaded stands for these.
        audio: the same of the audio release; None where there is none, or where it lies below ``main`` in a folder whose name
            ends in ``audio``.
        progress: called as files are read with files done, files in all, and the name of the one.

    Raises:
        DataError: ``main`` or ``audio`` is not there, is damaged as a whole, or holds no JSON.
    """
    main, audio = _downloaded(main, audio)
    problems: list[Dropped] = []
    archive = open_archive(main)
    heard = archive if audio is None else open_archive(audio)
    names = _names(archive, problems)
    names, sounds = _parted(names) if audio is None else (names, _names(heard, problems))
    for path, found in ((main, names), (audio, sounds)):
        if path is not None and not _count(found):
            raise DataError(f"{one_line(path)}: holds no annotation (a JSON a video); name the release's zip or folder")
    done, total = _count(names), _count(names) + _count(sounds)
    videos = _list(archive, names, problems, lambda now, name: progress(now, total, name))
    clips = _list(heard, sounds, problems, lambda now, name: progress(done + now, total, name))
    _tell_ids(videos, main, problems)
    if only := sorted(clips.videos.keys() - videos.videos.keys() - videos.failed):
        problems.append(_problem(heard, "", f"{_some(only)} audio annotation only, left out; name the release they belong to"))
    entries = [_entry(archive, video, heard, clips.videos.get(id)) for id, video in videos.videos.items()]
    return Release(sorted(entries, key=lambda entry: entry.key), problems)


def _downloaded(main: Path, audio: Path | None) -> tuple[Path, Path | None]:
    """The zips of a folder that holds nothing else of the release; otherwise what was named."""
    try:
        inside = [] if not main.is_dir() or any(main.rglob("*.json")) else sorted(main.glob("*.zip"))
    except OSError:
        inside = []
    films = [path for path in inside if not path.stem.lower().endswith("audio")]
    if len(films) > 1:
        raise DataError(f"{one_line(main)}: holds {len(films)} zips and no JSON; name the one to read")
    sounds = [path for path in inside if path not in films]
    return (films[0], audio or (sounds[0] if len(sounds) == 1 else None)) if films else (main, audio)


def _parted(names: list[str]) -> tuple[list[str], list[str]]:
    """The files of the release, and those of the audio release in a folder beside it."""
    sounds = [name for name in names if any(part.lower().endswith("audio") for part in PurePosixPath(name).parts[:-1])]
    inside = set(sounds)
    rest = [name for name in names if name not in inside]
    return (rest, sounds) if _count(rest) else (names, [])


def _count(names: Iterable[str]) -> int:
    return sum(name.lower().endswith(".json") for name in names)


def _names(archive: Archive, problems: list[Dropped]) -> list[str]:
    names, refused = archive.names()
    problems += [_problem(archive, each.member, each.reason) for each in refused]
    return names


def _problem(archive: Archive, member: str, reason: str) -> Dropped:
    where = f"{one_line(archive.path)}: {shown(member) + ': ' if member else ''}"
    return Dropped(archive.path, "collect", where + reason, shown(PurePosixPath(member).name) if member else None)


def _list(archive: Archive, names: Iterable[str], problems: list[Dropped], progress: Callable[[int, str], None]) -> _Listing:
    """Read every file of an archive."""
    listing = _Listing(archive)
    done = 0
    for name in names:
        try:
            if not name.lower().endswith(".json"):
                if PurePosixPath(name).name.lower() == IDS_NAME:
                    listing.ids.update(dict.fromkeys(_ids(archive.read(name))))
                continue
            done += 1
            progress(done, shown(name))
            video = _look(archive, name)
        except DataError as error:
            listing.failed.add(PurePosixPath(name).stem)
            problems.append(Dropped(archive.path, "collect", str(error), shown(PurePosixPath(name).name)))
            continue
        first = listing.videos.setdefault(video.id, video)
        if first is not video:
            problems.append(
                _problem(archive, name, f"its video {quoted(video.id)} is that of {shown(first.member)}, which is used")
            )
    return listing


def _look(archive: Archive, name: str) -> _Listed:
    """What is to be known of a file before it is read whole.

    Raises:
        DataError: it is no annotation.
    """
    data = archive.read(name)
    where = f"{one_line(archive.path)}: {shown(name)}"
    document = _document(data, where)
    fps = _fps(document, where)
    id = _id(document, name, where, Notes())
    segments = [Fields(segment) for segment in document.items("segments")]
    ends = [whole(segment.get("end frame index")) or 0 for segment in segments]
    shots = sum(len(Fields(segment.get("story script")).items("shots")) for segment in segments)
    sha256 = hashlib.sha256(data).hexdigest()
    return _Listed(id, _url(document, id, Notes()), name, sha256, len(segments), shots, max(ends) / fps)


def _document(data: bytes, where: str) -> Fields:
    document = load_json(data, where)
    if not isinstance(document, dict):
        raise DataError(f"{where}: is no annotation (a JSON {_kind(document)}, not an object); take it out")
    fields = Fields(document)
    if not fields.items("segments"):
        raise DataError(f"{where}: is no annotation of a video: it has no 'segments'; take it out")
    return fields


def _kind(value: object) -> str:
    return {list: "list", str: "text", bool: "boolean", type(None): "null"}.get(type(value), "number")


def _fps(document: Fields, where: str) -> float:
    told = document.get("fps")
    fps = rate(told)
    if fps is None:
        said = "has no 'fps'" if told is None else f"its 'fps' is no rate ({quoted(str(told))})"
        raise DataError(f"{where}: {said}, so that its frames have no times; write the rate that they were counted at")
    return fps


def _id(document: Fields, name: str, where: str, notes: Notes) -> str:
    """The video's id; the file's name where none is told."""
    stem = clean(PurePosixPath(name).stem)
    told = document.text("video id", "id")
    if told is None:
        if not stem:
            raise DataError(f"{where}: tells no 'video ID' and has no name; write the id")
        notes.add("", "no video ID is told, the file's name is used", stem)
    elif told != stem:
        notes.add("", "the video ID is not the file's name; the ID is used", f"{told[:18]} in {stem[:18]}")
    id = told or stem
    if len(id) > LONGEST_ID:
        raise DataError(f"{where}: its video ID has {len(id)} characters; write the real one")
    return id


def _url(document: Fields, id: str, notes: Notes) -> str | None:
    """The video's address, http or https; that of its YouTube id where none is told."""
    told = document.text("url")
    made = f"https://www.youtube.com/watch?v={id}" if YOUTUBE_ID.fullmatch(id) else None
    if told is None:
        notes.add("", "no url is told" + (", that of the YouTube id is used" if made else ""))
        return made
    try:
        if len(told) > 2000 or not told.isascii() or " " in told or not told.lower().startswith(("http://", "https://")):
            raise DataError("no address")
        address = Address.parse(told)
    except DataError:
        notes.add("", "the url is no http address" + (", that of the YouTube id is used" if made else ", left out"), told)
        return made
    if made and address.key != Address.parse(made).key and _is_youtube(address):
        notes.add("", "the url is of another video than the video ID; the url is used", told[-40:])
    return told


def _is_youtube(address: Address) -> bool:
    return address.host.removeprefix("www.") in ("youtube.com", "m.youtube.com", "youtu.be")


def _entry(archive: Archive, video: _Listed, heard: Archive, clips: _Listed | None) -> ReleaseEntry:
    sha256 = hashlib.sha256((video.sha256 + clips.sha256).encode()).hexdigest() if clips else video.sha256
    return ReleaseEntry(
        id=video.id,
        key=f"{slug(video.id)}-{hashlib.sha256(video.id.encode()).hexdigest()[:8]}",
        url=video.url,
        archive=archive.path,
        member=video.member,
        audio=(heard.path, clips.member) if clips else None,
        sha256=sha256,
        segments=video.segments,
        shots=video.shots,
        seconds=video.seconds,
    )


def _ids(data: bytes) -> Iterator[str]:
    for line in data.decode(errors="replace").removeprefix("\ufeff").splitlines():
        if id := clean(line)[:LONGEST_ID]:
            yield id


def _tell_ids(videos: _Listing, main: Path, problems: list[Dropped]) -> None:
    """Say which ids of the release's list, inside the archive or beside a zip, have no annotation."""
    beside = main.parent / IDS_NAME
    if not videos.ids and main.is_file() and main.suffix.lower() != ".json" and beside.is_file():
        try:
            videos.ids.update(dict.fromkeys(_ids(open_archive(beside.parent).read(IDS_NAME))))
        except DataError as error:
            problems.append(Dropped(beside, "collect", str(error)))
    missing = [id for id in videos.ids if id not in videos.videos and id not in videos.failed]
    if missing:
        reason = f"{IDS_NAME}: of {len(videos.ids)} ids {_some(missing)} no annotation; fetch the whole release if they matter"
        problems.append(_problem(videos.archive, "", reason))


def _some(ids: list[str]) -> str:
    told = ", ".join(shown(id) for id in ids[:_NAMED]) + (", …" if len(ids) > _NAMED else "")
    return f"{len(ids)} ({told}) {'has' if len(ids) == 1 else 'have'}"


def read_video(entry: ReleaseEntry) -> ReleaseVideo:
    """Read the annotation of one video, with its audio annotation.

    Every spelling that was published is understood; what cannot be is left out alone and noted. Times are as told.

    Raises:
        DataError: a file is not there or damaged, is no annotation, or has no story that can be used.
    """
    notes = Notes()
    where = f"{one_line(entry.archive)}: {shown(entry.member)}"
    document = _document(open_archive(entry.archive).read(entry.member), where)
    fps, id = _fps(document, where), _id(document, entry.member, where, notes)
    url = _url(document, id, notes)
    stories = raw_stories(document, notes)
    half = max((story.end for story in stories), default=0) / fps / 2
    readers = [(story, StoryReader(story, fps, half, notes)) for story in stories]
    read = [(story, reader, segment) for story, reader in readers if (segment := reader.read()) is not None]
    segments = [segment for _, _, segment in read]
    if not segments:
        odd = notes.lines()
        raise DataError(f"{where}: has no story that can be used ({odd[-1] if odd else 'none listed'}); take it out or mend it")
    if entry.audio is not None:
        segments = _with_sounds(entry.audio, fps, read, notes)
    return ReleaseVideo(id, url, fps, tuple(segments), notes.lines())


_Read = tuple[RawStory, StoryReader, ReleaseSegment]


def _with_sounds(audio: tuple[Path, str], fps: float, read: list[_Read], notes: Notes) -> list[ReleaseSegment]:
    """The stories with the sounds of the audio release: of a story with the same frames, else of the one it shares most with.

    Audio annotation that cannot be read costs the sounds only.
    """
    archive, member = audio
    where = f"{one_line(archive.name)}: {shown(member)}"
    found: dict[int, list[Any]] = {}
    try:
        document = _document(open_archive(archive).read(member), where)
        rate_told = rate(document.get("fps"))
    except DataError as error:
        notes.add("audio", "cannot be read, left out", str(error)[-40:])
        return [segment for _, _, segment in read]
    scale = fps / rate_told if rate_told else 1.0
    if not rate_told or not math.isclose(rate_told, fps, rel_tol=1e-6):
        notes.add(
            "audio",
            "its frames are counted at no rate, taken for the video's" if not rate_told else "has another fps, mapped by time",
        )
    own = Notes()
    for story in raw_stories(document, own):
        place = _shared([raw for raw, _, _ in read], story.start * scale, story.end * scale)
        if place is None:
            notes.add(
                "audio", "a story that the video's annotation does not have, left out", f"frames {story.start} to {story.end}"
            )
            continue
        raw, reader, _ = read[place]
        heard = reader.sounds(story.script.items("shots"), (story.start * scale - raw.start) / fps)
        found.setdefault(place, []).extend(heard)
    for line in own.lines():
        notes.add("audio", line)
    return [
        replace(segment, sounds=tuple(dict.fromkeys((*segment.sounds, *found.get(place, ())))))
        for place, (_, _, segment) in enumerate(read)
    ]


def _shared(stories: list[RawStory], start: float, end: float) -> int | None:
    """The story that shares most frames with a stretch; None where none shares any. The same frames share most of all."""
    shared = [min(end, story.end) - max(start, story.start) for story in stories]
    best = max(range(len(shared)), key=lambda place: shared[place])
    return best if shared[best] > 0 else None
