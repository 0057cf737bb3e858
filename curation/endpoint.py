"""Annotator ``openai:URL#MODEL``: asks a vision language model behind any OpenAI-compatible endpoint for a story's script.

One request a story, as AnimeShooter does it: the story's shots with their times and a few frames of each go out, the whole
script comes back, top-down. An answer that cannot be used is sent back once with what is wrong. Answers are kept by a hash of
everything that went into the question, so that the same question is never paid for twice, and the tokens they took are summed
beside them.

The endpoint's key comes from the environment and goes nowhere but into the request's header.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import logging
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from string import Template
from typing import Any, Literal
from urllib.parse import urlsplit

from PIL import Image
from pydantic import BaseModel, ValidationError

from animeshooter_dataset import AnnotatedBy, DataError
from curation.answers import Answer, AnswerError, answer_schema, check, read_answer, recurring, script_of
from curation.chat import KEYS, Client, EndpointConfig, Ledger, Usage, write_json
from curation.script import NoAnswer, Sample, StoryScript, StoryView

LOG = logging.getLogger(__name__)
PROMPTS = Path(__file__).parent / "prompts"


@dataclass(frozen=True)
class Endpoint:
    """The annotator that asks an endpoint; ``cache`` is the folder that keeps answers and usage."""

    config: EndpointConfig
    cache: Path
    sleep: Callable[[float], None] = time.sleep

    @classmethod
    def from_spec(
        cls, spec: str, cache: Path | None = None, *, sleep: Callable[[float], None] = time.sleep, **settings: Any
    ) -> Endpoint:
        """Make one from ``openai:URL#MODEL``, for example ``openai:http://127.0.0.1:8000/v1#Qwen/Qwen3-VL-8B-Instruct``.

        Args:
            spec: the address; it may hold no password and no key.
            cache: folder of answers and usage; by default ``animeshooter/answers`` in the user's cache folder.
            sleep: waits so many seconds between retries.
            **settings: any other field of :class:`EndpointConfig`.

        Raises:
            DataError: the address or a setting cannot be used.
        """
        address, _, model = spec.removeprefix("openai:").partition("#")
        address = address.rstrip("/").removesuffix("/chat/completions")
        try:
            parts = urlsplit(address)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not re.search(r"\s", address)
        except ValueError:
            usable = False
        if not (usable and model.strip() and spec.startswith("openai:")):
            raise DataError("the annotator's address must look like openai:http://127.0.0.1:8000/v1#model-name")
        if parts.username is not None or parts.query:
            raise DataError(f"the annotator's address may hold no password and no key; put the key into {KEYS[0]}")
        return cls(EndpointConfig(address, model.strip(), **settings), cache or default_cache(), sleep)

    def annotate(self, view: StoryView) -> StoryScript:
        """Write the script of one story; see :meth:`curation.script.Annotator.annotate`.

        Raises:
            NoAnswer: a DataError that does not lie with the story: endpoint, key, budget or cache folder want mending.
            DataError: the model gave no usable script of this story.
        """
        try:
            return self._annotate(view)
        except DataError as error:
            line = f"{view.film}: story {view.times[0]:.1f} s to {view.times[-1]:.1f} s: {error}"
            raise (NoAnswer if isinstance(error, NoAnswer) else DataError)(line) from None
        except OSError as error:
            raise NoAnswer(
                f"{self.cache}: answers cannot be kept here ({error.strerror or error}); let XDG_CACHE_HOME name another folder"
            ) from None

    def _annotate(self, view: StoryView) -> StoryScript:
        frames = choose_frames(view, self.config)
        key = _question_key(view, frames, self.config)
        path = self.cache / key[:2] / f"{key}.json"
        kept = _read_kept(path, key, view, self.config.language)
        if kept is None:
            answer, usage = self._ask(view, frames)
            people = recurring(answer)
            kept = _Kept(
                key=key,
                model=self.config.model,
                usage=usage,
                dropped_characters=[each.id for each in answer.characters if each.id not in people],
                answer=answer,
            )
            write_json(path, kept.model_dump(mode="json"))
        if kept.dropped_characters:
            LOG.warning("%s: in one shot only, so no main character: %s", view.film.name, ", ".join(kept.dropped_characters))
        return script_of(kept.answer, view, AnnotatedBy(kind="openai", model=self.config.model))

    def _ask(self, view: StoryView, frames: Sequence[Sequence[Sample]]) -> tuple[Answer, Usage]:
        """Ask, and when the answer cannot be used, once more with what is wrong with it."""
        client = Client(self.config, self.sleep)
        ledger = Ledger(self.cache / "usage.json", self.config)
        messages: list[dict[str, Any]] = [{"role": "user", "content": _question(view, frames, self.config)}]
        total = Usage()
        for last in (False, True):
            ledger.check()
            reply = client.complete(messages, answer_schema())
            ledger.add(reply.usage)
            total = total.plus(reply.usage)
            if not reply.choices:
                raise DataError(f"{self.config.url} answers without a choice; the question may have been blocked there")
            text, cut = reply.choices[0].message.content or "", reply.choices[0].finish_reason == "length"
            LOG.info("%s: %s tokens of question, %s of answer", view.film.name, total.prompt_tokens, total.completion_tokens)
            try:
                if cut:
                    raise AnswerError([f"the answer is cut off at {self.config.max_tokens} tokens; write shorter texts"])
                return read_answer(text, view, self.config.language), total
            except AnswerError as error:
                if last:
                    mend = "raise max_tokens" if cut else "try another model"
                    raise DataError(f"{self.config.model} gave no usable script, {error}; {mend}") from None
                told = Template(_prompt("repair.md")).substitute(problems="\n".join(f"- {each}" for each in error.problems))
                before = text[:2000] if cut else text  # a text that runs on is not to be learned from
                messages += [{"role": "assistant", "content": before or "{}"}, {"role": "user", "content": told}]
        raise AssertionError("the second round returns or raises")


def default_cache() -> Path:
    """Where answers are kept when no folder is named: ``$XDG_CACHE_HOME`` or ``~/.cache``, ``animeshooter/answers``."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "animeshooter" / "answers"


