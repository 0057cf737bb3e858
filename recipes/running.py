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
from recipes.data import LEDGER, open_stream
from recipes.ema import Ema
from recipes.features import Coverage, Features, coverage_of, open_features
from recipes.record import Data, data_of, parameters_of
from recipes.saving import Snapshot, WorkFolder, changes, identity, load_weights, trainable
from recipes.schedules import make_optimizer, schedule_words
from recipes.sharding import Layout, layout_of
from recipes.stage import Stage, StageModule, Stream, load_model
from recipes.stating import statement
from recipes.together import agree, attempt, from_main, gathered, tensors_from_main, together


@dataclass
class Run:
    """A run on one process: what it works with and how far it is. ``folder`` and ``data`` are the main process's.

    ``left_out`` counts the last steps in a row that were left out, see :class:`recipes.stepping.Guard`.
    """

    stage: Stage
    config: Config
    out: Path
    parent: Path | None
    source: str | Path
    accelerator: Any
    layout: Layout
    stream: Stream
    module: StageModule
    optimizer: Any
    belongs: dict[str, Any]
    about: dict[str, Any]
    data: Data | None
    features: str
    model: Any = None
    ema: Ema | None = None
    folder: WorkFolder | None = None
    step: int = 0
    left_out: int = 0
    losses: list[float] = field(default_factory=list)
    starts: list[dict[str, int]] = field(default_factory=list)
    before: float = 0.0
    began: float = 0.0

    @property
    def main(self) -> bool:
        """Whether this is the process that writes."""
        return bool(self.accelerator.is_main_process)

    @property
    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What is trained, by name."""
        return trainable(self.module.gen)

    def seconds(self) -> float:
        """Seconds of training, over all starts."""
        return self.before + time.perf_counter() - self.began

    def say(self, text: str) -> None:
        """Tell the user, once."""
        if self.main:
            print(text, flush=True)

    def rest(self) -> str:
        """What becomes of a run that ends before its last step, for the user; waits for a snapshot that is being written."""
        rest = "goes on from its newest snapshot"
        if self.folder is not None:
            self.folder.settle()
            saved = self.folder.saved
            rest = f"goes on after step {saved}" if saved else "starts anew, for nothing was saved yet"
        return f"Of {self.config.train.steps} steps {self.step} are done; the same command {rest}"


def set_up(accelerator: Any, stage: Stage, config: Config, data: str | Path, out: Path, parent: Path | None) -> Run:
    """Stream, model and optimizer; nothing is written."""
    from recipes.samples import needed_parts

    train, main_process = config.train, accelerator.is_main_process
    if main_process and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists already; remove it or choose another --out")
    with warnings.catch_warnings():
        if not main_process:
            warnings.simplefilter("ignore")
        features = open_features(stage, config, data, parent, accelerator.mixed_precision)
        stream = open_stream(stage, config, data, features, ledger=work_folder(out) / LEDGER)
        coverage = coverage_of(stage, config, features, stream)
    stream.check(accelerator.num_processes, train.accumulate)
    layout = layout_of(accelerator)
    layout.configure(train, stream.share(accelerator.num_processes, train.accumulate))
    check_spread(layout, stage, features, coverage)
    without = [part for part in coverage.without if part not in needed_parts(stage.name, config)]
    gen = load_model(stage, config, parent, without)
    optimizer = make_optimizer(gen.trainable_parameters(stage.name), train)
    described = _describe(optimizer, config)
    belongs = identity(stage.name, config, gen, described, parent) if main_process else {}
    if main_process:
        belongs["settings"]["train.precision"] = accelerator.mixed_precision
    return Run(
        stage=stage,
        config=config,
        out=out,
        parent=parent,
        source=data,
        accelerator=accelerator,
        layout=layout,
        stream=stream,
        module=StageModule(gen, stage, config),
        optimizer=optimizer,
        belongs=belongs,
        about={"parameters": parameters_of(gen), "optimizer": described},
        data=data_of(stream, stage.name, train.steps, parent) if main_process else None,
        features=coverage.line,
    )


def check_spread(layout: Layout, stage: Stage, features: Features | None, coverage: Coverage) -> None:
    """Whether all processes will run the text encoder alike, where each has a part of it only.

    Raises:
        DataError: some captions are cached and some are not: who has all of a batch would leave the others waiting.
    """
    if features is None or not layout.spreads_frozen or "text" not in stage.needs or "text_encoder" in coverage.without:
        return
    if any(kind == "text" for kind, _ in features.stores):
        raise DataError(
            f"data.features: only some captions are cached, and under {layout.name} the text encoder is spread over the "
            f"processes, which must run it together; complete the cache with: {features.again}"
        )


def work_folder(out: Path) -> Path:
    """Where a run works until its checkpoint is whole."""
    return out.with_name(f"{out.name}.partial")


def take_up(this: Run, resume: str) -> None:
    """Open the run's folder, go on from a snapshot if there is one, and wrap model and optimizer for training.

    Args:
        this: the run, as :func:`set_up` made it.
        resume: "auto" goes on from the newest whole snapshot, "never" starts anew; else the path of a snapshot, or of the
            folder of a run.
    """
    accelerator, world = this.accelerator, this.accelerator.num_processes
    states = [one["stream"] for one in gathered({"stream": this.stream.state_dict()})]
    other = next((rank for rank, state in enumerate(states) if state != states[0]), None)
    agree(
        None if other is None or not this.main else f"process {other} reads another dataset than process 0; give all the same"
    )
    how = f" ({this.layout.name})" if world > 1 else ""
    this.say(f"{this.stage.name}: {world} process{'es' if world > 1 else ''} on {accelerator.device.type}{how}")
    this.say(this.stream.describe())
    this.say(statement(this.stage, this.config, this.module.gen, this.parent))
    this.say(this.features)
    snapshot = together(lambda: _open_folder(this, resume) if this.main else None)
    told = (
        None
        if snapshot is None
        else {name: getattr(snapshot, name) for name in ("step", "left_out", "stream", "seconds", "starts", "scaler")}
    )
    told = from_main(told)
    if told is not None:
        together(lambda: this.stream.load_state_dict(told["stream"]))
        together(lambda: _restore(this, snapshot) if snapshot is not None and this.folder is not None else None)
        this.step, this.left_out = told["step"], told["left_out"]
        this.before, this.starts = told["seconds"], told["starts"]
    this.model, this.optimizer = this.layout.wrap(this.module, this.optimizer)  # hands on the main process's weights
    if this.config.train.ema is not None:
        this.ema = Ema(this.parameters, this.config.train.ema, this.layout)
    if told is not None:
        _load(this, snapshot, told["scaler"])
    this.starts = [*this.starts, {"step": this.step, "processes": world}]
    this.model.train()
    this.began = time.perf_counter()


def _open_folder(this: Run, resume: str) -> Snapshot | None:
    """Take hold of ``<out>.partial``; returns the snapshot to go on from, which belongs to this run."""
    folder = this.folder = WorkFolder(work_folder(this.out), this.config.train.keep)
    if resume == "auto":
        snapshot = folder.latest(this.say)
    else:
        snapshot = None if resume == "never" else folder.chosen(Path(resume), this.say)
    if snapshot is None:
        folder.clear()
        return None
    where = folder.path if resume == "auto" else Path(resume)
    differ = changes(snapshot.belongs, this.belongs)
    if differ:
        raise DataError(
            f"{where}: holds a run that cannot go on: {'; '.join(differ)}. "
            "Give what it was, choose another --out, or start anew with --resume never"
        )
    if snapshot.step > this.config.train.steps:
        raise DataError(f"{where}: has done {snapshot.step} steps, more than train.steps={this.config.train.steps}")
    if resume != "auto":
        folder.adopt(Path(resume), snapshot)
    return snapshot


def _restore(this: Run, snapshot: Snapshot) -> None:
    """Give the main process the snapshot's weights and losses, and the log its length."""
    assert this.folder is not None
    this.folder.cut_log(snapshot)
    load_weights(this.module.gen, snapshot.weights)
    this.losses = snapshot.losses
    steps = f"step {snapshot.step} of {this.config.train.steps}"
    this.say(f"{this.stage.name}: goes on after {steps}; --resume never would start anew")


