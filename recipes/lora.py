"""Stage 4, one character or film: a LoRA on the video transformer that learns its looks.

Trains    a LoRA on the video transformer; everything else is frozen
From      a model of `multi_shot`
Stream    the clips of a folder (--clips, see recipes/clips_folder.py), or of a dataset the shots of one film (--video) or that
          list one character (--character), drawn into sequences of 3
Loss      the diffusion loss of `single_shot`, over all shots
Paper     5-6 clips of an IP, batch 2, 1-2 K steps, no dropout

Run: accelerate launch recipes/lora.py --from checkpoints/multi_shot --clips fox --out checkpoints/fox
     accelerate launch recipes/lora.py --from checkpoints/multi_shot --data animeshooter --video bunny --out checkpoints/bunny
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from animeshooter_streams import DrawnStream
from recipes.clips_folder import is_clips_folder
from recipes.config import PAPER_CLIP, SMALL_CLIP, TINY_CLIP, Config, DataConfig, TrainConfig
from recipes.presets import for_backbones
from recipes.single_shot import loss
from recipes.trainer import Stage, main

PRESETS = {
    "tiny": Config(
        preset="tiny",
        data=DataConfig(clip=TINY_CLIP, shots=3),
        train=TrainConfig(steps=8, global_batch=2, learning_rate=1e-3),
    ),
    "small": Config(
        preset="small",
        data=DataConfig(clip=SMALL_CLIP, shots=3, caption="narrative"),
        train=TrainConfig(steps=300, global_batch=2, learning_rate=5e-4, warmup=20),
    ),
    # The learning rate is ours; the paper states none.
    "paper": Config(
        preset="paper",
        data=DataConfig(clip=PAPER_CLIP, shots=3, workers=2),
        train=TrainConfig(steps=1_500, global_batch=2, learning_rate=1e-4, warmup=50),
    ),
}
STAGE = Stage(
    name="lora",
    parents=("multi_shot",),
    stream=DrawnStream,
    loss=loss,
    presets=for_backbones(PRESETS),
    about=__doc__,
    needs=frozenset({"latents", "last", "vision"}),
)


def with_clips(argv: list[str] | None) -> list[str]:
    """Arguments of a stage, with ``--clips DIR``, ``--video`` and ``--character`` put as it takes them.

    Raises:
        SystemExit: ``--clips`` beside what only a dataset has.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--clips", metavar="DIR")
    parser.add_argument("--video")
    parser.add_argument("--character")
    chosen, rest = parser.parse_known_args(argv)
    if chosen.clips is not None:
        clash = [f"--{name}" for name in ("video", "character") if getattr(chosen, name)]
        clash += ["--data"] if any(one == "--data" or one.startswith("--data=") for one in rest) else []
        if clash:
            parser.exit(2, f"error: --clips is a folder of clips by itself; leave out {' and '.join(clash)}\n")
        if not is_clips_folder(Path(chosen.clips)):
            parser.exit(2, f"error: {chosen.clips}: no folder with clips (*.mp4)\n")
        rest += ["--data", chosen.clips]
    named = {name: getattr(chosen, name) for name in ("video", "character") if getattr(chosen, name) is not None}
    return [*rest, *(part for name, value in named.items() for part in ("--set", f"data.{name}={value}"))]


def lora_main(argv: list[str] | None = None) -> int:
    """As :func:`recipes.trainer.main`, with ``--clips``, ``--video`` and ``--character``."""
    return main(STAGE, with_clips(argv))


if __name__ == "__main__":
    sys.exit(lora_main())
