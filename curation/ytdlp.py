"""One film through yt-dlp: its requests kept apart by host, its errors judged, its file checked, named and recorded."""

from __future__ import annotations

import errno
import hashlib
import os
import random
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

from animeshooter_dataset import DataError, slug
from curation.container import join
from curation.lines import one_line
from curation.origin import SOURCE_SUFFIX, Address, Source, public_address
from curation.video import EXTENSIONS, probe

PARTIAL = ".partial"
"""Folder, in the folder of downloads, of what is not whole yet."""
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_GONE = (400, 401, 402, 403, 404, 405, 406, 410, 414, 451)
"""Answers that another request would get again; of a site that yt-dlp knows, 403 may as well mean that it was too many."""
_PASSING = re.compile(
    r"(?i)try again|not a bot|rate.?limit|too many requests|tempor|timed? ?out|premiere|will begin|requested format is not"
)
"""Refusals in a site's own words that may not last."""


@dataclass(frozen=True)
class DownloadConfig:
    """How films are fetched.

    Attributes:
        max_height: lines of picture, or columns of an upright one; the best format up to it is taken, H.264 before others, or
            the smallest there is.
        max_bytes: a larger film is not taken.
        max_seconds: a longer film is not taken, nor fetched where its page says how long it is; None for no limit.
        interval: least seconds from one request to a host to the next; a quarter of it more at most, by a hash of the host.
        bytes_per_second: limit for each film; None for none.
        hosts: hosts asked at a time; never two films of one host.
        retries: times a film is tried again, and a broken connection taken up again, in one run.
        backoff: seconds before the first new try; doubled before each further one.
        patience: longest wait in seconds that a server may ask for; one that asks for more is left alone in this run.
        give_up_after: films of a host failing in a row after which the others of that host are left for another run.
        timeout: seconds without a byte after which a connection counts as broken.
    """

    max_height: int = 720
    max_bytes: int = 4 * 2**30
    max_seconds: float | None = None
    interval: float = 1.0
    bytes_per_second: int | None = None
    hosts: int = 4
    retries: int = 3
    backoff: float = 2.0
    patience: float = 300.0
    give_up_after: int = 5
    timeout: float = 30.0


class Pace(Protocol):
    """Settings that a :class:`Gate` needs, see :class:`DownloadConfig`."""

    @property
    def interval(self) -> float:
        """Least seconds from one request to a host to the next."""

    @property
    def patience(self) -> float:
        """Longest wait in seconds that a server may ask for."""


