import numpy as np
import pytest
from cartoons import RED, background, figure

from animeshooter_dataset import Character, DataError
from curation.judge import ReferenceVerdict
from curation.script import NoAnswer
from curation.verify import (
    ClassicalVerifier,
    Cutout,
    JudgeVerifier,
    Verdict,
    box_of,
    cut_off,
    outlined,
    second_piece,
    sharpness,
    solidity,
    straightness,
    touching,
    verifier_of,
)

RED_HEN = Character(id="red", appearance="a red hen")


def scene(x=160, y=110, size=36):
    image = background("meadow", 20)
    mask = figure(image, RED, x, y, size)
    return image, mask


def cutout(image, mask):
    x0, y0, x1, y1 = box_of(mask)
    return Cutout(np.dstack([image, mask.astype(np.uint8) * 255])[y0:y1, x0:x1], mask, (x0, y0, x1, y1))


def verdict(image, mask):
    return ClassicalVerifier().verify(cutout(image, mask), image, RED_HEN)


def test_a_whole_sharp_figure_is_accepted():
    assert verdict(*scene()) == Verdict(True)


def test_a_blurred_figure_is_refused():
    import cv2

    image, mask = scene()
    assert sharpness(image, mask) > 0.85
    assert verdict(cv2.GaussianBlur(image, (0, 0), 1.0), mask).ok
    assert "blurred" in verdict(cv2.GaussianBlur(image, (0, 0), 4.0), mask).reason


def test_sharpness_does_not_depend_on_contrast():
    image, mask = scene()
    faint = (image * 0.35 + 60).astype(np.uint8)
    assert sharpness(faint, mask) == pytest.approx(sharpness(image, mask), abs=0.1)
    assert sharpness(np.full_like(image, 90), mask) == 1.0, "a flat surface tells nothing"
    assert sharpness(image, mask & False) == 0.0


@pytest.mark.parametrize(("x", "y", "ok"), [(8, 110, False), (312, 110, False), (160, 22, False), (160, 160, True)])
def test_a_figure_may_be_cut_by_the_bottom_of_the_frame_only(x, y, ok):
    image, mask = scene(x, y)
    assert touching(mask) > 0
    found = verdict(image, mask)
    assert found.ok == ok
    assert ok or "the frame cuts" in found.reason


def test_a_panel_is_no_figure():
    image, mask = scene()
    panel = mask & False
    panel[30:150, 60:140] = True
    panel |= mask  # with a figure before it
    image[panel & ~mask] = (90, 110, 130)
    assert straightness(mask) < 0.3 < 0.5 < straightness(panel)
    assert "a panel" in verdict(image, panel).reason


def test_a_torn_mask_is_refused():
    image, mask = scene(size=44)
    ring = mask & False
    ys, xs = np.mgrid[0 : mask.shape[0], 0 : mask.shape[1]]
    away = np.hypot(xs - 160, ys - 90)
    ring |= (away < 60) & (away > 50) & (xs < 190)
    assert solidity(mask) > 0.8
    assert "torn" in verdict(image, ring).reason


def test_two_figures_in_one_mask_are_refused():
    image = background("meadow", 20)
    both = figure(image, RED, 100, 110, 34) | figure(image, RED, 210, 110, 34)
    both[108:114, 100:210] = True
    assert second_piece(both) > 0.8
    assert "two pieces" in verdict(image, both).reason
    assert second_piece(scene()[1]) < 0.4


def test_measures_at_the_edges_of_their_range():
    full = np.ones((20, 30), bool)
    assert touching(full) == 1
    assert cut_off(full) == 1
    assert straightness(full) == 0, "no side lies inside the frame"
    assert solidity(full) == 1
    assert second_piece(full) == 0
    assert outlined(np.zeros((20, 30, 3), np.uint8), full) == 1


class Canned:
    """A judge that answers what it is told, and remembers what it was shown."""

    name = "openai:canned"

    def __init__(self, answer):
        self.answer, self.shown = answer, []

    def film(self, frames):
        raise NotImplementedError

    def shot(self, frames):
        raise NotImplementedError

    def reference(self, cutout, frame, character):
        self.shown.append((cutout, frame, character))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


GOOD = {"reason": "fine", "complete": True, "matches": True, "consistent": True, "neutral": True, "sharp": True}


def test_a_judge_sees_the_figure_on_white_and_its_frame():
    image, mask = scene()
    judge = Canned(ReferenceVerdict(**GOOD))
    verifier = verifier_of("judge", judge)
    assert verifier.name == "openai:canned"
    assert verifier.verify(cutout(image, mask), image, RED_HEN) == Verdict(True)
    ((shown, frame, character),) = judge.shown
    assert frame is image
    assert character == RED_HEN
    x0, y0, x1, y1 = box_of(mask)
    assert shown.dtype == np.uint8
    assert (shown[~mask[y0:y1, x0:x1]] == 255).all()
    assert (shown[mask[y0:y1, x0:x1]] == image[mask]).all()


def test_a_judge_says_which_of_the_five_criteria_fail():
    image, mask = scene()
    judge = Canned(ReferenceVerdict(**GOOD | {"complete": False, "neutral": False}))
    found = JudgeVerifier(judge).verify(cutout(image, mask), image, RED_HEN)
    assert found == Verdict(False, "the judge: not complete, not neutral")


def test_what_can_be_measured_is_not_paid_for():
    image, mask = scene(x=8)
    judge = Canned(ReferenceVerdict(**GOOD))
    assert not JudgeVerifier(judge).verify(cutout(image, mask), image, RED_HEN).ok
    assert judge.shown == []


def test_no_usable_verdict_refuses_and_no_answer_stops():
    image, mask = scene()
    found = JudgeVerifier(Canned(DataError("half a JSON"))).verify(cutout(image, mask), image, RED_HEN)
    assert not found.ok
    assert "half a JSON" in found.reason
    with pytest.raises(NoAnswer, match="429"):
        JudgeVerifier(Canned(NoAnswer("429"))).verify(cutout(image, mask), image, RED_HEN)


def test_a_wrong_spec_names_the_choices():
    assert isinstance(verifier_of("classical"), ClassicalVerifier)
    with pytest.raises(DataError, match="there are classical, judge"):
        verifier_of("nobody")
    with pytest.raises(DataError, match="no judge is configured"):
        verifier_of("judge")
