import argparse
import json

import pytest
import torch

from benchmarks import training
from benchmarks.training import NOT_MEASURED, Way, about, measure, ours, peer, table
from benchmarks.training_model import Trial, batch_of, random_model, reading_of, trial_config
from recipes import lora, multi_shot, single_shot

CPU = pytest.mark.skipif(torch.cuda.is_available(), reason="the tiny size is for machines without a GPU")
pytestmark = CPU


@pytest.fixture(scope="module")
def trial():
    torch.set_num_threads(1)
    return Trial.here("bf16")


@pytest.fixture(scope="module")
def gen(trial):
    return random_model(trial)


def options(**changed):
    chosen = {"precision": "bf16", "stages": ["single_shot"], "steps": 1, "seconds": 600.0, "no_compile": True, "json": None}
    return argparse.Namespace(**chosen | changed)


def test_without_a_gpu_it_says_that_real_size_is_not_measured(trial):
    told = about(trial)
    assert (told["real_size"], told["preset"], told["peak_flops"], told["note"]) == (False, "tiny", None, NOT_MEASURED)


def test_the_batch_is_what_the_flops_are_counted_for(gen, trial):
    config = trial_config(multi_shot.STAGE, trial, False)
    batch = batch_of(gen, config, cached=True)
    (sample,) = batch.samples
    assert tuple(batch.frames.shape) == (1, 3, 9, 64, 96, 3)
    count = len(gen.tokenizer(sample.descriptive[0], add_special_tokens=False)["input_ids"])
    assert count == reading_of(gen).caption
    assert sample.references[0].shape == (*reading_of(gen).reference, 3)
    assert sample.features[0]["latents"].shape == (2, *gen.backbone.latent_shape(9, 64, 96))
    assert batch_of(gen, config, cached=False).samples[0].features is None


def test_a_way_trains_what_the_stage_trains_and_nothing_else(gen, trial):
    gen.set_trainable("single_shot")
    before = {name: parameter.detach().clone() for name, parameter in gen.named_parameters()}
    row = ours(gen, single_shot.STAGE, trial, Way(cached=True, checkpointing=True), 1)
    after = dict(gen.named_parameters())
    moved = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.split(".")[0] for name in moved} == {"adapter", "mllm"}
    assert all(".lora_" in name for name in moved if name.startswith("mllm"))
    assert row["clips"] == 1
    assert row["model_flops"] < row["hardware_flops"]
    assert (row["mfu"], row["peak_gb"]) == (None, None)


def test_cached_latents_leave_out_the_encoder(gen, trial):
    cached, encoded = (ours(gen, single_shot.STAGE, trial, Way(way, False), 1) for way in (True, False))
    assert cached["model_flops"] < encoded["model_flops"]
    assert cached["model_flops"] == cached["hardware_flops"]


def test_the_peer_trains_the_same_lora_on_as_many_clips(gen, trial):
    mine = ours(gen, lora.STAGE, trial, Way(True, False), 1)
    trained = gen.trainable_parameters("lora")
    before = [parameter.detach().clone() for parameter in trained]
    theirs = peer(gen, trial, False, True, 1)
    assert theirs["clips"] == mine["clips"] == 3
    assert any(not torch.equal(was, now) for was, now in zip(before, trained))
    cached = peer(gen, trial, False, False, 1)
    assert cached["model_flops"] < theirs["model_flops"]
    assert cached["model_flops"] < mine["model_flops"]  # ours also reads the story


def test_figures_are_written_as_they_come_and_one_failure_stops_nothing(monkeypatch, tmp_path, capsys):
    def broken(*_):
        raise torch.OutOfMemoryError("no")

    monkeypatch.setattr(training, "ours", broken)
    file = tmp_path / "results" / "training.json"
    found = measure(options(json=file))
    assert json.loads(file.read_text()) == found
    assert {row.get("error") for row in found["rows"] if row["stage"] == "single_shot"} == {"out of memory"}
    assert all("seconds" in row for row in found["rows"] if row["stage"] == "diffusers")
    said = table(found)
    assert "out of memory" in said
    assert said.endswith(NOT_MEASURED)


def test_what_there_is_no_time_for_is_said(monkeypatch):
    found = measure(options(seconds=0.0))
    assert {row["error"] for row in found["rows"]} == {"not begun: the time was up"}
