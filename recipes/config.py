"""Settings of a training stage: frozen dataclasses, a preset to start from, and ``--set a.b=c`` to change one value."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from animeshooter_dataset import DataError

Value = int | float | bool | str | None
T = TypeVar("T")


@dataclass(frozen=True)
class ClipConfig:
    """What a shot is decoded to; see ``animeshooter_streams.ClipSpec``, which checks the values."""

    frames: int
    height: int
    width: int
    fps: float
    min_frames: int = 2
    starts: int | None = None


@dataclass(frozen=True)
class DataConfig:
    """Which samples are drawn.

    Args:
        clip: size of every clip.
        split: split of the dataset directory.
        shots: shots a sample.
        caption: which caption the model reads; "both" joins narrative and descriptive.
        require_reference: leave out samples without a reference, rather than train them without one.
        video: only this film.
        character: only shots that list this character.
        where: only shots whose columns of the index meet these conditions, parted by semicolons:
            ``aesthetic>=5; licence in CC0-1.0|CC BY 4.0``.
        prologue_and_epilogue: also title cards and credits.
        rejected: also shots that fail a rule of the dataset.
        workers: decoding processes on each rank; 0 decodes in the training process.
        features: directory of cached features (``recipes/cache_features.py`` writes it); None makes all of them anew.
        latents: "mode" trains on the mean of the VAE's posterior, "sample" on a draw from it.
    """

    clip: ClipConfig
    split: str = "train"
    shots: int = 1
    caption: Literal["narrative", "descriptive", "both"] = "descriptive"
    require_reference: bool = False
    video: str | None = None
    character: str | None = None
    where: str | None = None
    prologue_and_epilogue: bool = False
    rejected: bool = False
    workers: int = 0
    features: str | None = None
    latents: Literal["mode", "sample"] = "mode"


@dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Args:
        steps: of the whole run.
        global_batch: samples a step, over all processes and micro-batches.
        learning_rate: after the warm-up.
        accumulate: micro-batches a step.
        warmup: steps over which the learning rate rises from nothing.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient.
        seed: of the order, of every draw and of random weights.
        precision: of the arithmetic; None leaves it to the launcher.
        save_every: steps from one snapshot to the next; with none, there are only those of a run that is asked to stop.
        keep: snapshots that stay, the newest ones.
        patience: seconds that a process waits for another before it takes it for lost.
    """

    steps: int
    global_batch: int
    learning_rate: float
    accumulate: int = 1
    warmup: int = 0
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] | None = None
    save_every: int | None = 250
    keep: int = 2
    patience: int = 900


@dataclass(frozen=True)
class DropoutConfig:
    """How often a sample is trained without its reference, its captions, or both: independent probabilities."""

    reference: float = 0.0
    caption: float = 0.0
    both: float = 0.0


@dataclass(frozen=True)
class Config:
    """All settings of one run of one stage."""

    preset: str
    data: DataConfig
    train: TrainConfig
    dropout: DropoutConfig = field(default_factory=DropoutConfig)


TINY_CLIP = ClipConfig(frames=9, height=64, width=96, fps=8)
"""Clips of the tiny model: a second at 8 frames a second."""
PAPER_CLIP = ClipConfig(frames=49, height=480, width=720, fps=8, min_frames=25)
"""Clips of CogVideoX-2B: 6 s at 8 frames a second; shots under about a second are left out."""


def override(config: T, assignments: list[str]) -> T:
    """Change single values of a config.

    Args:
        config: a frozen dataclass, possibly of dataclasses.
        assignments: each ``a.b=c``, applied in order.

    Raises:
        DataError: no such setting (the nearest is suggested), or a value of the wrong type.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise DataError(f"--set {assignment}: write it as --set a.b=c, such as --set train.steps=100")
        known = settings(config)
        if path not in known:
            near = difflib.get_close_matches(path, known, n=1, cutoff=0.4)
            near = near or [one for one in known if one.split(".")[-1] == path.split(".")[-1]][:1]
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise DataError(f"--set {assignment}: no setting '{path}'{hint}")
        config = _replace(config, path.split("."), text, assignment)
    return config


def settings(config: Any, prefix: str = "") -> dict[str, Value]:
    """Every setting by its dotted name."""
    found: dict[str, Value] = {}
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if dataclasses.is_dataclass(value):
            found |= settings(value, f"{prefix}{one.name}.")
        else:
            found[prefix + one.name] = value
    return found


def _replace(config: Any, path: list[str], text: str, assignment: str) -> Any:
    name, *rest = path
    if rest:
        value = _replace(getattr(config, name), rest, text, assignment)
    else:
        value = _read(text, get_type_hints(type(config))[name], assignment)
    return dataclasses.replace(config, **{name: value})


def _read(text: str, kind: Any, assignment: str) -> Value:
    """One value of the declared type from its text."""
    choices = get_args(kind) if get_origin(kind) in (UnionType, Union) else (kind,)
    if type(None) in choices and text.lower() in ("none", "null"):
        return None
    for choice in choices:
        if get_origin(choice) is Literal and text in get_args(choice):
            return text
        if choice is bool and text.lower() in ("true", "false"):
            return text.lower() == "true"
        if choice in (int, float):
            try:
                return choice(text)
            except ValueError:
                continue
        if choice is str:
            return text
    raise DataError(f"--set {assignment}: '{text}' is not {_describe(choices)}")


def _describe(choices: tuple[Any, ...]) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", type(None): "none", str: "text"}
    return " or ".join(
        "one of " + ", ".join(map(str, get_args(choice))) if get_origin(choice) is Literal else words[choice]
        for choice in choices
    )


def as_json(config: Any) -> str:
    """A config as indented JSON."""
    return json.dumps(dataclasses.asdict(config), indent=2)
