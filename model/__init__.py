"""AnimeShooterGen: stories of several shots with one character, out of transformers and diffusers parts.

Example::

    import torch
    from PIL import Image
    from model import AnimeShooterGen, AnimeShooterPipeline

    gen = AnimeShooterGen.from_preset("tiny", seed=0)          # "paper": Qwen3-VL-8B and CogVideoX-2B; "wan_1_3b": Wan 2.1
    gen.set_trainable("multi_shot")                            # adapter, queries and a LoRA on the MLLM
    clips = torch.zeros(3, 9, 64, 96, 3, dtype=torch.uint8)    # three shots of 9 frames
    sheet = Image.new("RGB", (96, 96), "orange")
    captions = ["A fox wakes up.", "It looks out.", "It runs into the snow."]
    condition = gen.condition([sheet], [captions], clips[None, :-1, -1])    # [1, 3, 24, 64]
    loss, timesteps = gen.diffusion_loss(gen.encode_video(clips), condition[0])
    loss.mean().backward()
    gen.save_pretrained("checkpoint")

    story = AnimeShooterPipeline.from_pretrained("checkpoint")(sheet, captions, num_inference_steps=10)
    story.shots[0].shape                                       # (9, 64, 96, 3), uint8
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.adapter import QueryAdapter
    from model.animeshooter_gen import STAGES, AnimeShooterGen, parameter_table
    from model.config import ModelConfig, preset
    from model.images import blank_reference
    from model.pipeline import AnimeShooterPipeline, AnimeShooterPipelineOutput

_HOMES = {
    "STAGES": "model.animeshooter_gen",
    "AnimeShooterGen": "model.animeshooter_gen",
    "AnimeShooterPipeline": "model.pipeline",
    "AnimeShooterPipelineOutput": "model.pipeline",
    "ModelConfig": "model.config",
    "QueryAdapter": "model.adapter",
    "blank_reference": "model.images",
    "parameter_table": "model.animeshooter_gen",
    "preset": "model.config",
}

__all__ = [
    "STAGES",
    "AnimeShooterGen",
    "AnimeShooterPipeline",
    "AnimeShooterPipelineOutput",
    "ModelConfig",
    "QueryAdapter",
    "blank_reference",
    "parameter_table",
    "preset",
]


def __getattr__(name: str) -> Any:
    """Imports torch, transformers and diffusers only when something of them is asked for."""
    if name not in _HOMES:
        raise AttributeError(f"module 'model' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)
