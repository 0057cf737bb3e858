"""Which annotator writes the captions of a film."""

from __future__ import annotations

from animeshooter_dataset import DataError
from curation.asking import PROMPTS, asker_of
from curation.collect import Film
from curation.config import BuildConfig
from curation.measure import Measure
from curation.screenwriter import Screenwriter
from curation.script import Annotator
from curation.sidecar import Sidecar, SidecarScript

UNASKED = ("auto", "sidecar", "measure")
"""Annotators that ask nobody."""
QUESTIONS = ("story.md", "repair.md")
"""The prompts of a script."""


def annotator_of(film: Film, script: SidecarScript | None, config: BuildConfig) -> Annotator:
    """The annotator of a film.

    Args:
        film: the film.
        script: the script beside it, where there is one that can be read.
        config: the settings.

    Raises:
        DataError: ``config.annotator`` names none.
    """
    if config.annotator not in UNASKED:
        return screenwriter_of(config)
    wants_script = config.annotator == "sidecar" or (config.annotator == "auto" and script is not None and bool(script.shots))
    if wants_script and script is not None and film.script is not None:
        return Sidecar(script, film.script)
    return Measure()


def screenwriter_of(config: BuildConfig) -> Annotator:
    """The annotator that asks a model.

    Raises:
        DataError: ``config.annotator`` names none, or a setting cannot be used.
    """
    if not config.annotator.startswith(("openai:", "local:")):
        raise DataError(f"no annotator '{config.annotator}'; there are {', '.join(UNASKED)}, openai:URL#MODEL and local:MODEL")
    return Screenwriter(asker_of(config.annotator, config.ask, config.limits), config.language)


def question_of(config: BuildConfig) -> dict[str, str]:
    """What besides the settings decides a model's captions: the prompts, by name; nothing where nobody is asked."""
    if config.annotator in UNASKED:
        return {}
    return {name: (PROMPTS / name).read_text(encoding="utf-8") for name in QUESTIONS}
