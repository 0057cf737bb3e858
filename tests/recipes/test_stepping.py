import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from animeshooter_dataset import DataError
from recipes import align, hooks
from recipes.saving import WorkFolder
from recipes.stepping import SCALER_MAY_SEEK, Guard
from recipes.trainer import main


def broken(steps, how):
    """Alignment whose first sample of some steps goes wrong: in its loss, or in its gradient alone."""

    def loss(gen, batch, config, generators):
        found = align.STAGE.loss(gen, batch, config, generators)
        if batch.step not in steps:
            return found
        weight = next(gen.adapter.parameters()).sum()
        wrong = weight * math.nan if how == "loss" else (weight * 0).sqrt()
        return found._replace(per_sample=torch.cat([found.per_sample[:1] + wrong, found.per_sample[1:]]))

    return replace(align.STAGE, loss=loss)


class Seen:
    """A hook that keeps the lines and what the adapter was after each step."""

    def __init__(self):
        self.lines, self.sums, self.ended = [], [], 0

    def on_step(self, this, line):
        self.lines.append(line)
        self.sums.append(sum(one.double().sum().item() for one in this.module.gen.adapter.parameters()))

    def on_end(self, this):
        self.ended += 1


@pytest.fixture
def seen(monkeypatch):
    hook = Seen()
    monkeypatch.setattr(hooks, "HOOKS", [lambda this: hook, lambda this: None])
    return hook


def train(dataset, out, stage, *assignments):
    arguments = ["--data", str(dataset), "--out", str(out)]
    return main(stage, [*arguments, *(part for one in ("train.steps=4", *assignments) for part in ("--set", one))])


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_a_step_that_is_not_finite_is_left_out_with_a_line(dataset, tmp_path, capsys, seen, how):
    out = tmp_path / "out"
    assert train(dataset, out, broken({1}, how), "train.skip_nonfinite=1") == 0
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [("skipped" in line) for line in lines] == [False, True, False, False]
    assert seen.sums[0] == seen.sums[1] != seen.sums[2]
    first = lines[1]["samples"][0].partition(":")[2]
    what = f"the loss is nan (of {first})" if how == "loss" else "the gradient's norm is nan"
    assert f"align: step 1: {what}" in capsys.readouterr().out
    losses = json.loads((out / "training.json").read_text(), parse_constant=pytest.fail)["losses"]
    assert (lines[1]["loss"] is None) == (how == "loss")
    assert len(losses) == 4
    assert seen.ended == 1


@pytest.mark.parametrize("how", ["loss", "gradient"])
def test_one_more_than_may_be_left_out_stops_the_run_and_the_snapshot_stays(dataset, tmp_path, capsys, seen, how):
    settings = ("train.skip_nonfinite=1", "train.save_every=1")
    assert train(dataset, tmp_path / "out", broken({2, 3}, how), *settings) == 2
    error = capsys.readouterr().err
    assert "error: step 3: the " in error
    assert "lower train.learning_rate" in error
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "out.partial" / "snapshots" / "step-000003" / "weights.safetensors").exists()
    assert seen.sums[1] == seen.sums[2]
    assert seen.ended == 1
    assert train(dataset, tmp_path / "out", align.STAGE, "train.skip_nonfinite=1", "train.save_every=1") == 0


def test_steps_left_out_are_counted_in_a_row(dataset, tmp_path):
    assert train(dataset, tmp_path / "out", broken({0, 2}, "loss"), "train.skip_nonfinite=1") == 0


def test_steps_left_out_before_a_restart_count_too(dataset, tmp_path, capsys):
    torn = broken({1}, "loss")

    def stops(gen, batch, config, generators):
        if batch.step == 2:
            raise DataError("the cable was pulled")
        return torn.loss(gen, batch, config, generators)

    settings = ("train.skip_nonfinite=1", "train.save_every=1")
    assert train(dataset, tmp_path / "out", replace(torn, loss=stops), *settings) == 2
    assert "the cable was pulled" in capsys.readouterr().err
    assert train(dataset, tmp_path / "out", broken({1, 2}, "loss"), *settings) == 2
    assert "error: step 2: the loss is nan" in capsys.readouterr().err


def test_the_log_is_json_whatever_a_loss_comes_to(tmp_path):
    folder = WorkFolder(tmp_path / "out.partial", 1)
    folder.note({"step": 0, "loss_by_shot": [1.5, math.nan], "held_out": {"loss": math.inf, "samples": 4}})
    folder.close()
    line = json.loads(folder.log.read_text(), parse_constant=pytest.fail)
    assert line == {"step": 0, "loss_by_shot": [1.5, None], "held_out": {"loss": None, "samples": 4}}


def test_without_leave_it_stops_at_once(dataset, tmp_path, capsys):
    assert train(dataset, tmp_path / "out", broken({1}, "gradient")) == 2
    assert "error: step 1: the gradient's norm is nan, the loss is " in capsys.readouterr().err


# ---- where it cannot be tried here ----


def run_of(distributed="NO", precision="no", most=0):
    from accelerate.utils import DistributedType

    accelerator = SimpleNamespace(distributed_type=DistributedType[distributed], mixed_precision=precision)
    config = SimpleNamespace(train=SimpleNamespace(skip_nonfinite=most))
    return SimpleNamespace(config=config, accelerator=accelerator, step=7, left_out=0, main=True, say=print, stage=align.STAGE)


def test_deepspeed_cannot_leave_a_step_out():
    Guard(run_of("DEEPSPEED"))
    with pytest.raises(DataError, match=r"train\.skip_nonfinite: DeepSpeed updates before"):
        Guard(run_of("DEEPSPEED", most=2))


def test_an_overflow_of_fp16_is_the_scaler_s_until_it_never_ends():
    this = run_of(precision="fp16")
    guard = Guard(this)
    for _ in range(SCALER_MAY_SEEK):
        assert "the scaler of fp16 left it out" in guard.overflow(this)
    with pytest.raises(DataError, match="step 7: the gradient has overflowed for 41 steps in a row"):
        guard.overflow(this)
