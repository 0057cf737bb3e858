"""The optimizer and its learning rate, which is a pure function of the step: a run that goes on needs no state of it."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn

from animeshooter_dataset import DataError
from recipes.config import TrainConfig


def rate_of(train: TrainConfig, step: int) -> float:
    """The learning rate of a step.

    It rises in equal parts over ``train.warmup`` steps, the first of which trains already. Then it stays, or falls along half a
    cosine or a line, and would be nothing at the step after the last.

    Args:
        train: settings of the loop.
        step: from 0.
    """
    if step < train.warmup:
        return train.learning_rate * (step + 1) / train.warmup
    if train.schedule == "constant":
        return train.learning_rate
    done = (step - train.warmup) / max(1, train.steps - train.warmup)
    left = 0.5 * (1 + math.cos(math.pi * done)) if train.schedule == "cosine" else 1 - done
    return train.learning_rate * max(0.0, left)


def schedule_words(train: TrainConfig) -> str:
    """The schedule for the record of a run."""
    after = {"constant": "constant", "cosine": "cosine to zero", "linear": "linear to zero"}[train.schedule]
    return f"linear over {train.warmup} steps, then {after}" if train.warmup else after


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group of parameters a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def make_optimizer(parameters: Iterable[nn.Parameter], train: TrainConfig) -> torch.optim.AdamW:
    """The optimizer of a run.

    Raises:
        DataError: a setting is out of its range.
    """
    if train.schedule != "constant" and train.warmup >= train.steps:
        raise DataError(
            f"train.warmup={train.warmup} leaves nothing of train.steps={train.steps} for the {train.schedule} schedule"
        )
    fused = True if train.optimizer == "adamw_fused" else None
    try:
        return torch.optim.AdamW(parameters, lr=train.learning_rate, weight_decay=train.weight_decay, fused=fused)
    except ValueError as error:  # of learning rate and weight decay
        raise DataError(f"train: {error}") from None
