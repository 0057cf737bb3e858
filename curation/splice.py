"""Shards without some of their samples: what stays is copied byte by byte, no sample is unpacked or packed again."""

from __future__ import annotations

import json
import tarfile
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from animeshooter_dataset import DataError
from curation.pack import Hashed

PIECE = 2**20
"""Bytes of a shard that are copied at a time."""


@dataclass
class Ranges:
    """Byte ranges that go from a file, added from its start to its end; adjacent ones become one."""

    starts: list[int] = field(default_factory=list)
    ends: list[int] = field(default_factory=list)

    def add(self, start: int, end: int) -> None:
        """Add the range from ``start`` to ``end``, which is exclusive."""
        if self.ends and self.ends[-1] == start:
            self.ends[-1] = end
        else:
            self.starts.append(start)
            self.ends.append(end)

    def moved(self, offset: int) -> int:
        """Where the byte at ``offset``, which stays, comes to lie."""
        before = bisect_left(self.starts, offset)
        return offset - sum(self.ends[:before]) + sum(self.starts[:before])

    def between(self, end: int) -> Iterator[tuple[int, int]]:
        """What stays of the file up to ``end``, as ranges."""
        yield from ((start, stop) for start, stop in zip([0, *self.ends], [*self.starts, end]) if start < stop)


def records_of(tar: Path) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Every sample of a shard: the bytes from which to which it lies, and its record; media are not read.

    Raises:
        DataError: the tar is damaged, or a sample has no record.
    """
    key, start, end, told = None, 0, 0, None
    try:
        with tarfile.open(tar, "r:") as archive:
            while entry := archive.next():
                archive.members.clear()  # type: ignore[attr-defined] # tarfile would keep an object an entry
                stem, _, member = entry.name.partition(".")
                if stem != key:
                    if key is not None:
                        yield start, end, _record(tar, key, told)
                    key, start, told = stem, entry.offset, None
                end = entry.offset_data + -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
                blob = archive.extractfile(entry) if member == "json" else None
                told = blob.read() if blob else told
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{tar}: not a whole tar ({error}); build or download it again") from None
    if key is not None:
        yield start, end, _record(tar, key, told)


def _record(tar: Path, key: str, text: bytes | None) -> dict[str, Any]:
    try:
        found = json.loads(text or b"")
        found["video"]
    except (ValueError, KeyError, TypeError):
        raise DataError(f"{tar}: {key} has no record that tells its video; build or download it again") from None
    return found


def copy_without(tar: Path, ranges: Ranges, end: int, target: Hashed) -> dict[str, Any]:
    """Write a shard without some ranges; returns the file's line in the manifest."""
    try:
        with tar.open("rb") as source:
            for start, stop in ranges.between(end):
                source.seek(start)
                while start < stop:
                    piece = source.read(min(PIECE, stop - start))
                    if not piece:
                        raise DataError(f"{tar}: not a whole tar; build or download it again")
                    start += target.write(piece)
        target.write(bytes(2 * tarfile.BLOCKSIZE))
        target.write(bytes(-target.tell() % tarfile.RECORDSIZE))
    finally:
        stated = target.close()
    return stated
