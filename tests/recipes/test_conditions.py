import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from animeshooter_dataset import DataError
from model import AnimeShooterGen, AnimeShooterPipeline
from model.memory import ConditionPolicy
from recipes import lora, multi_shot, single_shot
from recipes.conditions import condition_needs, contexts_of, dropped, inherited, memory_of, policy_of, prompts_of, references_of
from recipes.config import DropoutConfig, override
from recipes.generate import generate
from recipes.stage import generator_of, open_stream
from recipes.trainer import main


def seed(number):
    return torch.Generator().manual_seed(number)


def config_of(*changes):
    return override(multi_shot.PRESETS["tiny"], list(changes))


def batch_of(dataset, config):
    (batch,) = next(open_stream(multi_shot.STAGE, config, dataset).batches(0, 1, steps=1))
    return batch


@pytest.fixture(scope="module")
def gen():
    return AnimeShooterGen.from_preset("tiny", seed=0)


# ---- what is dropped ----


@pytest.mark.parametrize(
    ("rates", "reference", "caption", "together"),
    [
        # 0.05 of each of three independent draws, the third of which takes both
        (single_shot.DROPOUT, 1 - 0.95**2, 1 - 0.95**2, 0.05 + 0.95 * 0.05**2),
        (multi_shot.DROPOUT, 0.05, 0.05, 0.05),
        (DropoutConfig(), 0.0, 0.0, 0.0),
    ],
)
def test_references_and_captions_are_dropped_as_often_as_in_the_paper(rates, reference, caption, together):
    config = dataclasses.replace(config_of(), dropout=rates)
    drawn = np.array([dropped(config, seed(number)) for number in range(20_000)])
    found = [drawn[:, 0].mean(), drawn[:, 1].mean(), drawn.all(1).mean()]
    for rate, expected in zip(found, (reference, caption, together), strict=True):
        assert rate == pytest.approx(expected, abs=4 * (expected * (1 - expected) / len(drawn)) ** 0.5)


def test_every_preset_of_the_papers_stages_drops_at_the_papers_rates():
    for stage, rates in ((single_shot, DropoutConfig(0.05, 0.05, 0.05)), (multi_shot, DropoutConfig(0.0, 0.0, 0.05))):
        assert {preset.dropout for preset in stage.PRESETS.values()} == {rates}


@pytest.mark.parametrize(
    ("rates", "without", "silent"),
    [
        (DropoutConfig(reference=1.0), True, False),
        (DropoutConfig(caption=1.0), False, True),
        (DropoutConfig(both=1.0), True, True),
        (DropoutConfig(), False, False),
    ],
)
def test_what_is_dropped_does_not_reach_the_model(gen, dataset, monkeypatch, rates, without, silent):
    config = dataclasses.replace(config_of("data.references=2"), dropout=rates)
    batch, seen = batch_of(dataset, config), []

    def condition(*given):
        seen.append(given)
        raise StopIteration  # the rest of the loss is not asked about

    monkeypatch.setattr(gen, "condition", condition)
    monkeypatch.setattr(gen, "policy", policy_of(config))
    with pytest.raises(StopIteration):
        multi_shot.STAGE.loss(gen, batch, config, [generator_of(0, batch, place) for place in range(2)])
    ((references, captions, memory),) = seen
    assert [one is None for one in references] == [without] * 2
    assert [text == "" for texts in captions for text in texts] == [silent] * 6
    assert [len(one) for one in memory] == [2, 2]  # what happened before is never dropped


# ---- what is read ----


def test_references_come_with_their_characters_and_both_captions_told_apart(dataset):
    config = config_of("data.references=2", "data.caption=both")
    batch = batch_of(dataset, config)
    names = [[name for name, _ in references_of(sample)] for sample in batch.samples]
    assert sorted(names[0]) == ["Blue", "Red"]
    sample = batch.samples[0]
    text = prompts_of(batch, "both")[0][0]
    assert text == f"Narrative: {sample.narrative[0]}\nDescriptive: {sample.descriptive[0]}"
    assert prompts_of(batch, "narrative")[0] == sample.narrative


@pytest.mark.parametrize("memory", ["last", "first_last", "frames:3", "frames:4"])
def test_memory_is_the_frames_the_policy_names(dataset, memory):
    config = config_of(f"condition.memory={memory}")
    batch, policy = batch_of(dataset, config), policy_of(config)
    found = memory_of(batch, policy)
    assert [[len(shot) for shot in sample] for sample in found] == [[policy.frames] * 2] * 2
    for b, s in ((0, 0), (1, 1)):
        assert torch.equal(found[b][s][-1], batch.last[b, s])
        if policy.frames > 1:
            assert torch.equal(found[b][s][0], batch.first[b, s])
        inner = torch.linspace(0, 8, policy.frames).round().int().tolist()[1:-1]
        assert all(torch.equal(frame, batch.frames[b, s, k]) for frame, k in zip(found[b][s][1:], inner, strict=False))


def test_frames_that_no_cache_holds_are_refused_with_the_mend():
    needs = multi_shot.STAGE.needs
    assert condition_needs(needs, config_of()) == frozenset()
    assert condition_needs(needs, config_of("condition.memory=first_last", "data.features=x")) == {"first"}
    assert condition_needs(single_shot.STAGE.needs, config_of("condition.memory=frames:4", "data.features=x")) == frozenset()
    with pytest.raises(DataError, match=r"memory=frames:4 reads frames .* set condition.memory=first_last, or leave out"):
        condition_needs(needs, config_of("condition.memory=frames:4", "data.features=x"))


