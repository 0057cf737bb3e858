"""Stage ``collect``: from paths on the command line to films with an id, a content hash and a script beside them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from animeshooter_dataset import DataError, slug
from curation.sidecar import SCRIPT_SUFFIX
from curation.video import VideoInfo, probe

EXTENSIONS = frozenset(
    ".3gp .avi .flv .gif .ivf .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .mxf .nut .ogv .ts .webm .wmv .y4m".split()
)
"""What counts as a film inside a folder; a file that is named itself is tried whatever its extension."""


@dataclass(frozen=True)
class Film:
    """One film to curate.

    Attributes:
        id: file name as a key and eight digits of the content hash: the same wherever the file lies and whatever lies by it.
        path: the file.
        sha256: hash of the file's bytes.
        info: what its container says.
        script: the maker's script beside it (``NAME.script.json``), if there is one.
    """

    id: str
    path: Path
    sha256: str
    info: VideoInfo
    script: Path | None


@dataclass(frozen=True)
class Dropped:
    """Something that did not reach the dataset: of which film, at which stage, and why, in one line."""

    path: Path
    stage: str
    reason: str

    def public(self) -> dict[str, str]:
        """The same without the folders of this machine, to be stored in the dataset."""
        folder = "" if self.path.parent == Path() else f"{self.path.parent}/"
        return {"film": self.path.name, "stage": self.stage, "reason": self.reason.replace(folder, "")}


def collect(paths: Sequence[Path]) -> tuple[list[Film], list[Dropped]]:
    """Find the films named by ``paths``; a folder stands for every film in it and below.

    Returns:
        Films in the order of their ids, and what cannot be used, with reasons. The same bytes count once.
    """
    films: dict[str, Film] = {}
    dropped: list[Dropped] = []
    for path in expand(paths):
        try:
            film = read_film(path)
        except DataError as error:
            dropped.append(Dropped(path, "collect", str(error)))
            continue
        if film.sha256 in films:
            first = films[film.sha256].path.name
            dropped.append(Dropped(path, "collect", f"{path}: the same bytes as {first}, which is kept"))
        else:
            films[film.sha256] = film
    return sorted(films.values(), key=lambda film: film.id), dropped


def expand(paths: Iterable[Path]) -> list[Path]:
    """Named files as they are, folders as the films in them, in name order, each file once."""
    found: dict[Path, None] = {}
    for path in sorted(paths):
        if path.is_dir():
            inside = (file for file in path.rglob("*") if file.suffix.lower() in EXTENSIONS and file.is_file())
            found.update(dict.fromkeys(sorted(inside)))
        else:
            found[path] = None
    return list(found)


def read_film(path: Path) -> Film:
    """Probe and hash one file.

    Raises:
        DataError: it is not a film that can be read.
    """
    info = probe(path)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    script = path.with_name(path.stem + SCRIPT_SUFFIX)
    return Film(f"{slug(path.stem)}-{digest[:8]}", path, digest, info, script if script.is_file() else None)
