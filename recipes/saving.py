"""Snapshots of a run that has not ended, so that the same command goes on where it was.

``<out>.partial`` holds, while a run goes on::

    lock                        held by the running process: two runs never write here at once
    log.jsonl                   a line a step
    snapshots/step-NNNNNN/      after so many steps
        weights.safetensors     what is trained; the frozen parts come from the parent checkpoint
        optimizer.safetensors   ``<state>/<parameter>``
        ema.safetensors         averages of what is trained, where they are kept
        losses.safetensors      of every step so far
        state.json              where the stream stands, the settings, what it was started from, sizes and hashes of the files

A snapshot is written beside its place, flushed to the disk and renamed: what bears the name is whole. Nothing in it is
pickled. Its tensors are whole, by name, however the run's processes share them out (:mod:`recipes.sharding`), so that a run
can go on in another layout and on other processes. It is written by a thread, beside the steps that follow. With the same
settings, a run that goes on from a snapshot does what it would have done without the interruption, because every draw depends
on seed, step and sample alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from animeshooter_dataset import DataError
from recipes.config import Config, settings

if TYPE_CHECKING:
    from model import AnimeShooterGen

SNAPSHOT_VERSION = 2
"""Of ``state.json``. To be raised when a run could not go on from older ones as if nothing had been."""
MAY_CHANGE = frozenset(
    """data.bad_samples data.cache data.cache_gb data.features data.verify data.workers train.accumulate train.async_save
    train.checkpointing train.keep train.patience train.processes train.save_every train.skip_nonfinite train.steps""".split()
)
"""Settings that do not decide what a step computes; ``train.steps`` does where the learning rate falls until the last one."""
BESIDE = ("held_out.", "samples.", "track.")
"""What settings that only watch a run begin with."""
OURS = re.compile(r"lock|log\.jsonl|sample_stories|bad_samples\.jsonl|snapshots|checkpoint|\.checkpoint\.\d+\.(partial|old)")
"""What a run leaves in its folder."""
_STEP = re.compile(r"step-(\d{6,})")
_SAMPLED = 64
"""Numbers of each frozen weight that go into a fingerprint."""


@dataclass
class Snapshot:
    """The state of a run after ``step`` steps.

    Args:
        step: steps done.
        stream: state of the stream.
        belongs: what decides the run, see :func:`identity`.
        log_bytes: length of the log.
        seconds: of training so far.
        starts: how often it was started: from which step, on how many processes.
        scaler: of mixed precision in fp16, else None.
        losses: of each step.
        weights, optimizer: tensors by parameter, and by ``<state>/<parameter>``.
        ema: averages by parameter; empty where none are kept.
        left_out: how many of the last steps in a row were left out.
    """

    step: int
    stream: dict[str, Any]
    belongs: dict[str, Any]
    log_bytes: int
    seconds: float
    starts: list[dict[str, int]]
    scaler: dict[str, Any] | None
    losses: list[float] = field(repr=False)
    weights: dict[str, Tensor] = field(repr=False)
    optimizer: dict[str, Tensor] = field(repr=False)
    ema: dict[str, Tensor] = field(repr=False, default_factory=dict)
    left_out: int = 0


# ---- what a run is ----


def identity(
    stage: str, config: Config, gen: AnimeShooterGen, optimizer: Mapping[str, Any], parent: Path | None
) -> dict[str, Any]:
    """What decides a run besides its data, to be asked before it starts; the stream's own state knows the data."""
    trained = None if parent is None else hashlib.sha256((parent / "training.json").read_bytes()).hexdigest()[:16]
    return {
        "stage": stage,
        "settings": settings(config),
        "optimizer": {name: value for name, value in optimizer.items() if name != "schedule"},
        "parent": trained,
        "frozen": frozen_weights(gen),
        "trained": {name: list(parameter.shape) for name, parameter in trainable(gen).items()},
    }


