"""What the MLLM sees, kept and looked up."""

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from families import NAMES, QUERIES, parts
from PIL import Image

from animeshooter_dataset import DataError
from model import AnimeShooterGen
from model.images import as_references
from model.mllm import StoryContext, StoryReader
from recipes import align, cache_features, lora, multi_shot, single_shot
from recipes.config import override
from recipes.features import coverage_of, open_features
from recipes.stage import StageModule, load_model, open_stream
from recipes.vision import Seer, lookup
from streams.features import FeatureStore, forget_video, from_png, picture_hash

PARENTS = {align: None, single_shot: "align", multi_shot: "single_shot", lora: "multi_shot"}


@pytest.fixture(scope="module")
def features(dataset, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("cache") / "animeshooter.features"
    assert cache_features.main(["--data", str(dataset), "--out", str(out), "--set", "data.clip.starts=1"]) == 0
    return out


def opened(recipe, dataset, parent, features):
    """Module and batches of a stage."""
    changed = ["data.clip.starts=1", "dropout.both=0.3", *([f"data.features={features}"] if features else [])]
    stage, config = recipe.STAGE, override(recipe.STAGE.presets["tiny"], changed)
    cache = open_features(stage, config, dataset, parent, "no")
    stream = open_stream(stage, config, dataset, cache)
    coverage = coverage_of(stage, config, cache, stream)
    module = StageModule(load_model(stage, config, parent, coverage.without), stage, config)
    return module, stream.batches(steps=6), coverage


def seen(gen):
    """A list that grows by the pictures of every call of the vision tower."""
    calls = []
    gen.mllm.model.visual.register_forward_hook(lambda _, args, kwargs, __: calls.append(kwargs), with_kwargs=True)
    return calls


def gradients(module, batch):
    module.zero_grad()
    loss = module(batch).per_sample.mean()
    loss.backward()
    found = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return loss.item(), torch.cat([gradient.flatten() for gradient in found])


@pytest.mark.parametrize("recipe", PARENTS, ids=lambda recipe: recipe.STAGE.name)
def test_training_is_the_same_and_the_vision_tower_sees_no_more_than_a_blank_picture(recipe, dataset, chain, features):
    parent = chain[PARENTS[recipe]] if PARENTS[recipe] else None
    plain, batches, _ = opened(recipe, dataset, parent, None)
    looked_up, cached_batches, coverage = opened(recipe, dataset, parent, features)
    calls = seen(looked_up.gen)
    for (batch,), (cached,) in zip(batches, cached_batches):
        (loss, gradient), (same, also) = gradients(plain, batch), gradients(looked_up, cached)
        assert same == pytest.approx(loss, rel=2e-5)
        assert torch.allclose(also, gradient, rtol=1e-3, atol=1e-5 * float(gradient.abs().max()))
    assert len(calls) <= 1  # the blank picture that stands for a reference left out, once
    assert "what the MLLM sees in " in coverage.line


def test_a_picture_that_is_not_kept_is_seen_anew(dataset, chain, features, tmp_path):
    some = tmp_path / "animeshooter.features"
    shutil.copytree(features, some)
    folder = next((some / "vision").iterdir())
    before = FeatureStore(folder).index.num_rows
    forget_video(some, ["film0"])
    assert 0 < FeatureStore(folder).index.num_rows < before
    plain, batches, _ = opened(multi_shot, dataset, chain["single_shot"], None)
    mixed, cached_batches, _ = opened(multi_shot, dataset, chain["single_shot"], some)
    calls = seen(mixed.gen)
    for (batch,), (cached,) in zip(batches, cached_batches):
        assert gradients(mixed, cached)[0] == pytest.approx(gradients(plain, batch)[0], rel=2e-5)
    assert calls


def test_every_picture_is_kept_once_and_as_it_is(dataset, features):
    """All references and ends of shots are there under the hash of their pixels; a pixel more is another picture."""
    store = FeatureStore(next((features / "vision").iterdir()))
    ends = FeatureStore(next((features / "ends").iterdir()))
    for key in ("film0-s0-001", "film1-s0-002"):
        for part in (0, 1):
            picture = from_png(ends.get(key, part)["png"]).numpy()
            which = picture_hash(picture)
            assert store.get(which.hex(), 0, which) is not None
            other = picture.copy()
            other[0, 0, 0] ^= 1
            assert store.find(picture_hash(other).hex()) is None
    assert len(set(store.index["key"].to_pylist())) == store.index.num_rows


@pytest.mark.parametrize("family", NAMES)
def test_every_family_of_models_is_looked_up(family, tmp_path):
    mllm, tokenizer, processor = parts(family, tmp_path / "nvila")
    queries = torch.randn(QUERIES, 64, generator=torch.Generator().manual_seed(0))

    class Gen:
        def __init__(self):
            self.mllm, self.image_processor = mllm, processor

        def condition(self, references, captions):
            reader = StoryReader(self.mllm, tokenizer, self.image_processor, QUERIES)
            stories = [StoryContext(as_references(one), texts, []) for one, texts in zip(references, captions)]
            return reader.query_states(stories, queries)

    gen = Gen()
    see = Seer(gen)
    picture, other = (np.full((70, 90, 3), shade, np.uint8) for shade in (40, 200))
    with torch.no_grad():
        plain = gen.condition([Image.fromarray(picture)], [["x"]])
        with lookup(gen, {picture_hash(picture): see(picture)}) as table:
            assert torch.allclose(gen.condition([picture], [["x"]]), plain, atol=1e-5)
            assert (table.found, table.missed) == (1, 0)
            gen.condition([other, picture, other], [["x"]] * 3)
            assert (table.found, table.missed) == (2, 2)
        with lookup(gen, {picture_hash(picture): see(other)}):
            assert not torch.allclose(gen.condition([picture], [["x"]]), plain, atol=1e-4)
        assert torch.equal(gen.condition([picture], [["x"]]), plain)  # afterwards all is as before


def test_models_whose_features_cannot_be_looked_up_are_refused():
    gen = AnimeShooterGen.from_preset("tiny")
    state = {"count": 0}

    def moody(_, __, output):  # features that depend on what was seen before
        state["count"] += 1
        output.pooler_output = output.pooler_output * state["count"]
        return output

    gen.mllm.model.visual.register_forward_hook(moody)
    with pytest.raises(DataError, match=r"Qwen3VLForConditionalGeneration: what it sees cannot be kept \(conditions lie"):
        Seer(gen)
    with pytest.raises(DataError, match="it has no get_image_features"):
        Seer(SimpleNamespace(mllm=SimpleNamespace(base_model=SimpleNamespace())))
