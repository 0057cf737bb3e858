"""Processes that train together: they start, fail and stop together, and wait for one another only so long.

A process that fails alone would leave the others waiting in a collective. So whatever may fail on one of them is followed
by :func:`agree`, and the loop tells the others before each step how it stands (:func:`gathered`). What cannot be told, a
process that was killed or hangs, ends the wait of the others by a closed connection or after ``train.patience`` seconds.
"""

from __future__ import annotations

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from animeshooter_dataset import DataError
from recipes.config import Config

if TYPE_CHECKING:
    from accelerate import Accelerator

T = TypeVar("T")

NOT_FINISHED = 75
"""Exit code of a run that has not reached its last step and can go on: EX_TEMPFAIL of sysexits.h, "try again"."""
_BROKEN = re.compile(r"connection (was )?(closed|reset|refused)|broken pipe|timed? ?out|gloo|nccl|socket", re.IGNORECASE)
"""What back-ends say when a process they wait for does not answer."""
FORCE_AFTER = 1.0
"""Seconds after which a second Ctrl-C is a person's and not the same one handed on by a launcher."""


class StoppedElsewhere(DataError):
    """Another process met an error and says so; this one only stops."""


class Stopped(Exception):
    """The run was asked to stop before its last step."""


class ProcessLost(Exception):
    """A process of the run died or does not answer; there is nobody left to agree with."""


def make_accelerator(config: Config) -> Accelerator:
    """Accelerate for the processes that were started; on machines without an accelerator, gloo.

    Raises:
        DataError: the launcher started several processes that do not know of one another.
        ProcessLost: some of them did not come within ``train.patience`` seconds.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    sharded = any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("DEEPSPEED", "FSDP"))
    # Without this, processes started on a machine with no GPU train apart from one another.
    no_gpu = not sharded and not torch.accelerator.is_available()
    world = int(os.environ.get("WORLD_SIZE", "1"))
    with connected(world):
        accelerator = Accelerator(
            cpu=no_gpu,
            gradient_accumulation_steps=config.train.accumulate,
            mixed_precision=config.train.precision,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=timedelta(seconds=config.train.patience))],
        )
    if accelerator.num_processes != world:
        raise DataError(
            f"{world} processes were started but {accelerator.num_processes} train together; on CPUs use "
            "`accelerate launch --config_file recipes/launch/cpu_2.yaml`"
        )
    return accelerator


@contextmanager
def connected(processes: int) -> Iterator[None]:
    """Inside, a back-end's complaint that a process does not answer becomes :class:`ProcessLost`."""
    try:
        yield
    except RuntimeError as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if processes < 2 or not (isinstance(error, torch.distributed.DistError) or _BROKEN.search(said)):
            raise
        said = re.sub(r"^\[[^\]]*\]\s*", "", said)
        raise ProcessLost(f"another process was lost ({said}); its own last lines or the system's log may say why") from None


def gathered(told: dict[str, Any]) -> list[dict[str, Any]]:
    """What each process tells the others, by their order; every process must call it."""
    from accelerate.utils import gather_object

    return gather_object([told])


def agree(problem: str | None) -> None:
    """Go on only if no process has a problem; every process must call it.

    Raises:
        DataError: on the first process that has one.
        StoppedElsewhere: on all others, if any has.
    """
    settle([one["problem"] for one in gathered({"problem": problem})])


def settle(problems: list[str | None]) -> None:
    """As :func:`agree`, with what was :func:`gathered` already."""
    first = next((place for place, problem in enumerate(problems) if problem is not None), None)
    if first is None:
        return
    if len(problems) == 1 or first == torch.distributed.get_rank():
        raise DataError(str(problems[first]))
    raise StoppedElsewhere(str(problems[first]))


def attempt(action: Callable[[], T]) -> tuple[T | None, str | None]:
    """What ``action`` returns, or the problem it met, to be told to the others."""
    try:
        return action(), None
    except DataError as error:
        return None, str(error)


def together(action: Callable[[], T]) -> T:
    """Do something that may fail, and go on only if it succeeded on every process; raises as :func:`agree` does."""
    result, problem = attempt(action)
    agree(problem)
    return result  # type: ignore[return-value]


def from_main(value: T) -> T:
    """What the main process has, on every process."""
    from accelerate.utils import broadcast_object_list

    return broadcast_object_list([value])[0]


def tensors_from_main(tensors: dict[str, Tensor] | None, device: torch.device) -> dict[str, Tensor]:
    """Tensors that only the main process has (None elsewhere), one after the other on every process."""
    from accelerate import PartialState

    state = PartialState()
    if state.num_processes == 1:
        assert tensors is not None
        return tensors
    mine = tensors if state.is_main_process and tensors is not None else {}
    shapes = from_main({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in mine.items()})
    received = {}
    for name, (shape, dtype) in shapes.items():
        tensor = mine[name].to(device) if name in mine else torch.empty(shape, dtype=dtype, device=device)
        torch.distributed.broadcast(tensor, src=0)
        received[name] = tensor
    return received


class StopSignals:
    """Notes SIGTERM and SIGINT instead of dying from them, so that a step can be finished and saved.

    A second Ctrl-C, at least :data:`FORCE_AFTER` seconds later, interrupts at once. Outside the main thread, where no signal
    arrives, it does nothing.
    """

    def __init__(self) -> None:
        self.asked: str | None = None
        self._when = 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == signal.SIGINT and self.asked == "SIGINT" and now - self._when >= FORCE_AFTER:
            raise KeyboardInterrupt
        if self.asked is None:
            self.asked, self._when = signal.Signals(number).name, now
