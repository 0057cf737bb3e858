import numpy as np
import pytest
from cartoons import RED, Cartoon, overlap, two_friends

from animeshooter_dataset import Character
from curation.colours import affinity, colours_in, hex_of, name_of, to_lab
from curation.foreground import Palette, align, analyse, analyse_story, look, shrink, surroundings
from curation.script import Sample
from curation.segment import ClassicalSegmenter, enlarge, snap, trim


@pytest.fixture(scope="module")
def story():
    cartoon = two_friends()
    segmenter = ClassicalSegmenter()
    segmenter.study(cartoon.script, cartoon.view)
    return cartoon, segmenter


def masks(cartoon, segmenter, name):
    cast = {each.id: each for each in cartoon.script.characters}
    for position, shot in enumerate(cartoon.script.shots):
        if name in shot.characters:
            samples = cartoon.view.samples[position]
            found = segmenter.segment(samples, cast[name], [cast[each] for each in shot.characters])
            assert len(found) == len(samples)
            yield from ((position, sample, mask) for sample, mask in zip(samples, found))


@pytest.mark.parametrize("name", ["red", "blue"])
def test_masks_match_the_drawn_figures(story, name):
    scores = [
        0.0 if mask is None else overlap(mask, story[0].masks[name, sample.frame]) for _, sample, mask in masks(*story, name)
    ]
    assert np.median(scores) >= 0.9
    assert min(scores) >= 0.7


def test_two_characters_of_one_shot_are_told_apart(story):
    cartoon, _ = story
    shared = [(sample, mask) for position, sample, mask in masks(*story, "red") if position == 2]
    for sample, mask in shared:
        assert mask is not None
        assert (mask & cartoon.masks["blue", sample.frame]).sum() < 0.02 * mask.sum()


def test_a_character_that_is_not_there_is_not_found(story):
    cartoon, segmenter = story
    red = cartoon.script.characters[0]
    assert segmenter.segment(cartoon.view.samples[4], red, [red]) == [None] * 4


def test_a_shot_that_was_not_studied_is_segmented_by_its_own_evidence():
    cartoon = two_friends()
    red = cartoon.script.characters[0]
    found = ClassicalSegmenter().segment(cartoon.view.samples[0], red, [red])
    assert np.median([overlap(m, cartoon.masks["red", s.frame]) for m, s in zip(found, cartoon.view.samples[0])]) > 0.8


def test_hex_colours_find_a_figure_that_words_do_not_describe():
    cartoon = two_friends()
    figure = Character(id="red", appearance=f"Recurring foreground figure, mostly red ({hex_of(np.array(RED[0]))})")
    found = ClassicalSegmenter().segment(cartoon.view.samples[3], figure, [figure])
    assert np.median([overlap(m, cartoon.masks["red", s.frame]) for m, s in zip(found, cartoon.view.samples[3])]) > 0.8


def test_one_still_frame_is_enough_for_a_figure_that_stands_out():
    cartoon = Cartoon([("meadow", {"red": (RED, 150, 150, 120, 34)}, 0, 1)], {"red": "a red hen"})
    red = cartoon.script.characters[0]
    (mask,) = ClassicalSegmenter().segment(cartoon.view.samples[0], red, [red])
    assert mask is not None
    assert overlap(mask, cartoon.masks["red", 0]) > 0.8


def test_black_frames_and_empty_shots_give_no_mask():
    red = Character(id="red", appearance="a red hen")
    black = [Sample(frame, np.zeros((180, 320, 3), np.uint8)) for frame in range(3)]
    assert ClassicalSegmenter().segment(black, red, [red]) == [None] * 3
    assert ClassicalSegmenter().segment([], red, [red]) == []


