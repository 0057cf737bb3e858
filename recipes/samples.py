"""Stories a model generates while it is trained: the same few, at intervals, so that one sees it learn.

The stories are windows of the dataset, from a held-out split where there is one: their captions and references in, films out.
They are dealt out over the processes, which generate side by side; none waits for another longer than for one story more.
"""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from PIL import Image

from animeshooter_dataset import DataError
from animeshooter_streams import Batch, StoryStream
from recipes.conditions import prompts_of, references_of
from recipes.config import Config
from recipes.data import clips_of, open_stream
from recipes.encoding import captions_of
from recipes.held_out import SPLITS
from recipes.parts import laid_out_parts
from recipes.record import SAMPLES, STILLS
from recipes.running import work_folder
from recipes.stage import model_errors
from recipes.together import attempt, gathered
from streams.store import store_splits

if TYPE_CHECKING:
    from recipes.running import Run

BY_TEXT = ("pretrain", "cogvideo_lora")
"""Stages whose video model is conditioned on the text encoder, shot by shot."""
MAKES_NONE = ("pretrain_vae",)


def samples(this: Run) -> Samples | None:
    """The hook, where ``samples.every`` asks for one."""
    return None if this.config.samples.every is None else Samples(this)


def needed_parts(stage: str, config: Config) -> frozenset[str]:
    """The frozen parts that sample stories need in memory, whatever is cached."""
    if config.samples.every is None or stage in MAKES_NONE:
        return frozenset()
    return frozenset({"vae", "text_encoder"} if stage in BY_TEXT else {"vae"})


