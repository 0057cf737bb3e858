"""The loss on shots that are not trained on, measured at intervals: what a run learns, and what it learns from.

The same samples, in the same order, with the same noise and timesteps every time, without dropout: so two measurements
differ by the weights alone. Where a stage knows dropout of references or captions, the same samples are measured once more
without them: the difference is what the condition takes from them.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from statistics import fmean
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from animeshooter_dataset import DataError
from animeshooter_streams import Batch
from recipes.config import Config, DropoutConfig
from recipes.data import open_stream
from recipes.features import coverage_of, open_features
from recipes.losses import BANDS, Losses
from recipes.parts import laid_out_parts
from recipes.throughput import rounded
from recipes.together import gathered, together
from recipes.unused import looks_at
from streams.store import store_splits

if TYPE_CHECKING:
    from recipes.running import Run
    from recipes.stage import Stream

SPLITS = ("validation", "test")
"""Splits to measure on where none is named, the first that there is."""
WITHOUT = {"reference": DropoutConfig(reference=1.0), "caption": DropoutConfig(caption=1.0)}
"""What the same samples are measured without, besides."""


def held_out(this: Run) -> HeldOut | None:
    """The hook, where ``held_out.every`` asks for one; measures at once if the run has not begun."""
    if this.config.held_out.every is None:
        return None
    hook = together(lambda: HeldOut(this))
    if this.step == 0:
        hook.before = hook.measure(this)
        this.say(f"{this.stage.name}: held-out loss {told(hook.before)}, before the first step")
    return hook


class HeldOut:
    """Measures the held-out loss every ``held_out.every`` steps and after the last one.

    Adds ``held_out`` to the line of the log, and ``held_out_before`` to the first one: ``loss``, ``loss_by_shot``,
    ``loss_by_timestep``, ``without_reference``, ``without_caption``, ``samples``, ``seconds``. With ``train.ema`` it is the
    loss of the averages, except where the weights are spread over processes.

    Raises:
        DataError: no such split, no samples in it, or features of it are not cached although the parts that make them are
            not in memory.
    """

    def __init__(self, this: Run) -> None:
        self.before: dict[str, Any] | None = None
        asked = this.config.held_out
        if asked.every is None or asked.every < 1 or asked.samples < 1:
            raise DataError(f"held_out.every={asked.every}, held_out.samples={asked.samples}: give at least 1 of each")
        self.config = held_out_config(this.config, split_of(this))
        self.stream = open_held_out(this, self.config)
        self.start = self.stream.state_dict()
        sizes = np.cumsum([len(self.stream.batch(step)) for step in range(min(asked.samples, self.stream.steps_per_epoch))])
        self.steps = min(len(sizes), int(np.searchsorted(sizes, asked.samples)) + 1)
        self.without = {name: drop for name, drop in WITHOUT.items() if looks_at(this.stage, f"dropout.{name}")}

    def on_step(self, this: Run, line: dict[str, Any]) -> None:
        """Measure, where it is time."""
        if self.before is not None:
            line["held_out_before"], self.before = self.before, None
        if this.step % (this.config.held_out.every or 1) and this.step != this.config.train.steps:
            return
        line["held_out"] = self.measure(this)
        if this.main:
            from tqdm.auto import tqdm

            tqdm.write(f"{this.stage.name}: held-out loss {told(line['held_out'])}, after step {this.step}")

    def on_end(self, this: Run) -> None:
        """Nothing is open."""

    def measure(self, this: Run) -> dict[str, Any]:
        """All figures; every process must call it."""
        began = time.perf_counter()
        averaged = this.ema.applied() if this.ema is not None and not this.layout.sharded else nullcontext()
        with averaged:
            found = summed_up(self._losses(this, self.config), this)
            for name, dropout in self.without.items():
                dropped = self._losses(this, dataclasses.replace(self.config, dropout=dropout))
                found[f"without_{name}"] = summed_up(dropped, this)["loss"]
        return {**found, "seconds": round(time.perf_counter() - began, 3)}

    def _losses(self, this: Run, config: Config) -> list[dict[str, Any]]:
        """The losses of every sample, of all processes."""
        accelerator, mine = this.accelerator, []
        self.stream.load_state_dict(self.start)
        batches = self.stream.batches(
            accelerator.process_index, accelerator.num_processes, accumulate=this.config.train.accumulate, steps=self.steps
        )
        with measured_with(this, config), torch.no_grad(), closing(cast(Generator[list[Batch]], batches)):
            while micro := together(lambda: next(batches, [])):  # a forward pass is for all, so reading fails for all
                for batch in micro:
                    mine += _of_samples(batch, this.model(batch))
        return [one for told in gathered({"losses": mine}) for one in told["losses"]]


def _of_samples(batch: Batch, losses: Losses) -> list[dict[str, Any]]:
    """Keys and losses of each sample of a micro-batch, as plain numbers."""
    each, told = losses.per_sample.tolist(), {}
    for name in ("shots", "timesteps"):
        value = getattr(losses, name)
        told[name] = [[]] * len(each) if value is None else value.float().tolist()
    return [
        {"keys": list(keys), "loss": each[place], **{name: values[place] for name, values in told.items()}}
        for place, keys in enumerate(batch.keys)
    ]


def held_out_config(config: Config, split: str) -> Config:
    """The settings with which held-out samples are read and measured: nothing dropped, no weighting."""
    data = dataclasses.replace(config.data, split=split, workers=0, bad_samples=0)
    train = dataclasses.replace(config.train, weighting="backbone", seed=0)
    return dataclasses.replace(config, data=data, train=train, dropout=DropoutConfig())


def split_of(this: Run) -> str:
    """The split to measure on.

    Raises:
        DataError: the dataset has none besides that trained on.
    """
    named = this.config.held_out.split
    if named == this.config.data.split:
        raise DataError(f"held_out.split={named}: that is what is trained on; name another split")
    if named is not None:
        return named
    store = getattr(this.stream, "store", None)  # text-video sets and folders of clips have none, and no splits
    there = [] if store is None else store_splits(store)
    for split in SPLITS:
        if split in there and split != this.config.data.split:
            return split
    raise DataError(
        f"held_out.every: {this.source} has no split {' or '.join(SPLITS)} to measure on; "
        "build it with --splits train=.9,test=.1, or leave held_out.every out"
    )


def open_held_out(this: Run, config: Config) -> Stream:
    """The stream of held-out samples."""
    features = open_features(this.stage, config, this.source, this.parent, this.accelerator.mixed_precision)
    stream = open_stream(this.stage, config, this.source, features)
    coverage = coverage_of(this.stage, config, features, stream)
    lacking = sorted(set(laid_out_parts(this.module.gen)) - set(coverage.without))
    if lacking:
        raise DataError(
            f"held_out.every: {' and '.join(lacking)} are not in memory, and the features of split {config.data.split} are not "
            f"all cached ({coverage.line}); cache that split too"
        )
    stream.check(this.accelerator.num_processes, this.config.train.accumulate)
    return stream


@contextmanager
def measured_with(this: Run, config: Config) -> Iterator[None]:
    """Inside, the stage's module works by other settings."""
    kept, this.module.config = this.module.config, config
    try:
        yield
    finally:
        this.module.config = kept


