"""Values of JSON that others wrote, taken as far as they can be taken: keys and names in several spellings, times as text."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from pydantic_core import from_json

from animeshooter_dataset import DataError
from curation.captions import LONGEST_TEXT
from curation.lines import one_line

LARGEST_FRAME = 1 << 31
"""Frames from this on are no frames; a film of 20 minutes has some 70,000."""
NOTHING = frozenset(("", "n/a", "na", "null", "none", "nan", "-"))
"""Words, in small letters, that say that there is nothing to say."""
_TIME = re.compile(r"(?:(?:([0-9]{1,4}):)?([0-9]{1,6}):)?([0-9]{1,8}(?:[.,][0-9]{1,9})?)s?")
_WINDOW = re.compile(r"(.{1,20}?)\s*(?:-|–|—|~|\bto\b)\s*(.{1,20})")
_EXAMPLES, _MOST_NOTES = 3, 200


class Notes:
    """What was odd in a file, counted: one line for each kind and place, however often it was met."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, str], tuple[list[str], list[int]]] = {}

    def add(self, where: str, what: str, example: str = "", count: int = 1) -> None:
        """Note something.

        Args:
            where: as ``story 3`` or ``story 3, 'Man'``; empty for the video.
            what: what is odd and how it was taken, the same for all that is to be one line.
            example: what stood there; the first three that differ are told.
            count: how often.
        """
        examples, times = self._found.setdefault((where, what), ([], [0]))
        times[0] += count
        if example and len(examples) < _EXAMPLES and (line := quoted(example)) not in examples:
            examples.append(line)

    def lines(self) -> tuple[str, ...]:
        """All notes in the order in which they were first met."""
        lines = []
        for (where, what), (examples, (times,)) in self._found.items():
            told = f" ({', '.join(examples)})" if examples else ""
            lines.append(f"{where + ': ' if where else ''}{what}{told}{f' ({times} times)' if times > 1 else ''}")
        more = len(lines) - _MOST_NOTES
        return (*lines[:_MOST_NOTES], f"and {more} more like these") if more > 0 else tuple(lines)


def quoted(text: str) -> str:
    """A name or text of a file as part of a line: clean, quoted and short."""
    line = one_line(clean(text))
    return f"'{line if len(line) <= 40 else line[:39] + '…'}'"


def clean(text: str) -> str:
    """A text without control characters, with blanks in the place of line breaks, and none at its ends.

    What is more than ten times :data:`LONGEST_TEXT` long is cut off unread; :func:`capped` says so.
    """
    text = text[: 10 * LONGEST_TEXT]
    if not text.isprintable():
        text = "".join(" " if unicodedata.category(letter) in ("Cc", "Cs", "Zl", "Zp") else letter for letter in text)
    return text.strip()


def load_json(data: bytes, where: str) -> Any:
    """Parse JSON.

    Raises:
        DataError: it is empty, not UTF-8, not JSON, or nested too deeply; the line begins with ``where``.
    """
    data = data.removeprefix(b"\xef\xbb\xbf")
    if not data.strip():
        raise DataError(f"{where}: is empty; fetch it again")
    try:
        return from_json(data)
    except ValueError as error:
        try:
            data.decode()
        except UnicodeDecodeError as wrong:
            raise DataError(f"{where}: is not UTF-8 (byte {wrong.start}); fetch it again or save it as UTF-8") from None
        raise DataError(f"{where}: is no JSON that can be read ({error}); fetch it again or mend it") from None


class Fields:
    """A JSON object whose keys may be spelt in several ways; case, ``_`` and blanks do not count."""

    def __init__(self, value: object) -> None:
        self._values: dict[str, Any] = {}
        for key, each in value.items() if isinstance(value, dict) else ():
            self._values.setdefault(_plain(key), each)

    def __bool__(self) -> bool:
        return bool(self._values)

    def get(self, *names: str) -> Any:
        """The value of the first of these keys that says something; None if none does."""
        found = (self._values.get(name) for name in names)
        return next((value for value in found if value is not None and value != "" and value != []), None)

    def text(self, *names: str) -> str | None:
        """The same as a clean text; None where it is no text or empty."""
        value = self.get(*names)
        return (clean(value) or None) if isinstance(value, str) else None

    def items(self, *names: str) -> list[Any]:
        """The same as a list; empty where it is none."""
        value = self.get(*names)
        return value if isinstance(value, list) else []


@lru_cache(maxsize=1024)
def _plain(key: str) -> str:
    return " ".join(key.casefold().replace("_", " ").split())


class Names:
    """The names of a story's characters or scenes, found also where case or blanks differ."""

    def __init__(self, names: Iterable[str]) -> None:
        self.names = tuple(names)
        self._exact = frozenset(self.names)
        self._plain: dict[str, str] = {}
        for name in self.names:
            self._plain.setdefault(_folded(name), name)

    def find(self, told: str) -> str | None:
        """The name that is meant; None if it is none of these."""
        return told if told in self._exact else self._plain.get(_folded(told))


def _folded(name: str) -> str:
    return " ".join(name.casefold().replace("_", " ").split())


def is_nothing(value: object) -> bool:
    """Whether a value says that there is nothing: null, an empty text, or ``N/A`` and the like."""
    return value is None or (isinstance(value, str) and clean(value).casefold() in NOTHING)


def capped(text: str, what: str, where: str, notes: Notes) -> str:
    """A text of at most :data:`LONGEST_TEXT` characters; more is cut off, and noted."""
    if len(text) <= LONGEST_TEXT:
        return text
    notes.add(where, f"{what} of more than {LONGEST_TEXT} characters, cut off there")
    return text[:LONGEST_TEXT].rstrip()


def seconds(value: object) -> float | None:
    """A time: ``MM:SS``, ``H:MM:SS``, seconds as text or number, all with or without fractions; None if it is none."""
    if isinstance(value, str):
        found = _TIME.fullmatch(value.strip())
        if found is None:
            return None
        hours, minutes, rest = found.groups()
        return int(hours or 0) * 3600 + int(minutes or 0) * 60 + float(rest.replace(",", "."))
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if 0 <= value < 1e8 else None


def window(value: object) -> tuple[float, float] | None:
    """A stretch of time, ``MM:SS-MM:SS`` or a list of two times, that ends after it starts; None if it is none."""
    if isinstance(value, str) and len(value) <= 60:
        found = _WINDOW.fullmatch(value.strip())
        value = list(found.groups()) if found else None
    if not isinstance(value, list) or len(value) != 2:
        return None
    start, end = seconds(value[0]), seconds(value[1])
    return (start, end) if start is not None and end is not None and start < end else None


def whole(value: object) -> int | None:
    """A frame: a whole number from 0 to :data:`LARGEST_FRAME`, also written as ``12.0``; None if it is none."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < LARGEST_FRAME:
        return None
    return int(value) if value == int(value) else None


def rate(value: object) -> float | None:
    """Frames a second: a number above 0 and at most 1000, also as text; None if it is none."""
    if isinstance(value, str):
        try:
            value = float(value[:40])
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1000:
        return None
    return float(value) if math.isfinite(value) else None
