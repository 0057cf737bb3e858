import json
import os

import pytest
import torch
from diffusers import CogVideoXDPMScheduler

from model import AnimeShooterGen, AnimeShooterPipeline, parameter_table
from model.checkpoint import COMPONENTS


def outputs(gen, picture, clips):
    """Numbers that depend on every component."""
    video = clips(2)
    with torch.no_grad():
        latents = gen.encode_video(video)
        condition = gen.condition([picture(0)], [["a fox", "runs"]], video[None, :1, -1])[0]
        loss, _ = gen.diffusion_loss(latents, condition, torch.Generator().manual_seed(1))
        return [gen.text_features(["a fox"]), gen.decode_latents(latents), condition, loss]


def change_index(folder, **entries):
    index = folder / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | entries))


@pytest.fixture
def saved(gen, tmp_path):
    gen.save_pretrained(tmp_path / "ck")
    return tmp_path / "ck"


@pytest.mark.parametrize("stages", [(), ("multi_shot", "lora")])
def test_loaded_model_gives_the_same_bits(gen, shake_lora, tmp_path, picture, clips, stages):
    for stage in stages:
        gen.set_trainable(stage)
    shake_lora(gen.mllm)
    shake_lora(gen.transformer)
    gen.save_pretrained(tmp_path / "ck")
    loaded = AnimeShooterGen.from_pretrained(tmp_path / "ck")
    for mine, theirs in zip(outputs(gen, picture, clips), outputs(loaded, picture, clips), strict=True):
        assert torch.equal(mine, theirs)
    assert loaded.lora_ranks == gen.lora_ranks
    assert not any(p.requires_grad for p in loaded.parameters())


