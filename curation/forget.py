"""What is left of a film outside its dataset, and its removal: staged results, answers of models, downloads, a report page.

Films that a user gave by path are never touched: a file counts as fetched only with the record of its origin beside it.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from animeshooter_dataset import DataError, FilmRecord, RightsRecord, read_lines, slug
from curation.asking import default_cache
from curation.edition import places
from curation.lines import one_line, read_json_lines, replace_json_lines
from curation.optout import address_key
from curation.origin import SOURCE_SUFFIX, read_source
from curation.video import EXTENSIONS
from curation.ytdlp import PARTIAL
from streams.feature_files import forget_video

WORDS = frozenset(
    (
        *("storyline", "narrative_caption", "descriptive_caption", "appearance", "environment"),
        *("sound_description", "visual_context", "reason", "detail"),
    )
)
"""Fields, of records and of answers, in which somebody says what a film shows."""
TELLING = 16
"""Characters from which a text is taken for that of one film; a shorter one may be said of any."""
_KEY = re.compile(r"[0-9a-f]{64}")
TWIN = "the same bytes as {}, which is kept"
"""What is said of a film that was named twice, see :func:`curation.collect.unique`."""


@dataclass
class Traces:
    """By what the traces of films are known.

    Attributes:
        lines: the films' lines of the ledger.
        files: names of the films' files, and of others with the same bytes.
        addresses: keys of addresses that stand for these films and no other.
        words: hashes of what was said of them.
    """

    lines: Sequence[RightsRecord]
    files: set[str] = field(default_factory=set)
    addresses: set[str] = field(default_factory=set)
    words: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, lines: Sequence[RightsRecord], home: Path) -> Traces:
        """What a dataset's own files tell of films; the words of its shards are added as they are read, see :meth:`hear`."""
        found, videos = cls(lines), {line.video for line in lines}
        others = {
            address_key(line.source)
            for line in read_lines(home / "rights.jsonl", RightsRecord)
            if line.source and line.video not in videos
        }
        found.addresses = {address_key(line.source) for line in lines if line.source} - others
        for film in read_lines(home / "films.jsonl", FilmRecord):
            if film.video in videos:
                found.files.add(film.film)
                found.hear([item.model_dump() for item in film.evidence])
        twins = [TWIN.format(name) for name in found.files]
        for film in read_lines(home / "films.jsonl", FilmRecord):
            if film.video is None and any((film.reason or "").endswith(told) for told in twins):
                found.files.add(film.film)
        return found

    def hear(self, told: Any) -> None:
        """Take note of the words in a record."""
        self.words.update(hash(text) for text in _words(told))

    def spoken(self, answer: Any) -> bool:
        """Whether an answer shares its words with what was said of these films."""
        said = list(_words(answer))
        known = [hash(text) in self.words for text in said]
        return bool(said) and (all(known) or any(hit and len(text) >= TELLING for hit, text in zip(known, said)))


def _words(told: Any, name: str = "") -> Iterator[str]:
    if isinstance(told, dict):
        for key, value in told.items():
            yield from _words(value, key)
    elif isinstance(told, list | tuple):
        for value in told:
            yield from _words(value, name)
    elif isinstance(told, str) and name in WORDS and told.strip():
        yield told.strip().removeprefix("judge: ")  # as screening stores a judge's reason


@dataclass
class Forgotten:
    """What was deleted or changed, and what could not be, with the reason."""

    paths: list[Path] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def delete(self, path: Path) -> None:
        """Delete a file or folder."""
        with self.trying(path):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            self.paths.append(path)

    @contextmanager
    def trying(self, path: Path) -> Iterator[None]:
        """What cannot be done to a path is told and keeps nobody from the rest."""
        try:
            yield
        except FileNotFoundError:
            pass
        except OSError as error:
            self.left.append(f"{one_line(path)}: {error.strerror or error}; delete it by hand, or mend that and run again")
        except DataError as error:
            self.left.append(str(error))


