"""The end of a run: gathers the weights and puts the checkpoint in its place, whole."""

from __future__ import annotations

import json
import shutil
from typing import Any

from torch import Tensor

from recipes.losses import filled
from recipes.parts import laid_out_parts, make_whole
from recipes.record import SAMPLES, held_out_of, machine, run_record
from recipes.running import Run
from recipes.saving import load_weights, writing
from recipes.stage import load_model
from recipes.together import agree, attempt


def finish(this: Run) -> None:
    """Write the checkpoint; every process must call it."""
    known = {**this.about, "seconds": this.seconds(), "ran_on": machine(this.accelerator), "starts": this.starts}
    trained = this.layout.weights(this.parameters) if this.ema is None else this.ema.tensors()
    problem = None
    if this.folder is not None and this.data is not None:
        this.data.told.update(this.stream.state_dict())
        if this.stream.bad:
            this.data.told["bad_samples"] = this.stream.bad.names
        known |= {"data": this.data, "losses": filled(this.losses), "held_out": held_out_of(this.folder.log)}
        problem = this.folder.settle() or attempt(lambda: _save(this, trained, known))[1]
    agree(problem)
    if this.losses:
        count, losses = f"{this.step} step{'s' if this.step > 1 else ''}", filled(this.losses)
        this.say(f"{this.stage.name}: loss {losses[0]:.4f} -> {losses[-1]:.4f} in {count}; wrote {this.out}")


def _save(this: Run, trained: dict[str, Tensor], known: dict[str, Any]) -> None:
    """Write the checkpoint beside ``out`` and put it in place in one rename; ``known`` is what :func:`run_record` wants."""
    assert this.folder is not None
    gen, parent, work = this.module.gen, this.parent, this.folder.path
    if this.layout.sharded:  # this process has only a part of it: the frozen weights are read once more
        gen = load_model(this.stage, this.config, parent, laid_out_parts(gen))
    load_weights(gen, trained)
    whole = work / "checkpoint"
    with writing(whole, "write the checkpoint"):
        make_whole(gen, this.config, parent)
        if this.stage.conclude is not None:
            this.stage.conclude(gen, this.stream, this.config)
        gen.save_pretrained(whole, share_with=parent)
        training = run_record(stage=this.stage.name, config=this.config, parent=parent, **known)
        (whole / "training.json").write_text(json.dumps(training, indent=2) + "\n", encoding="utf-8")
        films = (json.dumps(film, ensure_ascii=False) for film in known["data"].films)
        (whole / "films.jsonl").write_text("".join(f"{line}\n" for line in films), encoding="utf-8")
        shutil.copyfile(this.folder.log, whole / "log.jsonl")
        if (work / SAMPLES).is_dir():
            shutil.copytree(work / SAMPLES, whole / SAMPLES)
        if this.out.exists():  # empty, as `set_up` saw to
            this.out.rmdir()
        whole.rename(this.out)
    shutil.rmtree(work)
