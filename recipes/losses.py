"""What a stage's loss returns, how it is weighted over the noise schedule, and how it is summed up over all processes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from animeshooter_dataset import DataError
from recipes.config import TrainConfig

if TYPE_CHECKING:
    from model import AnimeShooterGen

BANDS = 4
"""Equal parts of the noise schedule by which the loss is told, from little noise to much."""


class Losses(NamedTuple):
    """Losses of a micro-batch of B samples with n shots each.

    Args:
        per_sample: what is minimised is its mean, [B], with gradients.
        shots: of each shot, unweighted, [B, n]; None where a stage has no loss by shot.
        timesteps: of the noise schedule, at which each shot's loss was taken, [B, n]; None without a schedule.
    """

    per_sample: Tensor
    shots: Tensor | None = None
    timesteps: Tensor | None = None

    @classmethod
    def of_shots(cls, found: Sequence[tuple[Tensor, Tensor]]) -> Losses:
        """From ``gen.diffusion_loss`` of each sample: losses [n] and timesteps [n]."""
        shots = torch.stack([losses for losses, _ in found])
        return cls(shots.mean(1), shots, torch.stack([timesteps for _, timesteps in found]))


# ---- weighting ----


def check_weighting(gen: AnimeShooterGen, train: TrainConfig) -> None:
    """Whether the video model can be trained with the weighting asked for.

    Raises:
        DataError: it cannot, or ``train.snr_gamma`` is out of range.
    """
    if train.weighting == "backbone":
        return
    if train.snr_gamma <= 0:
        raise DataError(f"train.snr_gamma={train.snr_gamma}: it must be above 0; 5 is usual")
    if gen.backbone.snr(torch.zeros(1, dtype=torch.long)) is None:
        raise DataError(
            "train.weighting=min_snr: the video model matches flows, and its noise schedule has a weighting of its own"
        )


def weighted(losses: Losses, gen: AnimeShooterGen, train: TrainConfig) -> Losses:
    """The same losses, ``per_sample`` weighted as ``train.weighting`` says; without a noise schedule they stay as they are."""
    if train.weighting == "backbone" or losses.shots is None or losses.timesteps is None:
        return losses
    snr = gen.backbone.snr(losses.timesteps.flatten())
    assert snr is not None  # as `check_weighting` saw to
    weights = min_snr(snr.float(), train.snr_gamma, str(gen.scheduler.config.get("prediction_type", "epsilon")))
    return losses._replace(per_sample=(losses.shots * weights.reshape(losses.shots.shape).to(losses.shots.device)).mean(1))


def min_snr(snr: Tensor, gamma: float, prediction: str) -> Tensor:
    """Weights of Min-SNR-gamma (Hang et al. 2023, section 3.4) for the squared error of what the model predicts.

    The paper weighs the error of the clean sample by min(snr, gamma). The error of the noise is that times snr, the error of
    the velocity that times snr + 1, so their weights are divided by these.

    Args:
        snr: signal-to-noise ratio of each timestep, from 0.
        gamma: where it is cut.
        prediction: epsilon, v_prediction or sample.
    """
    cut = snr.clamp(max=gamma)
    if prediction == "v_prediction":
        return cut / (snr + 1)
    if prediction == "epsilon":  # at snr 0 the limit is 1: below gamma every weight is
        return torch.where(snr > gamma, gamma / snr.clamp(min=gamma), torch.ones_like(snr))
    return cut


# ---- summing up ----


class Tally:
    """Sums of a process's losses in one step, as one vector that is gathered: objective, bands and positions.

    Args:
        top: the highest timestep, which ends the last band.
    """

    def __init__(self, top: float) -> None:
        self.top = top
        self._means: list[Tensor] = []
        self._bands = self._shots = torch.zeros(0, 2, dtype=torch.float64)

    def add(self, losses: Losses) -> Tensor:
        """Take in a micro-batch; returns which of its samples have a loss that is not finite, [B]."""
        per_sample = losses.per_sample.detach().float()
        self._means.append(per_sample.mean().double())
        if losses.shots is not None:
            shots = losses.shots.detach().double()
            self._shots = _padded_sum(self._shots, torch.stack([shots.sum(0), torch.full_like(shots[0], len(shots))], 1))
            if losses.timesteps is not None:
                band = (losses.timesteps.to(shots.device) * BANDS / self.top).long().clamp(0, BANDS - 1)
                sums = torch.zeros(BANDS, 2, dtype=torch.float64, device=shots.device)
                both = torch.stack([shots.flatten(), torch.ones_like(shots).flatten()], 1)
                self._bands = _padded_sum(self._bands, sums.index_add(0, band.flatten(), both))
        return ~per_sample.isfinite()

    def vector(self) -> Tensor:
        """[1 + 2 * bands + 2 * positions], equally long on every process of a step."""
        parts = (torch.stack(self._means).mean()[None], self._bands.flatten(), self._shots.flatten())
        return torch.cat([part.to(self._means[0].device) for part in parts])

    def read(self, rows: Tensor) -> tuple[float, list[float | None], list[float | None]]:
        """Objective, loss by band and loss by position, over all processes, from their vectors [processes, ...]."""
        rows = rows.cpu()
        bands = rows[:, 1 : 1 + self._bands.numel()].sum(0).reshape(-1, 2)
        shots = rows[:, 1 + self._bands.numel() :].sum(0).reshape(-1, 2)
        return rows[:, 0].mean().item(), _means(bands), _means(shots)


def _padded_sum(one: Tensor, other: Tensor) -> Tensor:
    return other if not len(one) else one + other


def _means(sums: Tensor) -> list[float | None]:
    return [total / count if count else None for total, count in sums.tolist()]


def filled(losses: Sequence[float]) -> list[float]:
    """A run's losses for its record, where some step has one: one that was left out has that of the step before it."""
    known = [loss for loss in losses if math.isfinite(loss)]
    out: list[float] = []
    for loss in losses:
        out.append(loss if math.isfinite(loss) else out[-1] if out else known[0] if known else loss)
    return out
