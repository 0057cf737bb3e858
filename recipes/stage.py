"""A training stage: what it trains, on which stream, with which loss and from which checkpoint.

The loss is computed inside one module, :class:`StageModule`, which is what accelerate wraps. Everything random in it is
drawn by (seed, step, sample), so that a run depends neither on the number of processes nor on interruptions.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from animeshooter_dataset import DataError
from animeshooter_streams import Batch, DrawnStream, ShotStream, StoryStream
from recipes.config import Config, as_json
from recipes.record import read_record
from streams.clips import ClipSpec
from streams.features import Features

if TYPE_CHECKING:
    from model import AnimeShooterGen

Stream = ShotStream | StoryStream | DrawnStream
Loss = Callable[["AnimeShooterGen", Batch, Config, list[torch.Generator]], Tensor]


@dataclass(frozen=True)
class Stage:
    """A training stage.

    Args:
        name: what ``AnimeShooterGen.set_trainable`` calls it.
        parents: stages whose checkpoint it may start from; with "preset" it may also start from a preset.
        stream: which samples it reads.
        loss: (model, batch, config, a generator for each sample) to the loss of each sample [B].
        presets: settings by preset.
        about: the recipe's own docstring, for --help.
        needs: what it makes of a shot with frozen parts, or takes from a cache: "latents", "first", "last", "text", "blank"
            (see ``streams.features``).
    """

    name: str
    parents: tuple[str, ...]
    stream: type[Stream]
    loss: Loss
    presets: Mapping[str, Config]
    about: str
    needs: frozenset[str] = frozenset()


class StageModule(nn.Module):
    """The model and a stage's loss as one module: all that a distributed wrapper needs to see."""

    def __init__(self, gen: AnimeShooterGen, stage: Stage, config: Config) -> None:
        super().__init__()
        self.gen, self.stage, self.config = gen, stage, config

    def forward(self, batch: Batch) -> Tensor:
        """Mean loss of a micro-batch, a scalar."""
        generators = [generator_of(self.config.train.seed, batch, place) for place in range(len(batch.samples))]
        # Ours has no dropout of units; a model of someone else's that has is at least repeatable on as many processes.
        torch.manual_seed(generators[0].initial_seed())
        return self.stage.loss(self.gen, batch, self.config, generators).mean()


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
        raise DataError(f"{path}: a checkpoint of stage {training['stage']}; {stage.name} starts from {wanted or 'a preset'}")
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
        DataError: the checkpoint is damaged, or the clips of the config do not fit the model.
    """
    from model.images import check_video_size
    from recipes.parts import load_gen

    quiet_loading()
    with model_errors():
        gen = load_gen(config, parent, without)
        gen.set_trainable(stage.name)
        for parameter in gen.trainable_parameters(stage.name):  # in float32, whatever the precision of the rest
            parameter.data = parameter.data.float()
        clip = config.data.clip
        check_video_size(gen.vae, gen.transformer.config.patch_size, clip.frames, clip.height, clip.width)
    return gen


def open_stream(stage: Stage, config: Config, directory: Path, features: Features | None = None) -> Stream:
    """The stage's stream over a dataset directory, and a cache of its features."""
    clip, settings = stream_settings(config)
    cache: dict[str, Any] = {} if features is None else {"features": features}
    return stage.stream(directory, clip, **settings, **cache)


def stream_settings(config: Config) -> tuple[ClipSpec, dict[str, Any]]:
    """The clip of a config's stream, and the stream's other arguments."""
    data = config.data
    same = ("split", "require_reference", "video", "character", "prologue_and_epilogue", "rejected")
    where = [condition for condition in (data.where or "").split(";") if condition.strip()]
    settings = {"global_batch": config.train.global_batch, "seed": config.train.seed, "n": data.shots, "where": where}
    return ClipSpec(**dataclasses.asdict(data.clip)), settings | {name: getattr(data, name) for name in same}


def dry_run(stage: Stage, config: Config) -> str:
    """Settings, parameters by component and memory, as text; loads no pretrained weights."""
    from model import AnimeShooterGen, parameter_table, preset

    laid_out = "meta" if preset(config.preset).mllm.pretrained else None
    gen = AnimeShooterGen.from_preset(config.preset, device=laid_out)
    gen.set_trainable(stage.name)
    lines = [as_json(config), "", f"{'component':<20}{'trainable':>16}{'frozen':>16}"]
    for name, (total, trainable) in parameter_table(gen).items():
        lines.append(f"{name:<20}{trainable:>16,}{total - trainable:>16,}")
    trainable, total = (sum(counts) for counts in zip(*((t, n) for n, t in parameter_table(gen).values())))
    width = 4 if laid_out is None else 2
    gigabytes = (width * total + 12 * trainable) / 2**30
    lines.append(f"{'all':<20}{trainable:>16,}{total - trainable:>16,}")
    lines.append(
        f"memory on each process without sharding, without activations: {gigabytes:.2f} GiB "
        f"({width} bytes a weight; gradient and AdamW 12 bytes a trainable one)"
    )
    return "\n".join(lines)
