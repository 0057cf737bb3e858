"""Training the causal video VAE: what it must reproduce, and the scale of its latents."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from model.images import to_signed_clip

KL_WEIGHT = 1e-4
"""Weight of the mean divergence of a latent number. Small, as for every latent diffusion model (arXiv 2112.10752, section
3.1): it keeps the latents from drifting apart and costs little detail."""
LOGVAR = (-30.0, 20.0)
"""Bounds of the log-variance, those of diffusers' own DiagonalGaussianDistribution."""


def reconstruction_loss(vae: Any, frames: Tensor, noise: Tensor | None = None) -> Tensor:
    """Absolute plus squared error of clips encoded, drawn and decoded, and the divergence of the latents.

    The absolute error keeps edges, the squared one gets areas to their colour early.

    Args:
        vae: a causal video autoencoder of diffusers (CogVideoX, Wan), with gradients.
        frames: uint8 [B, F, H, W, 3].
        noise: standard normal, of the latents' shape [B, C, F', h, w]; None decodes the mean.

    Returns:
        The loss of each clip [B], float32. Pictures are in [-1, 1]; errors are means over their numbers.
    """
    video = to_signed_clip(frames).to(vae.device, vae.dtype)
    posterior = vae.encode(video).latent_dist
    latents = posterior.mean
    if noise is not None:
        latents = latents + torch.exp(0.5 * posterior.logvar) * noise.to(latents)
    # From an even number of latent frames the decoder makes up to three frames more, in front.
    found = vae.decode(latents).sample[:, :, -video.shape[2] :]
    error = (found - video).float()
    fit = error.abs().flatten(1).mean(1) + error.square().flatten(1).mean(1)
    return fit + KL_WEIGHT * divergence(posterior.mean, posterior.logvar)


def divergence(mean: Tensor, logvar: Tensor) -> Tensor:
    """Kullback-Leibler divergence from the standard normal distribution, the mean over the numbers of each clip [B]."""
    mean, logvar = mean.float(), logvar.float().clamp(*LOGVAR)
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).mean(1)


@torch.no_grad()
def normalise_latents(vae: Any, clips: Iterable[Tensor]) -> None:
    """Write into the VAE's configuration what makes its latents as large as a video transformer wants them.

    That is one factor that gives them a root mean square of one (``scaling_factor``, CogVideoX), or mean and standard deviation
    of every channel (``latents_mean``, ``latents_std``, Wan), measured on the posterior's mean.

    Args:
        vae: the autoencoder; only its configuration changes.
        clips: batches uint8 [B, F, H, W, 3].

    Raises:
        ValueError: no clips, or latents without spread or not finite.
    """
    count, total, squares = 0, torch.zeros(()), torch.zeros(())
    for frames in clips:
        mean = vae.encode(to_signed_clip(frames).to(vae.device, vae.dtype)).latent_dist.mean.double()
        total, squares = total + mean.sum((0, 2, 3, 4)), squares + mean.square().sum((0, 2, 3, 4))
        count += mean.numel() // mean.shape[1]
    middle, power = total / max(count, 1), squares / max(count, 1)
    spread = (power - middle.square()).clamp(min=0).sqrt()
    if not count or not torch.isfinite(power).all() or not (spread > 0).all():
        raise ValueError(f"latents of {count} cells have standard deviations {spread.tolist()}: they cannot be normalised")
    if vae.config.get("latents_mean") is not None:  # CogVideoX has the entry too, and does not use it
        vae.register_to_config(latents_mean=middle.tolist(), latents_std=spread.tolist())
    else:
        vae.register_to_config(scaling_factor=power.mean().item() ** -0.5)
