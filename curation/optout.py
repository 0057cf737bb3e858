"""Films that are not to be used: an opt-out list, and what was withdrawn from a dataset that stands.

A list is a text file of UTF-8 with an entry a line; blank lines and lines that begin with ``#`` do not count:

``yt:ID`` or the eleven characters of a YouTube id; an address, ``http(s)://…``, in any spelling of it; ``sha256:HEX`` or the 64
digits, the hash of a film's bytes; ``uploader:NAME``, whatever the case of its letters; the id of a video of a dataset, or of
the official release. After an entry and a space, ``#`` begins a comment; a name of an uploader goes to the end of its line.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from animeshooter_dataset import KEY_PATTERN, DataError, FilmRecord, RightsRecord, read_lines, slug
from curation.lines import one_line
from curation.origin import YOUTUBE_ID, Address
from curation.staging import fingerprint

Kind = Literal["id", "hash", "url", "uploader"]
"""By what a film is known; ``id`` is that of a dataset's video, of the official release or of YouTube."""
STAGE = "takedown"
"""Stage under which a film that is not to be used is recorded."""
_HASH = re.compile(r"[0-9a-f]{64}")
_FORMS = "yt:ID, an https:// address, sha256:HEX, uploader:NAME, or the id of a video in rights.jsonl"


@dataclass(frozen=True)
class Entry:
    """One film, or one uploader, that is not to be used.

    Attributes:
        kind: by what it is known.
        text: as it was written.
        why: the words for records: that it is opted out and where that is said, nothing of its content.
        marks: what is compared, as (kind, value): a YouTube id stands for an id and for an address.
    """

    kind: Kind
    text: str
    why: str
    marks: tuple[tuple[Kind, str], ...]


class OptOut:
    """Films and uploaders that are not to be used; memory is some hundred bytes an entry.

    Args:
        entries: what is not to be used.
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.entries = tuple(entries)
        self._by_mark: dict[tuple[Kind, str], list[Entry]] = {}
        for entry in self.entries:
            for mark in entry.marks:
                self._by_mark.setdefault(mark, []).append(entry)

    @classmethod
    def load(cls, files: Sequence[Path | str] = (), dataset: Path | None = None) -> OptOut:
        """Read lists, and what was withdrawn from the dataset that a build is about to replace.

        Args:
            files: opt-out lists.
            dataset: a dataset directory; one that is not there has withdrawn nothing.

        Raises:
            DataError: a list cannot be read or a line of it is no entry (file, line and mend are named), or the dataset's
                ``rights.jsonl`` is damaged: a film must not come back because nobody could read that it was withdrawn.
        """
        entries = [entry for file in files for entry in _read_list(Path(file))]
        ledger = dataset / "rights.jsonl" if dataset is not None else None
        return cls([*entries, *(_withdrawn(ledger) if ledger is not None and ledger.is_file() else ())])

    @classmethod
    def of(cls, wanted: Iterable[str], kind: Kind) -> OptOut:
        """What a user names, all of one kind.

        Raises:
            DataError: something named cannot be of that kind.
        """
        return cls(_entry(kind, text.strip(), "") for text in wanted)

    @property
    def fingerprint(self) -> str:
        """Eight hex digits: the same for lists that say the same, in whatever order and words."""
        return fingerprint(sorted(self._by_mark))

    def __len__(self) -> int:
        return len(self.entries)

    def find(
        self, *, id: str | None = None, sha256: str | None = None, address: str | None = None, uploader: str | None = None
    ) -> list[Entry]:
        """All entries that speak of a film, by any of what is known of it so far; see :meth:`match`."""
        marks: list[tuple[Kind, str]] = []
        if id:
            marks += _id_marks(id)
        if sha256:
            marks.append(("hash", sha256.lower()))
        if address:
            marks.append(("url", address_key(address)))
        if uploader:
            marks.append(("uploader", _folded(uploader)))
        return list(dict.fromkeys(entry for mark in marks for entry in self._by_mark.get(mark, ())))

    def match(
        self, *, id: str | None = None, sha256: str | None = None, address: str | None = None, uploader: str | None = None
    ) -> str | None:
        """Whether a film is not to be used: the words of why, for ``dropped.jsonl``; None if nothing speaks against it.

        Args:
            id: the id of its video, or that of the official release or of YouTube.
            sha256: hash of its bytes.
            address: where it is to be had, in any spelling.
            uploader: who put it there.
        """
        found = self.find(id=id, sha256=sha256, address=address, uploader=uploader)
        return found[0].why if found else None


def withdrawn_records(
    video: str, why: str | None, *, sha256: str | None = None, source: str | None = None, uploader: str | None = None
) -> tuple[FilmRecord, RightsRecord]:
    """The lines on a film that is not to be used: enough for later builds to know it again, and nothing that describes it."""
    film = FilmRecord(video=video, film=video, state="withdrawn", stage=STAGE, reason=why, sha256=sha256)
    return film, RightsRecord(video=video, source=source, uploader=uploader, sha256=sha256, state="withdrawn")


def address_key(text: str) -> str:
    """What is the same for all spellings of an address; a text that is no address stands for itself."""
    try:
        return Address.parse(text).key
    except DataError:
        return one_line(text.strip())


def _folded(name: str) -> str:
    return " ".join(name.split()).casefold()


def _id_marks(text: str) -> list[tuple[Kind, str]]:
    """What an id may be compared with: itself, the id that a video of the official release has, a YouTube film's address."""
    name = text.removeprefix("yt:")
    marks: list[tuple[Kind, str]] = [("id", name), ("id", f"{slug(name)}-{hashlib.sha256(name.encode()).hexdigest()[:8]}")]
    return [*marks, ("url", address_key(f"yt:{name}"))] if YOUTUBE_ID.fullmatch(name) else marks


