"""Stage ``script``: what a story and its shots are about.

One Protocol, :class:`Annotator`, and a module for each source of captions: ``curation.sidecar`` reads the script that a
film's maker supplies, ``curation.measure`` needs no model and says only what was measured, ``curation.screenwriter`` asks one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from animeshooter_dataset import AnnotatedBy, Character, DataError, Scene
from curation.cuts import Span


@dataclass(frozen=True)
class Sample:
    """One frame sampled from a shot: ``frame`` counts in the source film, ``image`` is RGB uint8 [H, W, 3] at clip size."""

    frame: int
    image: np.ndarray


@dataclass(frozen=True)
class StoryView:
    """What an annotator sees of one story.

    Attributes:
        film: path of the film.
        title: the film's title.
        spans: the story's shots, in order.
        times: start of each shot and end of the last, seconds from the film's first frame; one longer than ``spans``.
        samples: frames of each shot, about two a second, at clip size; at least one a shot, none inside a gradual transition
            where the shot has others.
        colours: mean RGB of every frame of each shot, float [n, 3] in 0..255.
        motion: mean absolute difference of every frame of each shot to the one before it, float [n] in 0..255.
    """

    film: Path
    title: str | None
    spans: Sequence[Span]
    times: Sequence[float]
    samples: Sequence[Sequence[Sample]]
    colours: Sequence[np.ndarray]
    motion: Sequence[np.ndarray]


@dataclass(frozen=True)
class ShotScript:
    """What an annotator says of one shot; times are seconds from the film's first frame, None where it gave none.

    ``possible_cuts`` are times inside the shot at which the annotator has a boundary and no cut was detected.
    """

    narrative_caption: str
    descriptive_caption: str
    scene: str | None = None
    characters: tuple[str, ...] = ()
    prologue_or_epilogue: Literal["prologue", "epilogue"] | None = None
    annotated: tuple[float, float] | None = None
    representative: tuple[float, float] | None = None
    possible_cuts: tuple[float, ...] = ()


@dataclass(frozen=True)
class SoundScript:
    """What an annotator says of one audio-visually cut clip; times as in :class:`ShotScript`."""

    start: float
    end: float
    type: str
    sound_description: str
    visual_context: str
    narrative_caption: str
    descriptive_caption: str
    scene: str | None = None
    characters: tuple[str, ...] = ()


@dataclass(frozen=True)
class StoryScript:
    """What an annotator says of one story: one :class:`ShotScript` for every shot of the view it was given."""

    storyline: str
    characters: tuple[Character, ...]
    scenes: tuple[Scene, ...]
    shots: tuple[ShotScript, ...]
    annotator: AnnotatedBy
    sounds: tuple[SoundScript, ...] = ()


class NoAnswer(DataError):
    """No answer was had for a reason that lies with endpoint, key, budget or disk, and not with the story asked about.

    The same question may well be answered later, so that a story that failed in this way is not to be written off.
    """


class Annotator(Protocol):
    """Where captions come from."""

    def annotate(self, view: StoryView) -> StoryScript:
        """Write the script of one story.

        Raises:
            DataError: no script could be made of this story; the story is dropped with this line as its reason.
            NoAnswer: the story was not asked about; the film is left out of this run.
        """
        ...
