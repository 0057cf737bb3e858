from types import SimpleNamespace

import pytest
import torch
from diffusers.training_utils import EMAModel

from animeshooter_dataset import DataError
from recipes.ema import Ema
from recipes.sharding import Layout


@pytest.fixture
def layout():
    return Layout(SimpleNamespace(is_main_process=True, num_processes=1))


def weights(dtype=torch.float32):
    return {"a": torch.nn.Parameter(torch.arange(4.0, dtype=dtype))}


def train(parameters, ema, steps):
    for step in steps:
        with torch.no_grad():
            for one in parameters.values():
                one.add_(step**0.5)
        ema.update(step)


def test_it_averages_as_diffusers_does(layout):
    parameters = weights()
    theirs = EMAModel(parameters.values(), decay=0.6)
    ours = Ema(parameters, 0.6, layout)
    for step in range(1, 30):
        train(parameters, ours, [step])
        theirs.step(parameters.values())
        if step == 1:  # theirs forgets the start at once
            ours.put("a", theirs.shadow_params[0])
    torch.testing.assert_close(ours.tensors()["a"], theirs.shadow_params[0])
    assert not torch.equal(ours.tensors()["a"], parameters["a"])


def test_it_goes_on_from_its_tensors_to_the_bit(layout):
    parameters = weights()
    ema = Ema(parameters, 0.9, layout)
    train(parameters, ema, range(1, 6))
    kept, at = ema.tensors(), {"a": torch.nn.Parameter(parameters["a"].detach().clone())}
    train(parameters, ema, range(6, 10))
    again = Ema(at, 0.9, layout)
    again.put("a", kept["a"])
    train(at, again, range(6, 10))
    assert torch.equal(again.tensors()["a"], ema.tensors()["a"])


def test_averages_of_bfloat16_are_kept_in_float32(layout):
    ema = Ema(weights(torch.bfloat16), 0.999, layout)
    assert ema.tensors()["a"].dtype == torch.float32


def test_the_averages_stand_in_for_the_weights_for_a_while(layout):
    parameters = weights()
    ema = Ema(parameters, 0.9, layout)
    train(parameters, ema, range(1, 4))
    before = parameters["a"].detach().clone()
    with ema.applied():
        assert torch.equal(parameters["a"], ema.averages["a"])
        assert not torch.equal(parameters["a"], before)
    assert torch.equal(parameters["a"], before)


def test_no_decay_of_one(layout):
    with pytest.raises(DataError, match=r"train\.ema=1"):
        Ema(weights(), 1, layout)
