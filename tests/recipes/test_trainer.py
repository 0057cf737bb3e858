import json
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open

from animeshooter_streams import ShotStream
from recipes import align, hooks, lora, multi_shot, pretrain, single_shot
from recipes.config import TINY_CLIP
from recipes.lora import lora_main
from recipes.trainer import generator_of, main


def weights(checkpoint, component):
    found = {}
    for file in sorted((checkpoint / component).glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            found |= {name: tensors.get_tensor(name) for name in tensors.keys()}  # noqa: SIM118
    return found


def differ(before, after, component):
    old, new = weights(before, component), weights(after, component)
    assert old.keys() == new.keys()
    return any(not torch.equal(old[name], new[name]) for name in old)


def test_each_stage_trains_what_it_says_and_nothing_else(chain):
    components = ("mllm", "adapter", "text_encoder", "transformer", "vae")
    changed = {
        after: [name for name in components if differ(chain[before], chain[after], name)]
        for before, after in (("align", "single_shot"), ("single_shot", "multi_shot"), ("multi_shot", "lora"))
    }
    assert changed == {"single_shot": ["adapter"], "multi_shot": ["adapter"], "lora": []}
    assert differ(chain["single_shot"], chain["multi_shot"], "mllm_lora")
    assert not differ(chain["multi_shot"], chain["lora"], "mllm_lora")
    ups = [tensor for name, tensor in weights(chain["lora"], "transformer_lora").items() if "lora_B" in name]
    assert ups
    assert any(tensor.abs().max() > 0 for tensor in ups)


def test_a_checkpoint_says_what_made_it(chain, dataset):
    training = json.loads((chain["multi_shot"] / "training.json").read_text())
    assert training["stage"] == "multi_shot"
    assert training["parent"] == {"name": "single_shot", "stage": "single_shot"}
    assert (training["preset"], training["steps"], len(training["losses"])) == ("tiny", 2, 2)
    assert training["config"]["data"]["clip"]["frames"] == 9
    assert training["dataset"]["fingerprint"]["shots"] == 8
    assert training["dataset"]["step"] == 2
    lines = [json.loads(line) for line in (chain["multi_shot"] / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines] == training["losses"]
    assert lines[0]["samples"][0].startswith("0:film")
    assert lines[0]["samples"][0].count("+") == 2
    assert not list(chain["multi_shot"].parent.glob("*.partial"))


def test_the_log_says_of_every_step_how_it_went(chain):
    lines = [json.loads(line) for line in (chain["multi_shot"] / "log.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["loss"] == pytest.approx(sum(line["loss_by_shot"]) / 3)
        assert len(line["loss_by_timestep"]) == 4
        found = [loss for loss in line["loss_by_timestep"] if loss is not None]
        assert min(found) <= line["loss"] <= max(found)
        assert line["grad_norm"] > 0
        assert line["lr"] == 1e-3
        assert 0 <= line["wait"] <= line["seconds"]
        assert line["frames_per_second"] == pytest.approx(27 * line["samples_per_second"], rel=1e-2)
        assert line["tokens_per_second"] == pytest.approx(3 * 3 * 4 * 6 * line["samples_per_second"], rel=1e-2)
        assert line["memory_gib"] > 0.1
        assert "mfu" not in line  # nobody knows the peak of a CPU
    assert "loss_by_timestep" not in json.loads((chain["align"] / "log.jsonl").read_text().splitlines()[0])


def test_alignment_lowers_its_loss(dataset, tmp_path):
    out = tmp_path / "align"
    assert main(align.STAGE, ["--data", str(dataset), "--out", str(out), "--set", "train.steps=12"]) == 0
    losses = json.loads((out / "training.json").read_text())["losses"]
    assert losses[-1] < 0.8 * losses[0]


def test_pretraining_trains_the_whole_video_transformer_and_alignment_goes_on_from_it(dataset, tmp_path):
    out = tmp_path / "pretrain"
    assert main(pretrain.STAGE, ["--data", str(dataset), "--out", str(out), "--set", "train.steps=1"]) == 0
    again = ["--data", str(dataset), "--out", str(tmp_path / "align"), "--from", str(out), "--set", "train.steps=1"]
    assert main(align.STAGE, again) == 0
    assert not differ(out, tmp_path / "align", "transformer")


def test_a_run_is_repeatable(dataset, chain, tmp_path):
    arguments = ["--data", str(dataset), "--from", str(chain["align"]), "--out", str(tmp_path / "again")]
    assert main(single_shot.STAGE, [*arguments, "--set", "train.steps=2"]) == 0
    one, two = (json.loads((path / "training.json").read_text()) for path in (chain["single_shot"], tmp_path / "again"))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)


def test_accumulation_does_not_change_the_loss(dataset, chain, tmp_path):
    arguments = ["--data", str(dataset), "--from", str(chain["align"]), "--out", str(tmp_path / "a")]
    arguments += ["--set", "train.steps=2", "--set", "train.accumulate=2"]
    assert main(single_shot.STAGE, arguments) == 0
    one, two = (json.loads((path / "training.json").read_text()) for path in (chain["single_shot"], tmp_path / "a"))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)


def test_recomputing_activations_changes_nothing(dataset, chain, tmp_path):
    arguments = ["--data", str(dataset), "--from", str(chain["align"]), "--out", str(tmp_path / "a")]
    assert main(single_shot.STAGE, [*arguments, "--set", "train.steps=2", "--set", "train.checkpointing=true"]) == 0
    one, two = (json.loads((path / "training.json").read_text()) for path in (chain["single_shot"], tmp_path / "a"))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-6)


def test_min_snr_weighs_the_loss_and_not_the_log_s_bands(dataset, chain, tmp_path):
    arguments = ["--data", str(dataset), "--from", str(chain["align"]), "--out", str(tmp_path / "a")]
    assert main(single_shot.STAGE, [*arguments, "--set", "train.steps=1", "--set", "train.weighting=min_snr"]) == 0
    one, two = (json.loads((path / "log.jsonl").read_text().splitlines()[0]) for path in (chain["single_shot"], tmp_path / "a"))
    assert two["loss_by_timestep"] == pytest.approx(one["loss_by_timestep"])
    assert two["loss"] < one["loss"]  # every weight is below one


def test_the_checkpoint_holds_the_averages_and_a_run_with_them_goes_on_to_the_bit(dataset, chain, tmp_path, monkeypatch):
    def align_run(out, *more):
        arguments = ["--data", str(dataset), "--out", str(tmp_path / out), "--set", "train.schedule=cosine"]
        return main(align.STAGE, [*arguments, *(part for one in ("train.steps=4", *more) for part in ("--set", one))])

    def stop(this, line):
        if this.step == 3:
            raise KeyboardInterrupt

    assert align_run("plain") == 0
    assert align_run("whole", "train.ema=0.5", "train.save_every=2") == 0
    monkeypatch.setattr(hooks, "HOOKS", [lambda this: SimpleNamespace(on_step=stop, on_end=lambda this: None)])
    with pytest.raises(KeyboardInterrupt):
        align_run("parted", "train.ema=0.5", "train.save_every=2")
    monkeypatch.undo()
    assert align_run("parted", "train.ema=0.5", "train.save_every=2") == 0
    assert not differ(tmp_path / "whole", tmp_path / "parted", "adapter")
    assert differ(tmp_path / "whole", tmp_path / "plain", "adapter")
    losses = [json.loads((tmp_path / out / "training.json").read_text())["losses"] for out in ("plain", "whole", "parted")]
    assert losses[0] == losses[1] == losses[2]


def test_noise_depends_on_step_and_sample_and_not_on_the_process(dataset):
    from dataclasses import asdict

    from streams.clips import ClipSpec

    def numbers(rank, world):
        stream = ShotStream(dataset, ClipSpec(**asdict(TINY_CLIP)), global_batch=4)
        return [
            torch.rand((), generator=generator_of(0, batch, place)).item()
            for (batch,) in stream.batches(rank, world, steps=2)
            for place in range(len(batch.samples))
        ]

    whole, first, second = numbers(0, 1), numbers(0, 2), numbers(1, 2)
    assert whole == first[:2] + second[:2] + first[2:] + second[2:]
    assert len(set(whole)) == 8


# ---- refusals ----


@pytest.mark.parametrize(
    ("stage", "parent", "says"),
    [
        (single_shot, None, "single_shot starts from a checkpoint of align: give it with --from"),
        (multi_shot, "align", "a checkpoint of stage align; multi_shot starts from single_shot"),
        (lora, "single_shot", "a checkpoint of stage single_shot; lora starts from multi_shot"),
        (align, "lora", "a checkpoint of stage lora; align starts from pretrain"),
    ],
)
def test_a_checkpoint_of_a_wrong_stage_is_refused(chain, dataset, tmp_path, capsys, stage, parent, says):
    arguments = ["--data", str(dataset), "--out", str(tmp_path / "out")]
    assert main(stage.STAGE, [*arguments, *(["--from", str(chain[parent])] if parent else [])]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_settings_of_another_preset_than_the_checkpoint_s_are_refused(chain, dataset, tmp_path, capsys):
    arguments = ["--data", str(dataset), "--out", str(tmp_path / "out"), "--preset", "paper"]
    assert main(single_shot.STAGE, [*arguments, "--from", str(chain["align"])]) == 2
    assert "a model of preset tiny, not paper" in capsys.readouterr().err


def test_what_is_no_checkpoint_is_refused(dataset, tmp_path, capsys):
    assert main(multi_shot.STAGE, ["--data", str(dataset), "--out", str(tmp_path / "out"), "--from", str(dataset)]) == 2
    assert "not a checkpoint of these recipes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "data.clip.height=70"], "multiples of 16"),
        (["--set", "data.clip.frames=8"], "frames must be 4k + 1"),
        (["--set", "train.stepz=8"], "did you mean train.steps?"),
        (["--data", "nowhere"], "nowhere: not a dataset directory"),
        (["--set", "train.accumulate=3"], "does not divide over 1 processes x 3"),
    ],
)
def test_wrong_settings_stop_a_run_before_it_starts(dataset, tmp_path, capsys, arguments, says):
    out = tmp_path / "out"
    assert main(align.STAGE, ["--data", str(dataset), "--out", str(out), *arguments]) == 2
    assert says in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_is_not_overwritten(chain, dataset, tmp_path, capsys):
    assert main(align.STAGE, ["--data", str(dataset), "--out", str(chain["align"])]) == 2
    assert "exists already" in capsys.readouterr().err
    (tmp_path / "run.partial").mkdir()
    (tmp_path / "run.partial" / "thesis.txt").write_text("mine")
    assert main(align.STAGE, ["--data", str(dataset), "--out", str(tmp_path / "run")]) == 2
    assert "run.partial: holds thesis.txt" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_no_checkpoint(dataset, tmp_path, capsys):
    arguments = ["--data", str(dataset), "--out", str(tmp_path / "out"), "--set", "train.learning_rate=1e30"]
    assert main(align.STAGE, arguments) == 2
    assert "the loss is" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_lora_takes_one_film_or_character(chain, dataset, tmp_path, capsys):
    arguments = ["--data", str(dataset), "--from", str(chain["multi_shot"]), "--out", str(tmp_path / "out")]
    assert lora_main([*arguments, "--video", "film0", "--character", "Red", "--set", "train.steps=1"]) == 0
    line = json.loads((tmp_path / "out" / "log.jsonl").read_text())
    assert all(key.startswith("film0") for sample in line["samples"] for key in sample.split(":")[1].split("+"))
    assert lora_main([*arguments[:-1], str(tmp_path / "two"), "--video", "film0", "--character", "Blue"]) == 2
    assert "nothing to train on in split 'train': 2 shots, " in capsys.readouterr().err


def test_a_dry_run_shows_settings_and_parameters(capsys):
    assert main(single_shot.STAGE, ["--from", "x", "--dry-run"]) == 2
    capsys.readouterr()
    assert main(align.STAGE, ["--dry-run", "--set", "train.steps=77"]) == 0
    shown = capsys.readouterr().out
    assert '"steps": 77' in shown
    rows = {line.split()[0]: line.split()[1:] for line in shown.splitlines() if line[:1].isalpha() and "," in line}
    assert rows["transformer"][0] == "0"
    assert rows["adapter"][1] == "0"
