"""One step over its micro-batches, and the guard against losses and gradients that are not finite."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from animeshooter_dataset import DataError
from animeshooter_streams import Batch
from recipes.losses import Tally
from recipes.running import Run
from recipes.together import StoppedElsewhere, gathered

SCALER_MAY_SEEK = 40
"""Steps in a row whose gradient may overflow in fp16: the scale halves each time, from 2^16 to below 2^-23."""


@dataclass
class Stepped:
    """What a step came to, the same on every process.

    Args:
        loss: what was minimised, over the global batch; not finite in a step that was left out for it.
        bands: loss by part of the noise schedule, see ``losses.BANDS``; None where no sample fell.
        shots: loss by a shot's position in its sample.
        norm: of the gradient before clipping; None where it is not known.
        skipped: why nothing was updated.
    """

    loss: float
    bands: list[float | None]
    shots: list[float | None]
    norm: float | None = None
    skipped: str | None = None


class Guard:
    """Counts the steps in a row that were left out because something was not finite, in ``this.left_out``: a snapshot has it.

    Args:
        this: the run.

    Raises:
        DataError: ``train.skip_nonfinite`` is asked for where a step cannot be left out.
    """

    def __init__(self, this: Run) -> None:
        from accelerate.utils import DistributedType

        self.most = this.config.train.skip_nonfinite
        self.updates_at_once = this.accelerator.distributed_type == DistributedType.DEEPSPEED
        if self.most < 0:
            raise DataError(f"train.skip_nonfinite={self.most}: it counts steps, from 0")
        if self.most and self.updates_at_once:
            raise DataError("train.skip_nonfinite: DeepSpeed updates before the gradient can be looked at; set it to 0")
        self.scaled = this.accelerator.mixed_precision == "fp16"

    def passed(self, this: Run) -> None:
        """A step was all finite."""
        this.left_out = 0

    def left_out(self, this: Run, what: str) -> str:
        """A step was not; every process calls it with the same words, and gets them back if the run goes on.

        Raises:
            DataError: there were too many in a row; on the main process.
            StoppedElsewhere: the same, on the others.
        """
        this.left_out += 1
        told = f"step {this.step}: {what}"
        if this.left_out <= self.most:
            this.say(f"{this.stage.name}: {told}; left out ({this.left_out} in a row, train.skip_nonfinite={self.most})")
            return told
        problem = f"{told}; lower train.learning_rate, or use the precision the video model was trained in"
        raise DataError(problem) if this.main else StoppedElsewhere(problem)

    def overflow(self, this: Run) -> str:
        """The gradient overflowed in fp16, and the scaler left the step out, as it does to find its scale."""
        this.left_out += 1
        if this.left_out > SCALER_MAY_SEEK:
            self.most = 0
            return self.left_out(this, f"the gradient has overflowed for {this.left_out} steps in a row")
        return f"step {this.step}: the gradient overflowed; the scaler of fp16 left it out"


def take_step(this: Run, micro: list[Batch], guard: Guard) -> Stepped:
    """Forward, backward and update over the micro-batches of a step; nothing is updated when something is not finite.

    The losses of all processes are gathered before the last backward pass, which under DeepSpeed updates the weights.

    Args:
        this: the run.
        micro: its micro-batches on this process.
        guard: decides what becomes of a step that is not finite.

    Raises:
        DataError: loss or gradient are not finite, on any process, and the guard lets it not pass.
    """
    accelerator, optimizer = this.accelerator, this.optimizer
    tally, broken = Tally(float(this.module.gen.scheduler.config.num_train_timesteps)), []
    result: Stepped | None = None
    for batch in micro:
        with accelerator.accumulate(this.model):
            losses = this.model(batch)
            broken.append(tally.add(losses))
            if accelerator.sync_gradients:
                result = _gather(accelerator, tally)
                if not math.isfinite(result.loss):
                    result.skipped = guard.left_out(this, f"the loss is {result.loss}{_names(micro, broken)}")
                    optimizer.zero_grad()
                    return result
            accelerator.backward(losses.per_sample.mean())
            if accelerator.sync_gradients and result is not None:
                _clip(this, result, guard)
            if result is None or result.skipped is None or guard.scaled:  # the scaler sees an overflow by itself
                optimizer.step()
            optimizer.zero_grad()
    assert result is not None
    if result.skipped is None:
        guard.passed(this)
    return result


def _gather(accelerator: Any, tally: Tally) -> Stepped:
    """The losses of all processes. It waits for the device and the others, as :func:`_clip` does once more for the norm."""
    rows = accelerator.gather(tally.vector()).reshape(accelerator.num_processes, -1)
    return Stepped(*tally.read(rows))


def _clip(this: Run, result: Stepped, guard: Guard) -> None:
    """Clip the gradient, note its norm, and ask the guard where it is not finite."""
    trained = [parameter for parameter in this.model.parameters() if parameter.requires_grad]
    norm: Any = this.accelerator.clip_grad_norm_(trained, this.config.train.clip_norm)
    if hasattr(norm, "full_tensor"):
        norm = norm.full_tensor()
    result.norm = None if norm is None else float(norm)
    if result.norm is None or math.isfinite(result.norm):
        return
    if guard.scaled:
        result.skipped = guard.overflow(this)
    else:
        result.skipped = guard.left_out(this, f"the gradient's norm is {result.norm}, the loss is {result.loss:.4f}")


def _names(micro: list[Batch], broken: list[Tensor]) -> str:
    """The samples whose loss is not finite, on all processes."""
    mine = [
        "+".join(keys)
        for batch, which in zip(micro, broken, strict=True)
        for keys, bad in zip(batch.keys, which.tolist(), strict=True)
        if bad
    ]
    keys = [key for one in gathered({"keys": mine}) for key in one["keys"]]
    if not keys:
        return ""
    return f" (of {', '.join(keys[:8])}" + (f" and {len(keys) - 8} more)" if len(keys) > 8 else ")")
