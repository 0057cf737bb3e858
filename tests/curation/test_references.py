from dataclasses import replace

import numpy as np
import pytest
from cartoons import BLUE, RED, Cartoon, overlap, two_friends

from animeshooter_dataset import AnnotatedBy
from curation.identity import signature
from curation.references import ReferenceConfig, ReferenceImage, clean_mask, find_references, sheet
from curation.segment import ClassicalSegmenter
from curation.verify import Verdict, outlined, touching

CONFIG = ReferenceConfig()
EVERY = ReferenceConfig(rate=9, unlike=0, outline=0, asks=99)  # looks at every frame
PAPER = ReferenceConfig.paper()


class Drawn:
    """A segmenter that answers from the truth, but for frames it was told to answer otherwise."""

    def __init__(self, cartoon, wrong=None):
        self.cartoon, self.wrong = cartoon, wrong or {}

    def study(self, script, view):
        pass

    def segment(self, shot, character, cast):
        masks = self.cartoon.masks
        return [self.wrong.get(s.frame, masks[character.id, s.frame]) for s in shot]


@pytest.fixture(scope="module")
def cartoon():
    return two_friends()


@pytest.fixture(scope="module")
def found(cartoon):
    return find_references(cartoon.script, cartoon.view, CONFIG, ClassicalSegmenter())


def test_every_character_has_references_that_show_it(cartoon, found):
    assert {image.character for image in found.images} == {"red", "blue"}
    for image in found.images:
        truth = cartoon.masks[image.character, image.frame]
        x0, y0, x1, y1 = image.box
        mask = np.zeros(truth.shape, bool)
        mask[y0:y1, x0:x1] = image.image[..., 3] > 127
        assert overlap(mask, truth) > 0.85


def test_references_come_from_as_many_shots_as_there_are(found):
    shots = {name: [i.position for i in found.images if i.character == name] for name in ("red", "blue")}
    assert set(shots["red"]) == {0, 2, 3}
    assert set(shots["blue"]) == {1, 2}
    assert len(shots["red"]) <= CONFIG.images


def test_images_are_ordered_by_character_and_quality(found):
    assert [i.character for i in found.images] == sorted((i.character for i in found.images), reverse=True)
    for name in ("red", "blue"):
        scores = [i.score for i in found.images if i.character == name]
        assert scores == sorted(scores, reverse=True)
        assert all(0 < score <= 1 for score in scores)


def test_cut_outs_are_clear_outside_and_keep_their_colours_inside(cartoon, found):
    frames = {s.frame: s.image for shot in cartoon.view.samples for s in shot}
    for image in found.images:
        alpha = image.image[..., 3]
        assert (image.image[alpha == 0] == 0).all()
        x0, y0, x1, y1 = image.box
        source = frames[image.frame][y0:y1, x0:x1]
        inside = alpha == 255
        assert inside.mean() > 0.3
        assert np.abs(image.image[..., :3][inside].astype(int) - source[inside]).max() <= 1


def test_finding_references_twice_gives_the_same(cartoon, found):
    again = find_references(cartoon.script, cartoon.view, CONFIG, ClassicalSegmenter())
    assert again.rejected == found.rejected
    assert [(i.frame, i.box, i.score) for i in again.images] == [(i.frame, i.box, i.score) for i in found.images]
    assert all((a.image == b.image).all() for a, b in zip(again.images, found.images))


def blob(*circles):
    import cv2

    mask = np.zeros((200, 200), np.uint8)
    for x, y, r in circles:
        cv2.circle(mask, (x, y), r, 1, -1)
    return mask > 0


@pytest.mark.parametrize(
    ("mask", "reason"),
    [
        (np.zeros((200, 200), bool), "nothing is left"),
        (blob((100, 100, 15)), "under 5%"),
        (np.ones((200, 200), bool), "over 90%"),
        (blob(*[(20 + 32 * i, 20, 6) for i in range(6)], (100, 110, 60)), "7 connected components"),
        (blob((100, 110, 60), (20, 20, 8), (60, 20, 8)), None),
    ],
)
def test_mask_rules_of_the_paper(mask, reason):
    clean, why = clean_mask(mask, PAPER)
    assert (why is None) if reason is None else reason in (why or "")
    if why is None:
        assert not clean[:30, :80].any(), "only the largest component stays"


