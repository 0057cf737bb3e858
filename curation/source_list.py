"""What ``verify-sources`` asks: the addresses of a dataset's videos, of the official release's, or of a list."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from animeshooter_dataset import DataError, read_manifest, slug
from curation.availability import dataset_sources
from curation.lines import one_line
from curation.origin import YOUTUBE_ID, Address

LIST_BYTES = 2**26
"""A list of sources is no larger; what is larger was named by mistake."""


@dataclass(frozen=True)
class Sources:
    """What is to be asked: addresses by the key of their video, in the order of keys.

    ``without`` counts videos that name no address, ``problems`` are one line each on what could not be read.
    """

    addresses: Mapping[str, Address]
    without: int = 0
    problems: tuple[str, ...] = ()


def read_sources(where: Path, progress: Callable[[int, int, str], None] = lambda done, total, label: None) -> Sources:
    """The sources of a dataset directory, of the official release, or of a list.

    Args:
        where: one of these.
        progress: called as a release, which takes its time, is read; see :func:`curation.release.open_release`.

    Raises:
        DataError: it is none of these, or cannot be read.
    """
    if is_dataset(where):
        read_manifest(where)
        addresses, without = dataset_sources(where)
        return Sources(addresses, without)
    if where.is_dir() or where.suffix.lower() in (".zip", ".json"):
        return _release_sources(where, progress)
    return _list_sources(where)


def is_dataset(where: Path) -> bool:
    """Whether a path is a dataset directory, and not a folder of the official release."""
    return (where / "manifest.json").is_file()


def _release_sources(where: Path, progress: Callable[[int, int, str], None]) -> Sources:
    from curation.release import open_release

    release = open_release(where, progress=progress)
    addresses: dict[str, Address] = {}
    without = 0
    for entry in release.entries:
        address = _address(entry.url or "")
        if address is None:
            without += 1
        else:
            addresses[entry.key] = address
    problems = tuple(f"{problem.film}: {problem.reason}" for problem in release.problems)
    return Sources(dict(sorted(addresses.items())), without, problems)


def _list_sources(path: Path) -> Sources:
    """The sources of a list. A YouTube film has the key that the official release's importer gives it."""
    shown = one_line(path)
    try:
        if path.stat().st_size > LIST_BYTES:
            raise DataError(
                f"{shown}: too large for a list of sources; name a text file with a YouTube id or an address a line"
            )
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").splitlines()
    except OSError as error:
        raise DataError(
            f"{shown}: cannot be read ({error.strerror}); name a dataset directory, the official release, or a list of sources"
        ) from None
    if any(b"\0" in line for line in lines):
        raise DataError(f"{shown}: not a text file; name one with a YouTube id or an address a line")
    addresses: dict[str, Address] = {}
    problems = []
    for number, line in enumerate(lines, 1):
        text = os.fsdecode(line.strip())
        if not text or text.startswith("#"):
            continue
        address = _address(f"yt:{text}" if YOUTUBE_ID.fullmatch(text) else text)
        if address is None:
            problems.append(f"{shown}: line {number}: neither a YouTube id nor an address")  # not shown: it may be a key
        else:
            addresses.setdefault(key_of(address), address)
    if not addresses:
        raise DataError(f"{shown}: no source in it; write a YouTube id or an address a line")
    return Sources(dict(sorted(addresses.items())), 0, tuple(problems))


def _address(text: str) -> Address | None:
    try:
        return Address.parse(text)
    except DataError:
        return None


def key_of(address: Address) -> str:
    """The key of a source that no dataset or release has given one."""
    parts = urlsplit(address.url)
    film = parse_qs(parts.query).get("v", [""])[0] if address.host == "www.youtube.com" else ""
    if YOUTUBE_ID.fullmatch(film):
        return f"{slug(film)}-{sha256(film.encode()).hexdigest()[:8]}"
    return f"{slug(f'{address.host}-{Path(parts.path).stem}')[:37].rstrip('-_')}-{address.key}"
