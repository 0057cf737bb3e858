"""Clean lines: text that may stand in a message or a record, and files of JSON lines that only grow."""

from __future__ import annotations

import errno
import json
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_DIRECTIONS = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\ufeff")
"""Marks that turn the direction of what is shown after them, and the byte order mark."""


def one_line(text: str | Path) -> str:
    r"""A text or file name as one line that any terminal, JSON file or page takes.

    Line breaks, control characters and marks of direction become escapes (``\n``, ``\x1b``), bytes of a file name that are no
    UTF-8 become ``\xff``. Character by character: what is part of a text stays part of it.
    """
    text = str(text)
    return text if text.isprintable() else "".join(_shown(character) for character in text)


def _shown(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte of a file name, see PEP 383
        return f"\\x{code - 0xDC00:02x}"
    if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp") or character in _DIRECTIONS:
        return character.encode("unicode_escape").decode()
    return character


def read_json_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file of JSON lines, in order; none if there is no file. A half-written line counts as not written."""
    try:
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    try:
                        entry = json.loads(line)
                    except ValueError:
                        continue
                    if isinstance(entry, dict):
                        yield entry
    except FileNotFoundError:
        return


class JsonLines:
    """A file of JSON lines to which lines are appended, each whole or not at all, by one process at a time.

    Args:
        path: the file; it is made if it is not there. What a killed process left half-written at its end is cut off.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        self._end = self._whole()
        os.ftruncate(self._file, self._end)

    def append(self, entry: Mapping[str, Any]) -> None:
        """Write one line.

        Raises:
            OSError: the disk is full, or cannot be written.
        """
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"  # in ASCII: file names need not be UTF-8
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)

    def close(self) -> None:
        """Close the file; nothing is lost if it is never called."""
        os.close(self._file)

    def _whole(self) -> int:
        """Bytes up to the end of the last whole line."""
        end = os.fstat(self._file).st_size
        while end > 0:
            start = max(0, end - 65536)
            block = os.pread(self._file, end - start, start)
            if (found := block.rfind(b"\n")) >= 0:
                return start + found + 1
            end = start
        return 0


def replace_json_lines(path: Path, entries: Iterable[Mapping[str, Any]]) -> None:
    """Write a file of JSON lines anew; the old one stands until the new one is whole."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("w") as file:
        file.writelines(json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries)
    os.replace(partial, path)
