import json

import pytest

from animeshooter_dataset import DataError
from recipes import align, hooks
from recipes.trainer import main


class Counting:
    def __init__(self, fail_at=None):
        self.fail_at, self.steps, self.ended = fail_at, [], 0

    def on_step(self, this, line):
        if this.step == self.fail_at:
            raise DataError("the tracker's disk is full")
        line["counted"] = len(self.steps)
        self.steps.append(this.step)

    def on_end(self, this):
        self.ended += 1


def train(dataset, out, monkeypatch, *made):
    monkeypatch.setattr(hooks, "HOOKS", [lambda this, hook=hook: hook for hook in made])
    return main(align.STAGE, ["--data", str(dataset), "--out", str(out), "--set", "train.steps=3"])


def test_a_hook_sees_every_step_and_adds_to_the_log(dataset, tmp_path, monkeypatch):
    hook = Counting()
    assert train(dataset, tmp_path / "out", monkeypatch, hook) == 0
    assert hook.steps == [1, 2, 3]
    assert hook.ended == 1
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert [line["counted"] for line in lines] == [0, 1, 2]


@pytest.mark.parametrize("step", [2, 3])
def test_what_goes_wrong_in_a_hook_ends_the_run_and_the_others_end_in_order(dataset, tmp_path, monkeypatch, capsys, step):
    one, other = Counting(fail_at=step), Counting()
    assert train(dataset, tmp_path / "out", monkeypatch, one, other) == 2
    assert "error: the tracker's disk is full" in capsys.readouterr().err
    assert other.steps == list(range(1, step + 1))
    assert one.ended == other.ended == 1
    assert not (tmp_path / "out").exists()
