import filecmp
import json
import shutil

import pytest
import takedowns
from filelock import FileLock
from packed import write_packed

from animeshooter_dataset import (
    DataError,
    index_name,
    read_audio_index,
    read_index,
    read_manifest,
    read_samples,
    splits,
)
from curation.filter import filter_dataset, preview
from curation.lint import lint
from curation.rules import load_rules, rules_from

STRICT = [{"name": "moves", "column": "motion", "least": 0.2, "why": "a test"}]


def files_of(directory):
    return sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file())


def same(first, second):
    names = files_of(first)
    return names == files_of(second) and filecmp.cmpfiles(first, second, names, shallow=False)[0] == names


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """A dataset of several shards and splits, in which some shots are text, black, or fast."""
    scores = {
        "film00000-000-001": {"text_cover": 0.3},
        "film00001-001-002": {"black_frames": 1.0, "contrast": 0.0, "motion": None},
        "film00002-000-003": {"motion": 0.9},
    }
    shares = {"train": 0.5, "validation": 0.25, "test": 0.25}
    folder = tmp_path_factory.mktemp("packed") / "animeshooter"
    return write_packed(folder, films=8, scores=scores, shares=shares, shard_size=20_000)


def test_the_rules_it_was_built_with_change_no_byte(packed, tmp_path):
    assert len(list((packed / "shots").glob("*.tar"))) > 4
    report = filter_dataset(packed, load_rules(), tmp_path / "same")
    assert same(packed, tmp_path / "same")
    assert report.rejected == 2


def test_a_built_dataset_comes_out_as_it_went_in(walkers, tmp_path):
    filter_dataset(walkers, rules_from(read_manifest(walkers)["rules"], "manifest"), tmp_path / "same")
    assert same(walkers, tmp_path / "same")


def test_other_rules_mark_records_and_index_and_nothing_else(packed, tmp_path):
    rules, out = rules_from(STRICT, "strict.yaml"), tmp_path / "strict"
    report = filter_dataset(packed, rules, out)
    assert (report.shots, report.rejected) == (64, 62)
    before = {key: members for tar in sorted((packed / "shots").glob("*")) for key, members in read_samples(tar)}
    after = {key: members for tar in sorted((out / "shots").glob("*")) for key, members in read_samples(tar)}
    assert before.keys() == after.keys()
    kept = set()
    for key, members in after.items():
        assert {name: members[name] for name in ("mp4", "png")} == {name: before[key][name] for name in ("mp4", "png")}
        record, old = json.loads(members["json"]), json.loads(before[key]["json"])
        assert record | {"rejected_by": old["rejected_by"]} == old
        if not record["rejected_by"]:
            kept.add(key)
    assert kept == {"film00001-001-002", "film00002-000-003"}  # one does not say how much it moves
    marks = {
        row["key"]: row["rejected_by"]
        for split in ("train", "validation", "test")
        for row in read_index(out, split).to_pylist()
    }
    assert {key for key, names in marks.items() if not names} == kept
    assert read_manifest(out)["rules"] == [{**STRICT[0], "missing": "keep"}]
    for name in ("films.jsonl", "rights.jsonl", "dropped.jsonl"):
        assert (out / name).read_bytes() == (packed / name).read_bytes()
    assert filter_dataset(out, load_rules(), tmp_path / "back").rejected == 2
    assert same(packed, tmp_path / "back")


def test_a_dataset_without_an_index_of_audio_clips_gets_one(tmp_path):
    data = takedowns.write(tmp_path / "data")
    whole = {split: read_audio_index(data, split) for split in splits(data, "audio")}
    assert len(whole) > 1
    manifest = read_manifest(data)
    for split in whole:
        (data / index_name("audio", split)).unlink()
        del manifest["files"][index_name("audio", split)]
    (data / "manifest.json").write_text(json.dumps(manifest))
    filter_dataset(data, load_rules(), tmp_path / "new")
    assert lint(tmp_path / "new", decode=False).problems == []
    assert all(read_audio_index(tmp_path / "new", split).equals(table) for split, table in whole.items())


def test_what_comes_out_is_clean(packed, walkers, tmp_path):
    filter_dataset(walkers, rules_from(STRICT, "strict.yaml"), tmp_path / "strict")
    assert lint(tmp_path / "strict").problems == []


def test_a_preview_reads_the_index_alone_and_says_the_same(packed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    for tar in copy.rglob("*.tar"):
        tar.write_bytes(b"")
    rules = rules_from(STRICT, "strict.yaml")
    assert preview(copy, rules) == preview(packed, rules) == filter_dataset(packed, rules, tmp_path / "out")
    assert (preview(copy, rules).films, preview(copy, rules).lost_films) == (8, 6)


def test_a_preview_of_rules_on_every_column(packed):
    from curation.rules import COLUMNS

    limits = {"number": {"least": -1e9}, "word": {"in": ["x"]}, "yes or no": {"equals": True}}
    rules = rules_from([{"name": name, "column": name, "why": "all", **limits[kind]} for name, kind in COLUMNS.items()], "all")
    rejected = {one.name: one.shots for one in preview(packed, rules).rules}
    assert rejected.pop("video") == rejected.pop("licence") == 64
    assert set(rejected.values()) == {0}


def test_the_dataset_itself_is_no_output(packed):
    with pytest.raises(DataError, match="is the dataset itself"):
        filter_dataset(packed, (), packed)
    with pytest.raises(DataError, match="is the dataset itself"):
        filter_dataset(packed, (), packed / "new")


def test_an_output_that_holds_something_else_is_refused(packed, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="is not a dataset directory"):
        filter_dataset(packed, (), tmp_path / "mine")
    assert files_of(tmp_path) == ["mine/letter.txt"]


def test_an_earlier_result_is_replaced(packed, tmp_path):
    filter_dataset(packed, rules_from(STRICT, "strict.yaml"), tmp_path / "out")
    filter_dataset(packed, load_rules(), tmp_path / "out")
    assert same(packed, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_damage_leaves_nothing_behind(packed, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    tar = sorted((copy / "shots").glob("*.tar"))[-1]
    tar.write_bytes(tar.read_bytes()[:3000])
    with pytest.raises(DataError, match=r"shots/.*\.tar") as error:
        filter_dataset(copy, (), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()
    assert files_of(tmp_path) == sorted(f"copy/{name}" for name in files_of(copy))


def test_a_build_at_the_same_output_is_waited_for(packed, tmp_path):
    (tmp_path / "out.work").mkdir()
    with FileLock(tmp_path / "out.work" / "lock"), pytest.raises(DataError, match="a build is writing this output"):
        filter_dataset(packed, (), tmp_path / "out")


def test_staged_results_of_a_build_stay(packed, tmp_path):
    (tmp_path / "out.work" / "film").mkdir(parents=True)
    filter_dataset(packed, load_rules(), tmp_path / "out")
    assert (tmp_path / "out.work" / "film").is_dir()


@pytest.mark.parametrize("name", ["films.jsonl", "rights.jsonl", "dropped.jsonl"])
def test_a_missing_part_is_one_line(packed, tmp_path, name):
    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    (copy / name).unlink()
    with pytest.raises(DataError, match=name) as error:
        filter_dataset(copy, load_rules(), tmp_path / "out")
    assert "\n" not in str(error.value)
