"""Who hears a clip of the audio subset and says what sounds in it: a model that takes sound, where one is configured.

AnimeShooter asks Gemini 2.5 Pro for ``type``, ``sound description`` and ``visual context`` of a clip, given the story's
annotation (arXiv 2506.03126, section 3). Here a clip's sound goes out with three of its frames and the story's words. How a
model is asked, and what becomes of its answers, is ``curation.asking``.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import BeforeValidator

from animeshooter_dataset import AnnotatedBy, DataError
from curation.asking import AskConfig, Asker, AskLimits, Form, Question, asker_of, prompt
from curation.parts import Part, Picture, Sound

HEARD_RATE = 16_000
"""Sampling rate in Hz of the mono sound that is sent; what speech and sound models are trained at."""
LISTENER_FRAMES = 3
"""Frames of a clip that are sent with its sound."""
LONGEST = 80
"""Most words of a description."""

SoundType = Literal["silence", "speech", "music", "sound effect", "ambience"]
"""What a clip mostly sounds of."""


def _lower(value: Any) -> Any:
    return value.lower() if isinstance(value, str) else value


class Heard(Form):
    """What is heard in a clip, and what the pictures show of it; the latter is empty where a listener sees nothing."""

    type: Annotated[SoundType, BeforeValidator(_lower)]
    sound_description: str
    visual_context: str


@dataclass(frozen=True)
class Clip:
    """A clip as a listener gets it.

    Attributes:
        start: seconds from the film's first frame.
        end: the same.
        sound: mono, float32 [1, n] at :data:`HEARD_RATE`.
        frames: RGB uint8 [H, W, 3], in order.
        storyline: what happens in the story it lies in.
        captions: captions of the shots it overlaps, in order.
    """

    start: float
    end: float
    sound: np.ndarray
    frames: Sequence[np.ndarray]
    storyline: str
    captions: Sequence[str]


class Listener(Protocol):
    """Who hears clips."""

    @property
    def annotator(self) -> AnnotatedBy:
        """Who it is, for records."""
        ...

    def listen(self, clip: Clip) -> Heard:
        """Say what sounds in a clip.

        Raises:
            DataError: there is no usable answer for this clip.
            NoAnswer: its subclass; endpoint, key or budget want mending and the clip may be asked about again.
        """
        ...


@dataclass(frozen=True)
class AskedListener:
    """The listener that asks a model."""

    asker: Asker
    language: str = "English"

    @property
    def annotator(self) -> AnnotatedBy:
        """See :class:`Listener`."""
        return AnnotatedBy(kind=self.asker.model.kind, model=self.asker.model.name)

    def listen(self, clip: Clip) -> Heard:
        """See :class:`Listener`."""
        seconds = clip.end - clip.start
        told = [f"The clip is {seconds:.1f} s long.", f"Its story: {clip.storyline or '(nothing is said of it)'}"]
        told += [f"Shot {number}: {caption}" for number, caption in enumerate(clip.captions, 1) if caption]
        parts: list[Part] = [prompt("listen.md", language=self.language), "\n".join(told), Sound(clip.sound, HEARD_RATE)]
        for number, frame in enumerate(clip.frames):
            parts += [f"Frame at {(number + 0.5) * seconds / len(clip.frames):.1f} s:", Picture(frame)]
        return self.asker.ask(Question("description of a sound", [*parts, "What is heard, as JSON:"], Heard, _problems))


def _problems(heard: Heard) -> list[str]:
    """What is wrong with an answer, one line each."""
    texts = {"sound_description": heard.sound_description, "visual_context": heard.visual_context}
    words = {name: len(text.split()) for name, text in texts.items()}
    long = [f"{name} has {count} words, more than {LONGEST}" for name, count in words.items() if count > LONGEST]
    return [f"{name} is empty" for name, count in words.items() if not count] + long


def listener_of(
    spec: str | None,
    config: AskConfig | None = None,
    limits: AskLimits | None = None,
    *,
    language: str = "English",
    cache: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Listener | None:
    """The listener a user names: ``openai:URL#MODEL`` or ``local:MODEL``; None for None, the empty text and ``none``.

    Args:
        spec: the model.
        config: what decides its answers.
        limits: what does not.
        language: language of the descriptions.
        cache: folder of answers and usage, see :func:`curation.asking.asker_of`.
        sleep: waits so many seconds between retries.

    Raises:
        DataError: the model or a setting cannot be used.
    """
    if spec is None or spec.strip().lower() in ("", "none"):
        return None
    if spec.startswith("local:") and spec.removeprefix("local:").strip():
        from curation.tagger import Tagger

        return Tagger(spec.removeprefix("local:").strip())
    if not spec.startswith("openai:"):
        need = "openai:URL#MODEL, a server whose model takes sound, or local:MODEL, an audio classifier"
        raise DataError(f"no listener '{spec}'; there are {need}; name none to say only what is measured")
    return AskedListener(asker_of(spec, config, limits, cache=cache, sleep=sleep), language)
