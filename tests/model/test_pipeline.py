import numpy as np
import pytest
import torch

from model import AnimeShooterGen, AnimeShooterPipeline

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


def test_each_shot_reads_the_last_frames_before_it(pipeline, picture, monkeypatch):
    seen = []
    original = AnimeShooterPipeline._condition

    def spy(self, references, captions, last_frames, guided):
        seen.append((list(captions), [np.asarray(frame) for frame in last_frames]))
        return original(self, references, captions, last_frames, guided)

    monkeypatch.setattr(AnimeShooterPipeline, "_condition", spy)
    shots = pipeline(picture(0), CAPTIONS[:3], generator=seed(0), **SHORT).shots
    assert [captions for captions, _ in seen] == [CAPTIONS[:1], CAPTIONS[:2], CAPTIONS[:3]]
    for i, (_, frames) in enumerate(seen):
        assert len(frames) == i
        assert all(np.array_equal(frame, shot[-1]) for frame, shot in zip(frames, shots, strict=False))


def test_generation_reads_as_training_does(gen, pipeline, picture, clips):
    frames = clips(2)[:, -1]
    trained = gen.condition([picture(0)], [CAPTIONS[:3]], frames[None])[0, -1]
    from model.images import to_rgb

    generated = pipeline._condition([picture(0)], CAPTIONS[:3], [to_rgb(frame) for frame in frames], guided=True)
    assert torch.allclose(generated[0], trained, atol=1e-5)
    dropped = gen.condition([None], [["", "", ""]], frames[None])[0, -1]
    assert torch.allclose(generated[1], dropped, atol=1e-5)


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
