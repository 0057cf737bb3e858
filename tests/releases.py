"""Writes the official release's format: plain values in, its JSON, zips and folders out.

A release is told in the values that reading it gives (:mod:`curation.release`), so that what was written can be compared with
what is read::

    hen = make_segment(0, 300, [make_shot(0, 4, characters=["hen"], scene="yard"), make_shot(4, 10)],
                       characters={"hen": "a red hen"}, scenes={"yard": "a yard"}, masks={"hen": {12: pixels}})
    write_release(tmp_path / "release.zip", [make_video("abcdefghijk", [hen])])

What no value can tell, hostile or not, is written as JSON or bytes: change what :func:`as_json` gives, and
:func:`write_members` it.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from animeshooter_dataset import Character, Scene
from curation.masks import encode_rle
from curation.release import (
    ReleaseEntry,
    ReleaseMask,
    ReleaseReference,
    ReleaseSegment,
    ReleaseShot,
    ReleaseSound,
    ReleaseVideo,
    open_release,
    read_video,
)
from curation.sample_films.truth import load_truth


@dataclass(frozen=True)
class Spelling:
    """How a file is spelt; the defaults are those of the released one.

    Attributes:
        scenes: ``settings`` (as released) or ``scenes`` (as documented).
        captions: ``annotation`` (as released), ``raw`` (plot and caption inside it) or ``flat`` (those on the shot itself).
        extra: ``timestamp`` (as released) or ``segment``.
        prologue: ``bool`` (as released; then which of the two is not told) or ``word``.
        nothing: what stands for no scene.
        hours: whether times are H:MM:SS.
        sparse: whether what there is none of is left out.
    """

    scenes: str = "settings"
    captions: str = "annotation"
    extra: str = "timestamp"
    prologue: str = "bool"
    nothing: str | None = "N/A"
    hours: bool = False
    sparse: bool = False


RELEASED = Spelling()
DOCUMENTED = Spelling(scenes="scenes", captions="raw", extra="segment", prologue="word", nothing=None, sparse=True)


def clock(seconds: float, hours: bool = False) -> str:
    """A time as the release writes it, with a fraction only if there is one."""
    whole, rest = int(seconds), f"{seconds % 1:.3f}"[1:] if seconds % 1 else ""
    if hours:
        return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}{rest}"
    return f"{whole // 60:02d}:{whole % 60:02d}{rest}"


def make_shot(
    start: float,
    end: float,
    *,
    characters: Sequence[str] = (),
    scene: str | None = None,
    narrative: str = "The hen looks for her egg.",
    descriptive: str = "In a sunny yard a red hen walks from left to right and looks under a bucket.",
    representative: tuple[float, float] | None = None,
    prologue: str | None = None,
) -> ReleaseShot:
    """A shot; seconds from its story's start."""
    return ReleaseShot(start, end, representative, prologue, tuple(characters), scene, narrative, descriptive)


def make_sound(
    start: float,
    end: float,
    *,
    type: str = "sound effect",
    sound: str = "A hen clucks twice and a bucket falls over",
    visual: str = "a hen and a bucket in a yard",
    characters: Sequence[str] = (),
    scene: str | None = None,
    narrative: str = "The hen knocks a bucket over.",
    descriptive: str = "A red hen clucks and a tin bucket clatters on stones.",
) -> ReleaseSound:
    """A clip of the audio release; seconds from its story's start."""
    return ReleaseSound(start, end, type, sound, visual, narrative, descriptive, scene, tuple(characters))


def make_mask(frame: int, pixels: np.ndarray, *, compressed: bool = True) -> ReleaseMask:
    """A mask from bool [height, width]."""
    height, width = (int(side) for side in pixels.shape)
    return ReleaseMask(frame, height, width, encode_rle(pixels, compressed))


