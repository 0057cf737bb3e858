"""Talking to an OpenAI-compatible endpoint: one chat completion with bounded retries, and the account of what they took.

Nothing here knows of films. The key is read from the environment when a request is made and put into its header; it is blotted
out of whatever a server sends back before anything else sees it.
"""

from __future__ import annotations

import json
import os
import random
import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import requests
import urllib3
from filelock import FileLock
from pydantic import BaseModel, Field, ValidationError

from animeshooter_dataset import DataError, Record, first_problem
from curation.script import NoAnswer

KEYS = ("ANIMESHOOTER_API_KEY", "OPENAI_API_KEY")
"""Environment variables that may hold the endpoint's key; the first that is set counts."""
LARGEST_REPLY = 8 * 2**20
"""Bytes of the largest reply that is read; a script takes some tens of thousands."""
FIRST_WAIT, LONGEST_BACKOFF = 1.0, 60.0
"""Seconds before the first retry, doubled for each one after it, up to the longest."""


@dataclass(frozen=True)
class EndpointConfig:
    """Whom to ask, and how.

    Attributes:
        url: base of the API, as a rule ending in ``/v1``.
        model: the model's name there.
        frames_per_shot: most frames of a shot that are sent.
        max_frames: most frames of a request; longer shots are served first, a story with more shots is refused.
        frame_width: width of a sent frame in pixels; smaller ones are sent as they are.
        timeout: seconds after which a request is given up; up to twice that when its reply comes in drips.
        retries: how often a request is sent again when the server is busy, fails or cannot be reached.
        max_wait: longest wait in seconds that a server may ask for before it is given up.
        max_tokens: most tokens of an answer.
        temperature: 0 for the likeliest answer.
        language: language of the captions.
        prompt_price: price of a million tokens of question, in any currency.
        answer_price: the same of answer, reasoning included.
        budget_cost: no more requests once this model's cost in the cache folder has reached this; needs both prices.
        budget_tokens: the same in tokens of questions and answers together.
        seed: of the jitter between retries.
    """

    url: str
    model: str
    frames_per_shot: int = 3
    max_frames: int = 96
    frame_width: int = 512
    timeout: float = 300.0
    retries: int = 4
    max_wait: float = 120.0
    max_tokens: int = 8192
    temperature: float = 0.0
    language: str = "English"
    prompt_price: float | None = None
    answer_price: float | None = None
    budget_cost: float | None = None
    budget_tokens: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.budget_cost is not None and (self.prompt_price is None or self.answer_price is None):
            raise DataError(f"{self.model}: a budget of {self.budget_cost:g} needs the prices of a million tokens")
        if min(self.frames_per_shot, self.max_frames, self.frame_width, self.max_tokens, self.timeout) <= 0 or self.retries < 0:
            raise DataError(f"{self.model}: frames, sizes, tokens and timeout must be above 0, retries at least 0")


class Usage(BaseModel):
    """Tokens of one or more requests; ``unreported`` counts those whose reply told none."""

    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    total_tokens: int | None = None
    requests: int = 0
    unreported: int = 0

    def plus(self, other: Usage | None) -> Usage:
        """The sum with one more request; what its total holds beyond question and answer was spent on reasoning."""
        if other is None:
            return self.model_copy(update={"requests": self.requests + 1, "unreported": self.unreported + 1})
        answered = max(other.completion_tokens, (other.total_tokens or 0) - other.prompt_tokens)
        return self.model_copy(
            update={
                "requests": self.requests + 1,
                "prompt_tokens": self.prompt_tokens + other.prompt_tokens,
                "completion_tokens": self.completion_tokens + answered,
            }
        )


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class Reply(BaseModel):
    """A chat completion, as far as it matters here; ``choices`` may be empty."""

    choices: list[_Choice]
    usage: Usage | None = None


@dataclass(frozen=True)
class _Raw:
    """What came back over HTTP; ``status`` 0 when nothing did, with ``text`` saying why."""

    status: int
    text: str
    wait: float | None = None
    kind: str = ""


class _Bearer(requests.auth.AuthBase):
    """Sets the key, or none: given to every request, so that a netrc file has no say."""

    def __init__(self, key: str | None) -> None:
        self.key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self.key:
            request.headers["Authorization"] = f"Bearer {self.key}"
        return request


