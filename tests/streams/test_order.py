import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from animeshooter_dataset import DataError
from streams.clips import ClipSpec
from streams.order import (
    CROP_SLACK,
    PERIOD,
    Mix,
    Plan,
    Shots,
    batch_for,
    choose_buckets,
    epoch_order,
    fit,
    shards_in_play,
    tokens_of,
)


def shots(*each):
    """Shots of (clean frames, fps, height, width)."""
    return Shots(*(np.array(column) for column in zip(*each)))


def chosen(shot, clips, max_upscale=1.25):
    return int(choose_buckets(shots(shot), np.array([[0]]), clips, max_upscale)[0])


# ---- order ----


@given(samples=st.integers(0, 5000), seed=st.integers(0, 2**40), epoch=st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_an_epoch_is_a_permutation_and_a_pure_function_of_seed_and_epoch(samples, seed, epoch):
    order = epoch_order(samples, seed, epoch)
    assert sorted(order) == list(range(samples))
    assert (order == epoch_order(samples, seed, epoch)).all()
    if samples > 20:
        assert (order != epoch_order(samples, seed, epoch + 1)).any()
        assert (order != epoch_order(samples, seed + 1, epoch)).any()


def test_an_epoch_reads_near_sequentially_but_mixes_films():
    order = epoch_order(64 * 64, seed=0, epoch=0)
    assert len(set(order[:1024] // 64)) == 16  # 1,024 samples come from 16 runs of 64
    assert len(set(order[:16] // 64)) > 4


def test_few_shards_are_in_play_at_a_time_with_one_bucket_or_several():
    shard = np.arange(300_000) // 1500
    one = Plan(np.zeros(300_000, int), [64], seed=0)
    four = Plan(np.arange(300_000) % 7 % 4, [64, 32, 16, 8], seed=0)
    assert shards_in_play(one, shard) < 20  # of 200; drawn at random it would be 199
    assert shards_in_play(four, shard) < 45


plans = st.tuples(
    st.lists(st.integers(-1, 4), min_size=1, max_size=700),
    st.lists(st.integers(1, 40), min_size=5, max_size=5),
    st.integers(0, 99),
)


@given(plan=plans, epoch=st.integers(0, 3), small=st.sampled_from(["fill", "drop"]))
@settings(max_examples=150, deadline=None)
def test_an_epoch_holds_every_sample_of_every_bucket_once_and_pads_inside_it(plan, epoch, small):
    bucket, batches, seed = np.array(plan[0]), plan[1], plan[2]
    made = Plan(bucket, batches, seed, small)
    assume(made.steps_per_epoch)
    first = epoch * made.steps_per_epoch
    read = {number: [] for number in range(5)}
    for step in range(first, first + made.steps_per_epoch):
        found, number, samples = made.locate(step)
        assert found == epoch
        assert len(samples) == batches[number]
        assert (bucket[samples] == number).all()
        read[number] += samples.tolist()
    for number, samples in read.items():
        members = np.flatnonzero(bucket == number).tolist()
        if small == "drop" and len(members) < batches[number]:
            assert samples == []
            continue
        assert sorted(samples[: len(members)]) == members
        assert 0 <= len(samples) - len(members) < batches[number]
        assert samples[len(members) :] == (samples[: len(members)] * batches[number])[: len(samples) - len(members)]
    assert made.samples_read(first + made.steps_per_epoch) == (epoch + 1) * sum(map(len, read.values()))


def test_no_bucket_comes_all_at_the_end_or_at_the_beginning():
    bucket = np.repeat([0, 1, 2], [6000, 3000, 1000])  # stored one after the other, as films of different shapes are
    plan = Plan(bucket, [20, 10, 5], seed=1)
    came = np.array([plan.locate(step)[1] for step in range(plan.steps_per_epoch)])
    for number in range(3):
        where = np.flatnonzero(came == number) / len(came)
        assert where.min() < 0.25
        assert where.max() > 0.75


def test_a_step_is_found_without_walking_there():
    plan, fresh = (Plan(np.arange(500) % 3, [8, 4, 2], seed=5) for _ in range(2))
    walked = [plan.locate(step) for step in range(3 * plan.steps_per_epoch)]
    for step in (2 * plan.steps_per_epoch + 7, 3, plan.steps_per_epoch):
        epoch, number, samples = fresh.locate(step)
        assert (epoch, number) == walked[step][:2]
        assert (samples == walked[step][2]).all()


# ---- buckets ----

LANDSCAPE, SQUARE, LONG = ClipSpec(17, 480, 720, 8), ClipSpec(17, 480, 480, 8), ClipSpec(49, 480, 720, 8)


@pytest.mark.parametrize(
    ("shot", "clips", "expected"),
    [
        ((200, 24, 480, 854), [LANDSCAPE, LONG], 1),  # fills 6 s
        ((100, 24, 480, 854), [LANDSCAPE, LONG], 0),  # 4 s
        ((40, 6, 480, 854), [LANDSCAPE, LONG], 0),  # 6.5 s, but only 40 frames
        ((30, 24, 480, 854), [LONG, LANDSCAPE], 1),  # fills neither: the shorter one is hurried less
        ((100, 24, 480, 480), [LANDSCAPE, SQUARE], 1),
        ((100, 24, 480, 854), [SQUARE, LANDSCAPE], 1),
        ((200, 24, 480, 600), [SQUARE, LONG], 1),  # length goes before shape
        ((200, 24, 360, 540), [LONG, ClipSpec(17, 240, 360, 8)], 1),  # 1.33 times is too much while another is there
        ((200, 24, 360, 540), [LONG], 0),
        ((200, 24, 240, 360), [LONG, ClipSpec(49, 360, 540, 8)], 1),  # where all enlarge too much: the least
        ((200, 24, 480, 720), [ClipSpec(49, 240, 360, 8), LONG], 1),  # same shape: most pixels
        ((200, 24, 480, 854), [ClipSpec(49, 240, 432, 8), ClipSpec(49, 480, 848, 8)], 1),  # nearly the same shape
        ((20, 24, 480, 720), [ClipSpec(49, 480, 720, 8, min_frames=25), ClipSpec(17, 480, 720, 8, min_frames=21)], -1),
        ((22, 24, 480, 720), [ClipSpec(17, 480, 720, 8, min_frames=25), ClipSpec(49, 480, 720, 8, min_frames=21)], 1),
        ((100, 0, 0, 0), [LANDSCAPE, LONG], 1),  # what is not known decides nothing
    ],
)
def test_a_shot_goes_to_the_longest_clip_it_fills_of_the_nearest_shape(shot, clips, expected):
    assert chosen(shot, clips) == expected


def test_a_sequence_goes_by_its_shortest_shot_and_its_worst_picture():
    some = shots((200, 24, 480, 720), (100, 24, 480, 720), (200, 24, 480, 720), (200, 24, 240, 360))
    rows = np.array([[0, 2], [0, 1], [2, 3]])
    clips = [LANDSCAPE, LONG, ClipSpec(49, 240, 360, 8)]
    assert choose_buckets(some, rows, clips, 1.25).tolist() == [1, 0, 2]


sizes = st.sampled_from([240, 270, 360, 480, 640, 720, 854])
clip_lists = st.lists(
    st.builds(ClipSpec, st.sampled_from([5, 17, 33]), sizes, sizes, st.sampled_from([4, 8]), st.sampled_from([2, 9])),
    min_size=1,
    max_size=5,
)


@given(
    each=st.lists(st.tuples(st.integers(1, 200), st.sampled_from([6, 24]), sizes, sizes), min_size=3, max_size=20),
    clips=clip_lists,
    n=st.integers(1, 3),
)
@settings(max_examples=150, deadline=None)
def test_the_rule_holds_for_every_sample_as_it_is_written(each, clips, n):
    some = shots(*each)
    rows = np.lib.stride_tricks.sliding_window_view(np.arange(len(each)), n)
    for sample, number in zip(rows, choose_buckets(some, rows, clips, 1.25)):
        clean, seconds = some.clean[sample].min(), some.seconds[sample].min()
        left = [k for k, clip in enumerate(clips) if clean >= clip.min_frames]
        if not left:
            assert number == -1
            continue
        scale, kept = ([fit(some, sample[None], clip)[which][0] for clip in clips] for which in (0, 1))
        left = [k for k in left if scale[k] <= 1.25 + 1e-6] or [k for k in left if scale[k] == min(scale[i] for i in left)]
        full = [k for k in left if clean >= clips[k].frames and seconds >= (clips[k].frames - 1) / clips[k].fps - 1e-6]

        def length(k):
            return clips[k].frames, clips[k].frames / clips[k].fps

        best = max(map(length, full)) if full else min(map(length, left))
        left = [k for k in full or left if length(k) == best]
        left = [k for k in left if kept[k] >= max(kept[i] for i in left) - CROP_SLACK]
        assert number == max(left, key=lambda k: (clips[k].height * clips[k].width, kept[k], -k))


def test_tokens_and_batches_are_those_of_the_video_transformer():
    assert tokens_of(ClipSpec(49, 480, 720, 8), 1) == 13 * 30 * 45
    assert tokens_of(ClipSpec(1, 480, 720, 8), 2, (4, 8, 8)) == 2 * 60 * 90
    assert tokens_of(ClipSpec(5, 40, 40, 8), 1) == 2 * 3 * 3  # begun tokens count
    assert batch_for(1_000_000, 17_550, 8) == 56
    assert batch_for(100, 17_550, 8) == 8


# ---- mixing ----


@given(weights=st.lists(st.floats(0.01, 10), min_size=1, max_size=5), seed=st.integers(0, 99), first=st.integers(0, 3 * PERIOD))
@settings(max_examples=40, deadline=None)
def test_shares_of_any_stretch_of_steps_are_close_to_the_weights(weights, seed, first):
    mix, count = Mix(weights, seed), 500
    whose = [mix.locate(step)[0] for step in range(first, first + count)]
    for number, weight in enumerate(weights):
        assert abs(whose.count(number) - count * weight / sum(weights)) <= len(weights) + 1


def test_every_stream_of_a_mix_walks_its_own_steps_one_by_one():
    mix, seen = Mix([0.5, 0.3, 0.2], seed=3), [0, 0, 0]
    for step in range(2 * PERIOD + 100):
        number, inner = mix.locate(step)
        assert mix.counts(step) == seen
        assert inner == seen[number]
        seen[number] += 1
    assert (Mix([1, 1], 0).whose != Mix([1, 1], 1).whose).any()


@pytest.mark.parametrize("weights", [[], [1, 0], [1, -1], [float("inf")], [float("nan")]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(DataError, match="weights must be positive numbers"):
        Mix(weights, 0)
