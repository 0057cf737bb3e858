"""Talking to an OpenAI-compatible endpoint: one chat completion with bounded retries, at most so many at a time.

Nothing here knows of films. The key is read from the environment when a request is made and put into its header; it is blotted
out of whatever a server sends back before anything else sees it.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
import urllib3
from pydantic import BaseModel, ValidationError

from animeshooter_dataset import first_problem
from curation.asking import KEYS, AskConfig, Reply, Turn
from curation.ledger import AskLimits, Usage, turn
from curation.parts import as_json
from curation.script import NoAnswer

LARGEST_REPLY = 8 * 2**20
"""Bytes of the largest reply that is read; a script takes some tens of thousands."""
FIRST_WAIT, LONGEST_BACKOFF = 1.0, 60.0
"""Seconds before the first retry, doubled for each one after it, up to the longest."""

DISPENSABLE = {
    "max_tokens": "max_completion_tokens",
    "response_format": "response_?(format|schema)|json_?schema|additional_?properties",
    "temperature": "temperature",
}
"""Fields of a request that some servers do not take, and how their refusals speak of them. Without a schema the answer is
checked all the same; models that reason take only their own temperature."""
_REFUSED: dict[tuple[str, str], set[str]] = {}


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message
    finish_reason: str | None = None


class _Completion(BaseModel):
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
    """A model behind an endpoint, see :class:`curation.asking.Model`.

    Attributes:
        url: base of the API, as a rule ending in ``/v1``.
        name: the model's name there.
        config: what decides its answers.
        limits: what does not.
        turns: folder of the places that hold back more requests than ``limits.concurrency``.
        sleep: waits so many seconds.
    """

    url: str
    name: str
    config: AskConfig
    limits: AskLimits
    turns: Path
    sleep: Callable[[float], None] = time.sleep
    kind: str = "openai"

    def identity(self) -> dict[str, Any]:
        """See :class:`curation.asking.Model`; the address is none of it."""
        return {"model": self.name}

    def reply(self, turns: Sequence[Turn], schema: dict[str, Any], before: Callable[[], None]) -> Reply:
        """See :class:`curation.asking.Model`."""
        body = {
            "model": self.name,
            "messages": [_message_of(each, self.config.frame_width) for each in turns],
            "max_tokens": self.config.max_tokens,
            "temperature": self.config.temperature,
            "response_format": {"type": "json_schema", "json_schema": {"name": "answer", "strict": True, "schema": schema}},
        }
        read_key()  # a key that is none is told before anything waits
        with turn(self.turns / hashlib.sha256(self.url.encode()).hexdigest()[:16], self.limits.concurrency):
            before()
            raw = self._send_as_taken(body)
        if raw.status != 200:
            raise NoAnswer(self._refusal(raw))
        found = self._read(raw)
        if not found.choices:
            return Reply(
                "", usage=found.usage, refused=f"{self.url} answers without a choice; the question may be blocked there"
            )
        choice = found.choices[0]
        # Again without the key: JSON can hide it in escapes.
        return Reply(_blot(choice.message.content or "", read_key()), choice.finish_reason == "length", found.usage)

    def _send_as_taken(self, body: dict[str, Any]) -> _Raw:
        """Send, and again without what the server says it does not take; that is remembered for its next question."""
        refused = _REFUSED.setdefault((self.url, self.name), set())
        for name in list(refused):
            _leave_out(body, name)
        raw = self._send(body)
        for _ in DISPENSABLE:
            names = [name for name, told in DISPENSABLE.items() if name in body and re.search(told, raw.text, re.IGNORECASE)]
            if raw.status not in (400, 422) or not names:
                break
            refused.add(names[0])
            _leave_out(body, names[0])
            raw = self._send(body)
        return raw

    def _send(self, body: dict[str, Any]) -> _Raw:
        """Send, and again after a wait as long as there is hope; the place is kept meanwhile, so that others wait too."""
        limits, key = self.limits, read_key()
        stored = json.dumps(body).encode()
        rng = random.Random(f"{limits.seed} {len(stored)} {self.name}")
        for attempt in range(limits.retries + 1):
            raw = _once(self.url, limits.timeout, stored, key)
            hopeful = raw.kind == "lost" or raw.status in (408, 429) or raw.status >= 500
            if not hopeful or attempt == limits.retries:
                break
            wait = min(FIRST_WAIT * 2**attempt, LONGEST_BACKOFF) * rng.uniform(0.5, 1.0)
            if raw.wait is not None and raw.status in (429, 503):
                if raw.wait > limits.max_wait:
                    raise NoAnswer(f"{self.url} asks to wait {raw.wait:.0f} s (status {raw.status}); run again later")
                wait += raw.wait
            self.sleep(wait)
        return raw

    def _refusal(self, raw: _Raw) -> str:
        """One line on a request that got no answer."""
        tries = f"after {self.limits.retries + 1} attempts"
        told = f": {self._said(raw.text)}" if raw.text else ""
        if raw.status == 0:
            again = f", {tries}" if raw.kind == "lost" else ""
            return f"{self.url} {self._said(raw.text)}{again}; is the server running, and is this its address?"
        said = f"{self.url} answers with status {raw.status}"
        if raw.status in (401, 403):
            return f"{said}{told}; put a valid key into {KEYS[0]}"
        if raw.status == 404:
            return f"{said}{told}; the address should end like /v1, and '{self.name}' be the name of a model it serves"
        if raw.status == 429:
            return f"{said} {tries}{told}; wait, or raise the quota there"
        if 300 <= raw.status < 400:
            return f"{said}, a redirect{told}; give the address it leads to"
        if raw.status >= 500 or raw.status == 408:
            return f"{said} {tries}{told}; look into the server's log"
        return f"{said}{told}; the model must take images, and hold the frames and {self.config.max_tokens} tokens of answer"

    def _said(self, text: str) -> str:
        """What a server says, as a part of one line."""
        told = " ".join("".join(letter if letter.isprintable() else " " for letter in _message(text)).split())
        told = _blot(told, read_key())
        return told if len(told) <= 200 else told[:199] + "…"

    def _read(self, raw: _Raw) -> _Completion:
        url = self.url
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
            return _Completion.model_validate(found)
        except ValidationError as problem:
            raise NoAnswer(f"{url} answers, but not as a chat completion ({first_problem(problem)})") from None


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


def _leave_out(body: dict[str, Any], name: str) -> None:
    """Take a field out of a request; the length of an answer goes by its other name."""
    value = body.pop(name, None)
    if name == "max_tokens" and value is not None:
        body["max_completion_tokens"] = value


def _message_of(each: Turn, width: int) -> dict[str, Any]:
    """A turn as chat completions take it: a text where it is one, else a list of parts."""
    if len(each.parts) == 1 and isinstance(each.parts[0], str):
        return {"role": each.role, "content": each.parts[0]}
    return {"role": each.role, "content": [as_json(part, width) for part in each.parts]}


def _once(url: str, timeout: float, body: bytes, key: str | None) -> _Raw:
    """One request, given up after twice the timeout whatever comes in drips; whatever happens to it is a result."""
    results: list[_Raw | BaseException] = []

    def exchange() -> None:
        try:
            results.append(_exchange(url, timeout, body, key))
        except BaseException as error:
            results.append(error)

    worker = threading.Thread(target=exchange, daemon=True)
    worker.start()
    worker.join(2 * timeout)
    result = results[0] if results else _Raw(0, f"gave no whole reply within {timeout:g} s", kind="lost")
    if isinstance(result, BaseException):
        raise result
    return result


def _exchange(url: str, timeout: float, body: bytes, key: str | None) -> _Raw:
    """One request; errors of the network are results."""
    headers = {"Content-Type": "application/json", "Accept": "application/json", "Accept-Encoding": "identity"}
    until = time.monotonic() + timeout
    late = f"gave no whole reply within {timeout:g} s"
    try:
        with requests.Session() as session:
            session.trust_env = urlsplit(url).hostname not in ("localhost", "127.0.0.1", "::1")
            with session.post(
                f"{url}/chat/completions",
                data=body,
                headers=headers,
                auth=_Bearer(key),
                timeout=(min(10.0, timeout), timeout),
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
