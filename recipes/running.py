"""A run of a stage on one process: what it works with, how it is taken up again, and how its state is saved."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from animeshooter_dataset import DataError
from recipes.config import Config
from recipes.features import coverage_of, open_features
from recipes.record import Data, data_of, parameters_of
from recipes.saving import (
    Snapshot,
    WorkFolder,
    changes,
    identity,
    load_optimizer,
    load_weights,
    optimizer_tensors,
    trainable,
)
from recipes.stage import Stage, StageModule, Stream, load_model, open_stream
from recipes.together import agree, attempt, from_main, gathered, tensors_from_main, together


@dataclass
class Run:
    """A run on one process: what it works with and how far it is. ``folder`` and ``data`` are the main process's."""

    stage: Stage
    config: Config
    out: Path
    parent: Path | None
    accelerator: Any
    stream: Stream
    module: StageModule
    optimizer: Any
    belongs: dict[str, Any]
    about: dict[str, Any]
    data: Data | None
    features: str
    model: Any = None
    folder: WorkFolder | None = None
    step: int = 0
    saved: int = 0
    losses: list[float] = field(default_factory=list)
    starts: list[dict[str, int]] = field(default_factory=list)
    before: float = 0.0
    began: float = 0.0

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def keeps_snapshots(self) -> bool:
        """Whether each process has all of weights and optimizer; where they are sharded, nobody could write them alone."""
        from accelerate.utils import DistributedType

        sharded = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)
        return self.accelerator.distributed_type not in sharded

    def seconds(self) -> float:
        """Seconds of training, over all starts."""
        return self.before + time.perf_counter() - self.began

    def say(self, text: str) -> None:
        """Tell the user, once."""
        if self.main:
            print(text, flush=True)

    def rest(self) -> str:
        """What becomes of a run that ends before its last step, for the user."""
        rest = f"goes on after step {self.saved}" if self.saved else "starts anew, for nothing was saved yet"
        return f"Of {self.config.train.steps} steps {self.step} are done; the same command {rest}"


def set_up(accelerator: Any, stage: Stage, config: Config, data: Path, out: Path, parent: Path | None) -> Run:
    """Stream, model and optimizer; nothing is written."""
    train, main_process = config.train, accelerator.is_main_process
    if main_process and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists already; remove it or choose another --out")
    with warnings.catch_warnings():
        if not main_process:
            warnings.simplefilter("ignore")
        features = open_features(stage, config, data, parent, accelerator.mixed_precision)
        stream = open_stream(stage, config, data, features)
        coverage = coverage_of(stage, config, features, stream)
    stream.check(accelerator.num_processes, train.accumulate)
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:  # it reads the batch size from a data loader, which the streams do without
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = stream.share(accelerator.num_processes, train.accumulate)
    gen = load_model(stage, config, parent, coverage.without)
    optimizer = torch.optim.AdamW(gen.trainable_parameters(stage.name), lr=train.learning_rate, weight_decay=train.weight_decay)
    described = _describe(optimizer, config)
    belongs = identity(stage.name, config, gen, described, parent) if main_process else {}
    if main_process:
        belongs["settings"]["train.precision"] = accelerator.mixed_precision
    return Run(
        stage=stage,
        config=config,
        out=out,
        parent=parent,
        accelerator=accelerator,
        stream=stream,
        module=StageModule(gen, stage, config),
        optimizer=optimizer,
        belongs=belongs,
        about={"parameters": parameters_of(gen), "optimizer": described},
        data=data_of(stream, stage.name, train.steps, parent) if main_process else None,
        features=coverage.line,
    )


