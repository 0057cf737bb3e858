import dataclasses
import json

import pytest
import torch
from endpoint_server import VIEW, script
from tiny_vlm import build_llava, build_qwen, learn_by_heart

from animeshooter_dataset import AnnotatedBy, Character, DataError
from curation import local
from curation.asking import AskConfig, Turn, asker_of
from curation.judge import AskedJudge
from curation.ledger import AskLimits, BudgetReached
from curation.parts import Film, Picture, Sound
from curation.screenwriter import Screenwriter
from curation.script import NoAnswer

VERDICTS = {"reason": "Drawn.", "animation": True, "subtitles": False, "style": "2D", "talking": False} | dict.fromkeys(
    ("complete", "matches", "consistent", "neutral", "sharp"), True
)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Folders of three real models: ``heart`` has learnt one answer, the others have random weights."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    home = tmp_path_factory.mktemp("models")
    model, tokenizer = build_llava(home / "heart")
    learn_by_heart(model, tokenizer, json.dumps(script() | VERDICTS), home / "heart")
    build_llava(home / "random")
    build_qwen(home / "qwen")
    yield home
    torch.set_num_threads(threads)


@pytest.fixture
def asker(models, tmp_path):
    def make(name, limits=None, **settings):
        config = AskConfig(**{"max_tokens": 48, **settings})
        return asker_of(f"local:{models / name}", config, limits or AskLimits(device="cpu"), cache=tmp_path / "cache")

    make.cache = tmp_path / "cache"
    return make


def account(asker):
    return next(iter(json.loads((asker.cache / "usage.json").read_text())["models"].values()))


def test_a_model_that_runs_here_writes_a_script(asker, models):
    told = Screenwriter(asker("heart", max_tokens=2000)).annotate(VIEW)
    assert told.storyline == "A hen and a bird find each other."
    assert [shot.narrative_caption for shot in told.shots] == [shot["narrative_caption"] for shot in script()["shots"]]
    assert told.annotator == AnnotatedBy(kind="local", model="heart")
    assert account(asker)["requests"] == 1


def test_a_second_run_does_not_load_the_model(asker, monkeypatch):
    first = Screenwriter(asker("heart", max_tokens=2000)).annotate(VIEW)
    monkeypatch.setattr(local, "_load", None)
    assert Screenwriter(asker("heart", max_tokens=2000)).annotate(VIEW) == first


def test_a_model_that_runs_here_judges(asker):
    judge = AskedJudge(asker("heart", max_tokens=2000))
    frames = [samples[0].image for samples in VIEW.samples]
    assert judge.film(frames).animation
    assert judge.shot(frames[:2]).style == "2D"
    assert judge.reference(frames[0], frames[1], Character(id="hen", appearance="a red hen")).ok
    assert account(asker)["requests"] == 3


@pytest.mark.parametrize("name", ["random", "qwen"])
def test_rubbish_goes_back_once_and_is_then_a_recorded_failure(asker, name):
    with pytest.raises(DataError, match="gave no usable script, the answer is cut off at 48 tokens") as caught:
        Screenwriter(asker(name)).annotate(VIEW)
    assert not isinstance(caught.value, NoAnswer)
    used = account(asker)
    assert used["requests"] == 2
    assert used["completion_tokens"] == 96
    assert used["prompt_tokens"] > 2000  # two questions with their pictures
    assert not list(asker.cache.glob("*/*.json"))


def test_answers_are_the_same_every_time(asker):
    frames = [Picture(sample.image) for sample in VIEW.samples[0]]
    turns = [Turn("user", ["What is this?", *frames])]
    first, second = (asker("random").model.reply(turns, {}, lambda: None) for _ in range(2))
    assert first == second
    assert first.text


def test_without_a_processor_the_model_reads_the_same(models):
    loaded = local._load(str(models / "heart"), "auto", "cpu")
    assert loaded.processor is not None
    turns = [Turn("user", ["Look:", Picture(VIEW.samples[0][0].image), "and", Picture(VIEW.samples[1][0].image)])]
    turns += [Turn("assistant", ["Yes."]), Turn("user", ["Again."])]
    with_it, without = (dataclasses.replace(loaded, processor=part).inputs(turns, 64) for part in (loaded.processor, None))
    assert torch.equal(with_it["input_ids"], without["input_ids"])
    assert torch.equal(with_it["pixel_values"], without["pixel_values"])
    assert local._load(str(models / "qwen"), "auto", "cpu").inputs(turns, 64)["input_ids"].shape[1] > 10


def test_a_question_that_is_too_long_is_refused(asker, models, tmp_path):
    build_llava(tmp_path / "short", positions=256)
    with pytest.raises(DataError, match=r"the question has \d+ tokens, .* holds 256; send fewer frames"):
        Screenwriter(asker(tmp_path / "short")).annotate(VIEW)


def test_a_budget_holds_here_too(asker):
    judge = AskedJudge(asker("heart", AskLimits(budget_tokens=10, device="cpu"), max_tokens=2000))
    frames = [samples[0].image for samples in VIEW.samples]
    judge.shot(frames[:1])
    with pytest.raises(BudgetReached, match="raise the budget"):
        judge.shot(frames[1:2])


def test_sound_and_film_are_refused(asker):
    image = VIEW.samples[0][0].image
    for part, name in ((Sound(torch.zeros(1, 10).numpy(), 16000), "sound"), (Film([image], 2.0), "film")):
        with pytest.raises(DataError, match=f"takes text and pictures, no {name}"):
            asker("random").model.reply([Turn("user", [part])], {}, lambda: None)


def test_what_is_no_model_is_told_in_one_line(asker, models, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    pickled = tmp_path / "pickled"
    build_llava(pickled)
    (pickled / "model.safetensors").unlink()
    torch.save({}, pickled / "pytorch_model.bin")
    torn = tmp_path / "torn"
    build_llava(torn)
    (torn / "model.safetensors").write_bytes((torn / "model.safetensors").read_bytes()[:5000])
    wrong = (
        (empty, "cannot be loaded"),
        (pickled, "safetensors"),
        (torn, "cannot be loaded"),
        (tmp_path / "none", "no such folder"),
    )
    for folder, told in wrong:
        with pytest.raises(NoAnswer, match=told) as caught:
            Screenwriter(asker(folder)).annotate(VIEW)
        assert "\n" not in str(caught.value)


def test_a_model_without_a_chat_template_is_told(asker, tmp_path):
    folder = tmp_path / "plain"
    build_qwen(folder)
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(NoAnswer, match="must be a model that was taught to chat"):
        Screenwriter(asker(folder)).annotate(VIEW)


def test_other_weights_are_asked_anew_and_a_copy_is_not(models, tmp_path):
    import shutil

    copy = shutil.copytree(models / "random", tmp_path / "copy")
    identity = lambda folder: local.LocalModel(str(folder), AskConfig()).identity()  # noqa: E731
    assert identity(copy) == identity(models / "random")
    assert identity(models / "heart") != identity(models / "random")
    assert local.LocalModel(str(copy), AskConfig(dtype="bfloat16")).identity() != identity(copy)
