import pytest
import torch
from diffusers import WanPipeline
from tiny_models import tiny_model

from model.backbones import backbone_name, condition_length_of

LENGTHS = {"tiny": 24, "rotary": 24, "tiny_wan": 512}


@pytest.fixture(params=["tiny", "rotary", "tiny_wan"])
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    return tiny_model(kind)


def test_condition_of_adapter_and_text_encoder_fit_the_transformer(model, kind, picture):
    backbone = model.backbone
    assert backbone.name == backbone_name(model.transformer.config) == ("wan" if kind == "tiny_wan" else "cogvideox")
    assert (backbone.condition_length, backbone.condition_size) == (LENGTHS[kind], 64)
    assert condition_length_of(dict(model.transformer.config)) == LENGTHS[kind]
    assert model.text_features(["a fox", ""]).shape == (2, LENGTHS[kind], 64)
    assert model.condition([picture(0)], [["a fox"]]).shape == (1, 1, LENGTHS[kind], 64)


def test_precision_is_that_of_the_published_weights(kind):
    assert tiny_model(kind).backbone.precision == ("fp16" if kind == "tiny" else "bf16")


def test_clips_become_latents_of_the_declared_shape_and_clips_again(model, clips):
    backbone = model.backbone
    latents = backbone.encode(clips(2))
    assert tuple(latents.shape[1:]) == backbone.latent_shape(9, 64, 96) == (3, 4, 8, 12)
    assert backbone.default_size == (9, 64, 96)
    assert backbone.decode(latents).shape == (2, 9, 64, 96, 3)
    assert backbone.decode(latents).dtype == torch.uint8
    assert torch.equal(backbone.encode(clips(2)), latents)
    drawn = backbone.encode(clips(2), torch.Generator().manual_seed(0))
    assert not torch.equal(drawn, latents)


def test_latents_from_a_cached_posterior_are_those_encoded(model, clips):
    backbone = model.backbone
    mean, logvar = backbone.posterior(clips(2)).unbind(1)
    assert mean.shape == logvar.shape == (2, 3, 4, 8, 12)
    assert torch.equal(backbone.scale(mean), backbone.encode(clips(2)))
    assert torch.allclose(backbone.unscale(backbone.scale(mean)), mean, atol=1e-5)


def test_clips_that_do_not_fit_are_named(model):
    with pytest.raises(ValueError, match="4k\\+1 frames, not 8; use 5 or 9"):
        model.backbone.check_size(8, 64, 96)
    with pytest.raises(ValueError, match="multiples of 16, not 64 x 90"):
        model.backbone.latent_shape(9, 64, 90)


def test_loss_of_a_perfect_prediction_is_zero_and_of_another_is_not(model, clips, monkeypatch):
    latents, condition = model.encode_video(clips(2)), model.text_features(["a", "b"])
    backbone = model.backbone
    _, noise, timesteps = backbone.noise(latents, torch.Generator().manual_seed(2))
    target = backbone.target(latents, noise, timesteps)
    monkeypatch.setattr(type(backbone), "predict", lambda self, *_: target)
    loss, drawn = model.diffusion_loss(latents, condition, torch.Generator().manual_seed(2))
    assert torch.equal(drawn, timesteps)
    assert loss.tolist() == [0, 0]
    assert model.diffusion_loss(latents, condition, torch.Generator().manual_seed(3))[0].min() > 0


def test_given_noise_and_timesteps_are_used(model, clips):
    latents, condition = model.encode_video(clips(2)), model.text_features(["a", "b"])
    loss, timesteps = model.diffusion_loss(latents, condition, torch.Generator().manual_seed(2))
    _, noise, _ = model.backbone.noise(latents, torch.Generator().manual_seed(2))
    again, _ = model.diffusion_loss(latents, condition, noise=noise, timesteps=timesteps)
    assert torch.equal(loss, again)
    generator = torch.Generator().manual_seed(9)
    assert torch.equal(model.diffusion_loss(latents, condition, generator, timesteps=timesteps)[1], timesteps)


def test_gradients_of_every_stage_reach_what_it_trains(model, picture, clips):
    model.set_trainable("single_shot")
    condition = model.condition([picture(0)], [["a fox"]])[:, 0]
    model.diffusion_loss(model.encode_video(clips(1)), condition, torch.Generator().manual_seed(0))[0].sum().backward()
    assert model.adapter.queries.weight.grad.abs().sum() > 0
    model.set_trainable("lora")
    condition = model.text_features(["a fox"])
    model.diffusion_loss(model.encode_video(clips(1)), condition, torch.Generator().manual_seed(0))[0].sum().backward()
    assert all(parameter.grad is not None for parameter in model.trainable_parameters("lora"))


