"""Does it learn? The stages on rendered stories, on one processor core, with numbers that could have come out otherwise.

Stories of three drawn characters in eight colours (``benchmarks.learning_films``) are rendered and packed, and a model of
preset "small" is made from nothing by the recipes themselves: autoencoder, video transformer, alignment, single shots, several
shots. Measured are

a. overfitting: on one story stage 0 must bring its loss down by 90 %, and what it samples for each caption must lie closer to
   that caption's shot than to any other shot of the story;
b. held-out losses: on stories of pairs of character and colour that no stage saw, stages 1 to 3, the video transformer frozen,
   each must end below where they began, on the same noise and timesteps;
c. the reference: with captions that name no colour, the references of two held-out characters change places, and the colour
   inside the character's mask must follow; with a blank reference it must not go to the other.

The run takes a work folder and goes on where it stopped: every part that is there is taken as it is.

Run: python -m benchmarks.learning WORK [--set overfit=800 ...] [--json benchmarks/results/learning.json]
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import learning_films
from benchmarks.learning_measures import (
    batches_of,
    compared,
    held_out_loss,
    nearest,
    pairs_to_swap,
    swap,
    swap_summary,
    video_of,
)
from recipes import align, multi_shot, pretrain, single_shot
from recipes.config import Config, override
from recipes.parts import load_gen
from recipes.record import read_record
from recipes.stage import Stage

DRAWS = 4
"""Noises from which each caption of the overfitted story is sampled."""
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Plan:
    """How much of everything; numbers of the parts are steps.

    Args:
        each: training stories of each pair of character and colour that training may see.
        held_out: stories of each pair it may not.
        seed: of stories, of weights and of training.
        pictures: of the autoencoder on single frames.
        vae: of the autoencoder on clips.
        overfit: of the transformer on one story.
        pretrain: of the transformer on all.
        align: of alignment.
        single_shot: of single shots.
        multi_shot: of several shots.
        sampling: denoising steps of what is generated.
        guidance: of what is generated.
    """

    each: int = 6
    held_out: int = 4
    seed: int = 0
    pictures: int = 392
    vae: int = 60
    overfit: int = 420
    pretrain: int = 1200
    align: int = 500
    single_shot: int = 1000
    multi_shot: int = 80
    sampling: int = 15
    guidance: float = 2.0


@dataclass(frozen=True)
class Part:
    """A training run: a stage, its name here, what it starts from and the settings that are not the preset's."""

    name: str
    stage: Stage
    parent: str | None
    settings: tuple[str, ...]
    cached: bool = True


def parts(plan: Plan, story: str) -> dict[str, Part]:
    """The training runs in their order; ``story`` is the video of the story to overfit."""
    quiet = "train.save_every=none"
    made = [
        Part(
            "pictures",
            pretrain.VAE_STAGE,
            None,
            (f"train.steps={plan.pictures}", "data.clip.frames=1", "train.global_batch=8"),
            False,
        ),
        Part("vae", pretrain.VAE_STAGE, "pictures", (f"train.steps={plan.vae}", "train.learning_rate=5e-4"), False),
        Part(
            "overfit",
            pretrain.STAGE,
            "vae",
            (f"train.steps={plan.overfit}", f"data.video={story}", "train.global_batch=4", "dropout.caption=0", quiet),
        ),
        Part("pretrain", pretrain.STAGE, "vae", (f"train.steps={plan.pretrain}",)),
        Part("align", align.STAGE, "pretrain", (f"train.steps={plan.align}",)),
        Part("single_shot", single_shot.STAGE, "align", (f"train.steps={plan.single_shot}",)),
        Part("multi_shot", multi_shot.STAGE, "single_shot", (f"train.steps={plan.multi_shot}",)),
    ]
    return {part.name: part for part in made}


# ---- making ----


