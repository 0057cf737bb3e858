"""A dataset directory that stands is changed as a whole or not at all: its next edition is made beside it and takes its place.

The edition begins as hard links to every file, so that what does not change costs neither bytes nor time. A file that is linked
is one file under two names: it is never written in place, see :func:`replace_file`. Whatever moment a process is killed at, the
old dataset or the new one stands whole at its place; what such a process leaves beside it (``DIR.edition``, ``DIR.old``) goes
when the next one begins.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from animeshooter_dataset import DataError, read_manifest
from curation.card import render_card
from curation.pack import publish, recover, write_manifest

LOCK = "lock"
"""File in ``DIR.work`` that whoever writes a dataset holds, a build as well."""
_COPIED = ("README.md", "manifest.json")
"""Files at the top that every edition writes anew; they are copied, so that nobody can write the standing ones by mistake."""
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
_NO_LINKS = (errno.EPERM, errno.EXDEV, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


@contextmanager
def edition(directory: Path) -> Iterator[Path]:
    """The next edition of a dataset, to be changed in a ``with`` block; at its end it takes the dataset's place in one step.

    In the block files may be added, deleted, and, after :func:`replace_file`, written; card and manifest are then made true
    again with :func:`curation.pack.write_manifest`. An exception in the block throws the edition away.

    Args:
        directory: the dataset.

    Yields:
        The edition's folder.

    Raises:
        DataError: it is no dataset directory, somebody else is writing it, a part of it lies elsewhere (symbolic links), or the
            disk is full or read-only.
    """
    with held(directory) as home, next_edition(home) as new:
        yield new


@contextmanager
def held(directory: Path, work: Path | None = None) -> Iterator[Path]:
    """Keep builds and other editions away from a dataset; what a killed run left beside it is mended or removed first.

    Args:
        directory: the dataset.
        work: folder for staged results of its builds, where that is not ``DIR.work``: kept as well.

    Yields:
        The dataset's own folder: where ``directory`` leads, if it is a symbolic link.

    Raises:
        DataError: it is no dataset directory, somebody else holds it, or the disk is full or read-only.
    """
    home = directory.resolve()
    beside = {suffix: Path(f"{home}.{suffix}") for suffix in ("edition", "old")}
    if home.exists() or not beside["old"].is_dir():
        read_manifest(home)  # beside what is no dataset nothing is made or removed
    folders = [Path(f"{place}.work") for place in places(directory)]
    try:
        with ExitStack() as stack:
            if work is not None and work.is_dir():
                folders.append(work)
            for folder in dict.fromkeys(folder.resolve() for folder in folders):
                stack.enter_context(_lock(folder))
            recover(home)
            read_manifest(home)
            for left in beside.values():
                _remove(left)
            yield home
    except OSError as error:
        if error.errno in _FULL:
            raise DataError(
                f"{directory}: cannot be changed ({error.strerror}), it is as it was; make room or rights, then run again"
            ) from None
        raise


@contextmanager
def next_edition(home: Path) -> Iterator[Path]:
    """:func:`edition` for who holds the dataset already; ``home`` is what :func:`held` gave."""
    new = Path(f"{home}.edition")
    try:
        _link_all(home, new)
        yield new
        _settle(new)
        publish(new, home)
    finally:
        _remove(new)


def renew_card(directory: Path, contact: str | None = None) -> bool:
    """Render a dataset's card anew, as another version of this project, or another contact, would have it.

    Args:
        directory: the dataset.
        contact: where a rights holder reaches its maintainer; None to leave that as it is.

    Returns:
        Whether anything changed.

    Raises:
        DataError: as :func:`edition`.
    """
    manifest = read_manifest(directory)
    values = manifest | ({"contact": contact} if contact else {})
    with held(directory) as home:
        if values == manifest and render_card(home, manifest) == (home / "README.md").read_text(encoding="utf-8"):
            return False
        with next_edition(home) as new:
            write_manifest(new, values, manifest.get("files", {}))
    return True


def replace_file(path: Path) -> Path:
    """Make way for a new file: the name goes, the linked file of the standing dataset does not. Returns ``path``."""
    path.unlink(missing_ok=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def places(directory: Path) -> list[Path]:
    """The absolute paths under which a dataset is known, beside which its other folders may lie: two behind a symbolic link."""
    return list(dict.fromkeys((Path(os.path.abspath(directory)), directory.resolve())))


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a work folder, which goes again if there is nothing else in it."""
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(folder / LOCK, timeout=0):
            try:
                yield
            finally:
                if {path.name for path in folder.iterdir()} <= {LOCK}:
                    shutil.rmtree(folder)
    except Timeout:
        raise DataError(f"{folder}: another run is writing this dataset; wait for it, then run again") from None


def _link_all(home: Path, new: Path) -> None:
    """Every file of the dataset under the same name in a new folder."""
    for folder, names, files in os.walk(home):
        target = new / Path(folder).relative_to(home)
        target.mkdir()
        for name in (*names, *files):
            if os.path.islink(os.path.join(folder, name)):
                raise DataError(
                    f"{os.path.join(folder, name)}: is a symbolic link, so that its content lies elsewhere; "
                    "copy the dataset to a folder of its own (cp -rL) and name that"
                )
        for name in files:
            copied = target == new and name in _COPIED
            (shutil.copy2 if copied else _link)(os.path.join(folder, name), target / name)
        shutil.copymode(folder, target)


def _link(source: str, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        shutil.copy2(source, target)


def _settle(folder: Path) -> None:
    """Have the disk hold what is new before the old goes, for the case that the machine loses its power."""
    for place, _, files in os.walk(folder):
        for path in (os.path.join(place, name) for name in files):
            if os.stat(path).st_nlink == 1:
                handle = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(handle)
                finally:
                    os.close(handle)


def _remove(folder: Path) -> None:
    """Delete a folder with all that is in it, if it is there."""
    if folder.is_dir() and not folder.is_symlink():
        shutil.rmtree(folder)