def _load(this: Run, snapshot: Snapshot | None, scaler: dict[str, Any] | None) -> None:
    """Give each process its part of the optimizer's state and of the averages, one tensor at a time."""
    device, parameters = this.accelerator.device, this.parameters
    this.layout.load_optimizer(parameters, tensors_from_main(None if snapshot is None else snapshot.optimizer, device))
    for name, whole in tensors_from_main(None if snapshot is None else snapshot.ema, device):
        if this.ema is not None:
            this.ema.put(name, whole)
    if scaler is not None:
        this.layout.load_scaler(scaler)


def write_snapshot(this: Run, stream: dict[str, Any], *, wait: bool = False) -> str | None:
    """Save the state after the step that all are at; every process must call it.

    The tensors are copied now. With ``train.async_save`` they are written beside the next steps: what goes wrong there,
    :func:`save_problem` tells from the next step on.

    Args:
        this: the run.
        stream: the state of its stream.
        wait: be done only when it is written.

    Returns:
        The problem met, if any, on the main process.
    """
    if not this.step:
        return None
    if this.folder is not None:
        this.folder.settle()  # never two in memory; what went wrong with the one before, `write` says
    parameters, layout = this.parameters, this.layout
    weights, optimizer = layout.weights(parameters), layout.optimizer_state(parameters)
    averages = {} if this.ema is None else this.ema.tensors()
    problem = None
    if this.folder is not None:
        snapshot = Snapshot(
            step=this.step,
            stream=stream,
            belongs=this.belongs,
            log_bytes=0,
            seconds=this.seconds(),
            starts=this.starts,
            scaler=layout.scaler(),
            losses=list(this.losses),
            weights=weights,
            optimizer=optimizer,
            ema=averages,
            left_out=this.left_out,
        )
        behind = this.config.train.async_save and not wait
        problem = attempt(lambda: this.folder.write(snapshot, behind=behind))[1]  # type: ignore[union-attr]
    return problem


def save_problem(this: Run) -> str | None:
    """What went wrong with the snapshot that was written beside the steps, if it is done; only the main process knows."""
    return None if this.folder is None else this.folder.problem()


def _describe(optimizer: torch.optim.Optimizer, config: Config) -> dict[str, Any]:
    """The optimizer and its schedule, for the record."""
    settings = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
    schedule = schedule_words(config.train)
    return {"name": type(optimizer).__name__, **settings, "schedule": schedule, "clip_norm": config.train.clip_norm}
