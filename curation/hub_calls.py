"""Calls to the Hub over a line that breaks: time limits, patience, and one clear line where patience does not help."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from animeshooter_dataset import DataError
from curation.lines import one_line

T = TypeVar("T")
PATIENCE = (2.0, 5.0, 15.0, 30.0, 60.0, 120.0)
"""Seconds between attempts of one call. The library itself tries most requests five times before that."""
LONGEST_WAIT = 900.0
"""A server that asks for a longer pause than this many seconds is taken at its word: the run ends and says so."""
LIMITS = {"connect": 20.0, "read": 180.0, "write": 120.0, "pool": None}
"""Seconds of silence after which a connection counts as lost; the library has no limit of its own for most calls."""
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Failure:
    """Why a call failed, in words; whether trying again may help, and how long the server asks to wait."""

    line: str
    again: bool = False
    wait: float = 0.0


class Calls:
    """Runs calls of ``huggingface_hub`` for one repository.

    Args:
        what: the repository, as messages name it.
        secret: the token; it is kept out of every message.
        say: told about waiting.
        patience: seconds to wait before each further attempt.
    """

    def __init__(self, what: str, secret: str | None, say: Callable[[str], None] | None, patience: Sequence[float]) -> None:
        self.what, self.secret, self.patience = what, secret, patience
        self.say = say or (lambda line: None)

    def __call__(self, doing: str, call: Callable[[], T], *, patience: Sequence[float] | None = None) -> T:
        """What ``call`` returns, after as many attempts as it takes and patience allows.

        Args:
            doing: what is being done, for messages ("sending 8 files").
            call: may be called again after it failed.
            patience: other than this object's.

        Raises:
            DataError: the Hub refuses, or cannot be reached; the line says what mends it.
        """
        for wait in (*(self.patience if patience is None else patience), None):
            try:
                with library_at_work(self._note):
                    return call()
            except DataError:
                raise
            except Exception as error:
                failure = explain(error)
                if failure is None:
                    raise
                if not failure.again or wait is None or failure.wait > LONGEST_WAIT:
                    raise DataError(self.clean(f"{self.what}: {doing}: {failure.line}")) from None
                pause = max(wait, failure.wait)
                self._note(f"{doing}: {failure.line.partition(';')[0]}; trying again in {pause:.0f} s")
            time.sleep(pause)
        raise AssertionError("patience ends with an answer or an error")

    @contextmanager
    def together(self) -> Iterator[None]:
        """Several calls over the same connections."""
        with library_at_work(self._note):
            yield

    def clean(self, text: str) -> str:
        """One line without the token or what looks like one, and without what stands behind ``?`` in addresses."""
        if self.secret:
            text = text.replace(self.secret, "***")
        text = re.sub(r"hf_[A-Za-z0-9]{8,}", "***", text)
        return one_line(re.sub(r"(https?://[^\s?'\"]+)\?[^\s'\"]+", r"\1", text))

    def _note(self, line: str) -> None:
        self.say(self.clean(f"{self.what}: {line}"))


def explain(error: BaseException) -> Failure | None:
    """What a failed call means to its user; None for an error that is none of the Hub's or the line's."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    for each in _chain(error):
        if isinstance(each, HfHubHTTPError) and each.response is not None:
            return _explain_status(each)
        if isinstance(each, LocalTokenNotFoundError):
            return Failure("you are not logged in; run `hf auth login`, or set HF_TOKEN to a token that may write")
        if isinstance(each, OfflineModeIsEnabled):
            return Failure("HF_HUB_OFFLINE is set; unset it to publish")
        if isinstance(each, httpx2.UnsupportedProtocol | httpx2.InvalidURL):
            return Failure(f"HF_ENDPOINT is no address ({each}); set it to https://… or unset it")
        if isinstance(each, httpx2.TransportError):
            return Failure(f"{_line_trouble(each)}; check the connection and run the same command again to go on", again=True)
    if any(_of_xet(each) for each in _chain(error)):
        return _explain_xet(error)
    for each in _chain(error):
        if isinstance(each, FileNotFoundError | PermissionError | IsADirectoryError):
            return Failure(f"{each.filename}: {each.strerror}; let nobody change the folder while it is published, run again")
        if isinstance(each, ValueError) and "LFS batch API" in str(each):
            said = str(each).partition("`")[2].strip("`\n ") or str(each)
            return Failure(f"the Hub takes no such file ({said}); check the storage left to you on its billing page")
        if isinstance(each, RuntimeError) and "client has been closed" in str(each):
            return Failure("the connection was closed; run the same command again to go on", again=True)
    return None


def _of_xet(error: BaseException) -> bool:
    """Whether an error came out of the storage's own client, which raises built-in kinds of errors."""
    trace, names = error.__traceback__, set()
    while trace is not None:
        names.add(trace.tb_frame.f_code.co_name)
        trace = trace.tb_next
    return "_upload_xet_files" in names


