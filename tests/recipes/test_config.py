import dataclasses
import re

import pytest

from animeshooter_dataset import DataError
from recipes import align, lora, multi_shot, pretrain, single_shot
from recipes.config import override, settings

STAGES = [pretrain.STAGE, align.STAGE, single_shot.STAGE, multi_shot.STAGE, lora.STAGE]
TINY = single_shot.PRESETS["tiny"]


def test_values_are_read_by_their_declared_type():
    changed = override(
        TINY,
        [
            "train.steps=3",
            "train.learning_rate=2e-5",
            "data.clip.fps=12",
            "data.require_reference=true",
            "data.video=bunny",
            "data.caption=both",
            "train.precision=none",
        ],
    )
    assert (changed.train.steps, changed.train.learning_rate, changed.data.clip.fps) == (3, 2e-5, 12.0)
    assert (changed.data.require_reference, changed.data.video, changed.data.caption) == (True, "bunny", "both")
    assert changed.train.precision is None
    assert TINY.train.steps == 8


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("train.step=3", "no setting 'train.step'; did you mean train.steps?"),
        ("data.clip.heigth=64", "did you mean data.clip.height?"),
        ("steps=3", "did you mean train.steps?"),
        ("train.steps=many", "'many' is not a whole number"),
        ("train.learning_rate=fast", "'fast' is not a number"),
        ("data.caption=short", "'short' is not one of narrative, descriptive, both"),
        ("data.require_reference=1", "'1' is not true or false"),
        ("train.steps", "write it as --set a.b=c"),
    ],
)
def test_a_wrong_setting_is_one_line_that_says_the_mend(assignment, says):
    with pytest.raises(DataError, match=re.escape(says)) as error:
        override(TINY, [assignment])
    assert "\n" not in str(error.value)


def test_every_setting_can_be_set_to_what_it_is():
    for stage in STAGES:
        for config in stage.presets.values():
            same = override(config, [f"{name}={str(value).lower()}" for name, value in settings(config).items()])
            assert same == config


def test_the_paper_s_figures():
    figures = {
        stage.name: (stage.presets["paper"].train.global_batch, stage.presets["paper"].train.steps)
        for stage in STAGES
        if "paper" in stage.presets
    }
    assert figures == {
        "align": (32, 1_800_000),
        "single_shot": (24, 17_000),
        "multi_shot": (8, 8_000),
        "lora": (2, 1_500),
    }
    assert dataclasses.astuple(single_shot.PRESETS["paper"].dropout) == (0.05, 0.05, 0.05)
    assert dataclasses.astuple(multi_shot.PRESETS["paper"].dropout) == (0.0, 0.0, 0.05)
    assert dataclasses.astuple(lora.PRESETS["paper"].dropout) == (0.0, 0.0, 0.0)
