"""Stage ``collect``: from what is named on the command line to films with an id, a content hash and a script beside them.

A source is a file; a folder, which stands for every film in it and below, hidden ones left out; a pattern such as
``films/*.mp4``; an address, ``http(s)://…`` or ``yt:ID``, see :mod:`curation.download`; or a list of sources, named as
``@list.txt`` or by any name that ends in ``.txt``. A list holds a source a line, files relative to its own folder; blank lines
and lines that begin with ``#`` do not count, and eleven characters that could be a YouTube id and are no file's name are one.
A file whose name really is what was written comes first: ``film [1].mp4`` is no pattern where there is such a file.
"""

from __future__ import annotations

import glob
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from animeshooter_dataset import DataError, slug
from curation.lines import JsonLines, one_line, read_json_lines, replace_json_lines
from curation.origin import YOUTUBE_ID, Address, Source, read_source, source_path
from curation.sidecar import SCRIPT_SUFFIX, Rights, SidecarScript
from curation.video import EXTENSIONS, VideoInfo, probe

if TYPE_CHECKING:
    from curation.download import DownloadConfig
    from curation.release import ReleaseEntry

PLAN_VERSION = 1
"""Raised when what a film's entry in a plan says changes: entries of another version count as none."""


@dataclass(frozen=True)
class Film:
    """One film to curate.

    Attributes:
        id: file name as a key and eight digits of the content hash: the same wherever the file lies and whatever lies by it.
        path: the file.
        sha256: hash of the file's bytes.
        info: what its container says.
        script: the maker's script beside it (``NAME.script.json``), if there is one.
        source: where it was downloaded from (``NAME.source.json`` beside it), if that is known.
        stamp: size in bytes and time of last change in nanoseconds, of the file that was hashed; of this machine only.
        release: what the official release tells of it, if it is a film of that.
    """

    id: str
    path: Path
    sha256: str
    info: VideoInfo
    script: Path | None
    source: Source | None = None
    stamp: tuple[int, int] = (0, 0)
    release: ReleaseEntry | None = None

    @property
    def name(self) -> str:
        """The file's name as it may be written down: one line."""
        return one_line(self.path.name)


@dataclass(frozen=True)
class Dropped:
    """Something that did not reach the dataset: of which film, at which stage, and why, in one line.

    ``address`` stands for what was not to be had at all, so that there is no file.
    """

    path: Path
    stage: str
    reason: str
    address: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "reason", one_line(self.reason))

    @property
    def film(self) -> str:
        """The file's name, or the address where there is no file, as one line."""
        return self.address or one_line(self.path.name)

    def public(self) -> dict[str, str]:
        """The same without the folders of this machine, to be stored in the dataset."""
        folder = "" if self.path.parent == Path() else one_line(f"{self.path.parent}/")
        return {"film": self.film, "stage": self.stage, "reason": self.reason.replace(folder, "")}


def collect(sources: Sequence[str | Path], downloads: Path | None = None) -> tuple[list[Film], list[Dropped]]:
    """Find, probe and hash the films named by ``sources``, one after another; see :func:`expand`.

    Returns:
        Films in the order of their ids, and what cannot be used, with reasons. The same bytes count once.
    """
    paths, dropped = expand(sources, downloads)
    films: list[Film] = []
    for path in paths:
        try:
            films.append(read_film(path))
        except DataError as error:
            dropped.append(Dropped(path, "collect", str(error)))
    kept, twice = unique(films)
    return kept, dropped + twice


def expand(
    sources: Sequence[str | Path],
    downloads: Path | None = None,
    config: DownloadConfig | None = None,
    *,
    retry_failed: bool = False,
    withheld: Callable[[Address], tuple[str, str] | None] = lambda address: None,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
) -> tuple[list[Path], list[Dropped]]:
    """Find the files that sources stand for; what is to be had from the network is fetched.

    Args:
        sources: files, folders, patterns, lists and addresses; a Path is never a pattern or an address.
        downloads: folder for what is fetched.
        config: how it is fetched.
        retry_failed: try also addresses that an earlier run says failed for good.
        withheld: stage and reason of an address that is not to be asked; None where it may be.
        progress: called as films are fetched with films done, films to fetch, and the address.

    Returns:
        Files in the order of their paths, each once, whether or not they are films; and what led to no file, with reasons.

    Raises:
        DataError: addresses are named and no folder for downloads, or that folder cannot be written.
    """
    named = _Named()
    for source in sources:
        named.add(source)
    for key, address in list(named.addresses.items()):
        if (why := withheld(address)) is not None:
            stage, reason = why
            named.dropped.append(Dropped(Path(), stage, f"{address.public}: {reason}", address.public))
            del named.addresses[key]
    if named.addresses:
        from curation.download import fetch

        if downloads is None:
            first = next(iter(named.addresses.values()))
            raise DataError(f"{first.public}: no folder for downloads is named; name one, or only files")
        found, failures = fetch(list(named.addresses.values()), downloads, config, retry_failed=retry_failed, progress=progress)
        for path in found.values():
            named.add_file(path)
        for key, failure in failures.items():
            left = "; --retry-failed asks for it again" if failure.kind == "permanent" else ""
            reason = f"{failure.address}: {failure.reason}{left}"
            named.dropped.append(Dropped(downloads / key, "collect", reason, failure.address))
    return sorted(named.files.values(), key=str), named.dropped


