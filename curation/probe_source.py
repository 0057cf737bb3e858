"""One source asked once: whether the film behind an address can be had, without fetching it.

Addresses of media files are asked by HEAD, or by a GET of one byte where HEAD is refused. Pages of sites are read by yt-dlp,
which knows what their players say; of YouTube only the watch page is read, which is what anybody's browser is shown. What an
answer means is told from its status and, for sites, from the words in which they refuse. An answer that says nothing of the
film itself (a rate limit, a robot check, a server error, no answer) is never taken for "gone".
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import unquote, urlsplit

from animeshooter_dataset import DataError
from curation.origin import Address
from curation.video import EXTENSIONS
from curation.ytdlp import Gate, LeftAlone, causes, plain_words, yt_dlp_client

State = Literal["available", "gone", "private", "blocked", "unknown"]
FRESH_CLIENT = 200
"""Sources after which a new yt-dlp takes over, so that what one remembers of pages does not pile up."""
_HEAD_REFUSED = (400, 401, 403, 405, 406, 501)
"""Answers that some servers give to HEAD alone: signed addresses hold for one method, and scripts know but GET."""
_STATES: dict[int, State] = {401: "private", 402: "private", 403: "private", 404: "gone", 410: "gone", 451: "blocked"}
"""What a status means of a plain file; RFC 9110 section 15.5, RFC 7725."""
_PASSING = (408, 425, 429)
_REFUSED = re.compile(
    r"(?i)not a bot|captcha|challenge|unusual traffic|rate.?limit|too many requests|try again later|"
    r"your ip (address )?is (likely being )?blocked|rejected by server|guest token|HTTP Error 4(03|29)"
)
"""Words by which a site turns away the one who asks, whatever the film."""
_WORDS: dict[State, re.Pattern[str]] = {
    "blocked": re.compile(r"(?i)in your (country|region|territory|location)|from your location|geo.?(restrict|block)"),
    "private": re.compile(
        r"(?i)\bprivate\b|members.?only|channel['’]?s members|join this channel|\bpremium\b|supporter.?only|subscri(ption|ber)|"
        r"confirm your age|\bage.?(restrict|limit|gate)|inappropriate for some users|"
        r"\bsign ?in\b|\blog ?in\b|logged.?in|registered|authenticat|password|not authorized|protected tweet|"
        r"requires payment|pay to (watch|rent)|\bpurchase|\brent(al)?\b|\bDRM\b"
    ),
    "gone": re.compile(
        r"(?i)(has|have|had) been (removed|deleted|taken down|terminated|suspended)|(was|were) (removed|deleted|taken down)|"
        r"removed (by|for)|account .{0,60}(terminated|closed|suspended)|no longer (available|exists?)|\bdeleted\b|"
        r"(isn['’]t|is not|not) available any ?more|(does|did) ?(not|n['’]t) exist|copyright|not found|"
        r"video (is )?unavailable\W*$"
    ),
}
"""What a site's own words say of a film; the first that fit count. "This video is not available" fits none: YouTube says it of
films that one kind of player may not show, too (those made for children, for one)."""


@dataclass(frozen=True)
class SourcesConfig:
    """How sources are asked.

    Attributes:
        interval: least seconds from one request to a host to the next; a quarter of it more at most.
        hosts: hosts asked at a time; never two sources of one host.
        retries: times a source is asked again in one run where its host did not answer, or was busy.
        backoff: seconds before the first new try; doubled before each further one.
        patience: longest wait in seconds that a server may ask for; one that asks for more is left alone in this run.
        give_up_after: sources of a host in a row that it gave no answer about, after which it is left alone in this run.
        timeout: seconds without a byte after which a connection counts as broken.
    """

    interval: float = 1.0
    hosts: int = 4
    retries: int = 2
    backoff: float = 2.0
    patience: float = 300.0
    give_up_after: int = 5
    timeout: float = 20.0

    def __post_init__(self) -> None:
        """Raise :class:`DataError` where a setting cannot be used."""
        least = {"interval": 0, "hosts": 1, "retries": 0, "backoff": 0, "patience": 0, "give_up_after": 1, "timeout": 0.001}
        for name, value in least.items():
            if not getattr(self, name) >= value:
                raise DataError(f"{name} {getattr(self, name)}: must be at least {value}")


@dataclass(frozen=True)
class Finding:
    """What asking a source has shown.

    Attributes:
        state: see :data:`curation.availability.STATES`.
        reason: what the site said, as one line without keys; empty where there is nothing to say.
        turned_away: the answer, if there was one, was about whoever asks and not about the film: it may be another one later.
        again: it may be another one in a few seconds.
        answered: whether anything came back from the network at all.
    """

    state: State
    reason: str = ""
    turned_away: bool = False
    again: bool = False
    answered: bool = True


class SourceProbe:
    """Asks sources of one host, one after another, through a gate that keeps requests apart."""

    def __init__(self, config: SourcesConfig, gate: Gate) -> None:
        self.config, self.gate = config, gate
        self._client: Any = None
        self._asked = 0
        self._statuses: list[int] = []  # of the answers to the last question, and what was the matter where none came
        self._failure = ""

    def __enter__(self) -> SourceProbe:
        return self

    def __exit__(self, *_: object) -> None:
        self._renew()

    def ask(self, address: Address) -> Finding:
        """Ask one source; again where the host did not answer or was busy.

        Raises:
            LeftAlone: the host asks for a longer pause than there is patience for, or the run is being ended.
        """
        if "=…" in address.url:
            return Finding("unknown", "its address had a key, which was not written down, so that it cannot be asked")
        if self._asked % FRESH_CLIENT == 0:
            self._renew()
        self._asked += 1
        finding = self._once(address)
        for again in range(self.config.retries):
            if not finding.again:
                break
            self.gate.sleep(self.config.backoff * 2**again * (1 + random.Random(f"{address.key}{again}").random() / 4))
            finding = self._once(address)
        return finding

    def _once(self, address: Address) -> Finding:
        self._statuses, self._failure = [], ""
        if self._client is None:
            self._client = yt_dlp_client(_settings(self.config), self._send)
        try:
            found = self._ask_file(address) if is_file(address.url) else None
            return found or self._ask_site(address)
        except Exception as error:  # whatever a page makes of its reader is about that page only
            return self._judge(error, address)

    def _ask_file(self, address: Address) -> Finding | None:
        """Ask for a media file without taking it; None if a page comes instead, which may still show the film."""
        from yt_dlp.networking import HEADRequest, Request
        from yt_dlp.networking.exceptions import HTTPError

        try:
            with self._client.urlopen(HEADRequest(address.url)) as answer:
                if answer.headers.get("Content-Length") != "0":
                    return None if _is_page(answer.headers) else Finding("available")
        except HTTPError as error:
            if error.status not in _HEAD_REFUSED or _is_challenge(error):
                raise
        try:
            with self._client.urlopen(Request(address.url, headers={"Range": "bytes=0-0"})) as answer:
                if _is_page(answer.headers):
                    return None
                return Finding("available") if answer.read(1) else Finding("unknown", "the file is empty")
        except HTTPError as error:
            if error.status != 416:
                raise
            return Finding("unknown", "the file is empty")

    def _ask_site(self, address: Address) -> Finding:
        """Have yt-dlp read the page; one that only points to another, or shows the film of another, is followed."""
        url, kind = address.url, None
        for _ in range(3):
            info = self._client.extract_info(url, download=False, process=False, ie_key=kind) or {}
            if info.get("_type", "video") not in ("video", "url", "url_transparent"):
                info = next((entry for entry in info.get("entries") or () if entry), {})
            if info.get("_type", "video") == "video":
                shown = any(info.get(name) for name in ("formats", "url", "duration", "is_live", "was_live"))
                return Finding("available") if shown else Finding("unknown", "the page tells of no film")
            url, kind = info["url"], info.get("ie_key")
        return Finding("unknown", "the address leads from page to page")

    def _send(self, send: Callable[[Any], Any], request: Any) -> Any:
        """Send a request when its host may be asked."""
        from yt_dlp.networking.exceptions import HTTPError, TransportError

        self.gate.wait(request.url)
        try:
            response = send(request)
        except HTTPError as error:
            self._statuses.append(error.status)
            self.gate.heed(request.url, error.status, error.response.headers)
            raise
        except TransportError as error:
            self._failure = str(error)
            raise
        self._statuses.append(response.status)
        return response

    def _judge(self, error: Exception, address: Address) -> Finding:
        """What an error of yt-dlp says of a source."""
        from yt_dlp.networking.exceptions import HTTPError, RequestError, TransportError
        from yt_dlp.utils import ExtractorError, GeoRestrictedError, UnsupportedError

        reason = plain_words(str(error), address) or type(error).__name__
        for cause in causes(error):
            if isinstance(cause, LeftAlone):
                raise cause
            if isinstance(cause, HTTPError):
                on_site = not is_file(address.url) and "[generic]" not in str(error)
                return judge_status(cause.status, plain_words(cause.reason or "", address), on_site or _is_challenge(cause))
            if isinstance(cause, TransportError):
                words = _network_words(str(cause), address) or type(cause).__name__
                return Finding("unknown", words, turned_away=True, again=True, answered=bool(self._statuses))
            if isinstance(cause, RequestError):  # another scheme than http, as a redirect or page may name it
                return Finding("unknown", f"leads to what may not be fetched: {plain_words(str(cause), address)}")
            if isinstance(cause, UnsupportedError):
                return Finding("unknown", "a page came, and no film was found in it")
            if isinstance(cause, GeoRestrictedError):
                return Finding("blocked", reason)
            if isinstance(cause, ExtractorError) and cause.expected:
                return judge_words(reason)
        refusals = [status for status in self._statuses if status in (403, *_PASSING) or status >= 500]
        if refusals:  # yt-dlp passes over some, and tells only that nothing came of it
            return judge_status(refusals[-1], "", on_site=True)
        if not self._statuses:
            return Finding("unknown", _network_words(self._failure, address) or reason, True, again=True, answered=False)
        return Finding("unknown", reason)

    def _renew(self) -> None:
        if self._client is not None:
            self._client.close()
            self._client = None


def is_file(url: str) -> bool:
    """Whether an address looks like that of a media file."""
    return PurePosixPath(unquote(urlsplit(url).path)).suffix.lower() in EXTENSIONS


def judge_status(status: int, reason: str, on_site: bool) -> Finding:
    """What an HTTP status says of a source.

    Args:
        status: the status.
        reason: the words beside it.
        on_site: it is a site's page that refuses; there 403 as good as always means whoever asks.
    """
    words = f"HTTP {status} {reason}".strip()
    if status in _PASSING or status >= 500:
        return Finding("unknown", words, turned_away=True, again=True)
    if status == 403 and on_site:
        return Finding("unknown", words, turned_away=True)
    return Finding(_STATES.get(status, "unknown"), words)


def judge_words(reason: str) -> Finding:
    """What a site's own words say of a source."""
    if _REFUSED.search(reason):
        return Finding("unknown", reason, turned_away=True)
    return Finding(next((state for state, words in _WORDS.items() if words.search(reason)), "unknown"), reason)


