"""Datasets on web servers and on the Hub, by byte range over connections that are kept."""

from __future__ import annotations

import email.utils
import re
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

from animeshooter_records import DataError
from streams.sources import REFUSED, Changed, Patience, Source, Transient, public, said
from streams.watch import check_stopped

T = TypeVar("T")
PIECE = 1 << 20
"""Bytes taken from a connection at a time."""
TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
DISCARD = 64 << 20
"""Bytes that are read and thrown away at most where a server ignores Range."""


class HttpFiles(Source):
    """A web server that knows Range, over connections that are kept.

    Args:
        address: of the folder; what stands behind ``?`` is sent with every file and shown nowhere.
        sizes: see :class:`Source`.
        timeout: seconds of silence after which a connection counts as lost.
        connections: kept open.
    """

    def __init__(self, address: str, sizes: Mapping[str, int], timeout: float, connections: int) -> None:
        super().__init__(public(address), sizes)
        import requests
        from requests.adapters import HTTPAdapter

        self.address, self.timeout = address, timeout
        self.session, self.tags, self.ignores_ranges = requests.Session(), dict[str, str](), False
        for scheme in ("http://", "https://"):
            self.session.mount(scheme, HTTPAdapter(pool_maxsize=connections, pool_connections=4))

    def url(self, name: str) -> str:
        """The address of a file."""
        parts = urlsplit(self.address)
        return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{quote(name)}"))

    def get(self, name: str, offset: int, size: int) -> bytes:
        """See :meth:`Source.get`."""
        return self._ask(name, f"bytes={offset}-{offset + size - 1}", lambda reply: self._range(name, reply, offset, size))

    def size(self, name: str) -> int:
        """See :meth:`Source.size`."""

        def length(reply: Any) -> int:
            total = _total(reply)
            if total is None and reply.status_code == 200 and reply.headers.get("Content-Length", "").isdigit():
                total = int(reply.headers["Content-Length"])
            if total is None:
                raise DataError(f"{self.where(name)}: the server does not tell its size; serve it from one that knows Range")
            self._same(name, reply, total)
            if reply.headers.get("Content-Length") == "1":
                reply.raw.read(1)  # a reply read to its end leaves the connection to the next
            return total

        return self._ask(name, "bytes=0-0", length, empty=0)

    def _send(self, name: str, headers: dict[str, str]) -> Any:
        return self.session.get(self.url(name), headers=headers, stream=True, timeout=self.timeout)

    def _ask(self, name: str, asked: str, read: Callable[[Any], T], empty: T | None = None) -> T:
        """What ``read`` makes of a reply; failures of the line as :class:`Transient`."""
        import requests
        import urllib3

        try:
            with self._send(name, {"Range": asked, "Accept-Encoding": "identity"}) as reply:
                if reply.status_code == 416:
                    if empty is not None and (reply.headers.get("Content-Range") or "").endswith("/0"):
                        return empty
                    raise Changed(self.where(name), f"it ends before {asked.replace('=', ' ')}")
                self._check_status(name, reply)
                return read(reply)
        except (
            requests.exceptions.InvalidURL,
            requests.exceptions.InvalidSchema,
            requests.exceptions.TooManyRedirects,
        ) as error:
            raise DataError(f"{self.where(name)}: no usable address ({said(error)}); check it") from None
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            why = said(error)
            if "CERTIFICATE_VERIFY_FAILED" in why:
                raise DataError(
                    f"{self.where(name)}: the server's certificate is not trusted; set REQUESTS_CA_BUNDLE to the authority's"
                ) from None
            raise Transient(f"the connection failed ({why})") from None

    def _check_status(self, name: str, reply: Any) -> None:
        status = reply.status_code
        if status in TRANSIENT:
            raise Transient(f"the server answers {status}", wait=_asked_wait(reply.headers.get("Retry-After")))
        if status not in (200, 206):
            raise DataError(f"{self.where(name)}: {REFUSED.get(status, f'the server answers {status}; look at its log')}")
        if reply.headers.get("Content-Encoding", "identity") != "identity":
            raise DataError(f"{self.where(name)}: the server compresses it; turn that off for .tar and .parquet")

    def _range(self, name: str, reply: Any, offset: int, size: int) -> bytes:
        total, skip = _total(reply), 0
        if reply.status_code == 200:
            length = reply.headers.get("Content-Length", "")
            total, skip = int(length) if length.isdigit() else None, offset
            self._note_ignored(name, offset + size)
        elif not re.match(rf"bytes {offset}-", reply.headers.get("Content-Range") or ""):
            raise Transient(f"the server answers with another range ({reply.headers.get('Content-Range')})")
        self._same(name, reply, total)
        if total is not None and total < offset + size:
            raise self.too_short(name, offset, size, max(0, total - offset))
        for _ in self._pieces(reply, skip):
            pass
        parts: list[bytes] = []
        try:
            parts.extend(self._pieces(reply, size))
        except Transient as trouble:  # what came is kept, unless it would have to be read again anyway
            raise Transient(trouble.line, b"" if skip else b"".join(parts)) from None
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _pieces(self, reply: Any, size: int) -> Iterator[bytes]:
        """The next ``size`` bytes of a reply."""
        while size > 0:
            check_stopped()
            try:
                piece = reply.raw.read(min(size, PIECE))
            except Exception as error:  # urllib3, ssl and the system each have their own
                raise Transient(f"the connection broke ({said(error)})") from None
            if not piece:
                raise Transient("the answer ends early")
            size -= len(piece)
            yield piece

    def _note_ignored(self, name: str, end: int) -> None:
        """A server that answers with the whole file: bearable for small files, and said once."""
        if end > DISCARD:
            raise DataError(
                f"{self.where(name)}: the server ignores Range, and {end} bytes would have to be read for one clip; serve the "
                "dataset from a server that knows Range, or download it"
            )
        if not self.ignores_ranges:
            self.ignores_ranges = True
            warnings.warn(
                f"{self.name}: the server ignores Range: whole files are read and thrown away; use another server", stacklevel=2
            )

    def _same(self, name: str, reply: Any, total: int | None) -> None:
        if total is not None:
            self.check_size(name, total)
        tag = self._tag(reply)
        if tag is not None and self.tags.setdefault(name, tag) != tag:
            raise Changed(self.where(name), f"its ETag was {self.tags[name]}, is {tag}")

    def _tag(self, reply: Any) -> str | None:
        return reply.headers.get("ETag")

    def close(self) -> None:
        """See :meth:`Source.close`."""
        self.session.close()


