"""Staged results on disk: a stage's folder appears whole or not at all, so a run that was stopped goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any


def fingerprint(*parts: Any) -> str:
    """Eight hex digits of anything JSON can say: settings that differ lead to another folder, equal ones to the same."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:8]


def staged(folder: Path, make: Callable[[Path], None]) -> Path:
    """The folder of a stage's results, made by ``make`` in a folder beside it if it is not there yet.

    The folder beside it belongs to this process alone, so that a worker which outlives its build does not meddle with the next.
    """
    if not folder.is_dir():
        for left in folder.parent.glob(f"{folder.name}.*.partial"):
            shutil.rmtree(left, ignore_errors=True)
        partial = folder.with_name(f"{folder.name}.{socket.gethostname()}-{os.getpid()}.partial")
        partial.mkdir(parents=True)
        make(partial)
        try:
            os.replace(partial, folder)
        except OSError:
            if not folder.is_dir():
                raise
            shutil.rmtree(partial)  # somebody else was quicker, with the same results
    return folder