def summed_up(losses: list[dict[str, Any]], this: Run) -> dict[str, Any]:
    """Means over samples; one that fills up a last batch counts once with the others of its keys."""
    found: dict[str, Any] = {"loss": mean_by_keys(losses)}
    shots = [one["shots"] for one in losses if one["shots"]]
    if shots and max(map(len, shots)) > 1:
        longest = max(map(len, shots))
        found["loss_by_shot"] = [rounded(fmean([row[place] for row in shots if len(row) > place])) for place in range(longest)]
    top = float(this.module.gen.backbone.num_train_timesteps)
    bands: list[list[float]] = [[] for _ in range(BANDS)]
    for one in losses:
        for loss, timestep in zip(one["shots"], one["timesteps"]):
            bands[min(BANDS - 1, int(timestep * BANDS / top))].append(loss)
    if any(bands):
        found["loss_by_timestep"] = [rounded(fmean(band)) if band else None for band in bands]
    found["samples"] = len({tuple(one["keys"]) for one in losses})
    return found


def mean_by_keys(losses: list[dict[str, Any]]) -> float:
    """The mean over samples of the mean loss of each."""
    each: dict[tuple[str, ...], list[float]] = {}
    for one in losses:
        each.setdefault(tuple(one["keys"]), []).append(one["loss"])
    return fmean([fmean(values) for values in each.values()])


def told(found: dict[str, Any]) -> str:
    """The figures in words."""
    dropped = [f"{found[key]:.4f} without the {name}" for name in WITHOUT if (key := f"without_{name}") in found]
    return f"{found['loss']:.4f}" + (f" ({', '.join(dropped)})" if dropped else "") + f" on {found['samples']} samples"
