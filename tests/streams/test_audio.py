import hashlib
import json
import shutil
import warnings

import films
import heard
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from animeshooter_dataset import DataError, read_audio_index, read_samples, shards
from curation import pack
from curation.filter import filter_dataset
from curation.lint import lint
from streams.audio import AudioStream
from streams.clips import ClipSpec
from streams.sound import SoundSpec
from streams.store import Store, StoreOptions

FRAMES = ClipSpec(frames=17, height=heard.SIZE[1], width=heard.SIZE[0], fps=8)
SECONDS = dict(enumerate(end - start for start, end in heard.CLIPS))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return heard.write_heard(tmp_path_factory.mktemp("heard"))


@pytest.fixture
def changed(dataset, tmp_path):
    """A copy, and a function that changes rows of its index of audio clips."""
    folder = tmp_path / "animeshooter"
    shutil.copytree(dataset, folder)

    def change(function):
        path = folder / "index" / "audio-train.parquet"
        table = pq.read_table(path)
        pq.write_table(pa.Table.from_pylist([function(row) for row in table.to_pylist()], schema=table.schema), path)
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"] |= {"index/audio-train.parquet": pack.file_hash(path)}
        (folder / "manifest.json").write_text(json.dumps(manifest))
        return folder

    return change


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        yield


@pytest.fixture
def reads(monkeypatch):
    """What is read of the shards: (file, offset, size)."""
    found, true = [], Store.range

    def told(self, name, offset, size, *more, **named):
        found.append((name, offset, size))
        return true(self, name, offset, size, *more, **named)

    monkeypatch.setattr(Store, "range", told)
    return found


def samples_of(stream, steps, **how):
    return [sample for (batch,) in stream.batches(steps=steps, **how) for sample in batch.samples]


def keys_of(stream, rank, world, steps):
    return [[key for (key,) in batch.keys] for (batch,) in stream.batches(rank, world, steps=steps)]


# ---- the index ----


def test_the_index_has_a_row_a_clip_in_the_order_of_the_shards_with_its_bytes(dataset):
    rows = read_audio_index(dataset).to_pylist()
    stored = [found for tar in shards(dataset, "audio", "train") for found in read_samples(tar)]
    assert [row["key"] for row in rows] == [key for key, _ in stored]
    assert len(rows) == 8
    for row, (_, members) in zip(rows, stored):
        shard = (dataset / row["shard"]).read_bytes()
        for member, blob in members.items():
            assert shard[row[f"{member}_offset"] : row[f"{member}_offset"] + row[f"{member}_size"]] == blob
        assert row["sha256"] == hashlib.sha256(members["flac"]).hexdigest()
        assert row["mp4_sha256"] == hashlib.sha256(members["mp4"]).hexdigest()
        record = json.loads(members["json"])
        same = ("video", "story", "position", "frames", "fps", "height", "width", "samples", "sample_rate", "channels")
        assert {name: row[name] for name in same} == {name: record[name] for name in same}
        words = ("type", "characters", "shots", "licence")
        assert {name: row[name] for name in words} == {name: record[name] for name in words}
        assert {name: row[name] for name in record["sound"]} == record["sound"]
    assert lint(dataset).problems == []


def test_the_index_is_written_some_rows_at_a_time(tmp_path, dataset, monkeypatch):
    monkeypatch.setattr(pack, "INDEX_ROWS", 3)
    filter_dataset(dataset, (), tmp_path / "other")
    assert pq.ParquetFile(tmp_path / "other" / "index" / "audio-train.parquet").num_row_groups == 3
    assert read_audio_index(tmp_path / "other").equals(read_audio_index(dataset))


def test_a_dataset_without_the_index_says_how_to_come_by_it(dataset, tmp_path):
    shutil.copytree(dataset, tmp_path / "old")
    (tmp_path / "old" / "index" / "audio-train.parquet").unlink()
    manifest = json.loads((tmp_path / "old" / "manifest.json").read_text())
    del manifest["files"]["index/audio-train.parquet"]
    (tmp_path / "old" / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"no index/audio-train.parquet: .* `animeshooter filter DIR --out NEW`$") as error:
        AudioStream(tmp_path / "old", SoundSpec(2), global_batch=2)
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="no audio clips in split 'test'; the splits with audio clips: train"):
        AudioStream(dataset, SoundSpec(2), global_batch=2, split="test")


# ---- sound and pictures ----