# What is asked


@once
def _prompt(name: str) -> str:
    return (PROMPTS / name).read_text(encoding="utf-8")


def choose_frames(view: StoryView, config: EndpointConfig) -> list[list[Sample]]:
    """The frames sent of each shot: one each, then one more for the shot that has most seconds a frame, up to the limits.

    Raises:
        DataError: a shot has no frame, or the story more shots than a request may hold frames.
    """
    count = len(view.spans)
    if not all(view.samples):
        raise DataError(f"shot {list(map(bool, view.samples)).index(False) + 1} has no frame to show")
    if count > config.max_frames:
        raise DataError(f"{count} shots are more than the {config.max_frames} frames of a request; raise max_frames")
    most = [min(config.frames_per_shot, len(samples)) for samples in view.samples]
    taken = [1] * count
    for _ in range(config.max_frames - count):
        open_shots = [place for place in range(count) if taken[place] < most[place]]
        if not open_shots:
            break
        taken[max(open_shots, key=lambda place: (view.times[place + 1] - view.times[place]) / taken[place])] += 1
    return [[samples[(2 * k + 1) * len(samples) // (2 * n)] for k in range(n)] for samples, n in zip(view.samples, taken)]


def _question_key(view: StoryView, frames: Sequence[Sequence[Sample]], config: EndpointConfig) -> str:
    """Hash of everything that decides the answer; where it is asked and at what price does not."""
    settings = {name: getattr(config, name) for name in ("model", "frame_width", "max_tokens", "temperature", "language")}
    prompts = [_prompt("story.md"), _prompt("repair.md")]
    whole = hashlib.sha256(json.dumps([settings, prompts, answer_schema(), _shot_list(view)]).encode())
    for label, sample in _labelled(view, frames):
        whole.update(f"{label} {sample.image.shape}".encode())
        whole.update(sample.image.tobytes())
    return whole.hexdigest()


def _shot_list(view: StoryView) -> str:
    """The story's shots, one line each."""
    lines = [f"Title of the film: {json.dumps(view.title, ensure_ascii=False)}"] if view.title else []
    lines += [f"{len(view.spans)} shots:"]
    for place, (start, end) in enumerate(zip(view.times, view.times[1:])):
        lines.append(f"Shot {place + 1}: {start:.2f} s to {end:.2f} s ({end - start:.2f} s long)")
    return "\n".join(lines)


def _labelled(view: StoryView, frames: Sequence[Sequence[Sample]]) -> list[tuple[str, Sample]]:
    result = []
    for place, samples in enumerate(frames):
        span, start, end = view.spans[place], view.times[place], view.times[place + 1]
        for sample in samples:
            part = (sample.frame - span.start_frame) / (span.end_frame - span.start_frame)
            result.append((f"Shot {place + 1} at {start + part * (end - start):.2f} s:", sample))
    return result


def _question(view: StoryView, frames: Sequence[Sequence[Sample]], config: EndpointConfig) -> list[dict[str, Any]]:
    """The content of the message that asks."""
    told = Template(_prompt("story.md")).substitute(language=config.language)
    parts: list[dict[str, Any]] = [{"type": "text", "text": f"{told}\n{_shot_list(view)}"}]
    for label, sample in _labelled(view, frames):
        parts.append({"type": "text", "text": label})
        parts.append({"type": "image_url", "image_url": {"url": _data_uri(sample, config.frame_width)}})
    return [*parts, {"type": "text", "text": f"Now write the script of these {len(view.spans)} shots as JSON."}]


def _data_uri(sample: Sample, width: int) -> str:
    picture = Image.fromarray(sample.image)
    if picture.width > width:
        picture = picture.resize((width, max(1, round(picture.height * width / picture.width))), Image.Resampling.LANCZOS)
    stored = io.BytesIO()
    picture.save(stored, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stored.getvalue()).decode()


# What comes back


class _Kept(BaseModel):
    """A file of the cache."""

    format: Literal["animeshooter-answer"] = "animeshooter-answer"
    key: str
    model: str
    usage: Usage
    dropped_characters: list[str]
    answer: Answer


def _read_kept(path: Path, key: str, view: StoryView, language: str) -> _Kept | None:
    """The kept answer to a question; None where there is none, or none that can be used."""
    try:
        kept = _Kept.model_validate_json(path.read_bytes())
    except (ValidationError, FileNotFoundError):
        return None
    return kept if kept.key == key and not check(kept.answer, view, language) else None
