"""Reading files out of an archive that somebody else made: a zip, a folder, or one JSON file by itself.

Nothing is ever unpacked to disk and no member's name is trusted: members are read into memory one by one, each up to a hard
limit. Of what is odd, each member costs itself only.
"""

from __future__ import annotations

import os
import re
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from animeshooter_dataset import DataError
from curation.lines import one_line

PACKED = (".zip", ".7z", ".rar", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst")
"""Endings of archives, which are not looked into when they lie in another one."""
WANTED = (".json", ".txt")


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold.

    A story's masks are some megabytes as JSON; the released archive unpacks to less than 100 GB.

    Attributes:
        member: bytes of one file. Its JSON takes at most some twenty times as much as Python values.
        ratio: times by which deflation may shrink a file of more than a mebibyte; JSON shrinks some 5 to 50 times.
        total: bytes of all files of a zip.
        directory: bytes of a zip's table of contents, which is read into memory at once; about 100 a file.
    """

    member: int = 64 << 20
    ratio: int = 250
    total: int = 1 << 40
    directory: int = 64 << 20


@dataclass(frozen=True)
class Refused:
    """A member that is not read, and why, with the mend."""

    member: str
    reason: str


class Archive(Protocol):
    """Something that files are read from, by name."""

    path: Path

    def names(self) -> tuple[list[str], list[Refused]]:
        """The ``.json`` and ``.txt`` files, in the order of their names, and what is refused."""
        ...

    def read(self, name: str) -> bytes:
        """The bytes of one of them.

        Raises:
            DataError: it is not there, too large, or damaged.
        """
        ...


def open_archive(path: Path, limits: Limits = Limits()) -> Archive:
    """Open a zip, a folder, or a JSON file. A zip stays open: asked again for the same one, a process reads its table once.

    Raises:
        DataError: it is not there, cannot be read, is damaged or is something else.
    """
    try:
        state = os.stat(path)
        if stat.S_ISDIR(state.st_mode):
            os.scandir(path).close()
            return _Folder(path, limits)
        if not stat.S_ISREG(state.st_mode):
            raise DataError(
                f"{one_line(path)}: is no file and no folder; name the release's zip, or the folder it was unzipped to"
            )
        with path.open("rb") as file:
            head = file.read(64)
    except OSError as error:
        raise DataError(f"{one_line(path)}: cannot be read ({error.strerror}); name the release's zip or folder") from None
    if head.startswith(b"PK") or path.suffix.lower() == ".zip":
        return _zip(str(path), (state.st_ino, state.st_size, state.st_mtime_ns), os.getpid(), limits)
    if head.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") or path.suffix.lower() == ".json":
        return _File(path, limits)
    raise DataError(f"{one_line(path)}: is no zip, no folder and no JSON file; unpack it and name the folder")


@lru_cache(maxsize=4)
def _zip(path: str, stamp: tuple[int, int, int], process: int, limits: Limits) -> _Zip:
    """One open zip a process (a forked one must not share its file's position) and state of the file."""
    return _Zip(Path(path), limits)


def shown(name: str) -> str:
    """A member's name as part of a line."""
    line = one_line(name)
    return line if len(line) <= 120 else f"{line[:60]}…{line[-59:]}"


def odd_name(name: str) -> str | None:
    """What is wrong with a member's name, if it could lead out of where it is unpacked; None for a plain name."""
    if name.startswith(("/", "\\")) or re.match(r"[A-Za-z]:", name):
        return "has an absolute path as its name"
    if ".." in re.split(r"[/\\]", name):
        return "has a name that leads out of the archive"
    if "\\" in name or any(ord(letter) < 32 or ord(letter) == 127 for letter in name):
        return "has a name with backslashes or control characters"
    return "has a name of more than 1000 characters" if len(name) > 1000 else None


def _hidden(name: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in name.split("/"))


class _File:
    """A JSON file by itself."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self._limits = path, limits

    def names(self) -> tuple[list[str], list[Refused]]:
        return [self.path.name], []

    def read(self, name: str) -> bytes:
        return _read_file(self.path, one_line(self.path), self._limits)


class _Folder:
    """A folder with all below it; hidden files are left out and links out of it are refused."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self._limits = path, limits

    def names(self) -> tuple[list[str], list[Refused]]:
        names: list[str] = []
        refused: list[Refused] = []

        def unreadable(error: OSError) -> None:
            refused.append(
                Refused(self._name(Path(error.filename)), f"cannot be read ({error.strerror}); change its permissions")
            )

        for here, folders, files in os.walk(self.path, onerror=unreadable):
            folders[:] = sorted(name for name in folders if not _hidden(name))
            linked = [name for name in folders if Path(here, name).is_symlink()]
            refused += [
                Refused(self._name(Path(here, name)), "is a link to a folder; name that folder itself") for name in linked
            ]
            for file in files:
                if _hidden(file):
                    continue
                name = self._name(Path(here, file))
                if file.lower().endswith(PACKED):
                    refused.append(Refused(name, "is an archive inside the folder; name it by itself"))
                elif file.lower().endswith(WANTED):
                    reason = self._odd(Path(here, file))
                    refused += [Refused(name, reason)] if reason else []
                    names += [] if reason else [name]
        return sorted(names), refused

    def _name(self, path: Path) -> str:
        return path.relative_to(self.path).as_posix()

    def _odd(self, path: Path) -> str | None:
        if path.is_symlink() and not path.resolve().is_relative_to(self.path.resolve()):
            return "is a link out of the folder; put the file itself there"
        return None if path.is_file() else "is no file; take it away"

    def read(self, name: str) -> bytes:
        path = self.path / name
        where = f"{one_line(self.path)}: {shown(name)}"
        if odd_name(name) or self._odd(path):
            raise DataError(f"{where}: is no file inside the folder; put the file itself there")
        return _read_file(path, where, self._limits)


def _read_file(path: Path, where: str, limits: Limits) -> bytes:
    try:
        with open(os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise DataError(f"{where}: is no file; take it away")
            data = file.read(limits.member + 1)
    except OSError as error:
        raise DataError(f"{where}: cannot be read ({error.strerror}); change its permissions or fetch it again") from None
    if len(data) > limits.member:
        raise DataError(f"{where}: {_too_large(limits)}")
    return data


def _too_large(limits: Limits) -> str:
    return f"is larger than {limits.member >> 20} MiB, which no video's annotation is; take it out"


class _Zip:
    """A zip file; members are found by their place in its table, so that of two with one name the first counts."""

    def __init__(self, path: Path, limits: Limits) -> None:
        self.path, self._limits = path, limits
        where = one_line(path)
        try:
            if _directory_size(path) > limits.directory:
                raise DataError(f"{where}: its table of contents is larger than {limits.directory >> 20} MiB; fetch it again")
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, ValueError, EOFError, struct.error, NotImplementedError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{where}: {_broken(path)}") from None
        except OSError as error:
            raise DataError(f"{where}: cannot be read ({error.strerror}); fetch it again") from None
        self._infos: dict[str, zipfile.ZipInfo] = {}
        self._refused: list[Refused] = []
        self._list()

    def _list(self) -> None:
        infos = self._zip.infolist()
        overlapping = set(_overlapping(infos, self._zip.start_dir))
        total, beyond = 0, 0
        for number, info in enumerate(infos):
            name = info.filename
            if info.is_dir() or (_hidden(name) and not odd_name(name)):
                continue
            reason = odd_name(name) or self._odd(info)
            if reason is None and not name.lower().endswith(WANTED):
                continue
            if reason is None and number in overlapping:
                reason = "shares its bytes with another file, as in a zip bomb; fetch the archive again"
            if reason is None and name in self._infos:
                reason = "is there twice; the first is used"
            if reason is not None:
                self._refused.append(Refused(name, reason))
            elif (total := total + info.file_size) > self._limits.total:
                beyond += 1
            else:
                self._infos[name] = info
        if beyond:
            limit = f"{self._limits.total >> 30} GiB"
            self._refused.append(Refused("", f"unpacks to more than {limit}; {beyond} files beyond that are left out"))

    def _odd(self, info: zipfile.ZipInfo) -> str | None:
        if info.filename.lower().endswith(PACKED):
            return "is an archive inside the archive; name it by itself"
        if not info.filename.lower().endswith(WANTED):
            return None
        if stat.S_ISLNK(info.external_attr >> 16):
            return "is a link; put the file itself into the archive"
        if info.flag_bits & 0x1:
            return "is encrypted; make the archive without a password"
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return "is not packed by deflation; make the archive with an ordinary zip program"
        if info.file_size > self._limits.member:
            return _too_large(self._limits)
        if info.file_size > max(1 << 20, self._limits.ratio * info.compress_size):
            return f"shrinks more than {self._limits.ratio} times, as in a zip bomb; take it out"
        return None

    def names(self) -> tuple[list[str], list[Refused]]:
        return sorted(self._infos), list(self._refused)

    def read(self, name: str) -> bytes:
        where = f"{one_line(self.path)}: {shown(name)}"
        info = self._infos.get(name)
        if info is None:
            raise DataError(f"{where}: is not in the archive; name the archive that it was listed from")
        try:
            with self._zip.open(info) as file:
                data = file.read(self._limits.member + 1)
        except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError, ValueError, struct.error) as error:
            raise DataError(f"{where}: is damaged ({shown(str(error))}); fetch the archive again") from None
        if len(data) > self._limits.member:
            raise DataError(f"{where}: {_too_large(self._limits)}")
        return data


def _broken(path: Path) -> str:
    with path.open("rb") as file:
        begins = file.read(2) == b"PK"
    return "is a zip that is cut short or damaged; fetch it again" if begins else "is no zip; name the release's zip or folder"


def _directory_size(path: Path) -> int:
    """Bytes that a zip's table of contents says it has; 0 where there is none (APPNOTE.TXT 4.3.14 to 4.3.16)."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - 65557 - 20))
        tail = file.read()
        end = tail.rfind(b"PK\5\6")
        if end < 0 or len(tail) < end + 22:
            return 0
        told = struct.unpack_from("<L", tail, end + 12)[0]
        if end >= 20 and tail[end - 20 : end - 16] == b"PK\6\7":
            file.seek(min(struct.unpack_from("<Q", tail, end - 12)[0], size))
            record = file.read(56)
            told = max(told if told != 0xFFFFFFFF else 0, struct.unpack_from("<Q", record, 40)[0] if len(record) == 56 else 0)
        return min(told, size)


def _overlapping(infos: Sequence[zipfile.ZipInfo], end: int) -> Iterator[int]:
    """Places of members whose bytes reach into what follows them."""
    order = sorted(range(len(infos)), key=lambda place: infos[place].header_offset)
    starts = [infos[place].header_offset for place in order] + [end]
    for place, (start, following) in zip(order, pairwise(starts)):
        if start + 30 + infos[place].compress_size > following:
            yield place
