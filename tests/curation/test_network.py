import numpy as np
import pytest

torch = pytest.importorskip("torch")

from curation import network as module  # noqa: E402
from curation.network import MARGIN, STRIDE, WINDOW, Network, load_model, one_thread  # noqa: E402


def pictures(count, seed=0):
    """Four still worlds in turn."""
    worlds = np.random.default_rng(seed).integers(0, 256, (4, 9, 16, 3), dtype=np.uint8)
    worlds = np.kron(worlds, np.ones((1, 3, 3, 1), np.uint8))
    return [worlds[i // 20 % 4] for i in range(count)]


def probabilities(images, **options):
    network = Network(load_model())
    for image in images:
        network.push(image, **options)
    network.finish(**options)
    return network.probabilities(0, network.count)


def test_streamed_windows_equal_the_wheels_network_over_the_whole_film():
    images = pictures(50)
    found = probabilities(images)
    with one_thread(), torch.inference_mode():
        whole, whole_many = module.build_module().predict_frames(torch.from_numpy(np.stack(images)), quiet=True)
    assert whole.max() > 0.5
    assert np.abs(found[:, 0] - whole.numpy()).max() < 1e-3
    assert np.abs(found[:, 1] - whole_many.numpy()).max() < 1e-3


def test_the_callers_threads_do_not_change_a_digit():
    images = pictures(WINDOW - MARGIN, seed=1)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = probabilities(images)
        torch.set_num_threads(2)
        two = probabilities(images)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert np.array_equal(one, two)


def test_windows_left_out_do_not_change_the_others():
    images = pictures(2 * STRIDE + 10)
    asked = []

    def second_only(first, end):
        asked.append((first, end))
        return first == STRIDE

    part, whole = probabilities(images, wanted=second_only), probabilities(images)
    assert asked == [(0, 50), (50, 100), (100, 110)]
    assert np.isnan(part[:STRIDE]).all()
    assert np.isnan(part[2 * STRIDE :]).all()
    assert np.array_equal(part[STRIDE : 2 * STRIDE], whole[STRIDE : 2 * STRIDE])


def test_frames_not_there_are_unknown():
    network = Network(load_model())
    for image in pictures(80):
        network.push(image)
    known = network.probabilities(-2, 80)
    assert np.isnan(known[:2]).all()
    assert not np.isnan(known[2 : 2 + STRIDE]).any()
    assert np.isnan(known[2 + STRIDE :]).all()


def test_loading_the_network_leaves_global_settings_alone(monkeypatch):
    monkeypatch.setattr(module, "_MODEL", [])
    np.random.seed(5)
    before = np.random.get_state()[1].copy()
    load_model()
    assert np.array_equal(before, np.random.get_state()[1])
    assert not torch.are_deterministic_algorithms_enabled()
