from dataclasses import replace

import pytest
import torch

from recipes import align
from recipes.precision import precision_of, settled

CONFIG = align.STAGE.presets["paper"]
UNSAID = replace(CONFIG, train=replace(CONFIG.train, precision=None))


@pytest.mark.parametrize(
    ("preset", "precision"), [("tiny", None), ("paper", "fp16"), ("paper_5b", "bf16"), ("wan_1_3b", "bf16")]
)
def test_each_video_model_in_what_it_was_trained_in(preset, precision):
    assert precision_of(replace(UNSAID, preset=preset)) == precision


def test_it_is_chosen_only_where_nobody_says_it_and_there_is_a_gpu(monkeypatch):
    monkeypatch.delenv("ACCELERATE_MIXED_PRECISION", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert settled(UNSAID).train.precision is None
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert settled(UNSAID).train.precision == "fp16"
    assert settled(replace(CONFIG, train=replace(CONFIG.train, precision="no"))).train.precision == "no"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert settled(UNSAID).train.precision is None
