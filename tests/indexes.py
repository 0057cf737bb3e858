"""Indexes without shards, and streams of which nothing is decoded, for tests of order and state."""

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_dataset import write_dataset

from animeshooter_dataset import INDEX_SCHEMA
from streams.clips import ClipSpec


@pytest.fixture(scope="module")
def ten_shots(tmp_path_factory):
    """A dataset of two films of five shots, for a module to give a name."""
    directory = tmp_path_factory.mktemp("tiny") / "animeshooter"
    write_dataset(directory, videos=2, shots=5)
    return directory


@pytest.fixture(autouse=True)
def warnings_are_errors():
    """Has every test of a module that takes it fail at a warning."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", category=UserWarning)
        yield


CLIP = ClipSpec(frames=5, height=32, width=48, fps=4)
BUCKETS = [ClipSpec(frames, height, width, 8) for frames in (5, 17) for height, width in ((32, 48), (32, 32))]


class KeysReader:
    """Hands back what a worker would be asked to decode."""

    def __getitems__(self, requests):
        assert len({(request.place.step, request.clip) for request in requests}) == 1
        return SimpleNamespace(
            step=requests[0].place.step,
            clip=requests[0].clip,
            source=requests[0].place.source,
            samples=[(one.place.slot, tuple(row["key"] for row in one.rows)) for one in requests],
        )


def unread(stream):
    """The same stream, of which nothing is decoded."""
    stream.reader = KeysReader
    return stream


def steps_of(make, state, world, accumulate, count):
    """What all ranks together are handed in ``count`` steps, a list a step, and the state after it."""
    ranks = []
    for rank in range(world):
        stream = unread(make())
        if state is not None:
            stream.load_state_dict(json.loads(json.dumps(state)))
        ranks.append(list(stream.batches(rank, world, accumulate=accumulate, steps=count)))
        after = stream.state_dict()
        assert stream.step == after["step"]
    assert [len(rank) for rank in ranks] == [count] * world
    steps = []
    for parts in zip(*ranks):
        micros = [micro for rank in parts for micro in rank]
        assert len({(micro.step, micro.clip, micro.source, len(micro.samples)) for micro in micros}) == 1
        samples = [sample for micro in micros for sample in micro.samples]
        assert [slot for slot, _ in samples] == list(range(len(samples)))
        steps.append((micros[0].step, micros[0].clip, [keys for _, keys in samples]))
    return steps, after


def varied(directory, stories, seed):
    """An index of shots of different lengths and shapes."""
    write_index(directory, stories, fps=8.0, height=32)
    table = pq.read_table(directory / "index" / "train.parquet")
    rng = np.random.default_rng(seed)
    ends = rng.choice([1, 4, 9, 17, 60], table.num_rows)
    for name, values in (("clean_end", ends), ("width", rng.choice([32, 48], table.num_rows))):
        table = table.set_column(table.schema.get_field_index(name), name, pa.array(values, pa.int32()))
    table = table.set_column(table.schema.get_field_index("frames"), "frames", pa.array(ends, pa.int32()))
    pq.write_table(table, directory / "index" / "train.parquet")
    return directory


def write_index(directory, stories, files=None, **columns):
    """An index without shards: stories of the given numbers of shots."""
    rows = [
        {"key": f"s{story}-{position}", "story": f"s{story}", "video": "film", "position": position, "shard": "shots/x.tar"}
        | {"frames": 9, "clean_start": 0, "clean_end": 9, "characters": ["Red"], "references": 1, "sha256": ""}
        | columns
        for story, shots in enumerate(stories)
        for position in range(shots)
    ]
    (directory / "index").mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=INDEX_SCHEMA), directory / "index" / "train.parquet")
    (directory / "manifest.json").write_text(json.dumps({"schema_version": "1.0", "files": files or {}}))
    return directory


def keys_of(stream, rank=0, world=1, steps=1, **how):
    return [keys for micro in stream.batches(rank, world, steps=steps, **how) for batch in micro for keys in batch.keys]
