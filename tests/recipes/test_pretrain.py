"""Stage 0: the autoencoder learns and measures its own scale, the transformer starts from it, and nothing else changes."""

import json
from types import SimpleNamespace

import pytest
import torch

from model import AnimeShooterGen
from model.autoencoder import divergence, normalise_latents, reconstruction_loss
from recipes import pretrain
from recipes.config import override
from recipes.parts import load_gen
from recipes.stage import generator_of, open_stream
from recipes.trainer import main


@pytest.fixture(scope="module")
def vae(dataset, tmp_path_factory):
    """A checkpoint of a few steps of the autoencoder."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("pretrain") / "vae"
    arguments = ["--part", "vae", "--data", str(dataset), "--out", str(out), "--preset", "tiny", "--set", "train.steps=4"]
    assert pretrain.run_part(arguments) == 0
    return out


def first_batch(dataset, config):
    stream = open_stream(pretrain.STAGE, config, dataset)
    return next(iter(stream.batches(steps=1)))[0]


def clips(dataset):
    batch = first_batch(dataset, pretrain.PRESETS["tiny"])
    return torch.stack([torch.from_numpy(sample.frames[0]) for sample in batch.samples])


def test_the_part_changes_the_autoencoder_alone(vae):
    before = AnimeShooterGen.from_preset("tiny", seed=0).state_dict()
    after = AnimeShooterGen.from_pretrained(vae).state_dict()
    changed = {name.partition(".")[0] for name, value in after.items() if not torch.equal(value, before[name])}
    assert changed == {"vae"}
    assert json.loads((vae / "training.json").read_text())["stage"] == "pretrain_vae"


def test_the_scale_is_measured_and_saved_so_that_latents_have_unit_size(vae, dataset):
    gen = AnimeShooterGen.from_pretrained(vae)
    assert gen.vae.config.scaling_factor != AnimeShooterGen.from_preset("tiny").vae.config.scaling_factor
    size = gen.encode_video(clips(dataset)).square().mean().sqrt().item()
    assert size == pytest.approx(1, abs=0.15)  # one batch of those it was measured on


def test_the_transformer_starts_from_the_autoencoder_and_leaves_it_as_it_is(vae, dataset, tmp_path):
    out = tmp_path / "pretrain"
    arguments = ["--data", str(dataset), "--out", str(out), "--from", str(vae), "--set", "train.steps=1"]
    assert pretrain.run_part(arguments) == 0
    before, after = (AnimeShooterGen.from_pretrained(path) for path in (vae, out))
    changed = {
        name.partition(".")[0]
        for name, value in after.state_dict().items()
        if not torch.equal(value, before.state_dict()[name])
    }
    assert changed == {"transformer"}
    assert after.vae.config.scaling_factor == before.vae.config.scaling_factor


def test_the_autoencoder_does_not_start_from_a_later_stage(vae, dataset, tmp_path, capsys):
    later = tmp_path / "later"
    assert pretrain.run_part(["--data", str(dataset), "--out", str(later), "--from", str(vae), "--set", "train.steps=1"]) == 0
    arguments = ["--part", "vae", "--data", str(dataset), "--out", str(tmp_path / "out"), "--from", str(later)]
    assert main(pretrain.VAE_STAGE, arguments[2:]) == 2
    assert "pretrain_vae starts from" in capsys.readouterr().err


def test_cached_latents_cannot_train_the_autoencoder():
    batch = SimpleNamespace(samples=[SimpleNamespace(frames=None)])
    with pytest.raises(ValueError, match="leave out data"):
        pretrain._clips(batch)


def test_the_loss_of_a_sample_does_not_depend_on_its_company(dataset):
    config = override(pretrain.PRESETS["tiny"], ["dropout.caption=0.5"])
    gen, batch = load_gen(config, None), first_batch(dataset, config)
    torch.nn.init.normal_(gen.transformer.proj_out.weight)
    generators = [generator_of(7, batch, place) for place in range(len(batch.samples))]
    together = pretrain.loss(gen, batch, config, generators)
    for place, sample in enumerate(batch.samples):
        alone = SimpleNamespace(samples=[sample])
        found = pretrain.loss(gen, alone, config, [generator_of(7, batch, place)])
        assert found.per_sample.item() == pytest.approx(together.per_sample[place].item(), rel=1e-4)
        assert found.timesteps.item() == together.timesteps[place].item()


# ---- the autoencoder's own parts ----


def test_divergence_is_zero_for_the_standard_normal_and_grows_with_mean_and_variance():
    zero = torch.zeros(2, 3)
    assert torch.equal(divergence(zero, zero), torch.zeros(2))
    assert divergence(zero + 2, zero).tolist() == pytest.approx([2.0, 2.0])
    assert (divergence(zero, zero + 1) > 0).all()
    assert (divergence(zero, zero - 1) > 0).all()


def test_reconstruction_is_drawn_when_noise_is_given_and_its_gradient_reaches_all_weights(dataset):
    gen = AnimeShooterGen.from_preset("tiny")
    gen.set_trainable("pretrain_vae")
    frames = clips(dataset)[:1]
    shape = gen.backbone.latent_shape(*frames.shape[1:4])
    noise = torch.randn(1, *shape).transpose(1, 2)
    still = reconstruction_loss(gen.vae, frames)
    assert torch.equal(still, reconstruction_loss(gen.vae, frames, torch.zeros_like(noise)))
    drawn = reconstruction_loss(gen.vae, frames, noise)
    assert drawn.shape == (1,)
    assert drawn.item() != still.item()
    drawn.sum().backward()
    lost = [name for name, parameter in gen.vae.named_parameters() if parameter.grad is None]
    assert lost == []


def test_latents_of_no_clips_or_of_no_spread_are_refused():
    gen = AnimeShooterGen.from_preset("tiny")
    with pytest.raises(ValueError, match="0 cells"):
        normalise_latents(gen.vae, [])


def test_an_autoencoder_with_a_scale_for_every_channel_gets_one_for_every_channel(dataset):
    gen = AnimeShooterGen.from_preset("tiny_wan")
    normalise_latents(gen.vae, [clips(dataset)])
    latents = gen.encode_video(clips(dataset))
    assert latents.mean((0, 1, 3, 4)).abs().max() < 1e-3
    assert latents.std((0, 1, 3, 4)).tolist() == pytest.approx([1.0] * latents.shape[2], abs=0.01)
