import re

import numpy as np
import pytest
from cartoons import BLUE, RED, Cartoon, overlap, two_friends

from animeshooter_dataset import DataError
from curation.measure import Measure, representative
from curation.references import ReferenceConfig, find_references
from curation.segment import ClassicalSegmenter


@pytest.fixture(scope="module")
def cartoon():
    return two_friends()


@pytest.fixture(scope="module")
def script(cartoon):
    return Measure().annotate(cartoon.view)


def owner(script, colour):
    return next(c.id for c in script.characters if colour in c.appearance.split("%")[0])


def test_the_script_says_that_it_is_measured(script):
    assert script.annotator.kind == "measure"
    assert script.annotator.model is None
    assert all(shot.prologue_or_epilogue is None for shot in script.shots)


def test_recurring_figures_are_found_with_their_colours_and_shots(script):
    red, blue = owner(script, "red"), owner(script, "blue")
    assert red != blue
    assert [red in shot.characters for shot in script.shots] == [True, False, True, True, False]
    assert [blue in shot.characters for shot in script.shots] == [False, True, True, False, False]


def test_measured_figures_get_references_that_show_them(cartoon, script):
    found = find_references(script, cartoon.view, ReferenceConfig(), ClassicalSegmenter())
    names = {owner(script, "red"): "red", owner(script, "blue"): "blue"}
    assert {image.character for image in found.images} >= set(names)
    for image in found.images:
        if image.character in names:
            truth = cartoon.masks[names[image.character], image.frame]
            mask = np.zeros(truth.shape, bool)
            x0, y0, x1, y1 = image.box
            mask[y0:y1, x0:x1] = image.image[..., 3] > 127
            assert overlap(mask, truth) > 0.8


def test_captions_differ_and_name_what_moves_where(script):
    for kind in ("narrative_caption", "descriptive_caption"):
        texts = [getattr(shot, kind) for shot in script.shots]
        assert len(set(texts)) == len(texts)
        assert all(text.endswith(".") and "  " not in text and "nan" not in text for text in texts)
    red = owner(script, "red")
    assert re.search(rf"{red} .*moves right by \d+ % of the width", script.shots[0].narrative_caption)
    assert "no recurring figure" in script.shots[4].narrative_caption


def test_the_camera_is_described():
    still, right, left = (
        Measure().annotate(Cartoon([("meadow", {}, pan, 6)], {}).view).shots[0].descriptive_caption for pan in (0, 60, -20)
    )
    assert "The camera is still" in still
    assert "pans right" in right
    assert "pans left" in left


def test_places_of_like_colours_are_one_scene(script):
    assert script.shots[0].scene == script.shots[2].scene is not None
    assert script.shots[1].scene == script.shots[3].scene == script.shots[4].scene is not None
    assert script.shots[0].scene != script.shots[1].scene
    assert {shot.scene for shot in script.shots} <= {scene.id for scene in script.scenes}


def test_measuring_twice_gives_the_same(cartoon, script):
    assert Measure().annotate(cartoon.view) == script


def test_figures_are_at_most_as_many_as_asked(cartoon):
    assert len(Measure(figures=1).annotate(cartoon.view).characters) == 1


def test_a_figure_of_one_shot_only_is_not_named():
    cartoon = Cartoon([("meadow", {"red": (RED, 80, 220, 120, 34)}, 0, 6), ("dusk", {}, 0, 4)], {"red": "red"})
    assert not any("red" in c.appearance for c in Measure().annotate(cartoon.view).characters)


def test_equal_black_single_frame_shots_are_measured_too():
    cartoon = Cartoon([("meadow", {}, 0, 1)] * 3, {}, black=(0, 1, 2))
    script = Measure().annotate(cartoon.view)
    assert script.characters == ()
    assert len({shot.descriptive_caption for shot in script.shots}) == 3
    assert "black (100 %)" in script.shots[0].descriptive_caption


def test_a_shot_without_frames_is_an_error_that_names_it(cartoon):
    from dataclasses import replace

    with pytest.raises(DataError, match=r"cartoon.mp4: shot 2 "):
        Measure().annotate(replace(cartoon.view, samples=[cartoon.view.samples[0], [], *cartoon.view.samples[2:]]))


def test_the_representative_window_is_the_liveliest_four_seconds():
    from dataclasses import replace

    view = Cartoon([("meadow", {}, 0, 20), ("meadow", {"blue": (BLUE, 100, 100, 120, 30)}, 0, 6)], {"blue": "b"}).view
    motion = np.ones(240)
    motion[0], motion[120:200] = 90, 8
    view = replace(view, motion=[motion, view.motion[1]])
    window = representative(view, 0)
    assert window is not None
    start, end = window
    assert end - start == pytest.approx(4)
    assert start <= 5.0 + 0.7
    assert end >= 8.3
    assert representative(view, 1) is None, "a shot of three seconds needs none"