class Samples:
    """Generates stories every ``samples.every`` steps and after the last one.

    ``<out>.partial/sample_stories/step-NNNNNN/story-N/`` gets ``story.mp4``, ``stills.jpg``, ``story.json`` and the
    references; in the end the folder stands in the checkpoint. With ``train.ema`` the averages generate.

    Raises:
        DataError: the stage generates nothing, the weights are spread over processes, or the data has no stories.
    """

    def __init__(self, this: Run) -> None:
        asked, world = this.config.samples, this.accelerator.num_processes
        if asked.every is None or min(asked.every, asked.stories, asked.shots, asked.steps) < 1:
            raise DataError("samples: every, stories, shots and steps are at least 1")
        if this.stage.name in MAKES_NONE:
            raise DataError(f"samples.every: {this.stage.name} trains no part that generates; leave it out")
        if this.layout.sharded:
            raise DataError(
                f"samples.every: under {this.layout.name} no process has all weights to generate with; leave it out, and "
                "generate from the checkpoint"
            )
        lacking = sorted(set(laid_out_parts(this.module.gen)) & needed_parts(this.stage.name, this.config))
        if lacking:
            raise DataError(f"samples.every: {' and '.join(lacking)} are not in memory")
        self.stories = stories_of(this)[this.accelerator.process_index :: world]
        self.folder = work_folder(this.out) / SAMPLES
        if asked.stories % world:
            this.say(f"samples.stories={asked.stories} over {world} processes: some wait for others, a multiple would not")

    def on_step(self, this: Run, line: dict[str, Any]) -> None:
        """Generate, where it is time."""
        if this.step % (this.config.samples.every or 1) and this.step != this.config.train.steps:
            return
        folder = self.folder / f"step-{this.step:06}"
        films, problem = attempt(lambda: self._generate(this, folder))
        told = gathered({"films": films or []})
        line[SAMPLES] = sorted(film for one in told for film in one["films"])
        if problem is not None:
            raise DataError(problem)

    def on_end(self, this: Run) -> None:
        """Nothing is open."""

    def _generate(self, this: Run, folder: Path) -> list[str]:
        """This process's stories; returns their films."""
        this.module.eval()
        averaged = this.ema.applied() if this.ema is not None else nullcontext()
        try:
            with averaged, torch.no_grad(), this.accelerator.autocast(), model_errors():
                films = [self._story(this, folder / f"story-{number}", sample) for number, sample in self.stories]
                return [str(film.relative_to(self.folder.parent)) for film in films]
        except OSError as error:
            raise DataError(f"{folder}: cannot write ({error.strerror or error}); make room there") from None
        finally:
            this.model.train()

    def _story(self, this: Run, folder: Path, sample: dict[str, Any]) -> Path:
        from recipes.generate import ClipWriter

        folder.mkdir(parents=True, exist_ok=True)
        made = by_text if this.stage.name in BY_TEXT else by_pipeline
        stills = []
        with ClipWriter(folder / "story.mp4", clips_of(this.config)[0].fps) as film:
            for shot in made(this, sample):
                film.write(shot)
                stills.append(np.concatenate(shot[[0, len(shot) // 2, -1]], axis=1))
        Image.fromarray(np.concatenate(stills)).save(folder / STILLS, quality=92)
        for number, (_, picture) in enumerate(sample["references"] or [], 1):
            Image.fromarray(np.asarray(picture)).save(folder / f"reference_{number}.png")
        about = {"step": this.step, "keys": sample["keys"], "captions": sample["captions"]}
        about |= {"characters": [name for name, _ in sample["references"] or []], **dataclasses.asdict(this.config.samples)}
        (folder / "story.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        return folder / "story.mp4"


def stories_of(this: Run) -> list[tuple[int, dict[str, Any]]]:
    """The stories to generate by their numbers from 1: captions, references and keys, spread over the split.

    Raises:
        DataError: the data has no story of that many shots.
    """
    asked, config = this.config.samples, this.config
    store = getattr(this.stream, "store", None)
    if store is None:
        raise DataError(f"samples.every: {this.source} has no stories to generate; leave it out")
    there = store_splits(store)
    split = next((name for name in SPLITS if name in there), config.data.split)
    data = dataclasses.replace(
        config.data, split=split, shots=asked.shots, features=None, clips=None, clip=one_clip(config), workers=0, bad_samples=0
    )
    train = dataclasses.replace(config.train, global_batch=1, batch_tokens=None, seed=0)
    narrowed = dataclasses.replace(config, data=data, train=train)
    stream = open_stream(dataclasses.replace(this.stage, stream=StoryStream), narrowed, this.source)
    which = np.unique(np.linspace(0, len(stream) - 1, asked.stories).round().astype(int))
    found = []
    for number, place in enumerate(which.tolist(), 1):
        one = stream[place]
        read = captions_of if this.stage.name in BY_TEXT else prompts_of
        captions = read(cast(Batch, SimpleNamespace(samples=[one])), config.data.caption)[0]
        references = None if this.stage.name in BY_TEXT else references_of(one)
        found.append((number, {"keys": list(one.keys), "captions": captions, "references": references}))
    return found


def one_clip(config: Config) -> Any:
    """The first clip size as a setting."""
    clip = clips_of(config)[0]
    return dataclasses.replace(config.data.clip, frames=clip.frames, height=clip.height, width=clip.width, fps=clip.fps)


def by_pipeline(this: Run, sample: dict[str, Any]) -> Any:
    """The shots of a story as ``animeshooter generate`` makes them."""
    asked, clip = this.config.samples, clips_of(this.config)[0]
    pipeline = this.module.gen.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.generate_shots(
        sample["references"],
        sample["captions"],
        clip.frames,
        clip.height,
        clip.width,
        asked.steps,
        asked.guidance,
        torch.Generator().manual_seed(0),
    )


def by_text(this: Run, sample: dict[str, Any]) -> Any:
    """Each shot from its caption alone, through the text encoder."""
    from model.denoise import denoise
    from model.guidance import guided

    asked, clip, gen = this.config.samples, clips_of(this.config)[0], this.module.gen
    generator, weights = torch.Generator().manual_seed(0), [branch.weight for branch in guided(asked.guidance)]
    shape = gen.backbone.latent_shape(clip.frames, clip.height, clip.width)
    for caption in sample["captions"]:
        conditions = gen.text_features([caption, *[""] * (len(weights) - 1)])  # the full one first, as `guided` has them
        latents = denoise(gen.backbone, conditions, weights, shape, asked.steps, generator)
        yield gen.decode_latents(latents)[0].cpu().numpy()
