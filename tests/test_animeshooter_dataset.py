import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import shot_record, story_record

import animeshooter_dataset as dataset
from animeshooter_dataset import DataError, ShotRecord, StoryRecord


def test_records_survive_their_json():
    for config, record in (("shots", shot_record()), ("stories", story_record())):
        assert dataset.parse(config, dataset.dump(record), "here") == record


def test_equal_records_are_equal_bytes():
    assert dataset.dump(shot_record(storyline="Ein Fuchs läuft")) == dataset.dump(shot_record(storyline="Ein Fuchs läuft"))
    assert "läuft".encode() in dataset.dump(shot_record(storyline="Ein Fuchs läuft"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"characters": ["Nobody"]}, "Nobody"),
        ({"scene": "Nowhere"}, "Nowhere"),
        ({"frames": 47}, "frames"),
        ({"position": 3}, "position"),
        ({"end_frame": 0}, "end_frame"),
        ({"clean_end_frame": 900}, "clean"),
        ({"key": "Not.A.Key"}, "key"),
        ({"colour": "red"}, "colour"),
        ({"split": "tests"}, "split"),
        ({"schema_version": "2.0"}, "schema_version"),
    ],
)
def test_a_wrong_record_is_one_line_that_names_file_and_field(change, says):
    text = json.dumps(shot_record().model_dump(mode="json") | change)
    with pytest.raises(DataError, match=says) as caught:
        dataset.parse("shots", text, "shots/train-00000.tar: some-key")
    assert str(caught.value).startswith("shots/train-00000.tar: some-key: ")
    assert "\n" not in str(caught.value)


def test_a_reference_from_the_shot_itself_is_refused():
    own = shot_record().references[0].model_copy(update={"shot": shot_record().key})
    with pytest.raises(ValueError, match="another shot"):
        ShotRecord(**shot_record().model_dump() | {"references": [own]})


def test_a_story_with_a_gap_between_its_shots_is_refused():
    story = story_record().model_dump()
    story["shots"][1] |= {"start_frame": 49, "clean_start_frame": 49}
    with pytest.raises(ValueError, match="cover"):
        StoryRecord(**story)


@given(st.text(max_size=80))
def test_any_name_makes_a_key(name):
    import re

    assert re.fullmatch(dataset.KEY_PATTERN, dataset.slug(name))


@given(st.lists(st.text(min_size=1, max_size=20), unique=True, max_size=50))
def test_a_videos_split_depends_on_its_id_alone(names):
    shares = {"train": 0.9, "validation": 0.05, "test": 0.05}
    before = {name: dataset.split_of(name, shares) for name in names}
    assert {name: dataset.split_of(name, shares) for name in names[::2]} == {name: before[name] for name in names[::2]}


def test_splits_come_near_their_shares():
    shares = {"train": 0.8, "validation": 0.1, "test": 0.1}
    found = [dataset.split_of(f"video-{number}", shares) for number in range(5000)]
    assert {split: found.count(split) / 5000 for split in shares} == pytest.approx(shares, abs=0.02)


def test_declared_features_have_every_field_of_the_records():
    for config, record in dataset.RECORDS.items():
        features = dataset.features(config)
        assert set(features["json"]) == set(record.model_fields)
        assert [name for name in features if not name.startswith("__")] == list(dataset.MEMBERS[config])


def test_the_index_of_another_schema_fails_loudly(tmp_path):
    (tmp_path / "manifest.json").write_text('{"schema_version": "2.0"}')
    with pytest.raises(DataError, match=r"schema 2\.0"):
        dataset.read_index(tmp_path)


def test_a_folder_that_is_no_dataset_says_so(tmp_path):
    with pytest.raises(DataError, match="animeshooter build"):
        dataset.read_manifest(tmp_path)