def _entry(kind: Kind, text: str, why: str) -> Entry:
    """An entry of a known kind.

    Raises:
        DataError: the text cannot be of that kind.
    """
    shown = one_line(text)
    if kind == "hash":
        digest = text.lower().removeprefix("sha256:").strip()
        if not _HASH.fullmatch(digest):
            raise DataError(f"{shown}: not a sha256 (64 hexadecimal digits)")
        return Entry(kind, text, why, (("hash", digest),))
    if kind == "url":
        return Entry(kind, text, why, (("url", Address.parse(text).key),))
    if kind == "uploader":
        name = _folded(text.removeprefix("uploader:"))
        if not name:
            raise DataError(f"{shown or 'uploader'}: names nobody; write the uploader's name")
        return Entry(kind, text, why, (("uploader", name),))
    name = text.removeprefix("yt:")
    if not (YOUTUBE_ID.fullmatch(name) or (re.fullmatch(KEY_PATTERN, name) and name == text)):
        raise DataError(f"{shown or 'id'}: not an id; write yt:ID or the id of a video in rights.jsonl")
    return Entry(kind, text, why, tuple(_id_marks(text)))


def _read_list(path: Path) -> Iterator[Entry]:
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise DataError(f"{one_line(path)}: the opt-out list cannot be read ({error.strerror}); name a text file") from None
    for number, raw in enumerate(lines, 1):
        where = f"{one_line(path)}, line {number}"
        try:
            text = raw.decode().strip()
        except UnicodeDecodeError:
            raise DataError(f"{where}: not UTF-8; save the list as UTF-8") from None
        if text and not text.startswith("#"):
            yield _read_line(text, f"opted out ({one_line(path.name)}, line {number})", where)


def _read_line(text: str, why: str, where: str) -> Entry:
    try:
        if text[:9].lower() == "uploader:":
            return _entry("uploader", text[9:], why)
        text = re.split(r"\s+#", text)[0]
        if text[:7].lower() == "sha256:" or _HASH.fullmatch(text.lower()):
            return _entry("hash", text, why)
        return _entry("url" if "://" in text else "id", text, why)
    except DataError as error:
        raise DataError(f"{where}: {str(error).partition(';')[0]}; write {_FORMS}") from None


def _withdrawn(ledger: Path) -> Iterator[Entry]:
    """What a dataset's ledger says is withdrawn. An address that other films name too is a site's and not a film's."""
    lines, named = [], Counter[str]()
    for line in read_lines(ledger, RightsRecord):
        if line.source:
            named[address_key(line.source)] += line.state != "withdrawn"
        if line.state == "withdrawn":
            lines.append(line)
    for line in lines:
        marks: list[tuple[Kind, str]] = [("id", line.video)]
        if line.sha256:
            marks.append(("hash", line.sha256))
        if line.source and not named[address_key(line.source)]:
            marks.append(("url", address_key(line.source)))
        yield Entry("id", line.video, "withdrawn from this dataset", tuple(marks))
