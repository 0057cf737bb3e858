import math
from itertools import pairwise

import pytest
import torch

from animeshooter_dataset import DataError
from recipes.config import TrainConfig
from recipes.schedules import make_optimizer, rate_of, schedule_words


def rates(**settings):
    train = TrainConfig(global_batch=1, learning_rate=0.5, **{"steps": 10, **settings})
    return [rate_of(train, step) for step in range(train.steps)]


def test_a_constant_rate_rises_over_the_warm_up_and_stays():
    assert rates(warmup=4) == pytest.approx([0.125, 0.25, 0.375] + [0.5] * 7)
    assert rates() == [0.5] * 10


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_the_others_fall_from_the_full_rate_towards_nothing(schedule):
    found = rates(schedule=schedule, warmup=2)
    assert found[:3] == pytest.approx([0.25, 0.5, 0.5])
    assert all(after < before for before, after in pairwise(found[2:]))
    assert 0 < found[-1] < 0.08


def test_the_shapes_are_a_line_and_half_a_cosine():
    assert rates(schedule="linear") == pytest.approx([0.5 * (1 - step / 10) for step in range(10)])
    assert rates(schedule="cosine") == pytest.approx([0.25 * (1 + math.cos(math.pi * step / 10)) for step in range(10)])


def test_torch_agrees_with_the_cosine():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for rate in rates(schedule="cosine"):
        assert rate == pytest.approx(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()


def test_a_warm_up_that_leaves_nothing_to_the_schedule_is_refused():
    with pytest.raises(DataError, match=r"train\.warmup=10 leaves nothing of train\.steps=10 for the cosine"):
        make_optimizer([torch.nn.Parameter(torch.zeros(1))], TrainConfig(10, 1, 0.1, warmup=10, schedule="cosine"))


def test_both_optimizers_do_the_same():
    ends = []
    for name in ("adamw", "adamw_fused"):
        weight = torch.nn.Parameter(torch.arange(4.0))
        optimizer = make_optimizer([weight], TrainConfig(10, 1, 0.1, optimizer=name))
        for _ in range(3):
            weight.square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(weight.detach())
    torch.testing.assert_close(*ends)


def test_settings_out_of_range_are_one_line():
    with pytest.raises(DataError, match="train: Invalid"):
        make_optimizer([torch.nn.Parameter(torch.zeros(1))], TrainConfig(10, 1, -0.1))


def test_a_schedule_in_words():
    assert schedule_words(TrainConfig(10, 1, 0.1)) == "constant"
    assert schedule_words(TrainConfig(10, 1, 0.1, warmup=3, schedule="cosine")) == "linear over 3 steps, then cosine to zero"
