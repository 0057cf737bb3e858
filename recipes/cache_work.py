"""What the processes that make a cache of features share: who they are, what they make, and how shards are filled."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from animeshooter_dataset import DataError
from recipes.config import Config
from streams.clips import ClipSpec
from streams.feature_files import Entry, drop_damaged, replace_whole

OLD = 3600.0
"""Seconds after which a half-written file is taken for one that a killed run left."""


@dataclass(frozen=True)
class Worker:
    """This process: its number, how many there are, where it computes and how."""

    rank: int
    world: int
    device: torch.device
    precision: str

    def say(self, text: str) -> None:
        """Tell the user who says it."""
        print(f"process {self.rank}: {text}" if self.world > 1 else text, flush=True)

    def arithmetic(self) -> Any:
        """The precision in which the stages call the frozen parts."""
        types = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return torch.autocast(self.device.type, types[self.precision]) if self.precision in types else nullcontext()

    def units(self, rows: int, size: int) -> list[tuple[int, range]]:
        """This process's share of ``rows``, in numbered units of ``size`` rows, each of which becomes a shard."""
        size = max(1, min(size, -(-rows // self.world)))
        units = [(unit, range(first, min(first + size, rows))) for unit, first in enumerate(range(0, rows, size))]
        return units[self.rank :: self.world]


def this_process(config: Config) -> Worker:
    """By the launcher's variables alone: these processes need no group, and none has to wait for another."""
    rank, world, local = (
        int(os.environ.get(name, default)) for name, default in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), "010")
    )
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    device = torch.device("cuda", local) if torch.cuda.is_available() and not use_cpu else torch.device("cpu")
    return Worker(rank, world, device, config.train.precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))


@dataclass(frozen=True)
class Job:
    """One kind of features of one dataset, on one process; ``rows`` are those of the index, ``clip`` the size of clips."""

    kind: str
    store: Any
    folder: Path
    clip: ClipSpec
    caption: str
    rows: pa.Table
    batch: int
    workers: int

    @property
    def parts(self) -> range:
        """Entries of a shot."""
        return {"latents": range(self.clip.starts or 0), "ends": range(2)}.get(self.kind, range(1))


class Named:
    """The entries of a shard, counted as they are handed on.

    The shard's name comes from the first of them: when a run is killed and repeated, it is the same one again.
    """

    def __init__(self, entries: Iterator[Entry]) -> None:
        self.first, self.rest, self.count = next(entries), entries, 0
        told = f"{self.first.key} {self.first.part} {self.first.source.hex()}"
        self.name = hashlib.sha256(told.encode()).hexdigest()[:8]

    def __iter__(self) -> Iterator[Entry]:
        for entry in chain([self.first], self.rest):
            self.count += 1
            yield entry


def place(row: dict[str, Any], member: str) -> tuple[str, int, int]:
    """Where a member of a shot lies: shard, first byte, bytes."""
    # Only the file's name is taken from the index: a path in it could point anywhere.
    return f"shots/{Path(row['shard']).name}", row[f"{member}_offset"], row[f"{member}_size"]


def member(store: Any, row: dict[str, Any], name: str) -> bytes:
    """A member of a shot."""
    return store.range(*place(row, name))


def prepare(folder: Path, identity: dict[str, Any], me: Worker) -> None:
    """The folder, without what a killed run left half-written."""
    with Disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "identity.json").is_file():
            replace_whole(folder / "identity.json", (json.dumps(identity, indent=2, sort_keys=True) + "\n").encode())
        for shard in drop_damaged(folder):
            me.say(f"{shard}: gone or damaged; its entries are made again")
        for path in folder.glob(".*.partial") if me.rank == 0 else ():
            if time.time() - path.stat().st_mtime > OLD:
                path.unlink(missing_ok=True)


class Disk:
    """A full or read-only disk is for the user to mend."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        """Nothing yet."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Turn what the system says into one line."""
        if isinstance(error, OSError):
            raise DataError(
                f"{self.folder}: cannot write ({error.strerror or error}); make room there, and run the same command again: "
                "shards that are whole stay"
            ) from None
