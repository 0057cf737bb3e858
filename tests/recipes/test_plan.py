import dataclasses
import json

import pytest
import torch

from animeshooter_dataset import DataError
from benchmarks.training_model import Trial, batch_of, reading_of, trial_config
from model import AnimeShooterGen, parameter_table
from recipes import align, cache_features, lora, multi_shot, pretrain, single_shot
from recipes.config import override
from recipes.memory import LAYOUTS, activations_of, memory_of, transformer_activations
from recipes.plan import plan, text_of
from recipes.sizes import samples_of_step, sizes_of, video_tokens
from recipes.trainer import main

STAGES = {one.STAGE.name: one.STAGE for one in (pretrain, align, single_shot, multi_shot, lora)}
PAPER = override(multi_shot.PRESETS["paper"], ["train.precision=fp16"])
MLLM, TRANSFORMER = 8_767_123_696, 1_693_783_872


@pytest.fixture(scope="module")
def paper():
    gen = AnimeShooterGen.from_preset("paper", device="meta")
    gen.set_trainable("multi_shot")
    return gen


def kept_by(run, gen):
    """Bytes of the tensors that autograd keeps of a forward pass, weights aside."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in gen.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    return sum(size for size, _ in kept.values())


@pytest.mark.parametrize("preset", ["tiny", "tiny_wan"])
@pytest.mark.parametrize(("name", "flow"), [("single_shot", "through"), ("lora", "lora"), ("pretrain", "full")])
def test_the_formula_of_activations_is_what_autograd_keeps(preset, name, flow):
    gen = AnimeShooterGen.from_preset(preset)
    gen.set_trainable(name)
    backbone, size = gen.backbone, (17, 192, 288)
    latents = torch.randn(1, *backbone.latent_shape(*size))
    condition = torch.randn(1, backbone.condition_length, backbone.condition_size, requires_grad=flow == "through")
    there = kept_by(lambda: backbone.predict(latents, condition, torch.tensor([500])), gen)
    found = transformer_activations(gen, video_tokens(gen, *size), backbone.condition_length, False, flow, False)
    assert found == pytest.approx(there, rel=0.2)


def test_checkpointing_keeps_what_the_formula_says_and_less():
    gen = AnimeShooterGen.from_preset("tiny")
    gen.set_trainable("single_shot")
    config = trial_config(single_shot.STAGE, Trial(False, "tiny", "no", "cpu"), False)
    sizes = sizes_of(single_shot.STAGE, gen, config, reading_of(gen))
    kept, again = (activations_of(single_shot.STAGE, gen, sizes, False, way) for way in (False, True))
    assert again < 0.8 * kept
    gen.train()
    batch = batch_of(gen, config, cached=True)
    there = kept_by(lambda: single_shot.loss(gen, batch, config, [torch.Generator()]), gen)
    assert kept == pytest.approx(there, rel=0.2)


def test_layouts_share_what_they_say_they_share(paper):
    trained = sum(count for _, count in parameter_table(paper).values())
    found = {name: memory_of(multi_shot.STAGE, paper, PAPER, layout=name, processes=8) for name in LAYOUTS}
    alone = memory_of(multi_shot.STAGE, paper, PAPER, layout="ddp", processes=1)
    assert alone.optimizer == found["ddp"].optimizer == 8 * trained
    assert found["zero2"].optimizer == 12 * trained / 8
    assert found["fsdp2"].weights * 8 == found["ddp"].weights
    assert found["zero3"].weights < found["zero2"].weights / 7
    assert found["zero2"].activations == found["ddp"].activations == alone.activations / 8
    averages = memory_of(multi_shot.STAGE, paper, override(PAPER, ["train.ema=0.999"]), layout="fsdp2", processes=8).averages
    assert averages == 4 * trained / 8


def test_weights_that_a_cache_stands_in_for_take_no_memory(paper):
    half = override(PAPER, ["train.precision=bf16"])
    whole, cached = (memory_of(multi_shot.STAGE, paper, half, without=left) for left in ((), ("vae", "text_encoder")))
    assert whole.weights - cached.weights == 2 * sum(parameter_table(paper)[name][0] for name in ("vae", "text_encoder"))
    assert cached.working == 0 < whole.working


def test_a_run_that_does_not_fit_is_told_what_would():
    told = plan(multi_shot.STAGE, PAPER, gpus=8, gpu="H100")
    assert told["parameters"]["mllm"]["frozen"] == MLLM
    assert told["parameters"]["transformer"] == {"trainable": 0, "frozen": TRANSFORMER}
    said = "\n".join(told["notes"])
    assert "does not fit: ddp" in said
    assert "fits: ddp and train.checkpointing=true" in said
    assert told["run"]["hours_seen"] == pytest.approx(8000 * 8 * 3 * 49 / 8 / 3600)
    flops = told["flops"]["model"]
    assert told["time"]["days"] == pytest.approx(8000 * flops / (8 * 989.5e12 * 0.4) / 86400)
    fits = plan(multi_shot.STAGE, override(PAPER, ["train.checkpointing=true"]), gpus=8, gpu="H100")
    assert fits["notes"] == []
    assert fits["time"]["days"] == told["time"]["days"]


def test_a_small_gpu_is_told_how_many_it_takes():
    told = plan(multi_shot.STAGE, PAPER, gpus=1, gpu="RTX 4090")
    assert told["notes"][-1].startswith(("would fit: ", "fits in no layout"))


def test_a_batch_that_cannot_be_shared_is_said():
    told = plan(single_shot.STAGE, single_shot.PRESETS["tiny"], gpus=3)
    assert "4 samples a step cannot be shared evenly by 3 GPUs x 1 micro-batches: use 2 GPUs" in told["notes"][0]
    accumulated = override(single_shot.PRESETS["tiny"], ["train.accumulate=2"])
    assert "by 4 GPUs x 2 micro-batches: use 2 GPUs" in plan(single_shot.STAGE, accumulated, gpus=4)["notes"][0]
    thirds = override(accumulated, ["train.accumulate=3"])
    assert "choose another train.accumulate" in plan(single_shot.STAGE, thirds, gpus=1)["notes"][0]


def test_a_preset_with_random_weights_is_planned_in_the_precision_it_is_trained_in():
    assert plan(single_shot.STAGE, single_shot.PRESETS["tiny"], gpu="H100")["time"]["precision"] == "no"
    assert plan(multi_shot.STAGE, PAPER, gpu="H100")["time"]["precision"] in ("fp16", "bf16")


@pytest.mark.parametrize("name", STAGES)
def test_every_stage_is_planned_on_a_dataset(name, dataset):
    told = plan(STAGES[name], STAGES[name].presets["tiny"], dataset)
    about = told["data"]
    assert about["buckets"][0]["samples"] == about["samples"] > 0
    assert told["run"]["epochs"] == pytest.approx(8 / about["steps_an_epoch"])
    text = text_of(told)
    assert "in memory" in text
    assert "time: not reckoned" in text


def test_a_batch_in_tokens_is_counted_in_samples():
    config = override(single_shot.PRESETS["tiny"], ["train.batch_tokens=1000", "train.batch_multiple=2"])
    assert samples_of_step(config) == 1000 // (3 * 4 * 6 * 2) * 2
    several = override(config, ["data.clips=9x64x96@8 17x64x96@8"])
    assert samples_of_step(several) == 1000 // (5 * 4 * 6 * 2) * 2


def test_dry_run_prints_json_and_says_that_there_is_no_dataset(tmp_path, capsys):
    missing = str(tmp_path / "none")
    assert main(single_shot.STAGE, ["--dry-run", "--json", "--data", missing, "--gpus", "2", "--gpu", "A100"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["data"]["missing"] == f"no dataset at {missing}"
    assert told["time"]["gpus"] == 2
    assert told["settings"]["train"]["steps"] == 8
    assert main(single_shot.STAGE, ["--dry-run", "--data", missing]) == 0
    assert f"data: no dataset at {missing}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("wrong", "says"), [({"gpu": "H1OO"}, "--gpu H1OO: not known"), ({"mfu": 40.0}, "--mfu 40.0"), ({"gpus": 0}, "--gpus 0")]
)
def test_wrong_arguments_are_named(wrong, says):
    with pytest.raises(DataError, match=says):
        plan(single_shot.STAGE, single_shot.PRESETS["tiny"], **wrong)


@pytest.mark.parametrize("preset", ["wan_1_3b", "paper_5b"])
def test_other_video_models_are_planned_too(preset):
    told = plan(multi_shot.STAGE, dataclasses.replace(PAPER, preset=preset), gpus=8, gpu="H200")
    assert told["flops"]["parts"]["transformer"]["backward"] > told["flops"]["parts"]["transformer"]["forward"]
    assert told["memory"]["ddp"]["kept"]["activations"] > 1e9


def test_what_is_cached_is_neither_in_memory_nor_computed(dataset, tmp_path):
    fixed = ["data.clip.starts=1"]
    stage, features = multi_shot.STAGE, tmp_path / "features"
    arguments = ["--stage", "multi_shot", "--data", str(dataset), "--out", str(features), "--set", *fixed]
    assert cache_features.main(arguments) == 0
    config = override(stage.presets["tiny"], fixed)
    plain = plan(stage, config, dataset)
    cached = plan(stage, override(config, [f"data.features={features}"]), dataset)
    assert "vae" in cached["without"]
    assert "vae" not in plain["without"]
    assert "vae" not in cached["flops"]["parts"]
    assert cached["memory"]["ddp"]["kept"]["weights"] < plain["memory"]["ddp"]["kept"]["weights"]
    assert "not in memory: vae" in text_of(cached)
