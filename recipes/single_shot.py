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

from animeshooter_streams import Batch, ShotStream
from recipes.conditions import contexts_of, dropped, memory_of, prompts_of, references_of, shot_losses
from recipes.config import PAPER_CLIP, SMALL_CLIP, TINY_CLIP, Config, DataConfig, DropoutConfig, TrainConfig
from recipes.encoding import encode_clips
from recipes.losses import Losses
from recipes.presets import for_backbones
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
    "small": Config(
        preset="small",
        data=DataConfig(clip=SMALL_CLIP, caption="narrative"),
        train=TrainConfig(steps=1000, global_batch=8, learning_rate=5e-4, warmup=50),
        dropout=DROPOUT,
    ),
    # The learning rate is ours; the paper states none.
    "paper": Config(
        preset="paper",
        data=DataConfig(clip=PAPER_CLIP, workers=4),
        train=TrainConfig(steps=17_000, global_batch=24, learning_rate=1e-4, warmup=500),
        dropout=DROPOUT,
    ),
}


def loss(gen: AnimeShooterGen, batch: Batch, config: Config, generators: list[torch.Generator]) -> Losses:
    """Diffusion loss of every shot; what it remembers of those before it are their true frames."""
    without = [dropped(config, generator) for generator in generators]
    references = [None if dark else references_of(one) for one, (dark, _) in zip(batch.samples, without, strict=True)]
    told = zip(prompts_of(batch, config.data.caption), without, strict=True)
    captions = [[""] * len(texts) if silent else texts for texts, (_, silent) in told]
    memory = memory_of(batch, gen.policy)
    condition = gen.condition(references, captions, memory)
    contexts = contexts_of(gen, batch, [dark for dark, _ in without], memory)
    latents = encode_clips(gen, batch, config, generators)
    # Sample by sample, so that noise and timesteps do not depend on which samples share a process.
    return Losses.of_shots(
        [
            shot_losses(gen, latents[place], condition[place], generator, None if contexts is None else contexts[place])
            for place, generator in enumerate(generators)
        ]
    )


STAGE = Stage(
    name="single_shot",
    parents=("align",),
    stream=ShotStream,
    loss=loss,
    presets=for_backbones(PRESETS),
    about=__doc__,
    needs=frozenset({"latents", "vision"}),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
