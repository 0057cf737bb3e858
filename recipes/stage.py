"""A training stage: what it trains, on which stream, with which loss and from which checkpoint.

The loss is computed inside one module, :class:`StageModule`, which is what accelerate wraps. Everything random in it is
drawn by (seed, step, sample), so that a run depends neither on the number of processes nor on interruptions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from animeshooter_dataset import DataError
from animeshooter_streams import Batch, DrawnStream, ShotStream, StoryStream
from recipes.config import Config
from recipes.data import check_clips, open_stream, stream_settings
from recipes.losses import Losses, check_weighting, weighted
from recipes.record import read_record
from recipes.vision import vision_of

if TYPE_CHECKING:
    from model import AnimeShooterGen

__all__ = [
    "Stage",
    "StageModule",
    "generator_of",
    "load_model",
    "model_errors",
    "open_stream",
    "quiet_loading",
    "read_parent",
    "stream_settings",
]

Stream = ShotStream | StoryStream | DrawnStream
Loss = Callable[["AnimeShooterGen", Batch, Config, list[torch.Generator]], Losses]


@dataclass(frozen=True)
class Stage:
    """A training stage.

    Args:
        name: what ``AnimeShooterGen.set_trainable`` calls it.
        parents: stages whose checkpoint it may start from; with "preset" it may also start from a preset.
        stream: which samples it reads.
        loss: (model, batch, config, a generator for each sample) to the losses of the samples.
        presets: settings by preset.
        about: the recipe's own docstring, for --help.
        needs: what it makes of a shot with frozen parts, or takes from a cache: "latents", "first", "last", "text", "blank",
            "vision"
            (see ``streams.features``).
        conclude: last touch to a trained model, (model, stream, config), by the main process before the checkpoint is written.
    """

    name: str
    parents: tuple[str, ...]
    stream: type[Stream]
    loss: Loss
    presets: Mapping[str, Config]
    about: str
    needs: frozenset[str] = frozenset()
    conclude: Callable[[AnimeShooterGen, Any, Config], None] | None = None


class StageModule(nn.Module):
    """The model and a stage's loss as one module: all that a distributed wrapper needs to see."""

    def __init__(self, gen: AnimeShooterGen, stage: Stage, config: Config) -> None:
        super().__init__()
        self.gen, self.stage, self.config = gen, stage, config
        check_weighting(gen, config.train)
        if config.train.checkpointing:
            gen.enable_gradient_checkpointing()

    def forward(self, batch: Batch) -> Losses:
        """The losses of a micro-batch."""
        generators = [generator_of(self.config.train.seed, batch, place) for place in range(len(batch.samples))]
        # Ours has no dropout of units; a model of someone else's that has is at least repeatable on as many processes.
        torch.manual_seed(generators[0].initial_seed())
        with vision_of(self.gen, batch):
            losses = self.stage.loss(self.gen, batch, self.config, generators)
        return weighted(losses, self.gen, self.config.train)


def generator_of(seed: int, batch: Batch, place: int) -> torch.Generator:
    """The source of noise, timesteps and dropout of one sample: the same on whichever process it lands."""
    what = f"{seed} {batch.step} {batch.slots[place]} {' '.join(batch.samples[place].keys)}"
    number = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


# ---- what it starts from ----


def read_parent(stage: Stage, path: Path | None) -> dict[str, Any] | None:
    """The training record of the checkpoint a stage starts from.

    Raises:
        DataError: it needs one and none is given, or the one given is of another stage.
    """
    wanted = " or ".join(parent for parent in stage.parents if parent != "preset")
    if path is None:
        if "preset" not in stage.parents:
            raise DataError(f"{stage.name} starts from a checkpoint of {wanted}: give it with --from")
        return None
    training = read_record(path)
    if training["stage"] not in stage.parents:
        before = training.get("parent") or {}
        hint = f" (this one came of {before['name']}, which is one)" if before.get("stage") in stage.parents else ""
        kind = training["stage"]
        raise DataError(f"{path}: a checkpoint of stage {kind}; {stage.name} starts from {wanted or 'a preset'}{hint}")
    return training


@contextmanager
def model_errors() -> Iterator[None]:
    """The model knows only ValueError; what it says of checkpoints and sizes is for the user to mend."""
    try:
        yield
    except ValueError as error:
        raise DataError(str(error)) from None


def quiet_loading() -> None:
    """Turn off the bars that transformers and diffusers draw while they load and save; they drown a log."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    diffusers_logging.disable_progress_bar()
    transformers_logging.disable_progress_bar()


def load_model(stage: Stage, config: Config, parent: Path | None, without: Collection[str] = ()) -> AnimeShooterGen:
    """The model of a parent checkpoint, or of the preset, with the stage's parameters trainable.

    Args:
        stage: what is trained.
        config: its settings.
        parent: the checkpoint; None for the preset.
        without: frozen parts to leave out of memory, see :func:`recipes.parts.load_gen`.

    Raises:
        DataError: the checkpoint is damaged, or the clips or the second pathway of the config do not fit it.
    """
    from recipes.conditions import check_pathway, prepare
    from recipes.parts import load_gen

    quiet_loading()
    with model_errors():
        gen = load_gen(config, parent, without)
        check_pathway(stage.name, gen, config)
        prepare(gen, config)
        gen.set_trainable(stage.name)
        for parameter in gen.trainable_parameters(stage.name):  # in float32, whatever the precision of the rest
            parameter.data = parameter.data.float()
        check_clips(config, gen)
    return gen
