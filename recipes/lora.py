"""Stage 4, one character or film: a LoRA on the video transformer that learns its looks.

Trains    a LoRA on the video transformer; everything else is frozen
From      a model of `multi_shot`
Stream    the shots of one film (--video) or that list one character (--character), drawn into sequences of 3
Loss      the diffusion loss of `single_shot`, over all shots
Paper     5-6 clips of an IP, batch 2, 1-2 K steps, no dropout

Run: accelerate launch recipes/lora.py --from checkpoints/multi_shot --data animeshooter --video bunny --out checkpoints/bunny
"""

from __future__ import annotations

import argparse
import sys

from animeshooter_streams import DrawnStream
from recipes.config import PAPER_CLIP, TINY_CLIP, Config, DataConfig, TrainConfig
from recipes.single_shot import loss
from recipes.trainer import Stage, main

PRESETS = {
    "tiny": Config(
        preset="tiny",
        data=DataConfig(clip=TINY_CLIP, shots=3),
        train=TrainConfig(steps=8, global_batch=2, learning_rate=1e-3),
    ),
    # The learning rate is ours; the paper states none.
    "paper": Config(
        preset="paper",
        data=DataConfig(clip=PAPER_CLIP, shots=3, workers=2),
        train=TrainConfig(steps=1_500, global_batch=2, learning_rate=1e-4, warmup=50, precision="bf16"),
    ),
}
STAGE = Stage(
    name="lora",
    parents=("multi_shot",),
    stream=DrawnStream,
    loss=loss,
    presets=PRESETS,
    about=__doc__,
    needs=frozenset({"latents", "last"}),
)


def lora_main(argv: list[str] | None = None) -> int:
    """As :func:`recipes.trainer.main`, with ``--video`` and ``--character`` for the settings of those names."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--video")
    parser.add_argument("--character")
    chosen, rest = parser.parse_known_args(argv)
    named = {name: value for name, value in vars(chosen).items() if value is not None}
    return main(STAGE, [*rest, *(part for name, value in named.items() for part in ("--set", f"data.{name}={value}"))])


if __name__ == "__main__":
    sys.exit(lora_main())