def test_masks_with_many_holes_have_too_many_contours():
    mask = np.ones((200, 200), bool)
    mask[:10] = False
    for i in range(16):
        mask[30 + 40 * (i // 4) : 40 + 40 * (i // 4), 30 + 40 * (i % 4) : 40 + 40 * (i % 4)] = False
    assert "17 contours" in (clean_mask(mask, CONFIG)[1] or "")


def test_small_specks_and_gaps_are_cleaned_away():
    mask = blob((100, 100, 60))
    mask[100, 60:140] = False
    mask[5, 5] = True
    clean, why = clean_mask(mask, CONFIG)
    assert why is None
    assert clean[100, 70:130].all()
    assert not clean[5, 5]


def test_a_mask_of_other_colours_than_in_the_other_shots_is_rejected(cartoon):
    sky = np.zeros((180, 320), bool)
    sky[5:80, 20:140] = True
    found = find_references(cartoon.script, cartoon.view, EVERY, Drawn(cartoon, {0: sky}))
    assert [r.reason for r in found.rejected if r.frame == 0] == [r.reason for r in found.rejected]
    assert "unlike the character's other shots" in found.rejected[0].reason


def test_a_mask_that_shows_another_character_is_rejected(cartoon):
    wrong = {s.frame: cartoon.masks["blue", s.frame] for s in cartoon.view.samples[2]}
    drawn = Drawn(cartoon)
    drawn.segment = lambda shot, character, cast: [
        wrong[s.frame] if character.id == "red" and s.frame in wrong else cartoon.masks[character.id, s.frame] for s in shot
    ]
    found = find_references(cartoon.script, cartoon.view, EVERY, drawn)
    assert {r.frame for r in found.rejected} >= set(wrong)
    assert all(i.position != 2 for i in found.images if i.character == "red")


def test_a_thing_that_stays_in_one_place_is_no_character(cartoon):
    ground = np.zeros((180, 320), bool)
    ground[120:180, 40:300] = True
    meadow = {s.frame: ground for k in (0, 2) for s in cartoon.view.samples[k]}
    drawn = Drawn(cartoon)
    drawn.segment = lambda shot, character, cast: [
        meadow.get(s.frame, cartoon.masks["red", s.frame]) if character.id == "red" else None for s in shot
    ]
    found = find_references(cartoon.script, cartoon.view, replace(EVERY, relative=0, agreement=0.4, look=0.4), drawn)
    assert {image.position for image in found.images} <= {3}
    assert any("in other places" in each.reason for each in found.rejected)


def test_a_measured_figure_must_show_in_two_shots(cartoon):
    measured = replace(cartoon.script, annotator=AnnotatedBy(kind="measure"))
    alone = {s.frame: None for k in (2, 3) for s in cartoon.view.samples[k]}
    drawn = Drawn(cartoon)
    drawn.segment = lambda shot, character, cast: [
        alone.get(s.frame, cartoon.masks[character.id, s.frame]) if character.id == "red" else None for s in shot
    ]
    assert {image.position for image in find_references(cartoon.script, cartoon.view, CONFIG, drawn).images} == {0}
    found = find_references(measured, cartoon.view, CONFIG, drawn)
    assert found.images == []
    assert "two shots" in next(each.reason for each in found.rejected if each.position == 0)


def test_where_most_masks_of_a_shot_are_wrong_the_rest_is_not_trusted(cartoon):
    shot = cartoon.view.samples[0]
    sky = np.zeros((180, 320), bool)
    sky[5:80, 20:140] = True
    found = find_references(
        cartoon.script, cartoon.view, replace(EVERY, look=0.1), Drawn(cartoon, {s.frame: sky for s in shot[1:]})
    )
    reasons = {each.frame: each.reason for each in found.rejected if each.position == 0}
    assert "most masks of the shot" in reasons[shot[0].frame]


def test_a_mask_that_ends_in_a_smooth_area_is_rejected(cartoon):
    grown = np.zeros((180, 320), bool)
    grown[20:170, 60:300] = True
    image = np.full((180, 320, 3), 120, np.uint8)
    image[60:120, 120:200] = 220
    assert outlined(image, grown) < 0.1
    assert outlined(image, image[..., 0] == 220) > 0.9


def test_every_frame_gives_an_image_or_a_reason(cartoon):
    config = replace(EVERY, images=100, per_shot=100)
    found = find_references(cartoon.script, cartoon.view, config, ClassicalSegmenter())
    looked_at = sum(len(shot.characters) * len(cartoon.view.samples[p]) for p, shot in enumerate(cartoon.script.shots))
    assert len(found.images) + len(found.rejected) == looked_at


def test_a_figure_cut_off_by_the_frame_ranks_behind_a_whole_one():
    cartoon = Cartoon(
        [("meadow", {"red": (RED, 160, 160, 110, 40)}, 0, 3), ("meadow", {"red": (RED, 160, 160, 175, 40)}, 0, 3)],
        {"red": "a red hen"},
    )
    found = find_references(cartoon.script, cartoon.view, ReferenceConfig(relative=0), Drawn(cartoon))
    assert found.images[0].position == 0
    assert touching(cartoon.masks["red", 0]) == 0 < touching(cartoon.masks["red", 36])


def test_black_shots_and_shots_without_characters_give_nothing():
    cartoon = Cartoon([("meadow", {"red": (RED, 90, 200, 120, 34)}, 0, 4), ("meadow", {}, 0, 2)], {"red": "red"}, black=(0,))
    found = find_references(cartoon.script, cartoon.view, CONFIG, ClassicalSegmenter())
    assert found.images == []
    assert {r.reason for r in found.rejected} == {"not found by the segmenter"}


def test_signatures_tell_figures_apart(cartoon):
    frames = {s.frame: s.image for shot in cartoon.view.samples for s in shot}
    red, again = (signature(frames[f], cartoon.masks["red", f]) for f in (0, 12))
    blue = signature(frames[144], cartoon.masks["blue", 144])
    assert np.minimum(red, again).sum() > 0.9
    assert np.minimum(red, blue).sum() < 0.4


def reference(name, height, width, value):
    return ReferenceImage(name, 0, 0, (0, 0, width, height), np.full((height, width, 4), value, np.uint8), 1.0)


def test_the_sheet_shows_every_image_in_its_box():
    images = [reference("a", 30, 20, 10), reference("a", 50, 40, 20), reference("b", 10, 90, 30)]
    canvas, boxes = sheet(images)
    assert canvas.dtype == np.uint8
    assert canvas.shape[2] == 4
    covered = np.zeros(canvas.shape[:2], int)
    for image, (x0, y0, x1, y1) in zip(images, boxes):
        np.testing.assert_array_equal(canvas[y0:y1, x0:x1], image.image)
        covered[y0:y1, x0:x1] += 1
    assert covered.max() == 1
    assert (canvas[covered == 0] == 0).all()
    assert boxes[2][1] >= boxes[1][3], "a row a character"


def test_an_empty_sheet_is_small_and_transparent():
    canvas, boxes = sheet([])
    assert canvas.shape == (16, 16, 4)
    assert not canvas.any()
    assert boxes == []


def test_large_cut_outs_are_scaled_down():
    cartoon = Cartoon([("meadow", {"blue": (BLUE, 150, 170, 110, 60)}, 0, 3)], {"blue": "blue"})
    found = find_references(cartoon.script, cartoon.view, ReferenceConfig(side=64), Drawn(cartoon))
    assert max(found.images[0].image.shape[:2]) == 64


class Strict:
    """A verifier that refuses some frames, and remembers which it was shown."""

    name = "strict"

    def __init__(self, refused=()):
        self.refused, self.shown = set(refused), []

    def verify(self, cutout, frame, character):
        self.shown.append((character.id, cutout))
        x0, y0, x1, y1 = cutout.box
        assert cutout.mask[y0:y1, x0:x1].any()
        return Verdict(len(self.shown) not in self.refused, "not neutral")


def test_the_verifier_is_shown_the_best_first_and_no_more_than_needed(cartoon):
    strict = Strict()
    found = find_references(cartoon.script, cartoon.view, replace(EVERY, images=2), Drawn(cartoon), strict)
    assert len(strict.shown) == len(found.images) == 4
    strict = Strict(refused=[1])
    again = find_references(cartoon.script, cartoon.view, replace(EVERY, images=2), Drawn(cartoon), strict)
    assert len(strict.shown) == 5
    assert [image.verifier for image in again.images] == ["strict"] * 4
    (refusal,) = again.rejected
    assert refusal.reason == "verifier: not neutral"
    assert (refusal.character, refusal.frame) not in {(image.character, image.frame) for image in again.images}


def test_a_verifier_that_refuses_everything_is_not_asked_for_ever(cartoon):
    strict = Strict(refused=range(1000))
    found = find_references(cartoon.script, cartoon.view, replace(EVERY, asks=3), Drawn(cartoon), strict)
    assert found.images == []
    assert [name for name, _ in strict.shown] == ["red"] * 3 + ["blue"] * 3


def test_frames_are_looked_at_once_a_second(cartoon):
    looked = []
    drawn = Drawn(cartoon)
    drawn.segment = lambda shot, character, cast: looked.append(len(shot)) or [None] * len(shot)
    find_references(cartoon.script, cartoon.view, CONFIG, drawn)  # shots of 3 s, two samples a second
    assert looked == [3] * 5
    looked.clear()
    find_references(cartoon.script, cartoon.view, replace(CONFIG, rate=0.1), drawn)
    assert looked == [2] * 5


def test_a_second_image_of_a_shot_must_be_unlike_the_first():
    size = {"red": (RED, 100, 110, 110, 34)}, {"red": (RED, 100, 110, 110, 40)}
    cartoon = Cartoon([("meadow", size[0], 0, 3), ("dusk", size[1], 0, 3)], {"red": "a red hen"})
    found = find_references(cartoon.script, cartoon.view, ReferenceConfig(), Drawn(cartoon))
    assert sorted(image.position for image in found.images) == [0, 1], "other shots count, however alike"
    assert {r.reason for r in found.rejected} == {"much like a better one of its shot"}


def test_agreement_is_the_likeness_to_the_other_images(cartoon, found):
    for image in found.images:
        assert image.agreement is None or 0.8 < image.agreement <= 1
    alone = Cartoon([("meadow", {"red": (RED, 100, 110, 110, 34)}, 0, 1)], {"red": "a red hen"})
    (image,) = find_references(alone.script, alone.view, CONFIG, Drawn(alone)).images
    assert image.agreement is None


def test_the_papers_rules_can_be_asked_for():
    paper = ReferenceConfig.paper(images=9)
    rules = (paper.kernel, paper.max_contours, paper.max_components, paper.min_share, paper.max_share, paper.rate)
    assert rules == (5, 15, 5, 0.05, 0.90, 1.0)
    assert (paper.images, paper.verifier) == (9, "judge")