@dataclass(frozen=True)
class Work:
    """The work folder of a run."""

    folder: Path
    plan: Plan

    @property
    def data(self) -> Path:
        """The dataset."""
        return self.folder / "films"

    def stories(self) -> list[learning_films.Story]:
        """All stories of the dataset."""
        return learning_films.stories(self.plan.each, self.plan.held_out, self.plan.seed)

    def parts(self) -> dict[str, Part]:
        """See :func:`parts`; the story to overfit is the first that training may see."""
        return parts(self.plan, next(story.video for story in self.stories() if story.split == "train"))

    def checkpoint(self, name: str) -> Path:
        """Where a part's model lies."""
        return self.folder / "checkpoints" / name

    @property
    def features(self) -> Path:
        """What the frozen parts make of the data, so that no stage makes it twice."""
        return self.folder / "features"

    def settings(self, part: Part) -> list[str]:
        """The settings of a part that are not the preset's."""
        cached = [f"data.features={self.features}"] if part.cached else []
        return [*part.settings, f"train.seed={self.plan.seed}", *cached]

    def config(self, part: Part) -> Config:
        """The resolved settings of a part."""
        return override(part.stage.presets["small"], self.settings(part))

    def render(self) -> None:
        """Draw and pack the stories."""
        from tqdm import tqdm

        if not (self.data / "manifest.json").is_file():
            wanted = self.stories()
            learning_films.write(self.data, wanted, tqdm(wanted, desc="stories"))

    def train(self, part: Part) -> None:
        """Run a part as its user would, in a process of its own, with cached features where it reads latents."""
        if self.checkpoint(part.name).is_dir():
            return
        where = ["--data", str(self.data)]
        start = ["--preset", "small"] if part.parent is None else ["--from", str(self.checkpoint(part.parent))]
        if part.cached:
            for split in SPLITS:
                more = ["--set", f"data.split={split}", "--stage", part.stage.name]
                _call("recipes.cache_features", *where, *start, "--out", str(self.features), *more)
        module = "recipes.pretrain" if part.stage.name.startswith("pretrain") else f"recipes.{part.stage.name}"
        which = ["--part", "vae"] if part.stage.name == "pretrain_vae" else []
        changed = [word for setting in self.settings(part) for word in ("--set", setting)]
        _call(module, *which, *where, *start, "--out", str(self.checkpoint(part.name)), *changed)

    def load(self, name: str) -> Any:
        """The model of a part, for measuring."""
        part = self.parts()[name]
        gen = load_gen(self.config(part), self.checkpoint(name))
        return gen.eval().requires_grad_(False)