def frozen_weights(gen: AnimeShooterGen) -> dict[str, str]:
    """A fingerprint of each component's frozen weights: names, shapes, and 64 numbers of each."""
    found = {}
    for name, component in gen.named_children():
        digest = hashlib.sha256()
        for weight, value in component.named_parameters():
            if not value.requires_grad and not value.is_meta:
                flat = value.detach().flatten()
                sampled = flat[:: max(1, flat.numel() // _SAMPLED)][:_SAMPLED].float().cpu()
                digest.update(f"{weight} {tuple(value.shape)}".encode() + sampled.numpy().tobytes())
        found[name] = digest.hexdigest()[:16]
    return found


def trainable(gen: AnimeShooterGen) -> dict[str, torch.nn.Parameter]:
    """The parameters that are trained, by name."""
    return {name: parameter for name, parameter in gen.named_parameters() if parameter.requires_grad}


def changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """In words, what of the run a snapshot belongs to differs from this one; settings that may change are left out."""
    differ = [f"{name} was {was[name]}, is {now[name]}" for name in ("stage",) if was[name] != now[name]]
    for part in ("settings", "optimizer"):
        before, after = was[part], json.loads(json.dumps(now[part]))
        may = MAY_CHANGE if after.get("train.schedule", "constant") == "constant" else MAY_CHANGE - {"train.steps"}
        decide = [name for name in {**before, **after} if name not in may and not name.startswith(BESIDE)]
        names = [name for name in decide if before.get(name) != after.get(name)]
        differ += [f"{name} was {before.get(name)}, is {after.get(name)}" for name in names]
    if was["parent"] != now["parent"]:
        differ.append("the checkpoint it started from is another")
    else:  # a part may be left out of memory where its results are cached
        parts = [name for name in was["frozen"].keys() & now["frozen"].keys() if was["frozen"][name] != now["frozen"][name]]
        differ += [f"the frozen weights of the {name} are others" for name in sorted(parts)]
    if was["trained"] != now["trained"]:
        names = _unlike(was["trained"], now["trained"])
        differ.append(f"{len(names)} trained weights have other names or shapes, the first is {names[0]}")
    return differ


def _unlike(was: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> list[str]:
    return sorted(name for name in {**was, **now} if was.get(name) != now.get(name))


# ---- weights into a run ----


@torch.no_grad()
def load_weights(gen: AnimeShooterGen, weights: Mapping[str, Tensor]) -> None:
    """Put trained weights into the model."""
    for name, parameter in trainable(gen).items():
        parameter.copy_(weights[name])


# ---- the folder ----


class Damaged(Exception):
    """A snapshot that is not whole."""


class WorkFolder:
    """``<out>.partial``: held by one run at a time, and where its snapshots are written and found.

    Args:
        path: the folder; it is made if it is not there.
        keep: how many snapshots stay.

    Raises:
        DataError: another run holds it, or it holds something that no run left.
    """

    def __init__(self, path: Path, keep: int) -> None:
        self.path, self.keep = path, keep
        self.log, self.snapshots = path / "log.jsonl", path / "snapshots"
        if keep < 1:
            raise DataError(f"train.keep is {keep}: keep at least one snapshot")
        strange = [one.name for one in path.iterdir() if not OURS.fullmatch(one.name)] if path.is_dir() else []
        if strange or (path.exists() and not path.is_dir()):
            what = f"holds {strange[0]}" if strange else "is a file"
            raise DataError(f"{path}: {what}, which no run of these recipes left; move it away")
        with writing(path, "start there"):
            path.mkdir(parents=True, exist_ok=True)
            self._lock = open(path / "lock", "a")  # noqa: SIM115 (held until the run ends)
        if not _held(self._lock):
            raise DataError(f"{path}: another run is writing there; wait for it, end it, or choose another --out")
        self._writer: threading.Thread | None = None
        self._failed: str | None = None
        self.saved = 0
        """Step of the newest snapshot of this run that is whole."""

    def close(self) -> None:
        """Let another run have the folder, once what is being written is whole."""
        self.settle()
        self._lock.close()

    def settle(self) -> str | None:
        """Wait for a snapshot that is being written; returns what went wrong with it."""
        if self._writer is not None:
            self._writer.join()
            self._writer = None
        return self._failed

    def problem(self) -> str | None:
        """What went wrong with a snapshot that was being written; does not wait for it."""
        if self._writer is not None and not self._writer.is_alive():
            self.settle()
        return self._failed if self._writer is None else None

    def clear(self) -> None:
        """Remove what earlier runs left."""
        self._remove(*(one for one in self.path.iterdir() if one.name != "lock"))

    def latest(self, say: Callable[[str], None]) -> Snapshot | None:
        """The newest whole snapshot; newer ones that are not whole are named and removed.

        Raises:
            DataError: there are snapshots, but none is whole.
        """
        self._remove(*self.path.glob("*checkpoint*"))  # one that was being written when the run ended
        if not self.snapshots.is_dir():
            return None
        self._remove(*self.snapshots.glob(".*"))
        found, broken = self._found(), []
        for path in reversed(found):
            try:
                snapshot = read_snapshot(path)
            except Damaged as error:
                say(f"{error}; left aside")
                broken.append(path)
                continue
            self._remove(*broken)
            return snapshot
        if found:
            raise DataError(f"{self.snapshots}: none of {len(found)} snapshots is whole; --resume never starts anew")
        return None

    def chosen(self, path: Path, say: Callable[[str], None]) -> Snapshot:
        """A snapshot that was asked for by its path, or the newest whole one of the run in the folder ``path``.

        Raises:
            DataError: there is none, it is not whole, or it is of another run and this folder holds snapshots already.
        """
        found = [path] if _STEP.fullmatch(path.name) else self._found(path / "snapshots")
        if not found or not found[-1].is_dir():
            raise DataError(
                f"{path}: no snapshot and no folder of a run; give .../snapshots/step-NNNNNN, or a run's .partial folder"
            )
        if not self._mine(found[-1]) and self.snapshots.is_dir() and self._found():
            raise DataError(
                f"{self.path}: holds a run of its own: go on with it (--resume auto), or go on from {path} in another --out"
            )
        for one in reversed(found):
            try:
                return read_snapshot(one)
            except Damaged as error:
                say(f"{error}; left aside")
        raise DataError(f"{path}: not whole; choose another snapshot, or start anew with --resume never")

    def adopt(self, path: Path, snapshot: Snapshot) -> None:
        """Go on from a snapshot that was :meth:`chosen`: newer ones here are removed, the log of another run is copied.

        Raises:
            DataError: the log cannot be had.
        """
        folder = path.parent.parent if _STEP.fullmatch(path.name) else path
        if self._mine(folder / "snapshots" / path.name):
            self._remove(*(one for one in self._found() if int(one.name[5:]) > snapshot.step))
            return
        with writing(self.log, f"copy what belongs to {path}"):
            self.clear()
            for name in ("bad_samples.jsonl", self.log.name):
                if (folder / name).exists() or name == self.log.name:
                    shutil.copyfile(folder / name, self.path / name)

    def _mine(self, snapshot: Path) -> bool:
        return snapshot.resolve().parent == self.snapshots.resolve()

    def cut_log(self, snapshot: Snapshot) -> None:
        """Take the steps after the snapshot out of the log.

        Raises:
            DataError: the log is not the one the snapshot was taken with.
        """
        try:
            with writing(self.log, "go on from there"), open(self.log, "r+b") as file:
                file.seek(max(0, snapshot.log_bytes - 2**20))
                tail = file.read(snapshot.log_bytes - file.tell())
                last = json.loads(tail.splitlines()[-1])
                if file.tell() != snapshot.log_bytes or not tail.endswith(b"\n") or last["step"] != snapshot.step - 1:
                    raise ValueError
                file.truncate(snapshot.log_bytes)
            self.saved = snapshot.step
        except (ValueError, KeyError, TypeError, IndexError):
            raise DataError(
                f"{self.log}: does not end with step {snapshot.step - 1} where the snapshot says; --resume never starts anew"
            ) from None

    def note(self, line: dict[str, Any]) -> None:
        """Write a line of the log.

        Raises:
            DataError: it cannot be written.
        """
        with writing(self.log, "log the step"), open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(_finite(line), allow_nan=False) + "\n")

    def write(self, snapshot: Snapshot, *, behind: bool = False) -> None:
        """Write a snapshot, and remove all but the newest ``keep``; ``log_bytes`` is measured here.

        Args:
            snapshot: its tensors must stay as they are until it is written.
            behind: only begin, and write in a thread; :meth:`problem` and :meth:`settle` say how that went.

        Raises:
            DataError: it cannot be written, or the one before it could not; the ones before that stay.
        """
        if self.settle() is not None:
            raise DataError(self._failed)
        with writing(self.log, "save the log"):
            snapshot.log_bytes = self.log.stat().st_size
        if behind:
            self._writer = threading.Thread(target=self._try_to_write, args=(snapshot,), name="snapshot")
            self._writer.start()
        else:
            self._write(snapshot)

    def _try_to_write(self, snapshot: Snapshot) -> None:
        try:
            self._write(snapshot)
        except DataError as error:
            self._failed = str(error)
        except BaseException as error:
            self._failed = f"{self.snapshots}: cannot write the snapshot ({type(error).__name__}: {error})"
            raise

    def _write(self, snapshot: Snapshot) -> None:
        from safetensors.torch import save_file

        final = self.snapshots / f"step-{snapshot.step:06}"
        partial = self.snapshots / f".new-{final.name}"
        losses = torch.tensor(snapshot.losses, dtype=torch.float64)
        parts = {
            "weights": snapshot.weights,
            "optimizer": snapshot.optimizer,
            "losses": {"losses": losses},
            "ema": snapshot.ema,
        }
        try:
            with writing(final, "write the snapshot"):
                self._remove(partial)
                partial.mkdir(parents=True)
                _flush(self.log)
                files = {}
                for name, tensors in parts.items():
                    if tensors or name != "ema":
                        file = partial / f"{name}.safetensors"
                        save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, file)
                        files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
                        _flush(file)
                told = {key: value for key, value in vars(snapshot).items() if key not in parts}
                told |= {"version": SNAPSHOT_VERSION, "files": files}
                (partial / "state.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
                _flush(partial / "state.json")
                _flush(partial)
                self._remove(final)
                partial.rename(final)
                _flush(self.snapshots)
                self.saved = snapshot.step
                self._remove(*self._found()[: -self.keep])
        except DataError:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _found(self, snapshots: Path | None = None) -> list[Path]:
        """The snapshots there are, oldest first."""
        folder = snapshots or self.snapshots
        there = folder.iterdir() if folder.is_dir() else ()
        found = {int(match[1]): one for one in there if (match := _STEP.fullmatch(one.name))}
        return [found[step] for step in sorted(found)]

    def _remove(self, *paths: Path) -> None:
        """Remove files and folders; a folder loses its name first, so that half of it is never taken for whole."""
        for path in paths:
            if path.is_dir() and not path.name.startswith("."):
                aside = path.with_name(f".old-{path.name}")
                shutil.rmtree(aside, ignore_errors=True)
                path = path.rename(aside)
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)


def read_snapshot(path: Path) -> Snapshot:
    """Read a snapshot and check that it is whole.

    Raises:
        Damaged: it is not; says where.
        DataError: another version of the recipes wrote it.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        told = json.loads((path / "state.json").read_text(encoding="utf-8"))
        version = told.pop("version")
        if version != SNAPSHOT_VERSION:
            raise DataError(
                f"{path}: a snapshot of version {version}, and these recipes go on from version {SNAPSHOT_VERSION}; "
                "end the run with the version that began it, or start anew with --resume never"
            )
        parts = {}
        for name, about in told.pop("files").items():
            file = path / Path(name).name
            if file.stat().st_size != about["bytes"] or _sha256(file) != about["sha256"]:
                raise Damaged(f"{file}: not as it was written")
            parts[file.stem] = load_file(file)
        return Snapshot(**told, **parts | {"losses": parts["losses"]["losses"].tolist()})
    except (OSError, SafetensorError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise Damaged(f"{path}: not whole ({type(error).__name__}: {error})") from None


@contextmanager
def writing(path: Path, what: str) -> Iterator[None]:
    """Inside, a full disk and the like become a line that names ``path``: a :class:`DataError`."""
    from safetensors import SafetensorError

    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DataError(
            f"{path}: cannot {what} ({reason}); make room there or mend it, then run the same command again"
        ) from None


def _finite(value: Any) -> Any:
    """The same for JSON, which knows neither infinity nor "not a number": null stands for them."""
    if isinstance(value, dict):
        return {key: _finite(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flush(path: Path) -> None:
    """Have the disk hold what was written to a file or folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _held(file: Any) -> bool:
    """Whether this process holds the lock now; true where the file system knows no locks."""
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True
