"""The training loop that all stages share, and the checkpoints they hand on.

A stage says what it trains, on which stream, with which loss and from which checkpoint (:class:`Stage`); everything else
is here. The loss is computed inside one module, :class:`StageModule`, which is what accelerate wraps. Everything random in
it is drawn by (seed, step, sample), so that a run does not depend on the number of processes.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import hashlib
import json
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from animeshooter_clips import ClipSpec
from animeshooter_dataset import DataError
from animeshooter_streams import Batch, DrawnStream, ShotStream, StoryStream, share_of
from recipes.config import Config, as_json, override
from recipes.record import data_of, machine, parameters_of, read_record, run_record

if TYPE_CHECKING:
    from accelerate import Accelerator

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
    """

    name: str
    parents: tuple[str, ...]
    stream: type[Stream]
    loss: Loss
    presets: Mapping[str, Config]
    about: str


class StageModule(nn.Module):
    """The model and a stage's loss as one module: all that a distributed wrapper needs to see."""

    def __init__(self, gen: AnimeShooterGen, stage: Stage, config: Config) -> None:
        super().__init__()
        self.gen, self.stage, self.config = gen, stage, config

    def forward(self, batch: Batch) -> Tensor:
        """Mean loss of a micro-batch, a scalar."""
        generators = [generator_of(self.config.train.seed, batch, place) for place in range(len(batch.samples))]
        return self.stage.loss(self.gen, batch, self.config, generators).mean()


def generator_of(seed: int, batch: Batch, place: int) -> torch.Generator:
    """The source of noise, timesteps and dropout of one sample: the same on whichever process it lands."""
    what = f"{seed} {batch.step} {batch.slots[place]} {' '.join(batch.samples[place].keys)}"
    number = int.from_bytes(hashlib.sha256(what.encode()).digest()[:8], "big") >> 1
    return torch.Generator().manual_seed(number)


def captions_of(batch: Batch, which: str) -> list[list[str]]:
    """The captions the model reads, [B][n]: ``which`` is narrative, descriptive or both."""
    if which == "both":
        return [[f"{a} {b}" for a, b in zip(one.narrative, one.descriptive)] for one in batch.samples]
    return [list(getattr(one, which)) for one in batch.samples]


def encode_clips(gen: AnimeShooterGen, batch: Batch) -> Tensor:
    """Latents of every shot of a micro-batch, [B, n, F', C, h, w]."""
    return gen.encode_video(batch.frames.flatten(0, 1)).unflatten(0, batch.frames.shape[:2])


# ---- command line ----


def main(stage: Stage, argv: list[str] | None = None) -> int:
    """Run a stage from the command line; returns the exit code: 0 done, 2 an error the user can mend."""
    parser = argparse.ArgumentParser(description=stage.about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("animeshooter"), help="dataset directory")
    parser.add_argument("--out", type=Path, default=Path("checkpoints") / stage.name, help="checkpoint to write")
    parser.add_argument("--from", dest="parent", type=Path, help=f"checkpoint to start from: {', '.join(stage.parents)}")
    parser.add_argument("--preset", choices=sorted(stage.presets), help="settings (and model, where it starts from none)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one setting; may be repeated")
    parser.add_argument("--dry-run", action="store_true", help="print settings, parameters and memory, and stop")
    args = parser.parse_args(argv)
    try:
        unneeded = args.dry_run and args.parent is None
        parent = None if unneeded else read_parent(stage, args.parent)
        preset = args.preset or (parent or {}).get("preset", "tiny")
        if parent is not None and parent.get("preset", preset) != preset:
            raise DataError(f"{args.parent}: a model of preset {parent['preset']}, not {preset}; leave out --preset")
        if preset not in stage.presets:
            raise DataError(f"{stage.name} has no preset {preset}; choose one of {', '.join(stage.presets)}")
        config = override(stage.presets[preset], args.set)
        if args.dry_run:
            print(dry_run(stage, config))
        else:
            run(stage, config, args.data, args.out, args.parent)
    except DataError as error:
        rank = os.environ.get("RANK", "0")
        print(f"error{f' (process {rank})' if rank != '0' else ''}: {error}", file=sys.stderr, flush=True)
        return 2
    return 0


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


def load_model(stage: Stage, config: Config, parent: Path | None) -> AnimeShooterGen:
    """The model of a parent checkpoint, or of the preset, with the stage's parameters trainable.

    Raises:
        DataError: the checkpoint is damaged, or the clips of the config do not fit the model.
    """
    from model import AnimeShooterGen
    from model.images import check_video_size

    quiet_loading()
    with model_errors():
        # Pretrained parts come in the precision of the arithmetic; what is trained is in float32.
        frozen = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(config.train.precision or "no")
        if parent is None:
            gen = AnimeShooterGen.from_preset(config.preset, seed=config.train.seed, dtype=frozen)
        else:
            gen = AnimeShooterGen.from_pretrained(parent)
        gen.set_trainable(stage.name)
        for parameter in gen.trainable_parameters(stage.name):
            parameter.data = parameter.data.float()
        clip = config.data.clip
        check_video_size(gen.vae, gen.transformer.config.patch_size, clip.frames, clip.height, clip.width)
    return gen