@pytest.mark.parametrize(("rate", "channels"), [(16000, 1), (44100, 2)])
def test_sound_begins_with_the_first_frame(dataset, rate, channels):
    """Frames say where in the film they lie, clicks too: both are compared with each other, not with what the sample says."""
    stream = AudioStream(dataset, SoundSpec(1.5, rate, channels), FRAMES, global_batch=4)
    starts = set()
    for sample in samples_of(stream, 6):
        numbers = [films.read_number(frame) for frame in sample.frames]
        begin = numbers[0] / heard.FPS
        position = int(sample.key[-3:])
        assert begin == pytest.approx(heard.CLIPS[position][0] + sample.start, abs=1e-4)
        due = begin + np.arange(17) / FRAMES.fps
        assert np.array(numbers) / heard.FPS == pytest.approx(due, abs=1 / heard.FPS + 1e-6)
        loud = np.flatnonzero(np.abs(sample.waveform[0]) > 0.3) / rate + begin
        clicks = [beat * heard.BEAT for beat in range(40) if begin <= beat * heard.BEAT < begin + 1.5]
        clicks = [time for time in clicks if time < heard.SILENT_FROM]
        assert sorted({round(time / heard.BEAT) * heard.BEAT for time in loud}) == clicks
        assert all(-1.5 / rate <= time - round(time / heard.BEAT) * heard.BEAT <= 0.002 + 1.5 / rate for time in loud)
        assert sample.mask.all()
        starts.add(sample.start)
    assert len(starts) > 10  # drawn anew each epoch


def test_without_frames_no_byte_of_video_is_read(dataset, reads):
    stream = AudioStream(dataset, SoundSpec(2), global_batch=8, reference=False)
    ((batch,),) = stream.batches(steps=1)
    assert (batch.frames, batch.clip) == (None, None)
    assert all(sample.frames is None for sample in batch.samples)
    rows = {row["flac_offset"]: row for row in read_audio_index(dataset).to_pylist()}
    assert {offset for _, offset, _ in reads} == rows.keys()
    assert all(name == "audio/train-00000.tar" for name, _, _ in reads)
    for _, offset, size in reads:
        assert size <= rows[offset]["flac_size"] + rows[offset]["json_size"] + 1024


def test_silent_clips_are_zeros_and_no_padding(dataset):
    stream = AudioStream(dataset, SoundSpec(2), FRAMES, global_batch=2, where=["type==silence"])
    assert len(stream) == 2
    for sample in samples_of(stream, 2):
        assert sample.type == "silence"
        assert (sample.waveform == 0).all()
        assert sample.mask.all()
        assert sample.frames.std() > 10


def test_clips_shorter_than_the_waveform_are_padded_and_masked(dataset):
    stream = AudioStream(dataset, SoundSpec(4.75, 8000, 2), global_batch=8)
    assert "4 shorter than 4.75 s" in stream.describe()
    ((batch,),) = stream.batches(steps=1)
    assert (batch.waveform.shape, batch.waveform.dtype.itemsize, batch.mask.shape) == ((8, 2, 38000), 4, (8, 38000))
    for sample, mask in zip(batch.samples, batch.mask):
        seconds = min(4.75, SECONDS[int(sample.key[-3:])])
        assert mask.sum() == round(seconds * 8000)
        assert (np.flatnonzero(mask) < seconds * 8000).all()
        assert (sample.waveform[:, ~sample.mask] == 0).all()
        assert seconds == 4.75 or sample.start == 0


def test_clips_that_end_before_their_last_frame_are_left_out_and_counted(dataset):
    long = ClipSpec(frames=41, height=32, width=48, fps=8)  # 5 seconds, which two of four parts have
    stream = AudioStream(dataset, SoundSpec(2), long, global_batch=4)
    assert "8 audio clips, 8 chosen, 4 shorter than its frames left out, 4 samples" in stream.describe()
    for sample in samples_of(stream, 2):
        assert sample.frames.shape == (41, 32, 48, 3)
        assert sample.key[-3:] in ("001", "003")
    with pytest.raises(DataError, match=r"nothing to train on .* 8 shorter than its frames left out, 0 samples"):
        AudioStream(dataset, SoundSpec(2), ClipSpec(97, 32, 48, 8), global_batch=4)


def test_words_are_those_of_the_clip(dataset):
    sample = AudioStream(dataset, SoundSpec(1), global_batch=1)[5]
    assert sample.key == "film1-000-a001"
    assert (sample.type, sample.sound_description) == ("sound effect", "Clicks of film1-000, part 1.")
    assert (sample.visual_context, sample.narrative) == ("A strip counts in part 1.", "Part 1 goes by.")
    assert sample.descriptive == "Numbers of film1-000 in part 1."


