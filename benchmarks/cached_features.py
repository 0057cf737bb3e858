"""What a training step costs with features from a cache and without one: the same stage, samples and random numbers.

For each stage, in one process on one core: steps of reading, loss, backward and update, uncached and cached in turns. Figures
are medians over the steps, in processor time (other work on the machine hardly moves it) and in wall time. The cache is made
first, with the same model, and the losses of both ways are compared. The preset is the tiny one: how much a model of real size
gains is another figure, and not measured here.

Run: python -m benchmarks.cached_features DATASET [--steps 12] [--json benchmarks/results/cached_features.json]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from recipes import align, cache_features, lora, multi_shot, pretrain, single_shot
from recipes.config import override
from recipes.features import coverage_of, open_features
from recipes.stage import StageModule, load_model, open_stream

RECIPES = (pretrain, align, single_shot, multi_shot, lora)


def main() -> None:
    """Print the table, and write it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="dataset directory")
    parser.add_argument("--steps", type=int, default=12, help="steps measured of each stage and way")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory(prefix="animeshooter-features-") as folder:
        features, began = Path(folder) / "features", time.process_time()
        with contextlib.redirect_stdout(io.StringIO()) as said:
            code = cache_features.main(["--data", str(args.data), "--out", str(features), "--set", "data.clip.starts=1"])
        if code:
            raise SystemExit(code)
        made = time.process_time() - began
        print(said.getvalue(), end="")
        size = sum(path.stat().st_size for path in features.rglob("*.tar"))
        print(f"made in {made:.1f} s of processor time, {size / 2**20:.1f} MB\n")
        found = {recipe.STAGE.name: compare(recipe.STAGE, args.data, features, args.steps) for recipe in RECIPES}
    print(table(found))
    print("\ntiny preset, one process, one core; models of real size are not measured here")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        told = {"preset": "tiny", "steps": args.steps, "made_cpu_s": made, "bytes": size, "stages": found}
        args.json.write_text(json.dumps(told, indent=2) + "\n")


def compare(stage: Any, data: Path, features: Path, steps: int) -> dict[str, Any]:
    """Medians of a step in milliseconds, uncached and cached, taken in turns, and how far their losses lie apart."""
    ways = {"uncached": walk(stage, data, None), "cached": walk(stage, data, features)}
    cpu: dict[str, list[float]] = {way: [] for way in ways}
    wall: dict[str, list[float]] = {way: [] for way in ways}
    apart = 0.0
    for number in range(steps + 1):
        losses = {}
        for way, run in ways.items():
            began = time.process_time(), time.perf_counter()
            losses[way] = next(run)
            if number:  # the first step warms up
                cpu[way].append((time.process_time() - began[0]) * 1e3)
                wall[way].append((time.perf_counter() - began[1]) * 1e3)
        apart = max(apart, abs(losses["cached"] / losses["uncached"] - 1))
    told = {
        f"{way} ms {clock}": statistics.median(values[way]) for clock, values in (("cpu", cpu), ("wall", wall)) for way in ways
    }
    return told | {"losses apart": apart}


def walk(stage: Any, data: Path, features: Path | None) -> Iterator[float]:
    """Steps of a stage from the tiny preset, each with its loss."""
    config = override(stage.presets["tiny"], ["data.clip.starts=1", *([f"data.features={features}"] if features else [])])
    cache = open_features(stage, config, data, None, "no")
    stream = open_stream(stage, config, data, cache)
    module = StageModule(load_model(stage, config, None, coverage_of(stage, config, cache, stream).without), stage, config)
    optimizer = torch.optim.AdamW(module.gen.trainable_parameters(stage.name), lr=config.train.learning_rate)
    for (batch,) in stream.batches():
        loss = module(batch).per_sample.mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        yield loss.item()


def table(found: dict[str, dict[str, Any]]) -> str:
    """The figures as text, with how many times as fast the cached way is."""
    heads = {"ms a step": -14, "uncached cpu": 14, "cached cpu": 12, " times": 8}
    heads |= {"uncached wall": 15, "cached wall": 13, "times": 8, "losses apart": 15}
    lines = ["".join(f"{head:<{-width}}" if width < 0 else f"{head:>{width}}" for head, width in heads.items())]
    for name, told in found.items():
        line = f"{name:<14}"
        for clock, widths in (("cpu", (14, 12, 8)), ("wall", (15, 13, 8))):
            before, after = told[f"uncached ms {clock}"], told[f"cached ms {clock}"]
            line += f"{before:>{widths[0]}.1f}{after:>{widths[1]}.1f}{before / after:>{widths[2]}.2f}"
        lines.append(line + f"{told['losses apart']:>15.1e}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
