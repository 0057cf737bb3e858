"""Where the bytes of a dataset come from: a folder, S3, or whatever else ``fsspec`` opens; not web servers.

A source reads one range at a time from any thread. What may go away by itself is raised as :class:`Transient` and tried
again by :meth:`Patience.run`; all else is a :class:`DataError` at once.
"""

from __future__ import annotations

import errno
import os
import random
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit, urlunsplit

from animeshooter_records import DataError
from streams.watch import check_stopped

T = TypeVar("T")
REFUSED = {
    401: "the server wants to know who asks (401); log in (for the Hub: `hf auth login`), or set the token it takes",
    403: "the server does not allow it (403); ask for access, or renew the address if it was signed",
    404: "not there (404); check the address, or publish the dataset again",
    410: "no longer there (410); download the dataset from somewhere else",
}


class Transient(Exception):
    """A failure that may go away: what was read before it, and how many seconds the server asks to wait."""

    def __init__(self, line: str, got: bytes = b"", wait: float = 0.0) -> None:
        super().__init__(line)
        self.line, self.got, self.wait = line, got, wait


class Changed(DataError):
    """A file is not the one that is being read."""

    def __init__(self, where: str, what: str) -> None:
        super().__init__(f"{where}: changed under the reader ({what}); start anew with the dataset as it is now")


