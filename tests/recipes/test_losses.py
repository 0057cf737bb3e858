import math
from types import SimpleNamespace

import pytest
import torch

from animeshooter_dataset import DataError
from model import AnimeShooterGen
from recipes.config import TrainConfig
from recipes.losses import Losses, Tally, check_weighting, filled, min_snr, weighted

TRAIN = TrainConfig(steps=1, global_batch=1, learning_rate=1e-3, weighting="min_snr")


def losses(rows, timesteps):
    return Losses.of_shots([(torch.tensor(row), torch.tensor(at)) for row, at in zip(rows, timesteps)])


def test_a_sample_s_loss_is_the_mean_of_its_shots():
    found = losses([[1.0, 3.0], [5.0, 9.0]], [[0, 1], [2, 3]])
    assert found.per_sample.tolist() == [2, 7]
    assert found.shots.shape == found.timesteps.shape == (2, 2)


# ---- weighting ----


@pytest.mark.parametrize(
    ("prediction", "of_prediction"), [("sample", lambda s: 1), ("epsilon", lambda s: s), ("v_prediction", lambda s: s + 1)]
)
def test_min_snr_weighs_the_clean_sample_s_error_the_same_whatever_is_predicted(prediction, of_prediction):
    snr = torch.tensor([0.01, 1.0, 5.0, 400.0])
    weights = min_snr(snr, 5.0, prediction) * torch.tensor([float(of_prediction(value)) for value in snr])
    assert weights.tolist() == pytest.approx([0.01, 1, 5, 5])


def test_pure_noise_is_no_trouble():
    nothing = torch.tensor([0.0])
    assert min_snr(nothing, 5.0, "v_prediction").tolist() == [0]
    assert min_snr(nothing, 5.0, "epsilon").tolist() == [1]


def test_the_weighted_loss_is_what_is_minimised_and_the_shots_stay():
    gen = SimpleNamespace(
        backbone=SimpleNamespace(snr=lambda timesteps: torch.where(timesteps < 500, 9.0, 1.0)),
        scheduler=SimpleNamespace(config={"prediction_type": "v_prediction"}),
    )
    found = weighted(losses([[1.0, 3.0]], [[10, 900]]), gen, TRAIN)
    assert found.per_sample.tolist() == pytest.approx([(1 * 5 / 10 + 3 * 1 / 2) / 2])
    assert found.shots.tolist() == [[1, 3]]
    plain = Losses(torch.ones(2))
    assert weighted(plain, gen, TRAIN) is plain


def test_the_tiny_model_s_schedule_has_weights_and_flow_matching_has_not():
    check_weighting(AnimeShooterGen.from_preset("tiny"), TRAIN)
    with pytest.raises(DataError, match="snr_gamma=0: it must be above 0"):
        check_weighting(None, TrainConfig(1, 1, 1e-3, weighting="min_snr", snr_gamma=0))
    flow = SimpleNamespace(backbone=SimpleNamespace(snr=lambda timesteps: None))
    with pytest.raises(DataError, match="matches flows"):
        check_weighting(flow, TRAIN)


# ---- summing up ----


def rows(*processes, top=1000.0):
    tallies = []
    for micro in processes:
        tally = Tally(top)
        for one in micro:
            tally.add(one)
        tallies.append(tally)
    return tallies[0].read(torch.stack([tally.vector() for tally in tallies]))


def test_bands_and_positions_are_the_same_on_any_number_of_processes_and_micro_batches():
    samples = [
        losses([[1.0, 2.0]], [[0, 999]]),
        losses([[3.0, 5.0]], [[260, 700]]),
        losses([[7.0, 11.0]], [[1000, 10]]),
        losses([[13.0, 17.0]], [[100, 200]]),
    ]
    whole = rows(samples)
    assert whole[0] == pytest.approx((1.5 + 4 + 9 + 15) / 4)
    assert whole[1] == pytest.approx([(1 + 11 + 13 + 17) / 4, 3, 5, (2 + 7) / 2])
    assert whole[2] == pytest.approx([6, 35 / 4])
    assert rows(samples[:2], samples[2:]) == whole
    joined = [Losses(*(torch.cat(parts) for parts in zip(*samples[place : place + 2]))) for place in (0, 2)]
    assert rows(joined) == whole


def test_a_band_without_samples_is_none_and_stages_without_a_schedule_have_neither():
    assert rows([losses([[1.0]], [[0]])])[1] == [1, None, None, None]
    assert rows([Losses(torch.tensor([1.0, 2.0]))]) == (1.5, [], [])


def test_samples_whose_loss_is_not_finite_are_told():
    assert Tally(1000).add(Losses(torch.tensor([1.0, math.nan, math.inf]))).tolist() == [False, True, True]


def test_a_step_that_was_left_out_has_the_loss_before_it_in_the_record():
    assert filled([math.nan, 2.0, math.inf, 3.0, math.nan]) == [2, 2, 2, 3, 3]
