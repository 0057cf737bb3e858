import json
import math
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from releases import make_segment, make_shot, make_sound, make_video
from undrawn import film

from animeshooter_dataset import ShotAnnotation
from curation.align import AlignConfig, align
from curation.cuts import detect_cuts
from curation.snapping import Clock, Edges, Option, assign, edges_of, typical_offset

ROUNDINGS = {"down": math.floor, "nearest": round, "up": math.ceil}


def story(start, end, times, **told):
    """A story of shots that follow one another, from times in seconds; or of (start, end) pairs."""
    pairs = times if isinstance(times[0], tuple) else list(pairwise(times))
    return make_segment(start, end, [make_shot(*pair) for pair in pairs], **told)


def placed(cuts, *segments, fps=24.0, config=None):
    numbered = [replace(segment, number=number) for number, segment in enumerate(segments, 1)]
    return align(make_video("abcdefghijk", numbered, fps=fps), cuts, config)


def starts(result, number=0):
    return [result.spans[k].start_frame for k in result.stories[number].numbers]


def check(result, cuts):
    """What holds of every alignment."""
    assert [0, *(span.end_frame for span in result.spans)] == [*(span.start_frame for span in result.spans), cuts.n_frames]
    used = [number for each in result.stories for number in each.numbers]
    assert used == sorted(set(used))
    clock = result.stories[0].clock if result.stories else None
    for span in result.spans:
        assert span.start_frame <= span.clean_start < span.clean_end <= span.end_frame
    for each in result.stories:
        assert len(each.numbers) == len(each.script.shots) == len(each.cuts_inside) == len(each.places) == len(each.met) - 1
        assert len(set(each.places)) == len(each.places)
        for number, words in zip(each.numbers, each.script.shots):
            span = result.spans[number]
            low, high = clock.time_of(span.start_frame), clock.time_of(span.end_frame)
            if words.representative:
                assert low - 1e-6 <= words.representative[0] < words.representative[1] <= high + 1e-6
            assert all(low < time < high for time in words.possible_cuts)
            ShotAnnotation(
                key="a-000-000",
                position=0,
                start_frame=span.start_frame,
                end_frame=span.end_frame,
                start_time=low,
                end_time=high,
                clean_start_frame=span.clean_start,
                clean_end_frame=span.clean_end,
                transition_in=span.transition_in,
                annotated_start_time=words.annotated[0] if words.annotated else None,
                characters=[],
                narrative_caption="",
                descriptive_caption="",
            )
    assert all("\n" not in line and line.startswith("story ") for line in result.dropped)


# Snapping


def test_whole_seconds_are_put_on_the_cuts_that_were_meant():
    cuts = film(480, [61, 130, 299])
    result = placed(cuts, story(0, 480, [0, 2, 5, 12, 20]))
    assert starts(result) == [0, 61, 130, 299]
    assert result.stories[0].met == (True,) * 5
    assert [shot.annotated for shot in result.stories[0].script.shots] == [(0, 2), (2, 5), (5, 12), (12, 20)]
    assert not result.dropped
    check(result, cuts)


def test_where_no_cut_is_near_the_told_time_stands_to_the_frame_and_is_marked():
    result = placed(film(480, [61]), story(0, 480, [0, 2, 9, 20]))
    assert starts(result) == [0, 61, 216]
    assert result.stories[0].met == (True, True, False, True)
    assert result.evidence[0].check == "released cuts"
    assert result.evidence[0].value == 0.5
    assert "1 of 2 told shot boundaries" in result.evidence[0].detail


def test_two_boundaries_never_take_one_cut_and_the_nearer_gets_it():
    result = placed(film(480, [125]), story(0, 480, [0, 5, 6, 20]))
    assert starts(result) == [0, 125, 144]


def test_as_many_boundaries_as_possible_meet_a_cut():
    # the nearest cut to 5 s is 6 s away from nothing else: 6 s would be left with none
    result = placed(film(480, [100, 140]), story(0, 480, [0, 5, 6, 20]))
    assert starts(result) == [0, 100, 140]


