import json
import warnings

import indexes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from indexes import CLIP, keys_of, write_index
from tiny_dataset import CHARACTERS, encode, write_dataset

from animeshooter_dataset import DataError
from animeshooter_streams import DrawnStream, ShotStream, StoryStream
from streams.clips import ClipSpec, decode_clip, sample_times

dataset, _warnings_are_errors = indexes.ten_shots, indexes.warnings_are_errors


# ---- order ----


@given(stories=st.lists(st.integers(1, 9), min_size=1, max_size=12), batch=st.integers(1, 10), seed=st.integers(0, 99))
@settings(max_examples=40, deadline=None)
def test_an_epoch_holds_every_sample_and_wraps_around_to_fill_the_last_batch(tmp_path_factory, stories, batch, seed):
    directory = write_index(tmp_path_factory.mktemp("index"), stories)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stream = ShotStream(directory, CLIP, global_batch=batch, seed=seed)
    epoch = [keys for step in range(stream.steps_per_epoch) for keys in stream.batch_keys(step)]
    shots = {(f"s{story}-{position}",) for story, count in enumerate(stories) for position in range(count)}
    assert set(epoch) == shots
    assert len(epoch) == stream.steps_per_epoch * batch
    assert len(epoch) - len(shots) < batch
    repeated = epoch[len(shots) :]
    assert repeated == (epoch[: len(shots)] * batch)[: len(repeated)]


@pytest.mark.parametrize(("world", "accumulate"), [(1, 1), (2, 1), (4, 1), (2, 2), (1, 4)])
def test_processes_share_every_global_batch_equally(dataset, world, accumulate):
    whole = ShotStream(dataset, CLIP, global_batch=4)
    steps = whole.steps_per_epoch
    ranks = [
        list(ShotStream(dataset, CLIP, global_batch=4).batches(rank, world, accumulate=accumulate, steps=steps))
        for rank in range(world)
    ]
    assert {len(rank) for rank in ranks} == {steps}
    for step in range(steps):
        micros = [batch for rank in ranks for batch in rank[step]]
        assert [keys for batch in micros for keys in batch.keys] == whole.batch_keys(step)
        assert [slot for batch in micros for slot in batch.slots] == [0, 1, 2, 3]
        assert {batch.step for batch in micros} == {step}
        assert {len(batch.samples) for batch in micros} == {4 // world // accumulate}


def test_story_windows_are_consecutive_shots_of_one_story(tmp_path):
    stream = StoryStream(write_index(tmp_path, [5, 2, 3]), CLIP, global_batch=1, n=3)
    found = {keys for step in range(stream.steps_per_epoch) for keys in stream.batch_keys(step)}
    assert found == {tuple(f"s0-{i + k}" for k in range(3)) for i in range(3)} | {("s2-0", "s2-1", "s2-2")}


def test_drawn_sequences_are_different_shots_of_what_was_asked_for(dataset):
    stream = DrawnStream(dataset, CLIP, global_batch=1, n=3, video="film1", character="Red")
    first, second = ([stream.batch_keys(step)[0] for step in range(start, start + 5)] for start in (0, 5))
    assert {keys[0] for keys in first} == {f"film1-s0-{position:03}" for position in range(5)}
    assert all(len(set(keys)) == 3 and all(key.startswith("film1") for key in keys) for keys in first + second)
    assert set(first) != set(second)


# ---- state ----


@given(cuts=st.lists(st.integers(1, 5), min_size=1, max_size=4), worlds=st.lists(st.sampled_from([1, 2, 4]), min_size=5))
@settings(max_examples=6, deadline=None)
def test_resuming_any_number_of_times_on_any_number_of_processes_is_as_if_never_stopped(dataset, cuts, worlds):
    def stream():
        return StoryStream(dataset, CLIP, global_batch=4, n=2, seed=3)

    whole = stream()
    expected = [whole.batch_keys(step) for step in range(sum(cuts))]
    seen, state = [], stream().state_dict()
    for count, world in zip(cuts, worlds):
        ranks = [stream() for _ in range(world)]
        for one in ranks:
            one.load_state_dict(json.loads(json.dumps(state)))
        parts = [keys_of(one, rank, world, steps=count) for rank, one in enumerate(ranks)]
        share = 4 // world
        seen += [[keys for part in parts for keys in part[step * share : (step + 1) * share]] for step in range(count)]
        states = [one.state_dict() for one in ranks]
        assert all(other == states[0] for other in states)
        state = states[0]
    assert seen == expected
    assert state["step"] == sum(cuts)


def test_a_resumed_stream_decodes_the_same_frames(dataset):
    whole = list(ShotStream(dataset, CLIP, global_batch=4).batches(steps=4))
    first = ShotStream(dataset, CLIP, global_batch=4)
    list(first.batches(steps=3))
    second = ShotStream(dataset, CLIP, global_batch=4)
    second.load_state_dict(first.state_dict())
    (last,) = second.batches(steps=1)
    assert (last[0].frames == whole[3][0].frames).all()
    assert (whole[0][0].frames != whole[3][0].frames).any()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda d: (write_index(d, [4, 4]), ShotStream(d, CLIP, global_batch=2))[1], "shots was 9, is 8"),
        (lambda d: (write_index(d, [4, 5], mp4_offset=9), ShotStream(d, CLIP, global_batch=2))[1], "clips was"),
        (
            lambda d: (
                write_index(d, [4, 5], files={"shots/train-00000.tar": {"sha256": "y"}}),
                ShotStream(d, CLIP, global_batch=2),
            )[1],
            "shards was",
        ),
        (lambda d: ShotStream(d, CLIP, global_batch=3), "global_batch was 2, is 3"),
        (lambda d: ShotStream(d, CLIP, global_batch=2, seed=1), "seed was 0, is 1"),
        (lambda d: StoryStream(d, CLIP, global_batch=2, n=3), "kind was ShotStream, is StoryStream"),
    ],
)
def test_what_changed_since_the_state_was_taken_is_named(tmp_path, change, says):
    state = ShotStream(write_index(tmp_path, [4, 5]), CLIP, global_batch=2).state_dict()
    with pytest.raises(DataError, match=says):
        change(tmp_path).load_state_dict(state)