def make_segment(
    start_frame: int,
    end_frame: int,
    shots: Sequence[ReleaseShot],
    *,
    number: int = 1,
    storyline: str = "A hen loses her egg and finds it again under a bucket.",
    characters: Mapping[str, str] | None = None,
    scenes: Mapping[str, str] | None = None,
    sounds: Sequence[ReleaseSound] = (),
    masks: Mapping[str, Mapping[int, np.ndarray]] | None = None,
    compressed: bool = True,
) -> ReleaseSegment:
    """A story; characters and scenes by ID, masks by character and frame of the video. IDs that shots use are there."""
    people = {name: f"somebody called {name}" for part in (*shots, *sounds) for name in part.characters} | dict(
        characters or {}
    )
    places = {part.scene: f"a place called {part.scene}" for part in (*shots, *sounds) if part.scene} | dict(scenes or {})
    references = [
        ReleaseReference(name, tuple(make_mask(frame, each, compressed=compressed) for frame, each in found.items()))
        for name, found in (masks or {}).items()
    ]
    return ReleaseSegment(
        number,
        start_frame,
        end_frame,
        storyline,
        tuple(Character(id=name, appearance=text) for name, text in people.items()),
        tuple(Scene(id=name, environment=text) for name, text in places.items()),
        tuple(shots),
        tuple(sounds),
        tuple(references),
    )


def make_video(id: str, segments: Sequence[ReleaseSegment], *, fps: float = 30.0, url: str | None = "") -> ReleaseVideo:
    """A video; its address is that of a YouTube video unless another, or None, is given."""
    return ReleaseVideo(id, f"https://www.youtube.com/watch?v={id}" if url == "" else url, fps, tuple(segments), ())


ID = "abcdefghijk"
DISC = np.hypot(*np.mgrid[-20:20, -30:30]) < 15


def hen_story(start: int = 0, end: int = 300, **more: Any) -> ReleaseSegment:
    """A story of ten seconds with two shots, the second in no scene, and two masks of one of its two characters."""
    shots = [
        make_shot(0, 4, characters=["hen"], scene="yard", representative=(0, 4)),
        make_shot(4, 10, characters=["hen", "fox"]),
    ]
    masks = {"hen": {start + 12: DISC, start + 42: ~DISC}}
    return make_segment(start, end, shots, **{"masks": masks, **more})


def hen_document(**more: Any) -> dict[str, Any]:
    """The JSON of a video of that story."""
    return as_json(make_video(ID, [hen_story(**more)]))


def as_json(video: ReleaseVideo, spelling: Spelling = RELEASED) -> dict[str, Any]:
    """The JSON of a video in the main release: without sounds."""
    return _video(video, spelling, [[_shot(shot, spelling) for shot in each.shots] for each in video.segments])


def audio_json(video: ReleaseVideo, spelling: Spelling = RELEASED) -> dict[str, Any]:
    """The JSON of a video in the audio release: its stories that have sounds, with these in the place of shots."""
    heard = ReleaseVideo(video.id, video.url, video.fps, tuple(each for each in video.segments if each.sounds), ())
    document = _video(heard, spelling, [[_sound(sound, spelling) for sound in each.sounds] for each in heard.segments])
    for segment in document["segments"]:
        segment.pop("reference images", None)
    return document


def _video(video: ReleaseVideo, spelling: Spelling, shots: list[list[dict[str, Any]]]) -> dict[str, Any]:
    segments = [_segment(each, listed, spelling) for each, listed in zip(video.segments, shots, strict=True)]
    return {"video ID": video.id, "url": video.url, "fps": video.fps, "segments": segments}


def _segment(segment: ReleaseSegment, shots: list[dict[str, Any]], spelling: Spelling) -> dict[str, Any]:
    return {
        "start frame index": segment.start_frame,
        "end frame index": segment.end_frame,
        "story script": {
            "storyline": segment.storyline,
            "main characters": [{"ID": each.id, "appearance": each.appearance} for each in segment.characters],
            f"main {spelling.scenes}": [{"ID": each.id, "environment": each.environment} for each in segment.scenes],
            "shots": shots,
        },
        "reference images": [
            {"ID": each.character, "masks": [_mask(mask) for mask in each.masks]} for each in segment.references
        ],
    }


def _mask(mask: ReleaseMask) -> dict[str, Any]:
    counts = mask.counts.decode() if isinstance(mask.counts, bytes) else list(mask.counts)
    return {"frame index": mask.frame, "rle mask": {"size": [mask.height, mask.width], "counts": counts}}


