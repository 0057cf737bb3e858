"""Where films come from: addresses to fetch, and the record of its origin beside a film that was fetched."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode, urlsplit, urlunsplit

from pydantic import ValidationError

from animeshooter_dataset import DataError, Record, first_problem
from curation.lines import one_line

SOURCE_SUFFIX = ".source.json"
YOUTUBE_ID = re.compile(r"[A-Za-z0-9_-]{11}")
_YOUTUBE_PAGE = re.compile(
    r"https?://(?:(?:www|m|music)\.)?(?:youtube(?:-nocookie)?\.com/(?:watch\?(?:[^#]*&)?v=|shorts/|embed/|live/|v/)|youtu\.be/)"
    r"([A-Za-z0-9_-]{11})(?![A-Za-z0-9_-])"
)
_SECRET = re.compile(
    r"(?i)(access_?)?(token|key|secret|signature|sig|auth|authorization|pass|passwd|password|pwd|jwt|session|sessionid|sid)"
    r"|api[-_]?key|x-(amz|goog)-(signature|credential|security-token)|hdn(ea|ts)|policy|key-pair-id|awsaccesskeyid"
)
"""Names of address parameters whose values are not written down."""


class Source(Record):
    """``NAME.source.json``: where a downloaded film came from, as its site tells it; dates are ISO dates."""

    address: str
    extractor: str
    id: str
    title: str | None = None
    uploader: str | None = None
    licence: str | None = None
    uploaded: str | None = None
    retrieved: str


@dataclass(frozen=True)
class Address:
    """Something to fetch.

    Attributes:
        url: the address to ask.
        public: the same without user, password and the values of parameters that look like keys, as one line.
        host: whom to treat gently.
        key: ten hexadecimal digits that stand for the address; the same for all ways to write one YouTube film.
    """

    url: str
    public: str
    host: str
    key: str

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read ``http(s)://…`` or ``yt:ID``.

        Raises:
            DataError: it is neither.
        """
        found = _YOUTUBE_PAGE.match(text)
        video = text[3:] if text.startswith("yt:") else found.group(1) if found else None
        if video is not None and not YOUTUBE_ID.fullmatch(video):
            raise DataError(f"{one_line(text)}: not a YouTube id (11 letters, digits, - or _); write yt:ID")
        url = f"https://www.youtube.com/watch?v={video}" if video else text.strip()
        try:
            parts = urlsplit(url)
            host = (parts.hostname or "") + (f":{parts.port}" if parts.port else "")
        except ValueError:
            host = ""
        if not host or parts.scheme not in ("http", "https"):
            raise DataError(f"{public_address(text)}: not an address that can be fetched; write http://…, https://… or yt:ID")
        kept = [(name, value) for name, value in parse_qsl(parts.query, True) if not _is_signature(name)]
        same = urlunsplit((parts.scheme, host, parts.path, urlencode(kept), ""))
        return cls(url, public_address(url), host, hashlib.sha256(same.encode(errors="surrogateescape")).hexdigest()[:10])

    def censored(self, text: str) -> str:
        """A text without the password and keys of this address."""
        parts = urlsplit(self.url)
        keys = [value for name, value in parse_qsl(parts.query) if _SECRET.fullmatch(name)]
        for key in filter(None, (parts.password, *keys)):
            for written in (key, quote(key, safe="")):
                text = text.replace(written, "…")
        return text


def public_address(url: str) -> str:
    """An address as it may be written down: without user, password, fragment, and values of parameters that look like keys."""
    try:
        parts = urlsplit(url)
        query = "&".join(
            f"{name}=…" if _SECRET.fullmatch(name) and equals else f"{name}{equals}{value}"
            for name, equals, value in (pair.partition("=") for pair in parts.query.split("&"))
        )
        return one_line(urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, query, "")))
    except ValueError:
        return one_line(url)


def _is_signature(name: str) -> bool:
    """Whether a parameter changes each time an address is signed, so that it does not belong to what the address names."""
    return name.lower() != "key" and bool(
        _SECRET.fullmatch(name) or re.fullmatch(r"(?i)expires|x-(amz|goog)-(date|expires)", name)
    )


def source_path(film: Path) -> Path:
    """Where the record of a film's origin lies, if it has one."""
    return film.with_name(film.stem + SOURCE_SUFFIX)


def read_source(path: Path) -> Source | None:
    """Read a record of origin; None if there is none.

    Raises:
        DataError: it cannot be read, or a field is wrong.
    """
    try:
        return Source.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise DataError(f"{one_line(path)}: {first_problem(error)}; mend the record, or delete it to go without") from None
    except OSError as error:
        raise DataError(f"{one_line(path)}: cannot be read ({error.strerror}); change its permissions") from None
