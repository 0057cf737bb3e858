"""The stories of an annotation file of the release: tolerant of every spelling that was published or that models write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from copy import copy
from dataclasses import dataclass, replace
from typing import Any

from animeshooter_dataset import Character, Scene
from curation.loose import Fields, Names, Notes, capped, clean, is_nothing, quoted, seconds, whole, window
from curation.masks import BadMask, run_lengths
from curation.release_records import ReleaseMask, ReleaseReference, ReleaseSegment, ReleaseShot, ReleaseSound

MOST_SEGMENTS = 1000
"""Stories of one video; one of 20 minutes has some twenty."""


@dataclass(frozen=True)
class RawStory:
    """A segment as it stands in the file, of which only the place in the list and the frames are known to be good."""

    number: int
    start: int
    end: int
    script: Fields
    references: Sequence[Any]

    @property
    def where(self) -> str:
        """The story as notes name it."""
        return f"story {self.number}"


def raw_stories(document: Fields, notes: Notes) -> list[RawStory]:
    """The segments of a file that have frames, in the order of these; of those that overlap as many as can be kept."""
    listed = document.items("segments")
    if len(listed) > MOST_SEGMENTS:
        notes.add("", f"stories after the first {MOST_SEGMENTS} left out", count=len(listed) - MOST_SEGMENTS)
    found = []
    for number, value in enumerate(listed[:MOST_SEGMENTS], 1):
        fields = Fields(value)
        told = fields.get("start frame index"), fields.get("end frame index")
        start, end = (whole(frame) for frame in told)
        if start is None or end is None:
            notes.add(
                "", "a story's frames are no whole numbers, left out", f"story {number}: {told[0]!s:.12} to {told[1]!s:.12}"
            )
        elif end <= start:
            notes.add("", "a story ends before it starts, left out", f"story {number}: frames {start} to {end}")
        else:
            script = Fields(fields.get("story script"))
            found.append(RawStory(number, start, end, script, fields.items("reference images")))
    kept: list[RawStory] = []
    for story in sorted(found, key=lambda story: story.end):  # the most stories that do not overlap: always the next to end
        if not kept or story.start >= kept[-1].end:
            kept.append(story)
        else:
            notes.add("", "a story overlaps another, left out", f"story {story.number} and story {kept[-1].number}")
    return kept


class StoryReader:
    """Reads one story.

    Args:
        raw: the segment.
        fps: rate of its frames.
        half: the middle of the video, seconds: what is said to be prologue or epilogue is a prologue before it.
        notes: what is odd is added to them.
    """

    def __init__(self, raw: RawStory, fps: float, half: float, notes: Notes) -> None:
        self._raw, self._fps, self._half, self._notes, self._where = raw, fps, half, notes, raw.where
        self.characters = tuple(
            Character(id=name, appearance=text) for name, text in self._listed("main characters", "appearance")
        )
        places = self._listed("main scenes", "environment", "main settings", "scenes", "settings")
        self.scenes = tuple(Scene(id=name, environment=text) for name, text in places)
        self._people = Names(character.id for character in self.characters)
        self._places = Names(scene.id for scene in self.scenes)

    def read(self) -> ReleaseSegment | None:
        """The story; None where it has no shot, which is noted."""
        parts = self._parts(self._raw.script.items("shots"))
        if not parts:
            self._note("has no shot, left out")
            return None
        storyline = self._raw.script.text("storyline")
        if storyline is None:
            self._note("has no storyline")
        return ReleaseSegment(
            number=self._raw.number,
            start_frame=self._raw.start,
            end_frame=self._raw.end,
            storyline=capped(storyline or "", "a storyline", self._where, self._notes),
            characters=self.characters,
            scenes=self.scenes,
            shots=tuple(shot for shot, _ in parts),
            sounds=tuple(sound for _, sound in parts if sound is not None),
            references=tuple(self._references()),
        )

    def sounds(self, listed: Sequence[Any], later: float) -> tuple[ReleaseSound, ...]:
        """The sounds of shots in the audio release, whose story begins ``later`` seconds after this one."""
        hearing = copy(self)
        hearing._where = f"audio of {self._where}"
        parts = hearing._parts(listed)
        if deaf := sum(sound is None for _, sound in parts):
            hearing._note("a shot has no audio annotation, left out", count=deaf)
        heard = [sound for _, sound in parts if sound is not None]
        return tuple(replace(sound, start=sound.start + later, end=sound.end + later) if later else sound for sound in heard)

    def _parts(self, listed: Sequence[Any]) -> list[tuple[ReleaseShot, ReleaseSound | None]]:
        """The shots of a list, and of each what is said of its sound; one without times is left out."""
        found = []
        for value in listed:
            fields = Fields(value)
            shot = self._shot(fields)
            if shot is not None:
                found.append((shot, self._sound(shot, fields)))
        return found

    def _listed(self, kind: str, words: str, *others: str) -> list[tuple[str, str]]:
        """ID and text of each main character or scene."""
        found: dict[str, str] = {}
        for value in self._raw.script.items(kind, *others):
            fields = Fields(value) if isinstance(value, dict) else Fields({"id": value})
            name, text = fields.text("id", "name"), fields.text(words, "description")
            if name is None or is_nothing(name):
                self._note(f"one of the {kind} has no ID, left out")
                continue
            name = name[:200].rstrip()
            if name in found:
                self._note(f"one of the {kind} is there twice, the first is used", name)
                continue
            if text is None:
                self._note(f"one of the {kind} has no {words}", name)
            found[name] = capped(text or "", f"an {words}", self._where, self._notes)
        return list(found.items())

    def _note(self, what: str, example: str = "", count: int = 1) -> None:
        self._notes.add(self._where, what, example, count)

    def _shot(self, fields: Fields) -> ReleaseShot | None:
        told = fields.get("start time", "start"), fields.get("end time", "end")
        start, end = (seconds(time) for time in told)
        if start is None or end is None:
            self._note("a shot's times are no times, left out", f"{told[0]!s:.16} to {told[1]!s:.16}")
            return None
        best = fields.get("extra 4-second timestamp", "extra 4-second segment")
        representative = window(best)
        if representative is None and not is_nothing(best):
            self._note("a shot's best four seconds are no stretch of time, left out", f"{best!s:.40}")
        words = Fields(fields.get("visual annotation"))
        narrative, descriptive = (self._caption(words, fields, *kind) for kind in (_NARRATIVE, _DESCRIPTIVE))
        return ReleaseShot(
            start,
            end,
            representative,
            self._prologue(fields, (start + end) / 2),
            self._cast(fields.get("main characters", "characters")),
            self._scene(fields),
            narrative,
            descriptive,
        )

    def _caption(self, words: Fields, fields: Fields, *names: str) -> str:
        text = words.text(*names) or fields.text(*names)
        if text is None:
            self._note(f"a shot has no {names[0]}")
        return capped(text or "", f"a {names[0]}", self._where, self._notes)

    def _cast(self, told: object) -> tuple[str, ...]:
        if is_nothing(told):
            return ()
        cast: dict[str, None] = {}
        for each in told if isinstance(told, list) else [told]:
            name = Fields(each).text("id", "name") if isinstance(each, dict) else each
            if is_nothing(name):
                continue
            found = self._people.find(clean(name)) if isinstance(name, str) else None
            if found is None:
                self._note("a shot has somebody who is not among the main characters, left out of it", str(name)[:60])
            else:
                cast[found] = None
        return tuple(cast)

    def _scene(self, fields: Fields) -> str | None:
        told = fields.get("scene", "setting")
        if is_nothing(told):
            self._note("a shot is in no scene", told or "")
            return None
        found = self._places.find(clean(told)) if isinstance(told, str) else None
        if found is None:
            self._note("a shot's scene is not among the main scenes, taken for none", f"{told!s:.60}")
        return found

    def _prologue(self, fields: Fields, middle: float) -> str | None:
        told = fields.get("is prologue or epilogue", "prologue or epilogue")
        word = clean(told).casefold() if isinstance(told, str) else told
        if word in ("prologue", "epilogue"):
            return str(word)
        if word is True or word in ("true", "yes"):
            return "prologue" if self._raw.start / self._fps + middle < self._half else "epilogue"
        if word is not False and not is_nothing(word) and word not in ("false", "no"):
            self._note("whether a shot is prologue or epilogue cannot be read, taken for no", f"{told!s:.40}")
        return None

    def _sound(self, shot: ReleaseShot, fields: Fields) -> ReleaseSound | None:
        told = Fields(fields.get("audio annotation"))
        if not told:
            return None
        texts = {name: told.text(name) for name in ("type", "sound description", "visual context")}
        for name, text in texts.items():
            if text is None:
                self._note(f"a sound has no {name}")
        kind, description, context = (capped(text or "", f"a {name}", self._where, self._notes) for name, text in texts.items())
        return ReleaseSound(
            shot.start,
            shot.end,
            kind,
            description,
            context,
            shot.narrative_caption,
            shot.descriptive_caption,
            shot.scene,
            shot.characters,
        )

    def _references(self) -> Iterable[ReleaseReference]:
        masks: dict[str, dict[int, ReleaseMask]] = {}
        for value in self._raw.references:
            fields = Fields(value)
            told = fields.text("id")
            name = self._people.find(told) if told else None
            if name is None:
                self._note("reference images of somebody who is not among the main characters, left out", told or "no ID")
                continue
            self._masks(name, fields.items("masks"), masks.setdefault(name, {}))
        for name, found in masks.items():
            if found:
                yield ReleaseReference(name, tuple(found.values()))

    def _masks(self, name: str, listed: Sequence[Any], found: dict[int, ReleaseMask]) -> None:
        """Add the good masks of a list, and note how many are not, and why."""
        where = f"{self._where}, {quoted(name)}"
        for value in listed:
            fields = Fields(value)
            frame, rle = whole(fields.get("frame index")), Fields(fields.get("rle mask", "rle"))
            if frame is None or not self._raw.start <= frame < self._raw.end:
                self._notes.add(where, "a mask's frame lies outside the story, left out", str(fields.get("frame index"))[:40])
            elif frame in found:
                self._notes.add(where, "two masks of one frame, the first is used", str(frame))
            else:
                try:
                    found[frame] = _mask(frame, rle.get("size"), rle.get("counts"))
                except BadMask as error:
                    what = "a mask is only a placeholder" if error.placeholder else "a mask cannot be decoded"
                    self._notes.add(where, f"{what}, left out", "" if error.placeholder else str(error)[:40])


_NARRATIVE = ("narrative caption", "plot")
_DESCRIPTIVE = ("descriptive caption", "caption")


def _mask(frame: int, size: object, counts: object) -> ReleaseMask:
    if not isinstance(size, list) or len(size) != 2:
        raise BadMask("its size is not two whole numbers")
    if counts is None:
        raise BadMask("it has no counts", placeholder=True)
    run_lengths(size[0], size[1], counts)
    return ReleaseMask(frame, size[0], size[1], counts.encode() if isinstance(counts, str) else tuple(counts))  # type: ignore[arg-type]
