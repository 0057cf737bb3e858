import json

import numpy as np
import pytest
import torch

from model import AnimeShooterGen, AnimeShooterPipeline
from model.context import EMPTY, history, reference
from model.guidance import guided
from model.images import as_references, to_rgb
from model.memory import ConditionPolicy
from model.pathway import Pathway

CAPTIONS = ["A fox wakes.", "It looks out.", "It runs.", "It sleeps."]
SHORT = {"num_inference_steps": 2}


def seed(number):
    return torch.Generator().manual_seed(number)


@pytest.fixture
def pipeline(gen):
    pipeline = gen.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def test_four_shots_of_declared_shape_the_same_for_the_same_seed(pipeline, picture):
    first = pipeline(picture(0), CAPTIONS, generator=seed(0), **SHORT).shots
    again = pipeline(picture(0), CAPTIONS, generator=seed(0), **SHORT).shots
    other = pipeline(picture(0), CAPTIONS, generator=seed(1), **SHORT).shots
    assert [(shot.shape, shot.dtype) for shot in first] == [((9, 64, 96, 3), np.uint8)] * 4
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not any(np.array_equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_loaded_pipeline_tells_the_same_story(gen, pipeline, shake_lora, picture, tmp_path):
    gen.set_trainable("multi_shot")
    gen.set_trainable("lora")
    shake_lora(gen.mllm)
    shake_lora(gen.transformer)
    gen.save_pretrained(tmp_path / "ck")
    loaded = AnimeShooterPipeline.from_pretrained(tmp_path / "ck", text_encoder=None)
    loaded.set_progress_bar_config(disable=True)
    mine, theirs = (p(picture(0), CAPTIONS[:2], generator=seed(0), **SHORT).shots for p in (pipeline, loaded))
    assert all(np.array_equal(a, b) for a, b in zip(mine, theirs, strict=True))


def test_size_and_length_follow_the_request(pipeline):
    (shot,) = pipeline(None, ["a"], num_frames=5, height=32, width=64, **SHORT).shots
    assert shot.shape == (5, 32, 64, 3)


def watched(monkeypatch):
    """What each shot's condition is made from: (names, captions, memory) in order."""
    seen, original = [], AnimeShooterPipeline._condition

    def spy(self, references, captions, memory, branches):
        frames = [[np.asarray(frame) for frame in shot] for shot in memory]
        seen.append(([one.name for one in references], list(captions), frames))
        return original(self, references, captions, memory, branches)

    monkeypatch.setattr(AnimeShooterPipeline, "_condition", spy)
    return seen


@pytest.mark.parametrize(("memory", "frames"), [("last", [-1]), ("first_last", [0, -1]), ("frames:3", [0, 4, 8])])
def test_each_shot_remembers_those_before_it_as_the_policy_says(gen, picture, monkeypatch, memory, frames):
    gen.policy = ConditionPolicy(memory)
    pipeline, seen = gen.pipeline(), watched(monkeypatch)
    pipeline.set_progress_bar_config(disable=True)
    shots = pipeline(picture(0), CAPTIONS[:3], generator=seed(0), **SHORT).shots
    assert [captions for _, captions, _ in seen] == [CAPTIONS[:1], CAPTIONS[:2], CAPTIONS[:3]]
    for i, (_, _, remembered) in enumerate(seen):
        assert len(remembered) == i
        for shot, mine in zip(shots, remembered, strict=False):
            assert all(np.array_equal(one, shot[which]) for one, which in zip(mine, frames, strict=True))


def test_the_policy_comes_back_with_the_checkpoint_and_old_ones_have_the_papers(gen, tmp_path):
    gen.policy = ConditionPolicy("frames:4", 2, False, "both", 3)
    gen.save_pretrained(tmp_path / "ck")
    assert AnimeShooterPipeline.from_pretrained(tmp_path / "ck", text_encoder=None).policy == gen.policy
    assert AnimeShooterGen.from_pretrained(tmp_path / "ck").policy == gen.policy
    index = tmp_path / "ck" / "model_index.json"
    settings = json.loads(index.read_text())
    assert settings["condition_policy"]["memory"] == "frames:4"
    del settings["condition_policy"]
    index.write_text(json.dumps(settings))
    assert AnimeShooterGen.from_pretrained(tmp_path / "ck").policy == ConditionPolicy()


def test_of_named_references_a_shot_reads_those_of_who_is_in_it(pipeline, picture, monkeypatch):
    seen = watched(monkeypatch)
    cast = {"Fox": picture(0), "Owl": picture(1)}
    told = [["Owl", "Fox"], ["Fox"], ["Wolf"], None]
    pipeline(cast, CAPTIONS, generator=seed(0), characters=told, num_inference_steps=1)
    assert [names for names, _, _ in seen] == [["Owl", "Fox"], ["Fox"], [], ["Fox", "Owl"]]
    del seen[:]
    pipeline(picture(0), CAPTIONS[:1], generator=seed(0), characters=[["Owl"]], num_inference_steps=1)
    assert [names for names, _, _ in seen] == [[None]]  # one without a name is everybody's
    with pytest.raises(ValueError, match="characters of 1 shots and captions of 2"):
        pipeline.generate_shots(cast, CAPTIONS[:2], characters=[["Fox"]])


def test_generation_reads_as_training_does(gen, pipeline, picture, clips):
    frames = clips(2)[:, -1]
    trained = gen.condition([picture(0)], [CAPTIONS[:3]], frames[None])[0, -1]
    memory = [[to_rgb(frame)] for frame in frames]
    branches = guided(6.0, 3.0)
    generated = pipeline._condition(as_references(picture(0)), CAPTIONS[:3], memory, branches)
    assert torch.allclose(generated[0], trained, atol=1e-5)
    untold = gen.condition([picture(0)], [["", "", ""]], frames[None])[0, -1]
    assert torch.allclose(generated[1], untold, atol=1e-5)
    dropped = gen.condition([None], [["", "", ""]], frames[None])[0, -1]
    assert torch.allclose(generated[2], dropped, atol=1e-5)


def test_two_scales_of_guidance_are_told_apart(pipeline, picture):
    def tell(captions, **scales):
        return pipeline(picture(0), captions, generator=seed(0), num_inference_steps=4, **scales).shots[0]

    one = tell(["a fox"], guidance_scale=9.0)
    assert np.array_equal(one, tell(["a fox"], guidance_scale=9.0, reference_guidance_scale=9.0))
    assert not np.array_equal(one, tell(["a fox"], guidance_scale=9.0, reference_guidance_scale=30.0))
    mute = {"guidance_scale": 0.0, "reference_guidance_scale": 9.0}  # the caption has no weight, so it says nothing
    assert np.array_equal(tell(["a fox"], **mute), tell(["the sea"], **mute))
    with pytest.raises(ValueError, match="reference_guidance_scale is a number from 0"):
        pipeline.generate_shots(None, ["a"], reference_guidance_scale=-1.0)


def test_the_second_pathway_sees_references_and_remembered_frames(gen, picture, monkeypatch):
    gen.add_context()
    torch.nn.init.normal_(gen.context.roles.weight, generator=seed(3))
    gen.policy, contexts = ConditionPolicy("first_last", shots_back=1), []
    original = Pathway.guided
    monkeypatch.setattr(Pathway, "guided", lambda *a: contexts.append(original(*a)) or contexts[-1])
    pipeline = gen.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    cast = {"Fox": picture(0), "Owl": picture(1)}
    shots = pipeline(cast, CAPTIONS[:3], generator=seed(0), reference_guidance_scale=2.0, **SHORT).shots
    fox, owl, old, new = reference(0), reference(1), history(1), history(0)
    first = [[fox, owl], [fox, owl], [EMPTY, EMPTY]]
    assert contexts[0].roles.tolist() == first
    assert contexts[2].roles.tolist() == [[*one, old, new] for one in first]
    assert torch.equal(contexts[2].latents[2, :2], torch.zeros_like(contexts[2].latents[2, :2]))
    expected = gen.encode_pictures([picture(0), picture(1), shots[1][0], shots[1][-1]], 64, 96)
    assert torch.allclose(contexts[2].latents[0], expected, atol=1e-4)
    other = pipeline({**cast, "Owl": picture(5)}, CAPTIONS[:1], generator=seed(0), reference_guidance_scale=2.0, **SHORT).shots
    assert not np.array_equal(shots[0], other[0])


def test_guidance_and_reference_matter(pipeline, picture):
    def tell(reference, scale):
        return pipeline(reference, ["a fox"], guidance_scale=scale, generator=seed(0), **SHORT).shots[0]

    plain = tell(picture(0), 1.0)
    assert not np.array_equal(plain, tell(picture(0), 30.0))
    assert np.array_equal(tell(None, 1.0), tell(None, 1.0))


def test_shots_arrive_one_by_one_and_callback_hears_of_each(pipeline, picture):
    stream = pipeline.generate_shots(picture(0), CAPTIONS[:2], generator=seed(0), **SHORT)
    first = next(stream)
    heard = []
    shots = pipeline(
        picture(0), CAPTIONS[:2], generator=seed(0), callback=lambda i, shot: heard.append((i, shot)), **SHORT
    ).shots
    assert np.array_equal(first, shots[0])
    assert [i for i, _ in heard] == [0, 1]
    assert all(a is b for (_, a), b in zip(heard, shots, strict=True))


@pytest.mark.parametrize(
    ("captions", "settings", "message"),
    [
        ([], {}, "at least one"),
        ("a fox", {}, "list of texts"),
        (["a"], {"num_frames": 10}, r"4k\+1 frames, not 10; use 9 or 13"),
        (["a"], {"num_frames": 0}, r"4k\+1 frames, not 0; use 1 or 5"),
        (["a"], {"height": 60}, "multiples of 16, not 60 x 96"),
        (["a"], {"num_inference_steps": 0}, "at least 1, not 0"),
    ],
)
def test_wrong_requests_are_refused_before_any_work(pipeline, captions, settings, message):
    with pytest.raises(ValueError, match=message):
        pipeline.generate_shots(None, captions, **settings)


def test_a_broken_context_is_named(gen):
    with pytest.raises(ValueError, match="2 captions needs 1 last frames"):
        AnimeShooterGen.condition(gen, [None], [["a", "b"]], [[]])
