"""The training loop that all stages share, and the checkpoints they hand on.

A stage (:mod:`recipes.stage`) says what is trained, on which data and with which loss; this is the rest. A run that is
interrupted goes on from its snapshots (:mod:`recipes.saving`) when the same command is given again, on as many processes as
there are then, and ends as it would have without the interruption.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import re
import shutil
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from tqdm.auto import tqdm

from animeshooter_dataset import DataError
from animeshooter_streams import Batch
from recipes.config import Config, override
from recipes.parts import laid_out_parts, make_whole
from recipes.record import machine, run_record
from recipes.running import Run, set_up, take_up, write_snapshot
from recipes.saving import writing
from recipes.stage import Stage, dry_run, generator_of, load_model, model_errors, open_stream, quiet_loading, read_parent
from recipes.together import (
    NOT_FINISHED,
    ProcessLost,
    Stopped,
    StoppedElsewhere,
    StopSignals,
    agree,
    attempt,
    connected,
    gathered,
    make_accelerator,
    settle,
    together,
)
from streams.store import Watchdog

__all__ = ["Stage", "generator_of", "load_model", "main", "model_errors", "open_stream", "quiet_loading", "run"]


# ---- command line ----


def main(stage: Stage, argv: list[str] | None = None) -> int:
    """Run a stage from the command line.

    Returns:
        The exit code: 0 done; 2 an error the user can mend; 75 (``NOT_FINISHED``) stopped before its end, by a signal or
        because another process was lost, and the same command goes on.
    """
    args = parser_of(stage).parse_args(argv)
    code = 0
    try:
        _main(stage, args)
    except StoppedElsewhere:
        code = 2
    except DataError as error:
        _complain("error", error)
        code = 2
    except Stopped as stopped:
        if os.environ.get("RANK", "0") == "0":
            print(stopped, file=sys.stderr, flush=True)
        code = NOT_FINISHED
    except ProcessLost as lost:
        _complain("error", lost)
        sys.stdout.flush()
        os._exit(NOT_FINISHED)  # taking down a group that has lost a member may wait for it for ever
    _leave()
    return code


def _complain(kind: str, what: Exception) -> None:
    rank = os.environ.get("RANK", "0")
    print(f"{kind}{f' (process {rank})' if rank != '0' else ''}: {what}", file=sys.stderr, flush=True)


def parser_of(stage: Stage) -> argparse.ArgumentParser:
    """The arguments of a stage."""
    parser = argparse.ArgumentParser(description=stage.about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("animeshooter"), help="dataset directory")
    parser.add_argument("--out", type=Path, default=Path("checkpoints") / stage.name, help="checkpoint to write")
    parser.add_argument("--from", dest="parent", type=Path, help=f"checkpoint to start from: {', '.join(stage.parents)}")
    parser.add_argument("--preset", choices=sorted(stage.presets), help="settings (and model, where it starts from none)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one setting; may be repeated")
    parser.add_argument("--fresh", action="store_true", help="start anew, although a run of --out could go on")
    parser.add_argument("--dry-run", action="store_true", help="print settings, parameters and memory, and stop")
    return parser


def _main(stage: Stage, args: argparse.Namespace) -> None:
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
        run(stage, config, args.data, args.out, args.parent, fresh=args.fresh)


# ---- a run ----


def run(stage: Stage, config: Config, data: Path, out: Path, parent: Path | None, *, fresh: bool = False) -> None:
    """Train a stage and write its checkpoint, or go on with a run of the same that did not end.

    ``<out>.partial/log.jsonl`` grows by a line a step; at the end it stands in the checkpoint, which appears whole.

    Raises:
        DataError: settings, dataset, checkpoint or launch are wrong, or the loss is not finite.
        Stopped: SIGTERM or SIGINT came; what was done is saved.
        ProcessLost: another process died or does not answer.
    """
    accelerator = make_accelerator(config)
    with connected(accelerator.num_processes):
        this = together(lambda: set_up(accelerator, stage, config, data, out, parent))
    try:
        with connected(accelerator.num_processes):
            take_up(this, fresh)
            with StopSignals() as stop:
                _loop(this, stop)
                _finish(this)
    except ProcessLost as lost:
        raise ProcessLost(f"{lost}. {this.rest()}") from None
    finally:
        if this.folder is not None:
            this.folder.close()
        accelerator.free_memory()


# ---- the loop ----


def _loop(this: Run, stop: StopSignals) -> None:
    """The steps of a run.

    Raises:
        DataError: a sample cannot be read, the loss is not finite or the disk is full, on any process: all of them end.
        Stopped: a signal came to any process; the steps done are saved.
    """
    train, accelerator = this.config.train, this.accelerator
    batches = this.stream.batches(
        accelerator.process_index,
        accelerator.num_processes,
        accumulate=train.accumulate,
        workers=this.config.data.workers,
        steps=train.steps - this.step,
    )
    # The others wait for a process that waits for its data: it gives up, with a word, before they do.
    watchdog = Watchdog(train.patience / 3, what=f"{this.stage.name} (process {accelerator.process_index})")
    problem, began = None, time.perf_counter()
    bar = tqdm(total=train.steps, initial=this.step, unit="step", disable=not this.main, mininterval=0.5)
    with decoders(), closing(cast(Generator[list[Batch]], batches)), bar:
        while this.step < train.steps:
            state = this.stream.state_dict()
            micro, told = _next(watchdog, batches, problem, stop)
            asked = next((one["stop"] for one in told if one["stop"]), None)
            if asked is not None:
                agree(write_snapshot(this, state))
                raise Stopped(f"{this.stage.name}: stopped by {asked}. {this.rest()}")
            rate = train.learning_rate * min(1.0, (this.step + 1) / max(1, train.warmup))
            for group in this.optimizer.param_groups:
                group["lr"] = rate
            loss = _step(this, micro, [keys for one in told for keys in one["keys"]])
            this.step += 1
            seconds, began = time.perf_counter() - began, time.perf_counter()
            bar.set_postfix_str(f"loss {loss:.4f}")
            bar.update()
            if this.folder is not None:
                this.losses.append(loss)
                line: dict[str, Any] = {"step": this.step - 1, "loss": loss, "lr": rate, "seconds": round(seconds, 4)}
                line["samples"] = [f"{rank}:{keys}" for rank, one in enumerate(told) for keys in one["keys"]]
                line["references_inside"] = sum(one["inside"] for one in told)
                problem = attempt(lambda line=line: this.folder.note(line))[1]  # type: ignore[misc]
            if train.save_every and (this.step % train.save_every == 0 or this.step == train.steps):
                problem = problem or write_snapshot(this, this.stream.state_dict())
    agree(problem)


def _next(
    watchdog: Watchdog, batches: Iterator[list[Batch]], problem: str | None, stop: StopSignals
) -> tuple[list[Batch], list[dict[str, Any]]]:
    """The micro-batches of a step, and what every process tells of itself before it."""
    micro: list[Batch] = []
    if problem is None and stop.asked is None:
        try:
            with decoders(), watchdog:
                micro = next(batches)
        except DataError as error:
            time.sleep(0.1)  # a signal to all may have reached the decoding processes first
            problem = None if stop.asked else str(error)
    told = gathered(
        {
            "keys": ["+".join(keys) for batch in micro for keys in batch.keys],
            "inside": sum(one.reference_inside for batch in micro for one in batch.samples),
            "problem": problem,
            "stop": stop.asked,
        }
    )
    settle([one["problem"] for one in told])
    return micro, told


def _step(this: Run, micro: list[Batch], keys: list[str]) -> float:
    """One step over its micro-batches; returns the mean loss of the global batch.

    Raises:
        DataError: the loss is not finite, on any process; all of them stop, and nothing was updated.
    """
    accelerator, model, optimizer = this.accelerator, this.model, this.optimizer
    losses, mean = [], math.nan
    for batch in micro:
        with accelerator.accumulate(model):
            loss = model(batch)
            accelerator.backward(loss)
            losses.append(loss.detach().float())
            if accelerator.sync_gradients:
                mean = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
                if not math.isfinite(mean):
                    read = ", ".join(keys[:8]) + (f" and {len(keys) - 8} more" if len(keys) > 8 else "")
                    problem = (
                        f"step {batch.step}: the loss is {mean} (it read {read}); "
                        "lower train.learning_rate, or use the precision the video model was trained in"
                    )
                    raise DataError(problem) if this.main else StoppedElsewhere(problem)
                clipped = [parameter for parameter in model.parameters() if parameter.requires_grad]
                accelerator.clip_grad_norm_(clipped, this.config.train.clip_norm)
            optimizer.step()
            optimizer.zero_grad()
    return mean


@contextmanager
def decoders() -> Iterator[None]:
    """Inside, the death of a decoding process becomes a line the user can act on."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        what = re.sub(r"\s+", " ", str(error)).partition(" Details")[0]
        raise DataError(f"a decoding process died ({what}); where memory ran out, lower data.workers") from None


