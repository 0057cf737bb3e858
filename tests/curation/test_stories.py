import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from curation.cuts import Span
from curation.stories import StoriesConfig, split_stories


def film(lengths_in_seconds, fps=10):
    ends = np.cumsum([round(length * fps) for length in lengths_in_seconds])
    starts = [0, *ends[:-1]]
    spans = [Span(int(a), int(b), int(a), int(b), "cut" if a else "start") for a, b in zip(starts, ends)]
    return spans, np.arange(ends[-1]) / fps


def seconds(stories, lengths):
    return [sum(lengths[i] for i in story) for story in stories]


def test_a_film_shorter_than_the_target_is_one_story():
    assert split_stories(*film([20, 20, 19])) == [range(3)]


def test_seventy_seconds_are_one_story_and_not_a_minute_and_a_rest():
    assert split_stories(*film([10] * 7)) == [range(7)]


def test_146_seconds_make_balanced_stories():
    lengths = [7.3] * 20
    found = seconds(split_stories(*film(lengths)), lengths)
    assert len(found) in (2, 3)
    assert max(found) - min(found) <= 7.4


def test_an_unbroken_long_shot_is_one_story():
    assert split_stories(*film([400])) == [range(1)]
    assert range(1, 2) in split_stories(*film([60, 400, 60]))


def test_no_shots_no_stories_and_a_bad_target_is_refused():
    assert split_stories([], np.zeros(0)) == []
    with pytest.raises(ValueError, match="positive"):
        split_stories(*film([5]), StoriesConfig(target_seconds=0))


def test_uneven_frame_times_count_and_not_frame_numbers():
    spans = [Span(0, 10, 0, 10, "start"), Span(10, 20, 10, 20, "cut"), Span(20, 30, 20, 30, "cut")]
    slow_start = np.r_[np.arange(10) * 6.0, 60 + np.arange(20) * 3.0]
    assert split_stories(spans, slow_start) == [range(1), range(1, 3)]


def test_no_story_but_the_first_starts_with_black():
    lengths = [5, 55, 5, 55, 5, 55]
    flat = [length == 5 for length in lengths]
    stories = split_stories(*film(lengths), flat=flat)
    assert stories == [range(3), range(3, 5), range(5, 6)]
    assert split_stories(*film(lengths)) == [range(2), range(2, 4), range(4, 6)]
    with pytest.raises(ValueError, match="one value a shot"):
        split_stories(*film(lengths), flat=[True])


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0.1, 90), min_size=1, max_size=60), st.floats(5, 120))
def test_stories_partition_the_shots_in_order(lengths, target):
    stories = split_stories(*film(lengths), StoriesConfig(target))
    assert [i for story in stories for i in story] == list(range(len(lengths)))
    assert all(len(story) for story in stories)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(1, 50), min_size=2, max_size=9))
def test_no_other_division_is_closer_to_the_target(lengths):
    lengths = [round(length, 1) for length in lengths]
    if sum(lengths) <= 60:
        return

    def cost(division):
        return sum((sum(lengths[a:b]) - 60) ** 2 for a, b in division)

    count = len(lengths)
    every = []
    for inner in itertools.product([False, True], repeat=count - 1):
        marks = [0, *[i + 1 for i, on in enumerate(inner) if on], count]
        every.append(list(itertools.pairwise(marks)))
    found = [(story.start, story.stop) for story in split_stories(*film(lengths))]
    assert cost(found) == pytest.approx(min(map(cost, every)), abs=1e-6)