# ---- refusals and warnings ----


def test_fewer_samples_than_processes_are_refused_with_the_numbers(dataset):
    with pytest.raises(DataError, match="10 samples for 16 processes"):
        next(ShotStream(dataset, CLIP, global_batch=10).batches(0, 16))


def test_a_global_batch_that_does_not_divide_is_refused_with_one_that_does(dataset):
    with pytest.raises(DataError, match=r"batch of 5 does not divide over 2 processes .* such as 4"):
        next(ShotStream(dataset, CLIP, global_batch=5).batches(0, 2))


def test_a_global_batch_larger_than_the_dataset_is_said_and_does_not_hang(tmp_path):
    with pytest.warns(UserWarning, match="3 samples are fewer than the global batch of 8"):
        stream = ShotStream(write_index(tmp_path, [3]), CLIP, global_batch=8)
    assert stream.steps_per_epoch == 1
    assert len(stream.batch_keys(0)) == 8


def test_samples_without_reference_are_said_or_left_out(tmp_path):
    write_dataset(tmp_path / "d", videos=1, with_references=False)
    with pytest.warns(UserWarning, match="4 of 4 samples have no reference"):
        stream = ShotStream(tmp_path / "d", CLIP, global_batch=2)
    assert stream[0].reference is None
    assert "4 without reference" in stream.describe()
    with pytest.raises(DataError, match="4 samples without reference left out, 0 samples"):
        ShotStream(tmp_path / "d", CLIP, global_batch=2, require_reference=True)


def test_short_shots_are_left_out_counted_and_break_a_sequence(tmp_path):
    write_index(tmp_path, [6])
    table = pq.read_table(tmp_path / "index" / "train.parquet")
    ends = pa.array([9, 9, 9, 1, 9, 9], pa.int32())
    table = table.set_column(table.schema.get_field_index("clean_end"), "clean_end", ends)
    pq.write_table(table, tmp_path / "index" / "train.parquet")
    stream = StoryStream(tmp_path, CLIP, global_batch=1, n=2)
    assert "1 with fewer than 2 clean frames left out" in stream.describe()
    found = {keys for step in range(stream.steps_per_epoch) for keys in stream.batch_keys(step)}
    assert found == {("s0-0", "s0-1"), ("s0-1", "s0-2"), ("s0-4", "s0-5")}


def test_title_cards_and_credits_are_left_out_counted_and_had_when_asked_for(tmp_path):
    write_index(tmp_path, [5])
    table = pq.read_table(tmp_path / "index" / "train.parquet")
    cards = pa.array(["prologue", None, None, None, "epilogue"], pa.string())
    table = table.set_column(table.schema.get_field_index("prologue_or_epilogue"), "prologue_or_epilogue", cards)
    pq.write_table(table, tmp_path / "index" / "train.parquet")
    stream = StoryStream(tmp_path, CLIP, global_batch=1, n=3)
    assert stream.batch_keys(0) == [("s0-1", "s0-2", "s0-3")]
    assert "2 of prologue or epilogue" in stream.describe()
    assert len(StoryStream(tmp_path, CLIP, global_batch=1, n=3, prologue_and_epilogue=True)) == 3