# ---- the end ----


def _finish(this: Run) -> None:
    """Write the checkpoint; every process must call it."""
    accelerator = this.accelerator
    known = {**this.about, "seconds": this.seconds(), "ran_on": machine(accelerator), "starts": this.starts}
    state = _full_state(accelerator, this.model)
    problem = None
    if this.folder is not None and this.data is not None:
        this.data.told.update(this.stream.state_dict())
        known |= {"data": this.data, "losses": this.losses}
        problem = attempt(lambda: _save(this, state, known))[1]
    agree(problem)
    if this.losses:
        count = f"{this.step} step{'s' if this.step > 1 else ''}"
        this.say(f"{this.stage.name}: loss {this.losses[0]:.4f} -> {this.losses[-1]:.4f} in {count}; wrote {this.out}")


def _full_state(accelerator: Any, model: Any) -> dict[str, Tensor] | None:
    """All weights on the main process where they are sharded over processes; None where each process has them."""
    from accelerate.utils import DistributedType

    plugin = accelerator.state.deepspeed_plugin
    zero3 = plugin is not None and plugin.zero_stage == 3
    if zero3 or accelerator.distributed_type == DistributedType.FSDP:
        return accelerator.get_state_dict(model)
    return None


def _save(this: Run, state: dict[str, Tensor] | None, known: dict[str, Any]) -> None:
    """Write the checkpoint beside ``out`` and put it in place in one rename; ``known`` is what :func:`run_record` wants."""
    assert this.folder is not None
    gen, parent, work = this.module.gen, this.parent, this.folder.path
    if state is not None:
        gen = load_model(this.stage, this.config, parent, laid_out_parts(gen))
        gen.load_state_dict({name.removeprefix("gen."): value for name, value in state.items()})
    whole = work / "checkpoint"
    with writing(whole, "write the checkpoint"):
        make_whole(gen, this.config, parent)
        gen.save_pretrained(whole, share_with=parent)
        training = run_record(stage=this.stage.name, config=this.config, parent=parent, **known)
        (whole / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
        films = (json.dumps(film, ensure_ascii=False) for film in known["data"].films)
        (whole / "films.jsonl").write_text("".join(f"{line}\n" for line in films), encoding="utf-8")
        shutil.copyfile(this.folder.log, whole / "log.jsonl")
        if this.out.exists():  # empty, as `set_up` saw to
            this.out.rmdir()
        whole.rename(this.out)
    shutil.rmtree(work)


def _leave() -> None:
    """Take the process group down in order: ranks that exit with a live model abort now and then."""
    gc.collect()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
