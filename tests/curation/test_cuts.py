import itertools
import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from films import truncate, write_film
from hypothesis import given, settings
from hypothesis import strategies as st

from animeshooter_dataset import DataError
from curation import cuts as module
from curation import network
from curation.cuts import CutsConfig, FilmCuts, Span, cuts_json, detect_cuts, flat_shots, shots

ALONE = CutsConfig(network=False)
HEIGHT, WIDTH = 90, 160


def scene(seed, offset=0):
    """A flat painted world with a ball that moves with ``offset``."""
    random = np.random.default_rng(seed)
    image = np.full((HEIGHT, WIDTH, 3), random.integers(40, 216, 3), np.uint8)
    for _ in range(14):
        corner, colour = random.integers(0, (WIDTH, HEIGHT)), random.integers(0, 256, 3)
        far = corner + random.integers(10, 50, 2)
        cv2.rectangle(image, corner.tolist(), far.tolist(), colour.tolist(), -1)
    cv2.circle(image, (20 + offset % 120, 45), 9, random.integers(0, 256, 3).tolist(), -1)
    return image


def shot(seed, length, speed=2, hold=1):
    return [scene(seed, speed * (i // hold * hold)) for i in range(length)]


def blend(before, after, length):
    shares = (np.arange(length) + 1) / (length + 1)
    return [((1 - s) * before.astype(float) + s * after.astype(float)).round().astype(np.uint8) for s in shares]


def film(tmp_path, pictures, **options):
    return write_film(tmp_path / "film.mp4", size=(WIDTH, HEIGHT), frames=pictures, crf=18, **options)


BLACK = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
WHITE = np.full((HEIGHT, WIDTH, 3), 255, np.uint8)


@pytest.fixture(scope="module")
def storyboard(tmp_path_factory):
    """Hard cuts, a dissolve, a fade through black and a flash; with what was drawn."""
    pictures = shot(1, 30) + shot(2, 25) + shot(3, 20, hold=2)
    cuts = [30, 55]
    dissolve = [len(pictures), len(pictures) + 11]
    pictures += blend(pictures[-1], scene(4), 12) + shot(4, 30)
    flash = len(pictures)
    pictures += [WHITE, WHITE, *blend(WHITE, scene(4, 60), 6)] + [scene(4, 60 + 2 * i) for i in range(25)]
    out = [len(pictures), len(pictures) + 9]
    pictures += blend(pictures[-1], BLACK, 10) + [BLACK] * 4
    into = [len(pictures), len(pictures) + 9]
    pictures += blend(BLACK, scene(5), 10) + shot(5, 25)
    path = write_film(tmp_path_factory.mktemp("board") / "board.mp4", size=(WIDTH, HEIGHT), frames=pictures, crf=18, fps=24)
    return path, len(pictures), cuts, [dissolve, [out[0], into[1]]], flash


@pytest.fixture(scope="module")
def detected(storyboard):
    """What is found on the storyboard with the network (True) and without (False)."""
    return {network: detect_cuts(storyboard[0], CutsConfig(network=network)) for network in (True, False)}


@pytest.mark.parametrize("network", [True, False])
def test_a_storyboard_is_read_back(storyboard, detected, network):
    _, count, cuts, gradual, flash = storyboard
    found = detected[network]
    assert found.n_frames == count
    assert found.cuts == cuts
    assert not any(first - 2 <= flash <= last for first, last in found.gradual)
    assert len(found.gradual) == len(gradual)
    for (first, last), (true_first, true_last) in zip(found.gradual, gradual, strict=True):
        assert abs(first - true_first) <= 3
        assert abs(last - true_last) <= 3
    assert all(0 <= value <= 1 for value in found.confidence)
    assert len(found.confidence) == len(cuts)
    assert np.isnan(found.frames.network).all() != network


@pytest.mark.parametrize("hold", [2, 3, 4])
def test_held_drawings_have_no_cuts_but_the_true_ones(tmp_path, hold):
    path = film(tmp_path, shot(1, 36, speed=5, hold=hold) + shot(2, 36, speed=5, hold=hold))
    found = detect_cuts(path, ALONE)
    assert found.cuts == [36]
    assert found.frames.repeat.mean() > 0.4


def test_24_frames_carried_at_30_by_repeating(tmp_path):
    drawn = shot(1, 32, speed=6) + shot(2, 32, speed=6)
    carried = [drawn[i * 4 // 5] for i in range(80)]
    assert detect_cuts(film(tmp_path, carried, fps=30), ALONE).cuts == [40]


def test_worlds_that_flash_up_behind_a_held_figure_are_no_cuts(tmp_path):
    def with_figures(seed):
        image = scene(seed)
        crowd = np.random.default_rng(99).integers(0, 256, (HEIGHT, 90, 3), dtype=np.uint8)
        image[:, 35:125] = cv2.GaussianBlur(crowd, (0, 0), 2)
        return image

    pictures = [with_figures(1)] * 20 + [with_figures(2)] * 20 + shot(3, 20)
    assert detect_cuts(film(tmp_path, pictures), ALONE).cuts == [40]


def test_a_flash_is_no_cut_but_another_picture_after_it_is(tmp_path):
    assert detect_cuts(film(tmp_path, shot(1, 20) + [WHITE] * 3 + shot(1, 20)), ALONE).cuts == []
    changed = detect_cuts(film(tmp_path, shot(1, 20) + [WHITE] * 3 + shot(2, 20)), ALONE).cuts
    assert changed == [20, 23]


def test_a_pan_drawn_on_fours_is_one_shot(tmp_path):
    wide = np.concatenate([scene(seed) for seed in range(1, 6)], axis=1)
    wide = cv2.GaussianBlur(wide, (0, 0), 2)
    pictures = [wide[:, 24 * (i // 4) : 24 * (i // 4) + WIDTH] for i in range(96)]
    assert detect_cuts(film(tmp_path, pictures), ALONE).cuts == []


def test_the_end_of_a_strobe_is_no_cut(tmp_path):
    dark = [(picture * 0.3).astype(np.uint8) for picture in shot(1, 60)]
    pictures = [dark[i] if 20 <= i < 32 and i // 2 % 2 == 0 else picture for i, picture in enumerate(shot(1, 60))]
    assert detect_cuts(film(tmp_path, pictures), ALONE).cuts == []


def test_cuts_to_and_from_black_are_cuts(tmp_path):
    assert detect_cuts(film(tmp_path, shot(1, 20) + [BLACK] * 9 + shot(2, 20)), ALONE).cuts == [20, 29]


def test_fades_at_the_start_and_end_of_a_film_leave_no_black_shot(tmp_path):
    pictures = [BLACK] * 3 + blend(BLACK, scene(1), 12) + shot(1, 30)
    pictures += blend(pictures[-1], BLACK, 12) + [BLACK] * 3
    found = detect_cuts(film(tmp_path, pictures), ALONE)
    assert found.cuts == []
    assert found.gradual[0][0] == 0
    assert found.gradual[-1][1] == len(pictures) - 1
    (only,) = shots(found)
    assert (only.start_frame, only.end_frame) == (0, len(pictures))
    assert abs(only.clean_start - 15) <= 3
    assert abs(only.clean_end - 45) <= 3


def test_a_moment_of_black_between_shots_is_no_shot(tmp_path):
    found = detect_cuts(film(tmp_path, shot(1, 20) + [BLACK] * 9 + shot(2, 20)), ALONE)
    assert shots(found) == [Span(0, 29, 0, 20, "start"), Span(29, 49, 29, 49, "cut")]
    assert found.flat == [[20, 28]]


def test_long_black_is_a_shot_of_its_own(tmp_path):
    found = detect_cuts(film(tmp_path, shot(1, 20) + [BLACK] * 40 + shot(2, 20)), ALONE)
    spans = shots(found)
    assert [(span.start_frame, span.end_frame) for span in spans] == [(0, 20), (20, 60), (60, 80)]
    assert flat_shots(found, spans) == [False, True, False]


def test_black_between_two_fades_belongs_to_the_shot_before(tmp_path):
    out, into = blend(scene(1, 38), BLACK, 10), blend(BLACK, scene(2), 10)
    found = detect_cuts(film(tmp_path, shot(1, 20) + out + [BLACK] * 20 + into + shot(2, 20)), ALONE)
    before, after = shots(found)
    assert before.end_frame == after.start_frame
    assert after.transition_in == "gradual"
    assert abs(before.clean_end - 20) <= 3
    assert abs(after.clean_start - 60) <= 3


def test_black_before_a_film_belongs_to_its_first_shot(tmp_path):
    found = detect_cuts(film(tmp_path, [BLACK] * 8 + shot(1, 20) + shot(2, 20)), ALONE)
    assert shots(found) == [Span(0, 28, 8, 28, "start"), Span(28, 48, 28, 48, "cut")]


def test_a_film_of_nothing_but_black_is_one_shot(tmp_path):
    assert shots(detect_cuts(film(tmp_path, [BLACK] * 12), ALONE)) == [Span(0, 12, 0, 12, "start")]


def test_a_picture_that_pops_in_is_a_possible_cut(tmp_path):
    def with_inset(image):
        image = image.copy()
        image[5:75, 10:110] = 255 - image[5:75, 10:110]
        return image

    pictures = shot(1, 30) + [with_inset(picture) for picture in shot(1, 60)[30:]] + shot(2, 30)
    found = detect_cuts(film(tmp_path, pictures), ALONE)
    assert found.cuts == [60]
    assert found.possible == [30]
    assert {vote.frame: vote.believed for vote in found.votes} == {30: False, 60: True}
    assert found.votes[0].held > ALONE.max_held
    assert found.votes[0].network is None


def test_a_cut_between_flat_cards(tmp_path):
    red = np.full_like(BLACK, (180, 40, 40))
    assert detect_cuts(film(tmp_path, [BLACK] * 12 + [red] * 12 + shot(1, 12)), ALONE).cuts == [12, 24]


def test_night_turning_to_day_over_one_scene_is_no_transition(tmp_path):
    night = (scene(1).astype(float) * 0.35).astype(np.uint8)
    pictures = [night] * 15 + blend(night, scene(1), 10) + [scene(1)] * 15
    found = detect_cuts(film(tmp_path, pictures), ALONE)
    assert found.cuts == []
    assert found.gradual == []


def test_a_pan_is_one_shot(tmp_path):
    wide = np.concatenate([scene(seed) for seed in range(1, 5)], axis=1)
    wide = cv2.GaussianBlur(wide, (0, 0), 2)
    pictures = [wide[:, 4 * i : 4 * i + WIDTH] for i in range(100)]
    assert detect_cuts(film(tmp_path, pictures), ALONE).cuts == []


def test_a_letterbox_does_not_hide_a_cut(tmp_path):
    def boxed(image):
        return np.where(((np.arange(HEIGHT) > 11) & (np.arange(HEIGHT) < 78))[:, None, None], image, 0).astype(np.uint8)

    assert detect_cuts(film(tmp_path, [boxed(p) for p in shot(1, 20) + shot(2, 20)]), ALONE).cuts == [20]


def test_the_shortest_films(tmp_path):
    one = detect_cuts(film(tmp_path, [scene(1)]))
    assert (one.n_frames, one.cuts, one.gradual) == (1, [], [])
    assert shots(one) == [Span(0, 1, 0, 1, "start")]
    assert detect_cuts(film(tmp_path, [BLACK] * 3), ALONE).cuts == []
    with pytest.raises(DataError, match="no frame"):
        detect_cuts([], ALONE)


def test_a_truncated_film_is_an_error_and_not_a_short_film(tmp_path):
    path = film(tmp_path, shot(1, 60))
    with pytest.raises(DataError, match="truncated"):
        detect_cuts(truncate(path, tmp_path / "half.mp4", 0.4), ALONE)


def test_frames_in_hand_give_the_same_cuts_as_the_file(storyboard):
    from curation.video import read_frames

    path, _, cuts, _, _ = storyboard
    found = detect_cuts(read_frames(path), ALONE, name="board")
    assert (found.film, found.cuts) == ("board", cuts)
    assert found.fps == pytest.approx(24)


def test_without_weights_the_cuts_still_come(storyboard, monkeypatch, caplog):
    monkeypatch.setattr(network, "_MODEL", [])
    monkeypatch.setattr(network, "build_module", lambda: (_ for _ in ()).throw(OSError("no weights")))
    assert detect_cuts(storyboard[0]).cuts == storyboard[2]
    assert "TransNetV2 cannot be loaded" in caplog.text


def test_a_long_film_decided_on_in_stretches_gives_the_same(storyboard, detected, monkeypatch):
    whole = detected[True]
    monkeypatch.setattr(module, "STRETCH", 80)
    monkeypatch.setattr(module, "CONTEXT", 80)
    parts = detect_cuts(storyboard[0])
    assert cuts_json(parts) == cuts_json(whole)
    assert parts.votes == whole.votes


def test_saved_results_load_unchanged(storyboard, tmp_path):
    found = detect_cuts(storyboard[0], ALONE)
    found.save(tmp_path / "cuts")
    again = FilmCuts.load(tmp_path / "cuts")
    assert cuts_json(again) == cuts_json(found)
    assert again.confidence == found.confidence
    assert again.votes == found.votes
    assert again.votes
    for name, value in vars(found.frames).items():
        assert np.array_equal(value, getattr(again.frames, name), equal_nan=value.dtype.kind == "f"), name
    assert sorted(path.name for path in (tmp_path / "cuts").iterdir()) == ["cuts.json", "frames.npz"]
    (tmp_path / "cuts" / "frames.npz").write_bytes(b"PK\x03\x04 no archive")
    with pytest.raises(DataError, match="run the cuts stage again"):
        FilmCuts.load(tmp_path / "cuts")


def test_json_has_exactly_the_agreed_members(storyboard):
    record = json.loads(json.dumps(cuts_json(detect_cuts(storyboard[0], ALONE))))
    assert list(record) == ["film", "fps", "n_frames", "cuts", "gradual", "possible"]
    assert record["film"] == "board.mp4"
    assert record["fps"] == 24.0


def test_shots_of_a_storyboard(storyboard):
    path, count, _, (dissolve, fade), _ = storyboard
    found = replace(detect_cuts(path, ALONE), gradual=[dissolve, fade])
    spans = shots(found)
    assert [span.transition_in for span in spans] == ["start", "cut", "cut", "gradual", "gradual"]
    assert (spans[2].clean_start, spans[2].clean_end) == (55, dissolve[0])
    assert (spans[3].start_frame, spans[3].clean_start) == (sum(dissolve) // 2 + 1, dissolve[1] + 1)
    assert spans[-1].end_frame == count


@st.composite
def boundaries(draw):
    count = draw(st.integers(1, 300))
    marks = sorted(draw(st.sets(st.integers(1, max(1, count - 1)), max_size=12)))
    cuts, gradual, after = [], [], 0
    for mark in marks:
        if mark < after or mark >= count:
            continue
        if draw(st.booleans()):
            cuts.append(mark)
            after = mark
        else:
            last = min(count - 1, mark + draw(st.integers(2, 40)))
            gradual.append([mark, last])
            after = last + 1
    return count, cuts, gradual


@settings(max_examples=200, deadline=None)
@given(boundaries())
def test_spans_cover_the_film_without_gap_or_overlap(case):
    count, cuts, gradual = case
    film_cuts = FilmCuts("f", 24.0, count, cuts, [1.0] * len(cuts), gradual, frames=None)
    spans = shots(film_cuts)
    assert spans[0].start_frame == 0
    assert spans[-1].end_frame == count
    assert all(a.end_frame == b.start_frame for a, b in itertools.pairwise(spans))
    assert {span.start_frame for span in spans} >= {cut for cut in cuts if 0 < cut < count}
    for span in spans:
        assert span.start_frame <= span.clean_start < span.clean_end <= span.end_frame


def hard_cut_f1(true, found, tolerance=1):
    """F1 of one-to-one matches at most ``tolerance`` frames apart; what falls in unclear stretches does not count."""
    left, right, hits = sorted(true["cuts"]), sorted(found["cuts"]), 0
    pairs = sorted((abs(a - b), a, b) for a in left for b in right if abs(a - b) <= tolerance)
    used_left, used_right = set(), set()
    for _, a, b in pairs:
        if a not in used_left and b not in used_right:
            used_left.add(a)
            used_right.add(b)
            hits += 1
    unclear = true["gradual"] + true.get("ambiguous", [])
    extra = [b for b in right if b not in used_right and not any(s - tolerance <= b <= e + tolerance for s, e in unclear)]
    return 2 * hits / (len(left) + hits + len(extra)) if left or extra else 1.0


@pytest.mark.skipif("ANIMESHOOTER_FILMS" not in os.environ, reason="ANIMESHOOTER_FILMS names no folder of checked films")
@pytest.mark.parametrize(
    ("name", "least"),
    [
        ("big_buck_bunny_120-258s", 0.988),
        ("caminandes2_gran_dillama", 0.933),
        ("glass_half_0-180s", 0.9),
        ("sintel_trailer_720p", 0.947),
    ],
)
def test_hard_cuts_of_real_films(name, least):
    folder = Path(os.environ["ANIMESHOOTER_FILMS"])
    truth = json.loads((folder / f"{name}.cuts.json").read_text())
    found = cuts_json(detect_cuts(folder / f"{name}.mp4"))
    assert found["n_frames"] == truth["n_frames"]
    assert hard_cut_f1(truth, found) >= least
