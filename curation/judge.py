"""Verdicts of a vision language model on films, shots and reference images, where one is configured.

The questions are those of AnimeShooter (arXiv 2506.03126, section 3): of a film, whether it is animation and whether subtitles
are burnt in, on 16 uniformly sampled frames; of a reference image, five criteria. Of a shot: 2D or 3D, and whether somebody
talks. How a model is asked, and what becomes of its answers, is ``curation.asking``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Protocol

import numpy as np
from pydantic import BeforeValidator

from animeshooter_dataset import Character
from curation.asking import AskConfig, Asker, AskLimits, Form, Question, asker_of, or_none, prompt
from curation.parts import Part, Picture

FILM_FRAMES = 16
"""Frames of a film that are judged (arXiv 2506.03126, section 3)."""


class FilmVerdict(Form):
    """What a film is taken for."""

    reason: str
    animation: bool
    subtitles: bool


def _style(value: Any) -> Any:
    value = or_none(value)
    return value.strip().upper() if isinstance(value, str) else value


class ShotVerdict(Form):
    """What a shot is taken for; None where it cannot be told."""

    style: Annotated[Literal["2D", "3D"] | None, BeforeValidator(_style)] = None
    talking: Annotated[bool | None, BeforeValidator(or_none)] = None


class ReferenceVerdict(Form):
    """The five criteria of a reference image."""

    reason: str
    complete: bool
    matches: bool
    consistent: bool
    neutral: bool
    sharp: bool

    @property
    def ok(self) -> bool:
        """Whether all five hold."""
        return self.complete and self.matches and self.consistent and self.neutral and self.sharp

    @property
    def failed(self) -> tuple[str, ...]:
        """Names of the criteria that do not hold."""
        return tuple(name for name in ("complete", "matches", "consistent", "neutral", "sharp") if not getattr(self, name))


class Judge(Protocol):
    """Who gives verdicts. Each may raise :class:`DataError` where the model gave none that can be used, and its subclass
    :class:`curation.script.NoAnswer` where endpoint, key or budget want mending and the question may be asked again.
    """

    @property
    def name(self) -> str:
        """The model, for records: ``openai:NAME`` or ``local:NAME``."""
        ...

    def film(self, frames: Sequence[np.ndarray]) -> FilmVerdict:
        """Judge a film by RGB uint8 frames [H, W, 3], :data:`FILM_FRAMES` of them uniformly sampled."""
        ...

    def shot(self, frames: Sequence[np.ndarray]) -> ShotVerdict:
        """Judge a shot by a few RGB uint8 frames [H, W, 3] in order."""
        ...

    def reference(self, cutout: np.ndarray, frame: np.ndarray, character: Character) -> ReferenceVerdict:
        """Judge a reference image.

        Args:
            cutout: the character alone on white, RGB uint8 [h, w, 3].
            frame: the frame it was cut from, RGB uint8 [H, W, 3]; a box may mark the place.
            character: whom it is to show.
        """
        ...


@dataclass(frozen=True)
class AskedJudge:
    """The judge that asks a model."""

    asker: Asker

    @property
    def name(self) -> str:
        """See :class:`Judge`."""
        return f"{self.asker.model.kind}:{self.asker.model.name}"

    def film(self, frames: Sequence[np.ndarray]) -> FilmVerdict:
        """See :class:`Judge`."""
        parts: list[Part] = [prompt("judge_film.md")]
        for number, frame in enumerate(frames, 1):
            parts += [f"Frame {number} of {len(frames)}:", Picture(frame)]
        return self.asker.ask(Question("verdict on a film", [*parts, "Your verdict as JSON:"], FilmVerdict))

    def shot(self, frames: Sequence[np.ndarray]) -> ShotVerdict:
        """See :class:`Judge`."""
        parts: list[Part] = [prompt("judge_shot.md"), *map(Picture, frames), "Your verdict as JSON:"]
        return self.asker.ask(Question("verdict on a shot", parts, ShotVerdict))

    def reference(self, cutout: np.ndarray, frame: np.ndarray, character: Character) -> ReferenceVerdict:
        """See :class:`Judge`."""
        told = prompt("judge_reference.md", id=character.id, appearance=character.appearance or "(none given)")
        parts: list[Part] = [told, "The cut-out:", Picture(cutout), "The frame it was cut from:", Picture(frame)]
        return self.asker.ask(Question("verdict on a reference image", [*parts, "Your verdict as JSON:"], ReferenceVerdict))


def judge_of(spec: str | None, config: AskConfig | None = None, limits: AskLimits | None = None) -> Judge | None:
    """The judge a user names: ``openai:URL#MODEL`` or ``local:MODEL``; None for None, the empty text and ``none``.

    Raises:
        DataError: the model or a setting cannot be used.
    """
    if spec is None or spec.strip().lower() in ("", "none"):
        return None
    return AskedJudge(asker_of(spec, config, limits))
