import pytest
import torch

from model.guidance import guided


def summed(branches, predictions):
    return sum(branch.weight * predictions[branch.reference, branch.caption] for branch in branches)


@pytest.fixture
def predictions():
    generator = torch.Generator().manual_seed(0)
    return {key: torch.randn(4, generator=generator) for key in ((True, True), (True, False), (False, False))}


def test_two_scales_are_those_of_instructpix2pix(predictions):
    blank, reference, full = predictions[False, False], predictions[True, False], predictions[True, True]
    expected = blank + 3.0 * (reference - blank) + 7.5 * (full - reference)
    assert torch.allclose(summed(guided(7.5, 3.0), predictions), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1.5, 6.0, 30.0])
def test_one_scale_is_plain_guidance_and_equal_scales_are_one(scale, predictions):
    blank, full = predictions[False, False], predictions[True, True]
    expected = blank + scale * (full - blank)
    assert torch.allclose(summed(guided(scale), predictions), expected, atol=1e-5)
    assert guided(scale) == guided(scale, scale)
    assert len(guided(scale)) == 2


@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0])
def test_a_scale_of_at_most_one_takes_one_prediction(scale):
    (only,) = guided(scale)
    assert (only.reference, only.caption, only.weight) == (True, True, 1.0)


@pytest.mark.parametrize("scales", [(6.0, None), (7.5, 3.0), (1.0, 4.0), (0.0, 2.0), (3.0, 0.0), (1.0, 1.0), (2.0, 1.0)])
def test_weights_add_up_to_one_and_none_is_nothing(scales):
    branches = guided(*scales)
    assert sum(branch.weight for branch in branches) == pytest.approx(1.0)
    assert all(branch.weight for branch in branches)
    assert len(set(branches)) == len(branches) <= 3


@pytest.mark.parametrize(
    ("scales", "name"), [((-1.0, None), "guidance_scale"), ((6.0, float("nan")), "reference_guidance_scale")]
)
def test_scales_that_are_none_are_refused(scales, name):
    with pytest.raises(ValueError, match=f"^{name} is a number from 0"):
        guided(*scales)
