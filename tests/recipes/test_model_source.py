"""Weights of the user's own: ``--set model.mllm=PATH`` and ``model.video=PATH``."""

import dataclasses
import json

import pytest
import torch
from tiny_models import tiny_model

from animeshooter_dataset import DataError
from recipes.align import PRESETS
from recipes.config import ModelSource, override
from recipes.parts import load_gen, model_config
from recipes.record import base_weights


@pytest.fixture
def published(tmp_path):
    """A CogVideoX folder in diffusers layout."""
    model, folder = tiny_model("tiny", seed=5), tmp_path / "my-cogvideox"
    for name in ("text_encoder", "transformer", "vae", "scheduler"):
        getattr(model, name).save_pretrained(folder / name)
    model.text_tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "CogVideoXPipeline"}))
    return model, folder


def test_a_chain_begins_with_the_weights_that_are_named(published):
    model, folder = published
    config = override(PRESETS["tiny"], [f"model.video={folder}"])
    gen = load_gen(config, None)
    assert torch.equal(gen.transformer.proj_out.weight, model.transformer.proj_out.weight)
    assert torch.equal(gen.text_features(["a fox"]), model.text_features(["a fox"]))
    bases = base_weights(model_config(config), revisions=False)
    assert bases["video"]["name"] == "my-cogvideox"
    assert bases["mllm"] is None


def test_later_stages_have_them_from_their_checkpoint(published, tmp_path):
    model, folder = published
    model.save_pretrained(tmp_path / "ck")
    config = dataclasses.replace(PRESETS["tiny"], model=ModelSource(video=str(folder)))
    with pytest.raises(DataError, match=r"model\.video: .*ck has its own weights"):
        load_gen(config, tmp_path / "ck")


def test_another_backbone_than_the_presets_is_refused_in_one_line(published):
    _, folder = published
    config = override(PRESETS["tiny"], ["preset=tiny_wan", f"model.video={folder}"])
    with pytest.raises(ValueError, match="its transformer is a CogVideoXTransformer3DModel, but the preset wants a Wan"):
        load_gen(config, None)
