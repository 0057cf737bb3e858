"""Stage 0, for small models made from nothing: a video autoencoder, and a video transformer that follows text.

The paper's stages keep a pretrained video model frozen; where there are no weights of one, this makes it. Two parts:

--part vae
Trains    the video autoencoder (checkpoint of stage ``pretrain_vae``)
From      a preset, or a model of this part (first on single frames, say, then on clips)
Loss      absolute and squared error of the clips, and a small divergence of the latents
After     the scale of the latents is measured on the data and saved with the autoencoder

--part transformer (the default)
Trains    the whole video transformer
From      a preset with random weights, or a model of ``--part vae``
Loss      the diffusion loss under the text encoder's features of the caption
Dropout   of the caption, so that there is something to guide against

Stream    single shots, of both

Run: accelerate launch recipes/pretrain.py --part vae --preset small --data animeshooter --out checkpoints/pretrain_vae
     accelerate launch recipes/pretrain.py --from checkpoints/pretrain_vae --data animeshooter --out checkpoints/pretrain
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from animeshooter_dataset import DataError
from animeshooter_streams import Batch, ShotStream
from recipes.config import SMALL_CLIP, TINY_CLIP, Config, DataConfig, DropoutConfig, TrainConfig
from recipes.encoding import captions_of, encode_captions, encode_clips
from recipes.losses import Losses
from recipes.presets import for_backbones
from recipes.trainer import Stage, main

if TYPE_CHECKING:
    from model import AnimeShooterGen

MEASURED = 64
"""Batches on which the scale of the latents is measured, at most."""
PRESETS = {
    "tiny": Config(
        preset="tiny",
        data=DataConfig(clip=TINY_CLIP),
        train=TrainConfig(steps=8, global_batch=4, learning_rate=1e-3),
        dropout=DropoutConfig(caption=0.1),
    ),
    "small": Config(
        preset="small",
        data=DataConfig(clip=SMALL_CLIP),
        train=TrainConfig(steps=1200, global_batch=8, learning_rate=1e-3, warmup=100),
        dropout=DropoutConfig(caption=0.1),
    ),
}
VAE_PRESETS = {
    name: dataclasses.replace(
        config,
        train=dataclasses.replace(config.train, global_batch=4, learning_rate=2e-3),
        dropout=DropoutConfig(),
    )
    for name, config in PRESETS.items()
}


def loss(gen: AnimeShooterGen, batch: Batch, config: Config, generators: list[torch.Generator]) -> Losses:
    """Diffusion loss of each sample [B]."""
    captions = [caption for (caption,) in captions_of(batch, config.data.caption)]
    dropped = [bool(torch.rand((), generator=generator) < config.dropout.caption) for generator in generators]
    condition = encode_captions(gen, batch, captions, dropped)
    latents = torch.cat(encode_clips(gen, batch, config, generators))
    # Drawn sample by sample, so that noise and timesteps do not depend on which samples share a process.
    drawn = [gen.backbone.noise(one[None], generator)[1:] for one, generator in zip(latents, generators, strict=True)]
    noise, timesteps = (torch.cat(part) for part in zip(*drawn))
    found, timesteps = gen.diffusion_loss(latents, condition, noise=noise, timesteps=timesteps)
    return Losses(found, found[:, None], timesteps[:, None])


def vae_loss(gen: AnimeShooterGen, batch: Batch, config: Config, generators: list[torch.Generator]) -> Losses:
    """Reconstruction loss of each sample [B]."""
    from model.autoencoder import reconstruction_loss

    frames = _clips(batch)
    shape = gen.backbone.latent_shape(*frames.shape[1:4])
    noise = torch.stack([torch.randn(shape, generator=generator) for generator in generators])
    return Losses(reconstruction_loss(gen.vae, frames, noise.transpose(1, 2)))


def _clips(batch: Batch) -> Tensor:
    if any(sample.frames is None for sample in batch.samples):
        raise DataError("pretrain_vae reads clips, not latents made of them: leave out data.features")
    return torch.stack([torch.from_numpy(sample.frames[0]) for sample in batch.samples])


def normalise(gen: AnimeShooterGen, stream: ShotStream, config: Config) -> None:
    """Have the autoencoder's configuration say how the latents of this data become as large as the transformer wants them."""
    from model.autoencoder import normalise_latents
    from recipes.stage import model_errors

    def clips() -> Iterator[Tensor]:
        steps = min(MEASURED, stream.steps_per_epoch)
        for (batch,) in stream.batches(steps=steps):
            yield _clips(batch)

    with model_errors():
        normalise_latents(gen.vae, clips())


STAGE = Stage(
    name="pretrain",
    parents=("preset", "pretrain_vae"),
    stream=ShotStream,
    loss=loss,
    presets=for_backbones(PRESETS),
    about=__doc__,
    needs=frozenset({"latents", "text", "blank"}),
)
VAE_STAGE = Stage(
    name="pretrain_vae",
    parents=("preset", "pretrain_vae"),
    stream=ShotStream,
    loss=vae_loss,
    presets=VAE_PRESETS,
    about=__doc__,
    needs=frozenset({"latents"}),
    conclude=normalise,
)
PARTS = {"transformer": STAGE, "vae": VAE_STAGE}


def run_part(argv: list[str] | None = None) -> int:
    """The stage that ``--part`` names, from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--part", choices=sorted(PARTS), default="transformer")
    args, rest = parser.parse_known_args(argv)
    return main(PARTS[args.part], rest)


if __name__ == "__main__":
    sys.exit(run_part())
