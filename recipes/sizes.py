"""How much of everything a sample of a stage is: tokens of its clips, of its condition, and of the story the MLLM reads."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from recipes.config import Config

if TYPE_CHECKING:
    from model import AnimeShooterGen
    from recipes.stage import Stage
    from streams.clips import ClipSpec


@dataclass(frozen=True)
class Reading:
    """What the MLLM is taken to read, where no batch says it.

    Args:
        caption: tokens of a caption.
        reference: height and width of the picture of a character, pixels.
    """

    caption: int = 120
    reference: tuple[int, int] = (448, 448)


@dataclass(frozen=True)
class Sizes:
    """A sample.

    Attributes:
        video: tokens of each of its clips in the video transformer, those of the second pathway among them.
        condition: tokens of a shot's condition.
        queries: query tokens a shot.
        stories: tokens of each sequence the MLLM reads: one for all shots, or one a shot.
        pictures: patches of each picture in them.
        merged: patches that become one token.
        encoded: pictures that the VAE encodes for the second pathway.
    """

    video: tuple[int, ...]
    condition: int
    queries: int
    stories: tuple[int, ...]
    pictures: tuple[int, ...]
    merged: int
    encoded: int

    @property
    def shots(self) -> int:
        """Clips of a sample."""
        return len(self.video)


def sizes_of(
    stage: Stage,
    gen: AnimeShooterGen,
    config: Config,
    reading: Reading | None = None,
    clip: tuple[int, int, int] | None = None,
    shots: int | None = None,
) -> Sizes:
    """Sizes of a sample.

    Args:
        stage: whose sample; alignment reads the first frame in place of references.
        gen: the model, possibly without weights.
        config: of the stage.
        reading: what the MLLM reads.
        clip: frames, height and width, where they are not those of the config (its largest, where it has several).
        shots: clips of a sample, where they are not those of the config (the most, where they are drawn).
    """
    from recipes.conditions import needs_vae, policy_of

    reading, policy = reading or Reading(), policy_of(config)
    frames, height, width = clip or largest_clip(config)
    shots = shots or shots_of_sample(config)
    windows = [len(policy.window(shot)) for shot in range(shots)]
    own, frame = _picture(gen, *reading.reference), _picture(gen, height, width)
    shown = [frame] if "first" in stage.needs else [own] * policy.references
    names = NAME * len(shown) if len(shown) > 1 else 0
    queries = int(gen.adapter.config.num_queries)
    told = [(shots, shots - 1)] if policy.one_pass(shots) else [(1 + n * policy.memory_captions, n) for n in windows]
    pictures = [[*shown, *[frame] * (remembered * policy.frames)] for _, remembered in told]
    stories = [
        names + captions * (reading.caption + queries) + sum(tokens + AROUND for tokens, _, _ in seen)
        for (captions, _), seen in zip(told, pictures)
    ]
    pathway = needs_vae(config)
    before = [policy.references + min(HISTORY, n * policy.frames) if pathway else 0 for n in windows]
    return Sizes(
        video=tuple(video_tokens(gen, frames, height, width, count) for count in before),
        condition=int(gen.backbone.condition_length),
        queries=queries,
        stories=tuple(stories),
        pictures=tuple(patches for seen in pictures for _, patches, _ in seen),
        merged=frame[2],
        encoded=policy.references + (shots - 1) * policy.frames if pathway else 0,
    )


AROUND = 2
"""Tokens around a picture: where it starts and ends."""
NAME = 4
"""Tokens of a character's name, about."""
HISTORY = 16
"""Earlier frames that the second pathway shows at most (``model.context``)."""


def largest_clip(config: Config) -> tuple[int, int, int]:
    """Frames, height and width of the largest clip of a config."""
    found = _largest(config)
    return found.frames, found.height, found.width


def _largest(config: Config) -> ClipSpec:
    from recipes.data import clips_of

    return max(clips_of(config), key=lambda one: one.frames * one.height * one.width)


def samples_of_step(config: Config) -> int:
    """Samples of a global step; where the batch is in tokens, those of the largest clips."""
    from streams.order import batch_for, tokens_of

    train = config.train
    if train.batch_tokens is None:
        return train.global_batch
    return batch_for(train.batch_tokens, tokens_of(_largest(config), shots_of_sample(config)), train.batch_multiple)


def shots_of_sample(config: Config) -> int:
    """Shots of a sample; where they are drawn, the most."""
    from recipes.data import most_shots

    return int(most_shots(config))


def video_tokens(gen: AnimeShooterGen, frames: int, height: int, width: int, pictures: int = 0) -> int:
    """Tokens of a clip in the video transformer, and of so many pictures of its size before it."""
    long, _, tall, wide = gen.backbone.latent_shape(frames, height, width)
    settings = gen.transformer.config
    patch = settings.patch_size
    time = getattr(settings, "patch_size_t", None) or 1
    time, *sides = patch if isinstance(patch, (tuple, list)) else (time, patch, patch)
    return math.ceil((long + pictures) / time) * (tall // sides[0]) * (wide // sides[1])


def _picture(gen: AnimeShooterGen, height: int, width: int) -> tuple[int, int, int]:
    """Tokens and patches of a picture in the MLLM, and how many patches are one token."""
    config = gen.mllm.config
    vision = config.vision_config
    for name in ("image_seq_length", "mm_tokens_per_image"):
        if getattr(config, name, None):
            tokens = int(getattr(config, name))
            patches = (int(vision.image_size) // int(vision.patch_size)) ** 2
            return tokens, patches, max(1, patches // tokens)
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    side, merge = int(vision.patch_size), int(getattr(vision, "spatial_merge_size", 1))
    limits = dict(getattr(gen.image_processor, "size", None) or _LIMITS)
    tall, wide = smart_resize(height, width, side * merge, limits["shortest_edge"], limits["longest_edge"])
    patches = tall * wide // side**2
    return patches // merge**2, patches, merge**2


_LIMITS = {"shortest_edge": 65536, "longest_edge": 16777216}
"""Fewest and most pixels of a picture: Qwen3-VL's image processor."""


def reads_pictures(stage: Stage) -> bool:
    """Whether the MLLM makes the stage's condition; otherwise the text encoder's features are the condition."""
    return bool({"first", "last"} & stage.needs) or "text" not in stage.needs


def clips_at_once(frames: int, height: int, width: int) -> int:
    """How many clips the VAE encodes at a time: as many as have the pixels of one of CogVideoX's, 49 x 480 x 720, or one."""
    return max(1, 49 * 480 * 720 // (frames * height * width))
