"""Snapshots of a run that has not ended, so that the same command goes on where it was.

``<out>.partial`` holds, while a run goes on::

    lock                        held by the running process: two runs never write here at once
    log.jsonl                   a line a step
    snapshots/step-NNNNNN/      after so many steps
        weights.safetensors     what is trained; the frozen parts come from the parent checkpoint
        optimizer.safetensors   ``<state>/<parameter>``
        losses.safetensors      of every step so far
        state.json              where the stream stands, the settings, what it was started from, sizes and hashes of the files

A snapshot is written beside its place, flushed to the disk and renamed: what bears the name is whole. Nothing in it is
pickled. With the same settings, a run that goes on from a snapshot does what it would have done without the interruption,
because every draw depends on seed, step and sample alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
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

SNAPSHOT_VERSION = 1
"""Of ``state.json``. To be raised when a run could not go on from older ones as if nothing had been."""
MAY_CHANGE = frozenset(
    ("train.steps", "train.save_every", "train.keep", "train.patience", "train.accumulate", "data.workers", "data.features")
)
"""Settings that do not decide what a step computes."""
OURS = re.compile(r"lock|log\.jsonl|snapshots|checkpoint|\.checkpoint\.\d+\.(partial|old)")
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
        names = [name for name in {**before, **after} if name not in MAY_CHANGE and before.get(name) != after.get(name)]
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


# ---- tensors in and out of a run ----


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The optimizer's state by ``<state>/<parameter>``; empty before the first step."""
    return {
        f"{kind}/{name}": torch.as_tensor(value)
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Give the optimizer what :func:`optimizer_tensors` took, on whichever device its parameters are."""
    states: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        kind, _, name = key.partition("/")
        states.setdefault(name, {})[kind] = tensor
    names = {id(parameter): name for name, parameter in parameters.items()}
    order = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    state = {place: states[name] for place, name in enumerate(order) if name in states}
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


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

    def close(self) -> None:
        """Let another run have the folder."""
        self._lock.close()

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
            raise DataError(f"{self.snapshots}: none of {len(found)} snapshots is whole; --fresh starts anew")
        return None

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
        except (ValueError, KeyError, TypeError, IndexError):
            raise DataError(
                f"{self.log}: does not end with step {snapshot.step - 1} where the snapshot says; --fresh starts anew"
            ) from None

    def note(self, line: dict[str, Any]) -> None:
        """Write a line of the log.

        Raises:
            DataError: it cannot be written.
        """
        with writing(self.log, "log the step"), open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def write(self, snapshot: Snapshot) -> None:
        """Write a snapshot, and remove all but the newest ``keep``; ``log_bytes`` is measured here.

        Raises:
            DataError: it cannot be written; the ones before it stay.
        """
        from safetensors.torch import save_file

        final = self.snapshots / f"step-{snapshot.step:06}"
        partial = self.snapshots / f".new-{final.name}"
        losses = torch.tensor(snapshot.losses, dtype=torch.float64)
        parts = {"weights": snapshot.weights, "optimizer": snapshot.optimizer, "losses": {"losses": losses}}
        try:
            with writing(final, "write the snapshot"):
                self._remove(partial)
                partial.mkdir(parents=True)
                _flush(self.log)
                files = {}
                for name, tensors in parts.items():
                    file = partial / f"{name}.safetensors"
                    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in tensors.items()}, file)
                    files[file.name] = {"bytes": file.stat().st_size, "sha256": _sha256(file)}
                    _flush(file)
                told = {key: value for key, value in vars(snapshot).items() if key not in parts}
                told |= {"version": SNAPSHOT_VERSION, "log_bytes": self.log.stat().st_size, "files": files}
                (partial / "state.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
                _flush(partial / "state.json")
                _flush(partial)
                self._remove(final)
                partial.rename(final)
                _flush(self.snapshots)
                self._remove(*self._found()[: -self.keep])
        except DataError:
            shutil.rmtree(partial, ignore_errors=True)
            raise

    def _found(self) -> list[Path]:
        """The snapshots there are, oldest first."""
        found = {int(match[1]): one for one in self.snapshots.iterdir() if (match := _STEP.fullmatch(one.name))}
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
                "end the run with the version that began it, or start anew with --fresh"
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
