"""The training loop that all stages share, and the checkpoints they hand on.

A stage (:mod:`recipes.stage`) says what is trained, on which data and with which loss; this is the rest. A run that is
interrupted goes on from its snapshots (:mod:`recipes.saving`) when the same command is given again, on as many processes as
there are then, and ends as it would have without the interruption.
"""

from __future__ import annotations

import argparse
import gc
import math
import os
import re
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from tqdm.auto import tqdm

from animeshooter_dataset import DataError
from animeshooter_streams import Batch
from recipes.compiling import compile_blocks
from recipes.conditions import inherited
from recipes.config import Config, override
from recipes.finishing import finish
from recipes.hooks import Hook, after_run, after_step, hooks_of
from recipes.plan import add_plan_arguments, dry_run
from recipes.precision import settled
from recipes.running import Run, save_problem, set_up, take_up, write_snapshot
from recipes.schedules import rate_of, set_rate
from recipes.stage import Stage, generator_of, load_model, model_errors, open_stream, quiet_loading, read_parent
from recipes.stepping import Guard, Stepped, take_step
from recipes.throughput import Meter, rounded
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
from recipes.unused import unused_settings
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
    where = "dataset directory or address (https://, s3://, hf://datasets/ORG/NAME)"
    parser.add_argument("--data", default="animeshooter", help=where)
    parser.add_argument("--out", type=Path, default=Path("checkpoints") / stage.name, help="checkpoint to write")
    parser.add_argument("--from", dest="parent", type=Path, help=f"checkpoint to start from: {', '.join(stage.parents)}")
    parser.add_argument("--preset", choices=sorted(stage.presets), help="settings (and model, where it starts from none)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one setting; may be repeated")
    resume = "auto (default): go on with the run of --out, if any; never: start anew; or the path of a snapshot to go on from"
    parser.add_argument("--resume", default="auto", metavar="auto|never|PATH", help=resume)
    hub = "when it is done, put the checkpoint and its card into this private repository (public: animeshooter publish)"
    parser.add_argument("--push-to-hub", metavar="ORG/NAME", help=hub)
    parser.add_argument("--dry-run", action="store_true", help="print settings, parameters and memory, and stop")
    add_plan_arguments(parser)
    return parser


def _main(stage: Stage, args: argparse.Namespace) -> None:
    unneeded = args.dry_run and args.parent is None
    parent = None if unneeded else read_parent(stage, args.parent)
    preset = args.preset or (parent or {}).get("preset", "tiny")
    if parent is not None and parent.get("preset", preset) != preset:
        raise DataError(f"{args.parent}: a model of preset {parent['preset']}, not {preset}; leave out --preset")
    if preset not in stage.presets:
        raise DataError(f"{stage.name} has no preset {preset}; choose one of {', '.join(stage.presets)}")
    config = override(inherited(stage.presets[preset], parent), args.set)
    if os.environ.get("RANK", "0") == "0":
        for line in unused_settings(stage, config, args.set):
            print(f"{stage.name}: {line}", file=sys.stderr, flush=True)
    if args.dry_run:
        print(dry_run(stage, config, data=args.data, parent=args.parent, args=args))
        return
    first = os.environ.get("RANK", "0") == "0"
    if args.push_to_hub and first:
        may_push(args.push_to_hub)
    run(stage, config, args.data, args.out, args.parent, resume=args.resume)
    if args.push_to_hub and first:
        push(args.out, args.push_to_hub)


def may_push(repo_id: str) -> None:
    """See before a run whether its checkpoint can be put on the Hub after it.

    Raises:
        DataError: there is no such name, no key, no right to write there, no Hub, or the repository is public.
    """
    from curation.hub import Repository

    remote = Repository(repo_id, "model").look()
    if remote.exists and not remote.private:
        raise DataError(f"--push-to-hub {repo_id}: is public; name another, or publish by hand with: animeshooter publish")


def push(out: Path, repo_id: str) -> None:
    """Put a checkpoint on the Hub, privately.

    Raises:
        DataError: it could not be; says how to try again.
    """
    from recipes.publish import publish_model

    try:
        done = publish_model(out, repo_id, private=True, verify="none")
    except DataError as error:
        raise DataError(f"{error}. {out} is whole; try again with: animeshooter publish {out} {repo_id} --private") from None
    print("\n".join(done.lines()), flush=True)


# ---- a run ----