@pytest.mark.parametrize("rounding", ROUNDINGS)
def test_shots_over_two_seconds_all_land_on_their_true_cut(rounding):
    for seed in range(4):
        lengths = np.random.default_rng(seed).integers(49, 200, 150)
        borders = np.cumsum([0, *lengths])
        frames = int(borders[-1])
        cuts = film(frames, [int(each) for each in borders[1:-1]])
        segments = []
        for first in range(0, 150, 15):
            edges = borders[first : first + 16]
            segments.append(
                story(int(edges[0]), int(edges[-1]), [ROUNDINGS[rounding]((each - edges[0]) / 24) for each in edges])
            )
        result = placed(cuts, *segments)
        assert [span.start_frame for span in result.spans] == borders[:-1].tolist()
        assert result.evidence[0].passed is True
        assert result.evidence[0].value == 1.0
        check(result, cuts)


def test_the_habit_of_rounding_is_measured_and_used():
    """Told a second early as a rule: then a cut just before the told time is a wrong one."""
    true = [round(24 * (5 * k + 0.9)) for k in range(1, 24)]
    false = [24 * 5 * k - 8 for k in (4, 9, 14)]
    told = [0, *(5 * k for k in range(1, 24)), 120]
    cuts = film(2880, sorted(true + false))
    result = placed(cuts, story(0, 2880, told))
    assert result.offset == pytest.approx(0.917, abs=0.05)
    assert starts(result)[1:] == true
    assert "told 0.9 s early as a rule" in result.evidence[0].detail


def test_too_few_boundaries_tell_nothing_of_habits():
    edges = Edges(edges_of(film(480, [60, 120, 240])), Clock.of(film(480), 24.0, 480))
    assert typical_offset([2, 4.5, 9.5], edges) is None


def test_a_gradual_transition_is_a_boundary_and_stays_out_of_the_clean_frames():
    result = placed(film(480, gradual=[[110, 129]]), story(0, 480, [0, 5, 20]))
    before, after = result.spans
    assert (before.end_frame, before.clean_end, after.clean_start, after.transition_in) == (120, 110, 130, "gradual")


def test_hard_cuts_inside_a_told_shot_are_counted_and_recorded():
    result = placed(film(480, [61, 130, 299]), story(0, 480, [0, 12, 20]))
    assert starts(result) == [0, 299]
    assert result.stories[0].cuts_inside == (2, 0)
    assert result.stories[0].script.shots[0].possible_cuts == (round(61 / 24, 6), round(130 / 24, 6))


# Frame rates and stories


def test_equal_rates_map_frame_by_frame_even_when_told_with_two_decimals():
    fps = 24000 / 1001
    clock = Clock.of(film(30000, fps=fps), 23.98, 30000)
    assert clock.exact
    assert clock.frame_at(clock.seconds(28765)) == clock.picture(28765) == 28765


def test_another_rate_is_mapped_by_time():
    true = [61, 130, 299]
    cuts = film(600, [math.ceil(frame * 30 / 24) for frame in true], fps=30.0)
    result = placed(cuts, story(0, 480, [0, 2, 5, 12, 20]), fps=24.0)
    assert starts(result) == [0, *cuts.cuts]
    assert not result.stories[0].clock.exact
    assert "30.000 frames a second where the release counts 24.000" in result.evidence[2].detail


def test_an_unsteady_film_is_mapped_by_its_time_stamps():
    """A film that leaves out the repeated pictures of its first half: half as many frames there, the same times."""
    pts = [*(k / 12 for k in range(60)), *(5 + k / 24 for k in range(120))]
    cuts = film(180, [30, 84], fps=18.0, pts=pts)
    result = placed(cuts, story(0, 144, [0, 2, 6]), story(144, 240, [0, 4]), fps=24.0)
    assert starts(result) == [0, 30]
    assert starts(result, 1) == [84]
    check(result, cuts)


def test_a_film_that_ends_on_the_releases_last_frame_is_counted_by_frames():
    assert Clock.of(film(1000, fps=29.8), 30.0, 1000).exact
    assert not Clock.of(film(1000, fps=29.8), 30.0, 900).exact