def _network_words(text: str, address: Address) -> str:
    """What went wrong below HTTP, without the names of the libraries that it went wrong in."""
    found = re.search(r"\[Errno -?\d+\] ([^'\"()<>]+)|\w+Error\(-?\d+, '([^']+)'", text)
    words = plain_words(next(filter(None, found.groups())).strip() if found else text, address)
    return f"proxy: {words}" if found and "proxy" in text.lower() else words


def _is_page(headers: Mapping[str, str]) -> bool:
    return headers.get("Content-Type", "").partition(";")[0].strip().lower() in ("text/html", "application/xhtml+xml")


def _is_challenge(error: Any) -> bool:
    """Whether a refusal is a check for robots (Cloudflare names it so)."""
    return error.response.headers.get("cf-mitigated") == "challenge"


def _settings(config: SourcesConfig) -> dict[str, Any]:
    """Of YouTube, the watch page alone: its player's answer stands in it, and neither scripts nor streams are needed."""
    youtube = {
        "player_client": ["web"],
        "player_skip": ["js", "configs", "initial_data"],
        "webpage_skip": ["initial_data"],
        "skip": ["hls", "dash", "translated_subs"],
    }
    return {
        "skip_download": True,
        "playlist_items": "1:2",
        "socket_timeout": config.timeout,
        "extractor_args": {"youtube": youtube},
    }
