"""Stage 0, for small models made from nothing: teach the video transformer to follow text.

Trains    the whole video transformer
From      a preset with random weights (the paper starts from CogVideoX-2B, which this stage would only undo)
Stream    single shots
Loss      the diffusion loss under the text encoder's features of the caption
Dropout   of the caption, so that there is something to guide against

Run: accelerate launch recipes/pretrain.py --data animeshooter --out checkpoints/pretrain
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from animeshooter_streams import Batch, ShotStream
from recipes.config import TINY_CLIP, Config, DataConfig, DropoutConfig, TrainConfig
from recipes.encoding import captions_of, encode_captions, encode_clips
from recipes.trainer import Stage, main

if TYPE_CHECKING:
    from model import AnimeShooterGen

PRESETS = {
    "tiny": Config(
        preset="tiny",
        data=DataConfig(clip=TINY_CLIP),
        train=TrainConfig(steps=8, global_batch=4, learning_rate=1e-3),
        dropout=DropoutConfig(caption=0.1),
    )
}


def loss(gen: AnimeShooterGen, batch: Batch, config: Config, generators: list[torch.Generator]) -> Tensor:
    """Diffusion loss of each sample [B]."""
    captions = [caption for (caption,) in captions_of(batch, config.data.caption)]
    dropped = [bool(torch.rand((), generator=generator) < config.dropout.caption) for generator in generators]
    condition = encode_captions(gen, batch, captions, dropped)
    latents = encode_clips(gen, batch, config, generators)
    losses = [
        gen.diffusion_loss(latents[place], condition[place : place + 1], generator)[0].mean()
        for place, generator in enumerate(generators)
    ]
    return torch.stack(losses)


STAGE = Stage(
    name="pretrain",
    parents=("preset",),
    stream=ShotStream,
    loss=loss,
    presets=PRESETS,
    about=__doc__,
    needs=frozenset({"latents", "text", "blank"}),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