@pytest.mark.parametrize("rule", [lambda k: math.floor(k * 0.8), lambda k: math.ceil(k * 0.8 + 0.4 - 1e-9) - 1])
def test_a_picture_that_a_faster_film_repeats_is_found(rule):
    """24 pictures a second carried at 30, each frame the last one begun or the nearest."""
    clock = Clock.of(film(300, fps=30.0), 24.0, 200)
    assert all(rule(clock.picture(number)) == number for number in range(200))


def test_a_picture_of_a_slower_film_is_the_nearest_in_time():
    clock = Clock.of(film(240, fps=24.0), 25.0, 200)
    assert all(clock.picture(round(frame * 25 / 24)) == frame for frame in range(230))
    assert clock.picture(251) is None


def test_a_held_picture_is_the_one_on_screen():
    clock = Clock.of(film(80, fps=8.0), 24.0, 200)
    assert [clock.picture(number) for number in range(7)] == [0, 0, 0, 1, 1, 1, 2]


def test_story_borders_snap_to_a_cut_within_a_few_frames_and_share_it():
    cuts = film(960, [238, 481])
    result = placed(cuts, story(0, 240, [0, 10]), story(240, 480, [0, 10]), story(480, 957, [0, 19]))
    assert [span.start_frame for span in result.spans] == [0, 238, 481]
    assert result.spans[-1].end_frame == 960
    assert all(all(each.met) for each in result.stories)


def test_stretches_of_no_story_are_spans_that_no_story_uses():
    cuts = film(960, [240, 480])
    result = placed(cuts, story(240, 480, [0, 10]))
    assert [(span.start_frame, span.end_frame) for span in result.spans] == [(0, 240), (240, 480), (480, 960)]
    assert result.stories[0].numbers == range(1, 2)
    check(result, cuts)


def test_a_story_past_the_end_is_clamped_or_left_out():
    cuts = film(960, [240])
    result = placed(cuts, story(0, 240, [0, 10]), story(240, 975, [0, 15, 30]))
    assert result.spans[-1].end_frame == 960
    assert len(result.stories) == 2
    result = placed(cuts, story(0, 240, [0, 10]), story(240, 1200, [0, 15, 40]))
    assert len(result.stories) == 1
    assert result.dropped == ("story 2, 10.0 s to 50.0 s of the film, is left out: the film ends at 40.0 s",)
    assert result.evidence[2].passed is False
    assert "shorter than the annotated video" in result.evidence[2].detail
    check(result, cuts)


def test_of_overlapping_stories_the_earlier_has_the_frames():
    cuts = film(960, [300])
    result = placed(cuts, story(0, 480, [0, 12, 20]), story(240, 960, [0, 8, 20, 30]), story(300, 470, [0, 5]))
    assert [(result.spans[each.numbers[0]].start_frame, each.places) for each in result.stories] == [(0, (0, 1)), (480, (1, 2))]
    assert result.dropped == (
        "story 3, 12.5 s to 19.6 s of the film, is left out: its frames belong to the story before",
        "story 2, shot 1 of 3, told from 00:00 to 00:08, is left out: those frames belong to the story before",
    )
    check(result, cuts)


# Told times that do not follow one another


def test_a_short_tail_without_a_cut_belongs_to_the_last_shot():
    """As in the official release, where stories end up to 1.4 s after their last shot."""
    cuts = film(480, [240])
    result = placed(cuts, story(0, 480, [0, 10, 18.6]))
    assert result.spans[-1].clean_end == 480
    assert not result.dropped


def test_a_cut_in_a_short_tail_decides():
    cuts = film(480, [240, 450])
    result = placed(cuts, story(0, 480, [0, 10, 18.6]))
    assert (result.spans[-1].end_frame, result.spans[-1].clean_end) == (480, 450)
    assert not result.dropped