@pytest.mark.parametrize("frames", [None, FRAMES])
def test_references_are_of_the_clip_s_characters_from_shots_it_does_not_show(dataset, frames):
    stream = AudioStream(dataset, SoundSpec(1), frames, global_batch=8)
    found = samples_of(stream, 4)
    for sample in found:
        start, end = heard.CLIPS[int(sample.key[-3:])]
        shown = {f"{sample.key[:9]}-{n:03d}" for n in range(heard.SHOTS) if n * 5 < end and start < (n + 1) * 5}
        assert sample.reference_shot[:9] == sample.key[:9]
        assert sample.reference_shot not in shown
        assert sample.character in (["Crow"] if sample.key.endswith("3") else ["Fox", "Crow"])
        assert sample.reference.mode == "RGB"
        assert np.asarray(sample.reference)[8, 8].tolist() == list(heard.COLOURS[sample.character])
    assert len({(sample.key, sample.reference_shot) for sample in found}) > 8
    bare = AudioStream(dataset, SoundSpec(1), frames, global_batch=8, reference=False)[0]
    assert (bare.reference, bare.character, bare.reference_shot) == (None, None, None)


# ---- order and state ----


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_every_epoch_exactly_once(dataset, world):
    whole = AudioStream(dataset, SoundSpec(1), global_batch=4, seed=3, reference=False)
    parts = [
        keys_of(AudioStream(dataset, SoundSpec(1), global_batch=4, seed=3, reference=False), rank, world, 4)
        for rank in range(world)
    ]
    assert {len(part) for part in parts} == {4}
    steps = [[key for part in parts for key in part[step]] for step in range(4)]
    assert steps == [[key for (key,) in whole.batch_keys(step)] for step in range(4)]
    for epoch in (steps[:2], steps[2:]):
        assert sorted(key for step in epoch for key in step) == sorted(read_audio_index(dataset)["key"].to_pylist())
    assert steps[:2] != steps[2:]


def test_resuming_again_and_again_on_other_processes_is_as_if_never_stopped(dataset):
    def stream():
        return AudioStream(dataset, SoundSpec(1), FRAMES, global_batch=4, seed=5)

    whole = [batch for (batch,) in stream().batches(steps=5)]
    state, waveforms, keys = stream().state_dict(), [], []
    for count, world in ((1, 2), (2, 1), (1, 4), (1, 2)):
        ranks = [stream() for _ in range(world)]
        for one in ranks:
            one.load_state_dict(json.loads(json.dumps(state)))
        parts = [[batch for (batch,) in one.batches(rank, world, steps=count)] for rank, one in enumerate(ranks)]
        for step in range(count):
            keys.append([key for part in parts for key in part[step].keys])
            waveforms.append(np.concatenate([part[step].waveform for part in parts]))
        state = ranks[0].state_dict()
        assert all(one.state_dict() == state for one in ranks)
    assert keys == [batch.keys for batch in whole]
    assert all((one == batch.waveform.numpy()).all() for one, batch in zip(waveforms, whole, strict=True))


def test_what_changed_since_the_state_was_taken_is_named(dataset, changed):
    state = AudioStream(dataset, SoundSpec(1), global_batch=4).state_dict()
    with pytest.raises(DataError, match=r"sound was .*'seconds': 1.* is .*'seconds': 2"):
        AudioStream(dataset, SoundSpec(2), global_batch=4).load_state_dict(state)
    with pytest.raises(DataError, match="seed was 0, is 1"):
        AudioStream(dataset, SoundSpec(1), global_batch=4, seed=1).load_state_dict(state)
    other = changed(lambda row: row | {"sha256": "0" * 64})
    with pytest.raises(DataError, match="sounds was") as error:
        AudioStream(other, SoundSpec(1), global_batch=4).load_state_dict(state)
    assert "keys was" not in str(error.value)


def test_two_workers_give_what_the_process_itself_gives(dataset):
    here, there = (
        [batch for (batch,) in AudioStream(dataset, SoundSpec(1), FRAMES, global_batch=4).batches(steps=3, workers=workers)]
        for workers in (0, 2)
    )
    for one, other in zip(here, there, strict=True):
        assert (one.keys, one.slots, one.step, one.epoch) == (other.keys, other.slots, other.step, other.epoch)
        for name in ("waveform", "mask", "frames"):
            assert (getattr(one, name) == getattr(other, name)).all()
            for number, sample in enumerate(other.samples):
                assert (getattr(sample, name) == getattr(other, name)[number].numpy()).all()
        assert [a.start for a in one.samples] == [b.start for b in other.samples]
        assert [a.reference.tobytes() for a in one.samples] == [b.reference.tobytes() for b in other.samples]


# ---- what is chosen ----


