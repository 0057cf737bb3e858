from dataclasses import replace

import numpy as np
import pytest
from cartoons import BLUE, RED, Cartoon

from animeshooter_dataset import Character
from curation.identity import Candidate, agreeing, signature
from curation.references import ReferenceConfig

RULES = ReferenceConfig()
GOLD = ((240, 200, 40), (250, 240, 150))
STILL = (160, 160, 115, 34)


def candidates(shots, appearance="somebody", wrong=()):
    """One candidate a shot; each shot is (place, colours); ``wrong`` shots mark the ground instead."""
    cartoon = Cartoon([(place, {"who": (colours, *STILL)}, 0, 1) for place, colours in shots], {"who": appearance})
    who = cartoon.script.characters[0]
    ground = np.zeros((180, 320), bool)
    ground[130:180, 40:140] = True
    found = []
    for position, (sample,) in enumerate(cartoon.view.samples):
        mask = ground if position in wrong else cartoon.masks["who", sample.frame]
        found.append(Candidate.of(who, position, sample, mask, None))
    return found, [who]


def believed(shots, appearance="somebody", wrong=(), measured=False, rules=RULES):
    found, cast = candidates(shots, appearance, wrong)
    (kept,), refused = agreeing(found, cast, rules, measured)
    assert len(kept) + len(refused) == len(shots)
    return [each.position for each in kept]


def test_a_character_that_looks_alike_in_two_places_is_believed():
    assert believed([("meadow", RED), ("dusk", RED), ("meadow", RED)]) == [0, 1, 2]


def test_what_looks_otherwise_in_one_shot_is_not():
    assert believed([("meadow", RED), ("dusk", RED), ("dusk", BLUE), ("meadow", RED)]) == [0, 1, 3]


def test_a_second_look_must_come_three_times_in_unlike_places():
    shots = [("meadow", RED), ("dusk", RED), ("meadow", RED), ("dusk", RED), ("meadow", GOLD), ("dusk", GOLD)]
    assert believed(shots) == [0, 1, 2, 3]
    assert believed([*shots, ("dusk", GOLD)]) == [0, 1, 2, 3, 4, 5, 6]
    assert believed([*shots, ("dusk", GOLD)], measured=True) == [0, 1, 2, 3]


def test_what_belongs_to_a_place_is_no_character():
    shots = [("meadow", RED)] * 3 + [("dusk", RED)] * 2
    kept = believed(shots, wrong=(0, 1, 2), rules=replace(RULES, background=1))
    assert not {0, 1, 2} & set(kept)


def test_a_description_bears_out_what_its_look_alone_does_not():
    shots = [("meadow", RED), ("meadow", RED), ("dusk", BLUE)]
    assert believed(shots) == []
    assert believed(shots, "a red hen with a cream belly") == [0, 1]
    assert believed(shots, "a red hen with a cream belly", measured=True) == [], "its words come from the same pixels"


def test_colours_of_a_background_show_no_figure():
    shots = [("meadow", RED), ("meadow", RED), ("meadow", RED)]
    found, cast = candidates(shots, wrong=(0, 1, 2))
    (kept,), refused = agreeing(found, cast, replace(RULES, background=0.3), False)
    assert kept == []
    assert believed(shots, rules=replace(RULES, background=0.3)) == [0, 1, 2]
    assert all("those of a background" in why for _, why in refused)


def test_a_lone_shot_is_believed():
    assert believed([("meadow", RED)]) == [0]


def test_nobody_gives_nothing():
    assert agreeing([], [Character(id="a", appearance="")], RULES, False) == ([[]], [])


def test_fit_says_how_much_better_than_its_surroundings_a_mask_fits_the_words():
    ((red,), _), ((wrong,), _) = (candidates([("meadow", RED)], text) for text in ("a red hen", "a green frog"))
    assert red.fit == pytest.approx(0.6, abs=0.3)
    assert wrong.fit is not None
    assert wrong.fit < 0
    assert candidates([("meadow", RED)], "a hen")[0][0].fit is None


def test_signatures_sum_to_one_and_tell_colours_apart():
    image = np.zeros((20, 20, 3), np.uint8)
    image[:, 10:] = (200, 40, 30)
    left = np.zeros((20, 20), bool)
    left[:, :10] = True
    assert signature(image, left).sum() == pytest.approx(1)
    assert np.minimum(signature(image, left), signature(image, ~left)).sum() < 0.05


def test_a_measured_figure_in_parts_is_counted_once():
    """A whole figure and its belly, each found as a figure of its own."""
    whole, cast = candidates([("meadow", RED), ("dusk", RED), ("meadow", RED)])
    part = Character(id="belly", appearance="")
    pieces = []
    for each in whole[:2]:
        mask = each.mask.copy()
        mask[:100] = False
        pieces.append(Candidate.of(part, each.position, each.sample, mask, None))
    kept, refused = agreeing([*whole, *pieces], [part, *cast], replace(RULES, relative=0), True)
    assert [len(group) for group in kept] == [0, 3]
    assert all("in the colours of who" in why for each, why in refused if each.character == "belly")
    other, _ = candidates([("meadow", BLUE), ("dusk", BLUE)])
    blue = [Candidate.of(part, each.position, each.sample, each.mask, None) for each in other]
    kept, _ = agreeing([*whole, *blue], [part, *cast], RULES, True)
    assert [len(group) for group in kept] == [2, 3]