def test_a_long_tail_stays_out_of_the_clean_frames_and_is_told():
    cuts = film(480, [240])
    result = placed(cuts, story(0, 480, [0, 10, 16]))
    assert (result.spans[-1].end_frame, result.spans[-1].clean_end) == (480, 384)
    assert result.dropped[0].startswith("story 1, 00:16 to 00:20, is told of by no shot: those frames stay in the clips beside")


def test_a_gap_is_divided_at_its_cuts():
    cuts = film(480, [100, 250])
    result = placed(cuts, story(0, 480, [(0, 4), (10, 20)]))
    first, second = result.spans
    assert (first.end_frame, first.clean_end, second.clean_start) == (250, 100, 250)
    assert "00:04.2 to 00:10.4" in result.dropped[0]


def test_a_cut_in_the_middle_of_a_gap_decides_whose_frames_are_whose():
    first, second = placed(film(480, [170]), story(0, 480, [(0, 4), (10, 20)])).spans
    assert (first.end_frame, first.clean_end, second.clean_start) == (170, 96, 240)


def test_a_gap_with_a_cut_at_its_start_alone_belongs_to_the_later_clip():
    first, second = placed(film(480, [100]), story(0, 480, [(0, 4), (10, 20)])).spans
    assert (first.end_frame, first.clean_end, second.clean_start) == (100, 100, 240)


def test_a_short_gap_without_a_cut_stays_out_of_the_clean_frames():
    first, second = placed(film(480), story(0, 480, [(0, 4), (5, 20)])).spans
    assert (first.clean_end, first.end_frame, second.clean_start) == (96, 120, 120)


def test_inclusive_last_seconds_are_no_gaps():
    cuts = film(480, [115, 235])
    result = placed(cuts, story(0, 480, [(0, 4), (5, 9), (10, 20)]))
    assert starts(result) == [0, 115, 235]
    assert [span.clean_end for span in result.spans] == [115, 235, 480]


def test_a_late_first_shot_leaves_frames_that_nobody_describes():
    first = placed(film(480, [240]), story(0, 480, [(4, 10), (10, 20)])).spans[0]
    assert (first.start_frame, first.clean_start) == (0, 96)


@pytest.mark.parametrize(("cuts", "first"), [([20, 240], 20), ([240], 0)])
def test_a_first_shot_told_to_start_at_the_first_second_starts_with_the_story_unless_a_cut_decides(cuts, first):
    span = placed(film(480, cuts), story(0, 480, [(1, 10), (10, 20)])).spans[0]
    assert (span.start_frame, span.clean_start) == (0, first)


@pytest.mark.parametrize(("cuts", "border"), [([260], 260), ([], 192)])
def test_an_overlap_ends_at_its_cut_or_where_the_later_shot_starts(cuts, border):
    result = placed(film(480, cuts), story(0, 480, [(0, 12), (8, 20)]))
    assert starts(result) == [0, border]
    assert not result.dropped


def test_reversed_and_empty_times_take_the_room_that_is_left():
    result = placed(film(480, [120, 250]), story(0, 480, [(0, 5), (10, 5), (10, 20)]))
    assert starts(result) == [0, 120, 250]
    result = placed(film(480, [120, 250]), story(0, 480, [(0, 5), (5, 5), (5, 20)]))
    assert starts(result) == [0, 120]
    assert result.stories[0].places == (0, 2)
    line = (
        "story 1, shot 2 of 3, told from 00:05 to 00:05, is left out: its times are no stretch and its neighbours leave no room"
    )
    assert result.dropped == (line,)


def test_shots_past_the_storys_end_are_cut_or_left_out():
    result = placed(film(480, [240]), story(0, 480, [(0, 10), (10, 25), (25, 30)]))
    assert starts(result) == [0, 240]
    assert result.dropped == (
        "story 1, shot 2 of 3, told from 00:10 to 00:25, is cut at the story's end, 00:20",
        "story 1, shot 3 of 3, told from 00:25 to 00:30, is left out: the story ends at 00:20",
    )


def test_shots_told_out_of_order_are_put_in_order_and_doubles_left_out():
    result = placed(film(480, [240]), story(0, 480, [(10, 20), (0, 10), (10, 20)]))
    assert result.stories[0].places == (1, 0)
    assert "shot 3 of 3" in result.dropped[0]
    assert "shot 1 is told over the same stretch" in result.dropped[0]