class Problem(Exception):
    """Why an address gave no film, as one line."""

    def __init__(self, reason: str, *, permanent: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.permanent, self.tries = reason, permanent, 0


def today() -> str:
    """The date in UTC, as ISO date."""
    return datetime.now(UTC).date().isoformat()


class LeftAlone(Problem):
    """The host is not to be asked any more in this run, or the run is being ended."""


class Gate:
    """Keeps requests to one host apart; :attr:`stopped` ends all waiting and all that asks through it."""

    def __init__(self, config: Pace) -> None:
        self.config = config
        self.stopped = threading.Event()
        self._lock = threading.Lock()
        self._next: dict[str, float] = {}

    def wait(self, url: str) -> None:
        """Wait until a request to the host of ``url`` may start."""
        host, now = _host(url), time.monotonic()
        with self._lock:
            start = max(now, self._next.get(host, now))
            if start - now > self.config.patience:
                raise LeftAlone(f"{host} asks to be left alone for {start - now:.0f} s; run again later")
            self._next[host] = start + self.config.interval * (1 + random.Random(url).random() / 4)
        self.sleep(start - now)

    def hold(self, url: str, seconds: float) -> None:
        """Let no request to the host of ``url`` start for so long."""
        with self._lock:
            self._next[_host(url)] = max(self._next.get(_host(url), 0.0), time.monotonic() + seconds)

    def heed(self, url: str, status: int, headers: Mapping[str, str]) -> None:
        """Take an answer to heart that asks for a pause: 429 or 503 with ``Retry-After``."""
        if status in (429, 503):
            self.hold(url, _retry_after(headers.get("Retry-After")))

    def sleep(self, seconds: float) -> None:
        """Wait, unless everything is being stopped."""
        if self.stopped.wait(max(0.0, seconds)):
            raise LeftAlone("stopped")


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


class FilmDownload:
    """Fetching one film."""

    def __init__(self, address: Address, folder: Path, config: DownloadConfig, gate: Gate) -> None:
        self.address, self.folder, self.config, self.gate = address, folder, config, gate
        self.partial = folder / PARTIAL
        self._fetching = False

    def run(self) -> Path:
        """Fetch the film; tries again what may pass.

        Raises:
            Problem: it could not be had in this run; ``tries`` says how often it was asked for.
            OSError: the disk is full or cannot be written.
        """
        problem = Problem("not tried")
        for again in range(self.config.retries + 1):
            try:
                if again:
                    self.gate.sleep(self._pause(again))
                return self._once()
            except Problem as error:
                problem = error
                problem.tries = again + 1
                if problem.permanent:
                    self._clear()
                if problem.permanent or isinstance(problem, LeftAlone):
                    break
        raise problem

    def _pause(self, again: int) -> float:
        """Seconds before the ``again``-th new try."""
        return self.config.backoff * 2 ** (again - 1) * (1 + random.Random(f"{self.address.key}{again}").random() / 4)

    def _once(self) -> Path:
        try:
            with yt_dlp_client(self._settings(), self._ask) as client:
                self._fetching = False
                info = self._look(client)
                self._check(info)
                self._fetching = True
                done = client.process_ie_result(info, download=True)
        except Problem:
            raise
        except Exception as error:  # whatever a page makes of its reader costs that page only
            raise self._judge(error) from None
        files = [Path(part.get("filepath") or "") for part in (done or {}).get("requested_downloads") or ()]
        return self._keep(self._whole(files), info)

    def _look(self, client: Any) -> dict[str, Any]:
        """What the site says of the film; an address that stands for one film in a list of one is followed."""
        url = self.address.url
        for _ in range(3):
            info = client.extract_info(url, download=False) or {}
            if info.get("_type", "video") == "video":
                return info
            entries = [entry for entry in info.get("entries") or () if entry]
            if len(entries) != 1:
                many = "several films; list their own addresses" if entries else "no film"
                raise Problem(f"the address stands for {many}", permanent=True)
            url = entries[0].get("url") or entries[0].get("webpage_url") or url
        raise Problem("the address leads from list to list", permanent=True)

    def _check(self, info: Mapping[str, Any]) -> None:
        if info.get("is_live") or info.get("live_status") in ("is_live", "is_upcoming", "post_live"):
            raise Problem("still being broadcast; run again when it is over")
        self._check_length(info.get("duration"))

    def _check_length(self, seconds: float | None) -> None:
        limit = self.config.max_seconds
        if limit and seconds and seconds > limit:
            raise Problem(f"lasts {seconds:g} s, longer than the limit of {limit:g} s", permanent=True)

    def _watch(self, state: Mapping[str, Any]) -> None:
        """Called as bytes come in."""
        if self.gate.stopped.is_set():
            raise LeftAlone("stopped")
        size = max(state.get("total_bytes") or 0, state.get("downloaded_bytes") or 0)
        if size > self.config.max_bytes:
            raise Problem(f"larger than the limit of {self.config.max_bytes} bytes; raise it and retry", permanent=True)

    def _whole(self, files: Sequence[Path]) -> Path:
        """The film in one file: as it came, or with the picture of the first and the sound of the second."""
        if not files or not all(path.is_file() for path in files):
            raise Problem("nothing was received")
        if len(files) == 1:
            return files[0]
        both_mp4 = all(path.suffix in (".mp4", ".m4a") for path in files)
        whole = self.partial / f"{self.address.key}.whole{'.mp4' if both_mp4 else '.mkv'}"
        try:
            join(files[0], files[1], whole)
        except DataError as error:
            self._clear()
            raise Problem(f"picture and sound do not go together: {str(error).partition(': ')[2]}") from None
        return whole

    def _keep(self, path: Path, info: Mapping[str, Any]) -> Path:
        """Move a film that is whole to its place, its record first: a film without one would be fetched again."""
        try:
            self._check_length(probe(path).duration)
        except DataError as error:
            reason = str(error).removeprefix(f"{one_line(path)}: ").partition(";")[0]
            raise Problem(f"what came is no film: {reason}", permanent=True) from None
        site = self._said(info, "extractor_key") or "unknown"
        film_id = (self._said(info, "id") or "").partition("?")[0]  # a plain file's id is the end of its address
        stem = f"{slug(f'{site}-{film_id}')[:37].rstrip('-_')}-{self.address.key}"
        suffix = path.suffix.lower() if path.suffix.lower() in EXTENSIONS else ".mp4"
        source = Source(
            address=self.address.public,
            extractor=site,
            id=film_id,
            title=self._said(info, "title"),
            uploader=self._said(info, "uploader") or self._said(info, "channel") or self._said(info, "creator"),
            licence=self._said(info, "license"),
            uploaded=_iso(info.get("upload_date")),
            retrieved=today(),
        )
        record = self.partial / f"{self.address.key}{SOURCE_SUFFIX}"
        record.write_text(source.model_dump_json(indent=1) + "\n", encoding="utf-8")
        os.replace(record, self.folder / f"{stem}{SOURCE_SUFFIX}")
        film = self.folder / f"{stem}{suffix}"
        os.replace(path, film)
        self._clear()
        return film

    def _said(self, info: Mapping[str, Any], name: str) -> str | None:
        """A text of the site's as one line, without keys of the address."""
        value = info.get(name)
        return one_line(self.address.censored(value.strip()))[:500] or None if isinstance(value, str) else None

    def _clear(self) -> None:
        for left in self.partial.glob(f"{self.address.key}.*"):
            left.unlink(missing_ok=True)

    def _settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "extract_flat": "in_playlist",
            "playlist_items": "1:2",
            "format": _choose,
            "format_sort": [f"res:{config.max_height}", "vcodec:h264", "acodec:aac", "ext:mp4:m4a"],
            "fixup": "never",
            "external_downloader": {"default": "native", "m3u8": "native", "dash": "native"},
            "paths": {"home": str(self.partial)},
            "outtmpl": f"{self.address.key}.%(part)s.%(ext)s",
            "continuedl": True,
            "updatetime": False,
            "retries": config.retries,
            "fragment_retries": config.retries,
            "retry_sleep_functions": dict.fromkeys(("http", "fragment"), lambda n: self._pause(n + 1)),
            "socket_timeout": config.timeout,
            "ratelimit": config.bytes_per_second,
            "progress_hooks": [self._watch],
        }

    def _ask(self, send: Callable[[Any], Any], request: Any) -> Any:
        """Send a request when its host may be asked; a broken film is only continued if the server still has the same."""
        from yt_dlp.networking.exceptions import HTTPError

        self.gate.wait(request.url)
        resumed = self._fetching and "Range" in request.headers
        note = self.partial / f"{self.address.key}.{hashlib.sha256(request.url.encode()).hexdigest()[:10]}.tag"
        known = note.read_text() if resumed and note.is_file() else None
        if known:
            request.headers["If-Range"] = known
        try:
            response = send(request)
        except HTTPError as error:
            self.gate.heed(request.url, error.status, error.response.headers)
            if error.status == 416:  # nothing is left to send: yt-dlp asks for the length, with these very headers
                for name in ("Range", "If-Range"):
                    request.headers.pop(name, None)
            raise
        tag = _validator(response.headers) if self._fetching else None
        if known and response.status == 206 and tag and tag != known:
            self._clear()
            raise Problem("the file changed on the server while it was fetched")
        if tag and tag != known:
            note.write_text(tag)
        return response

    def _judge(self, error: Exception) -> Problem:
        """What an error of yt-dlp means for this address.

        Raises:
            OSError: it is the disk's, and would be every other film's too.
        """
        from yt_dlp.networking.exceptions import HTTPError, RequestError, TransportError
        from yt_dlp.utils import ExtractorError, UnsupportedError

        reason = plain_words(str(error), self.address) or type(error).__name__
        for cause in causes(error):
            if isinstance(cause, Problem):
                return cause
            if isinstance(cause, HTTPError):
                known_site = "[generic]" not in str(error) and not self._fetching
                gone = cause.status in _GONE and not (cause.status == 403 and known_site)
                return Problem(f"HTTP {cause.status} {one_line(cause.reason or '')}".strip(), permanent=gone)
            if isinstance(cause, TransportError):
                return Problem(plain_words(str(cause), self.address))
            if isinstance(cause, RequestError):  # another scheme than http, as a redirect or page may name it
                return Problem(f"leads to what may not be fetched: {plain_words(str(cause), self.address)}", permanent=True)
            if isinstance(cause, OSError) and cause.errno in _FATAL:
                raise cause
            if isinstance(cause, UnsupportedError):
                return Problem("no film was found at the address", permanent=True)
            if isinstance(cause, ExtractorError) and cause.expected:
                return Problem(reason, permanent=not _PASSING.search(reason))
        return Problem(reason)


