import pytest
import torch
from diffusers import CogVideoXPipeline, WanPipeline
from safetensors import safe_open
from tiny_models import tiny_model

from model import AnimeShooterGen
from model.denoise import denoise
from model.lora import add_mllm_lora, lora_parameters, save_transformer_lora, without_lora


def noise_prediction(transformer):
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return transformer(
            hidden_states=torch.randn(1, 3, 4, 8, 12, generator=generator),
            encoder_hidden_states=torch.randn(1, 24, 64, generator=generator),
            timestep=torch.tensor([500]),
        ).sample


def test_fresh_lora_changes_nothing_and_stays_off_the_vision_tower(gen, picture):
    before = gen.condition([picture(0)], [["a fox"]])
    add_mllm_lora(gen.mllm, rank=4)
    assert torch.equal(gen.condition([picture(0)], [["a fox"]]), before)
    names = [name for name, _ in lora_parameters(gen.mllm)]
    assert names
    assert all("language_model" in name for name in names)


def test_video_lora_loads_in_plain_diffusers(gen, shake_lora, tmp_path):
    plain = AnimeShooterGen.from_preset("tiny", seed=0)
    gen.set_trainable("lora")
    shake_lora(gen.transformer)
    save_transformer_lora(gen.transformer, tmp_path)
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    pipeline = CogVideoXPipeline(None, None, plain.vae, plain.transformer, plain.scheduler)
    base = noise_prediction(pipeline.transformer)
    pipeline.load_lora_weights(str(tmp_path))
    assert not torch.allclose(noise_prediction(pipeline.transformer), base, atol=1e-3)
    assert torch.equal(noise_prediction(pipeline.transformer), noise_prediction(gen.transformer))
    pipeline.unload_lora_weights()
    assert torch.equal(noise_prediction(pipeline.transformer), base)


SAMPLING = {"num_inference_steps": 3, "num_frames": 9, "height": 64, "width": 96, "output_type": "latent"}


@pytest.mark.parametrize("kind", ["tiny", "rotary", "tiny_wan"])
def test_plain_pipelines_make_with_the_lora_what_we_make(kind, shake_lora, tmp_path):
    """`load_lora_weights` of diffusers' own pipeline on the untouched video model, against our adapter and our sampling."""
    gen, plain = tiny_model(kind), tiny_model(kind)
    gen.set_trainable("lora")
    shake_lora(gen.transformer)
    gen.save_pretrained(tmp_path / "ck")
    parts = (plain.text_tokenizer, plain.text_encoder, plain.vae)
    if kind == "tiny_wan":
        pipeline = WanPipeline(*parts, plain.scheduler, transformer=plain.transformer)
    else:
        pipeline = CogVideoXPipeline(*parts, plain.transformer, plain.scheduler)
    pipeline.set_progress_bar_config(disable=True)
    blank, full = gen.text_features(["", "a fox"]).split(1)
    noise = torch.randn(1, 3, 4, 8, 12, generator=torch.Generator().manual_seed(0))

    def theirs():
        swapped = noise.transpose(1, 2) if kind == "tiny_wan" else noise
        embeds = {"prompt_embeds": full, "negative_prompt_embeds": blank, "guidance_scale": 3.0}
        made = pipeline(**embeds, latents=swapped, **SAMPLING).frames
        return made.transpose(1, 2) if kind == "tiny_wan" else made

    ours = denoise(gen.backbone, torch.cat([blank, full]), [-2.0, 3.0], (3, 4, 8, 12), 3, noise=noise)
    assert not torch.allclose(theirs(), ours, atol=1e-2)
    pipeline.load_lora_weights(str(tmp_path / "ck" / "transformer_lora"))
    assert torch.allclose(theirs(), ours, atol=1e-4)


@pytest.mark.parametrize(("stage", "part"), [("single_shot", "mllm"), ("lora", "transformer")])
def test_adapter_can_be_looked_past_and_comes_back_itself(gen, shake_lora, stage, part):
    module = getattr(gen, part)
    names = set(module.state_dict())
    gen.set_trainable(stage)
    shake_lora(module)
    adapter = {name: id(parameter) for name, parameter in lora_parameters(module)}
    with without_lora(module):
        assert set(module.state_dict()) == names
    assert {name: id(parameter) for name, parameter in lora_parameters(module)} == adapter


def test_adapters_are_float32_on_bfloat16_models_also_after_loading(gen, shake_lora, tmp_path):
    gen.mllm.to(torch.bfloat16)
    gen.transformer.to(torch.bfloat16)
    for stage, module in (("multi_shot", gen.mllm), ("lora", gen.transformer)):
        gen.set_trainable(stage)
        shake_lora(module)
    gen.save_pretrained(tmp_path / "ck")
    loaded = AnimeShooterGen.from_pretrained(tmp_path / "ck", dtype=torch.bfloat16)
    assert loaded.adapter.dtype == torch.float32
    for mine, theirs in ((gen.mllm, loaded.mllm), (gen.transformer, loaded.transformer)):
        assert theirs.dtype == torch.bfloat16
        for (_, a), (_, b) in zip(lora_parameters(mine), lora_parameters(theirs), strict=True):
            assert b.dtype == torch.float32
            assert torch.equal(a, b)


def test_stored_video_lora_carries_its_settings(gen, tmp_path):
    gen.set_trainable("lora", lora_rank=3)
    save_transformer_lora(gen.transformer, tmp_path)
    (file,) = tmp_path.iterdir()
    with safe_open(file, framework="pt") as weights:
        assert '"transformer.r": 3' in weights.metadata()["lora_adapter_metadata"]


def test_wrong_requests_are_named(gen, tmp_path):
    with pytest.raises(ValueError, match="has no LoRA to save"):
        save_transformer_lora(gen.transformer, tmp_path)
    with pytest.raises(ValueError, match="at least 1, not -2"):
        gen.set_trainable("lora", lora_rank=-2)
