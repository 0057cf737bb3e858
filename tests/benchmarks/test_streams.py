import importlib.util
import json
import urllib.request
from argparse import Namespace
from dataclasses import asdict

import numpy as np
import pytest
import torch
from tiny_dataset import write_dataset

from animeshooter_dataset import read_index, read_manifest
from benchmarks.index_cost import cost, write_rows
from benchmarks.layout import lay_out
from benchmarks.loopback import serve
from benchmarks.measure import floor, walk
from benchmarks.readers import READERS, Ours
from benchmarks.streams import compare, complaint, make_task, medians, tables

OPTIONS = {"clip": "5x48x64@8", "batch": 3, "workers": 0, "seconds": 0.01, "shots": 7, "shards": 2, "rounds": 1}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    place = tmp_path_factory.mktemp("source") / "data"
    write_dataset(place, videos=1, shots=4)
    return place


@pytest.fixture(scope="module")
def task(source, tmp_path_factory):
    place = tmp_path_factory.mktemp("laid")
    lay_out(source, place / "data", 7, 2)
    return make_task(place / "data", place / "scratch", Namespace(**OPTIONS))


def test_copies_fill_up_and_lie_in_several_shards(task):
    index = read_index(task.data)
    assert index.num_rows == len(set(index["key"].to_pylist())) == 7
    assert len(index["shard"].unique()) >= 2
    assert {name for name in read_manifest(task.data)["files"] if name.endswith(".tar")} == set(index["shard"].to_pylist())


def test_every_reader_gives_the_same_tensors(task):
    readers, found = list(READERS.values()), {}
    for kind in readers:
        if importlib.util.find_spec(kind.needs.split(".")[0]) is None:
            continue
        kind(task).prepare()
        samples = {}
        for batch in kind(task).batches(endless=False):
            assert batch.frames.dtype == torch.uint8
            for key, frames, caption, reference in zip(batch.keys, batch.frames.numpy(), batch.captions, batch.references):
                samples[key] = (frames, caption, np.asarray(reference))
        assert samples.keys() == task.draws.keys()
        found[kind] = samples
    assert len(found) >= 2  # ours and datasets
    for kind in found.keys() - {Ours}:
        for key, (frames, caption, reference) in found[kind].items():
            ours = found[Ours][key]
            assert frames.shape == ours[0].shape == (5, 48, 64, 3)
            # Scaling may be done in another order; another frame or crop would be far off.
            assert np.abs(frames.astype(int) - ours[0]).mean() < 2
            assert caption == ours[1]
            assert np.array_equal(reference, ours[2])


def test_the_comparison_runs_at_its_smallest_and_tells_what_is_missing(source, tmp_path):
    options = Namespace(
        **OPTIONS, directory=source, readers=["ours", "webdataset"], index_shots=0, peers_python="no-such-python"
    )
    found = compare(options, tmp_path)
    assert found["resume"]["ours"]["same_batches"]
    assert found["resume"]["ours"]["missing"] == found["resume"]["ours"]["lost"] == found["resume"]["ours"]["repeated"] == 0
    assert found["resume"]["ours"]["padding"] == 2  # 7 shots in batches of 3
    assert set(found["medians"]) >= {"floor", "floor with ends", "ours"}
    assert "no-such-python" in found["missing"]["webdataset"]
    assert "no-such-python" in tables(json.loads(json.dumps(found)))


def test_a_walk_resumes_where_its_state_was_taken(task, tmp_path):
    whole = walk(READERS["ours"](task), "-", "-", "-")["keys"]
    first = walk(READERS["ours"](task), "-", str(tmp_path / "state"), "1")
    rest = walk(READERS["ours"](task), str(tmp_path / "state"), "-", "-")
    assert first["keys"] + rest["keys"] == whole


def test_the_floor_counts_what_it_decodes(task):
    assert floor(task, ends=False)["shots_per_s"] > 0


def test_ratios_are_taken_within_a_round_and_failures_left_out():
    def speeds(**values):
        return {name: {"shots_per_s": value} if value else {"error": "gone"} for name, value in values.items()}

    rounds = [speeds(floor=10, ours=9, peer=3), speeds(floor=2, ours=1, peer=None), speeds(floor=10, ours=8, peer=4)]
    found = medians(rounds)
    assert found["ours"]["to_floor"] == 0.8
    assert found["peer"]["ours_to_it"] == 2.5
    assert found["peer"]["shots_per_s"] == 3.5


def test_complaints_are_one_line():
    assert complaint("Traceback\nModuleNotFoundError: No module named 'webdataset'\n") == "webdataset is not installed"
    assert complaint("Traceback\n  x\nValueError: no\nleft over") == "ValueError: no"


def test_ranges_over_loopback(tmp_path):
    (tmp_path / "shard").write_bytes(bytes(range(100)))
    with serve(tmp_path) as address:
        request = urllib.request.Request(f"{address}/shard", headers={"Range": "bytes=10-19"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            assert answer.status == 206
            assert answer.read() == bytes(range(10, 20))
        with urllib.request.urlopen(f"{address}/shard", timeout=10) as answer:
            assert len(answer.read()) == 100


def test_the_made_up_index_is_opened_ordered_and_resumed(tmp_path):
    write_rows(tmp_path / "data", shots=3000, stories=200, films=40)
    found = cost(tmp_path / "data", resume_at=50)
    assert 0 < found["samples"] < 3000  # some are rejected
    assert found["samples_missed"] == 0
    assert found["samples_repeated"] == found["steps"] * 1024 - found["samples"]


def test_tasks_travel_as_json(task):
    again = type(task)(**json.loads(json.dumps(asdict(task))))
    assert again.draws.keys() == task.draws.keys()