def test_shots_that_fail_a_rule_break_the_sequence_are_counted_and_had_when_asked_for(tmp_path):
    write_index(tmp_path, [5])
    table = pq.read_table(tmp_path / "index" / "train.parquet")
    failed = pa.array([None, [], ["still"], [], []], pa.list_(pa.string()))
    table = table.set_column(table.schema.get_field_index("rejected_by"), "rejected_by", failed)
    pq.write_table(table, tmp_path / "index" / "train.parquet")
    stream = StoryStream(tmp_path, CLIP, global_batch=1, n=2)
    found = {keys for step in range(stream.steps_per_epoch) for keys in stream.batch_keys(step)}
    assert found == {("s0-0", "s0-1"), ("s0-3", "s0-4")}
    assert "1 rejected by a rule" in stream.describe()
    assert len(StoryStream(tmp_path, CLIP, global_batch=1, n=2, rejected=True)) == 4


def test_black_bars_are_cut_off():
    frames = np.zeros((5, 72, 128, 3), np.uint8)
    frames[:, 12:60] = (200, 120, 40)
    row = {"frames": 5, "clean_start": 0, "clean_end": 5}
    spec = ClipSpec(frames=5, height=36, width=64, fps=12)
    bars, _, _ = decode_clip(encode(frames), row, spec, 0.0, "here")
    clean, first, last = decode_clip(encode(frames), row, spec, 0.0, "here", (0, 12, 128, 60))
    assert bars[:, 0].mean() < 20
    assert np.abs(clean.astype(int) - (200, 120, 40)).max() < 40
    assert first.shape == last.shape == (36, 64, 3)
    with pytest.raises(DataError, match=r"here: .*outside the frame"):
        decode_clip(encode(frames), row, spec, 0.0, "here", (0, 12, 128, 73))


@pytest.mark.parametrize(("name", "value"), [("video", "film9"), ("character", "Green")])
def test_an_unknown_film_or_character_is_refused_with_those_there_are(dataset, name, value):
    with pytest.raises(DataError, match=f"no row with {name}.*{value} in split 'train'; .* has (Blue, Red|film0, film1)"):
        DrawnStream(dataset, CLIP, global_batch=1, n=2, **{name: value})


@pytest.mark.parametrize("frames", [0, 4, 8])
def test_clips_are_4k_plus_1_frames(frames):
    with pytest.raises(DataError, match="4k \\+ 1"):
        ClipSpec(frames=frames, height=8, width=8, fps=8)


# ---- clips ----


@given(
    gaps=st.lists(st.integers(10, 90), min_size=0, max_size=80),
    frames=st.sampled_from([1, 5, 9, 13]),
    fps=st.sampled_from([4, 8, 12.5]),
    at=st.floats(0, 1, exclude_max=True),
)
def test_frames_are_taken_in_order_at_the_rate_asked_for_whatever_the_clip_s_own(gaps, frames, fps, at):
    times = np.concatenate([[0.0], np.cumsum(gaps)]) / 1000
    chosen = sample_times(times, ClipSpec(frames, 8, 8, fps), at)
    assert len(chosen) == frames
    assert (np.diff(chosen) >= 0).all()
    assert chosen.min() >= 0
    assert chosen.max() < len(times)
    if times[-1] >= (frames - 1) / fps:  # long enough: each frame is the one on screen at its time
        wanted = times[chosen[0]] + np.arange(frames) / fps
        assert (np.abs(times[chosen] - wanted) <= 0.09 + 1e-6).all()
    elif len(times) >= frames:  # spread over the whole shot, no frame twice
        assert (chosen[0], chosen[-1]) == (0, len(times) - 1)
        assert (np.diff(chosen) > 0).all()
    else:  # every frame once, then the last again
        assert list(chosen) == [*range(len(times)), *[len(times) - 1] * (frames - len(times))]