class HubFiles(HttpFiles):
    """A dataset of the Hub at one commit.

    The Hub answers a file with the address of its storage; that address is kept until it expires, so that ranks do not ask
    the Hub for every range. The token goes to the Hub only.
    """

    def __init__(self, repo: str, commit: str, sizes: Mapping[str, int], timeout: float, connections: int) -> None:
        super().__init__(f"hf://datasets/{repo}@{commit}", sizes, timeout, connections)
        self.repo, self.commit = repo, commit
        self.places: dict[str, str] = {}

    def url(self, name: str) -> str:
        """The address of a file at the Hub itself."""
        from huggingface_hub import constants, hf_hub_url

        return hf_hub_url(self.repo, name, repo_type="dataset", revision=self.commit, endpoint=constants.ENDPOINT)

    def _send(self, name: str, headers: dict[str, str]) -> Any:
        from huggingface_hub.utils import build_hf_headers

        place = self.places.get(name)
        if place is not None:
            reply = self.session.get(place, headers=headers, stream=True, timeout=self.timeout)
            if reply.status_code not in (401, 403, 404):
                return reply
            reply.close()  # it has expired
            self.places.pop(name, None)
        address = self.url(name)
        host, token = urlsplit(address).netloc, build_hf_headers()
        for _ in range(5):
            here = urlsplit(address).netloc == host
            sent = {**headers, **token} if here else headers
            reply = self.session.get(address, headers=sent, stream=True, timeout=self.timeout, allow_redirects=False)
            if reply.status_code not in (301, 302, 303, 307, 308) or "Location" not in reply.headers:
                break
            address = urljoin(address, reply.headers["Location"])
            reply.close()
            if urlsplit(address).netloc != host:
                self.places[name] = address
        return reply

    def _tag(self, reply: Any) -> str | None:
        return None  # a commit does not change, and storages have tags of their own


def commit_of(repo: str, revision: str | None, timeout: float, patience: Patience) -> str:
    """The commit that a revision of a dataset on the Hub stands for now.

    Raises:
        DataError: there is no such dataset or revision, it is not shown, or the Hub cannot be reached.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    shown, found = f"hf://datasets/{repo}", list[str]()

    def ask(offset: int, size: int) -> bytes:
        try:
            found.append(HfApi().dataset_info(repo, revision=revision, timeout=timeout).sha or "")
        except GatedRepoError:
            raise DataError(f"{shown}: gated; ask for access on its page, then `hf auth login`") from None
        except RevisionNotFoundError:
            raise DataError(f"{shown}: no revision '{revision}'; see its page for branches and tags") from None
        except RepositoryNotFoundError:
            raise DataError(
                f"{shown}: no such dataset, or not to be seen with this token; check ORG/NAME, `hf auth login`"
            ) from None
        except HfHubHTTPError as error:
            status = error.response.status_code if error.response is not None else 0
            if status == 429 or status >= 500:
                raise Transient(f"the Hub answers {status}") from None
            raise DataError(f"{shown}: the Hub answers {status}; check ORG/NAME, `hf auth login`") from None
        except (httpx2.TransportError, OSError) as error:
            raise Transient(f"the Hub cannot be reached ({said(error)})") from None
        return b""

    patience.run(shown, 0, 0, ask)
    return found[-1]


def _total(reply: Any) -> int | None:
    found = re.search(r"/(\d+)$", reply.headers.get("Content-Range") or "")
    return int(found[1]) if found and reply.status_code == 206 else None


def _asked_wait(header: str | None) -> float:
    """Seconds that Retry-After asks for: a number or a date."""
    text = (header or "").strip()
    if re.fullmatch(r"\d+(\.\d+)?", text):
        return float(text)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time()) if text else 0.0
    except ValueError:
        return 0.0