def test_a_story_comes_out_in_the_default_size(model):
    pipeline = model.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    shots = pipeline(None, ["a fox", "it runs"], num_inference_steps=2, generator=torch.Generator().manual_seed(0)).shots
    assert [shot.shape for shot in shots] == [(9, 64, 96, 3)] * 2


def test_a_few_steps_lower_the_loss_on_one_clip(kind, clips):
    """The training targets mean something: from scratch, the transformer learns to undo the noise of a clip."""
    model = tiny_model(kind)
    model.set_trainable("pretrain")
    latents, condition = model.encode_video(clips(1)), model.text_features(["a fox"])
    latents = latents / latents.std()
    noise, place = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)), torch.tensor([600])

    def loss():
        return model.diffusion_loss(latents, condition, noise=noise, timesteps=place)[0].sum()

    optimizer = torch.optim.AdamW(model.trainable_parameters("pretrain"), lr=3e-3)
    first = loss().item()
    for _ in range(40):
        optimizer.zero_grad()
        value = loss()
        value.backward()
        optimizer.step()
    assert value.item() < 0.6 * first


# --- CogVideoX


def test_signal_to_noise_falls_along_the_schedule_to_nothing(gen):
    ratios = gen.backbone.snr(torch.tensor([0, 500, 999]))
    assert ratios[0] > ratios[1] > ratios[2]
    assert ratios[2].abs() < 1e-5
    kept = gen.scheduler.alphas_cumprod[500].double()
    assert torch.allclose(ratios[1].double(), kept / (1 - kept), rtol=1e-3)


# --- Wan


@pytest.fixture
def wan():
    return tiny_model("tiny_wan")


def test_wan_noise_lies_on_the_straight_line_and_its_target_is_the_slope(wan, clips):
    latents = wan.encode_video(clips(2))
    noisy, noise, timesteps = wan.backbone.noise(latents, timesteps=torch.tensor([250.0, 1000.0]))
    assert torch.allclose(noisy[0], 0.75 * latents[0] + 0.25 * noise[0], atol=1e-6)
    assert torch.equal(noisy[1], noise[1])
    assert torch.equal(wan.backbone.target(latents, noise, timesteps), noise - latents)
    assert wan.backbone.snr(timesteps) is None


def test_wan_draws_its_timesteps_logit_normal_and_shifted_towards_noise(wan):
    _, _, timesteps = wan.backbone.noise(torch.zeros(4000, 1, 1, 1, 1), torch.Generator().manual_seed(0))
    assert timesteps.min() > 0
    assert timesteps.max() < 1000
    shift = wan.scheduler.config.flow_shift
    assert timesteps.median().item() == pytest.approx(1000 * shift / (shift + 1), rel=0.03)  # of a place of one half


def test_wan_text_features_are_those_of_its_pipeline(wan):
    pipeline = WanPipeline(wan.text_tokenizer, wan.text_encoder, wan.vae, wan.scheduler, transformer=wan.transformer)
    texts = ["a fox  &amp; a hen", ""]
    expected, _ = pipeline.encode_prompt(texts, do_classifier_free_guidance=False, max_sequence_length=512)
    assert torch.allclose(wan.text_features(texts), expected, atol=1e-6)


def test_wan_latents_have_the_statistics_its_pipeline_undoes(wan, clips):
    pipeline = WanPipeline(wan.text_tokenizer, wan.text_encoder, wan.vae, wan.scheduler, transformer=wan.transformer)
    latents = wan.encode_video(clips(1))
    scaled = torch.tensor(wan.vae.config.latents_std).view(1, -1, 1, 1, 1)
    plain = latents.transpose(1, 2) * scaled + torch.tensor(wan.vae.config.latents_mean).view(1, -1, 1, 1, 1)
    video = pipeline.video_processor.postprocess_video(pipeline.vae.decode(plain).sample, output_type="np")
    ours = wan.decode_latents(latents).numpy() / 255
    assert abs(ours - video).max() < 1 / 255


def test_autocast_leaves_text_features_and_wans_latents_as_they_are(wan, clips):
    """T5 keeps layers in float32 that overflow in float16, and Wan's VAE is run in float32."""
    plain = wan.text_features(["a fox"]), wan.encode_video(clips(1)), wan.decode_latents(wan.encode_video(clips(1)))
    with torch.autocast("cpu", torch.bfloat16):
        cast = wan.text_features(["a fox"]), wan.encode_video(clips(1)), wan.decode_latents(wan.encode_video(clips(1)))
    for one, other in zip(plain, cast, strict=True):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
