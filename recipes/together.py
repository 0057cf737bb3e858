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
import warnings
from collections.abc import Callable, Iterator, Mapping
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
        DataError: the launcher started several processes that do not know of one another, more than there are GPUs, or
            another number than was planned.
        ProcessLost: some of them did not come within ``train.patience`` seconds.
    """
    from accelerate import Accelerator
    from accelerate.utils import InitProcessGroupKwargs

    from recipes.sharding import fsdp_asked

    fsdp_asked()  # before accelerate sees it
    world = check_launch(config.train.processes)
    no_gpu = not torch.accelerator.is_available()
    if no_gpu:
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # unasked, DeepSpeed warns of it in every run where it is installed
    deepspeed = os.environ.get("ACCELERATE_USE_DEEPSPEED", "").lower() == "true"
    if deepspeed:
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+` is deprecated", FutureWarning)
    # the launcher's word would stand over ours, and "auto" is none that accelerate understands
    os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = str(config.train.accumulate)
    backend = "gloo" if no_gpu and deepspeed else None
    told = InitProcessGroupKwargs(timeout=timedelta(seconds=config.train.patience), backend=backend)
    with connected(world), deepspeed_there():
        if deepspeed and no_gpu:
            _without_compiler()
        accelerator = Accelerator(
            cpu=no_gpu and not deepspeed,  # with it, accelerate takes DDP for DeepSpeed; without it, processes train apart
            gradient_accumulation_steps=config.train.accumulate,
            mixed_precision=config.train.precision,
            kwargs_handlers=[told],
        )
    if accelerator.num_processes != world:
        raise DataError(
            f"{world} processes were started but {accelerator.num_processes} train together; on CPUs use "
            "`accelerate launch --config_file recipes/launch/cpu_2.yaml`"
        )
    return accelerator


def check_launch(planned: int | None) -> int:
    """How many processes the launcher says train together.

    Args:
        planned: how many must; None for as many as were started.

    Raises:
        DataError: not as many as were planned or as Slurm started, or more on this machine than it has GPUs.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    here = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    # of the step, not of the job: a shell of `salloc` is a step of one task in a job of many
    told = os.environ.get("SLURM_STEP_NUM_TASKS", os.environ.get("SLURM_NTASKS", "1"))
    tasks = int(told) if "SLURM_STEP_ID" in os.environ else 1
    if tasks > world:
        raise DataError(
            f"srun started {tasks} tasks, but {world} process{'es train' if world > 1 else ' trains'} together: "
            "they would train apart; start them as recipes/launch/slurm.sh does"
        )
    if planned is not None and planned != world:
        raise DataError(
            f"train.processes is {planned}, but {world} process{'es were' if world > 1 else ' was'} started; "
            f"start {planned} (accelerate launch --num_processes {planned}), or leave the setting out"
        )
    gpus = torch.accelerator.device_count() if torch.accelerator.is_available() else None
    if gpus is not None and here > gpus:
        raise DataError(
            f"{here} processes were started on this machine, which has {gpus} GPU{'s' if gpus > 1 else ''}: "
            f"give --num_processes {gpus}, or look at CUDA_VISIBLE_DEVICES"
        )
    return world


def _without_compiler() -> None:
    """On CPUs DeepSpeed would compile an all-reduce of its own; killed there, it leaves a lock on which all later ones wait."""
    from deepspeed import ops

    ops.__compatible_ops__["deepspeed_shm_comm"] = False


@contextmanager
def deepspeed_there() -> Iterator[None]:
    """Inside, a launch with DeepSpeed where it is not installed becomes a line the user can act on."""
    try:
        yield
    except ImportError as error:
        if "DeepSpeed is not installed" not in str(error) and error.name != "deepspeed":
            raise
        raise DataError("DeepSpeed was asked for and is not installed: pip install deepspeed") from None


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


def tensors_from_main(tensors: Mapping[str, Tensor] | None, device: torch.device) -> Iterator[tuple[str, Tensor]]:
    """Tensors that only the main process has (None elsewhere), on every process, one at a time; all must take all of them."""
    from accelerate import PartialState

    mine = tensors if PartialState().is_main_process and tensors is not None else {}
    for name, (shape, dtype) in from_main({name: (tuple(tensor.shape), tensor.dtype) for name, tensor in mine.items()}).items():
        tensor = mine[name].to(device) if name in mine else torch.empty(shape, dtype=dtype, device=device)
        if PartialState().num_processes > 1:
            torch.distributed.broadcast(tensor, src=0)
        yield name, tensor


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