def _shot(shot: ReleaseShot, spelling: Spelling) -> dict[str, Any]:
    best = "-".join(clock(time, spelling.hours) for time in shot.representative) if shot.representative else None
    told = shot.prologue_or_epilogue
    optional = {
        f"extra 4-second {spelling.extra}": best,
        "is_prologue_or_epilogue": told if spelling.prologue == "word" else told is not None,
    }
    if spelling.sparse:
        optional = {name: value for name, value in optional.items() if value is not None}
    return _times(shot, spelling) | optional | _words(shot, spelling)


def _sound(sound: ReleaseSound, spelling: Spelling) -> dict[str, Any]:
    told = {"type": sound.type, "sound description": sound.sound_description, "visual context": sound.visual_context}
    return _times(sound, spelling) | _words(sound, spelling) | {"audio annotation": told}


def _times(part: ReleaseShot | ReleaseSound, spelling: Spelling) -> dict[str, Any]:
    return {"start time": clock(part.start, spelling.hours), "end time": clock(part.end, spelling.hours)}


def _words(part: ReleaseShot | ReleaseSound, spelling: Spelling) -> dict[str, Any]:
    names = ("narrative caption", "descriptive caption") if spelling.captions == "annotation" else ("plot", "caption")
    captions = dict(zip(names, (part.narrative_caption, part.descriptive_caption), strict=True))
    scene = part.scene if part.scene is not None else spelling.nothing
    words = {"main characters": list(part.characters), spelling.scenes.removesuffix("s"): scene}
    return words | (captions if spelling.captions == "flat" else {"visual annotation": captions})


def write_release(
    path: Path,
    videos: Iterable[ReleaseVideo],
    *,
    audio: Path | None = None,
    spelling: Spelling = RELEASED,
    ids: Iterable[str] | None = None,
    inside: str = "",
) -> Path:
    """Write a release.

    Args:
        path: a zip if it ends so, otherwise a folder.
        videos: each becomes a file that its id names.
        audio: where the audio release is written, in the same way; only videos with sounds are in it.
        spelling: how all is spelt.
        ids: what ``video_ids.txt`` lists; there is none if this is None.
        inside: a folder inside the zip, as in ``dataset_anime_shooter/``.

    Returns:
        The path.
    """
    videos = list(videos)
    members: dict[str, Any] = {f"{inside}{video.id}.json": as_json(video, spelling) for video in videos}
    if ids is not None:
        members["video_ids.txt"] = "".join(f"{id}\n" for id in ids).encode()
    if audio is not None:
        heard = [video for video in videos if any(segment.sounds for segment in video.segments)]
        write_members(audio, {f"{inside}{video.id}.json": audio_json(video, spelling) for video in heard})
    return write_members(path, members)