def open_stream(stage: Stage, config: Config, directory: Path) -> Stream:
    """The stage's stream over a dataset directory."""
    data = config.data
    return stage.stream(
        directory,
        ClipSpec(**dataclasses.asdict(data.clip)),
        global_batch=config.train.global_batch,
        split=data.split,
        seed=config.train.seed,
        n=data.shots,
        require_reference=data.require_reference,
        video=data.video,
        character=data.character,
        prologue_and_epilogue=data.prologue_and_epilogue,
        rejected=data.rejected,
    )


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


# ---- the loop ----


def make_accelerator(config: Config) -> Accelerator:
    """Accelerate for the processes that were started; on machines without an accelerator, gloo.

    Raises:
        DataError: the launcher started several processes that do not know of one another.
    """
    from accelerate import Accelerator

    sharded = any(os.environ.get(f"ACCELERATE_USE_{name}") == "true" for name in ("DEEPSPEED", "FSDP"))
    # Without this, processes started on a machine with no GPU train apart from one another.
    no_gpu = not sharded and not torch.accelerator.is_available()
    accelerator = Accelerator(
        cpu=no_gpu, gradient_accumulation_steps=config.train.accumulate, mixed_precision=config.train.precision
    )
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if accelerator.num_processes != world:
        raise DataError(
            f"{world} processes were started but {accelerator.num_processes} train together; on CPUs use "
            "`accelerate launch --config_file recipes/launch/cpu_2.yaml`"
        )
    plugin = accelerator.state.deepspeed_plugin
    if plugin is not None:  # it reads the batch size from a data loader, which the streams do without
        share = config.train.global_batch // (world * config.train.accumulate)
        plugin.deepspeed_config["train_micro_batch_size_per_gpu"] = share
    return accelerator


