"""What ``benchmarks.training`` trains: a model of random weights made on the device, and a batch of made-up clips."""

from __future__ import annotations

import dataclasses
import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from animeshooter_streams import Batch
from recipes.config import Config, DropoutConfig, override
from recipes.data import clips_of, most_shots
from recipes.sizes import Reading
from recipes.stage import Stage
from streams.batches import Sample

BatchOf = Batch
WORDS = "a small red fox runs over the wet roofs of a quiet town while the moon rises behind the old tower and a bell rings "
CAPTION = 120
"""Tokens of a caption, about."""
REFERENCE = (448, 448)
QWEN3_VL = {"patch_size": 16, "merge_size": 2, "size": {"shortest_edge": 65536, "longest_edge": 16777216}}
"""Qwen3-VL's image processor, which random weights come without."""


@dataclass
class Trial:
    """What is measured here.

    Attributes:
        real: whether it is the real size, on a GPU.
        preset: of the model and the stages.
        precision: of the arithmetic.
        device: it runs on.
        text_encoder: of the model, kept apart: stages 2 to 4 do without it.
    """

    real: bool
    preset: str
    precision: str
    device: str
    text_encoder: Any = None

    @classmethod
    def here(cls, precision: str) -> Trial:
        """The real size where there is a GPU, else the tiny one."""
        if torch.cuda.is_available():
            return cls(True, "paper", precision, "cuda")
        return cls(False, "tiny", "no", "cpu")


def random_model(trial: Trial) -> Any:
    """The preset's model with random weights, the frozen parts in half precision; its text encoder goes to the trial."""
    from model import AnimeShooterGen, preset

    config = preset(trial.preset)
    mllm = dataclasses.replace(config.mllm, pretrained=None, image_processor=config.mllm.image_processor or QWEN3_VL)
    config = dataclasses.replace(config, mllm=mllm, video=dataclasses.replace(config.video, pretrained=None))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(trial.precision)
    more: dict[str, Any] = {"dtype": dtype, "device": trial.device} if trial.real else {}
    gen = AnimeShooterGen.from_preset(config, **more)
    trial.text_encoder = gen.text_encoder.to("cpu")
    gen.text_encoder = None
    return gen


def trial_config(stage: Stage, trial: Trial, checkpointing: bool) -> Config:
    """The stage's settings with one sample a step, nothing dropped."""
    config = stage.presets[trial.preset]
    plain = dataclasses.replace(config, dropout=DropoutConfig())
    settings = {
        "global_batch": 1,
        "accumulate": 1,
        "precision": trial.precision,
        "checkpointing": checkpointing,
        "compile": False,
    }
    return override(plain, [f"train.{name}={value}" for name, value in settings.items()])


def caption_of(gen: Any) -> str:
    """A caption of about :data:`CAPTION` tokens."""
    ids = gen.tokenizer(WORDS * 40, add_special_tokens=False)["input_ids"][:CAPTION]
    return gen.tokenizer.decode(ids)


def reading_of(gen: Any) -> Reading:
    """What the MLLM reads of :func:`batch_of`."""
    return Reading(len(gen.tokenizer(caption_of(gen), add_special_tokens=False)["input_ids"]), REFERENCE)


def batch_of(gen: Any, config: Config, *, cached: bool) -> Batch:
    """A batch of ``train.global_batch`` samples; with their latents, where they are cached."""
    clip, shots = clips_of(config)[0], most_shots(config)
    caption, samples, pictures = caption_of(gen), [], []
    for place in range(config.train.global_batch):
        random = np.random.default_rng(int.from_bytes(hashlib.sha256(str(place).encode()).digest()[:4], "big"))
        shape = (shots, clip.frames, clip.height, clip.width, 3)
        frames = random.integers(0, 256, shape, dtype=np.uint8)
        features = None
        if cached:
            size = (2, *gen.backbone.latent_shape(clip.frames, clip.height, clip.width))
            latents = torch.from_numpy(random.standard_normal((shots, *size), dtype=np.float32)).to(gen.transformer.dtype)
            features = [{"latents": one} for one in latents]
        pictures.append((frames, frames[:, 0], frames[:, -1]))
        samples.append(
            Sample(
                keys=tuple(f"sample{place}-{shot}" for shot in range(shots)),
                frames=frames,
                first=frames[:, 0],
                last=frames[:, -1],
                narrative=[caption] * shots,
                descriptive=[caption] * shots,
                references=tuple(
                    random.integers(0, 256, (*REFERENCE, 3), dtype=np.uint8) for _ in range(config.data.references)
                ),
                characters=tuple(f"character {number}" for number in range(config.data.references)),
                features=features,
            )
        )
    frames, first, last = (torch.stack([torch.from_numpy(one) for one in found]) for found in zip(*pictures))
    return Batch(0, list(range(len(samples))), samples, frames, first, last, clip)