def write_members(path: Path, members: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> Path:
    """Write files into a zip or a folder: bytes as they are, anything else as JSON. Pairs allow names that come twice."""
    pairs = list(members.items() if isinstance(members, Mapping) else members)
    contents = [
        (name, each if isinstance(each, bytes) else json.dumps(each, ensure_ascii=False).encode()) for name, each in pairs
    ]
    if path.suffix == ".zip":
        path.parent.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in contents:
                archive.writestr(name, content)
        return path
    for name, content in contents:
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path


def script_and_shot(document: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first story's script and its first shot, to be changed."""
    script = document["segments"][0]["story script"]
    return script, script["shots"][0]


def only_entry(path: Path, audio: Path | None = None) -> ReleaseEntry:
    """The entry of a release of one video in which nothing is odd."""
    release = open_release(path, audio)
    assert release.problems == []
    (entry,) = release.entries
    return entry


def read_back(folder: Path, document: Any, name: str = f"{ID}.json", audio: Any = None) -> ReleaseVideo:
    """Write one video's JSON, and that of its audio release, and read it."""
    write_members(folder / "release", {name: document})
    if audio is not None:
        write_members(folder / "audio", {name: audio})
    return read_video(only_entry(folder / "release", folder / "audio" if audio is not None else None))


def sample_release(
    films: Path, *, seconds: float = 60.0, fps: float | None = None, compressed: bool = True, most: int = 8
) -> list[ReleaseVideo]:
    """The release as it would be of rendered sample films, from what is true of them.

    Stories go from hard cut to hard cut. Times of shots and sounds are whole seconds; masks are exact, and of frames a second
    apart in shots that list the character. Ids are the films' names.

    Args:
        films: folder with ``NAME.mp4``, ``NAME.truth.json``, ``NAME.truth.npz`` and ``NAME.script.json``.
        seconds: about how long a story is.
        fps: rate that frames are counted at; None for that of the films.
        compressed: kind of masks.
        most: masks of a character in a story.
    """
    found = sorted(films.glob("*.truth.json"))
    return [_sample(films / path.name.removesuffix(".truth.json"), seconds, fps, compressed, most) for path in found]


def _sample(stem: Path, seconds: float, fps: float | None, compressed: bool, most: int) -> ReleaseVideo:
    truth, script = load_truth(stem), json.loads(stem.with_name(f"{stem.name}.script.json").read_text())
    rate, length = truth.facts["fps"], truth.facts["n_frames"]
    count = max(1, round(length / rate / seconds))
    inner = {min(truth.facts["cuts"], key=lambda cut: abs(cut - length * part / count)) for part in range(1, count)}
    edges = [0, *sorted(inner), length]
    told = fps or rate
    segments = []
    for number, (first, end) in enumerate(pairwise(edges), 1):
        shots = [shot for shot in truth.facts["shots"] if first <= shot["start_frame"] < end]
        words = [min(script["shots"], key=lambda each: abs(each["start"] - shot["start_frame"] / rate)) for shot in shots]
        made = [_sample_shot(shot, each, first, rate) for shot, each in zip(shots, words, strict=True)]
        heard = [each for each in script["audio"] if first <= (each["start"] + each["end"]) / 2 * rate < end]
        people = {name for part in (*words, *heard) for name in part["characters"]}
        places = {part["scene"] for part in (*words, *heard)}
        segments.append(
            make_segment(
                round(first * told / rate),
                round(end * told / rate),
                made,
                number=number,
                storyline=" ".join(each["storyline"] for each in script["stories"]),
                characters={each["id"]: each["appearance"] for each in script["characters"] if each["id"] in people},
                scenes={each["id"]: each["environment"] for each in script["scenes"] if each["id"] in places},
                sounds=[_sample_sound(each, first / rate, end / rate) for each in heard],
                masks=_sample_masks(truth, shots, rate, told, most),
                compressed=compressed,
            )
        )
    return make_video(stem.name, segments, fps=float(told), url=f"https://films.example/{stem.name}")


def _sample_shot(shot: dict[str, Any], words: dict[str, Any], first: int, rate: float) -> ReleaseShot:
    start, end = (round((shot[edge] - first) / rate) for edge in ("start_frame", "end_frame"))
    middle = (start + end) // 2
    return make_shot(
        start,
        end,
        characters=words["characters"],
        scene=words["scene"],
        narrative=words["narrative_caption"],
        descriptive=words["descriptive_caption"],
        representative=(middle - 2, middle + 2) if end - start > 4 else None,
        prologue=words["prologue_or_epilogue"],
    )


def _sample_sound(sound: dict[str, Any], start: float, end: float) -> ReleaseSound:
    return make_sound(
        round(max(sound["start"], start) - start),
        round(min(sound["end"], end) - start),
        type=sound["type"],
        sound=sound["sound_description"],
        visual=sound["visual_context"],
        characters=sound["characters"],
        scene=sound["scene"],
        narrative=sound["narrative_caption"],
        descriptive=sound["descriptive_caption"],
    )


def _sample_masks(
    truth: Any, shots: list[dict[str, Any]], rate: float, told: float, most: int
) -> dict[str, dict[int, np.ndarray]]:
    masks: dict[str, dict[int, np.ndarray]] = {}
    for name in truth.characters:
        frames = [
            frame
            for shot in shots
            if name in shot["characters"]
            for frame in range(shot["start_frame"] + round(rate / 2), shot["end_frame"], round(rate))
        ]
        found = {frame: pixels for frame in frames if (pixels := truth.mask(frame, name)).any()}
        chosen = list(found)[:: max(1, -(-len(found) // most))]
        if chosen:
            masks[name] = {round(frame * told / rate): found[frame] for frame in chosen}
    return masks
