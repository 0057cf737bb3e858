"""Text-video sets of any maker as a training stream: WebVid-like tars, or a folder of mp4s with their captions.

Tars      ``KEY.mp4`` and beside it ``KEY.json`` ({"caption" | "text" | "name": ...}) or ``KEY.txt``, as webdataset writes them;
          a folder of them, one of them, or a pattern: ``webvid/{00000..02489}.tar``, ``webvid/*.tar``
Folder    ``metadata.jsonl`` or ``.csv`` with a line a clip (``file_name`` or ``videoid``, and ``caption``, ``text`` or
          ``name``), or ``CLIP.txt`` beside each ``CLIP.mp4``

The first run looks at every clip's header once and keeps what it saw in ``.animeshooter-index`` beside them (in the user's
cache where it may not write there): a part for each tar, made anew only where the tar changed, so that a look that was
interrupted goes on. Then the order is that of the dataset's streams, exact and resumable. Clips without text, damaged or
cut off are left out, counted and named. In memory a clip takes about 100 bytes
besides its name and text, on each process.
"""

from __future__ import annotations

import glob
import hashlib
import json
import multiprocessing
import os
import re
import sys
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from tqdm import tqdm

from animeshooter_dataset import DataError
from animeshooter_streams import ShotStream
from recipes.plain_clips import COLUMNS, PlainClips, clip_row, listed_clips, listing_of, text_of

VERSION = 1
"""Of the parts of an index; raised where their content would differ."""
CHUNK = 1024
"""Clips of a folder that make one part."""
SPREAD = 4
"""Parts to make from which on several processes make them."""
FOLDER = ".animeshooter-index"


class TextVideoStream(PlainClips, ShotStream):
    """One clip a sample, of a text-video set; arguments as of :class:`animeshooter_streams.ShotStream`."""

    kind = "text_video"

    def make_index(self, source: Path) -> tuple[Path, pa.Table, Sequence[str]]:
        """See :meth:`PlainClips.make_index`."""
        folder, parts = parts_of(source)
        table = read_parts(folder, parts)
        bad = table.filter(table["problem"].is_valid())
        problems = [
            f"{row['shard']}{': ' + row['key'] if row['shard'].endswith('.tar') else ''}: {row['problem']}"
            for row in bad.select(["shard", "key", "problem"]).to_pylist()
        ]
        good = table.filter(table["problem"].is_null())
        if not good.num_rows:
            raise DataError(f"{source}: no clip can be used; the first: {problems[0] if problems else 'there is none'}")
        return folder, good, problems


def is_text_video(source: str | Path) -> bool:
    """Whether a folder, tar or pattern holds a text-video set, by a look at its names."""
    path = Path(source)
    if not path.is_dir():
        return bool(_tars(str(source)))
    if any(path.glob("*.tar")):
        return True
    has_clips = next(path.rglob("*.mp4"), None) is not None
    return has_clips and (listing_of(path) is not None or next(path.rglob("*.txt"), None) is not None)


def _tars(pattern: str) -> list[Path]:
    """The tars that a name or pattern with ``{000..009}`` and ``*`` stands for."""
    return sorted({Path(found) for one in _expanded(pattern) for found in glob.glob(one) if found.endswith(".tar")})


