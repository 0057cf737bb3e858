import cv2
import numpy as np
import pytest

from curation.changes import SMALL, FrameMeter
from curation.transitions import GradualConfig, camera_moved, find_gradual, same_scene

WIDTH, HEIGHT = SMALL
BLACK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def scene(seed, offset=0):
    """A painted world with a ball that moves with ``offset``."""
    rng = np.random.default_rng(seed)
    image = np.full((HEIGHT, WIDTH, 3), rng.integers(40, 216, 3), np.uint8)
    for _ in range(14):
        corner = rng.integers(0, SMALL)
        cv2.rectangle(image, corner.tolist(), (corner + rng.integers(10, 50, 2)).tolist(), rng.integers(0, 256, 3).tolist(), -1)
    cv2.circle(image, (20 + offset % 120, 45), 9, rng.integers(0, 256, 3).tolist(), -1)
    return image


def shot(seed, count=40):
    return [scene(seed, 2 * i) for i in range(count)]


def mix(a, b, share):
    return cv2.addWeighted(a, 1 - share, b, share, 0)


def found(pictures, cuts=(), network=None):
    """Transitions in pictures at 24 frames a second."""
    meter = FrameMeter(None, 0.25, (1.5, 3.0, 0.25))
    for index, picture in enumerate(pictures):
        meter.push(index / 24, picture)
    frames = meter.features()
    if network is not None:
        frames.network_all[:] = network
    return find_gradual(meter.thumbnails(0, len(meter)), frames, list(cuts), GradualConfig())


def shares(count):
    return (np.arange(count) + 1) / (count + 1)


def wipe(a, b, share):
    return np.where((np.arange(WIDTH) < share * WIDTH)[None, :, None], b, a)


def slide(a, b, share):
    return np.concatenate([a, b], axis=1)[:, round(share * WIDTH) :][:, :WIDTH]


def iris(a, b, share):
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.where((np.hypot(x - WIDTH / 2, y - HEIGHT / 2) < share * np.hypot(WIDTH, HEIGHT) / 2)[..., None], b, a)


@pytest.mark.parametrize("kind", [mix, wipe, slide, iris])
@pytest.mark.parametrize("count", [12, 30])
def test_ways_from_one_scene_to_another(kind, count):
    between = [kind(scene(1, 80), scene(2), share) for share in shares(count)]
    ((first, last),) = found(shot(1) + between + shot(2))
    assert abs(first - 40) <= 3
    assert abs(last - (39 + count)) <= 3


def test_a_fade_through_black_is_one_transition_whether_or_not_it_gets_there():
    out, into = [mix(scene(1, 80), BLACK, s) for s in shares(10)], [mix(BLACK, scene(2), s) for s in shares(10)]
    for held in ([BLACK] * 4, []):
        ((first, last),) = found(shot(1) + out + held + into + shot(2))
        assert abs(first - 40) <= 3
        assert abs(last - (59 + len(held))) <= 3


def test_a_long_black_between_fades_parts_them():
    out, into = [mix(scene(1, 80), BLACK, s) for s in shares(10)], [mix(BLACK, scene(2), s) for s in shares(10)]
    spans = found(shot(1) + out + [BLACK] * 30 + into + shot(2))
    assert len(spans) == 2
    assert spans[0][1] <= 51
    assert spans[1][0] >= 78


def test_a_slow_zoom_is_no_transition():
    pictures = []
    for i in range(100):
        scale = 1 + 0.01 * i
        matrix = np.array([[scale, 0, (1 - scale) * WIDTH / 2], [0, scale, (1 - scale) * HEIGHT / 2]])
        pictures.append(cv2.warpAffine(cv2.GaussianBlur(scene(1), (0, 0), 2), matrix, SMALL))
    assert found(pictures) == []
    grey = [cv2.resize(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), (64, 36)) for picture in (pictures[0], pictures[40])]
    assert camera_moved(*grey) > 0.9


def test_a_pan_is_no_transition():
    wide = cv2.GaussianBlur(np.concatenate([scene(seed) for seed in range(1, 4)], axis=1), (0, 0), 2)
    assert found([wide[:, 3 * i : 3 * i + WIDTH] for i in range(100)]) == []


def test_light_going_off_over_one_scene_is_no_transition():
    dim = (scene(1) * 0.3).astype(np.uint8)
    assert found([scene(1)] * 30 + [mix(scene(1), dim, s) for s in shares(16)] + [dim] * 30) == []


def test_what_passes_by_is_no_transition():
    pictures = []
    for i in range(90):
        picture = scene(1, i)
        left = (i - 30) * 8 - 80
        picture[:, max(0, left) : max(0, left + 80)] = (40, 30, 35)
        pictures.append(picture)
    assert found(pictures) == []


def test_no_transition_reaches_over_a_cut():
    between = [mix(scene(1, 80), scene(2), share) for share in shares(12)]
    assert found(shot(1) + between[:6] + between[6:] + shot(2), cuts=[46]) == []


def test_a_whip_to_another_place_is_believed_when_the_network_sees_a_transition():
    both = np.concatenate([scene(1, 80), scene(2)], axis=1)
    blurred = cv2.blur(both, (61, 1))
    between = [blurred[:, int(s * WIDTH) : int(s * WIDTH) + WIDTH] for s in shares(6)]
    pictures = shot(1) + between + shot(2)
    network = np.zeros(len(pictures))
    network[39:47] = 0.7
    ((first, last),) = found(pictures, network=network)
    assert (first, last) == (39, 46)


def test_one_scene_in_other_light_is_the_same_scene():
    one, other = (cv2.resize(cv2.cvtColor(scene(seed), cv2.COLOR_RGB2GRAY), (64, 36)) for seed in (1, 2))
    assert same_scene(one, (one * 0.5).astype(np.uint8), GradualConfig())
    assert not same_scene(one, other, GradualConfig())