def test_clips_are_chosen_by_columns_of_the_index(dataset):
    stream = AudioStream(dataset, SoundSpec(1), global_batch=2, where=["licence==CC BY 4.0"])
    assert sorted(key for step in range(1) for (key,) in stream.batch_keys(step)) == ["film0-000-a000", "film1-000-a000"]
    assert len(AudioStream(dataset, SoundSpec(1), global_batch=1, where=["silence<0.95", "video==film1"])) == 3
    with pytest.raises(DataError, match=r"no row with type==music in split 'train'; type has silence, sound effect"):
        AudioStream(dataset, SoundSpec(1), global_batch=1, where=["type==music"])
    with pytest.raises(DataError, match="no column 'typ'; did you mean type"):
        AudioStream(dataset, SoundSpec(1), global_batch=1, where=["typ==music"])


def test_fewer_clips_than_the_global_batch_is_said(dataset):
    with pytest.warns(UserWarning, match="8 clips are fewer than the global batch of 16"):
        stream = AudioStream(dataset, SoundSpec(1), global_batch=16, reference=False)
    assert len(stream.batch_keys(0)) == 16
    with pytest.raises(DataError, match="8 samples for 9 processes"):
        next(stream.batches(0, 9))


# ---- damage ----


def test_a_row_whose_hash_differs_is_found_when_asked(changed):
    folder = changed(lambda row: row | ({"sha256": "0" * 64} if row["key"] == "film0-000-a002" else {}))
    assert AudioStream(folder, SoundSpec(1), global_batch=1)[2].key == "film0-000-a002"
    checking = AudioStream(folder, SoundSpec(1), FRAMES, global_batch=1, options=StoreOptions(verify=True))
    assert checking[1].key == "film0-000-a001"
    with pytest.raises(DataError, match=r"audio/train-00000.tar: film0-000-a002: its flac differs from the sha256") as error:
        checking[2]
    assert "\n" not in str(error.value)


def test_video_is_checked_too_when_it_is_read(changed):
    folder = changed(lambda row: row | {"mp4_sha256": "0" * 64})
    options = StoreOptions(verify=True)
    assert AudioStream(folder, SoundSpec(1), global_batch=1, options=options)[0].key == "film0-000-a000"
    with pytest.raises(DataError, match="film0-000-a000: its mp4 differs from the mp4_sha256"):
        AudioStream(folder, SoundSpec(1), FRAMES, global_batch=1, options=options)[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_a_cut_flac_is_named_with_its_shard(changed, workers):
    folder = changed(lambda row: row | {"flac_size": row["flac_size"] // 2 if row["position"] == 1 else row["flac_size"]})
    stream = AudioStream(folder, SoundSpec(5), global_batch=8, reference=False)
    says = r"audio/train-00000.tar: film\d-000-a001: its flac (does not decode|decodes to \d+ samples, the index says 240000)"
    with pytest.raises(DataError, match=says) as error:
        next(stream.batches(workers=workers))
    assert "\n" not in str(error.value)


def test_as_many_bad_clips_as_allowed_are_replaced_and_named(changed):
    folder = changed(lambda row: row | {"flac_size": 100 if row["key"] == "film0-000-a001" else row["flac_size"]})
    stream = AudioStream(folder, SoundSpec(5), global_batch=8, reference=False, bad_samples=1)
    with pytest.warns(UserWarning, match=r"film0-000-a001 is bad; in its place comes film\d-000-a00\d"):
        ((batch,),) = stream.batches(steps=1)
    assert batch.waveform.shape == (8, 1, 80000)
    assert ("film0-000-a001",) not in batch.keys
    assert all((sample.waveform == waveform.numpy()).all() for sample, waveform in zip(batch.samples, batch.waveform))


def test_a_cut_shard_is_named(changed):
    folder = changed(lambda row: row)
    tar = folder / "audio" / "train-00000.tar"
    last = read_audio_index(folder).to_pylist()[-1]
    tar.write_bytes(tar.read_bytes()[: last["flac_offset"] + 99])
    stream = AudioStream(folder, SoundSpec(1), global_batch=1)
    with pytest.raises(DataError, match=r"animeshooter/audio/train-00000.tar.*film1-000-a003") as error:
        stream[7]
    assert "\n" not in str(error.value)


def test_an_index_of_another_dataset_is_named(changed):
    folder = changed(lambda row: row)
    moved = [row["json_offset"] for row in read_audio_index(folder).to_pylist()]
    folder = changed(lambda row: row | {"json_offset": moved[0], "json_size": 1000} if row["position"] == 1 else row)
    with pytest.raises(DataError, match=r"train-00000.tar: film0-000-a001"):
        AudioStream(folder, SoundSpec(1), global_batch=1)[1]