def test_masks_have_the_size_of_their_frames_and_repeat_exactly(story):
    import cv2

    cartoon, _ = story
    red = cartoon.script.characters[0]
    large = [Sample(s.frame, cv2.resize(s.image, (854, 480))) for s in cartoon.view.samples[0]]
    first, second = (ClassicalSegmenter().segment(large, red, [red]) for _ in range(2))
    for a, b in zip(first, second):
        assert a is not None
        assert a.shape == (480, 854)
        np.testing.assert_array_equal(a, b)


def test_align_follows_the_camera():
    cartoon = Cartoon([("meadow", {}, 60, 4)], {})
    steps = align([sample.image for sample in cartoon.view.samples[0]])
    np.testing.assert_allclose([step[0, 2] for step in steps], [0, 20, 20, 20], atol=1)


def test_a_view_is_analysed_once_and_forgotten_with_it(story):
    cartoon = two_friends()
    first = analyse_story(cartoon.view)
    assert analyse_story(cartoon.view) is first
    assert analyse_story(two_friends().view) is not first
    with pytest.raises(ValueError, match="no frame"):
        analyse([[], []])


def test_colours_of_a_place_are_known_from_a_shot_in_which_the_figure_moves():
    still = {"red": (RED, 150, 150, 120, 34)}
    moving = {"red": (RED, 60, 260, 120, 34)}
    cartoon = Cartoon([("meadow", still, 0, 4), ("meadow", moving, 0, 6)], {"red": "a red hen"})
    study = analyse([[sample.image for sample in shot] for shot in cartoon.view.samples])
    shots = [shot for shot in study.shots if shot is not None]
    lively = surroundings(shots, study.palette)[0][shots[0].labels[0]]
    truth = shrink(np.dstack([cartoon.masks["red", 0]] * 3).astype(np.uint8) * 255)[..., 0] > 127
    assert lively[truth].mean() > 0.6
    assert lively[~truth].mean() < -0.3


def test_a_place_in_the_colours_of_a_character_is_not_taken_for_it():
    cartoon = Cartoon([("meadow", {"red": (RED, 60, 260, 120, 34)}, 40, 6)], {"red": "a red hen"})
    frog = Character(id="frog", appearance="a light green frog")
    shot = cartoon.view.samples[0]
    assert [mask is None for mask in ClassicalSegmenter().segment(shot, frog, [frog])] == [True] * 6


def test_what_moves_is_foreground_under_a_panning_camera():
    cartoon = Cartoon([("meadow", {"red": (RED, 60, 260, 120, 30)}, 60, 7)], {"red": "red"})
    images = [sample.image for sample in cartoon.view.samples[0]]
    shot = look(images, Palette(images))
    truth = shrink(np.dstack([cartoon.masks["red", 36]] * 3).astype(np.uint8) * 255)[..., 0] > 127
    assert shot.moving[3][truth].mean() > 0.8
    assert shot.moving[3][~truth].mean() < 0.05


def test_trim_takes_leaked_background_and_keeps_bounded_parts():
    labels = np.zeros((60, 80), np.uint8)
    labels[20:50, 20:50] = 1  # the figure
    labels[30:36, 30:36] = 0  # an eye in the background's colour, inside the figure
    mask = np.zeros((60, 80), bool)
    mask[20:50, 20:62] = True  # 12 columns of background leaked in
    own = np.array([-0.5, 0.8], np.float32)
    trimmed = trim(mask, labels, own, np.zeros((60, 80), np.float32))
    assert trimmed is not None
    assert not trimmed[:, 53:].any()
    assert trimmed[24:46, 24:46].all()


def test_enlarge_follows_the_edge_of_the_picture():
    image = np.full((360, 640, 3), 200, np.uint8)
    image[101:259, 203:437] = (180, 30, 30)
    truth = image[..., 1] == 30
    small = np.zeros((180, 320), bool)
    small[51:129, 102:218] = True
    assert overlap(enlarge(small, image), truth) > 0.985


