import pytest
import torch
from diffusers import CogVideoXDPMScheduler, CogVideoXPipeline, FlowMatchEulerDiscreteScheduler, WanPipeline
from tiny_models import tiny_model

from model.denoise import denoise

SIZE = {"num_frames": 9, "height": 64, "width": 96}
SCALE = 4.0


def seed(number):
    return torch.Generator().manual_seed(number)


@pytest.fixture
def conditions():
    """conditions(model): features of an empty text and of a text, [2, L, D]."""
    return lambda model: model.text_features(["", "a fox runs through the snow"])


def cogvideox_pipeline(model, scheduler=None):
    pipeline = CogVideoXPipeline(None, None, model.vae, model.transformer, scheduler or model.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


@pytest.mark.parametrize("kind", ["tiny", "rotary"])
@pytest.mark.parametrize("dpm", [False, True])
def test_guidance_is_that_of_diffusers_cogvideox(kind, dpm, conditions):
    model = tiny_model(kind)
    if dpm:
        model.scheduler = CogVideoXDPMScheduler.from_config(model.scheduler.config)
    blank, full = conditions(model).split(1)
    noise = torch.randn(1, 3, 4, 8, 12, generator=seed(0))
    theirs = cogvideox_pipeline(model)(
        prompt_embeds=full,
        negative_prompt_embeds=blank,
        latents=noise,
        num_inference_steps=5,
        guidance_scale=SCALE,
        generator=seed(1),
        output_type="latent",
        **SIZE,
    ).frames
    ours = denoise(model.backbone, torch.cat([blank, full]), [1 - SCALE, SCALE], (3, 4, 8, 12), 5, seed(1), noise=noise)
    assert torch.allclose(ours, theirs, atol=1e-4)
    assert not torch.allclose(ours, denoise(model.backbone, full, [1.0], (3, 4, 8, 12), 5, seed(1), noise=noise), atol=1e-2)


@pytest.mark.parametrize("euler", [False, True])
def test_guidance_is_that_of_diffusers_wan(euler, conditions):
    model = tiny_model("tiny_wan")
    if euler:
        model.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipeline = WanPipeline(model.text_tokenizer, model.text_encoder, model.vae, model.scheduler, transformer=model.transformer)
    pipeline.set_progress_bar_config(disable=True)
    blank, full = conditions(model).split(1)
    noise = torch.randn(1, 3, 4, 8, 12, generator=seed(0))
    theirs = pipeline(
        prompt_embeds=full,
        negative_prompt_embeds=blank,
        latents=noise.transpose(1, 2),
        num_inference_steps=5,
        guidance_scale=SCALE,
        output_type="latent",
        **SIZE,
    ).frames.transpose(1, 2)
    ours = denoise(model.backbone, torch.cat([full, blank]), [SCALE, 1 - SCALE], (3, 4, 8, 12), 5, noise=noise)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_the_same_seed_draws_the_same_noise_as_diffusers(conditions):
    model = tiny_model("tiny")
    full = conditions(model)[1:]
    theirs = cogvideox_pipeline(model)(
        prompt_embeds=full, num_inference_steps=3, guidance_scale=1.0, generator=seed(5), output_type="latent", **SIZE
    ).frames
    assert torch.allclose(denoise(model.backbone, full, [1.0], (3, 4, 8, 12), 3, seed(5)), theirs, atol=1e-5)


def test_any_weights_of_any_conditions(conditions):
    model = tiny_model("tiny")
    blank, full = conditions(model).split(1)
    start = {"shape": (3, 4, 8, 12), "steps": 2, "noise": torch.randn(1, 3, 4, 8, 12, generator=seed(0))}
    split = denoise(model.backbone, torch.cat([blank, full, full]), [-1.0, 0.5, 1.5], **start)
    assert torch.allclose(split, denoise(model.backbone, torch.cat([blank, full]), [-1.0, 2.0], **start), atol=1e-5)
    for weights in ([1.0], [0.5, 0.6, 0.5]):
        with pytest.raises(ValueError, match="3 conditions need as many weights that add up to 1"):
            denoise(model.backbone, torch.cat([blank, full, full]), weights, **start)


@pytest.mark.parametrize("kind", ["tiny", "tiny_wan"])
def test_sampling_leaves_the_schedule_of_training_alone_and_counts_its_steps(kind, conditions, clips):
    model, heard = tiny_model(kind), []
    latents, condition = model.encode_video(clips(1)), conditions(model)[1:]
    before, _ = model.diffusion_loss(latents, condition, seed(0))
    denoise(model.backbone, condition, [1.0], (3, 4, 8, 12), 4, seed(0), progress=lambda: heard.append(1))
    assert len(heard) == 4
    assert torch.equal(model.diffusion_loss(latents, condition, seed(0))[0], before)
