"""Titles and credits: told from story at both ends of a film, and nowhere else."""

from dataclasses import fields
from itertools import pairwise

import numpy as np
import pytest

from animeshooter_dataset import ShotScores
from curation.cuts import FrameFeatures, Span
from curation.titles import TitlesConfig, find_titles

STORY = ShotScores(text_cover=0.0, contrast=48.0, black_frames=0.0)
SIGN = ShotScores(text_cover=0.02, contrast=45.0, black_frames=0.0)
TITLE = ShotScores(text_cover=0.09, contrast=40.0, black_frames=0.0)
CARD = ShotScores(text_cover=0.01, contrast=9.0, black_frames=0.6)
BLACK = ShotScores(text_cover=0.0, contrast=0.1, black_frames=1.0)
CREDITS = ShotScores(text_cover=0.3, contrast=36.0, black_frames=0.0)
NOTHING = ShotScores()


def titles(scores, lengths=None, flat=(), **settings):
    """Letters of what was found: p, e or a dot a shot; shots are 4 s long in a film of 10 frames a second."""
    lengths = lengths or [4.0] * len(scores)
    times = [0.0, *np.cumsum(lengths)]
    frames = [round(time * 10) for time in times]
    spans = [Span(start, end, start, end, "cut") for start, end in pairwise(frames)]
    whole = np.isin(np.arange(frames[-1]), [frame for shot in flat for frame in range(frames[shot], frames[shot + 1])])
    measures = {item.name: np.zeros(frames[-1], np.float32) for item in fields(FrameFeatures)}
    features = FrameFeatures(**{**measures, "flat": whole})
    found = find_titles(spans, times, scores, features, TitlesConfig(**settings))
    return "".join("." if name is None else name[0] for name in found)


def test_a_title_at_the_start_and_credits_at_the_end():
    assert titles([TITLE, *[STORY] * 10, CREDITS]) == "p..........e"


def test_leaders_belong_to_the_titles_beside_them():
    assert titles([BLACK, CARD, *[STORY] * 12, CARD, BLACK]) == "pp............ee"
    assert titles([STORY, *[STORY] * 9], flat=[0]) == "p........."


def test_a_sign_in_the_first_shot_is_story_and_little_text_on_an_empty_picture_is_a_card():
    assert titles([SIGN, *[STORY] * 9]) == ".........."
    assert titles([CARD, *[STORY] * 9]) == "p........."


def test_cards_in_the_middle_belong_to_the_story():
    assert titles([STORY, STORY, CARD, STORY, STORY, TITLE, STORY, STORY, CARD, STORY, STORY, STORY]) == "." * 12


def test_credits_are_found_before_a_last_scene_and_a_title_after_a_first_one():
    assert titles([*[STORY] * 16, BLACK, CREDITS, STORY, CARD]) == "." * 16 + "ee.e"
    assert titles([STORY, CREDITS, *[STORY] * 14]) == ".p.............."
    assert titles([STORY, CARD, *[STORY] * 14]) == "." * 16


def test_neither_takes_more_than_its_share_of_the_film():
    assert titles([CARD] * 10) == "pp......ee"
    assert titles([CARD] * 10, share=0.1) == "p........e"
    assert titles([CARD]) == "."
    assert titles([CARD, STORY], [12.0, 8.0]) == ".."


@pytest.mark.parametrize("scores", [[NOTHING] * 4, [STORY], []])
def test_films_without_text_or_without_measures_have_none(scores):
    assert titles(scores) == "." * len(scores)
