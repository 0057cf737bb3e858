"""Which annotator writes the captions of a film."""

from __future__ import annotations

from animeshooter_dataset import DataError
from curation.collect import Film
from curation.config import BuildConfig
from curation.measure import Measure
from curation.script import Annotator
from curation.sidecar import Sidecar, SidecarScript

LOCAL = ("auto", "sidecar", "measure")
"""Annotators that ask nobody."""


def annotator_of(film: Film, script: SidecarScript | None, config: BuildConfig) -> Annotator:
    """The annotator of a film.

    Args:
        film: the film.
        script: the script beside it, where there is one that can be read.
        config: the settings.

    Raises:
        DataError: ``config.annotator`` names none.
    """
    if config.annotator not in LOCAL:
        return endpoint_of(config)
    wants_script = config.annotator == "sidecar" or (config.annotator == "auto" and script is not None and bool(script.shots))
    if wants_script and script is not None and film.script is not None:
        return Sidecar(script, film.script)
    return Measure()


def endpoint_of(config: BuildConfig) -> Annotator:
    """The annotator that asks an endpoint.

    Raises:
        DataError: ``config.annotator`` is no address of one.
    """
    if not config.annotator.startswith("openai:"):
        raise DataError(f"no annotator '{config.annotator}'; there are {', '.join(LOCAL)} and openai:URL#MODEL")
    from curation.endpoint import Endpoint

    return Endpoint.from_spec(config.annotator, language=config.language, budget_tokens=config.budget_tokens)


def question_of(config: BuildConfig) -> dict[str, str]:
    """What besides the settings decides an endpoint's captions: the prompts, by name; nothing where nobody is asked."""
    if config.annotator in LOCAL:
        return {}
    from curation.endpoint import PROMPTS

    return {path.name: path.read_text(encoding="utf-8") for path in sorted(PROMPTS.glob("*.md"))}