@dataclass(frozen=True)
class Client:
    """Sends chat completions."""

    config: EndpointConfig
    sleep: Callable[[float], None] = time.sleep

    def complete(self, messages: list[dict[str, Any]], schema: dict[str, Any]) -> Reply:
        """Ask for the answer to ``messages`` in JSON of ``schema``.

        Raises:
            NoAnswer: no reply that could be read, in one line with what to do about it.
        """
        config = self.config
        body = {
            "model": config.model,
            "messages": messages,
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}},
        }
        raw = self._send(body)
        if raw.status in (400, 422) and re.search("response_format|json_?schema", raw.text, re.IGNORECASE):
            del body["response_format"]  # a server that knows no schemas; the answer is checked in any case
            raw = self._send(body)
        if raw.status != 200:
            raise NoAnswer(self._refusal(raw))
        return self._read(raw)

    def _send(self, body: dict[str, Any]) -> _Raw:
        """Send, and again after a wait as long as there is hope."""
        config, key = self.config, read_key()
        stored = json.dumps(body).encode()
        rng = random.Random(f"{config.seed} {len(stored)} {config.model}")
        for attempt in range(config.retries + 1):
            raw = _once(config, stored, key)
            hopeful = raw.kind == "lost" or raw.status in (408, 429) or raw.status >= 500
            if not hopeful or attempt == config.retries:
                break
            wait = min(FIRST_WAIT * 2**attempt, LONGEST_BACKOFF) * rng.uniform(0.5, 1.0)
            if raw.wait is not None and raw.status in (429, 503):
                if raw.wait > config.max_wait:
                    raise NoAnswer(f"{config.url} asks to wait {raw.wait:.0f} s (status {raw.status}); run again later")
                wait += raw.wait
            self.sleep(wait)
        return raw

    def _refusal(self, raw: _Raw) -> str:
        """One line on a request that got no answer."""
        config, tries = self.config, f"after {self.config.retries + 1} attempts"
        told = f": {self._said(raw.text)}" if raw.text else ""
        if raw.status == 0:
            again = f", {tries}" if raw.kind == "lost" else ""
            return f"{config.url} {self._said(raw.text)}{again}; is the server running, and is this its address?"
        said = f"{config.url} answers with status {raw.status}"
        if raw.status in (401, 403):
            return f"{said}{told}; put a valid key into {KEYS[0]}"
        if raw.status == 404:
            return f"{said}{told}; the address should end like /v1, and '{config.model}' be the name of a model it serves"
        if raw.status == 429:
            return f"{said} {tries}{told}; wait, or raise the quota there"
        if 300 <= raw.status < 400:
            return f"{said}, a redirect{told}; give the address it leads to"
        if raw.status >= 500 or raw.status == 408:
            return f"{said} {tries}{told}; look into the server's log"
        return f"{said}{told}; the model must take images, and hold the frames and {config.max_tokens} tokens of answer"

    def _said(self, text: str) -> str:
        """What a server says, as a part of one line."""
        told = " ".join("".join(letter if letter.isprintable() else " " for letter in _message(text)).split())
        told = _blot(told, read_key())
        return told if len(told) <= 200 else told[:199] + "…"

    def _read(self, raw: _Raw) -> Reply:
        url = self.config.url
        if raw.text.lstrip()[:1] == "<":
            raise NoAnswer(f"{url} answers with a web page, not with JSON; the address should end like /v1")
        try:
            found = json.loads(raw.text)
        except (ValueError, RecursionError):
            raise NoAnswer(f"{url} answers with broken JSON ({self._said(raw.text) or 'nothing'}); run again") from None
        error = found.get("error") if isinstance(found, dict) else None
        if error:
            raise NoAnswer(f"{url} answers with an error: {self._said(json.dumps(error))}")
        try:
            reply = Reply.model_validate(found)
        except ValidationError as problem:
            raise NoAnswer(f"{url} answers, but not as a chat completion ({first_problem(problem)})") from None
        for choice in reply.choices:
            choice.message.content = _blot(choice.message.content or "", read_key())  # again: JSON can hide it in escapes
        return reply


def read_key() -> str | None:
    """The endpoint's key from the environment; None where there is none, as local servers need none.

    Raises:
        NoAnswer: it cannot be one.
    """
    for name in KEYS:
        key = os.environ.get(name, "").strip()
        if key:
            if not re.fullmatch(r"[!-~]+", key):
                raise NoAnswer(f"{name} holds white space or other letters than a key is made of; set it again")
            return key
    return None


def _once(config: EndpointConfig, body: bytes, key: str | None) -> _Raw:
    """One request; whatever happens to it is a result."""
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
    until = time.monotonic() + config.timeout
    late = f"gave no whole reply within {config.timeout:g} s"
    try:
        with requests.Session() as session:
            session.trust_env = urlsplit(config.url).hostname not in ("localhost", "127.0.0.1", "::1")
            with session.post(
                f"{config.url}/chat/completions",
                data=body,
                headers=headers,
                auth=_Bearer(key),
                timeout=(min(10.0, config.timeout), config.timeout),
                allow_redirects=False,
                stream=True,
            ) as response:
                data = bytearray()
                while part := response.raw.read1(2**16, decode_content=True):
                    data += part
                    if len(data) > LARGEST_REPLY:
                        return _Raw(0, f"sends more than {LARGEST_REPLY} bytes", kind="strange")
                    if time.monotonic() > until:
                        return _Raw(0, late, kind="lost")
                text = _blot(data.decode("utf-8", "replace"), key)
                return _Raw(response.status_code, text, _retry_after(response.headers.get("Retry-After")))
    except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError):
        return _Raw(0, late, kind="lost")
    except requests.exceptions.SSLError as error:
        return _Raw(0, f"has no certificate that is trusted here ({type(error).__name__})", kind="strange")
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError) as error:
        return _Raw(0, f"cannot be reached, or broke off ({type(error).__name__})", kind="lost")
    except requests.RequestException as error:
        return _Raw(0, f"cannot be asked ({type(error).__name__})", kind="strange")
    except OSError as error:
        return _Raw(0, f"broke off ({type(error).__name__})", kind="lost")


