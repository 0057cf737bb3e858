"""Tiny models with random weights, one for each kind of video backbone."""

import dataclasses

from model import AnimeShooterGen, preset


def tiny_model(kind: str, seed: int = 0) -> AnimeShooterGen:
    """A tiny model: "tiny" is CogVideoX with sin-cos positions, "rotary" with rotary ones, "tiny_wan" is Wan."""
    config = preset("tiny" if kind == "rotary" else kind)
    if kind == "rotary":
        transformer = {**config.video.transformer, "use_rotary_positional_embeddings": True}
        config = dataclasses.replace(config, video=dataclasses.replace(config.video, transformer=transformer))
    return AnimeShooterGen.from_preset(config, seed)
