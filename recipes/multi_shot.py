"""Stage 3, several shots: consecutive shots of a story in one pass, each reading the true last frames before it.

Trains    adapter, queries and the LoRA on the MLLM; the video transformer is frozen
From      a model of `single_shot`
Stream    3 consecutive shots of a story with one reference, from outside the three where there is one
Loss      the diffusion loss of `single_shot`, over all shots
Dropout   reference and captions together: 0.05
Paper     batch 8, 8 K steps

Run: accelerate launch recipes/multi_shot.py --from checkpoints/single_shot --data animeshooter --out checkpoints/multi_shot
"""

from __future__ import annotations

import sys

from animeshooter_streams import StoryStream
from recipes.config import PAPER_CLIP, SMALL_CLIP, TINY_CLIP, Config, DataConfig, DropoutConfig, TrainConfig
from recipes.presets import for_backbones
from recipes.single_shot import loss
from recipes.trainer import Stage, main

DROPOUT = DropoutConfig(both=0.05)
PRESETS = {
    "tiny": Config(
        preset="tiny",
        data=DataConfig(clip=TINY_CLIP, shots=3),
        train=TrainConfig(steps=8, global_batch=2, learning_rate=1e-3),
        dropout=DROPOUT,
    ),
    "small": Config(
        preset="small",
        data=DataConfig(clip=SMALL_CLIP, shots=3, caption="narrative"),
        train=TrainConfig(steps=300, global_batch=8, learning_rate=2e-4, warmup=50),
        dropout=DROPOUT,
    ),
    # The learning rate is ours; the paper states none.
    "paper": Config(
        preset="paper",
        data=DataConfig(clip=PAPER_CLIP, shots=3, workers=4),
        train=TrainConfig(steps=8_000, global_batch=8, learning_rate=5e-5, warmup=200),
        dropout=DROPOUT,
    ),
}
STAGE = Stage(
    name="multi_shot",
    parents=("single_shot",),
    stream=StoryStream,
    loss=loss,
    presets=for_backbones(PRESETS),
    about=__doc__,
    needs=frozenset({"latents", "last", "vision"}),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