def grey_of(frames):
    """The frame numbers of a `tiny_dataset` clip, from the grey patch at its top."""
    height, width = frames.shape[-3:-1]
    return frames[..., 1 : height // 8, int(width * 0.45) : int(width * 0.55), :].mean((-3, -2, -1))


def test_clips_have_the_size_asked_for_and_the_ends_of_the_clean_part(dataset):
    stream = ShotStream(dataset, CLIP, global_batch=1)
    sample = stream[1]
    assert sample.keys == ("film0-s0-001",)
    assert sample.frames.shape == (1, 5, 32, 48, 3)
    assert sample.frames.dtype == np.uint8
    assert sample.first.shape == sample.last.shape == (1, 32, 48, 3)
    level = 255 / 14  # the patch brightens by this much a frame; two frames of transition are left out
    assert grey_of(sample.first)[0] == pytest.approx(2 * level, abs=6)
    assert grey_of(sample.last)[0] == pytest.approx(13 * level, abs=6)
    steps = np.diff(grey_of(sample.frames)[0]) / level
    assert steps == pytest.approx([(13 - 2) / 4] * 4, abs=1)  # 11 frames at 12 fps are too short for 5 frames at 4 fps


def test_variable_frame_rates_are_sampled_by_time(tmp_path):
    write_dataset(tmp_path / "plain", videos=1)
    times = [round(1000 * t) for t in [*np.arange(7) / 24, *(0.5 + np.arange(7) / 2)]]
    grey = np.repeat(np.arange(14)[:, None, None, None] * 18, 72, 1).repeat(128, 2).repeat(3, 3).astype(np.uint8)
    write_dataset(tmp_path / "d", videos=1, clips={"film0-s0-000": encode(grey, times)})
    spec = ClipSpec(frames=5, height=32, width=48, fps=2)
    sample = ShotStream(tmp_path / "d", spec, global_batch=1)[0]
    shown = grey_of(sample.frames)[0] / 18
    start = round(shown[0])
    expected = [np.searchsorted(times, times[start] + 500 * k + 1, side="right") - 1 for k in range(5)]
    assert shown == pytest.approx(expected, abs=1.1)
    assert shown[-1] - shown[0] < 12  # by frame count it would be the whole clip


@pytest.mark.parametrize(("height", "width"), [(64, 96), (36, 64), (48, 48), (144, 160)])
def test_frames_are_scaled_to_cover_and_cropped_not_squeezed(dataset, height, width):
    last = ShotStream(dataset, ClipSpec(1, height, width, 4), global_batch=1)[7].last[0].astype(int)
    red = (last[..., 0] > 160) & (last[..., 1] < 110) & (last[..., 2] < 110)
    side = 23 * max(height / 72, width / 128)
    left = (82 + 11.5 - 64) * max(height / 72, width / 128) + width / 2
    assert last.shape == (height, width, 3)
    assert red.any(1).sum() == pytest.approx(side, abs=2)
    if left + side / 2 < width:
        assert red.any(0).sum() == pytest.approx(side, abs=2)
        assert np.flatnonzero(red.any(0)).mean() == pytest.approx(left, abs=2)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_clip_that_does_not_decode_is_named_with_its_shard(tmp_path, workers):
    write_dataset(tmp_path / "d", videos=1, clips={"film0-s0-002": b"no film at all" * 9})
    stream = ShotStream(tmp_path / "d", CLIP, global_batch=4)
    with pytest.raises(DataError, match=r"shots/train-00000.tar: film0-s0-002: the clip does not decode") as error:
        next(stream.batches(workers=workers))
    assert "\n" not in str(error.value)


def test_a_clip_of_other_length_than_the_index_says_and_a_cut_shard_are_named(tmp_path):
    grey = np.zeros((5, 72, 128, 3), np.uint8)
    write_dataset(tmp_path / "d", videos=1, clips={"film0-s0-002": encode(grey)})
    stream = ShotStream(tmp_path / "d", CLIP, global_batch=4)
    with pytest.raises(DataError, match="film0-s0-002: the clip has 5 frames, the index says 14"):
        stream[2]
    tar = tmp_path / "d" / "shots" / "train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:9000])
    with pytest.raises(DataError, match=r"train-00000.tar.* ends \d+ bytes early.*film0-s0-003"):
        stream[3]


# ---- references ----


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_a_reference_is_the_most_present_character_from_outside_the_sequence(dataset, n):
    stream = StoryStream(dataset, CLIP, global_batch=1, n=n)
    for number in range(len(stream)):
        sample = stream[number]
        assert sample.character == "Red"  # in every shot; Blue is in some
        assert sample.reference_shot not in sample.keys
        assert not sample.reference_inside
        colours = np.asarray(sample.reference)
        assert sample.reference.mode == "RGB"
        assert tuple(colours[0, 0]) == (255, 255, 255)  # transparent on the sheet
        assert tuple(colours[16, 16]) == CHARACTERS["Red"]


def test_a_whole_story_takes_its_reference_from_inside_and_says_so(dataset):
    sample = StoryStream(dataset, CLIP, global_batch=1, n=5)[0]
    assert sample.reference_shot in sample.keys
    assert sample.reference_inside


def test_the_reference_varies_from_epoch_to_epoch(dataset):
    stream = ShotStream(dataset, CLIP, global_batch=10)
    shots = {
        sample.reference_shot
        for (batch,) in stream.batches(steps=6)
        for sample in batch.samples
        if sample.keys == ("film0-s0-001",)
    }
    assert len(shots) > 1


def test_captions_and_frames_come_in_story_order(dataset):
    sample = StoryStream(dataset, CLIP, global_batch=1, n=3)[0]
    assert [text.split("shot ")[1] for text in sample.descriptive] == ["0.", "1.", "2."]
    assert sample.narrative[0] == "Red and Blue walks on."
