"""A bounded cache of byte ranges on local disk, shared by the processes of a node, and reading ahead in memory."""

from __future__ import annotations

import hashlib
import os
import threading
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from streams.watch import check_stopped

CHUNK = 1 << 20
"""Bytes of a file that are cached as one."""
ROOM = 0.9
"""Share of the limit to which a sweep empties the folder."""
LEFTOVER = 600.0
"""Seconds after which an unfinished file is of a process that is no more."""
BEHIND = 64
"""Hinted ranges by which readers may overtake one another before what was read ahead counts as passed over."""

IDLE = 5.0
"""Seconds after which a thread that has no room to read into ends."""

Range = tuple[str, int, int]


class DiskCache:
    """Chunks of files under the hash of their content, so that a changed dataset never meets old bytes.

    A chunk is written beside its place and renamed, and carries a checksum: a crash or a flipped bit costs a download and no
    more. What was not used longest goes first. The folder's limit holds up to what the processes write between two looks
    at it, a 256th of it each. A disk that cannot be written is said once, and read on from.

    Args:
        folder: made if need be; may hold only the cache.
        limit: bytes.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit, self.writable = Path(folder), limit, True
        self._step, self._written, self._lock = max(limit // 256, CHUNK), limit, threading.Lock()
        self._claims, self._claimed = threading.Condition(), set[tuple[str, int]]()

    def path(self, content: str, part: int | str) -> Path:
        """Where a part of a content lies."""
        name = hashlib.sha256(content.encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}-{part}"

    def get(self, content: str, part: int, size: int) -> bytes | None:
        """A chunk of ``size`` bytes; None if it is not there, or damaged."""
        path = self.path(content, part)
        try:
            blob = path.read_bytes()
        except OSError:
            return None
        body, check = blob[:size], blob[size:]
        if len(body) != size or check != zlib.crc32(body).to_bytes(4, "big"):
            with suppress(OSError):
                path.unlink()
            return None
        with suppress(OSError):
            os.utime(path)
        return body

    def put(self, content: str, part: int, body: bytes) -> None:
        """Keep a chunk; does nothing where that is not possible."""
        with self.making(content, part, len(body)) as partial:
            if partial is not None:
                partial.write_bytes(b"".join((body, zlib.crc32(body).to_bytes(4, "big"))))

    def range(self, content: str, total: int, offset: int, size: int, fetch: Callable[[int, int], bytes], most: int) -> bytes:
        """A range of a content of ``total`` bytes: what is not here is fetched, kept, and fetched once by all threads.

        Args:
            content: its hash.
            total: its bytes.
            offset: of the range.
            size: of the range, at least 1.
            fetch: reads (offset, size).
            most: bytes of one fetch, rounded down to whole chunks.
        """
        first, last = offset // CHUNK, (offset + size - 1) // CHUNK
        with self._claimed_by_me({(content, at) for at in range(first, last + 1)}):
            found = {at: self.get(content, at, min(CHUNK, total - at * CHUNK)) for at in range(first, last + 1)}
            for run in _runs([at for at, chunk in found.items() if chunk is None], max(1, most // CHUNK)):
                start = run[0] * CHUNK
                body = fetch(start, min((run[-1] + 1) * CHUNK, total) - start)
                for at in run:
                    chunk = body[at * CHUNK - start : (at + 1) * CHUNK - start]
                    self.put(content, at, chunk)
                    found[at] = chunk
        chunks = [chunk for chunk in found.values() if chunk is not None]
        if first == last:
            return chunks[0][offset - first * CHUNK : offset - first * CHUNK + size]
        chunks[-1] = chunks[-1][: offset + size - last * CHUNK]
        chunks[0] = chunks[0][offset - first * CHUNK :]
        return b"".join(chunks)

    @contextmanager
    def _claimed_by_me(self, chunks: set[tuple[str, int]]) -> Iterator[None]:
        """Keep other threads of this process from chunks; all are claimed at once, so that nobody waits in a circle."""
        with self._claims:
            while not chunks.isdisjoint(self._claimed):
                check_stopped()
                self._claims.wait(0.2)
            self._claimed |= chunks
        try:
            yield
        finally:
            with self._claims:
                self._claimed -= chunks
                self._claims.notify_all()

    @contextmanager
    def making(self, content: str, part: int | str, size: int) -> Iterator[Path | None]:
        """A path to write about ``size`` bytes to, which then takes its place at once; None if that is not possible."""
        path = self.path(content, part)
        partial = path.with_name(f"{path.name}.{os.getpid()}-{threading.get_ident()}.part")
        if not self.writable or size > self.limit:
            yield None
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._count(size)
            yield partial
            os.replace(partial, path)
        except OSError as error:
            with suppress(OSError):
                partial.unlink()
            if self.writable:
                self.writable = False
                warnings.warn(
                    f"{self.folder}: cannot write ({error.strerror or error}); going on without caching", stacklevel=4
                )

    def _count(self, size: int) -> None:
        with self._lock:
            self._written += size
            due = self._written >= self._step
            if due:
                self._written = 0
        if due:
            self.sweep()

    def sweep(self) -> None:
        """Remove leftovers of processes that died, and what was not used longest, down to the limit."""
        with suppress(Timeout), FileLock(self.folder / "sweep.lock", timeout=0):
            files, now = [], time.time()
            for folder in self.folder.glob("[0-9a-f][0-9a-f]"):
                with suppress(OSError), os.scandir(folder) as entries:
                    for entry in entries:
                        with suppress(OSError):
                            stat = entry.stat()
                            if entry.name.endswith(".part") and now - stat.st_mtime > LEFTOVER:
                                os.unlink(entry.path)
                            else:
                                files.append((stat.st_mtime, stat.st_size, entry.path))
            total = sum(size for _, size, _ in files)
            if total <= self.limit - self._step:
                return
            for _, size, path in sorted(files):
                if total <= self.limit * ROOM - self._step:
                    break
                with suppress(OSError):
                    os.unlink(path)
                    total -= size


def _runs(numbers: Sequence[int], most: int) -> list[list[int]]:
    """Consecutive numbers together, at most ``most``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1 and len(runs[-1]) < most:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


