"""Settings of a training stage: frozen dataclasses, a preset to start from, and ``--set a.b=c`` to change one value."""

from __future__ import annotations

import dataclasses
import difflib
import json
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from animeshooter_dataset import DataError
from model.memory import ConditionPolicy

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
        clips: several sizes, frames x height x width @ frames a second: ``17x480x720@8 49x480x720@8``. Every shot goes to one
            of them (``animeshooter explain-buckets`` says which), every step has one. They take the place of the size in
            ``clip``, whose ``min_frames`` and ``starts`` hold for all.
        split: split of the dataset directory.
        shots: shots a sample; "2-4" draws their number for every step, "story" takes whole stories (both where the stage
            reads stories).
        references: characters of a sample that come with a reference, at most.
        caption: which caption the model reads; "both" reads narrative and descriptive, told apart for the MLLM.
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
        cache: folder on local disk that keeps what is read of a dataset elsewhere, shared by the processes of a node.
        cache_gb: gigabytes it may grow to.
        verify: compare every clip with its SHA-256.
        bad_samples: samples, or which share of all, that may be damaged: each is named and another takes its place. They are
            counted over all processes, and over resumes.
    """

    clip: ClipConfig
    clips: str | None = None
    split: str = "train"
    shots: int | str = 1
    references: int = 1
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
    cache: str | None = None
    cache_gb: float = 20.0
    verify: bool = False
    bad_samples: int | float = 0


@dataclass(frozen=True)
class TrainConfig:
    """The loop.

    Args:
        steps: of the whole run.
        global_batch: samples a step, over all processes and micro-batches.
        batch_tokens: latent tokens a step, in place of ``global_batch``: each clip size then has a batch of its own.
        batch_multiple: what batches by tokens are multiples of: processes times micro-batches must divide it.
        learning_rate: after the warm-up.
        accumulate: micro-batches a step.
        warmup: steps over which the learning rate rises from nothing.
        schedule: what the learning rate does after the warm-up: it stays, or falls to nothing until the end.
        optimizer: AdamW, or its fused kernels.
        weight_decay: of AdamW.
        clip_norm: largest norm of the gradient.
        weighting: of the diffusion loss over the noise schedule: as the video model was trained, or by min-SNR.
        snr_gamma: signal-to-noise ratio above which min-SNR weighs less.
        ema: decay of a moving average of what is trained, which then is what the checkpoint holds; None keeps none.
        checkpointing: recompute activations in the backward pass: less memory, about a third more time.
        compile: compile the blocks of the video transformer.
        skip_nonfinite: steps in a row that may be left out because loss or gradient are not finite; one more stops the run.
        seed: of the order, of every draw and of random weights.
        precision: of the arithmetic; None leaves it to the launcher, and where that says nothing, on a GPU, to the video model.
        save_every: steps from one snapshot to the next; with none, there are only those of a run that is asked to stop.
        keep: snapshots that stay, the newest ones.
        async_save: write snapshots beside the steps that follow, rather than wait for the disk.
        patience: seconds that a process waits for another before it takes it for lost.
        processes: how many processes must train together; None takes as many as were started.
    """

    steps: int
    global_batch: int
    learning_rate: float
    batch_tokens: int | None = None
    batch_multiple: int = 8
    accumulate: int = 1
    warmup: int = 0
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    optimizer: Literal["adamw", "adamw_fused"] = "adamw"
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    weighting: Literal["backbone", "min_snr"] = "backbone"
    snr_gamma: float = 5.0
    ema: float | None = None
    checkpointing: bool = False
    compile: bool = False
    skip_nonfinite: int = 0
    seed: int = 0
    precision: Literal["no", "bf16", "fp16"] | None = None
    save_every: int | None = 250
    keep: int = 2
    async_save: bool = True
    patience: int = 900
    processes: int | None = None


@dataclass(frozen=True)
class DropoutConfig:
    """How often a sample is trained without its reference, its captions, or both: independent probabilities."""

    reference: float = 0.0
    caption: float = 0.0
    both: float = 0.0


@dataclass(frozen=True)
class ConditionConfig:
    """How what came before a shot reaches it; a stage that starts from a checkpoint takes over the checkpoint's.

    Args:
        memory: frames by which an earlier shot is remembered: "last" (the paper), "first_last", or "frames:4", four of them
            spread over the shot.
        shots_back: how many shots back are remembered; None is all of them.
        memory_captions: whether the captions of the remembered shots are read too.
        pathway: "latents" also shows the video transformer the reference pictures and the remembered frames themselves, encoded
            by the VAE; "none" leaves it to the MLLM, as in the paper.
    """

    memory: str = "last"
    shots_back: int | None = None
    memory_captions: bool = True
    pathway: Literal["none", "latents"] = "none"

    def __post_init__(self) -> None:
        """Raises DataError when a value is none of these."""
        try:
            ConditionPolicy(self.memory, self.shots_back, self.memory_captions)
        except ValueError as error:
            raise DataError(f"condition: {error}") from None


@dataclass(frozen=True)
class ModelSource:
    """Where the first stage of a chain takes pretrained parts from, in place of what the preset names.

    Later stages have them from the checkpoint they start from. The sizes of adapter and LoRAs stay those of the preset.

    Args:
        mllm: folder or Hub repository of a transformers image-text model.
        video: folder or Hub repository, in diffusers layout, of a video model of the preset's kind (CogVideoX or Wan).
    """

    mllm: str | None = None
    video: str | None = None


@dataclass(frozen=True)
class HeldOutConfig:
    """The loss on shots that are not trained on.

    Args:
        every: steps from one measurement to the next; None measures none.
        split: of the dataset; None takes validation, or test.
        samples: how many are measured, rounded up to whole global batches.
    """

    every: int | None = None
    split: str | None = None
    samples: int = 64


@dataclass(frozen=True)
class SamplesConfig:
    """Stories generated while a model is trained.

    Args:
        every: steps from one time to the next; None generates none.
        stories: how many, always the same ones.
        shots: of each.
        steps: of denoising.
        guidance: scale of classifier-free guidance.
    """

    every: int | None = None
    stories: int = 2
    shots: int = 3
    steps: int = 25
    guidance: float = 6.0


@dataclass(frozen=True)
class TrackConfig:
    """Trackers.

    Args:
        to: wandb, tensorboard, trackio, or several with commas; None for the log alone.
        every: steps from one line to the next that they get.
        project: its name, where the tracker knows projects.
        name: of the run; None takes that of ``--out``.
    """

    to: str | None = None
    every: int = 10
    project: str = "animeshooter"
    name: str | None = None


@dataclass(frozen=True)
class Config:
    """All settings of one run of one stage."""

    preset: str
    data: DataConfig
    train: TrainConfig
    dropout: DropoutConfig = field(default_factory=DropoutConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)
    held_out: HeldOutConfig = field(default_factory=HeldOutConfig)
    samples: SamplesConfig = field(default_factory=SamplesConfig)
    track: TrackConfig = field(default_factory=TrackConfig)
    model: ModelSource = field(default_factory=ModelSource)


TINY_CLIP = ClipConfig(frames=9, height=64, width=96, fps=8)
"""Clips of the tiny model: a second at 8 frames a second."""
SMALL_CLIP = ClipConfig(frames=9, height=64, width=96, fps=8, starts=1)
"""Clips of the small model; each always from the same start, so that latents can be cached."""
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
