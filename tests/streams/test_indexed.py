import json
import warnings
from collections import Counter
from itertools import pairwise

import indexes
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import BUCKETS, CLIP, steps_of, unread, varied, write_index

from animeshooter_dataset import DataError
from animeshooter_streams import DrawnStream, MixedStream, ShotStream, StoryStream

dataset, _warnings_are_errors = indexes.ten_shots, indexes.warnings_are_errors


# ---- buckets, ranks and resumes, without media ----

shares = st.sampled_from([(1, 1), (2, 1), (1, 2), (4, 1), (2, 2), (1, 4), (3, 1), (3, 4), (6, 2), (12, 1)])


@given(
    stories=st.lists(st.integers(3, 9), min_size=5, max_size=25),
    kind=st.sampled_from([(ShotStream, 1), (StoryStream, 2), (StoryStream, (2, 3)), (StoryStream, "story"), (DrawnStream, 2)]),
    size=st.sampled_from([{"global_batch": 12}, {"batch_tokens": 300, "multiple": 12, "token": (4, 8, 8)}]),
    clips=st.sampled_from([BUCKETS[:1], BUCKETS]),
    seed=st.integers(0, 99),
    share=shares,
)
@settings(max_examples=35, deadline=None)
def test_all_ranks_together_see_every_sample_of_an_epoch_once_up_to_the_padding(
    tmp_path_factory, stories, kind, size, clips, seed, share
):
    directory = varied(tmp_path_factory.mktemp("varied"), stories, seed)
    opened, n = kind

    def make():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return opened(directory, clips, n=n, seed=seed, **size)

    whole = make()
    if len(whole) < share[0]:
        with pytest.raises(DataError, match="processes: use at most"):
            whole.check(*share)
        return
    epoch, _ = steps_of(make, None, *share, whole.steps_per_epoch)
    leaders = [[(clip, keys[0] if opened is DrawnStream else keys) for keys in samples] for _, clip, samples in epoch]
    seen = Counter(leader for step in leaders for leader in step)
    assert len(seen) == len(whole)
    for bucket in whole.buckets:
        read = [keys for _, clip, samples in epoch if clip == bucket.clip for keys in samples if len(keys) == bucket.n]
        assert len(read) == bucket.steps * bucket.batch
        assert 0 <= len(read) - bucket.samples < max(bucket.batch, 1)
    again = [whole.batch_keys(step) for step in range(whole.steps_per_epoch)]
    assert [samples for _, _, samples in epoch] == again