def _retry_after(value: str | None) -> float | None:
    """Seconds of a Retry-After header, which holds seconds or a date (RFC 9110, section 10.2.3); None when unreadable."""
    if value is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}\s*", value):
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except ValueError:
        return None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.now(UTC)).total_seconds())


def _blot(text: str, key: str | None) -> str:
    """A text without the key; placeholders like EMPTY, which local servers are given, are too short to be one."""
    return text.replace(key, "[key]") if key and len(key) >= 8 else text


def _message(text: str) -> str:
    """The message in an error's JSON, in the ways in which servers wrap it; without tags where it is a web page."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return re.sub(r"<[^>]*>", " ", text)
    found = found[0] if isinstance(found, list) and found else found
    error = found.get("error", found) if isinstance(found, dict) else found
    told = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return str(told or text)


def write_json(path: Path, value: Any) -> None:
    """Write a file that is there whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(value, file, indent=1)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


class Spent(Record):
    """What one model has taken so far; ``cost`` is at the prices of the latest request, None where none were named."""

    requests: int = Field(default=0, ge=0)
    unreported: int = Field(default=0, ge=0)
    prompt_tokens: int = Field(default=0, ge=0)
    completion_tokens: int = Field(default=0, ge=0)
    cost: float | None = None


class _Account(Record):
    format: Literal["animeshooter-usage"] = "animeshooter-usage"
    models: dict[str, Spent] = Field(default_factory=dict)


@dataclass(frozen=True)
class Ledger:
    """The account of a cache folder, ``usage.json``, shared by all processes that ask from it.

    It holds what replies report; a request whose reply never came whole may still have cost something.
    """

    path: Path
    config: EndpointConfig

    def spent(self) -> Spent:
        """What the configured model has taken, its cost at the configured prices.

        Raises:
            NoAnswer: the account is damaged.
        """
        return self._priced(self._read().models.get(self.config.model, Spent()))

    def check(self) -> None:
        """Raise :class:`NoAnswer` when a budget is reached, or cannot be kept because replies do not tell their tokens.

        Processes that ask at the same time may each go over it by the one request they have under way.
        """
        config, spent = self.config, self.spent()
        if config.budget_tokens is None and config.budget_cost is None:
            return
        if spent.unreported:
            raise NoAnswer(
                f"{config.model} does not report its tokens ({spent.unreported} replies), so no budget can be kept; "
                f"ask without one, or delete {self.path}"
            )
        tokens = spent.prompt_tokens + spent.completion_tokens
        reached = ""
        if config.budget_tokens is not None and tokens >= config.budget_tokens:
            reached = f"{tokens} of {config.budget_tokens} tokens"
        elif config.budget_cost is not None and (spent.cost or 0) >= config.budget_cost:
            reached = f"{spent.cost:.4g} of {config.budget_cost:g}"
        if reached:
            raise NoAnswer(f"budget reached: {config.model} has taken {reached}; raise it, or delete {self.path}")

    def add(self, usage: Usage | None) -> None:
        """Count one reply."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{self.path}.lock"):
            account = self._read()
            before = account.models.get(self.config.model, Spent())
            total = Usage(**before.model_dump(exclude={"cost"})).plus(usage)
            now = self._priced(Spent(**total.model_dump(exclude={"total_tokens"})))
            write_json(self.path, _Account(models=account.models | {self.config.model: now}).model_dump(mode="json"))

    def _read(self) -> _Account:
        try:
            return _Account.model_validate_json(self.path.read_bytes())
        except FileNotFoundError:
            return _Account()
        except ValidationError as error:
            raise NoAnswer(f"{self.path}: damaged ({first_problem(error)}); delete it to count anew") from None

    def _priced(self, spent: Spent) -> Spent:
        question, answer = self.config.prompt_price, self.config.answer_price
        if question is None or answer is None:
            return spent.model_copy(update={"cost": None})
        cost = (spent.prompt_tokens * question + spent.completion_tokens * answer) / 1e6
        return spent.model_copy(update={"cost": round(cost, 9)})