@dataclass(eq=False)
class Block:
    """A stretch of a file that is read at once; ``wanted`` are the hinted ranges in it, by when they will be read."""

    name: str
    start: int
    end: int
    wanted: dict[tuple[int, int], int] = field(default_factory=dict)
    state: str = "queued"  # queued, running, done, failed
    body: bytes = b""

    @property
    def size(self) -> int:
        """Bytes."""
        return self.end - self.start


def merged(ranges: Sequence[Range], gap: int, most: int, first: int = 0) -> list[Block]:
    """Blocks of neighbouring ranges, in the order in which their first range will be read.

    Args:
        ranges: (name, offset, size) in reading order.
        gap: bytes that may lie between two ranges of a block.
        most: bytes of a block, unless a single range is longer.
        first: the number of the first range.
    """
    blocks: list[Block] = []
    numbered = sorted((name, offset, size, number) for number, (name, offset, size) in enumerate(ranges, first) if size > 0)
    for name, offset, size, number in numbered:
        last = blocks[-1] if blocks else None
        end = offset + size
        if last and last.name == name and offset <= last.end + gap and max(end, last.end) - last.start <= most:
            last.end = max(last.end, end)
        else:
            last = Block(name, offset, end)
            blocks.append(last)
        last.wanted[offset, size] = number
    return sorted(blocks, key=lambda block: min(block.wanted.values()))


