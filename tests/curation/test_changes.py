import cv2
import numpy as np
import pytest

from curation.changes import SMALL, FrameMeter, held_share, isolation, isolation_among_moves, shared_outline


def scene(seed):
    rng = np.random.default_rng(seed)
    image = np.full((SMALL[1], SMALL[0], 3), rng.integers(40, 216, 3), np.uint8)
    for _ in range(14):
        corner = rng.integers(0, SMALL)
        cv2.rectangle(image, corner.tolist(), (corner + rng.integers(10, 50, 2)).tolist(), rng.integers(0, 256, 3).tolist(), -1)
    return image


def test_held_share_knows_light_from_change():
    grey, other = (cv2.cvtColor(scene(seed), cv2.COLOR_RGB2GRAY) for seed in (1, 2))
    assert held_share(grey, (grey * 0.5).astype(np.uint8)) > 0.95
    assert held_share(grey, other) < 0.3
    assert held_share(grey, np.full_like(grey, 128)) == 0


def test_shared_outline_is_whole_for_one_picture_and_small_for_two():
    grey, other = (cv2.cvtColor(cv2.resize(scene(seed), (64, 36)), cv2.COLOR_RGB2GRAY) for seed in (1, 2))
    assert shared_outline(grey, grey) == pytest.approx(1)
    assert shared_outline(grey, other) < 0.25


def test_a_drawing_held_for_four_frames_is_as_near_as_one_held_for_one():
    steps = np.tile([20.0, 0, 0, 0], 12).astype(np.float32)
    steps[24] = 100.0
    assert isolation(steps)[20] > 15  # nothing within three frames
    among = isolation_among_moves(steps, 0.25)
    assert among[20] < 1
    assert among[24] == pytest.approx(100 / 21)


def test_noise_on_held_drawings_is_no_move():
    rng = np.random.default_rng(0)
    steps = np.tile([20.0, 2, 2, 2], 12) + rng.uniform(0, 0.5, 48)
    assert isolation_among_moves(steps.astype(np.float32), 0.25)[24] < 1.5


def test_repeats_and_single_colours_are_told():
    meter = FrameMeter(None, 0.25, (1.5, 3.0, 0.25))
    black = np.zeros((SMALL[1], SMALL[0], 3), np.uint8)
    for time, picture in enumerate([scene(1), scene(1), scene(2), black, black]):
        meter.push(time / 24, picture)
    found = meter.features()
    assert found.repeat.tolist() == [False, True, False, False, True]
    assert found.flat.tolist() == [False, False, False, True, True]
    assert found.difference[2] == pytest.approx(np.abs(scene(2).astype(int) - scene(1)).mean(), rel=1e-5)
    assert np.isnan(found.network).all()


def test_the_network_is_not_asked_where_nothing_moves_and_is_where_something_cuts():
    asked = []

    class Model:
        def __call__(self, window):
            asked.append(len(window))
            return np.zeros((len(window), 2), np.float32)

    def run(pictures):
        asked.clear()
        meter = FrameMeter(Model(), 0.25, (1.5, 3.0, 0.25))
        for time, picture in enumerate(pictures):
            meter.push(time / 24, picture)
        meter.finish()
        return np.isnan(meter.features().network_all)

    assert run([scene(1)] * 150).all()
    assert asked == []
    skipped = run([scene(1)] * 170 + [scene(2)] * 80)
    assert not skipped[150:200].any()
    assert skipped[:100].all()


def test_small_pictures_are_let_go_of():
    meter = FrameMeter(None, 0.25, (1.5, 3.0, 0.25))
    for time in range(30):
        meter.push(time / 24, scene(time))
    wanted = meter.thumbnails(20, 30)
    meter.forget(20)
    again = meter.thumbnails(20, 30)
    assert np.array_equal(wanted.colour, again.colour)
    assert np.array_equal(wanted.grey, again.grey)
