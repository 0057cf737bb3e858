import warnings

import indexes
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from indexes import CLIP, keys_of
from tiny_dataset import write_dataset

from animeshooter_dataset import DataError
from animeshooter_streams import ShotStream

dataset, _warnings_are_errors = indexes.ten_shots, indexes.warnings_are_errors


# ---- bad samples ----


@pytest.mark.parametrize("workers", [0, 1])
def test_bad_samples_within_the_budget_are_replaced_by_others_of_the_epoch_and_named(tmp_path, capsys, workers):
    write_dataset(tmp_path / "d", videos=1, shots=8, clips={"film0-s0-002": b"no film at all" * 9})
    stream = ShotStream(tmp_path / "d", CLIP, global_batch=4, bad_samples=1)
    whole = [keys for step in range(2) for keys in stream.batch_keys(step)]
    with pytest.warns(UserWarning, match="film0-s0-002 is bad; in its place comes"):
        read = keys_of(stream, steps=2, workers=workers)
    assert stream.bad.names == ["film0-s0-002"]
    assert "bad sample 1 (at most 1): film0-s0-002: " in capsys.readouterr().err
    (place,) = [number for number, keys in enumerate(whole) if keys == ("film0-s0-002",)]
    assert read[:place] + read[place + 1 :] == whole[:place] + whole[place + 1 :]
    assert read[place] in whole
    assert read[place] != whole[place]
    again = ShotStream(tmp_path / "d", CLIP, global_batch=4, bad_samples=1)
    again.load_state_dict(stream.state_dict() | {"step": place // 4})
    with pytest.warns(UserWarning, match="in its place comes"):
        assert keys_of(again, place % 4, 4, steps=1) == [read[place]]


def test_more_bad_samples_than_allowed_stop_the_stream_with_the_last_one_named(tmp_path):
    bad = {f"film0-s0-{number:03}": b"no film at all" * 9 for number in (1, 2)}
    write_dataset(tmp_path / "d", videos=1, shots=8, clips=bad)
    stream = ShotStream(tmp_path / "d", CLIP, global_batch=4, bad_samples=1)
    warnings.simplefilter("ignore")
    with pytest.raises(DataError, match=r"2 bad samples, the budget is 1: film0-s0-00[12], film0-s0-00[12] "):
        keys_of(stream, steps=4)


def test_an_index_of_another_dataset_is_found_out(tmp_path):
    write_dataset(tmp_path / "d", videos=1, shots=4)
    path = tmp_path / "d" / "index" / "train.parquet"
    table = pq.read_table(path)
    keys = table["key"].to_pylist()
    pq.write_table(table.set_column(0, "key", pa.array([keys[1], keys[0], *keys[2:]])), path)
    with pytest.raises(DataError, match="the shard holds film0-s0-000 there"):
        ShotStream(tmp_path / "d", CLIP, global_batch=4)[0]


# ---- under other libraries ----


def test_prepare_of_accelerate_leaves_the_batches_alone(dataset):
    from accelerate import Accelerator

    stream = ShotStream(dataset, CLIP, global_batch=4)
    batches = stream.batches(steps=2)
    prepared = Accelerator(cpu=True).prepare(batches)
    assert prepared is batches
    assert [batch.keys for (batch,) in prepared] == [stream.batch_keys(step) for step in range(2)]


def test_pictures_travel_from_a_worker_once_and_samples_show_the_batch_s(dataset):
    import pickle

    for workers in (0, 1):
        ((batch,),) = ShotStream(dataset, CLIP, global_batch=4).batches(steps=1, workers=workers)
        assert all(np.shares_memory(one.frames, batch.frames.numpy()) for one in batch.samples)
        assert all((one.last == batch.last[number].numpy()).all() for number, one in enumerate(batch.samples))
    pixels = sum(getattr(batch, name).numel() for name in ("frames", "first", "last"))
    assert pixels < len(pickle.dumps(batch)) < 1.6 * pixels