def run(stage: Stage, config: Config, data: Path, out: Path, parent: Path | None) -> None:
    """Train a stage and write its checkpoint.

    ``<out>.partial/log.jsonl`` grows by a line a step; at the end it stands in the checkpoint, which appears whole.

    Raises:
        DataError: settings, dataset, checkpoint or launch are wrong, or the loss is not finite.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"{out}: exists already; remove it or choose another --out")
    accelerator = make_accelerator(config)
    main_process, world = accelerator.is_main_process, accelerator.num_processes
    say = print if main_process else _silent
    with warnings.catch_warnings():
        if not main_process:
            warnings.simplefilter("ignore")
        stream = open_stream(stage, config, data)
    share_of(len(stream), config.train.global_batch, world, config.train.accumulate)
    read = data_of(stream, stage.name, config.train.steps, parent) if main_process else None
    module = StageModule(load_model(stage, config, parent), stage, config)
    optimizer = torch.optim.AdamW(
        module.gen.trainable_parameters(stage.name),
        lr=config.train.learning_rate,
        weight_decay=config.train.weight_decay,
    )
    known: dict[str, Any] = {"data": read, "parameters": parameters_of(module.gen), "optimizer": _describe(optimizer, config)}
    model, optimizer = accelerator.prepare(module, optimizer)
    model.train()
    say(f"{stage.name}: {world} process{'es' if world > 1 else ''} on {accelerator.device.type}")
    say(stream.describe())
    work = out.with_name(f"{out.name}.partial")
    if main_process:
        _fresh(work)
    began = time.perf_counter()
    losses = _loop(accelerator, model, optimizer, stream, config, work / "log.jsonl")
    known |= {"losses": losses, "seconds": time.perf_counter() - began, "ran_on": machine(accelerator)}
    state = _full_state(accelerator, model)
    if main_process:
        gen = module.gen
        if state is not None:
            gen = load_model(stage, config, parent)
            gen.load_state_dict({name.removeprefix("gen."): value for name, value in state.items()})
        known["data"].told.update(stream.state_dict())
        _save(gen, stage, config, known, work, out, parent)
        del gen
    say(f"{stage.name}: loss {losses[0]:.4f} -> {losses[-1]:.4f} in {len(losses)} steps; wrote {out}")
    accelerator.wait_for_everyone()
    accelerator.free_memory()
    del module, model, optimizer, state
    _leave()


def _loop(accelerator: Any, model: Any, optimizer: Any, stream: Stream, config: Config, log: Path) -> list[float]:
    """The steps of a run; returns the loss of each."""
    from accelerate.utils import gather_object

    train, main_process = config.train, accelerator.is_main_process
    batches = stream.batches(
        accelerator.process_index,
        accelerator.num_processes,
        accumulate=train.accumulate,
        workers=config.data.workers,
        steps=train.steps - stream.step,
    )
    losses: list[float] = []
    began = time.perf_counter()
    with tqdm(total=train.steps, unit="step", disable=not main_process, mininterval=0.5) as bar:
        for micro in batches:
            step, rate = micro[0].step, train.learning_rate * min(1.0, (micro[0].step + 1) / max(1, train.warmup))
            for group in optimizer.param_groups:
                group["lr"] = rate
            loss = _step(accelerator, model, optimizer, micro, train.clip_norm)
            read = [(accelerator.process_index, "+".join(keys)) for batch in micro for keys in batch.keys]
            inside = sum(one.reference_inside for batch in micro for one in batch.samples)
            read, inside = gather_object(read), sum(gather_object([inside]))
            losses.append(loss)
            bar.set_postfix_str(f"loss {loss:.4f}")
            bar.update()
            seconds, began = time.perf_counter() - began, time.perf_counter()
            if main_process:
                line: dict[str, Any] = {"step": step, "loss": loss, "lr": rate, "seconds": round(seconds, 4)}
                line |= {"samples": [f"{rank}:{keys}" for rank, keys in read], "references_inside": inside}
                with open(log, "a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
    return losses


def _step(accelerator: Any, model: Any, optimizer: Any, micro: list[Batch], clip_norm: float) -> float:
    """One step over its micro-batches; returns the mean loss of the global batch.

    Raises:
        DataError: the loss is not finite, on any process; all of them stop, and nothing was updated.
    """
    losses, mean = [], math.nan
    for batch in micro:
        with accelerator.accumulate(model):
            loss = model(batch)
            accelerator.backward(loss)
            losses.append(loss.detach().float())
            if accelerator.sync_gradients:
                mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                if not math.isfinite(mean):
                    keys = ", ".join(keys[0] for one in micro for keys in one.keys)
                    raise DataError(
                        f"step {batch.step}: the loss is {mean} (this process read {keys}); "
                        "lower train.learning_rate, or use the precision the video model was trained in"
                    )
                accelerator.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip_norm)
            optimizer.step()
            optimizer.zero_grad()
    return mean


def _full_state(accelerator: Any, model: Any) -> dict[str, Tensor] | None:
    """All weights on the main process where they are sharded over processes; None where each process has them."""
    from accelerate.utils import DistributedType

    plugin = accelerator.state.deepspeed_plugin
    zero3 = plugin is not None and plugin.zero_stage == 3
    if zero3 or accelerator.distributed_type == DistributedType.FSDP:
        return accelerator.get_state_dict(model)
    return None


def _fresh(work: Path) -> None:
    """An empty folder for a run; what a broken run left there is removed, anything else is not."""
    if work.exists():
        strange = [path.name for path in work.iterdir() if path.name != "log.jsonl"] if work.is_dir() else [work.name]
        if strange:
            raise DataError(f"{work}: holds {strange[0]}, which no run of these recipes left; move it away")
        shutil.rmtree(work)
    work.mkdir(parents=True)


def _describe(optimizer: torch.optim.Optimizer, config: Config) -> dict[str, Any]:
    """The optimizer and its schedule, for the record."""
    settings = {name: optimizer.defaults[name] for name in ("lr", "betas", "eps", "weight_decay")}
    warmup = f"linear over {config.train.warmup} steps, then constant" if config.train.warmup else "constant"
    return {"name": type(optimizer).__name__, **settings, "schedule": warmup, "clip_norm": config.train.clip_norm}


def _save(gen: Any, stage: Stage, config: Config, known: dict[str, Any], work: Path, out: Path, parent: Path | None) -> None:
    """Write the checkpoint beside ``out`` and put it in place in one rename; ``known`` is what :func:`run_record` wants."""
    whole = work / "checkpoint"
    gen.save_pretrained(whole, share_with=parent)
    training = run_record(stage=stage.name, config=config, parent=parent, **known)
    (whole / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
    films = (json.dumps(film, ensure_ascii=False) for film in known["data"].films)
    (whole / "films.jsonl").write_text("".join(f"{line}\n" for line in films), encoding="utf-8")
    shutil.copyfile(work / "log.jsonl", whole / "log.jsonl")
    if out.exists():  # empty, as `run` saw to
        out.rmdir()
    whole.rename(out)
    shutil.rmtree(work)


def _silent(*_: object) -> None:
    """What the other processes say."""


def _leave() -> None:
    """Take the process group down in order: ranks that exit with a live model abort now and then."""
    gc.collect()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
