"""Asking a model a question of text, pictures, film or sound, for an answer of a given form.

One way for everything that is asked: scripts (``curation.screenwriter``), verdicts (``curation.judge``), and what is heard. An
answer is JSON; whatever the server promises, it is validated here. One that cannot be used is sent back once with what is
wrong, and when that does not help the failure is an error that says so. Answers are kept by a hash of everything that decides
them, so that the same question is never paid for twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache as once
from pathlib import Path
from string import Template
from typing import Any, Generic, Literal, Protocol, TypeVar
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, ValidationError

from animeshooter_dataset import DataError
from curation.ledger import AskLimits, Ledger, Usage, write_json
from curation.parts import Part, digest
from curation.script import NoAnswer

PROMPTS = Path(__file__).parent / "prompts"
KEYS = ("ANIMESHOOTER_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the endpoint's key; the first that is set counts."""
ABOUT: ContextVar[str | None] = ContextVar("about", default=None)
"""The video that is asked about just now: its answers are listed, so that they can be found when it has to go."""
MOST_TOLD = 12
"""Problems that are told to a model at once."""


@dataclass(frozen=True)
class AskConfig:
    """What of the asking decides the answers.

    Attributes:
        frames_per_shot: most frames of a shot that are sent.
        max_frames: most frames of a request; longer shots are served first, a story with more shots is refused.
        frame_width: width of a sent frame in pixels; smaller ones are sent as they are.
        video: send a story as one film part (``video_url``, an MP4 inside the request, as vLLM takes it) and not as frames.
        video_fps: frames a second of that film.
        max_tokens: most tokens of an answer.
        temperature: 0 for the likeliest answer; a local model always gives that.
        dtype: number format of a local model: ``auto`` as it is stored, ``float32``, ``bfloat16`` or ``float16``.
    """

    frames_per_shot: int = 3
    max_frames: int = 96
    frame_width: int = 512
    video: bool = False
    video_fps: float = 2.0
    max_tokens: int = 8192
    temperature: float = 0.0
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"

    def __post_init__(self) -> None:
        """Raise :class:`DataError` where a setting cannot be used."""
        if min(self.frames_per_shot, self.max_frames, self.frame_width, self.max_tokens, self.video_fps) <= 0:
            raise DataError("frames_per_shot, max_frames, frame_width, video_fps and max_tokens must be above 0")
        if not self.temperature >= 0:
            raise DataError(f"temperature {self.temperature:g} is below 0")


def or_none(value: Any) -> Any:
    """None for the ways in which models write it; for fields of a form."""
    return None if isinstance(value, str) and value.strip().lower() in ("", "null", "none", "n/a", "unknown") else value


class Form(BaseModel):
    """Base of what is asked for; what was not asked for is left out of an answer."""

    model_config = ConfigDict(frozen=True, extra="ignore", str_strip_whitespace=True, allow_inf_nan=False)


Answer = TypeVar("Answer", bound=BaseModel)


def _nothing(_: Any) -> Sequence[str]:
    return ()


@dataclass(frozen=True)
class Question(Generic[Answer]):
    """A question and what its answer must be.

    Attributes:
        what: what is asked for, a noun for messages.
        parts: the question in the order in which it is read.
        form: the answer's form, see :class:`Form`; its JSON schema goes out with the question.
        check: what is wrong with an answer of that form, one line each; such an answer is not used.
        doubts: what is to be mended where the model can; told once like the rest, and borne if it stays.
    """

    what: str
    parts: Sequence[Part]
    form: type[Answer]
    check: Callable[[Answer], Sequence[str]] = _nothing
    doubts: Callable[[Answer], Sequence[str]] = _nothing


@dataclass(frozen=True)
class Turn:
    """One message of a conversation."""

    role: Literal["user", "assistant"]
    parts: Sequence[Part]


@dataclass(frozen=True)
class Reply:
    """What a model says; ``cut`` when it stopped for want of tokens, ``refused`` tells why it says nothing at all."""

    text: str
    cut: bool = False
    usage: Usage | None = None
    refused: str = ""


class Model(Protocol):
    """Something that answers."""

    @property
    def kind(self) -> str:
        """How it is reached: ``openai`` or ``local``."""
        ...

    @property
    def name(self) -> str:
        """Its name."""
        ...

    def identity(self) -> dict[str, Any]:
        """What besides the question decides its answers, as JSON."""
        ...

    def reply(self, turns: Sequence[Turn], schema: dict[str, Any], before: Callable[[], None]) -> Reply:
        """Its reply to a conversation, in JSON of ``schema`` where it can be held to one.

        Args:
            turns: the conversation, the user's turn last.
            schema: JSON schema of the answer.
            before: called when its turn has come and nothing is sent yet; may raise to send nothing.

        Raises:
            NoAnswer: no reply was had, for a reason that does not lie with the question.
            DataError: the model cannot take this question.
        """
        ...


