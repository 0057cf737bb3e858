"""From noise to latents, under any combination of conditions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from model.backbones.base import Backbone
    from model.context import Context


@torch.no_grad()
def denoise(
    backbone: Backbone,
    conditions: Tensor,
    weights: Tensor | Sequence[float],
    shape: Sequence[int],
    steps: int,
    generator: torch.Generator | None = None,
    context: Context | None = None,
    *,
    noise: Tensor | None = None,
    progress: Callable[[], Any] | None = None,
) -> Tensor:
    """Latents of one clip.

    Every step predicts under each of K conditions and takes the sum of the predictions by their weights. Guidance of
    scale s away from a blank condition is the conditions (blank, full) with the weights (1 - s, s).

    Args:
        backbone: the video model.
        conditions: [K, L, D].
        weights: K numbers that add up to 1.
        shape: (F', C, h, w), from `Backbone.latent_shape`.
        steps: denoising steps.
        generator: source of the noise; its device may be another than the model's.
        context: clean frames the model may look at: of batch K, or of batch 1 for all conditions.
        noise: what to start from instead, [1, F', C, h, w].
        progress: called after every step.

    Returns:
        Float32 [1, F', C, h, w], for `Backbone.decode`.

    Raises:
        ValueError: the weights are not K numbers that add up to 1.
    """
    device = backbone.transformer.device
    shares = torch.as_tensor(weights, dtype=torch.float32)
    if shares.shape != (len(conditions),) or abs(float(shares.sum()) - 1) > 1e-4:
        raise ValueError(f"{len(conditions)} conditions need as many weights that add up to 1, not {shares.tolist()}")
    shares = shares.to(device).view(-1, 1, 1, 1, 1)
    if noise is None:
        where = generator.device if generator is not None else device
        noise = torch.randn((1, *shape), generator=generator, device=where)
    solver = _Solver(backbone.scheduler, steps, device, generator)
    latents = noise.to(device, torch.float32) * solver.initial_sigma
    for step, time in enumerate(solver.timesteps):
        count = len(conditions)
        inputs = solver.inputs(latents, time).expand(count, -1, -1, -1, -1)
        predictions = backbone.predict(inputs, conditions, time.expand(count), context)
        latents = solver.advance((shares * predictions).sum(0, keepdim=True), step, latents)
        if progress is not None:
            progress()
    return latents


class _Solver:
    """A scheduler of its own for one clip: sampling leaves the model's, which training reads, as it was."""

    def __init__(self, scheduler: Any, steps: int, device: torch.device, generator: torch.Generator | None) -> None:
        self.scheduler = type(scheduler).from_config(scheduler.config)
        self.scheduler.set_timesteps(steps, device=device)
        self.timesteps: Tensor = self.scheduler.timesteps.to(device)
        self.initial_sigma = float(getattr(self.scheduler, "init_noise_sigma", 1.0))
        self._generator, self._denoised = generator, None

    def inputs(self, latents: Tensor, time: Tensor) -> Tensor:
        scaled = getattr(self.scheduler, "scale_model_input", None)
        return latents if scaled is None else scaled(latents, time)

    def advance(self, prediction: Tensor, step: int, latents: Tensor) -> Tensor:
        from diffusers import CogVideoXDPMScheduler

        time = self.timesteps[step]
        if isinstance(self.scheduler, CogVideoXDPMScheduler):  # of two steps: wants the one before, too
            before = self.timesteps[step - 1] if step else None
            latents, self._denoised = self.scheduler.step(
                prediction, self._denoised, time, before, latents, generator=self._generator, return_dict=False
            )
            return latents.float()
        return self.scheduler.step(prediction, time, latents, return_dict=False)[0].float()
