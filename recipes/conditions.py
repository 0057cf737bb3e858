"""What the MLLM reads of a batch: references, captions and remembered frames, as the settings have it; and what is dropped."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from animeshooter_dataset import DataError
from animeshooter_streams import Batch
from model.memory import ConditionPolicy
from recipes.config import ConditionConfig, Config
from recipes.encoding import captions_of, frames_of

if TYPE_CHECKING:
    from model import AnimeShooterGen
    from model.context import Context
    from streams.batches import Sample


# ---- settings ----


def policy_of(config: Config) -> ConditionPolicy:
    """What a model trained with these settings reads, as its checkpoint says it."""
    memory = dataclasses.asdict(config.condition)
    del memory["pathway"]
    return ConditionPolicy(**memory, captions=config.data.caption, references=config.data.references)


def inherited(config: Config, parent: Mapping[str, Any] | None) -> Config:
    """A stage's preset with the ``condition`` of the checkpoint it starts from, so that a model keeps its way of reading.

    Args:
        config: the preset.
        parent: the training record of that checkpoint; one of before there was a choice says nothing, and nothing changes.
    """
    told = ((parent or {}).get("config") or {}).get("condition") or {}
    known = {one.name for one in dataclasses.fields(ConditionConfig)}
    return dataclasses.replace(
        config, condition=dataclasses.replace(config.condition, **{name: told[name] for name in known & set(told)})
    )


def condition_needs(needs: Collection[str], config: Config) -> frozenset[str]:
    """What a stage needs of each shot besides ``needs`` because of what it remembers.

    Raises:
        DataError: features are cached, and it remembers frames that no cache holds.
    """
    policy = policy_of(config)
    if "last" not in needs or policy.frames == 1:
        return frozenset()
    if policy.inner and config.data.features is not None:
        raise DataError(
            f"condition.memory={policy.memory} reads frames between a shot's first and last, which cached features do not "
            f"hold; set condition.memory=first_last, or leave out data.features"
        )
    return frozenset({"first"})


def needs_vae(config: Config) -> bool:
    """Whether pictures are encoded on the fly, cached latents or not."""
    return config.condition.pathway == "latents"


def check_pathway(stage: str, gen: AnimeShooterGen, config: Config) -> None:
    """Whether a stage can work with, or without, the second pathway of a model just loaded.

    Raises:
        DataError: the stage would train beside a pathway that nothing trains, or one that its users lack.
    """
    if config.condition.pathway == "none":
        return
    if stage == "cogvideo_lora":
        raise DataError(
            "condition.pathway=latents: it has a LoRA on the video transformer, which the plain pipeline that cogvideo_lora "
            "trains for lacks; start from a checkpoint without the second pathway"
        )
    if stage == "lora" and gen.context is None:
        raise DataError(
            "condition.pathway=latents: the checkpoint has no second pathway, and lora does not train one; leave it out, or "
            "set it in single_shot or multi_shot"
        )


def prepare(gen: AnimeShooterGen, config: Config) -> None:
    """Give a model the policy of its settings, and the second pathway if they have it and the model has not.

    Raises:
        DataError: the model has the pathway and the settings leave it out.
    """
    gen.policy = policy_of(config)
    if config.condition.pathway == "latents":
        if gen.context is None:
            gen.add_context()
    elif gen.context is not None:
        raise DataError(
            "condition.pathway=none: the checkpoint was trained with the second pathway; set condition.pathway=latents"
        )


# ---- of a batch ----


def prompts_of(batch: Batch, which: str) -> list[list[str]]:
    """The texts the MLLM reads, [B][n]: narrative, descriptive, or both, told apart."""
    if which != "both":
        return captions_of(batch, which)
    from model.mllm import both_captions

    return [list(map(both_captions, one.narrative, one.descriptive)) for one in batch.samples]


def references_of(sample: Sample) -> list[tuple[str | None, Any]] | None:
    """The references of a sample with their characters' names; None where it has none."""
    return list(zip(sample.characters, sample.references, strict=True)) or None


def memory_of(batch: Batch, policy: ConditionPolicy) -> list[list[list[Tensor]]] | None:
    """The frames by which every shot but the last is remembered, [B][n-1][K] of uint8 [H, W, 3]; None for single shots.

    Raises:
        DataError: frames are wanted that a cache in the place of decoding does not hold.
    """
    shots = len(batch.samples[0].keys)
    if shots == 1:
        return None
    if policy.inner and batch.frames is None:
        raise DataError(
            f"condition.memory={policy.memory} reads frames that are not decoded, because all features are cached; set "
            f"condition.memory=first_last, or leave out data.features"
        )
    last = frames_of(batch, "last")
    first = frames_of(batch, "first") if policy.frames > 1 else last
    return [
        [policy.pick(first[b, s], batch.frames[b, s] if policy.inner else None, last[b, s]) for s in range(shots - 1)]
        for b in range(len(batch.samples))
    ]


def dropped(config: Config, generator: torch.Generator) -> tuple[bool, bool]:
    """Whether a sample is trained without its references, and whether without its captions, for classifier-free guidance.

    Reference, captions, and both at once are drawn independently (paper, appendix: 0.05 each in single-shot training, 0.05 for
    both at once in multi-shot training).
    """
    reference, caption, both = torch.rand(3, generator=generator).tolist()
    rates = config.dropout
    return reference < rates.reference or both < rates.both, caption < rates.caption or both < rates.both


def contexts_of(
    gen: AnimeShooterGen, batch: Batch, without: Sequence[bool], memory: list[list[list[Tensor]]] | None
) -> list[list[Context]] | None:
    """What the second pathway sees in each shot, [B][n]; None where the model has none.

    Args:
        gen: the model.
        batch: the samples.
        without: which of them are trained without their references.
        memory: see :func:`memory_of`.
    """
    if gen.context is None:
        return None
    from model.images import as_frames
    from model.pathway import Pathway

    contexts = []
    for place, (sample, dark) in enumerate(zip(batch.samples, without, strict=True)):
        pathway = Pathway(gen.policy, gen.backbone, batch.clip.height, batch.clip.width)
        pictures = [None if dark else picture for frame in sample.references for picture in as_frames(frame)]
        frames = [as_frames(shot) for shot in memory[place]] if memory is not None else []
        contexts.append([pathway.context(pictures, frames[:shot]) for shot in range(len(sample.keys))])
    return contexts


def shot_losses(
    gen: AnimeShooterGen, latents: Tensor, condition: Tensor, generator: torch.Generator, contexts: list[Context] | None
) -> tuple[Tensor, Tensor]:
    """Diffusion losses and timesteps of a sample's shots, [n] each.

    Shots that see differently many pictures go through the transformer one after another: filling their contexts up to one
    length would train on something that generation never shows.
    """
    if contexts is None:
        return gen.diffusion_loss(latents, condition, generator)
    from model.context import joined

    losses, timesteps, begin = [], [], 0
    for end in range(1, len(contexts) + 1):
        if end == len(contexts) or contexts[end].roles.shape != contexts[begin].roles.shape:
            shots = slice(begin, end)
            found = gen.diffusion_loss(latents[shots], condition[shots], generator, context=joined(contexts[shots]))
            losses.append(found[0])
            timesteps.append(found[1])
            begin = end
    return torch.cat(losses), torch.cat(timesteps)