def test_a_story_without_a_usable_shot_is_left_out():
    result = placed(film(480), story(0, 240, [(50, 60)]), story(240, 480, [0, 10]))
    assert [each.segment.number for each in result.stories] == [2]
    assert "story 1 is left out: none of its 1 shots can be placed" in result.dropped
    assert [(span.start_frame, span.end_frame) for span in result.spans] == [(0, 240), (240, 480)]


def test_the_best_seconds_and_sounds_come_in_seconds_of_the_film():
    shots = [make_shot(0, 5, representative=(0, 4)), make_shot(5, 10, representative=(4, 8))]
    sounds = [make_sound(0, 4), make_sound(8, 30), make_sound(4, 4)]
    cuts = film(480, [240, 369])
    result = placed(cuts, make_segment(240, 480, shots, sounds=sounds))
    script = result.stories[0].script
    assert [each.representative for each in script.shots] == [(10, 14), (15.375, 18)]
    assert [(each.start, each.end) for each in script.sounds] == [(10, 14), (18, 20)]
    assert script.annotator.model_dump() == {"kind": "release", "model": "Gemini 2.0 Flash"}
    assert any(line.startswith("story 1, sound 3 of 3, told from 00:04 to 00:04, is left out") for line in result.dropped)


# Another film


def _random_cuts(seed, seconds=600, fps=24):
    borders = np.cumsum(np.random.default_rng(seed).integers(30, 220, 1000))
    return [int(each) for each in borders if each < seconds * fps - 30]


