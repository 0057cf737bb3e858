"""The script that a film's maker supplies, ``NAME.script.json`` beside ``NAME.mp4``, and the annotator that reads it.

All times are seconds from the film's first frame. Only ``format`` and ``version`` must be there; a file with nothing but
``rights`` is a good way to state a film's licence while its captions come from another annotator. See
:class:`SidecarScript` for every field, and the sample films for whole examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError, model_validator

from animeshooter_dataset import AnnotatedBy, Character, DataError, Record, Scene, first_problem
from curation.captions import possible_cuts
from curation.script import ShotScript, SoundScript, StoryScript, StoryView

SCRIPT_SUFFIX = ".script.json"


class Rights(Record):
    """Who made the film and on what terms it may be used; ``retrieved`` is an ISO date."""

    licence: str | None = None
    uploader: str | None = None
    source: str | None = None
    attribution: str | None = None
    retrieved: str | None = None


class _Timed(Record):
    start: float = Field(ge=0)
    end: float

    @model_validator(mode="after")
    def _forward(self) -> _Timed:
        if self.end <= self.start:
            raise ValueError(f"ends at {self.end} s, which is not after its start at {self.start} s")
        return self


class SidecarStory(_Timed):
    """What happens in a stretch of the film."""

    storyline: str


class SidecarShot(_Timed):
    """One shot as its maker notes it; times need not be exact to the frame."""

    scene: str | None = None
    characters: tuple[str, ...] = ()
    narrative_caption: str
    descriptive_caption: str
    prologue_or_epilogue: Literal["prologue", "epilogue"] | None = None


class SidecarSound(_Timed):
    """One clip for the audio subset: a stretch, longer than three seconds, where picture and sound tell one thing."""

    type: str
    sound_description: str
    visual_context: str
    narrative_caption: str
    descriptive_caption: str
    scene: str | None = None
    characters: tuple[str, ...] = ()


class SidecarScript(Record):
    """A film's script as a whole."""

    format: Literal["animeshooter-script"]
    version: Literal[1]
    title: str | None = None
    rights: Rights = Rights()
    characters: tuple[Character, ...] = ()
    scenes: tuple[Scene, ...] = ()
    stories: tuple[SidecarStory, ...] = ()
    shots: tuple[SidecarShot, ...] = ()
    audio: tuple[SidecarSound, ...] = ()

    @model_validator(mode="after")
    def _names_resolve(self) -> SidecarScript:
        people, places = {character.id for character in self.characters}, {scene.id for scene in self.scenes}
        parts: list[SidecarShot | SidecarSound] = [*self.shots, *self.audio]
        for part in parts:
            unknown = set(part.characters) - people
            if unknown:
                raise ValueError(f"at {part.start} s: character '{min(unknown)}' is not among the characters")
            if part.scene is not None and part.scene not in places:
                raise ValueError(f"at {part.start} s: scene '{part.scene}' is not among the scenes")
        return self


def read_sidecar(path: Path) -> SidecarScript:
    """Read and validate a maker's script.

    Raises:
        DataError: it cannot be read, or a field is wrong; the line names file and field.
    """
    try:
        return SidecarScript.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}; mend the script or build with --annotator measure") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from None


@dataclass(frozen=True)
class Sidecar:
    """Annotator that reads the maker's script: each detected shot takes the words of the noted shot it overlaps most."""

    script: SidecarScript
    path: Path

    def annotate(self, view: StoryView) -> StoryScript:
        """Write the script of one story; see :class:`curation.script.Annotator`.

        Raises:
            DataError: the script says nothing about this stretch of the film.
        """
        start, end = view.times[0], view.times[-1]
        noted = [_most_overlapped(self.script.shots, *span) for span in zip(view.times, view.times[1:])]
        if not any(noted):
            raise DataError(f"{self.path}: notes no shot between {start:.1f} s and {end:.1f} s of {view.film.name}")
        sounds = [sound for sound in self.script.audio if start <= (sound.start + sound.end) / 2 < end]
        parts = [part for part in (*noted, *sounds) if part is not None]
        people = {name for part in parts for name in part.characters}
        places = {part.scene for part in parts}
        return StoryScript(
            storyline=" ".join(story.storyline for story in _stories_of(self.script.stories, start, end)),
            characters=tuple(character for character in self.script.characters if character.id in people),
            scenes=tuple(scene for scene in self.script.scenes if scene.id in places),
            shots=tuple(_shot(shot, inside) for shot, inside in zip(noted, possible_cuts(view, self._boundaries()))),
            sounds=tuple(SoundScript(**sound.model_dump()) for sound in sounds),
            annotator=AnnotatedBy(kind="sidecar"),
        )

    def _boundaries(self) -> list[float]:
        """Times at which one noted shot gives way to the next."""
        return sorted(shot.start for shot in self.script.shots)[1:]


def check_length(script: SidecarScript, path: Path, seconds: float) -> None:
    """Refuse a script that tells of more film than there is.

    Args:
        script: the script.
        path: its file.
        seconds: length of the film.

    Raises:
        DataError: its last shot or sound ends more than a second, and more than 2 %, after the film does.
    """
    end = max((part.end for part in (*script.shots, *script.audio)), default=0.0)
    if end > seconds + max(1.0, 0.02 * seconds):
        raise DataError(
            f"{path}: tells of {end:.1f} s, the film beside it ends at {seconds:.1f} s; is it the script of this film? "
            "Mend it or build with --annotator measure"
        )


def _overlap(part: _Timed, start: float, end: float) -> float:
    return max(0.0, min(part.end, end) - max(part.start, start))


def _most_overlapped(shots: Sequence[SidecarShot], start: float, end: float) -> SidecarShot | None:
    best = max(shots, key=lambda shot: _overlap(shot, start, end), default=None)
    return best if best is not None and _overlap(best, start, end) > 0 else None


def _stories_of(stories: Sequence[SidecarStory], start: float, end: float) -> list[SidecarStory]:
    """The noted stories that lie for the most part in [start, end), or else the one that overlaps it most."""
    inside = [story for story in stories if _overlap(story, start, end) > (story.end - story.start) / 2]
    return inside or sorted(stories, key=lambda story: -_overlap(story, start, end))[:1]


def _shot(noted: SidecarShot | None, inside: tuple[float, ...]) -> ShotScript:
    if noted is None:
        return ShotScript(narrative_caption="", descriptive_caption="", possible_cuts=inside)
    words = noted.model_dump(exclude={"start", "end"})
    return ShotScript(**words, annotated=(noted.start, noted.end), possible_cuts=inside)
