"""A published dataset loaded again from a clean cache, as a user would, and compared row by row with the one it came from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from animeshooter_dataset import MEMBERS, DataError, read_samples, shards, splits
from curation import reload_rows

Amount = Literal["none", "sample", "all"]
SAMPLE_ROWS = 3
"""Rows that a sample takes from a shard; it takes them from the first, the middle and the last shard of each split."""
SILENCE = 180.0
"""Seconds without a row after which loading counts as stuck."""
CACHES = ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE", "HF_DATASETS_CACHE", "HF_ASSETS_CACHE", "HF_XET_CACHE", "HF_TOKEN_PATH")
"""Variables that would lead to a cache which is not clean, or to another token."""


def wanted_rows(directory: Path, amount: Amount) -> list[tuple[str, str, int | None, int | None]]:
    """(config, split, shard or None for all, rows or None for all) of what is compared."""
    wanted: list[tuple[str, str, int | None, int | None]] = []
    for config in MEMBERS:
        for split in splits(directory, config):
            last = len(shards(directory, config, split)) - 1
            if amount == "all":
                wanted.append((config, split, None, None))
            elif amount == "sample":
                wanted.extend((config, split, shard, SAMPLE_ROWS) for shard in sorted({0, last // 2, last}))
    return wanted


def local_rows(directory: Path, config: str, split: str, shard: int | None, rows: int | None) -> Iterator[tuple[str, str]]:
    """(key, digest) of the same rows in a dataset directory."""
    for number, tar in enumerate(shards(directory, config, split)):
        if shard in (None, number):
            for key, members in islice(read_samples(tar), rows):
                row = {name: json.loads(blob) if name == "json" else blob for name, blob in members.items()}
                yield key, reload_rows.digest(row)


def compare_rows(
    directory: Path,
    repo_id: str,
    commit: str,
    amount: Amount,
    *,
    endpoint: str,
    token: str | None,
    clean: Callable[[str], str],
    pauses: Sequence[float] = (),
    progress: Callable[[int], None] | None = None,
) -> int:
    """Stream rows from the Hub in a process and a cache of their own, and compare each with the directory's; returns how many.

    Args:
        directory: the dataset as it was built.
        repo_id: where it was published.
        commit: the revision.
        amount: "sample", "all" (all of it is downloaded), or "none".
        endpoint: address of the Hub.
        token: goes to the process in its environment.
        clean: takes secrets out of a line.
        pauses: seconds to wait before each further attempt where loading fails.
        progress: told how many rows were the same so far.

    Raises:
        DataError: a row differs, or the dataset does not load.
    """
    wanted = wanted_rows(directory, amount)
    for pause in (*pauses, None):
        failed = ""
        same = 0
        with tempfile.TemporaryDirectory(prefix="animeshooter-reload-") as home:
            loaded = _Loaded(repo_id, commit, wanted, Path(home), endpoint, token)
            mine = (
                (config, split, *row)
                for config, split, *which in wanted
                for row in local_rows(directory, config, split, *which)
            )
            for theirs in loaded:
                if list(next(mine, ())) != theirs:
                    loaded.stop()
                    raise DataError(
                        f"{repo_id}: {theirs[0]}/{theirs[1]}: the row {theirs[2]} is another on the Hub than in {directory}; "
                        f"publish again, and if it stays so report it"
                    )
                same += 1
                if progress:
                    progress(same)
            failed = loaded.failed or ("rows are missing" if next(mine, None) else "")
        if not failed:
            return same
        if pause is not None:
            time.sleep(pause)
    raise DataError(
        clean(f"{repo_id}: was uploaded, but does not load from a clean cache ({failed}); publish again to check again")
    )


class _Loaded:
    """Rows as another process prints them; ``failed`` says why there are no more, if that is no good reason."""

    def __init__(self, repo_id: str, commit: str, wanted: list[Any], home: Path, endpoint: str, token: str | None) -> None:
        self.failed, self.home = "", home
        self.errors = (home / "errors").open("w+", encoding="utf-8", errors="replace")
        self.process = subprocess.Popen(
            [sys.executable, "-P", str(Path(reload_rows.__file__)), repo_id, commit],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=_environment(home, endpoint, token),
            cwd=home,  # a folder of the repository's name here would be loaded instead
            text=True,
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(wanted))
        self.process.stdin.close()

    def __iter__(self) -> Iterator[list[str]]:
        stuck = threading.Event()

        def give_up() -> None:
            stuck.set()
            self.process.kill()

        assert self.process.stdout is not None
        while True:
            timer = threading.Timer(SILENCE, give_up)
            timer.start()
            line = self.process.stdout.readline()
            timer.cancel()
            if not line.endswith("\n"):
                break
            yield json.loads(line)
        if self.process.wait() != 0 or stuck.is_set():
            self.errors.seek(0)
            lines = [line.strip() for line in self.errors.read().splitlines() if line.strip()]
            self.failed = f"no row for {SILENCE:.0f} s" if stuck.is_set() else (lines or ["no reason given"])[-1]
        self.errors.close()

    def stop(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()
        self.errors.close()


def _environment(home: Path, endpoint: str, token: str | None) -> Mapping[str, str]:
    ours = {
        "HF_HOME": str(home),
        "HF_ENDPOINT": endpoint,
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    }
    return (
        {name: value for name, value in os.environ.items() if name not in CACHES}
        | ours
        | ({"HF_TOKEN": token} if token else {})
    )