@given(
    cuts=st.lists(st.integers(0, 9), min_size=3, max_size=6),
    shared=st.lists(shares, min_size=6, max_size=6),
    seed=st.integers(0, 99),
    mixed=st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_any_number_of_resumes_on_other_processes_is_as_if_never_stopped(tmp_path_factory, cuts, shared, seed, mixed):
    directory = varied(tmp_path_factory.mktemp("varied"), [9] * 12, seed)

    def make():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            shots = ShotStream(directory, BUCKETS, batch_tokens=200, multiple=12, token=(4, 8, 8), seed=seed)
            if not mixed:
                return shots
            windows = StoryStream(directory, BUCKETS, global_batch=12, n=2, seed=seed)
            return MixedStream([(shots, 0.7), (windows, 0.3)], seed=seed)

    expected, end = steps_of(make, None, 1, 1, sum(cuts))
    seen, state = [], None
    for count, share in zip(cuts, shared):
        steps, state = steps_of(make, state, *share, count)
        seen += steps
    assert seen == expected
    assert state == end
    assert len(json.dumps(state)) < 4000 if mixed else len(json.dumps(state)) < 1500


def test_a_step_far_on_is_found_at_once_and_is_the_same_after_a_resume(tmp_path):
    directory = varied(tmp_path, [9] * 30, 0)
    stream = ShotStream(directory, BUCKETS, global_batch=8)
    state = stream.state_dict() | {"step": 10**6}
    stream.load_state_dict(state)
    (batch,) = next(unread(stream).batches(steps=1))
    assert batch.step == 10**6
    assert stream.state_dict()["epoch"] == 10**6 // stream.steps_per_epoch
    assert [keys for _, keys in batch.samples] == ShotStream(directory, BUCKETS, global_batch=8).batch_keys(10**6)


def test_batches_by_tokens_are_multiples_that_do_not_depend_on_the_processes(tmp_path):
    stream = ShotStream(varied(tmp_path, [9] * 60, 0), BUCKETS, batch_tokens=1000, multiple=4, token=(4, 8, 8))
    assert [one.tokens for one in stream.buckets] == [2 * 4 * 6, 2 * 4 * 4, 5 * 4 * 6, 5 * 4 * 4]
    assert [one.batch for one in stream.buckets] == [20, 28, 8, 12]
    assert stream.steps_per_epoch == sum(-(-one.samples // one.batch) for one in stream.buckets)
    assert stream.samples_read(stream.steps_per_epoch) == sum(one.steps * one.batch for one in stream.buckets)
    assert stream.share(2, 2) == 7
    with pytest.raises(DataError, match="does not divide over 3 processes"):
        stream.check(3)


def test_a_bucket_with_less_than_one_batch_is_filled_with_a_warning_or_left_out(tmp_path):
    write_index(tmp_path, [30], fps=8.0, height=32, width=48)
    table = pq.read_table(tmp_path / "index" / "train.parquet")
    ends = pa.array([60] * 3 + [9] * 27, pa.int32())
    for name in ("clean_end", "frames"):
        table = table.set_column(table.schema.get_field_index(name), name, ends)
    pq.write_table(table, tmp_path / "index" / "train.parquet")
    clips = [BUCKETS[0], BUCKETS[2]]
    with pytest.warns(UserWarning, match="bucket 17x32x48@8: 3 samples are fewer than the global batch of 8"):
        filled = ShotStream(tmp_path, clips, global_batch=8)
    assert [one.steps for one in filled.buckets] == [4, 1]
    with pytest.warns(UserWarning, match="bucket 17x32x48@8: 3 samples, fewer than the global batch of 8, left out"):
        dropped = ShotStream(tmp_path, clips, global_batch=8, small_buckets="drop")
    assert [one.steps for one in dropped.buckets] == [4, 0]
    assert len(dropped) == 27
    with pytest.raises(DataError, match="no bucket has a whole batch"):
        ShotStream(tmp_path, clips, global_batch=64, small_buckets="drop")


def test_a_drawn_number_of_shots_sees_every_window_of_every_length_once_an_epoch(tmp_path):
    write_index(tmp_path, [5, 3, 1, 2])
    stream = unread(StoryStream(tmp_path, CLIP, global_batch=1, seed=3, n=(2, 4)))
    steps = [keys for step in range(stream.steps_per_epoch) for keys in stream.batch_keys(step)]
    windows = [
        tuple(f"s{story}-{first + place}" for place in range(n))
        for n in (2, 3, 4)
        for story, shots in enumerate((5, 3, 1, 2))
        for first in range(shots - n + 1)
    ]
    assert Counter(steps) == Counter(windows)
    lengths = [len(keys) for keys in steps]
    assert lengths != sorted(lengths)  # drawn, not one after the other
    again = StoryStream(tmp_path, CLIP, global_batch=1, seed=3, n=(2, 4))
    assert [again.batch_keys(step) for step in (4, 1)] == [[steps[4]], [steps[1]]]
    assert stream.state_dict()["stream"]["n"] == "2-4"


def test_whole_stories_come_once_each_and_long_ones_in_equal_parts(tmp_path):
    stream = StoryStream(write_index(tmp_path, [3, 16, 35, 1]), CLIP, global_batch=1, n="story")
    found = sorted(keys for step in range(stream.steps_per_epoch) for keys in stream.batch_keys(step))
    assert sorted(len(keys) for keys in found) == [1, 3, 11, 12, 12, 16]
    assert sorted(key for keys in found for key in keys) == sorted(stream.index["key"].to_pylist())
    assert all(int(b.split("-")[1]) == int(a.split("-")[1]) + 1 for keys in found for a, b in pairwise(keys))


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({}, "give either global_batch .* or batch_tokens"),
        ({"global_batch": 2, "batch_tokens": 100}, "give either"),
        ({"global_batch": 0}, "must be at least 1"),
        ({"batch_tokens": 100, "multiple": 0}, "must be at least 1"),
        ({"global_batch": 2, "n": 2}, "one shot a sample"),
    ],
)
def test_settings_that_contradict_are_refused(tmp_path, settings_, says):
    with pytest.raises(DataError, match=says):
        ShotStream(write_index(tmp_path, [4]), CLIP, **settings_)


def test_the_picture_inside_black_bars_decides_about_the_bucket(tmp_path):
    write_index(tmp_path, [2], fps=8.0, height=36, width=64, picture_height=36)
    path = tmp_path / "index" / "train.parquet"
    table = pq.read_table(path)
    table = table.set_column(table.schema.get_field_index("picture_width"), "picture_width", pa.array([36, 64], pa.int32()))
    pq.write_table(table, path)
    with pytest.warns(UserWarning, match="1 samples are fewer"):
        stream = ShotStream(tmp_path, BUCKETS[:2], global_batch=2)
    assert {stream.batch_keys(step)[0]: stream.buckets[stream.batch(step)[0].bucket].clip.width for step in range(2)} == {
        ("s0-0",): 32,
        ("s0-1",): 48,
    }


def test_a_dataset_on_a_server_gives_the_same_batches_and_state(dataset):
    from folder_server import FolderServer

    with FolderServer(dataset) as server:
        near, far = (ShotStream(where, [CLIP], global_batch=4, seed=2) for where in (dataset, server.url))
        for (here,), (there,) in zip(near.batches(steps=3), far.batches(steps=3)):
            assert here.keys == there.keys
            assert (here.frames == there.frames).all()
        assert near.state_dict() == far.state_dict()


@pytest.mark.parametrize(("opened", "n"), [(ShotStream, 1), (StoryStream, 2), (StoryStream, "story"), (DrawnStream, 2)])
@pytest.mark.parametrize("steps", [0, 3, 50])
def test_the_rows_a_run_reads_are_those_of_its_batches(tmp_path, opened, n, steps):
    stream = opened(write_index(tmp_path, [9, 2, 7]), CLIP, global_batch=1, n=n)
    read = {key for step in range(steps) for keys in stream.batch_keys(step) for key in keys}
    assert set(stream.index["key"].take(stream.rows_read(steps)).to_pylist()) == read
    assert stream.samples_read(steps) == steps


# ---- mixing ----


def test_a_mix_gives_every_step_to_one_stream_by_weight(tmp_path):
    directory = write_index(tmp_path, [9] * 4)
    shots, windows = ShotStream(directory, CLIP, global_batch=4), StoryStream(directory, CLIP, global_batch=2, n=3)
    mix = MixedStream([(shots, 3), (windows, 1)])
    came = [batch for (batch,) in unread(mix).batches(steps=80)]
    assert [batch.step for batch in came] == list(range(80))
    assert Counter(batch.source for batch in came) == {0: 60, 1: 20}
    assert [[keys for _, keys in batch.samples] for batch in came if batch.source == 1] == [
        windows.batch_keys(step) for step in range(20)
    ]
    assert "75.00% of the steps: ShotStream" in mix.describe()
    state = mix.state_dict()
    assert [one["step"] for one in state["streams"]] == [60, 20]
    with pytest.raises(DataError, match=r"turns was \[7500, 2500\], is \[5000, 5000\]"):
        MixedStream([(shots, 1), (windows, 1)]).load_state_dict(state)
    with pytest.raises(DataError, match="global_batch was 4, is 2"):
        MixedStream([(ShotStream(directory, CLIP, global_batch=2), 3), (windows, 1)]).load_state_dict(state)


def test_a_mix_decodes_the_same_after_a_resume_with_any_number_of_workers(dataset):
    shots, windows = ShotStream(dataset, CLIP, global_batch=2), StoryStream(dataset, [CLIP], global_batch=2, n=2)
    here = [batch for (batch,) in MixedStream([(shots, 1), (windows, 1)]).batches(steps=4)]
    there, state = [], MixedStream([(shots, 1), (windows, 1)]).state_dict()
    for workers in (2, 1):
        mix = MixedStream([(shots, 1), (windows, 1)])
        mix.load_state_dict(state)
        there += [batch for (batch,) in mix.batches(steps=2, workers=workers)]
        state = mix.state_dict()
    assert {tuple(batch.frames.shape) for batch in here} == {(2, 1, 5, 32, 48, 3), (2, 2, 5, 32, 48, 3)}
    assert [batch.keys for batch in here] == [batch.keys for batch in there]
    assert all((a.frames == b.frames).all() for a, b in zip(here, there))