def _expanded(pattern: str) -> Iterator[str]:
    """A pattern without braces: ``{03..12}`` counts, with as many digits as its ends have; ``{a,b}`` chooses."""
    found = re.search(r"\{(\d+)\.\.(\d+)\}|\{([^{}]*,[^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    if found[1] is None:
        choices = found[3].split(",")
    else:
        choices = [f"{number:0{len(found[1])}}" for number in range(int(found[1]), int(found[2]) + 1)]
    for choice in choices:
        yield from _expanded(pattern[: found.start()] + choice + pattern[found.end() :])


# ---- the index, part by part ----


@dataclass(frozen=True)
class Part:
    """A piece of a set that is looked at in one go: what it is called, what it is now, and what finds its clips."""

    name: str
    state: str
    look: Callable[..., list[dict[str, Any]]]
    arguments: tuple[Any, ...]

    @property
    def file(self) -> str:
        """Where its clips are kept: under another name once it changed, and never under that of another part."""
        whose = f"{re.sub(r'[^A-Za-z0-9_-]', '_', self.name)}-{hashlib.sha256(self.name.encode()).hexdigest()[:8]}"
        digest = hashlib.sha256(f"{VERSION} {self.name} {self.state}".encode()).hexdigest()[:16]
        return f"{whose}-{digest}.parquet"


def parts_of(source: Path) -> tuple[Path, list[Part]]:
    """The folder of a set, and its parts in order.

    Raises:
        DataError: there is none.
    """
    tars = sorted(source.glob("*.tar")) if source.is_dir() else _tars(str(source))
    if tars:
        folder = source if source.is_dir() else Path(os.path.commonpath([tar.parent for tar in tars]))
        return folder, [_tar_part(folder, tar) for tar in tars]
    if not source.is_dir():
        raise DataError(f"{source}: no such tars; give a folder, or a pattern such as webvid/{{00000..00009}}.tar")
    clips = [(file, text_of(said)) for file, said in listed_clips(source)]
    _refuse_twice([file for file, _ in clips], source)
    return source, [_folder_part(source, begin, clips[begin : begin + CHUNK]) for begin in range(0, len(clips), CHUNK)]


def _refuse_twice(files: list[str], source: Path) -> None:
    seen: set[str] = set()
    for file in files:
        if file in seen:
            raise DataError(f"{source}: {file} is listed twice; leave one line for each clip")
        seen.add(file)


def _tar_part(folder: Path, tar: Path) -> Part:
    state = tar.stat()
    name = tar.relative_to(folder).as_posix()
    return Part(name, f"{state.st_size} {state.st_mtime_ns}", look_at_tar, (str(tar), name))


def _folder_part(folder: Path, begin: int, clips: list[tuple[str, str]]) -> Part:
    states = []
    for file, caption in clips:
        try:
            state = (folder / file).stat()
            states.append((file, caption, state.st_size, state.st_mtime_ns))
        except OSError:
            states.append((file, caption, 0, 0))
    content = hashlib.sha256(json.dumps(states).encode()).hexdigest()
    return Part(f"clips-{begin // CHUNK:06}", content, look_at_files, (str(folder), clips))


def look_at_tar(path: str, name: str) -> list[dict[str, Any]]:
    """The clips of a tar as rows of an index; what is wrong with one stands in its ``problem``."""
    rows: list[dict[str, Any]] = []
    stem = name.removesuffix(".tar")
    try:
        with tarfile.open(path, "r:") as tar:
            for key, members in _samples(tar):
                if "mp4" in members:
                    mp4, text = members["mp4"], _text_in(tar, members)
                    rows.append(clip_row(f"{stem}/{key}", name, mp4.offset_data, mp4.size, text, tar.extractfile(mp4)))
            _refuse_cut(path)
    except (tarfile.TarError, OSError, EOFError) as error:
        said = " ".join(str(error).split())
        at = f" after {rows[-1]['key']}" if rows else ""
        broken = {"key": stem, "shard": name, "problem": f"the tar is damaged{at} ({said}); what comes after is left out"}
        rows.append({**broken, "mp4_offset": 0, "mp4_size": 0, "caption": ""})
    return rows


def _refuse_cut(path: str) -> None:
    """Look for the zeros that end every tar: one that is cut between two members reads like a shorter one.

    Raises:
        ReadError: they are not there.
    """
    with open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - tarfile.BLOCKSIZE))
        if file.read().strip(b"\0"):
            raise tarfile.ReadError("unexpected end of data")


def _samples(tar: tarfile.TarFile) -> Iterator[tuple[str, dict[str, tarfile.TarInfo]]]:
    """The samples of a tar: neighbours with the same name up to its first dot."""
    key, members = "", dict[str, tarfile.TarInfo]()
    for member in tar:
        if not member.isfile():
            continue
        folder, _, file = member.name.rpartition("/")
        stem, _, extension = file.partition(".")
        this = f"{folder}/{stem}".lstrip("/")
        if this != key and members:
            yield key, members
            members = {}
        key = this
        members[extension.lower()] = member
        vars(tar)["members"].clear()  # or a tar of a million members keeps them all
    if members:
        yield key, members


