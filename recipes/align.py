"""Stage 1, condition alignment: teach queries and adapter to speak as the video model's text encoder does.

Trains    adapter and queries; MLLM, text encoder and video transformer are frozen
From      a preset (or a model of `pretrain`)
Stream    single shots: first frame and caption, of a dataset directory or of any text-video set (--data webvid, or
          'webvid/{00000..02489}.tar'; see recipes/text_video.py). The paper uses WebVid-10M
Loss      squared error between the condition and the text encoder's features of the caption
Paper     batch 32, 1.8 M steps, no dropout

Run: accelerate launch recipes/align.py --data animeshooter --out checkpoints/align
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import torch

from animeshooter_streams import Batch, ShotStream
from recipes.conditions import prompts_of
from recipes.config import PAPER_CLIP, SMALL_CLIP, TINY_CLIP, Config, DataConfig, TrainConfig
from recipes.encoding import captions_of, encode_captions, frames_of
from recipes.losses import Losses
from recipes.presets import for_backbones
from recipes.trainer import Stage, main

if TYPE_CHECKING:
    from model import AnimeShooterGen

PRESETS = {
    "tiny": Config(
        preset="tiny",
        data=DataConfig(clip=TINY_CLIP),
        train=TrainConfig(steps=8, global_batch=4, learning_rate=1e-3),
    ),
    "small": Config(
        preset="small",
        data=DataConfig(clip=SMALL_CLIP),
        train=TrainConfig(steps=500, global_batch=16, learning_rate=1e-3, warmup=50),
    ),
    # The learning rate is ours; the paper states none.
    "paper": Config(
        preset="paper",
        data=DataConfig(clip=PAPER_CLIP, workers=4),
        train=TrainConfig(steps=1_800_000, global_batch=32, learning_rate=1e-4, warmup=1000),
    ),
}


def loss(gen: AnimeShooterGen, batch: Batch, config: Config, generators: list[torch.Generator]) -> Losses:
    """Squared error of each sample's condition, averaged over tokens and width."""
    captions = [caption for (caption,) in captions_of(batch, config.data.caption)]
    prompts = [prompt for (prompt,) in prompts_of(batch, config.data.caption)]
    condition = gen.first_frame_condition(frames_of(batch, "first")[:, 0], prompts)
    target = encode_captions(gen, batch, captions, [False] * len(captions))
    return Losses((condition.float() - target.float()).square().flatten(1).mean(1))


STAGE = Stage(
    name="align",
    parents=("preset", "pretrain"),
    stream=ShotStream,
    loss=loss,
    presets=for_backbones(PRESETS),
    about=__doc__,
    needs=frozenset({"first", "text", "vision"}),
)

if __name__ == "__main__":
    sys.exit(main(STAGE))