class AnswerError(ValueError):
    """An answer that cannot be used; ``problems`` has one line for each thing that is wrong."""

    def __init__(self, problems: Sequence[str]) -> None:
        super().__init__(_in_short(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Asker:
    """A model, how it is asked, and the folder that keeps answers and usage."""

    model: Model
    config: AskConfig
    limits: AskLimits
    cache: Path

    def ask(self, question: Question[Answer]) -> Answer:
        """The validated answer to a question, from the cache folder where it is known.

        Raises:
            NoAnswer: a DataError that does not lie with the question: endpoint, key, budget or cache folder want mending.
            DataError: the model gave no usable answer, also when told what is wrong.
        """
        try:
            key = self._key(question)
            path = self.cache / key[:2] / f"{key}.json"
            kept = _read_kept(path, key, question)
            if video := ABOUT.get():
                _note(self.cache / "videos" / f"{video}.txt", key)
            if kept is None:
                answer, usage = self._ask(question)
                doubts = list(question.doubts(answer))
                record = _Kept(key=key, model=self.model.name, what=question.what, usage=usage, doubts=doubts)
                write_json(path, record.model_dump(mode="json") | {"answer": answer.model_dump(mode="json")})
                kept = answer
            return kept
        except OSError as error:
            raise NoAnswer(
                f"{self.cache}: answers cannot be kept here ({error.strerror or error}); let XDG_CACHE_HOME name another folder"
            ) from None

    def _key(self, question: Question[Any]) -> str:
        """Hash of everything that decides the answer; where it is asked and at what price does not."""
        settings = {name: getattr(self.config, name) for name in ("frame_width", "max_tokens", "temperature")}
        head = [1, self.model.identity(), settings, prompt("repair.md"), plain_schema(question.form)]
        whole = hashlib.sha256(json.dumps(head, sort_keys=True).encode())
        for part in question.parts:
            whole.update(digest(part))
        return whole.hexdigest()

    def _ask(self, question: Question[Answer]) -> tuple[Answer, Usage]:
        """Ask, and when the answer wants mending, once more with what is wrong; of two usable ones the better counts."""
        turns = [Turn("user", question.parts)]
        first = self._round(question, turns)
        if first.answer is not None and not first.problems:
            return first.answer, Usage().plus(first.reply.usage)
        told = prompt("repair.md", what=question.what, problems="\n".join(f"- {each}" for each in first.problems[:MOST_TOLD]))
        said = first.reply.text[:2000] if first.reply.cut else first.reply.text  # a text that runs on is not to be learned from
        try:
            second = self._round(question, [*turns, Turn("assistant", [said or "{}"]), Turn("user", [told])])
        except DataError:
            if first.answer is None:
                raise
            return first.answer, Usage().plus(first.reply.usage)
        usable = [each for each in (second, first) if each.answer is not None]
        if not usable:
            mend = "raise max_tokens" if second.reply.cut else "try another model"
            raise DataError(f"{self.model.name} gave no usable {question.what}, {_in_short(second.problems)}; {mend}")
        best = min(usable, key=lambda each: len(each.problems)).answer
        assert best is not None
        return best, Usage().plus(first.reply.usage).plus(second.reply.usage)

    def _round(self, question: Question[Answer], turns: Sequence[Turn]) -> _Round[Answer]:
        """One request, paid for, and what its reply is worth."""
        ledger = Ledger(self.cache / "usage.json", self.model.name, self.limits)
        reply = self.model.reply(turns, plain_schema(question.form), ledger.check)
        ledger.add(reply.usage)
        if reply.refused:
            raise DataError(reply.refused)
        if reply.cut:
            return _Round(reply, None, [f"the answer is cut off at {self.config.max_tokens} tokens; write shorter texts"])
        try:
            answer = read_form(reply.text, question.form)
        except AnswerError as error:
            return _Round(reply, None, error.problems)
        problems = question.check(answer)
        return _Round(reply, None, problems) if problems else _Round(reply, answer, question.doubts(answer))


@dataclass(frozen=True)
class _Round(Generic[Answer]):
    """A reply, the answer in it where that can be used, and what is wrong or doubtful."""

    reply: Reply
    answer: Answer | None
    problems: Sequence[str]


def _in_short(problems: Sequence[str]) -> str:
    return problems[0] + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


class _Kept(BaseModel):
    """A file of the cache, but for its answer."""

    format: Literal["animeshooter-answer"] = "animeshooter-answer"
    key: str
    model: str
    what: str
    usage: Usage
    doubts: list[str]


def _note(path: Path, key: str) -> None:
    """Add the key of an answer to the list of a video, once."""
    if not path.is_file() or key not in path.read_text().split():
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as lines:
            lines.write(f"{key}\n")


def _read_kept(path: Path, key: str, question: Question[Answer]) -> Answer | None:
    """The kept answer to a question; None where there is none, or none that can be used."""
    try:
        found = json.loads(path.read_bytes())
        kept, answer = _Kept.model_validate(found), question.form.model_validate(found["answer"])
    except (ValueError, KeyError, RecursionError, FileNotFoundError):
        return None
    return answer if kept.key == key and not question.check(answer) else None


def asker_of(
    spec: str,
    config: AskConfig | None = None,
    limits: AskLimits | None = None,
    *,
    cache: Path | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Asker:
    """Whom a user names.

    Args:
        spec: ``openai:URL#MODEL``, as ``openai:http://127.0.0.1:8000/v1#Qwen/Qwen3-VL-8B-Instruct``, where the address may hold
            no password and no key; or ``local:MODEL``, a folder or a name on the Hub.
        config: what decides the answers.
        limits: what does not.
        cache: folder of answers and usage; by default ``animeshooter/answers`` in the user's cache folder.
        sleep: waits so many seconds between retries.

    Raises:
        DataError: the model or a setting cannot be used.
    """
    config, limits, cache = config or AskConfig(), limits or AskLimits(), cache or default_cache()
    if spec.startswith("local:") and spec.removeprefix("local:").strip():
        from curation.local import LocalModel

        if config.video:
            raise DataError("a local model is asked with frames; set ask.video to false, or name an endpoint")
        return Asker(LocalModel(spec.removeprefix("local:").strip(), config, limits.device), config, limits, cache)
    from curation.chat import Client

    address, _, name = spec.removeprefix("openai:").partition("#")
    address = address.rstrip("/").removesuffix("/chat/completions")
    try:
        parts = urlsplit(address)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and not re.search(r"\s", address)
    except ValueError:
        usable = False
    if not (usable and name.strip() and spec.startswith("openai:")):
        raise DataError("a model must look like openai:http://127.0.0.1:8000/v1#model-name, or local:folder-or-name")
    if parts.username is not None or parts.query:
        raise DataError(f"a model's address may hold no password and no key; put the key into {KEYS[0]}")
    return Asker(Client(address, name.strip(), config, limits, cache / "turns", sleep), config, limits, cache)


def default_cache() -> Path:
    """Where answers are kept when no folder is named: ``$XDG_CACHE_HOME`` or ``~/.cache``, ``animeshooter/answers``."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "animeshooter" / "answers"


@once
def _stored_prompt(name: str) -> str:
    return (PROMPTS / name).read_text(encoding="utf-8")


def prompt(name: str, **values: str) -> str:
    """A prompt of ``curation/prompts``, its ``$names`` filled in where values are given."""
    return Template(_stored_prompt(name)).substitute(values) if values else _stored_prompt(name)


def plain_schema(form: type[BaseModel]) -> dict[str, Any]:
    """A form's JSON schema in the plain way that servers agree on: no references, every property required."""
    schema = form.model_json_schema()
    parts = schema.pop("$defs", {})

    def plain(node: Any) -> Any:
        if isinstance(node, list):
            return [plain(each) for each in node]
        if not isinstance(node, dict):
            return node
        if "$ref" in node:
            return plain(parts[node["$ref"].rpartition("/")[2]])
        result = {name: plain(value) for name, value in node.items() if name not in ("title", "default", "description")}
        if "properties" in node:
            result["properties"] = {name: plain(value) for name, value in node["properties"].items()}
            result |= {"required": list(node["properties"]), "additionalProperties": False}
        return result

    return plain(schema)


def read_form(text: str, form: type[Answer]) -> Answer:
    """Find an answer of a form in a model's text; its JSON may stand in a code fence or between other words.

    Raises:
        AnswerError: there is none.
    """
    try:
        return form.model_validate(_extract(text))
    except ValidationError as error:
        raise AnswerError(list(_schema_problems(error))) from None


def _extract(text: str) -> Any:
    """The JSON object in a text: the whole of it, a fenced block, or what lies between the first and the last brace."""
    text = text.rpartition("</think>")[2].strip()
    candidates = [text, *re.findall(r"```[A-Za-z]*\n(.*?)```", text, re.DOTALL), text[text.find("{") : text.rfind("}") + 1]]
    for candidate in candidates:
        try:
            found = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(found, dict):
            return found
    if not text:
        raise AnswerError(["the answer is empty"])
    what = "breaks off in the middle of its JSON" if "{" in text else "holds no JSON object"
    raise AnswerError([f"the answer {what}"])


def _schema_problems(error: ValidationError) -> Iterator[str]:
    for problem in error.errors(include_url=False, include_input=False, include_context=False)[:MOST_TOLD]:
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in problem["loc"]).lstrip(".")
        yield f"{path or 'the answer'}: {' '.join(problem['msg'].split())}"
