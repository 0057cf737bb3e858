"""A moving average of what is trained: it is what the checkpoint holds, while the optimizer goes on with the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from animeshooter_dataset import DataError

if TYPE_CHECKING:
    from recipes.sharding import Layout


class Ema:
    """Exponential moving average of parameters, in float32; each process keeps its own part of them.

    ``diffusers.training_utils.EMAModel`` keeps its averages in the type of the weights and counts its own steps: in bfloat16 a
    decay of 0.999 then changes nothing, and a run could not go on. The decay of a step is theirs: it grows as
    (1 + step) / (10 + step) with the steps done before, so that the random start is forgotten.

    Args:
        parameters: what is averaged, by name.
        decay: largest weight of the past, from 0 to below 1.
        layout: where the parameters lie.

    Raises:
        DataError: no such decay.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], decay: float, layout: Layout) -> None:
        if not 0 <= decay < 1:
            raise DataError(f"train.ema={decay}: a decay is at least 0 and less than 1, such as 0.9999")
        self.parameters, self.decay, self.layout = parameters, decay, layout
        self.averages = {name: layout.local(one).detach().float().clone() for name, one in parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after ``step`` steps, counted from 1."""
        weight = 1 - min(self.decay, step / (9 + step))
        for name, average in self.averages.items():
            average.lerp_(self.layout.local(self.parameters[name]).float(), weight)

    def tensors(self) -> dict[str, Tensor]:
        """The whole averages, on the CPU of the main process; empty elsewhere. Every process must call it."""
        return self.layout.gathered(self.parameters, self.averages)

    @torch.no_grad()
    def put(self, name: str, whole: Tensor) -> None:
        """Take the whole average of one parameter from a snapshot."""
        self.averages[name].copy_(self.layout.part(self.parameters[name], whole))

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the weights are the averages; afterwards they are as they were, to the bit.

        Raises:
            DataError: the weights are spread over processes.
        """
        if self.layout.sharded:
            raise DataError(f"train.ema: under {self.layout.name} the averages are only put together for a checkpoint")
        kept = {name: one.detach().clone() for name, one in self.parameters.items()}
        try:
            self._put(self.averages)
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, values: Mapping[str, Tensor]) -> None:
        for name, one in self.parameters.items():
            one.copy_(values[name])