def test_folder_has_a_folder_a_component_and_no_pickle(gen, tmp_path):
    gen.set_trainable("single_shot")
    gen.set_trainable("lora")
    gen.save_pretrained(tmp_path / "ck")
    folders = {path.name for path in (tmp_path / "ck").iterdir() if path.is_dir()}
    assert folders == {*COMPONENTS, "mllm_lora", "transformer_lora"}
    files = [path for path in (tmp_path / "ck").rglob("*") if path.is_file()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt"}
    assert list(tmp_path.iterdir()) == [tmp_path / "ck"]  # nothing half-written left beside it


def test_pipeline_and_model_write_the_same_checkpoint(saved, tmp_path):
    AnimeShooterPipeline.from_pretrained(saved).save_pretrained(tmp_path / "again")
    assert {p.relative_to(saved) for p in saved.rglob("*")} == {
        p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*")
    }
    for path in (saved / "model_index.json", *saved.rglob("*.safetensors")):
        assert (tmp_path / "again" / path.relative_to(saved)).read_bytes() == path.read_bytes(), path


def test_checkpoint_does_not_tell_where_it_came_from(gen, tmp_path):
    gen.set_trainable("single_shot")
    gen.set_trainable("lora")
    gen.save_pretrained(tmp_path / "one")
    AnimeShooterGen.from_pretrained(tmp_path / "one").save_pretrained(tmp_path / "two")
    for file in (tmp_path / "two").rglob("*"):
        assert file.is_dir() or str(tmp_path).encode() not in file.read_bytes(), file


def test_pipeline_loads_without_text_encoder_and_with_another_scheduler(saved):
    scheduler = CogVideoXDPMScheduler.from_pretrained(saved / "scheduler")
    pipeline = AnimeShooterPipeline.from_pretrained(saved, text_encoder=None, scheduler=scheduler)
    assert pipeline.text_encoder is None
    assert isinstance(pipeline.scheduler, CogVideoXDPMScheduler)


def test_a_checkpoint_without_text_encoder_still_trains_on_pictures(saved, tmp_path):
    AnimeShooterPipeline.from_pretrained(saved, text_encoder=None).save_pretrained(tmp_path / "light")
    gen = AnimeShooterGen.from_pretrained(tmp_path / "light")
    gen.set_trainable("single_shot")
    gen.train()
    gen.condition([None], [["a fox"]]).sum().backward()
    assert "text_encoder" not in parameter_table(gen)
    with pytest.raises(ValueError, match="has no text encoder"):
        gen.text_features(["a fox"])


def test_unchanged_components_are_shared_and_changed_ones_written(gen, saved, tmp_path):
    gen.set_trainable("single_shot")
    with torch.no_grad():
        gen.adapter.queries.weight.add_(1)
    gen.transformer.register_to_config(sample_frames=17)
    gen.save_pretrained(tmp_path / "next", share_with=saved)

    def inode(folder, name):
        return os.stat(next((folder / name).glob("*.safetensors"))).st_ino

    for name in ("mllm", "text_encoder", "transformer", "vae"):
        assert inode(saved, name) == inode(tmp_path / "next", name), name
    assert inode(saved, "adapter") != inode(tmp_path / "next", "adapter")
    loaded, first = (AnimeShooterGen.from_pretrained(path) for path in (tmp_path / "next", saved))
    assert torch.equal(loaded.adapter.queries.weight, gen.adapter.queries.weight)
    assert (loaded.transformer.config.sample_frames, first.transformer.config.sample_frames) == (17, 9)


def test_saving_over_a_checkpoint_replaces_it_and_leaves_sharers_alone(gen, saved, tmp_path):
    gen.save_pretrained(tmp_path / "next", share_with=saved)
    before = AnimeShooterGen.from_pretrained(tmp_path / "next").text_features(["a"])
    AnimeShooterGen.from_preset("tiny", seed=9).save_pretrained(saved)
    assert torch.equal(AnimeShooterGen.from_pretrained(tmp_path / "next").text_features(["a"]), before)
    assert not torch.equal(AnimeShooterGen.from_pretrained(saved).text_features(["a"]), before)


def test_a_folder_with_other_things_in_it_is_not_replaced(gen, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="is no checkpoint; choose another folder"):
        gen.save_pretrained(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_pickled_weights_are_not_written(gen, tmp_path):
    with pytest.raises(ValueError, match="safetensors only"):
        gen.pipeline().save_pretrained(tmp_path / "ck", safe_serialization=False)


@pytest.mark.parametrize("load", [AnimeShooterGen.from_pretrained, AnimeShooterPipeline.from_pretrained])
def test_folders_of_another_kind_are_named(load, gen, saved, tmp_path):
    with pytest.raises(ValueError, match=r"adapter: no model_index\.json"):
        load(saved / "adapter")
    change_index(saved, _class_name="WanPipeline")
    with pytest.raises(ValueError, match="a checkpoint of WanPipeline, not of AnimeShooterPipeline"):
        load(saved)


def test_incomplete_and_damaged_checkpoints_are_named(saved):
    (saved / "vae").rename(saved / "eav")
    with pytest.raises(ValueError, match="vae: folder is missing"):
        AnimeShooterGen.from_pretrained(saved)
    (saved / "model_index.json").write_text("{")
    with pytest.raises(ValueError, match="not JSON"):
        AnimeShooterGen.from_pretrained(saved)


@pytest.mark.parametrize(("file", "part"), [("vae/*.safetensors", b"short"), ("mllm/*.safetensors", None)])
def test_damaged_weights_are_a_clear_error(saved, file, part):
    (weights,) = saved.glob(file)
    weights.unlink() if part is None else weights.write_bytes(part)
    with pytest.raises(ValueError, match="the checkpoint is damaged, save or download it again"):
        AnimeShooterGen.from_pretrained(saved)


@pytest.mark.parametrize("entry", [{"vae": ["os", "system"]}, {"extra": ["subprocess", "Popen"]}])
def test_code_from_elsewhere_is_not_imported(saved, entry):
    change_index(saved, **entry)
    with pytest.raises(ValueError, match="wants code from"):
        AnimeShooterGen.from_pretrained(saved)


@pytest.mark.parametrize("part", ["adapter", "transformer", "mllm", "text_encoder"])
def test_a_checkpoint_that_lacks_a_weight_is_refused_by_name(saved, part):
    from safetensors.torch import load_file, save_file

    [file] = (saved / part).glob("*.safetensors")
    weights = load_file(file)
    gone = sorted(weights)[0]
    del weights[gone]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{part}: 1 weights are missing, the first is {gone}"):
        AnimeShooterGen.from_pretrained(saved)


@pytest.mark.parametrize(
    "entry", [{"vae": ["diffusers", "DiffusionPipeline"]}, {"scheduler": ["diffusers", "DiffusionPipeline"]}]
)
def test_a_component_cannot_be_a_pipeline_of_its_own(saved, entry):
    change_index(saved, **entry)
    with pytest.raises(ValueError, match="is a DiffusionPipeline, which is none of this model"):
        AnimeShooterGen.from_pretrained(saved)


def test_frozen_parts_keep_the_type_they_are_stored_in(gen, tmp_path):
    """Or else every stage after the first would have them in float32, at twice the size, and write them anew."""
    for part in (gen.mllm, gen.text_encoder, gen.vae):
        part.to(torch.bfloat16)
    gen.transformer.to(torch.float16)
    gen.set_trainable("single_shot")
    gen.save_pretrained(tmp_path / "one")
    loaded = AnimeShooterGen.from_pretrained(tmp_path / "one")
    kept = {name: getattr(loaded, name).dtype for name in ("mllm", "text_encoder", "transformer", "vae", "adapter")}
    assert list(kept.values()) == [torch.bfloat16, torch.bfloat16, torch.float16, torch.bfloat16, torch.float32]
    loaded.save_pretrained(tmp_path / "two", share_with=tmp_path / "one")
    for name in ("mllm", "text_encoder", "transformer", "vae"):
        (one, two) = (next((tmp_path / folder / name).glob("*.safetensors")) for folder in ("one", "two"))
        assert one.samefile(two), name
    pipeline = AnimeShooterPipeline.from_pretrained(tmp_path / "one", text_encoder=None, text_tokenizer=None)
    assert pipeline.transformer.dtype == torch.float16


@pytest.mark.parametrize("kind", ["tiny", "tiny_wan"])
@pytest.mark.parametrize("load", [AnimeShooterGen.from_pretrained, AnimeShooterPipeline.from_pretrained])
def test_half_precision_is_for_parts_that_bear_it(load, kind, tmp_path):
    AnimeShooterGen.from_preset(kind).save_pretrained(tmp_path / "ck")
    loaded = load(tmp_path / "ck", dtype=torch.float16)
    vae = torch.float32 if kind == "tiny_wan" else torch.float16
    assert (loaded.transformer.dtype, loaded.vae.dtype) == (torch.float16, vae)
    assert (loaded.mllm.dtype, loaded.adapter.dtype) == (torch.bfloat16, torch.float32)
