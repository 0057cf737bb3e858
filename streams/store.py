"""Reading a dataset by byte range, wherever it lies: a folder, ``https://``, ``s3://``, ``hf://``, or any ``fsspec`` address.

::

    store = Store.open("https://example.org/animeshooter", StoreOptions(cache=Path("/scratch/cache")))
    index = store_index(store, "train")
    store.prefetch([("shots/train-00000.tar", offset, size), ...])  # in the order in which they will be read
    clip = store.range("shots/train-00000.tar", offset, size)

A folder is read with ``pread``. Anything else over connections that are kept: hinted ranges are merged with their neighbours
and read ahead in threads, within a number of bytes; they may be kept in a cache on local disk that the processes of a node
share; what breaks, stalls or is refused for the moment is tried again, with growing pauses; what is refused for good is not.
A store pickles as its address and settings and opens its connections anew in each process.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from animeshooter_records import AUDIO_INDEX_SCHEMA, INDEX_SCHEMA, SCHEMA_VERSION, SPLITS, DataError
from streams.cache import Ahead, DiskCache, Range, merged
from streams.http import HttpFiles, HubFiles, commit_of
from streams.sources import LocalFiles, OtherFiles, Patience, S3Files, Source, public
from streams.watch import BadSamples, Watchdog, reading

__all__ = ["BadSamples", "Store", "StoreOptions", "Watchdog", "store_index", "store_manifest", "store_splits"]

REPETITIVE = ("story", "video", "shard", "licence")
"""Columns of words that recur from row to row."""

SCHEMAS = {"shots": INDEX_SCHEMA, "audio": AUDIO_INDEX_SCHEMA}
"""The index of each config that has one."""


@dataclass(frozen=True)
class StoreOptions:
    """How a store reads. All but ``files`` and ``verify`` concern stores that are not folders.

    Args:
        cache: folder on local disk to keep what was read, shared by the processes of a node; None for none.
        cache_bytes: what that folder may grow to.
        ahead_bytes: memory of each process for what is read ahead.
        threads: requests under way at a time in each process.
        gap: bytes between two ranges that are read in order to read both at once.
        request_bytes: of one request, unless a single range is longer.
        timeout: seconds of silence after which a connection counts as lost.
        tries: attempts at a range; after ``wait`` seconds, doubled every time up to ``longest_wait``, with jitter.
        wait: see ``tries``.
        longest_wait: see ``tries``; a server that asks for a longer pause (Retry-After) ends the run.
        verify: check what is read against the SHA-256 given to :meth:`Store.range`.
        files: descriptors of shards kept open.
    """

    cache: Path | None = None
    cache_bytes: int = 20 << 30
    ahead_bytes: int = 64 << 20
    threads: int = 4
    gap: int = 256 << 10
    request_bytes: int = 8 << 20
    timeout: float = 30.0
    tries: int = 6
    wait: float = 0.5
    longest_wait: float = 60.0
    verify: bool = False
    files: int = 64

    def __post_init__(self) -> None:
        least = {"cache_bytes": 1, "ahead_bytes": 1, "threads": 1, "gap": 0, "request_bytes": 1, "tries": 1, "files": 1}
        for name, value in least.items():
            if getattr(self, name) < value:
                raise DataError(f"store: {name} must be at least {value}, not {getattr(self, name)}")
        if not (self.timeout > 0 and self.wait >= 0 and self.longest_wait >= 0):
            raise DataError("store: timeout must be more than 0 seconds, the waits at least 0")

    @property
    def patience(self) -> Patience:
        """How often and how long to try."""
        return Patience(self.tries, self.wait, self.longest_wait)


class _Live:
    """What a store holds in one process: connections, threads, open files."""

    def __init__(self, store: Store) -> None:
        options = store.options
        self.pid = os.getpid()
        self.source = store._source()
        self.told: set[Range] = set()
        self.cache = DiskCache(options.cache, options.cache_bytes) if options.cache else None
        self.ahead = Ahead(
            partial(store._fetch, live=self), options.ahead_bytes, options.threads, options.gap, options.request_bytes
        )


class Store:
    """A dataset directory to read from; made by :meth:`open`.

    Attributes:
        name: its address as messages show it: no password, no key.
        local: the folder, where it is one.
        revision: the commit, where it is a dataset of the Hub.
        options: how it reads.
    """

    def __init__(self, address: str, options: StoreOptions, local: Path | None, revision: str | None) -> None:
        self._address, self.options, self.local, self.revision = address, options, local, revision
        self.name = str(local) if local is not None else public(address)
        self._files: dict[str, dict[str, Any]] | None = None
        self._sizes: dict[str, int] = {}
        self._clear()

    @classmethod
    def open(cls, directory: str | Path, options: StoreOptions | None = None) -> Store:
        """Name a dataset directory. Only for the Hub this asks a server: which commit the revision stands for.

        Args:
            directory: a folder, ``http(s)://…``, ``s3://BUCKET/PATH``, ``hf://datasets/ORG/NAME[@REVISION]``, or an address
                that ``fsspec`` knows.
            options: how to read.

        Raises:
            DataError: no such address can be opened; the Hub has no such dataset, or does not show it.
        """
        options, text = options or StoreOptions(), str(directory)
        if isinstance(directory, Path) or "://" not in text or text.startswith("file://"):
            path = Path(text.removeprefix("file://"))
            return cls(str(path), options, path, None)
        if not text.startswith("hf://"):
            return cls(text.rstrip("/") if "?" not in text else text, options, None, None)
        found = re.fullmatch(r"hf://datasets/([\w.-]+/[\w.-]+)(?:@([^?#]+?))?/?", text)
        if not found:
            raise DataError(f"{public(text)}: not the address of a dataset; write hf://datasets/ORG/NAME[@REVISION]")
        commit = commit_of(found[1], found[2], options.timeout, options.patience)
        return cls(f"hf://datasets/{found[1]}@{commit}", options, None, commit)

    def _clear(self) -> None:
        self._live: _Live | None = None
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_live", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def _source(self) -> Source:
        options, connections = self.options, self.options.threads + 4
        if self.local is not None:
            return LocalFiles(self.local, self._sizes, options.files)
        scheme = self._address.partition("://")[0].lower()
        if scheme in ("http", "https"):
            return HttpFiles(self._address, self._sizes, options.timeout, connections)
        if scheme == "hf":
            repo, _, commit = self._address.removeprefix("hf://datasets/").partition("@")
            return HubFiles(repo, commit, self._sizes, options.timeout, connections)
        if scheme == "s3":
            return S3Files(self._address, self._sizes, options.files)
        return OtherFiles(self._address, self._sizes)

    def _running(self) -> _Live:
        live = self._live
        if live is not None and live.pid == os.getpid():
            return live
        if live is not None:  # after a fork: threads and connections stayed behind, and so may the holder of the lock
            self._clear()
        with self._lock:
            if self._live is None:
                self._live = _Live(self)
            return self._live

    # ---- reading ----

    def range(self, name: str, offset: int, size: int, sha256: str | None = None) -> bytes:
        """Bytes ``offset`` to ``offset + size`` of a file.

        Args:
            name: as the manifest has it, such as ``shots/train-00000.tar``.
            offset: in bytes.
            size: in bytes.
            sha256: what the bytes must hash to; looked at where the options say ``verify``.

        Raises:
            DataError: the file is missing, refused, shorter or another than the manifest says; its server does not come to
                its senses; the bytes do not hash to ``sha256``.
        """
        live, name = self._running(), _checked(name)
        if size < 0 or offset < 0:
            raise DataError(f"{self.name}/{name}: no such range ({offset}, {size}); build the index again")
        with reading(f"{self.name}/{name} at byte {offset} ({size} bytes)"):
            if self.local is not None:
                self.files()
                body = live.source.get(name, offset, size)
            else:
                hinted = live.ahead.take(name, offset, size) if size else b""
                body = self._fetch(name, offset, size) if hinted is None else hinted
        if sha256 and self.options.verify and hashlib.sha256(body).hexdigest() != sha256:
            raise DataError(
                f"{self.name}/{name}: bytes {offset} to {offset + size} are not what the index says (SHA-256 differs); "
                "build or download it again"
            )
        return body

    def prefetch(self, ranges: Sequence[Range]) -> None:
        """Say which ranges will be read next, in this order; never fails, and reads no more than ``ahead_bytes``."""
        live = self._running()
        safe = [(name, offset, size) for name, offset, size in ranges if _is_inside(name) and offset >= 0]
        if not isinstance(live.source, LocalFiles):
            live.ahead.hint(safe)
            return
        fresh, live.told = [each for each in safe if each not in live.told], set(safe)
        with suppress(DataError, OSError):  # whoever reads the range is told
            for block in merged(fresh, self.options.gap, self.options.request_bytes):
                live.source.will_need(block.name, block.start, block.size)

    def read(self, name: str) -> bytes:
        """A whole small file, not from the cache.

        Raises:
            DataError: as :meth:`range`.
        """
        live, name = self._running(), _checked(name)
        with reading(f"{self.name}/{name}"):
            size = self._size(name)
            return self._patiently(name, 0, size, live.source.get) if size else b""

    def files(self) -> dict[str, dict[str, Any]]:
        """What the manifest says of each file (``bytes``, ``sha256``); empty where there is no manifest."""
        if self._files is None:
            with self._lock:
                if self._files is None:
                    try:
                        listed = json.loads(self.read("manifest.json")).get("files", {})
                    except (DataError, ValueError, AttributeError) as error:
                        if isinstance(error, DataError) and self.local is None and ": not there (" not in str(error):
                            raise
                        listed = {}
                    known = {name: what for name, what in listed.items() if isinstance(what, dict) and "bytes" in what}
                    self._sizes.update({name: int(what["bytes"]) for name, what in known.items()})
                    self._files = known
        return self._files

    def close(self) -> None:
        """Let connections, files and threads go; the store may be used again."""
        live, self._live = self._live, None
        if live is not None and live.pid == os.getpid():
            live.ahead.close()
            live.source.close()

    def _size(self, name: str) -> int:
        found: list[int] = []

        def ask(offset: int, size: int) -> bytes:
            found.append(self._running().source.size(name))
            return b""

        self._patiently(name, 0, 0, lambda name, offset, size: ask(offset, size))
        return found[-1]

    def _patiently(self, name: str, offset: int, size: int, get: Callable[[str, int, int], bytes]) -> bytes:
        where = f"{self.name}/{name}"
        return self.options.patience.run(where, offset, size, lambda start, length: get(name, start, length))

    def _fetch(self, name: str, offset: int, size: int, live: _Live | None = None) -> bytes:
        """A range from the cache and, what is not there, from the source; ``live`` is given by threads that outlive a close."""
        live = live or self._running()
        known = self.files().get(name, {})
        with reading(f"{self.name}/{name} at byte {offset} ({size} bytes)"):
            total, content = self._sizes.get(name, 0), str(known.get("sha256") or "")
            if live.cache is None or not content or offset + size > total:
                return self._patiently(name, offset, size, live.source.get)
            most = self.options.request_bytes

            def get(start: int, length: int) -> bytes:
                return self._patiently(name, start, length, live.source.get)

            return live.cache.range(content, total, offset, size, get, most)


def _is_inside(name: str) -> bool:
    return not (PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts or "\\" in name or "\0" in name)


def _checked(name: str) -> str:
    if not _is_inside(name):
        raise DataError(f"{name!r}: leads out of the dataset directory; build the index again")
    return name


# ---- manifest and index ----


def store_manifest(store: Store) -> dict[str, Any]:
    """The manifest of a dataset, as :func:`animeshooter_dataset.read_manifest` gives it for a folder.

    Raises:
        DataError: there is none, or it is of a schema this version cannot read.
    """
    where = f"{store.name}/manifest.json"
    if store.local is not None and not (store.local / "manifest.json").is_file():
        raise DataError(f"{store.name}: not a dataset directory (no manifest.json); make one with `animeshooter build`")
    try:
        manifest = json.loads(store.read("manifest.json"))
        version = str(manifest["schema_version"])
    except DataError as error:
        if ": not there (" in str(error):
            raise DataError(f"{store.name}: not a dataset directory (no manifest.json); check the address") from None
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{where}: not a manifest ({error}); build the dataset again") from None
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise DataError(f"{where}: schema {version}, this version reads {SCHEMA_VERSION}; build the dataset again")
    return manifest


def store_splits(store: Store, config: str = "shots") -> list[str]:
    """The splits that have an index of a config."""
    names = {split: _index_name(config, split) for split in SPLITS}
    if store.local is not None:
        return [split for split, name in names.items() if (store.local / name).is_file()]
    return [split for split, name in names.items() if name in store.files()]


def _index_name(config: str, split: str) -> str:
    return f"index/{split}.parquet" if config == "shots" else f"index/{config}-{split}.parquet"


def store_index(store: Store, split: str = "train", columns: Sequence[str] | None = None, config: str = "shots") -> pa.Table:
    """The shard index of a split, as :func:`animeshooter_dataset.read_index` gives it for a folder.

    With a cache it is kept there uncompressed and mapped into memory: processes of a node share its pages, and columns
    that nobody looks at cost nothing. It is checked against the manifest's SHA-256.

    Args:
        store: the dataset.
        split: which.
        columns: only these, those of :data:`REPETITIVE` as dictionaries; None for all, as they are.
        config: "shots" or "audio".

    Raises:
        DataError: no dataset, no such split, an index of another schema or of another dataset.
    """
    name, schema = _index_name(config, split), SCHEMAS[config]
    where, listed = f"{store.name}/{name}", store.files()
    present = store_splits(store, config)
    if not listed:
        store_manifest(store)  # says if there is no dataset at all
    if split not in present and (store.local is not None or listed):
        raise DataError(f"{store.name}: no split '{split}' of {config}; it has {', '.join(present) or 'none'}")
    content = str(listed.get(name, {}).get("sha256") or "")
    try:
        if content and store.options.cache is not None:
            mapped = _mapped_index(store, name, content, schema)
            if mapped is not None:
                return mapped.select(columns) if columns is not None else mapped
        if columns is not None:
            schema = pa.schema([_compact(schema.field(column)) for column in columns])
        with _index_file(store, name, content) as path:
            return pq.read_table(path, schema=schema, pre_buffer=False)
    except (pa.ArrowException, OSError, KeyError) as error:
        said = str(error).splitlines()[0]
        raise DataError(f"{where}: not readable as a shard index ({said}); build the dataset again") from None


def _compact(column: pa.Field) -> pa.Field:
    """Words that recur from row to row are kept once: at 2.2 M rows that saves a tenth of the memory and half of the time."""
    return column.with_type(pa.dictionary(pa.int32(), pa.string())) if column.name in REPETITIVE else column


@contextmanager
def _index_file(store: Store, name: str, content: str) -> Iterator[Path]:
    """The index as a file, after a look at whether it is the manifest's; fetched into a temporary one if need be."""
    with ExitStack() as stack:
        if store.local is not None:
            path = store.local / name
            with open(path, "rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest() if content else ""
        else:
            copy = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".parquet"))
            size, step, digest, path = store._size(name), store.options.request_bytes, hashlib.sha256(), Path(copy.name)
            for start in range(0, size, step):
                body = store._fetch(name, start, min(step, size - start))
                digest.update(body)
                copy.write(body)
            copy.flush()
            found = digest.hexdigest() if content else ""
        if found != content:
            raise DataError(
                f"{store.name}/{name}: not the index that the manifest lists (SHA-256 differs): of another dataset, or "
                "damaged; build or download the dataset again"
            )
        yield path


