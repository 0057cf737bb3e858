"""The files of a folder as a repository of the Hub shall hold them, with hashes that are worked out once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from animeshooter_dataset import DataError
from curation.lines import JsonLines, read_json_lines
from curation.staging import fingerprint


@dataclass(frozen=True)
class Progress:
    """How far a step has come: the file it has done last, and files and bytes of all."""

    step: Literal["hashing", "sending"]
    name: str
    files: int
    of_files: int
    bytes: int
    of_bytes: int


Told = Callable[[Progress], None]


@dataclass(frozen=True)
class LocalFile:
    """A file to publish: where it is (or what it holds, if it is in memory alone), and its hash.

    ``stamp`` is (size, time of change, inode), by which a change is noticed; None in memory.
    """

    path: str
    source: Path | bytes
    size: int
    sha256: str
    stamp: tuple[int, int, int] | None = None

    def git_id(self) -> str:
        """The id git gives its content, by which the Hub names small files."""
        digest = hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)
        if isinstance(self.source, bytes):
            digest.update(self.source)
        else:
            with self.source.open("rb") as file:
                while block := file.read(2**20):
                    digest.update(block)
        return digest.hexdigest()

    def check(self) -> None:
        """Refuse a file that is not any more what it was.

        Raises:
            DataError: it changed, or is gone.
        """
        if isinstance(self.source, Path) and stamp_of(self.source) != self.stamp:
            raise DataError(f"{self.source}: changed while it was published; nothing is visible yet, run again")


def stamp_of(path: Path) -> tuple[int, int, int] | None:
    """Size, time of change and inode of a file; None if there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def default_hashes() -> Path:
    """Where hashes of published files are remembered: ``animeshooter/published`` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "animeshooter" / "published"


class Hashes:
    """sha256 of the files of one folder, remembered outside it for as long as a file's size, time and inode stay.

    Without a cache folder that can be written, nothing is remembered and nothing fails.
    """

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        self.known: dict[tuple[str, int, int, int], str] = {}
        self.file: JsonLines | None = None
        path = (cache or default_hashes()) / f"{fingerprint(str(folder.resolve()))}.jsonl"
        with suppress(OSError):
            for line in read_json_lines(path):
                with suppress(KeyError, TypeError):
                    self.known[line["path"], *line["stamp"]] = line["sha256"]
            self.file = JsonLines(path)

    def get(self, name: str, stamp: tuple[int, int, int]) -> str | None:
        """What is known of a file."""
        return self.known.get((name, *stamp))

    def add(self, name: str, stamp: tuple[int, int, int], sha256: str) -> None:
        """Remember a file."""
        if self.known.get((name, *stamp)) != sha256:
            self.known[name, *stamp] = sha256
            if self.file is not None:
                with suppress(OSError):
                    self.file.append({"path": name, "stamp": stamp, "sha256": sha256})

    def close(self) -> None:
        """Close the file."""
        if self.file is not None:
            self.file.close()
            self.file = None


@dataclass(frozen=True)
class Local:
    """The files of a folder that a repository shall hold, by their path in it."""

    folder: Path
    files: Mapping[str, LocalFile]

    @classmethod
    def of(
        cls,
        folder: Path,
        *,
        files: Iterable[str] | None = None,
        hashes: Mapping[str, str] | None = None,
        extra: Mapping[str, bytes] | None = None,
        cache: Path | None = None,
        progress: Told | None = None,
    ) -> Local:
        """Look at a folder, and hash what is not known yet.

        Args:
            folder: what to publish.
            files: paths in it; by default every file whose path has no part that begins with a dot.
            hashes: sha256 that files must have, by path.
            extra: files that are in memory alone; they stand for those of the folder with the same path.
            cache: where hashes are remembered; see :func:`default_hashes`.
            progress: told after each file that had to be hashed.

        Raises:
            DataError: a file is missing, leads out of the folder, or has another hash.
        """
        names = sorted(set(_found(folder) if files is None else files) - set(extra or ()))
        stamps = {name: _checked(folder, name) for name in names}
        known = Hashes(folder, cache)
        try:
            unknown = [name for name in names if known.get(name, stamps[name]) is None]
            done, total = 0, sum(stamps[name][0] for name in unknown)
            for number, name in enumerate(unknown, 1):
                with (folder / name).open("rb") as file:
                    known.add(name, stamps[name], hashlib.file_digest(file, "sha256").hexdigest())
                done += stamps[name][0]
                if progress:
                    progress(Progress("hashing", name, number, len(unknown), done, total))
            found = {
                name: LocalFile(name, folder / name, stamps[name][0], known.get(name, stamps[name]) or "", stamps[name])
                for name in names
            }
        finally:
            known.close()
        for name, each in found.items():
            each.check()
            if hashes and hashes.get(name, each.sha256) != each.sha256:
                raise DataError(f"{folder / name}: its sha256 is not the one it should have; build or download it again")
        return cls(folder, found).adding(extra or {})

    def adding(self, extra: Mapping[str, bytes]) -> Local:
        """These files and others that are in memory alone; they stand for those with the same path."""
        memory = {name: LocalFile(name, blob, len(blob), hashlib.sha256(blob).hexdigest()) for name, blob in extra.items()}
        return Local(self.folder, dict(sorted({**self.files, **memory}.items())))


def _found(folder: Path) -> list[str]:
    """Every file of a folder whose path has no part that begins with a dot."""
    try:
        paths = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
    except OSError as error:
        raise DataError(f"{folder}: not readable ({error})") from None
    return [path.as_posix() for path in paths if not any(part.startswith(".") for part in path.parts)]


def _checked(folder: Path, name: str) -> tuple[int, int, int]:
    """The stamp of a file that may be published: it is there, and does not lead out of the folder."""
    path = folder / name
    stamp = stamp_of(path)
    if stamp is None or not path.is_file():
        raise DataError(f"{path}: not there; build or download it again")
    if not path.resolve().is_relative_to(folder.resolve()):
        raise DataError(f"{path}: leads out of the folder; put the file itself there")
    return stamp