@dataclass(frozen=True)
class Patience:
    """Exponential backoff with jitter: ``wait`` seconds, doubled every time up to ``longest``, each shortened by up to half.

    A server that asks for a pause is given it, up to ``longest``; one that asks for more is taken at its word.
    """

    tries: int
    wait: float
    longest: float

    def run(self, where: str, offset: int, size: int, call: Callable[[int, int], bytes]) -> bytes:
        """All bytes of a range: where the line breaks, reading goes on with what is missing.

        Raises:
            DataError: refused, or failed ``tries`` times.
        """
        parts: list[bytes] = []
        got = 0
        for attempt in range(1, self.tries + 1):
            check_stopped()
            try:
                parts.append(call(offset + got, size - got))
                return parts[0] if len(parts) == 1 else b"".join(parts)
            except Transient as trouble:
                parts.append(trouble.got)
                got += len(trouble.got)
                if attempt == self.tries or trouble.wait > self.longest:
                    asked = f"; it asks to wait {trouble.wait:.0f} s" if trouble.wait else ""
                    raise DataError(
                        f"{where}: {trouble.line}{asked}, tried {attempt} times at byte {offset}; check the connection or the "
                        "server and run again to go on"
                    ) from None
                pause = min(self.wait * 2 ** (attempt - 1), self.longest) * random.uniform(0.5, 1.0)
                self._sleep(max(pause, trouble.wait))
        raise AssertionError("the last attempt returns or raises")

    @staticmethod
    def _sleep(seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            check_stopped()
            time.sleep(min(left, 0.2))


class _Least(Generic[T]):
    """The ``most`` things used last, made when asked for; what falls out closes itself when nobody uses it any more."""

    def __init__(self, most: int, make: Callable[[str], T]) -> None:
        self.most, self.make, self.kept, self.lock = most, make, OrderedDict[str, T](), threading.Lock()

    def __getitem__(self, name: str) -> T:
        with self.lock:
            found = self.kept.get(name)
            if found is not None:
                self.kept.move_to_end(name)
                return found
        made = self.make(name)
        with self.lock:
            found = self.kept.setdefault(name, made)
            while len(self.kept) > self.most:
                self.kept.popitem(last=False)
        return found


class _File:
    """An open file descriptor that closes with its last user."""

    def __init__(self, path: Path) -> None:
        self.handle = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        self.size = os.fstat(self.handle).st_size

    def __del__(self) -> None:
        if hasattr(self, "handle"):
            os.close(self.handle)


class Source:
    """What every source offers. ``name`` is shown in messages and holds no secret.

    Args:
        name: of the dataset.
        sizes: bytes of files as the manifest has them; filled by whoever knows.
    """

    def __init__(self, name: str, sizes: Mapping[str, int]) -> None:
        self.name, self.sizes = name, sizes

    def get(self, name: str, offset: int, size: int) -> bytes:
        """Exactly ``size`` bytes of a file.

        Raises:
            Transient: it may help to try again.
            DataError: it will not.
        """
        raise NotImplementedError

    def size(self, name: str) -> int:
        """Bytes of a file now; raises as :meth:`get`."""
        raise NotImplementedError

    def close(self) -> None:
        """Let connections go."""

    def where(self, name: str) -> str:
        """A file as messages name it."""
        return f"{self.name}/{name}"

    def check_size(self, name: str, size: int) -> None:
        """Compare a file's size with the manifest's.

        Raises:
            Changed: they differ.
        """
        expected = self.sizes.get(name)
        if expected is not None and size != expected:
            raise Changed(self.where(name), f"it has {size} bytes, the manifest says {expected}")

    def too_short(self, name: str, offset: int, size: int, got: int) -> DataError:
        """The error for a file that ends before a range does."""
        return DataError(
            f"{self.where(name)}: ends {size - got} bytes early (bytes {offset} to {offset + size} were asked for); "
            "build or download it again"
        )


class LocalFiles(Source):
    """A folder; descriptors are kept open, at most ``most`` of them."""

    def __init__(self, folder: Path, sizes: Mapping[str, int], most: int) -> None:
        super().__init__(str(folder), sizes)
        self.folder, self.files = folder, _Least(most, self._open)

    def _open(self, name: str) -> _File:
        try:
            file = _File(self.folder / name)
        except OSError as error:
            raise DataError(
                f"{self.where(name)}: cannot be read ({error.strerror}); build the dataset or download it again"
            ) from None
        self.check_size(name, file.size)
        return file

    def get(self, name: str, offset: int, size: int) -> bytes:
        """See :meth:`Source.get`."""
        file = self.files[name]
        try:
            body = os.pread(file.handle, size, offset)
            while 0 < len(body) < size:
                more = os.pread(file.handle, size - len(body), offset + len(body))
                if not more:
                    break
                body += more
        except OSError as error:
            if error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):  # network file systems
                raise DataError(f"{self.where(name)}: byte {offset}: {error.strerror}; look at the disk, run again") from None
            raise
        if len(body) != size:
            raise self.too_short(name, offset, size, len(body))
        return body

    def size(self, name: str) -> int:
        """See :meth:`Source.size`."""
        return self.files[name].size

    def will_need(self, name: str, offset: int, size: int) -> None:
        """Let the system read a range ahead."""
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(self.files[name].handle, offset, size, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """See :meth:`Source.close`."""
        self.files.kept.clear()


class S3Files(Source):
    """A bucket, through Arrow's own client: addresses, regions and keys as :class:`pyarrow.fs.S3FileSystem` takes them."""

    def __init__(self, address: str, sizes: Mapping[str, int], most: int) -> None:
        super().__init__(public(address), sizes)
        from pyarrow.fs import FileSystem

        self.system, self.root = self._try("", lambda: FileSystem.from_uri(address))
        self.files = _Least(most, self._open)

    def _open(self, name: str) -> Any:
        file = self.system.open_input_file(f"{self.root.rstrip('/')}/{name}")
        self.check_size(name, file.size())
        return file

    def get(self, name: str, offset: int, size: int) -> bytes:
        """See :meth:`Source.get`."""
        body = self._try(name, lambda: self.files[name].read_at(size, offset))
        if len(body) != size:
            raise self.too_short(name, offset, size, len(body))
        return body

    def size(self, name: str) -> int:
        """See :meth:`Source.size`."""
        return self._try(name, lambda: self.files[name].size())

    def _try(self, name: str, call: Callable[[], T]) -> T:
        import pyarrow as pa

        where = self.where(name) if name else self.name
        try:
            return call()
        except FileNotFoundError:
            raise DataError(f"{where}: {REFUSED[404]}") from None
        except PermissionError:
            raise DataError(f"{where}: access denied; check the keys (AWS_ACCESS_KEY_ID or the profile)") from None
        except (OSError, pa.ArrowException, ValueError) as error:
            if isinstance(error, DataError):
                raise
            why = said(error)
            if re.search(r"ACCESS_DENIED|INVALID_ACCESS_KEY|SIGNATURE|HTTP status 40[13]|INVALID_CLIENT_TOKEN", why):
                raise DataError(f"{where}: access denied ({why}); check the keys (AWS_ACCESS_KEY_ID or the profile)") from None
            if re.search(r"NO_SUCH_(KEY|BUCKET)|HTTP status 404|[Bb]ucket '.*' not found", why) or isinstance(
                error, pa.ArrowInvalid
            ):
                raise DataError(f"{where}: not there ({why}); check the address and its region") from None
            raise Transient(f"the storage failed ({why})") from None

    def close(self) -> None:
        """See :meth:`Source.close`."""
        self.files.kept.clear()


class OtherFiles(Source):
    """Any other address, through ``fsspec`` and the package that it names for it."""

    def __init__(self, address: str, sizes: Mapping[str, int]) -> None:
        super().__init__(public(address), sizes)
        import fsspec

        try:
            self.system, self.root = fsspec.core.url_to_fs(address, skip_instance_cache=True)
        except (ImportError, ValueError) as error:
            raise DataError(
                f"{self.name}: cannot be opened ({said(error)}); install what it names, or check the address"
            ) from None

    def get(self, name: str, offset: int, size: int) -> bytes:
        """See :meth:`Source.get`."""
        body = self._try(name, lambda path: self.system.cat_file(path, start=offset, end=offset + size))
        if len(body) != size:
            raise self.too_short(name, offset, size, len(body))
        return body

    def size(self, name: str) -> int:
        """See :meth:`Source.size`."""
        size = int(self._try(name, lambda path: self.system.size(path)))
        self.check_size(name, size)
        return size

    def _try(self, name: str, call: Callable[[str], T]) -> T:
        try:
            return call(f"{self.root.rstrip('/')}/{name}")
        except FileNotFoundError:
            raise DataError(f"{self.where(name)}: {REFUSED[404]}") from None
        except PermissionError as error:
            raise DataError(f"{self.where(name)}: access denied ({said(error)}); check your keys") from None
        except DataError:
            raise
        except Exception as error:  # every implementation has errors of its own
            raise Transient(f"{type(error).__name__}: {said(error)}") from None


def public(address: str) -> str:
    """An address without user, password and what stands behind ``?``."""
    parts = urlsplit(address)
    return urlunsplit(
        parts._replace(netloc=parts.netloc.rpartition("@")[2] if parts.scheme != "hf" else parts.netloc, query="")
    ).rstrip("/")


def said(error: BaseException) -> str:
    """What an error says, in one line without addresses' secrets."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = re.sub(r"(\w+://)[^\s/@]*@", r"\1", re.sub(r"((?:https?://|/)[^\s?'\"]*)\?[^\s'\")]+", r"\1", text))
    return re.sub(r"hf_[A-Za-z0-9]{8,}", "***", text)[:300]
