"""What the frozen parts of the model make of a batch, or what a cache holds of it: latents, frames, features of captions.

A sample's ``features`` (see ``streams.features``) come first; what they lack is made here. Both ways give the same
numbers, and draw the same random ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from animeshooter_dataset import DataError
from animeshooter_streams import Batch
from recipes.config import Config
from recipes.sizes import clips_at_once

if TYPE_CHECKING:
    from model import AnimeShooterGen


def captions_of(batch: Batch, which: str) -> list[list[str]]:
    """The captions the model reads, [B][n]: ``which`` is narrative, descriptive or both."""
    if which == "both":
        return [[f"{a} {b}" for a, b in zip(one.narrative, one.descriptive)] for one in batch.samples]
    return [list(getattr(one, which)) for one in batch.samples]


def cached(sample: Any, name: str) -> list[Tensor] | None:
    """What is cached of every shot of a sample; None where it lacks for one of them."""
    found = [one.get(name) for one in getattr(sample, "features", None) or ()]
    return found if found and all(value is not None for value in found) else None


def frames_of(batch: Batch, which: str) -> Tensor:
    """The ``first`` or ``last`` frame of every shot, uint8 [B, n, H, W, 3]."""
    decoded = getattr(batch, which)
    if decoded is not None:
        return decoded
    return torch.stack(
        [torch.stack(cached(one, which) or list(map(torch.from_numpy, getattr(one, which)))) for one in batch.samples]
    )


@torch.no_grad()
def posterior(gen: AnimeShooterGen, frames: Tensor) -> Tensor:
    """Mean and log-variance of the VAE's posterior of clips.

    Args:
        gen: the model.
        frames: uint8 [B, F, H, W, 3].

    Returns:
        [B, 2, F', C, h, w] in the type the VAE gives, not scaled.

    Raises:
        DataError: the VAE is not in memory.
        ValueError: a size it cannot take.
    """
    _in_memory(gen.vae, "latents")
    return torch.cat([gen.backbone.posterior(part) for part in frames.split(clips_at_once(*frames.shape[1:4]))])


def encode_clips(gen: AnimeShooterGen, batch: Batch, config: Config, generators: Sequence[torch.Generator]) -> list[Tensor]:
    """Latents of every shot of each sample, scaled as the transformer expects: [n, F', C, h, w] of each.

    With ``data.latents`` "sample" they are drawn from the VAE's posterior with the sample's generator, else they are its mode.
    """
    known = [cached(sample, "latents") for sample in batch.samples]
    made: dict[int, Tensor] = {}
    missing = [place for place, found in enumerate(known) if found is None]
    if missing:
        frames = torch.stack([torch.from_numpy(batch.samples[place].frames) for place in missing])
        made = dict(zip(missing, posterior(gen, frames.flatten(0, 1)).unflatten(0, frames.shape[:2])))
    latents = []
    for place, (found, generator) in enumerate(zip(known, generators, strict=True)):
        both = made[place] if found is None else torch.stack(found).to(gen.transformer.device)
        drawn, logvar = both.unbind(1)
        if config.data.latents == "sample":
            noise = torch.randn(drawn.shape, generator=generator, device=generator.device)
            drawn = drawn + torch.exp(0.5 * logvar) * noise.to(drawn.device, drawn.dtype)
        latents.append(gen.backbone.scale(drawn))
    return latents


@torch.no_grad()
def encode_captions(gen: AnimeShooterGen, batch: Batch, captions: Sequence[str], dropped: Sequence[bool]) -> Tensor:
    """Features [B, L, D] of the one caption of each sample, or of the empty one where it is dropped."""
    names = ["blank" if drop else "text" for drop in dropped]
    known = [cached(sample, name) for sample, name in zip(batch.samples, names, strict=True)]
    missing = [place for place, found in enumerate(known) if found is None]
    made: dict[int, Tensor] = {}
    if missing:
        _in_memory(gen.text_encoder, "text")
        made = dict(zip(missing, gen.text_features(["" if dropped[place] else captions[place] for place in missing])))
    device = gen.transformer.device
    return torch.stack([made[place] if found is None else found[0].to(device) for place, found in enumerate(known)])


def _in_memory(part: Any, kind: str) -> None:
    if part is None or part.device.type == "meta":
        raise DataError(f"not all {kind} are cached, and the part of the model that makes them is not in memory")
