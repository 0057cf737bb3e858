import dataclasses
import json
import shutil

import pytest
import torch
from tiny_models import tiny_model

from model import AnimeShooterGen, parameter_table, preset
from model.config import with_sources
from model.tokenizer import small_tokenizer

VIDEO_CLASSES = {
    "tiny": ("CogVideoXPipeline", "CogVideoXTransformer3DModel", "AutoencoderKLCogVideoX", "T5EncoderModel"),
    "tiny_wan": ("WanPipeline", "WanTransformer3DModel", "AutoencoderKLWan", "UMT5EncoderModel"),
}


def write_video(model, kind, folder):
    """A video model as its makers publish it: diffusers layout, an index, the transformer in several files."""
    model.text_encoder.save_pretrained(folder / "text_encoder")
    model.text_tokenizer.save_pretrained(folder / "tokenizer")
    model.transformer.save_pretrained(folder / "transformer", max_shard_size="100KB")
    model.vae.save_pretrained(folder / "vae")
    model.scheduler.save_pretrained(folder / "scheduler")
    pipeline, transformer, vae, encoder = VIDEO_CLASSES[kind]
    index = {
        "_class_name": pipeline,
        "scheduler": ["diffusers", type(model.scheduler).__name__],
        "text_encoder": ["transformers", encoder],
        "tokenizer": ["transformers", "T5TokenizerFast"],
        "transformer": ["diffusers", transformer],
        "vae": ["diffusers", vae],
    }
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(params=["tiny", "tiny_wan"])
def published(request, tmp_path):
    """Kind, model and folder of a published video model."""
    model = tiny_model(request.param, seed=5)
    return request.param, model, write_video(model, request.param, tmp_path / "video")


@pytest.fixture
def cogvideox(gen, tmp_path):
    return write_video(gen, "tiny", tmp_path / "cogvideox")


def load(kind, **sources):
    return AnimeShooterGen.from_preset(with_sources(preset(kind), **{name: str(path) for name, path in sources.items()}))


def change(file, **entries):
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


def test_a_published_video_model_is_read_whole(published, clips):
    kind, model, folder = published
    assert len(list((folder / "transformer").glob("*.safetensors"))) > 1
    loaded = load(kind, video=folder)
    latents, condition = model.encode_video(clips(1)), model.text_features(["a fox"])
    assert torch.equal(loaded.encode_video(clips(1)), latents)
    assert torch.equal(loaded.text_features(["a fox"]), condition)
    seed = torch.Generator().manual_seed
    assert torch.equal(
        loaded.diffusion_loss(latents, condition, seed(0))[0], model.diffusion_loss(latents, condition, seed(0))[0]
    )
    assert not torch.equal(loaded.adapter.queries.weight, model.adapter.queries.weight)  # the adapter starts from nothing


def test_half_precision_leaves_wans_vae_exact(published):
    kind, _, folder = published
    config = with_sources(preset(kind), video=str(folder))
    loaded = AnimeShooterGen.from_preset(config, dtype=torch.bfloat16)
    assert loaded.transformer.dtype == torch.bfloat16
    assert loaded.vae.dtype == (torch.float32 if kind == "tiny_wan" else torch.bfloat16)


def test_a_published_model_is_laid_out_without_reading_its_weights(published):
    kind, model, folder = published
    laid_out = AnimeShooterGen.from_preset(
        with_sources(preset("paper" if kind == "tiny" else "wan_1_3b"), video=str(folder)), device="meta"
    )
    assert parameter_table(laid_out)["transformer"] == parameter_table(model)["transformer"]
    assert laid_out.transformer.device.type == "meta"


def test_older_copies_of_cogvideox_sample_from_pure_noise_too(cogvideox):
    change(cogvideox / "scheduler" / "scheduler_config.json", timestep_spacing="linspace")
    assert load("tiny", video=cogvideox).scheduler.config.timestep_spacing == "trailing"


def test_wan_keeps_the_scheduler_it_came_with(tmp_path):
    from diffusers import FlowMatchEulerDiscreteScheduler

    model = tiny_model("tiny_wan")
    model.scheduler = FlowMatchEulerDiscreteScheduler(shift=5.0)
    loaded = load("tiny_wan", video=write_video(model, "tiny_wan", tmp_path / "video"))
    assert isinstance(loaded.scheduler, FlowMatchEulerDiscreteScheduler)
    loaded.save_pretrained(tmp_path / "ck")
    assert AnimeShooterGen.from_pretrained(tmp_path / "ck").scheduler.config.shift == 5.0


@pytest.mark.parametrize("part", ["tokenizer", "text_encoder", "transformer", "vae", "scheduler"])
def test_a_missing_folder_is_named(cogvideox, part):
    shutil.rmtree(cogvideox / part)
    with pytest.raises(ValueError, match=f"{part}: folder is missing; give a folder in diffusers layout") as failure:
        load("tiny", video=cogvideox)
    assert "\n" not in str(failure.value)


def test_another_backbone_is_refused(published):
    kind, _, folder = published
    with pytest.raises(
        ValueError, match=r"its transformer is a .*, but the preset wants a .*; choose a preset of that"
    ) as failure:
        load("tiny" if kind == "tiny_wan" else "tiny_wan", video=folder)
    assert "\n" not in str(failure.value)