class Ahead:
    """Reads hinted ranges in background threads, at most ``limit`` bytes at a time in memory, in the order of the hints.

    A reader that is faster than the threads reads the whole block itself, which may add one block a reader to the limit.

    Args:
        fetch: reads (name, offset, size); its errors are left to whoever asks for the range itself.
        limit: bytes in memory, of blocks read and under way.
        threads: blocks under way at a time.
        gap: see :func:`merged`.
        most: bytes of a block.
    """

    def __init__(self, fetch: Callable[[str, int, int], bytes], limit: int, threads: int, gap: int, most: int) -> None:
        self.fetch, self.limit, self.threads, self.gap, self.most = fetch, limit, threads, gap, min(most, max(limit, 1))
        self._change, self._queue, self._blocks = threading.Condition(), deque[Block](), dict[str, list[Block]]()
        self._held, self._hinted, self._at, self._running, self._closed = 0, 0, -1, 0, False

    def hint(self, ranges: Sequence[Range]) -> None:
        """Say what will be read next, in this order; ranges that are hinted already are left as they are."""
        with self._change:
            fresh = [(name, offset, size) for name, offset, size in ranges if self._find(name, offset, size) is None]
            for block in merged(fresh, self.gap, self.most, self._hinted):
                self._blocks.setdefault(block.name, []).append(block)
                self._queue.append(block)
            self._hinted += len(fresh)
            self._awake()

    def take(self, name: str, offset: int, size: int) -> bytes | None:
        """A hinted range, waited for if it is under way; None if it was not hinted, or its block cannot be read.

        Raises:
            DataError: a watchdog ended the wait.
        """
        with self._change:
            block = self._find(name, offset, size)
            if block is None:
                return None
            mine = block.state == "queued"
            if mine:
                self._start(block)
        if mine:
            self._read(block)
        with self._change:
            while block.state == "running":
                check_stopped()
                self._change.wait(0.2)
            self._at = max(self._at, block.wanted.pop((offset, size), self._at))
            body = block.body[offset - block.start : offset - block.start + size] if block.state == "done" else None
            if not block.wanted:
                self._drop(block)
            self._awake()
            return body

    def close(self) -> None:
        """Forget all and let the threads end."""
        with self._change:
            self._closed = True
            self._queue.clear()
            self._blocks.clear()
            self._change.notify_all()

    def _awake(self) -> None:
        while self._running < min(self.threads, len(self._queue)) and not self._closed:
            self._running += 1
            threading.Thread(target=self._work, name="read-ahead", daemon=True).start()
        self._change.notify_all()

    def _find(self, name: str, offset: int, size: int) -> Block | None:
        for block in self._blocks.get(name, ()):
            if block.start <= offset and offset + size <= block.end and (offset, size) in block.wanted:
                return block
        return None

    def _drop(self, block: Block) -> None:
        if block in self._blocks.get(block.name, ()):
            self._blocks[block.name].remove(block)
            self._held -= block.size if block.state == "done" else 0
            if not self._blocks[block.name]:
                del self._blocks[block.name]

    def _drop_passed(self) -> None:
        """Blocks that readers went past will not be asked for again: a sample was left out, or a stream ended."""
        passed = [
            block
            for blocks in self._blocks.values()
            for block in blocks
            if block.state != "running" and max(block.wanted.values()) < self._at - BEHIND
        ]
        for block in passed:
            self._drop(block)

    def _next(self) -> Block | None:
        """The next block to read, marked as under way; None when there is nothing left. Called with the lock."""
        while self._queue and not self._closed:
            block = self._queue[0]
            if block not in self._blocks.get(block.name, ()) or block.state != "queued":
                self._queue.popleft()  # read by somebody directly
            elif self._held and self._held + block.size > self.limit:
                self._drop_passed()
                full = self._held and self._held + block.size > self.limit
                if full and not self._change.wait(IDLE):
                    return None
            else:
                self._queue.popleft()
                self._start(block)
                return block
        return None

    def _start(self, block: Block) -> None:
        block.state = "running"
        self._held += block.size

    def _read(self, block: Block) -> None:
        try:
            body = self.fetch(block.name, block.start, block.size)
        except Exception:  # told to whoever asks for the range itself
            body = b""
        with self._change:
            block.body, block.state = body, "done" if len(body) == block.size else "failed"
            if block.state == "failed":
                self._held -= block.size
            self._change.notify_all()

    def _work(self) -> None:
        while True:
            with self._change:
                block = self._next()
                if block is None:
                    self._running -= 1
                    return
            self._read(block)