def _call(module: str, *arguments: str) -> None:
    command = [sys.executable, "-m", module, *arguments]
    print("$", " ".join(["python", *command[1:]]), flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"}
    subprocess.run(command, check=True, env=environment)


# ---- measuring ----


def measure_overfit(work: Work) -> dict[str, Any]:
    """Part a: the loss on the story before and after, and what is sampled for its captions."""
    part = work.parts()["overfit"]
    config = work.config(part)
    before = load_gen(config, work.checkpoint("vae"))
    after = work.load("overfit")
    vae = work.checkpoint("vae")
    losses = [held_out_loss(part.stage, config, gen, work.data, "train", 16, vae) for gen in (before, after)]
    samples = [sample for batch in batches_of(part.stage, config, work.data, "train") for sample in batch.samples]
    targets = [after.encode_video(torch.from_numpy(sample.frames))[0] for sample in samples]
    texts = [after.text_features(list(sample.descriptive)) for sample in samples]
    sampled = [
        [sampled_latents(after, text, work.plan.sampling, len(texts) * draw + number) for draw in range(DRAWS)]
        for number, text in enumerate(texts)
    ]
    return {"loss": compared(*losses), "latents": nearest(sampled, targets)}


@torch.no_grad()
def sampled_latents(gen: Any, condition: Tensor, steps: int, seed: int) -> Tensor:
    """Latents [F', C, h, w] sampled under a condition [1, L, D], without guidance."""
    from diffusers import CogVideoXPipeline

    video = CogVideoXPipeline(None, None, gen.vae, gen.transformer, gen.scheduler)
    video.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(seed)
    size = {"num_frames": learning_films.FRAMES, "height": learning_films.HEIGHT, "width": learning_films.WIDTH}
    return video(
        prompt_embeds=condition,
        guidance_scale=1.0,
        num_inference_steps=steps,
        generator=generator,
        output_type="latent",
        **size,
    ).frames[0]


def measure_stage(work: Work, name: str) -> dict[str, Any]:
    """Part b: a stage's held-out loss with the model it started from, and with the one it made."""
    part = work.parts()[name]
    assert part.parent is not None
    config = work.config(part)
    told = {}
    for split in ("validation", "test"):
        losses = [
            held_out_loss(part.stage, config, work.load(one), work.data, split, model=work.checkpoint(one))
            for one in (part.parent, name)
        ]
        told[split] = compared(*losses)
    return told


def measure_swap(work: Work, name: str = "single_shot", split: str = "validation", every: int = 1) -> dict[str, Any]:
    """Part c: references of two held-out characters change places; of the pairs only each ``every``-th is tried."""
    part = work.parts()["single_shot"]
    pipeline = work.load(name).pipeline()
    pipeline.set_progress_bar_config(disable=True)
    middles: list[np.ndarray] = []

    def generate(picture: Any, caption: str, seed: int) -> np.ndarray:
        shots = pipeline(
            picture,
            [caption],
            num_inference_steps=work.plan.sampling,
            guidance_scale=work.plan.guidance,
            generator=torch.Generator().manual_seed(seed),
        ).shots
        middles.append(shots[0][len(shots[0]) // 2])
        return shots[0]

    samples = [sample for batch in batches_of(part.stage, work.config(part), work.data, split) for sample in batch.samples]
    # With their names, as training shows them; the two of a pair share theirs.
    references = {video_of(sample.keys[0]): {sample.character: sample.reference} for sample in samples}
    known = {story.video: story for story in work.stories()}
    pairs = pairs_to_swap([(video, known[video].body, known[video].colour) for video in sorted(references)])[::every]
    with np.load(learning_films.truth_of(work.data)) as truth:
        found = swap(generate, samples, references, truth, pairs)
    _sheet(middles, work.folder / f"swap_{name}_{split}.png")
    return swap_summary(found)


def _sheet(pictures: list[np.ndarray], path: Path, most: int = 24) -> None:
    """Generated frames to look at: a row a shot with its own reference, with the other's and with none."""
    from PIL import Image

    rows = [np.hstack(pictures[first : first + 3]) for first in range(0, len(pictures), 3)]
    rows = rows[:: max(1, len(rows) // most)][:most]
    Image.fromarray(np.vstack(rows)).save(path)


def run_facts(work: Work) -> dict[str, Any]:
    """Steps, seconds and parameters of every part, from its own record."""
    told = {}
    for name in work.parts():
        record = read_record(work.checkpoint(name))
        told[name] = {
            "steps": record["steps"],
            "seconds": record["run"]["seconds"],
            "processes": [start["processes"] for start in record["run"]["starts"]],
            "global_batch": record["config"]["train"]["global_batch"],
            "loss_first": record["loss_first"],
            "loss_last": record["loss_last"],
            "trainable": sum(part["trainable"] for part in record["parameters"].values()),
        }
    return told


# ---- command line ----


def main() -> None:
    """Make everything that is missing, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", type=Path, help="folder for films, features and checkpoints")
    parser.add_argument(
        "--set", action="append", default=[], metavar="A=C", help="change a number of the plan, again and again"
    )
    parser.add_argument("--until", help="stop after this part")
    parser.add_argument("--json", type=Path, help="write the figures there")
    args = parser.parse_args()
    torch.set_num_threads(1)
    work, began = Work(args.work, override(Plan(), args.set)), time.perf_counter()
    work.render()
    for part in work.parts().values():
        work.train(part)
        if part.name == args.until:
            return
    told: dict[str, Any] = {"plan": dataclasses.asdict(work.plan), "machine": platform.machine(), "threads of a process": 1}
    told["data"] = {split: sum(story.split == split for story in work.stories()) for split in SPLITS}
    told["runs"] = run_facts(work)
    told["wall-clock hours of training"] = sum(run["seconds"] for run in told["runs"].values()) / 3600
    told["overfit"] = measure_overfit(work)
    told["held_out"] = {name: measure_stage(work, name) for name in ("align", "single_shot", "multi_shot")}
    told["swap"] = {"single_shot": measure_swap(work, "single_shot")}
    # What the stage before does with a reference, and whether the stage after still looks at it, on a part of the pairs.
    told["swap"] |= {name: measure_swap(work, name, every=3) for name in ("align", "multi_shot")}
    told["seconds of measuring"] = time.perf_counter() - began
    print(json.dumps(told, indent=1))
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(told, indent=2) + "\n")


if __name__ == "__main__":
    main()