def forget(
    traces: Traces, directory: Path, *, work: Path | None = None, downloads: Path | None = None, answers: Path | None = None
) -> Forgotten:
    """Delete the traces of films outside their dataset.

    Args:
        traces: by what they are known.
        directory: the dataset; what belongs to it lies beside it.
        work: another folder for staged results.
        downloads: another folder for fetched films.
        answers: folder of models' answers; None for the usual one.
    """
    gone, beside = Forgotten(), places(directory)
    for folder in [Path(f"{place}.work") for place in beside] + ([work] if work else []):
        _forget_staged(traces, folder, gone)
    cache = answers or default_cache()
    with gone.trying(cache):
        _forget_answers(traces, cache, gone)
    for folder in [Path(f"{place}.films") for place in beside] + ([downloads] if downloads else []):
        with gone.trying(folder):
            _forget_downloads(traces, folder, gone)
    videos = {line.video for line in traces.lines}
    for place in beside:
        features = Path(f"{place}.features")
        with gone.trying(features):
            gone.paths.extend(forget_video(features, videos))
    fresh = any(line.state != "withdrawn" for line in traces.lines)
    for place in beside:
        _forget_report(place, fresh, gone)
    return gone


def _forget_staged(traces: Traces, folder: Path, gone: Forgotten) -> None:
    """Results of the films' stages, and datasets that a killed run did not finish."""
    videos = {line.video for line in traces.lines}
    ends = {f"-{line.sha256[:8]}" for line in traces.lines if line.sha256}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if not path.is_dir():
            continue
        if path.name in videos or path.name[-9:] in ends:
            for told in (*path.rglob("*.json"), *path.rglob("*.jsonl")):
                with gone.trying(told):
                    for line in told.read_bytes().splitlines():
                        traces.hear(_json(line))
            gone.delete(path)
        elif path.name in ("finished", "filtered"):
            gone.delete(path)
    plan = folder / "plan.jsonl"
    with gone.trying(plan):
        entries = list(read_json_lines(plan))
        kept = [entry for entry in entries if entry.get("id") not in videos and str(entry.get("id"))[-9:] not in ends]
        if len(kept) < len(entries):
            replace_json_lines(plan, kept)
            gone.paths.append(plan)


def _json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


def _forget_answers(traces: Traces, cache: Path, gone: Forgotten) -> None:
    """Answers that were noted as given on these films, and those that share their words."""
    for line in traces.lines:
        listed = cache / "videos" / f"{line.video}.txt"
        if listed.is_file():
            for key in filter(_KEY.fullmatch, listed.read_text().split()):
                gone.delete(cache / key[:2] / f"{key}.json")
            gone.delete(listed)
    if not traces.words:
        return
    for path in cache.glob("[0-9a-f][0-9a-f]/*.json"):
        with gone.trying(path):
            found = _json(path.read_bytes())
            if isinstance(found, dict) and traces.spoken(found.get("answer")):
                gone.delete(path)


def _forget_downloads(traces: Traces, folder: Path, gone: Forgotten) -> None:
    """Fetched films: those of the same address, and those of the same name whose bytes are the film's."""
    if not folder.is_dir():
        return
    hashes = {line.sha256 for line in traces.lines if line.sha256}
    named = {Path(name).stem for name in traces.files}
    stems = {line.video[:-9] for line in traces.lines}
    with _downloads_held(folder):
        for record in sorted(folder.glob(f"*{SOURCE_SUFFIX}")):
            stem = record.name.removesuffix(SOURCE_SUFFIX)
            films = [record.with_name(stem + suffix) for suffix in EXTENSIONS]
            with gone.trying(record):
                same = stem[-10:] in traces.addresses or _address(record) in traces.addresses
                if not same and (stem in named or slug(stem) in stems):
                    same = any(film.is_file() and _sha256(film) in hashes for film in films)
                if same:
                    for path in sorted(folder.glob("*")):
                        if path.name.startswith(f"{stem}."):
                            gone.delete(path)
        for key in traces.addresses:
            for path in sorted((folder / PARTIAL).glob("*")):
                if path.name.startswith(f"{key}."):
                    gone.delete(path)


def _address(record: Path) -> str | None:
    source = read_source(record)
    return address_key(source.address) if source else None


@contextmanager
def _downloads_held(folder: Path) -> Iterator[None]:
    """Keep downloads away from a folder, if one was ever begun there."""
    if not (folder / PARTIAL).is_dir():
        yield
        return
    try:
        with FileLock(folder / PARTIAL / "lock", timeout=0):
            yield
    except Timeout:
        raise DataError(f"{one_line(folder)}: another process is downloading into it; wait for it, then run again") from None


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _forget_report(place: Path, fresh: bool, gone: Forgotten) -> None:
    """A page that shows the dataset with the films; where they were gone before, one that was made since does not."""
    page = place.with_name(f"{place.name}-report.html")
    for path in (page, page.with_name(f".{page.name}.part")):
        with gone.trying(path):
            if path.is_file() and (fresh or os.stat(path).st_mtime_ns <= os.stat(place / "manifest.json").st_mtime_ns):
                gone.delete(path)