def _choose(offered: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The formats to take of those offered, worst first: the best picture, and sound beside it if it has none.

    A format with both is taken before one without sound of the same height.
    """
    formats = offered["formats"]
    pictures = [kind for kind in formats if kind.get("vcodec") != "none"]
    if not pictures:
        return
    height = pictures[-1].get("height")
    both = [kind for kind in pictures if kind.get("acodec") != "none" and kind.get("height") == height]
    picture = (both or pictures)[-1]
    known = f".{picture.get('ext')}" in EXTENSIONS  # what is inside decides, not what the server calls it
    yield {**picture, "part": 0, "ext": picture["ext"] if known else "mp4"}
    sounds = [kind for kind in formats if kind.get("vcodec") == "none" and kind.get("acodec") != "none"]
    if not both and picture.get("acodec") == "none" and sounds:
        yield {**sounds[-1], "part": 1}


class _Silent:
    """A logger for yt-dlp: what matters comes as an exception."""

    def debug(self, message: str) -> None:
        """Say nothing."""

    info = warning = error = debug


def yt_dlp_client(settings: Mapping[str, Any], ask: Callable[[Callable[[Any], Any], Any], Any]) -> Any:
    """A yt-dlp that trusts nothing outside these settings and sends every request through ``ask``.

    Args:
        settings: parameters of yt-dlp besides those that keep it quiet and on its own.
        ask: called with a function that sends a request, and the request; returns the response.
    """
    import yt_dlp
    import yt_dlp.globals

    yt_dlp.globals.plugin_dirs.value = []
    yt_dlp.globals.all_plugins_loaded.value = True

    class Client(yt_dlp.YoutubeDL):
        def urlopen(self, req: Any) -> Any:
            return ask(super().urlopen, yt_dlp.networking.Request(req) if isinstance(req, str) else req)

    own = {
        "quiet": True,
        "no_warnings": True,
        "noprogress": True,
        "color": "never",
        "logger": _Silent(),
        "cachedir": False,
        "enable_file_urls": False,
        "usenetrc": False,
        "geo_bypass": False,
        "remote_components": [],
        "noplaylist": True,
        "extractor_retries": 0,
    }
    return Client({**own, **settings})


def plain_words(text: str, address: Address) -> str:
    """The words of an error of yt-dlp's as one short line without keys of the address it was about."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text).replace(address.url, address.public)
    text = address.censored(text)
    text = re.sub(r"https?://[^\s'\"<>]+", lambda found: public_address(found.group()), text)
    text = re.split(r";? please report this issue|\(caused by|If you believe|You might want to use|Use --", text)[0]
    text = re.sub(r"^HTTPS?Connection\(.*?\): ", "", text)
    text = re.sub(r"^(ERROR: )?(\[[\w:+-]+\] ([\w-]+: )?)?", "", text)
    return one_line(" ".join(text.split()))[:300]


def causes(error: BaseException | None) -> list[BaseException]:
    """An error and what led to it, nearest first; yt-dlp keeps it in ``exc_info`` and ``cause``."""
    found: list[BaseException] = []
    while isinstance(error, BaseException) and error not in found:
        found.append(error)
        inside = (getattr(error, "exc_info", None) or (None, None))[1]
        error = inside or getattr(error, "cause", None) or error.__cause__ or error.__context__
    return found


def _retry_after(value: str | None) -> float:
    """Seconds that a ``Retry-After`` asks for: it holds seconds or a date."""
    try:
        return max(0.0, float(value or 0))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value or "") - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return 0.0


def _validator(headers: Mapping[str, str]) -> str | None:
    """What tells this state of a file from another: a strong ETag or else its date (RFC 9110, section 13.1.5)."""
    tag = headers.get("ETag")
    return tag if tag and not tag.startswith("W/") else headers.get("Last-Modified")


def _iso(date: Any) -> str | None:
    """``20240131`` as ``2024-01-31``."""
    found = re.fullmatch(r"(\d{4})(\d\d)(\d\d)", str(date))
    return "-".join(found.groups()) if found else None