def _mapped_index(store: Store, name: str, content: str, schema: pa.Schema) -> pa.Table | None:
    """The index mapped from the cache, where it is put first if need be; None where the cache does not take it."""
    cache = store._running().cache
    if cache is None:
        return None
    key = f"{content} {hashlib.sha256(schema.to_string().encode()).hexdigest()}"
    path = cache.path(key, "index.arrow")
    for _ in range(2):
        with suppress(OSError, pa.ArrowException):
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            with suppress(OSError):
                os.utime(path)
            return table
        with _index_file(store, name, content) as packed:
            source = pq.ParquetFile(packed, memory_map=True)
            with cache.making(key, "index.arrow", _unpacked(source)) as partial:
                if partial is None:
                    return None
                _write_arrow(source, partial, schema)
    return None


def _unpacked(source: pq.ParquetFile) -> int:
    return sum(source.metadata.row_group(group).total_byte_size for group in range(source.num_row_groups))


def _write_arrow(source: pq.ParquetFile, path: Path, schema: pa.Schema) -> None:
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in source.iter_batches(1 << 18):
            columns = [
                batch.column(field.name).cast(field.type)
                if field.name in batch.schema.names
                else pa.nulls(len(batch), field.type)
                for field in schema
            ]
            writer.write_batch(pa.record_batch(columns, schema=schema))