def test_pickled_weights_alone_are_refused(cogvideox):
    for file in (cogvideox / "transformer").glob("*.safetensors*"):
        file.unlink()
    (cogvideox / "transformer" / "diffusion_pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match=r"transformer: only pickled weights \(diffusion_pytorch_model\.bin\)"):
        load("tiny", video=cogvideox)


def test_a_file_that_the_index_names_must_be_there(cogvideox):
    sorted((cogvideox / "transformer").glob("*.safetensors"))[0].unlink()
    with pytest.raises(ValueError, match=r"00001-of-.*: missing, though .*index\.json names it"):
        load("tiny", video=cogvideox)


def test_missing_and_damaged_weights_are_one_line(cogvideox):
    from safetensors.torch import load_file, save_file

    (file,) = (cogvideox / "vae").glob("*.safetensors")
    weights = load_file(file)
    gone = sorted(weights)[0]
    save_file({name: value for name, value in weights.items() if name != gone}, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=f"1 weights of vae are missing, the first is {gone}"):
        load("tiny", video=cogvideox)
    file.write_bytes(b"short")
    with pytest.raises(ValueError, match="cogvideox: cannot be loaded") as failure:
        load("tiny", video=cogvideox)
    assert "\n" not in str(failure.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patch_size_t": 2}, "CogVideoX 1.5, which packs frames in pairs, is not supported"),
        ({"in_channels": 8}, "takes 8 channels of latents that have 4: an image-to-video model"),
    ],
)
def test_kinds_that_are_trained_for_something_else_are_refused(tmp_path, settings, message):
    config = preset("tiny")
    transformer = {**config.video.transformer, **settings}
    model = tiny_model("tiny")
    model.transformer = type(model.transformer)(**transformer)
    with pytest.raises(ValueError, match=message):
        load("tiny", video=write_video(model, "tiny", tmp_path / "video"))


@pytest.mark.parametrize("told", ["folder", "boundary"])
def test_the_model_of_two_experts_is_refused_and_another_named(tmp_path, told):
    model = tiny_model("tiny_wan")
    folder = write_video(model, "tiny_wan", tmp_path / "video")
    if told == "folder":
        model.transformer.save_pretrained(folder / "transformer_2")
    else:
        change(folder / "model_index.json", boundary_ratio=0.875)
    with pytest.raises(ValueError, match=r"two transformers .*not supported; use Wan 2\.2 TI2V 5B or Wan 2\.1"):
        load("tiny_wan", video=folder)


# --- the multimodal language model


def write_qwen(gen, folder):
    gen.mllm.save_pretrained(folder, max_shard_size="200KB")
    for part in (small_tokenizer(), gen.image_processor):
        part.save_pretrained(folder)
    return folder


def write_internvl(folder):
    from transformers import GotOcr2ImageProcessorPil, InternVLConfig, InternVLForConditionalGeneration

    tokenizer = small_tokenizer()
    text = {"model_type": "qwen2", "vocab_size": 512, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 4096}
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = InternVLConfig(
        text_config=text,
        vision_config={**vision, "image_size": [56, 56], "patch_size": [14, 14]},
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        image_seq_length=4,
    )
    torch.manual_seed(0)
    InternVLForConditionalGeneration(config).save_pretrained(folder, max_shard_size="200KB")
    GotOcr2ImageProcessorPil(size={"height": 56, "width": 56}, crop_to_patches=False).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("family", ["qwen3_vl", "internvl"])
def test_a_published_image_text_model_reads_stories(gen, family, tmp_path, picture, clips):
    folder = write_qwen(gen, tmp_path / "mllm") if family == "qwen3_vl" else write_internvl(tmp_path / "mllm")
    assert len(list(folder.glob("*.safetensors"))) > 1
    loaded = load("tiny", mllm=folder)
    assert loaded.mllm.config.model_type == family
    condition = loaded.condition([picture(0)], [["a fox", "it runs"]], clips(1)[None, :, -1])
    assert condition.shape == (1, 2, 24, 64)
    other = loaded.condition([picture(1)], [["a fox", "it runs"]], clips(1)[None, :, -1])
    assert not torch.allclose(condition, other, atol=1e-5)
    loaded.save_pretrained(tmp_path / "ck")
    again = AnimeShooterGen.from_pretrained(tmp_path / "ck")
    assert torch.equal(again.condition([picture(0)], [["a fox", "it runs"]], clips(1)[None, :, -1]), condition)


def test_a_published_image_text_model_is_laid_out_without_its_weights(gen, tmp_path):
    folder = write_internvl(tmp_path / "mllm")
    laid_out = AnimeShooterGen.from_preset(with_sources(preset("paper"), mllm=str(folder)), device="meta")
    assert laid_out.mllm.config.model_type == "internvl"
    assert laid_out.adapter.config.mllm_hidden_size == 64


def test_faults_of_an_image_text_model_are_one_line(gen, tmp_path):
    from transformers import Qwen2Config, Qwen2ForCausalLM

    text = tmp_path / "text"
    Qwen2ForCausalLM(
        Qwen2Config(vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    ).save_pretrained(text)
    pickled = write_qwen(gen, tmp_path / "pickled")
    for file in pickled.glob("*.safetensors*"):
        file.unlink()
    (pickled / "pytorch_model.bin").write_bytes(b"")
    lacking = write_qwen(gen, tmp_path / "lacking")
    (lacking / "preprocessor_config.json").unlink()
    (tmp_path / "empty").mkdir()
    cases = {
        "text": "a qwen2 model, which reads no images",
        "pickled": r"only pickled weights \(pytorch_model\.bin\)",
        "lacking": "lacking: cannot be loaded",
        "empty": r"no config\.json",
    }
    for name, message in cases.items():
        with pytest.raises(ValueError, match=message) as failure:
            load("tiny", mllm=tmp_path / name)
        assert "\n" not in str(failure.value)


def test_sources_replace_what_a_preset_names():
    config = with_sources(preset("paper"), mllm="a/b", video="c/d")
    assert (config.mllm.pretrained, config.video.pretrained) == ("a/b", "c/d")
    assert with_sources(preset("paper")) == preset("paper")
    assert dataclasses.replace(config, mllm=preset("paper").mllm, video=preset("paper").video) == preset("paper")