# ---- settings ----


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("condition.memory=all", "memory is last, first_last or frames:K"),
        ("condition.shots_back=-2", "shots_back is at least 0"),
        ("condition.pathway=pixels", "'pixels' is not one of none, latents"),
    ],
)
def test_settings_that_are_none_are_refused(change, says):
    with pytest.raises(DataError, match=says):
        config_of(change)


def test_a_stage_takes_over_its_parents_condition_and_old_parents_have_none():
    preset = lora.PRESETS["tiny"]
    told = dataclasses.asdict(config_of("condition.memory=frames:4", "condition.shots_back=2"))
    kept = inherited(preset, {"config": told})
    assert (kept.condition.memory, kept.condition.shots_back) == ("frames:4", 2)
    assert override(kept, ["condition.memory=last"]).condition.memory == "last"
    del told["condition"]
    assert inherited(preset, {"config": told}) == inherited(preset, None) == preset


# ---- from end to end ----


@pytest.fixture(scope="module")
def remembering(chain, dataset, tmp_path_factory):
    """Multi-shot and LoRA models that remember first and last frames, read both captions and two characters, with pathway."""
    folder = tmp_path_factory.mktemp("remembering")
    common = ["--data", str(dataset), "--set", "train.steps=2", "--set", "data.references=2", "--set", "data.caption=both"]
    own = ["condition.memory=first_last", "condition.memory_captions=false", "condition.pathway=latents"]
    told = [part for setting in own for part in ("--set", setting)]
    parent = ["--from", str(chain["single_shot"])]
    assert main(multi_shot.STAGE, [*common, *told, *parent, "--out", str(folder / "multi_shot")]) == 0
    parent = ["--from", str(folder / "multi_shot"), "--set", "data.video=film1"]
    assert main(lora.STAGE, [*common, *parent, "--out", str(folder / "lora")]) == 0
    return folder


def test_the_chain_keeps_the_policy_and_generation_uses_it(remembering, dataset, tmp_path, capsys):
    expected = ConditionPolicy("first_last", None, False, "both", 2)
    for stage in ("multi_shot", "lora"):
        settings = json.loads((remembering / stage / "training.json").read_text())["config"]["condition"]
        assert settings["memory"] == "first_last"
        assert settings["pathway"] == "latents"
        pipeline = AnimeShooterPipeline.from_pretrained(remembering / stage, text_encoder=None)
        assert pipeline.policy == expected
        assert pipeline.context is not None
    for name, colour in (("Red", "red"), ("Blue", "blue")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
    shots = [{"narrative_caption": "n", "descriptive_caption": "d", "characters": who} for who in (["Red"], ["Blue", "Red"])]
    (tmp_path / "story.json").write_text(json.dumps({"shots": shots}))
    references = {name: tmp_path / f"{name}.png" for name in ("Red", "Blue")}
    out = tmp_path / "out"
    generate(remembering / "lora", references, tmp_path / "story.json", out, steps=1, reference_guidance=2.0)
    record = json.loads((out / "story.json").read_text())
    assert record["condition"] == expected.as_dict()
    assert record["characters"] == [["Red"], ["Blue", "Red"]]
    assert record["captions"] == ["Narrative: n\nDescriptive: d"] * 2
    assert capsys.readouterr().err == ""


def test_leaving_the_pathway_out_again_is_refused(remembering, dataset, tmp_path, capsys):
    arguments = ["--data", str(dataset), "--from", str(remembering / "multi_shot"), "--out", str(tmp_path / "x")]
    assert main(lora.STAGE, [*arguments, "--set", "condition.pathway=none"]) == 2
    assert "trained with the second pathway; set condition.pathway=latents" in capsys.readouterr().err


def test_a_pathway_that_nothing_would_train_is_refused(chain, dataset, tmp_path, capsys):
    arguments = ["--from", str(chain["multi_shot"]), "--data", str(dataset), "--out", str(tmp_path / "out")]
    assert main(lora.STAGE, [*arguments, "--set", "condition.pathway=latents"]) == 2
    assert "has no second pathway, and lora does not train one" in capsys.readouterr().err


def test_the_pathway_sees_in_training_what_it_sees_in_generation(dataset):
    model = AnimeShooterGen.from_preset("tiny", seed=0)
    config = config_of("condition.memory=first_last", "condition.pathway=latents", "data.references=2")
    batch = batch_of(dataset, config)
    model.policy = policy_of(config)
    assert contexts_of(model, batch, [False, True], memory_of(batch, model.policy)) is None
    model.add_context()
    contexts = contexts_of(model, batch, [False, True], memory_of(batch, model.policy))
    assert [context.roles.shape[1] for context in contexts[0]] == [2, 4, 6]
    assert contexts[1][0].roles.tolist() == [[0, 0]]
    frame = model.encode_pictures([batch.last[0, 1]], 64, 96)[0]
    assert torch.allclose(contexts[0][2].latents[0, -1], frame, atol=1e-3)
    with torch.no_grad():
        losses = multi_shot.STAGE.loss(model, batch, config, [generator_of(0, batch, place) for place in range(2)])
    assert losses.shots.shape == losses.timesteps.shape == (2, 3)
