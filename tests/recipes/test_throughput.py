import json

import pytest
import torch

from recipes import multi_shot, throughput
from recipes.flops import flops_of
from recipes.stage import load_model
from recipes.throughput import Meter, peak_memory, rounded
from recipes.trainer import main


def test_mfu_is_the_model_s_work_over_what_the_device_could_do(chain, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(Meter, "_peak_flops", lambda self: 1e10)
    out, parent = tmp_path / "out", chain["single_shot"]
    arguments = ["--data", str(dataset), "--out", str(out), "--from", str(parent), "--set", "train.steps=2"]
    assert main(multi_shot.STAGE, arguments) == 0
    config = multi_shot.STAGE.presets["tiny"]
    work = flops_of(multi_shot.STAGE, load_model(multi_shot.STAGE, config, parent), config, without=("text_encoder",)).model
    assert work > 0
    for line in map(json.loads, (out / "log.jsonl").read_text().splitlines()):
        assert line["mfu"] == pytest.approx(work / (1e10 * line["seconds"]), rel=2e-3)


def test_memory_is_the_most_there_was(monkeypatch):
    before = peak_memory(torch.device("cpu"))
    torch.ones(2**24).sum()
    assert peak_memory(torch.device("cpu")) >= max(before, 2**26)
    monkeypatch.setattr(throughput.torch.cuda, "max_memory_allocated", lambda device: 77)
    assert peak_memory(torch.device("cuda")) == 77


def test_figures_are_told_to_four_digits():
    assert [rounded(value) for value in (123456.0, 0.00123456, 0.0)] == [123500, 0.001235, 0]