@pytest.mark.parametrize(
    ("rgb", "name"),
    [((250, 250, 250), "white"), ((12, 12, 14), "black"), ((220, 30, 30), "red"), ((40, 80, 220), "blue"),
     ((240, 215, 60), "yellow"), ((95, 55, 25), "brown"), ((128, 128, 130), "grey"), ((20, 70, 25), "dark green")],
)  # fmt: skip
def test_colours_have_their_everyday_names(rgb, name):
    assert name_of(np.array(rgb)) == name


def test_colour_words_are_read_with_the_body_first_and_small_parts_last():
    found = colours_in("A red fox with a dark-blue scarf and green eyes, covered in snow")
    assert [round(weight, 2) for _, weight in found] == [1.0, 0.85, 0.3]
    fit = affinity(
        "A red fox with a dark-blue scarf", to_lab(np.array([[200, 40, 30], [30, 50, 120], [240, 240, 240]], np.uint8))
    )
    assert fit is not None
    assert fit[0] > 0.8
    assert fit[1] > 0.5
    assert fit[2] < 0.05
    assert affinity("a covered wagon", np.zeros((1, 3), np.float32)) is None


def glowing(radius):
    """A star-like disc in a glow that fades into a dark sky."""
    ys, xs = np.mgrid[0:135, 0:240]
    away = np.hypot(xs - 120, ys - 60)
    glow = np.clip(1 - away / (3 * radius), 0, 1)[..., None]
    image = (np.array([20, 20, 60]) + glow * np.array([90, 80, 60])).astype(np.uint8)
    image[away < radius] = (250, 210, 60)
    return image, away < radius, away < 1.7 * radius


def test_snap_leaves_the_glow_and_keeps_the_figure():
    image, figure, marked = glowing(18)
    assert overlap(marked, figure) < 0.4
    assert overlap(snap(marked, image), figure) > 0.9


def test_snap_keeps_what_ends_at_edges_already():
    image, figure, _ = glowing(18)
    np.testing.assert_array_equal(snap(figure, image), figure)
    flat = np.full((135, 240, 3), 90, np.uint8)
    np.testing.assert_array_equal(snap(figure, flat), figure)


def test_a_figure_that_never_moves_is_found_by_a_description_that_its_surroundings_do_not_fit():
    still = {"red": (RED, 160, 160, 115, 34)}
    cartoon = Cartoon([("meadow", still, 0, 4)] * 3, {"red": "a red hen"})
    for text, least in (("a red hen", 0.8), ("a hen", None)):
        hen = Character(id="red", appearance=text)
        # nothing stands apart by its motion
        found = ClassicalSegmenter(apart=1.1).segment(cartoon.view.samples[0], hen, [hen])
        if least is None:
            assert found == [None] * 4
        else:
            assert min(overlap(m, cartoon.masks["red", s.frame]) for m, s in zip(found, cartoon.view.samples[0])) > least


def test_eyes_in_the_colours_of_a_friend_stay_with_their_figure():
    white = ((235, 235, 235), (200, 200, 210))
    cartoon = Cartoon(
        [("meadow", {"red": (RED, 80, 150, 115, 34), "snow": (white, 250, 215, 115, 32)}, 0, 6)],
        {"red": "a red hen", "snow": "a white owl with light grey feathers"},
    )
    import cv2

    cast = list(cartoon.script.characters)
    samples = []
    for sample in cartoon.view.samples[0]:
        image, mask = sample.image.copy(), cartoon.masks["red", sample.frame]
        xs = np.flatnonzero(mask.any(0))
        y = int(np.flatnonzero(mask.any(1))[0]) + 14
        cv2.circle(image, (int(xs.mean()) + 14, y), 7, (235, 235, 235), -1)  # an eye at the edge of the head
        samples.append(Sample(sample.frame, image))
    found = ClassicalSegmenter().segment(samples, cast[0], cast)
    assert np.median([overlap(m, cartoon.masks["red", s.frame]) for m, s in zip(found, samples)]) > 0.88
