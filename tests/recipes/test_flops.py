import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.training_model import Trial, batch_of, reading_of, trial_config
from model import AnimeShooterGen
from recipes import align, lora, multi_shot, pretrain, single_shot
from recipes.conditions import prepare
from recipes.config import override
from recipes.flops import flops_of, gpu_memory, peak_flops
from recipes.stage import StageModule

STAGES = {one.STAGE.name: one.STAGE for one in (pretrain, align, single_shot, multi_shot, lora)}
TRIAL = Trial(False, "tiny", "no", "cpu")


def prepared(stage, preset, *settings):
    config = override(trial_config(stage, TRIAL, False), list(settings))
    gen = AnimeShooterGen.from_preset(preset)
    prepare(gen, config)
    gen.set_trainable(stage.name)
    return gen, config


def counted(stage, gen, config, *, cached=True):
    """Operations of a real step, as PyTorch counts them while it computes."""
    module = StageModule(gen, stage, config)
    module.train()
    batch = batch_of(gen, config, cached=cached)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # as products of matrices, which it counts
        module(batch).per_sample.mean().backward()
    return counter.get_total_flops()


@pytest.mark.parametrize("preset", ["tiny", "tiny_wan"])
@pytest.mark.parametrize("name", STAGES)
def test_a_step_costs_what_pytorch_counts(name, preset):
    gen, config = prepared(STAGES[name], preset)
    found = flops_of(STAGES[name], gen, config, reading=reading_of(gen), without=("vae",))
    assert found.recomputed == 0
    assert found.model == found.hardware == pytest.approx(counted(STAGES[name], gen, config), rel=0.02)


@pytest.mark.parametrize("preset", ["tiny", "tiny_wan"])
def test_encoding_the_clips_is_counted(preset):
    gen, config = prepared(lora.STAGE, preset, "data.shots=1")
    whole, cached = (flops_of(lora.STAGE, gen, config, reading=reading_of(gen), without=kept) for kept in ((), ("vae",)))
    assert whole.model - cached.model == whole.parts["vae"].forward > 0
    assert whole.model == pytest.approx(counted(lora.STAGE, gen, config, cached=False), rel=0.02)


@pytest.mark.parametrize("preset", ["tiny", "tiny_wan"])
def test_checkpointing_costs_hardware_and_no_model_flops(preset):
    gen, config = prepared(single_shot.STAGE, preset)
    plain = flops_of(single_shot.STAGE, gen, config, reading=reading_of(gen), without=("vae",))
    config = override(config, ["train.checkpointing=true"])
    there = counted(single_shot.STAGE, gen, config)
    again = flops_of(single_shot.STAGE, gen, config, reading=reading_of(gen), without=("vae",))
    assert again.model == plain.model < again.hardware
    assert again.hardware == pytest.approx(there, rel=0.04)  # PyTorch stops before the last matrix of a block


@pytest.mark.parametrize(
    "settings",
    [
        ("condition.memory=first_last",),
        ("condition.shots_back=1", "condition.memory_captions=false"),
        ("condition.pathway=latents", "data.references=2"),
    ],
)
def test_what_the_settings_make_it_read_is_counted(settings):
    gen, config = prepared(multi_shot.STAGE, "tiny", *settings)
    found = flops_of(multi_shot.STAGE, gen, config, reading=reading_of(gen), without=("vae",))
    assert found.model == pytest.approx(counted(multi_shot.STAGE, gen, config), rel=0.04)


def test_training_the_autoencoder_is_counted():
    stage = pretrain.VAE_STAGE
    gen, config = prepared(stage, "tiny")
    found = flops_of(stage, gen, config)
    assert set(found.parts) == {"vae"}
    assert found.model == pytest.approx(counted(stage, gen, config, cached=False), rel=0.02)


def test_a_step_of_more_and_larger_samples_costs_more():
    gen, config = prepared(multi_shot.STAGE, "tiny")
    one = flops_of(multi_shot.STAGE, gen, config, without=("vae",))
    assert flops_of(multi_shot.STAGE, gen, config, without=("vae",), samples=4).model == 4 * one.model
    fewer = flops_of(multi_shot.STAGE, gen, config, without=("vae",), shots=1)
    assert fewer.parts["transformer"].model * 3 == one.parts["transformer"].model
    assert flops_of(multi_shot.STAGE, gen, config, without=("vae",), clip=(17, 64, 96)).model > one.model


def test_the_paper_sizes_are_reckoned_without_weights():
    gen = AnimeShooterGen.from_preset("paper", device="meta")
    gen.set_trainable("multi_shot")
    config = trial_config(multi_shot.STAGE, Trial(True, "paper", "bf16", "cuda"), False)
    found = flops_of(multi_shot.STAGE, gen, config).parts["transformer"]
    tokens, width, layers = 13 * 30 * 45 + 226, 30 * 64, 30
    per_clip = layers * (24 * tokens * width**2 + 4 * tokens**2 * width)  # 12 d^2 weights a block, and attention
    assert found.forward == pytest.approx(3 * per_clip, rel=0.01)


def test_published_peaks_are_found_by_the_names_torch_gives():
    assert peak_flops("NVIDIA H200", "bf16") == 989.5e12
    assert peak_flops("NVIDIA H100 80GB HBM3", "fp16") == 989.5e12
    assert peak_flops("NVIDIA H100 PCIe", "bf16") < peak_flops("H100", "bf16")
    assert peak_flops("NVIDIA A100-SXM4-40GB", "no") == 19.5e12
    assert gpu_memory("NVIDIA A100-SXM4-40GB") == 40 * 10**9
    assert gpu_memory("A100") == 80 * 10**9
    assert gpu_memory("NVIDIA L40S") > gpu_memory("NVIDIA L4")
    assert peak_flops("NVIDIA GeForce RTX 4090", "bf16") == 165.2e12
    assert peak_flops("Tesla V100-PCIE-16GB", "fp16") == 112e12
    assert peak_flops("Tesla V100-SXM2-16GB", "fp16") == 125e12
    assert gpu_memory("Tesla V100-SXM2-16GB") == 16 * 10**9


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        ("cpu", "bf16"),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16"),
        ("Tesla V100-SXM2-32GB", "bf16"),
        ("H1000", "bf16"),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", "bf16"),
    ],
)
def test_what_is_not_published_is_not_guessed(name, precision):
    assert peak_flops(name, precision) is None
