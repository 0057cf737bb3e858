"""The precision of the arithmetic where nobody says it: on a GPU, the one that the video model was trained in."""

from __future__ import annotations

import dataclasses
import os
from types import SimpleNamespace
from typing import Literal

import torch

from recipes.config import Config


def settled(config: Config) -> Config:
    """The config with ``train.precision`` filled in.

    It stays as it is where it is set, where the launcher names a precision, and where there is no GPU. ``accelerate launch``
    names "no" when it was told nothing; who wants float32 on a GPU says ``--set train.precision=no``.
    """
    told = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if config.train.precision is not None or told != "no" or not torch.cuda.is_available():
        return config
    return dataclasses.replace(config, train=dataclasses.replace(config.train, precision=precision_of(config)))


def precision_of(config: Config) -> Literal["fp16", "bf16"] | None:
    """What the video model of a config was trained in; None of a preset with random weights, which was not trained."""
    from model.backbones import BACKBONES
    from recipes.parts import model_config

    video = model_config(config).video
    if video.pretrained is None:
        return None
    transformer = SimpleNamespace(config=SimpleNamespace(**{"use_rotary_positional_embeddings": False, **video.transformer}))
    return BACKBONES[video.kind](transformer, None, None).precision  # type: ignore[return-value]
