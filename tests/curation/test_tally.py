import io
import json
import shutil
import tarfile

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from packed import write_packed

from animeshooter_dataset import DataError
from curation import index, tally
from curation.tally import Distribution, gather


def distribution_of(values, step):
    found = Distribution(step)
    found.add_all(np.asarray(values, float))
    return found


@given(st.lists(st.integers(-50, 500), min_size=1, max_size=60), st.floats(0, 1))
def test_quantiles_of_whole_numbers_are_exact(values, share):
    assert distribution_of(values, 1).quantile(share) == pytest.approx(float(np.quantile(values, share)), abs=1e-9)


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), st.floats(0, 1))
def test_quantiles_of_others_are_within_half_a_step(values, share):
    found = distribution_of(values, 0.01)
    assert found.quantile(share) == pytest.approx(float(np.quantile(values, share)), abs=0.00501)
    assert (found.least, found.most) == (min(values), max(values))


@given(st.lists(st.floats(-5, 5), max_size=30), st.lists(st.floats(-5, 5), max_size=30))
def test_parts_add_up(first, second):
    both, one = distribution_of(first, 0.1), Distribution(0.1)
    both.merge(distribution_of(second, 0.1))
    for value in first + second:
        one.add(value)
    assert (both.counts, both.number) == (one.counts, one.number)
    assert both.total == pytest.approx(one.total)
    assert (both.least, both.most) == (one.least, one.most)


def test_what_is_not_known_is_not_counted():
    found = distribution_of([1.0, np.nan, 3.0], 0.1)
    assert (found.number, found.total) == (2, 4)
    assert not distribution_of([np.nan], 0.1)


def test_memory_does_not_grow_with_values():
    found = distribution_of(np.random.default_rng(0).uniform(0, 1, 200_000), 0.0005)
    assert len(found.counts) <= 2001


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    return write_packed(tmp_path_factory.mktemp("packed") / "animeshooter", films=3)


@pytest.fixture
def spoilt(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "copy")
    return tmp_path / "copy"


def rewrite(tar, change):
    """Pass every member of a tar through ``change(name, blob)``, which gives a blob or None to leave it out."""
    with tarfile.open(tar) as archive:
        entries = [(entry.name, archive.extractfile(entry).read()) for entry in archive]
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, old in entries:
            blob = change(name, old)
            if blob is not None:
                entry = tarfile.TarInfo(name)
                entry.size = len(blob)
                archive.addfile(entry, io.BytesIO(blob))


def change_stories(directory, change):
    def changed(name, blob):
        if not name.endswith(".json"):
            return blob
        record = json.loads(blob)
        change(record)
        return json.dumps(record).encode()

    rewrite(directory / "stories" / "train-00000.tar", changed)


def test_stories_come_with_the_rows_of_their_shots(packed):
    seen = []
    gather(packed, seen.append)
    assert [each.story["key"] for each in seen] == [f"film{film:05d}-{story:03d}" for film in range(3) for story in range(2)]
    for each in seen:
        assert [row["key"] for row in each.rows] == [shot["key"] for shot in each.story["shots"]]
        assert each.tar == packed / "stories" / "train-00000.tar"


def test_a_story_longer_than_a_batch_of_the_index_is_whole(packed, monkeypatch):
    monkeypatch.setattr(index, "BATCH", 3)
    tallies = gather(packed)
    assert tallies["train"].counts["shots"] == tallies["train"].values["shot_seconds"].number == 24


def test_a_sample_of_a_large_dataset_is_checked(packed, monkeypatch):
    monkeypatch.setattr(tally, "CHECKED", 6)
    assert gather(packed)["train"].counts["shots_checked"] == 6


def one_line(error):
    assert "\n" not in str(error.value)
    assert str(error.value).count("again") == 1 or "schema" in str(error.value) or "Field required" in str(error.value)


