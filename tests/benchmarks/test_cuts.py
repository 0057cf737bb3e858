from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from benchmarks.compositions import DRAWN, GRADUAL, RATES, Truth, carry, compose, draw_scene, join
from benchmarks.cuts import Boundaries, alone, score


def test_scores_count_each_kind_of_mistake():
    truth = {"cuts": [10, 50, 90], "gradual": [[60, 80, "wipe"], [120, 140, "fade"]], "events": [[100, 105, "flash"]]}
    result = score(truth, Boundaries([11, 30, 70, 102], [[58, 66], [20, 25]]))
    figures = result.figures()
    assert figures["recall"] == pytest.approx(1 / 3, abs=1e-4)
    assert figures["precision"] == pytest.approx(1 / 3, abs=1e-4)  # 70 lies in a true transition
    assert figures["gradual recall"] == 0.5
    assert figures["gradual precision"] == 0.5
    assert result.missed == {"cut": 2, "fade": 1}
    assert result.false == {"cut in plain motion": 1, "cut in flash": 1, "span in plain motion": 1}


def test_one_detection_finds_one_cut_and_nothing_gives_no_figure():
    assert score({"cuts": [10, 11], "gradual": []}, Boundaries([10])).counts["hits"] == 1
    assert score({"cuts": [], "gradual": []}, Boundaries([])).figures() == {}


def test_runs_of_the_network_are_cuts_when_short_and_gradual_when_long():
    probabilities = np.zeros(40)
    probabilities[9:12] = 0.6, 0.9, 0.7
    probabilities[20:30] = 0.8
    assert alone(probabilities) == Boundaries([11], [[20, 29]])


@pytest.fixture(scope="module")
def scenes():
    return [draw_scene(np.random.default_rng(seed), DRAWN[seed % len(DRAWN)], 60) for seed in range(6)]


def test_a_composition_changes_at_its_cuts_and_nothing_else_is_called_one(scenes):
    frames, truth = compose(scenes, np.random.default_rng(3), 25)
    assert len(frames) == truth.n_frames > 25 * 24
    assert truth.cuts
    change = [float(np.abs(frames[k].astype(int) - frames[k - 1]).mean()) for k in truth.cuts]
    assert min(change) > 10
    marks = sorted([*truth.cuts, *(f for a, b, _ in truth.gradual for f in (a, b + 1))])
    assert all(b - a >= 4 for a, b in pairwise(marks))


@pytest.mark.parametrize("kind", sorted(set(GRADUAL)))
def test_transitions_begin_like_the_old_shot_and_end_like_the_new(scenes, kind):
    old, new = scenes[0], scenes[2]
    frames, taken = join(old, new, kind, np.random.default_rng(1))

    def far(a, b):
        return float(np.abs(a.astype(int) - b).mean())

    assert far(frames[0], old[len(old) - taken]) < far(frames[0], new[0])
    assert far(frames[-1], new[taken]) < far(frames[-1], old[-1])


@pytest.mark.parametrize("rate", sorted(set(RATES)))
def test_boundaries_stay_where_they_were_at_any_rate(rate):
    frames = [np.full((4, 4, 3), 0 if k < 30 else 100 if k < 50 else 200, np.uint8) for k in range(80)]
    truth = Truth(80, [30], [(50, 59, "dissolve")])
    carried, moved, fps = carry(frames, truth, rate)
    assert len(carried) == moved.n_frames
    (cut,), ((first, last, _),) = moved.cuts, moved.gradual
    assert carried[cut - 1].max() == 0
    assert carried[cut].max() == 100
    assert carried[first].max() == 200
    assert carried[first - 1].max() == 100
    assert (last + 1 - first) == pytest.approx(10 * fps / 24 if "repeating" in rate else 10, abs=1)
    assert isinstance(fps, Fraction)
