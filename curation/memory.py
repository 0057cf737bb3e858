"""Keeping a worker's memory to what it uses: glibc's allocator holds on to what was freed between pieces still in use.

A worker decodes, detects text, runs a network and decodes again; without this each stage's freed memory stays with the process
in fragments, and a long film takes half a gigabyte more. On other C libraries nothing happens.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

M_MMAP_THRESHOLD = -3
LARGE = 4 * 2**20
"""Bytes from which a block is a mapping of its own, given back as it is freed; glibc by itself goes up to 32 MiB."""


@cache
def _libc() -> Any:
    try:
        libc = ctypes.CDLL(None)
        return libc if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim") else None
    except OSError:
        return None


@cache
def keep_large_blocks_apart() -> None:
    """Have large blocks mapped one by one; once a process."""
    libc = _libc()
    if libc is not None:
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)


def give_back() -> None:
    """Return freed memory to the system."""
    libc = _libc()
    if libc is not None:
        libc.malloc_trim(0)
