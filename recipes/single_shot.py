"""Stage 2, single shots: reference and caption to one shot.

Trains    adapter, queries and a LoRA on the MLLM; the video transformer is frozen
From      a model of `align`
Stream    single shots, the reference taken from another shot of the story
Loss      the video model's diffusion loss under the condition the MLLM makes
Dropout   reference, captions, both: 0.05 each, independently
Paper     batch 24, 17 K steps

Run: accelerate launch recipes/single_shot.py --from checkpoints/align --data animeshooter --out checkpoints/single_shot
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from animeshooter_streams import Batch, ShotStream
from recipes.config import PAPER_CLIP, TINY_CLIP, Config, DataConfig, DropoutConfig, TrainConfig
from recipes.encoding import captions_of, encode_clips, frames_of
from recipes.trainer import Stage, main

if TYPE_CHECKING:
    from model import AnimeShooterGen

DROPOUT = DropoutConfig(reference=0.05, caption=0.05, both=0.05)
PRESETS = {
    "tiny": Config(
        preset="tiny",
        data=DataConfig(clip=TINY_CLIP),
        train=TrainConfig(steps=8, global_batch=4, learning_rate=1e-3),
        dropout=DROPOUT,
    ),
    # The learning rate is ours; the paper states none.
    "paper": Config(
        preset="paper",
        data=DataConfig(clip=PAPER_CLIP, workers=4),
        train=TrainConfig(steps=17_000, global_batch=24, learning_rate=1e-4, warmup=500, precision="bf16"),
        dropout=DROPOUT,
    ),
}


def loss(gen: AnimeShooterGen, batch: Batch, config: Config, generators: list[torch.Generator]) -> Tensor:
    """Diffusion loss of each sample [B], the mean of its shots; true last frames stand between the captions."""
    references, captions = [], []
    for one, texts, generator in zip(batch.samples, captions_of(batch, config.data.caption), generators):
        reference, caption, both = torch.rand(3, generator=generator).tolist()
        rates = config.dropout
        references.append(None if reference < rates.reference or both < rates.both else one.reference)
        captions.append([""] * len(texts) if caption < rates.caption or both < rates.both else texts)
    last = frames_of(batch, "last")[:, :-1] if len(captions[0]) > 1 else None
    condition = gen.condition(references, captions, last)
    latents = encode_clips(gen, batch, config, generators)
    # Sample by sample, so that noise and timesteps do not depend on which samples share a process.
    losses = [
        gen.diffusion_loss(latents[place], condition[place], generator)[0].mean() for place, generator in enumerate(generators)
    ]
    return torch.stack(losses)


STAGE = Stage(
    name="single_shot",
    parents=("align",),
    stream=ShotStream,
    loss=loss,
    presets=PRESETS,
    about=__doc__,
    needs=frozenset({"latents"}),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