def _explain_xet(error: BaseException) -> Failure:
    said = one_line(str(error))
    status = re.search(r"\((\d{3}) ", said)
    if status and int(status[1]) in _REFUSALS:
        return Failure(_REFUSALS[int(status[1])].format(status[1]))
    return Failure(f"the Hub's storage did not take it ({said}); run the same command again to go on", again=True)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it, nearest first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _line_trouble(error: BaseException) -> str:
    import httpx2

    text = str(error)
    if re.search(r"(?i)name or service not known|name resolution|nodename nor servname|getaddrinfo", text):
        return f"the Hub's name cannot be looked up ({text})"
    if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
        return f"the Hub cannot be reached ({text or 'no answer'})"
    if isinstance(error, httpx2.TimeoutException):
        return "the Hub fell silent in the middle"
    return f"the connection broke ({text or type(error).__name__})"


def _explain_status(error: Any) -> Failure:
    status, wait = error.response.status_code, _asked_wait(error.response)
    said = one_line(str(error.server_message or error.response.headers.get("X-Error-Message") or "").strip())
    says = f"{status}: {said}" if said else str(status)
    if status in (429, 503) and wait > LONGEST_WAIT:
        return Failure(f"the Hub asks to wait {wait / 60:.0f} minutes ({says}); run the same command again then", wait=wait)
    if status == 429:
        line = f"too many requests ({says}); wait some minutes and run the same command again to go on"
    elif status in TRANSIENT:
        line = f"the Hub is not well ({says}); run the same command again later to go on"
    else:
        line = _REFUSALS.get(status, "the Hub refuses it ({}); see the message, mend and run again").format(says)
    return Failure(line, again=status in TRANSIENT, wait=wait)


_REFUSALS = {
    401: "the Hub does not accept the token ({}); run `hf auth login`, or set HF_TOKEN to a token that may write",
    402: "the account's plan does not allow it ({}); see the billing page of the Hub",
    403: "the token may not do this ({}); use a token with write permission for this user or organization, or another name",
    404: "not found, or not to be seen with this token ({}); check ORG/NAME and the token's permissions",
    409: "it conflicts with what is there ({}); look at the repository's page, then run again",
    412: "somebody else changed the repository meanwhile ({}); run again to publish over that",
    413: "the request is too large for the Hub ({}); build with larger shards (--set shard_size=): fewer files",
}


def _asked_wait(response: Any) -> float:
    """Seconds a response asks to wait; 0 where it asks nothing."""
    from huggingface_hub.utils import parse_ratelimit_headers

    limits = parse_ratelimit_headers(response.headers)
    if response.status_code == 429 and limits is not None and limits.remaining == 0:
        return float(limits.reset_in_seconds)
    text = (response.headers.get("Retry-After") or "").strip()
    return float(text) if text.isdigit() else 0.0


@contextmanager
def library_at_work(note: Callable[[str], None]) -> Iterator[None]:
    """``huggingface_hub`` with time limits on every request, without its bars, its warnings told to ``note``.

    Its warnings name signed addresses, and its bars are drawn a file at a time; what it had set up comes back at the end.
    Inside itself this does nothing more.
    """
    import huggingface_hub
    from huggingface_hub.utils import _http, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = _http._GLOBAL_CLIENT_FACTORY  # the library can set a factory and not tell which one is set
    if getattr(before, "limited", False):
        yield
        return

    def client() -> Any:
        made = before()
        hooks = made.event_hooks
        made.event_hooks = {**hooks, "request": [*hooks.get("request", []), _limit]}
        return made

    client.limited = True  # type: ignore[attr-defined]
    logger = logging.getLogger("huggingface_hub")
    handlers, propagate, barless = logger.handlers[:], logger.propagate, are_progress_bars_disabled()
    huggingface_hub.set_client_factory(client)
    disable_progress_bars()
    logger.handlers, logger.propagate = [_Notes(note)], False
    try:
        yield
    finally:
        logger.handlers, logger.propagate = handlers, propagate
        if not barless:
            enable_progress_bars()
        huggingface_hub.set_client_factory(before)


def _limit(request: Any) -> None:
    given = request.extensions.get("timeout") or {}
    request.extensions["timeout"] = {name: given.get(name) or limit for name, limit in LIMITS.items()}


class _Notes(logging.Handler):
    """Passes the library's warnings on as lines, without its own short attempts: those of many files at once say nothing."""

    def __init__(self, note: Callable[[str], None]) -> None:
        super().__init__(logging.WARNING)
        self.note, self.last = note, ""

    def emit(self, record: logging.LogRecord) -> None:
        line = record.getMessage()
        if line != self.last and not re.search(r"thrown while requesting|^Retrying in", line):
            self.last = line
            self.note(line)
