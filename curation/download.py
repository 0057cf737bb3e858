"""Films from addresses: ``http(s)://`` pages and files, and YouTube ids as ``yt:ID``, through yt-dlp into one folder.

In the folder a film is ``NAME.mp4`` (or ``.mkv``, ``.webm`` …) and beside it ``NAME.source.json`` says where it came from.
``NAME`` is made here from the site, its id of the film and a hash of the address; no name is taken from a server. A film that
is there is not asked for again; one that was broken off is continued where it stopped; what failed stands in ``failed.jsonl``,
and what failed for good is left alone until it is asked for with ``retry_failed``.

Quality: the best format up to :attr:`~curation.ytdlp.DownloadConfig.max_height`, H.264 and AAC before others. Sites such as
YouTube keep picture and sound of the better ones apart; they are fetched both and put into one file without encoding. No
``ffmpeg`` program is needed. Plain files on web servers are taken as they are.

Servers are treated gently: one film at a time from one host, a least distance between requests, no haste after an error, and
``Retry-After`` is honoured. yt-dlp reads no configuration, plugin, cookie, cache or ``.netrc`` here, and opens no ``file://``.
"""

from __future__ import annotations

import os
import queue
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout
from pydantic import Field, ValidationError

from animeshooter_dataset import DataError, Record
from curation.lines import JsonLines, one_line, read_json_lines, replace_json_lines
from curation.origin import SOURCE_SUFFIX, Address
from curation.video import EXTENSIONS
from curation.ytdlp import PARTIAL, DownloadConfig, FilmDownload, Gate, Problem, today

FAILED = "failed.jsonl"
_RECORD = re.compile(rf"(.+-[0-9a-f]{{10}}){re.escape(SOURCE_SUFFIX)}")


class Failure(Record):
    """A line of ``failed.jsonl``: an address that gave no film; the last line of an address counts.

    ``key`` stands for the address, of which passwords and keys are left out in ``address``.
    """

    key: str
    address: str
    reason: str
    kind: Literal["permanent", "transient"]
    attempts: int = Field(ge=0)
    date: str


def fetch(
    addresses: Sequence[Address],
    folder: Path,
    config: DownloadConfig | None = None,
    *,
    retry_failed: bool = False,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
) -> tuple[dict[str, Path], dict[str, Failure]]:
    """Fetch films that are not in the folder yet; without any, nothing is asked of the network.

    Args:
        addresses: what to fetch.
        folder: where to; it is made if need be.
        config: how.
        retry_failed: try also what an earlier run says failed for good.
        progress: called with films done, films to fetch, and the address, as films come in.

    Returns:
        By the addresses' keys: the film's path, or why there is none.

    Raises:
        DataError: the folder cannot be written, the disk is full, or another process is fetching into it.
    """
    config = config or DownloadConfig()
    films = _finished(folder)
    failures = {failure.key: failure for failure in _failures(folder)}
    wanted = {address.key: address for address in addresses}
    todo = [
        address
        for key, address in wanted.items()
        if key not in films and (retry_failed or key not in failures or failures[key].kind == "transient")
    ]
    if todo:
        with _locked(folder):
            films = _finished(folder)  # another process may have been at work until now
            todo = [address for address in todo if address.key not in films]
            tries = {key: failure.attempts for key, failure in failures.items()}
            for done, (address, outcome) in enumerate(_fetch_all(todo, folder, config, tries), 1):
                if isinstance(outcome, Path):
                    films[address.key] = outcome
                    failures.pop(address.key, None)
                else:
                    failures[address.key] = outcome
                progress(done, len(todo), address.public)
            replace_json_lines(folder / FAILED, [failures[key].model_dump() for key in failures if key not in films])
    found = {key: films[key] for key in wanted if key in films}
    return found, {key: failures[key] for key in wanted if key not in found}


def _finished(folder: Path) -> dict[str, Path]:
    """The films of a folder by the keys of their addresses: those that have both film and record."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
    except FileNotFoundError:
        return {}
    stems = {
        name.removesuffix(SOURCE_SUFFIX) for name in names if re.search(rf"-[0-9a-f]{{10}}{re.escape(SOURCE_SUFFIX)}$", name)
    }
    films = (Path(name) for name in names)
    return {film.stem[-10:]: folder / film for film in films if film.stem in stems and film.suffix in EXTENSIONS}


def _failures(folder: Path) -> list[Failure]:
    entries = []
    for entry in read_json_lines(folder / FAILED):
        try:
            entries.append(Failure.model_validate(entry))
        except ValidationError:
            continue  # a line written by another version: the address is tried again
    return entries


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep a second process from the folder; turn a full or read-only disk into one line."""
    shown = one_line(folder)
    try:
        (folder / PARTIAL).mkdir(parents=True, exist_ok=True)
        with FileLock(folder / PARTIAL / "lock", timeout=0):
            yield
    except Timeout:
        raise DataError(f"{shown}: another process is downloading into it; wait for it, or name another folder") from None
    except OSError as error:
        raise DataError(f"{shown}: cannot write ({error.strerror}); make room or rights, then run again to go on") from None


Outcome = Path | Failure


def _fetch_all(
    addresses: Sequence[Address], folder: Path, config: DownloadConfig, tries: Mapping[str, int]
) -> Iterator[tuple[Address, Outcome]]:
    """Fetch addresses, one at a time from each host; yields each with its film or its failure as they come."""
    gate, failed = Gate(config), JsonLines(folder / FAILED)
    hosts: dict[str, list[FilmDownload]] = {}
    for address in addresses:
        hosts.setdefault(address.host, []).append(FilmDownload(address, folder, config, gate))
    told: queue.SimpleQueue[tuple[Address, Path | Problem | BaseException]] = queue.SimpleQueue()
    pool = ThreadPoolExecutor(max(1, config.hosts), "download")
    try:
        for waiting in hosts.values():
            pool.submit(_fetch_host, waiting, told)
        for _ in addresses:
            address, outcome = told.get()
            if isinstance(outcome, Problem):
                failure = _failure(address, outcome, tries.get(address.key, 0))
                failed.append(failure.model_dump())
                yield address, failure
            elif isinstance(outcome, BaseException):
                raise outcome
            else:
                yield address, outcome
    finally:
        gate.stopped.set()
        pool.shutdown(cancel_futures=True)
        failed.close()


def _fetch_host(films: Sequence[FilmDownload], told: queue.SimpleQueue) -> None:
    """Fetch the films of one host, one after another; when it fails too often, the others are left alone."""
    in_a_row, last = 0, ""
    for film in films:
        try:
            if in_a_row >= film.config.give_up_after:
                raise Problem(f"not tried: {in_a_row} films of {film.address.host} failed in a row, the last with: {last}")
            told.put((film.address, film.run()))
            in_a_row = 0
        except Problem as problem:
            told.put((film.address, problem))
            if problem.permanent:
                in_a_row = 0
            elif problem.tries:
                in_a_row, last = in_a_row + 1, problem.reason
        except BaseException as error:
            told.put((film.address, error))
            return


def _failure(address: Address, problem: Problem, tries: int) -> Failure:
    return Failure(
        key=address.key,
        address=address.public,
        reason=problem.reason,
        kind="permanent" if problem.permanent else "transient",
        attempts=tries + problem.tries,
        date=today(),
    )