@pytest.mark.parametrize("size", [100, 512, 5000])
@pytest.mark.parametrize("config", ["shots", "stories"])
def test_a_damaged_tar_is_one_line(spoilt, config, size):
    tar = spoilt / config / "train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:size])
    with pytest.raises(DataError, match=r"train-00000|shots of no story") as error:
        gather(spoilt)
    one_line(error)


@pytest.mark.parametrize("size", [100, 512, 5000])
def test_a_damaged_tar_of_sound_is_one_line(copy, size):
    tar = copy / "audio" / "train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:size])
    with pytest.raises(DataError, match=r"audio/train-00000") as error:
        gather(copy)
    one_line(error)


def test_a_shard_that_is_missing_is_one_line(spoilt):
    shutil.copy(spoilt / "shots" / "train-00000.tar", spoilt / "shots" / "train-00001.tar")
    (spoilt / "shots" / "train-00000.tar").unlink()
    with pytest.raises(DataError, match="named in the index but not there") as error:
        gather(spoilt)
    one_line(error)


def test_a_story_that_lost_a_shot_is_found(spoilt):
    change_stories(spoilt, lambda story: story["shots"].pop() if story["key"] == "film00001-000" else None)
    with pytest.raises(DataError, match=r"film00001-000") as error:
        gather(spoilt)
    assert "\n" not in str(error.value)


def test_a_lost_story_is_found(spoilt):
    rewrite(spoilt / "stories" / "train-00000.tar", lambda name, blob: None if name.startswith("film00002-001") else blob)
    with pytest.raises(DataError, match="shots of no story") as error:
        gather(spoilt)
    one_line(error)


def test_shots_in_another_order_are_found(spoilt):
    path = spoilt / "index" / "train.parquet"
    table = pq.read_table(path)
    pq.write_table(table.take([1, 0, *range(2, table.num_rows)]), path)
    with pytest.raises(DataError, match="lists other shots") as error:
        gather(spoilt)
    one_line(error)


def test_a_record_that_lies_elsewhere_is_found(spoilt):
    path = spoilt / "index" / "train.parquet"
    table = pq.read_table(path)
    offsets = table["json_offset"].to_pylist()
    column = table.schema.get_field_index("json_offset")
    pq.write_table(table.set_column(column, "json_offset", [[offsets[1], *offsets[1:]]]), path)
    with pytest.raises(DataError, match=r"shots/train-00000\.tar: film00000-000-000: another record") as error:
        gather(spoilt)
    one_line(error)


@pytest.mark.parametrize("checked", [2000, 1])
def test_a_record_of_another_schema_is_named_even_if_it_is_not_in_the_sample(spoilt, monkeypatch, checked):
    monkeypatch.setattr(tally, "CHECKED", checked)
    change_stories(spoilt, lambda story: story.pop("storyline") if story["key"] == "film00002-000" else None)
    with pytest.raises(DataError, match=r"stories/train-00000\.tar: film00002-000.*storyline") as error:
        gather(spoilt)
    assert "\n" not in str(error.value)


def test_an_index_without_scores_is_of_an_older_version(spoilt):
    path = spoilt / "index" / "train.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["motion"]), path)
    with pytest.raises(DataError, match=r"train\.parquet: has no column 'motion'.*build the dataset again") as error:
        gather(spoilt)
    assert "\n" not in str(error.value)


def test_a_shard_outside_the_dataset_is_not_read(spoilt):
    (spoilt.parent / "shots").mkdir()
    shutil.copy(spoilt / "shots" / "train-00000.tar", spoilt.parent / "shots" / "train-00000.tar")
    path = spoilt / "index" / "train.parquet"
    table = pq.read_table(path)
    column = table.schema.get_field_index("shard")
    pq.write_table(table.set_column(column, "shard", [["../shots/train-00000.tar"] * table.num_rows]), path)
    with pytest.raises(DataError, match="not there"):
        gather(spoilt)