def take_up(this: Run, fresh: bool) -> None:
    """Open the run's folder, go on from its newest snapshot if there is one, and wrap model and optimizer for training."""
    accelerator, world = this.accelerator, this.accelerator.num_processes
    states = [one["stream"] for one in gathered({"stream": this.stream.state_dict()})]
    other = next((rank for rank, state in enumerate(states) if state != states[0]), None)
    agree(
        None if other is None or not this.main else f"process {other} reads another dataset than process 0; give all the same"
    )
    this.say(f"{this.stage.name}: {world} process{'es' if world > 1 else ''} on {accelerator.device.type}")
    this.say(this.stream.describe())
    this.say(this.features)
    snapshot = together(lambda: _open_folder(this, fresh) if this.main else None)
    told = (
        None
        if snapshot is None
        else {name: getattr(snapshot, name) for name in ("step", "stream", "seconds", "starts", "scaler")}
    )
    told = from_main(told)
    if told is not None:
        together(lambda: this.stream.load_state_dict(told["stream"]))
        together(lambda: _restore(this, snapshot) if snapshot is not None and this.folder is not None else None)
        this.step = this.saved = told["step"]
        this.before, this.starts = told["seconds"], told["starts"]
    parameters = trainable(this.module.gen)
    this.model, this.optimizer = accelerator.prepare(this.module, this.optimizer)  # DDP hands on the main process's weights
    if told is not None:
        tensors = tensors_from_main(None if snapshot is None else snapshot.optimizer, accelerator.device)
        load_optimizer(this.optimizer.optimizer, parameters, tensors)
        if told["scaler"] is not None and accelerator.scaler is not None:
            accelerator.scaler.load_state_dict(told["scaler"])
    this.starts = [*this.starts, {"step": this.step, "processes": world}]
    this.model.train()
    this.began = time.perf_counter()


def _open_folder(this: Run, fresh: bool) -> Snapshot | None:
    """Take hold of ``<out>.partial``; returns the snapshot to go on from, which belongs to this run."""
    folder = this.folder = WorkFolder(this.out.with_name(f"{this.out.name}.partial"), this.config.train.keep)
    snapshot = None if fresh else folder.latest(this.say)
    if snapshot is None:
        folder.clear()
        if not this.keeps_snapshots:
            kind = this.accelerator.distributed_type.value
            this.say(f"{this.stage.name}: no snapshots are written under {kind}; a run that is interrupted starts anew")
        return None
    differ = changes(snapshot.belongs, this.belongs)
    if differ:
        raise DataError(
            f"{folder.path}: holds a run that cannot go on: {'; '.join(differ)}. "
            "Give what it was, choose another --out, or start anew with --fresh"
        )
    if snapshot.step > this.config.train.steps:
        raise DataError(f"{folder.path}: has done {snapshot.step} steps, more than train.steps={this.config.train.steps}")
    if not this.keeps_snapshots:
        kind = this.accelerator.distributed_type.value
        raise DataError(f"{folder.path}: a run under {kind} cannot go on from snapshots; use DDP, or start anew with --fresh")
    return snapshot


def _restore(this: Run, snapshot: Snapshot) -> None:
    """Give the main process the snapshot's weights and losses, and the log its length."""
    assert this.folder is not None
    this.folder.cut_log(snapshot)
    load_weights(this.module.gen, snapshot.weights)
    this.losses = snapshot.losses
    this.say(f"{this.stage.name}: goes on after step {snapshot.step} of {this.config.train.steps}; --fresh would start anew")


def write_snapshot(this: Run, stream: dict[str, Any]) -> str | None:
    """Write a snapshot on the main process, all being after the same step; returns the problem, if any."""
    if not this.keeps_snapshots or not this.step:
        return None
    problem = None
    if this.folder is not None:
        parameters, scaler = trainable(this.module.gen), this.accelerator.scaler
        snapshot = Snapshot(
            step=this.step,
            stream=stream,
            belongs=this.belongs,
            log_bytes=0,
            seconds=this.seconds(),
            starts=this.starts,
            scaler=None if scaler is None else scaler.state_dict(),
            losses=this.losses,
            weights={name: parameter.detach() for name, parameter in parameters.items()},
            optimizer=optimizer_tensors(this.optimizer.optimizer, parameters),
        )
        problem = attempt(lambda: this.folder.write(snapshot))[1]  # type: ignore[union-attr]
    this.saved = this.saved if problem else this.step
    return problem


def _describe(optimizer: torch.optim.Optimizer, config: Config) -> dict[str, Any]:
    """The optimizer and its schedule, for the record."""
    settings = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
    warmup = f"linear over {config.train.warmup} steps, then constant" if config.train.warmup else "constant"
    return {"name": type(optimizer).__name__, **settings, "schedule": warmup, "clip_norm": config.train.clip_norm}