def _text_in(tar: tarfile.TarFile, members: dict[str, tarfile.TarInfo]) -> str:
    """The text of a sample; empty where there is none that can be read."""
    for extension in ("json", "txt"):
        file = tar.extractfile(members[extension]) if extension in members else None
        if file is None:
            continue
        try:
            text = file.read().decode("utf-8")
            said = json.loads(text) if extension == "json" else {"caption": text}
            found = text_of(said) if isinstance(said, dict) else ""
        except ValueError:
            found = ""
        if found:
            return found
    return ""


def look_at_files(folder: str, clips: list[tuple[str, str]]) -> list[dict[str, Any]]:
    """The clips of a folder as rows of an index; what is wrong with one stands in its ``problem``."""
    rows = []
    for file, caption in clips:
        path, key = Path(folder) / file, file.removesuffix(".mp4")
        if path.is_file():
            rows.append(clip_row(key, file, 0, path.stat().st_size, caption, str(path)))
        else:
            row = {"key": key, "shard": file, "mp4_offset": 0, "mp4_size": 0, "caption": caption}
            rows.append({**row, "problem": "is not there"})
    return rows


def read_parts(folder: Path, parts: Sequence[Part]) -> pa.Table:
    """The clips of all parts (:data:`recipes.plain_clips.COLUMNS`); parts that were not looked at yet are now, once for all.

    Raises:
        DataError: there is no room to keep what was seen.
    """
    index = index_folder(folder)
    with FileLock(index / "lock"):  # the processes of a node come here together: one looks, the others wait
        _make([part for part in parts if not (index / part.file).is_file()], index)
    tables = [pq.read_table(index / part.file, schema=COLUMNS) for part in parts]
    return pa.concat_tables(tables) if tables else COLUMNS.empty_table()


def index_folder(folder: Path) -> Path:
    """Where the parts are kept: beside the clips, else in the user's cache."""
    beside = folder / FOLDER
    try:
        beside.mkdir(exist_ok=True)
        if os.access(beside, os.W_OK):
            return beside
    except OSError:
        pass
    digest = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]
    elsewhere = Path.home() / ".cache" / "animeshooter" / "indexes" / f"{folder.resolve().name}-{digest}"
    try:
        elsewhere.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{elsewhere}: cannot keep an index of {folder} there ({error.strerror}); make room there") from None
    return elsewhere


def _make(missing: Sequence[Part], index: Path) -> None:
    """Look at parts and keep what is seen, each as soon as it is done."""
    if not missing:
        return
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    bar = tqdm(total=len(missing), desc=f"looking at the clips once, for {index}", unit="part", disable=None, file=sys.stderr)
    with bar:
        if len(missing) < SPREAD or cores < 2:
            for part in missing:
                _keep(part, part.look(*part.arguments), index)
                bar.update()
            return
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(cores, len(missing)), mp_context=context) as pool:
            for part, rows in zip(missing, pool.map(_look, missing)):
                _keep(part, rows, index)
                bar.update()


def _look(part: Part) -> list[dict[str, Any]]:
    return part.look(*part.arguments)


def _keep(part: Part, rows: list[dict[str, Any]], index: Path) -> None:
    """Write a part in one rename, and remove what was seen of it when it was another."""
    target = index / part.file
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        pq.write_table(pa.Table.from_pylist(rows, schema=COLUMNS), partial)
        partial.rename(target)
    except (OSError, pa.ArrowException) as error:
        partial.unlink(missing_ok=True)
        raise DataError(f"{target}: cannot be written ({error}); make room there") from None
    for old in index.glob(f"{target.name[:-25]}-*.parquet"):
        if old != target and len(old.name) == len(target.name):
            old.unlink(missing_ok=True)
