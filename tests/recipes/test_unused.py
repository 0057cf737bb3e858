import pytest

from recipes import align, lora, multi_shot, pretrain, single_shot
from recipes.config import override, settings
from recipes.trainer import main
from recipes.unused import unused_settings


def unused(stage, *assignments):
    config = override(stage.STAGE.presets["tiny"], list(assignments))
    return unused_settings(stage.STAGE, config, list(assignments))


DROPOUTS = {
    align: set(),
    pretrain: {"caption"},
    single_shot: {"reference", "caption", "both"},
    multi_shot: {"reference", "caption", "both"},
    lora: {"reference", "caption", "both"},
}


@pytest.mark.parametrize("stage", DROPOUTS, ids=lambda stage: stage.STAGE.name)
def test_dropout_that_a_stage_has_not_is_named(stage):
    for name in ("reference", "caption", "both"):
        lines = unused(stage, f"dropout.{name}=0.5")
        expected = [] if name in DROPOUTS[stage] else [f"dropout.{name} has no effect: {stage.STAGE.name} does not look at it"]
        assert lines == expected


def test_what_alignment_does_not_look_at():
    assert unused(align, "data.latents=sample", "train.weighting=min_snr", "train.compile=true", "data.caption=both") == [
        "data.latents has no effect: align does not look at it",
        "train.weighting has no effect: align has no noise schedule",
        "train.compile has no effect: align does not run the video transformer",
    ]


def test_settings_that_another_one_turns_on():
    assert unused(single_shot, "train.snr_gamma=3") == ["train.snr_gamma has no effect with train.weighting as it is"]
    assert unused(single_shot, "train.snr_gamma=3", "train.weighting=min_snr") == []
    assert unused(single_shot, "held_out.samples=3") == ["held_out.samples has no effect without held_out.every"]
    assert unused(single_shot, "track.to=wandb", "track.every=3") == []
    assert unused(single_shot, "train.keep=3", "train.save_every=none") == [
        "train.keep has no effect with train.save_every as it is"
    ]


@pytest.mark.parametrize("stage", [single_shot, multi_shot, lora], ids=lambda stage: stage.STAGE.name)
def test_the_stage_s_own_settings_are_all_used(stage):
    """What a preset sets away from the default must be looked at."""
    named = [f"{name}={value}" for name, value in settings(stage.STAGE.presets["tiny"]).items() if name.startswith("dropout.")]
    assert unused(stage, *named, "data.caption=both", "data.latents=sample", "train.compile=true") == []


def test_it_is_said_before_the_run(dataset, tmp_path, capsys):
    out = ["--data", str(dataset), "--out", str(tmp_path / "out"), "--set", "train.steps=1"]
    assert main(align.STAGE, [*out, "--set", "dropout.reference=0.5"]) == 0
    told = capsys.readouterr().err
    assert "align: dropout.reference has no effect: align does not look at it" in told