class _Named:
    """What sources stand for, as it is found."""

    def __init__(self) -> None:
        self.files: dict[str, Path] = {}
        self.addresses: dict[str, Address] = {}
        self.dropped: list[Dropped] = []
        self._lists: set[str] = set()

    def add(self, source: str | Path, folder: Path | None = None) -> None:
        """Add what a source stands for; ``folder`` is that of the list that names it."""
        text = os.fspath(source)
        path = folder / text if folder else Path(text)
        if not text:
            self._drop(path, "an empty name; name a film")
        elif os.path.lexists(path):
            self._add_path(path)
        elif isinstance(source, Path):
            self.add_file(path)  # reading it will say that there is no such file
        elif text.startswith("@"):
            self._add_list((folder or Path()) / text[1:])
        elif text.startswith("yt:") or "://" in text:
            self._add_address(text)
        elif folder and YOUTUBE_ID.fullmatch(text):
            self._add_address(f"yt:{text}")
        elif glob.has_magic(text):
            self._add_pattern(text, folder or Path())
        else:
            self.add_file(path)

    def add_file(self, path: Path) -> None:
        """Add a file under the first of its spellings."""
        self.files.setdefault(os.path.abspath(path), path)

    def _add_path(self, path: Path) -> None:
        if path.is_dir():
            self._add_folder(path)
        elif path.suffix.lower() == ".txt" and _is_text(path):
            self._add_list(path)
        else:
            self.add_file(path)

    def _add_folder(self, folder: Path) -> None:
        for here, folders, names in os.walk(folder, onerror=self._unreadable):
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            for name in names:
                path = Path(here, name)
                if path.suffix.lower() in EXTENSIONS and not name.startswith(".") and path.is_file():
                    self.add_file(path)

    def _add_pattern(self, pattern: str, folder: Path) -> None:
        """Add the folders and films that a pattern matches, or all it matches if it says their extension."""
        named = Path(pattern).suffix.lower()
        matches = (folder / name for name in sorted(glob.glob(pattern, root_dir=folder, recursive=True)))
        found = [path for path in matches if path.is_dir() or path.suffix.lower() in (*EXTENSIONS, named)]
        if not found:
            self._drop(folder / pattern, "no film has a name like this; mend the pattern")
        for path in found:
            self._add_path(path)

    def _add_address(self, text: str) -> None:
        try:
            address = Address.parse(text)
        except DataError as error:
            self.dropped.append(Dropped(Path(), "collect", str(error), str(error).partition(": ")[0]))
        else:
            self.addresses.setdefault(address.key, address)

    def _add_list(self, path: Path) -> None:
        if os.path.abspath(path) in self._lists:
            return
        self._lists.add(os.path.abspath(path))
        try:
            lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
        except OSError as error:
            self._drop(path, f"the list cannot be read ({error.strerror}); name a file of lines")
            return
        named = [text for line in lines if (text := os.fsdecode(line.strip())) and not text.startswith("#")]
        if not named:
            self._drop(path, "the list is empty; write a source a line")
        for text in named:
            self.add(text, path.parent)

    def _unreadable(self, error: OSError) -> None:
        self._drop(Path(error.filename), f"the folder cannot be read ({error.strerror}); change its permissions")

    def _drop(self, path: Path, reason: str) -> None:
        self.dropped.append(Dropped(path, "collect", f"{path}: {reason}"))


def _is_text(path: Path) -> bool:
    """Whether a file that may be a list is one, and not a film of that name: films hold zero bytes early on."""
    try:
        with path.open("rb") as file:
            return b"\0" not in file.read(4096)
    except OSError:
        return True


