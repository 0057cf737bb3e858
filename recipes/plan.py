"""What a run would be, said before it starts: settings, parameters, data, memory on each GPU, arithmetic and days."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from animeshooter_dataset import DataError
from recipes.config import Config, as_json, override
from recipes.flops import Flops, flops_of
from recipes.gpus import gpu_memory, peak_flops
from recipes.memory import LAYOUTS, memory_of
from recipes.precision import precision_of
from recipes.sizes import Reading, Sizes, samples_of_step, sizes_of

if TYPE_CHECKING:
    from model import AnimeShooterGen
    from recipes.stage import Stage

MFU = 0.4
"""Share of the peak that is reckoned with where nothing was measured."""
FREE = 0.94
"""Share of a GPU's memory that a run can have: the rest is the driver's and lost between blocks."""
MOST = 1024
"""GPUs up to which a number that would do is sought."""


def add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """The arguments of ``--dry-run``."""
    group = parser.add_argument_group("with --dry-run")
    group.add_argument("--gpus", type=int, metavar="N", help="GPUs to reckon with (default: those here, or 1)")
    group.add_argument("--gpu", metavar="NAME", help="their name, such as H100 or 'RTX 4090' (default: the one here)")
    group.add_argument("--mfu", type=float, default=MFU, help="share of their peak that is reached (%(default)s, a guess)")
    group.add_argument("--layout", choices=LAYOUTS, default="ddp", help="how weights are spread (%(default)s)")
    group.add_argument("--json", action="store_true", help="print it as JSON")


def dry_run(
    stage: Stage,
    config: Config,
    *,
    data: str | Path | None = None,
    parent: Path | None = None,
    args: argparse.Namespace | None = None,
) -> str:
    """All of a plan as text, or as JSON where asked; no pretrained weights are loaded and nothing is written.

    Args:
        stage: what would be trained.
        config: its settings.
        data: the dataset; a folder that is not there is only said.
        parent: the checkpoint it would start from, for what a cache of features holds.
        args: those of :func:`add_plan_arguments`.

    Raises:
        DataError: the dataset or the cache is wrong, or there is no such GPU.
    """
    options = args or argparse.Namespace()
    told = plan(
        stage,
        config,
        data,
        parent,
        gpus=getattr(options, "gpus", None),
        gpu=getattr(options, "gpu", None),
        mfu=getattr(options, "mfu", MFU),
        layout=getattr(options, "layout", "ddp"),
    )
    return json.dumps(told, indent=2) if getattr(options, "json", False) else text_of(told)


def plan(
    stage: Stage,
    config: Config,
    data: str | Path | None = None,
    parent: Path | None = None,
    *,
    gpus: int | None = None,
    gpu: str | None = None,
    mfu: float = MFU,
    layout: str = "ddp",
) -> dict[str, Any]:
    """What :func:`dry_run` says, JSON-ready."""
    from model import parameter_table

    if not 0 < mfu <= 1:
        raise DataError(f"--mfu {mfu}: a share of the peak, above 0 and at most 1")
    if gpus is not None and gpus < 1:
        raise DataError(f"--gpus {gpus}: at least 1")
    here, count = _here()
    name, gpus = gpu or here, gpus or (count if gpu is None else 0) or 1
    if gpu is not None and gpu_memory(gpu) is None:
        raise DataError(f"--gpu {gpu}: not known; name it as in H100, A100, H200, L40S, 'RTX 4090', 'RTX A6000' or MI300X")
    gen = _laid_out(stage, config)
    if config.train.precision is None:  # as the trainer settles it on a GPU
        config = override(config, [f"train.precision={precision_of(config) or 'no'}"])
    sizes, reading = sizes_of(stage, gen, config), Reading()
    about_data, without = _data(stage, config, data, parent)
    flops = flops_of(stage, gen, config, without=without)
    table = parameter_table(gen)
    told: dict[str, Any] = {
        "stage": stage.name,
        "settings": json.loads(as_json(config)),
        "parameters": {part: {"trainable": some, "frozen": total - some} for part, (total, some) in table.items()},
        "data": about_data,
        "sample": dataclasses.asdict(sizes) | {"assumed": dataclasses.asdict(reading)},
        "run": _run(config, sizes, about_data),
        "flops": flops.as_dict(),
        "time": _time(flops, config, name, gpus, mfu),
        "memory": _memory(stage, gen, config, gpus, without),
        "without": list(without),
    }
    told["notes"] = _notes(stage, gen, config, told, name, gpus, layout)
    return told


def _here() -> tuple[str | None, int]:
    """Name and number of the GPUs of this machine."""
    import torch

    if not torch.cuda.is_available():
        return None, 0
    return torch.cuda.get_device_name(), torch.cuda.device_count()


def _laid_out(stage: Stage, config: Config) -> AnimeShooterGen:
    from model import AnimeShooterGen
    from recipes.conditions import prepare
    from recipes.parts import model_config

    model = model_config(config)
    gen = AnimeShooterGen.from_preset(model, device="meta" if model.mllm.pretrained or model.video.pretrained else None)
    prepare(gen, config)
    gen.set_trainable(stage.name)
    return gen


# ---- the parts ----


def _data(stage: Stage, config: Config, data: str | Path | None, parent: Path | None) -> tuple[dict[str, Any], tuple[str, ...]]:
    """What the stream makes of the dataset, and the parts of the model that a cache stands in for."""
    from recipes.features import coverage_of, open_features
    from recipes.parts import model_config
    from recipes.stage import open_stream
    from streams.explain import report

    plain = coverage_of(stage, config, None, None)  # type: ignore[arg-type]
    if data is None or ("://" not in str(data) and not Path(data).is_dir()):
        return {"missing": f"no dataset at {data}" if data else "no dataset named", "features": plain.line}, plain.without
    features, coverage = None, plain
    unknown = parent is None and model_config(config).mllm.pretrained is not None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if config.data.features and not unknown:
            features = open_features(stage, config, Path(data), parent, config.train.precision or "no")
        stream = open_stream(stage, config, data, features)
    warned = [str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    if config.data.features and unknown:
        warned.append("which features fit is known from the checkpoint: give --from")
    coverage = coverage_of(stage, config, features, stream)
    seconds = float(stream.shots().seconds[_rows(stream)].sum())
    told = report(stream, warned).as_dict()
    return {**told, "describe": stream.describe(), "hours": seconds / 3600, "features": coverage.line}, coverage.without


def _rows(stream: Any) -> Any:
    import numpy as np

    rows = np.unique(stream.sequences[stream.plan.bucket >= 0])
    return rows[rows >= 0]


def _run(config: Config, sizes: Sizes, about: dict[str, Any]) -> dict[str, Any]:
    """Steps, epochs and hours of video."""
    train = config.train
    samples = train.steps * samples_of_step(config)
    clip = config.data.clip
    hours = samples * sizes.shots * clip.frames / clip.fps / 3600
    epochs = train.steps / about["steps_an_epoch"] if about.get("steps_an_epoch") else None
    return {"steps": train.steps, "samples": samples, "clips": samples * sizes.shots, "hours_seen": hours, "epochs": epochs}


def _time(flops: Flops, config: Config, name: str | None, gpus: int, mfu: float) -> dict[str, Any]:
    precision = config.train.precision or "no"
    peak = peak_flops(name, precision) if name else None
    told: dict[str, Any] = {"gpu": name, "gpus": gpus, "precision": precision, "peak": peak, "mfu": mfu}
    if peak is not None:
        told["seconds_a_step"] = flops.model / (gpus * peak * mfu)
        told["days"] = told["seconds_a_step"] * config.train.steps / 86400
    return told


def _memory(
    stage: Stage, gen: AnimeShooterGen, config: Config, gpus: int, without: tuple[str, ...]
) -> dict[str, dict[str, dict[str, float]]]:
    ways = {"kept": False, "checkpointing": True}
    return {
        layout: {
            way: memory_of(stage, gen, config, layout=layout, processes=gpus, checkpointing=again, without=without).as_dict()
            for way, again in ways.items()
        }
        for layout in LAYOUTS
    }


def _notes(
    stage: Stage, gen: AnimeShooterGen, config: Config, told: dict[str, Any], name: str | None, gpus: int, layout: str
) -> list[str]:
    """What stands in the way of the run, and the mend."""
    notes, train = [], config.train
    batch = samples_of_step(config)
    if batch % (gpus * train.accumulate):
        fitting = _fitting(batch, gpus, train.accumulate)
        mend = f"use {fitting} GPUs, or" if fitting else "choose another train.accumulate, or"
        notes.append(
            f"{batch} samples a step cannot be shared evenly by {gpus} GPUs x {train.accumulate} micro-batches: "
            f"{mend} another train.global_batch"
        )
    if train.processes is not None and train.processes != gpus:
        notes.append(f"train.processes is {train.processes}, but {gpus} GPUs are reckoned with")
    room = None if name is None else gpu_memory(name)
    if room is None:
        return notes
    way = "checkpointing" if train.checkpointing else "kept"
    needed = told["memory"][layout][way]["total"]
    if needed <= FREE * room:
        return notes
    notes.append(
        f"does not fit: {layout} needs {needed / 1e9:.0f} GB a GPU; of {name}'s {room / 1e9:.0f} GB {FREE:.0%} are free"
    )
    notes += _ways_out(stage, gen, config, told, room, gpus, way)
    return notes


def _ways_out(
    stage: Stage, gen: AnimeShooterGen, config: Config, told: dict[str, Any], room: int, gpus: int, way: str
) -> list[str]:
    """Settings that would fit, the least change first."""
    found = []
    for layout, ways in told["memory"].items():
        for how in ("kept", "checkpointing"):
            if ways[how]["total"] <= FREE * room:
                more = " and train.checkpointing=true" if how == "checkpointing" and way == "kept" else ""
                found.append(f"fits: {layout}{more} ({ways[how]['total'] / 1e9:.0f} GB)")
                break
    if found:
        return found
    for count in (2**power for power in range(int(math.log2(gpus)) + 1, int(math.log2(MOST)) + 1)):
        if samples_of_step(config) % count:
            continue
        for layout in LAYOUTS:
            need = memory_of(
                stage, gen, config, layout=layout, processes=count, checkpointing=True, without=tuple(told["without"])
            )
            if need.total <= FREE * room:
                return [f"would fit: {count} GPUs, {layout} and train.checkpointing=true ({need.total / 1e9:.0f} GB)"]
    return ["fits in no layout: cache features, raise train.accumulate, or take GPUs with more memory"]


def _fitting(batch: int, gpus: int, accumulate: int) -> int:
    """The most GPUs up to ``gpus`` among whose micro-batches a batch divides; 0 where it does among none."""
    return max((count for count in range(1, gpus + 1) if batch % (count * accumulate) == 0), default=0)


# ---- as text ----


def text_of(told: dict[str, Any]) -> str:
    """A plan for a terminal."""
    lines = [json.dumps(told["settings"], indent=2), "", f"{'component':<20}{'trainable':>16}{'frozen':>16}"]
    rows = [(part, one["trainable"], one["frozen"]) for part, one in told["parameters"].items()]
    rows.append(("all", sum(row[1] for row in rows), sum(row[2] for row in rows)))
    lines += [f"{part:<20}{trained:>16,}{frozen:>16,}" for part, trained, frozen in rows]
    return "\n".join([*lines, "", *_data_lines(told), "", *_work_lines(told), "", *_memory_lines(told), *_note_lines(told)])


def _data_lines(told: dict[str, Any]) -> list[str]:
    about, run = told["data"], told["run"]
    seen = f"{run['steps']:,} steps, {run['samples']:,} samples, {run['clips']:,} clips: {_hours(run['hours_seen'])} of video"
    if "missing" in about:
        return [f"data: {about['missing']}; epochs and what is left out are not known", seen, about["features"]]
    lines = [about["describe"], f"{seen}, {run['epochs']:,.1f} epochs of {_hours(about['hours'])}"]
    lines += [f"  {one['bucket']}: {one['samples']:,} samples, {one['steps']:,} steps an epoch" for one in about["buckets"]]
    for kind in ("left_out", "samples_left_out"):
        what = kind.replace("_", " ") if kind.startswith("samples") else "shots left out"
        lines += [f"  {what}: {count:,} {reason}" for reason, count in about[kind].items()]
    return [*lines, *(f"note: {one}" for one in about["warnings"]), about["features"]]


def _work_lines(told: dict[str, Any]) -> list[str]:
    sample, time, flops = told["sample"], told["time"], told["flops"]
    assumed = sample["assumed"]
    reference = " x ".join(map(str, assumed["reference"]))
    video, stories = sample["video"], sample["stories"]
    told_clips = f"{len(video)} clip{'s' if len(video) > 1 else ''} of {max(video):,} tokens"
    told_read = f"{len(stories)} sequences of up to {max(stories):,} tokens" if len(stories) > 1 else f"{stories[0]:,} tokens"
    lines = [
        f"a sample: {told_clips}, a condition of {sample['condition']}, {told_read} for the MLLM "
        f"(taking captions of {assumed['caption']} and references of {reference})",
        f"{'TFLOP a step':<20}{'forward':>16}{'backward':>16}",
    ]
    lines += [
        f"{part:<20}{one['forward'] / 1e12:>16,.4g}{one['backward'] / 1e12:>16,.4g}" for part, one in flops["parts"].items()
    ]
    extra = flops["hardware"] - flops["model"]
    again = f" (and {extra / 1e12:,.4g} again, for checkpointing)" if extra else ""
    lines.append(f"{'all':<20}{flops['model'] / 1e12:>32,.4g}{again}")
    if time["peak"] is None:
        which = f"no published peak of {time['gpu']} in {time['precision']} is known" if time["gpu"] else "no GPU here or named"
        return [*lines, f"time: not reckoned, {which} (--gpus 8 --gpu H100)"]
    lines.append(
        f"time: {time['seconds_a_step']:,.3g} s a step, {_hours(24 * time['days'])} on {time['gpus']} x {time['gpu']} "
        f"at {time['mfu']:.0%} of {time['peak'] / 1e12:,.0f} TFLOP/s ({time['precision']})"
    )
    return lines


def _hours(hours: float) -> str:
    """A time in the unit that suits it."""
    for unit, size in (("days", 24.0), ("hours", 1.0), ("minutes", 1 / 60)):
        if hours >= 2 * size:
            return f"{hours / size:,.1f} {unit}"
    return f"{hours * 3600:,.1f} seconds"


def _memory_lines(told: dict[str, Any]) -> list[str]:
    """A table; GB are 10^9 bytes, as in data sheets."""
    names = ("weights", "gradients", "optimizer", "averages", "activations", "working", "total")
    gpus = told["time"]["gpus"]
    unit, size = ("GB", 1e9) if max(ways["kept"]["total"] for ways in told["memory"].values()) >= 1e9 else ("MB", 1e6)
    lines = [f"{unit} on each of {gpus} GPU{'s' if gpus > 1 else ''}, estimated"]
    lines.append(f"{'':<22}" + "".join(f"{name:>13}" for name in names))
    for layout, ways in told["memory"].items():
        for way, sums in ways.items():
            label = layout if way == "kept" else f"{layout} checkpointing"
            lines.append(f"{label:<22}" + "".join(f"{sums[name] / size:>13,.1f}" for name in names))
    return lines


def _note_lines(told: dict[str, Any]) -> list[str]:
    return ["", *told["notes"]] if told["notes"] else []