def _released(cuts, frames):
    """Stories of eight shots, told in whole seconds rounded down."""
    borders = [0, *cuts, frames]
    parts = [borders[first : first + 9] for first in range(0, len(borders) - 1, 8)]
    return [story(part[0], part[-1], [(each - part[0]) // 24 for each in part]) for part in parts if len(part) > 1]


def test_the_annotated_film_is_known_and_another_one_is_doubted():
    cuts = _random_cuts(1)
    segments = _released(cuts, 14400)
    true = placed(film(14400, cuts), *segments)
    assert [each.passed for each in true.evidence] == [True, True, True]
    for seed in range(2, 6):
        other = placed(film(14400, _random_cuts(seed)), *segments)
        assert [each.passed for each in other.evidence] == [False, False, True]
        assert other.evidence[0].detail.startswith("this looks like another video than the annotated one: ")
        assert len(other.stories) == len(segments)


def test_a_film_whose_start_was_cut_off_is_told_by_how_much():
    cuts = _random_cuts(1)
    late = placed(film(14400 - 168, [cut - 168 for cut in cuts if cut > 168]), *_released(cuts, 14400)[:-1])
    assert "99% would if everything came about 7 s earlier" in late.evidence[0].detail


def test_few_boundaries_tell_nothing_of_the_film():
    result = placed(film(480, [50, 350]), story(0, 480, [0, 5, 9, 20]))
    assert [each.passed for each in result.evidence] == [None, None, True]


# Whatever is told


def test_assign_finds_the_best_of_all_choices():
    random = np.random.default_rng(0)
    for _ in range(60):
        wishes = [
            [Option(int(frame), float(random.integers(0, 9)), True) for frame in sorted(random.choice(12, 4, replace=False))]
            for _ in range(3)
        ]
        choices = [(a, b, c) for a in wishes[0] for b in wishes[1] for c in wishes[2] if a.frame < b.frame < c.frame]
        if choices:
            best = min(sum(each.cost for each in choice) for choice in choices)
            chosen = assign(wishes)
            assert sum(each.cost for each in chosen) == best
            assert chosen[0].frame < chosen[1].frame < chosen[2].frame


TIMES = st.one_of(
    st.integers(-3, 70).map(float),
    st.floats(-5, 100, allow_nan=False),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e9, -1e9]),
)
SEGMENTS = st.lists(
    st.tuples(st.integers(-50, 1500), st.integers(-50, 1500), st.lists(st.tuples(TIMES, TIMES), min_size=1, max_size=12)),
    min_size=1,
    max_size=4,
)


@st.composite
def films(draw):
    frames = draw(st.integers(1, 1400))
    fps = draw(st.sampled_from([1.0, 12.0, 23.976, 24.0, 30.0]))
    pts = None
    if draw(st.booleans()):
        steps = draw(st.lists(st.sampled_from([0.0001, 0.02, 0.04, 0.5, 4.0]), min_size=1, max_size=8))
        pts = np.cumsum([0.0, *(steps[k % len(steps)] for k in range(frames - 1))])
        fps = (frames - 1) / pts[-1] if frames > 1 else fps
    cuts = sorted(draw(st.sets(st.integers(1, frames), max_size=40)))
    edges = sorted(draw(st.sets(st.integers(0, frames - 1), max_size=6)))
    gradual = [list(pair) for pair in zip(edges[::2], edges[1::2])]
    return film(frames, [cut for cut in cuts if cut < frames], fps=fps, gradual=gradual, pts=pts, flat=gradual[:1])


@settings(max_examples=300, deadline=None)
@given(SEGMENTS, films(), st.sampled_from([24.0, 25.0, 29.97]))
@example([(0, 100, [(0.0, 0.0)])], film(1), 24.0)
def test_whatever_is_told_the_film_is_covered_and_no_shot_is_empty(told, cuts, fps):
    segments = [make_segment(start, end, [make_shot(*pair) for pair in pairs]) for start, end, pairs in told]
    result = placed(cuts, *segments, fps=fps)
    check(result, cuts)
    assert result == placed(cuts, *segments, fps=fps) or any("nan" in repr(each) for each in result.stories)
    left = sum(len(pairs) for _, _, pairs in told) - sum(len(each.places) for each in result.stories)
    assert not left or result.dropped


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=25),
    st.lists(st.integers(2, 150), max_size=60),
    st.sampled_from([24.0, 30.0]),
)
def test_a_told_boundary_near_a_cut_lands_on_one_unless_another_took_it(lengths, gaps, fps):
    told = np.cumsum([0, *lengths])
    frames = round(int(told[-1]) * fps)
    cuts = film(frames, [int(cut) for cut in np.cumsum(gaps) if cut < frames], fps=fps)
    result = placed(cuts, story(0, int(told[-1]) * 24, [int(each) for each in told]), fps=24.0)
    check(result, cuts)
    assert not result.dropped
    chosen = starts(result)
    assert len(set(chosen)) == len(lengths)
    edges, borders = Edges(edges_of(cuts), result.stories[0].clock), [*chosen, frames]
    reach = AlignConfig().shot_seconds
    for k in range(1, len(chosen)):
        expected = float(told[k]) + (result.offset or 0.0)
        near = [edge.frame for edge, _ in edges.near(expected, expected, reach)]
        if result.stories[0].met[k]:
            assert chosen[k] in near
        else:
            assert chosen[k] == result.stories[0].clock.frame_at(float(told[k]))
            assert not any(borders[k - 1] < frame < borders[k + 1] for frame in near)


# Real films, where they are at hand


@pytest.mark.skipif("ANIMESHOOTER_FILMS" not in os.environ, reason="needs the folder of real films")
def test_a_real_films_whole_seconds_find_its_checked_cuts():
    folder = Path(os.environ["ANIMESHOOTER_FILMS"])
    path = folder / "big_buck_bunny_120-258s.mp4"
    cuts = detect_cuts(path)
    true = json.loads((folder / f"{path.stem}.cuts.json").read_text())["cuts"]
    for rounding in ROUNDINGS.values():
        told = [0, *(rounding(cut / 24) for cut in true), 138]
        result = placed(cuts, story(0, cuts.n_frames, told))
        found = {words.annotated[0]: frame for words, frame in zip(result.stories[0].script.shots, starts(result))}
        right = sum(abs(found.get(time, -9) - cut) <= 1 for time, cut in zip(told[1:], true))
        assert right >= 0.95 * len(true)