def run(stage: Stage, config: Config, data: str | Path, out: Path, parent: Path | None, *, resume: str = "auto") -> None:
    """Train a stage and write its checkpoint, or go on with a run of the same that did not end.

    ``<out>.partial/log.jsonl`` grows by a line a step; at the end it stands in the checkpoint, which appears whole.

    Raises:
        DataError: settings, dataset, checkpoint or launch are wrong, or the loss is not finite.
        Stopped: SIGTERM or SIGINT came; what was done is saved.
        ProcessLost: another process died or does not answer.
    """
    config = settled(config)
    accelerator = make_accelerator(config)
    with connected(accelerator.num_processes):
        this = together(lambda: set_up(accelerator, stage, config, data, out, parent))
        if config.train.compile:
            together(lambda: compile_blocks(this.module.gen, accelerator.device))
    try:
        with connected(accelerator.num_processes):
            take_up(this, resume)
            with StopSignals() as stop:
                _loop(this, stop)
                finish(this)
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
        DataError: a sample cannot be read, loss or gradient are not finite, or the disk is full, on any process: all end.
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
    guard, hooks, meter = together(lambda: Guard(this)), together(lambda: hooks_of(this)), Meter(this)
    problem = None
    with decoders(), closing(cast(Generator[list[Batch]], batches)), ended(hooks, this), progress(this) as bar:
        while this.step < train.steps:
            state = this.stream.state_dict()
            micro, told = _next(watchdog, batches, problem, stop, meter)
            asked = next((one["stop"] for one in told if one["stop"]), None)
            if asked is not None:
                agree(write_snapshot(this, state, wait=True))
                raise Stopped(f"{this.stage.name}: stopped by {asked}. {this.rest()}")
            rate = rate_of(train, this.step)
            set_rate(this.optimizer, rate)
            done = take_step(this, micro, guard)
            this.step += 1
            if this.ema is not None and done.skipped is None:
                this.ema.update(this.step)
            line = _line(this.step - 1, done, rate) | meter.read(micro[0], told) | _read(micro[0], told)
            bar.set_postfix_str(f"loss {done.loss:.4f}, {line['samples_per_second']:.3g} samples/s", refresh=False)
            bar.update()
            problem = after_step(hooks, this, line)
            meter.resume()
            if this.folder is not None:
                this.losses.append(done.loss)
                problem = attempt(lambda line=line: this.folder.note(line))[1] or save_problem(this) or problem  # type: ignore[misc]
            if train.save_every and (this.step % train.save_every == 0 or this.step == train.steps):
                saved = write_snapshot(this, this.stream.state_dict(), wait=this.step == train.steps)
                problem = problem or saved
    agree(problem)


def _next(
    watchdog: Watchdog, batches: Iterator[list[Batch]], problem: str | None, stop: StopSignals, meter: Meter
) -> tuple[list[Batch], list[dict[str, Any]]]:
    """The micro-batches of a step, and what every process tells of itself before it."""
    micro: list[Batch] = []
    began = time.perf_counter()
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
            **meter.here(time.perf_counter() - began),
        }
    )
    settle([one["problem"] for one in told])
    return micro, told


def _line(step: int, done: Stepped, rate: float) -> dict[str, Any]:
    """What a step came to, for the log: losses over all processes; without what does not apply."""
    line: dict[str, Any] = {"step": step, "loss": done.loss if math.isfinite(done.loss) else None, "lr": rate}
    if done.norm is not None:
        line["grad_norm"] = rounded(done.norm) if math.isfinite(done.norm) else None
    if done.skipped is not None:
        line["skipped"] = done.skipped
    if done.bands:
        line["loss_by_timestep"] = done.bands
    if len(done.shots) > 1:
        line["loss_by_shot"] = done.shots
    return line


def _read(batch: Batch, told: list[dict[str, Any]]) -> dict[str, Any]:
    """What a step read, for the log."""
    return {
        "bucket": batch.bucket,
        "samples": [f"{rank}:{keys}" for rank, one in enumerate(told) for keys in one["keys"]],
        "references_inside": sum(one["inside"] for one in told),
    }


# ---- around the loop ----


def progress(this: Run) -> Any:
    """A bar with the time that is left, on the main process; seldom redrawn where it lands in a file."""
    return tqdm(
        total=this.config.train.steps,
        initial=this.step,
        desc=this.stage.name,
        unit="step",
        disable=not this.main,
        mininterval=0.5 if sys.stderr.isatty() else 10,
        dynamic_ncols=True,
    )


@contextmanager
def ended(hooks: list[Hook], this: Run) -> Iterator[None]:
    """Has the hooks end what they opened, however the loop ends."""
    try:
        yield
    finally:
        after_run(hooks, this)


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


def _leave() -> None:
    """Take the process group down in order: ranks that exit with a live model abort now and then."""
    gc.collect()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