def read_film(path: Path) -> Film:
    """Probe and hash one file.

    Raises:
        DataError: it is not a film that can be read, or it changes while it is read.
    """
    info = probe(path)
    stamp = _stamp(path)
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); fetch it again") from None
    if stamp != _stamp(path):
        raise DataError(f"{path}: changed while it was read; wait until it is whole, then run again")
    return Film(f"{slug(path.stem)}-{digest[:8]}", path, digest, info, *_beside(path), stamp)


def _stamp(path: Path) -> tuple[int, int]:
    state = os.stat(path)
    return state.st_size, state.st_mtime_ns


def _beside(path: Path) -> tuple[Path | None, Source | None]:
    script = path.with_name(path.stem + SCRIPT_SUFFIX)
    return script if script.is_file() else None, read_source(source_path(path))


def unique(films: Iterable[Film]) -> tuple[list[Film], list[Dropped]]:
    """Films in the order of their ids, of those with the same bytes the first by path; and the others, dropped."""
    kept: dict[str, Film] = {}
    dropped = []
    for film in sorted(films, key=lambda film: str(film.path)):
        first = kept.setdefault(film.sha256, film)
        if first is not film:
            dropped.append(Dropped(film.path, "collect", f"{film.path}: the same bytes as {first.name}, which is kept"))
    return sorted(kept.values(), key=lambda film: film.id), dropped


def rights_of(film: Film, script: SidecarScript | None) -> Rights:
    """On what terms a film may be used: field by field the word of its maker's script, else that of the site it came from."""
    told, source = script.rights if script else Rights(), film.source
    if source is None:
        address = film.release.url if film.release else None
        return told.model_copy(update={"source": told.source or address})
    site = Rights(licence=source.licence, uploader=source.uploader, source=source.address, retrieved=source.retrieved)
    return site.model_copy(update=told.model_dump(exclude_none=True))


def title_of(film: Film, script: SidecarScript | None) -> str | None:
    """A film's title: the word of its maker's script, else that of the site it came from."""
    return script.title if script and script.title else film.source.title if film.source else None


class Plan:
    """What earlier runs learned of films, so that a film that has not changed is neither probed nor hashed again.

    A file of JSON lines that only grows; an entry holds while the file at its path has the same size and time of last change.
    Whatever moment a run is ended at, entries written before it stand. One process writes at a time; memory is about a
    kilobyte a film.
    """

    def __init__(self, path: Path) -> None:
        """Open the plan at ``path``; it is made if it is not there. See :meth:`load`."""
        self._entries: dict[str, str] = {}  # by path, as JSON: a third of the memory of the objects
        lines = 0
        for entry in read_json_lines(path):
            lines += 1
            if entry.get("plan") == PLAN_VERSION and isinstance(entry.get("path"), str):
                self._entries[entry["path"]] = json.dumps(entry)
        if lines > 2 * len(self._entries) + 16:
            replace_json_lines(path, (json.loads(text) for text in self._entries.values()))
        self._file = JsonLines(path)

    @classmethod
    def load(cls, path: Path) -> Plan:
        """Open the plan at ``path``; it is made if it is not there.

        Raises:
            OSError: it cannot be written.
        """
        return cls(path)

    def __len__(self) -> int:
        """Number of films that the plan knows, whether or not they are still there."""
        return len(self._entries)

    def get(self, path: Path) -> Film | None:
        """What :func:`read_film` would say of a file, if it is known; the files beside the film are looked at again."""
        text = self._entries.get(os.path.abspath(path))
        if text is None:
            return None
        entry = json.loads(text)
        try:
            if tuple(entry["stamp"]) != (stamp := _stamp(path)):
                return None
            info = VideoInfo(path=path, **{**entry["info"], "fps_fraction": tuple(entry["info"]["fps_fraction"])})
            return Film(entry["id"], path, entry["sha256"], info, *_beside(path), stamp)
        except (KeyError, TypeError, OSError, DataError):
            return None

    def put(self, film: Film) -> None:
        """Note what was learned of a film.

        Raises:
            OSError: the disk is full.
        """
        path = os.path.abspath(film.path)
        info = asdict(film.info)
        del info["path"]
        entry = {"plan": PLAN_VERSION, "path": path, "stamp": film.stamp, "id": film.id, "sha256": film.sha256, "info": info}
        self._file.append(entry)
        self._entries[path] = json.dumps(entry)
