"""Values of JSON that others wrote."""

import math

import pytest

from animeshooter_dataset import DataError
from curation.loose import Fields, Names, Notes, load_json, rate, seconds, whole, window


@pytest.mark.parametrize(
    ("told", "meant"),
    [
        ("01:02", 62.0),
        ("1:00:05", 3605.0),
        ("00:07.5", 7.5),
        ("00:75", 75.0),
        ("9", 9.0),
        (9, 9.0),
        (9.25, 9.25),
        ("0:03,5", 3.5),
    ]
    + [(each, None) for each in ["", "soon", "-00:05", "1:2:3:4", "00:0x", None, True, [], math.nan, -1, 10**4000, "٣:٤"]],
)
def test_times(told, meant):
    assert seconds(told) == meant


@pytest.mark.parametrize("told", ["00:04-00:08", "00:04 – 00:08", "0:04 to 0:08", "4-8", ["00:04", "00:08"], [4, 8]])
def test_windows(told):
    assert window(told) == (4.0, 8.0)
    assert window("00:08-00:04") is None


@pytest.mark.parametrize(
    ("told", "meant"), [(0, 0), (12.0, 12), (12.5, None), ("12", None), (-1, None), (2**31, None), (True, None)]
)
def test_frames(told, meant):
    assert whole(told) == meant


@pytest.mark.parametrize(
    ("told", "meant"), [(30, 30.0), ("29.97", 29.97), (0, None), (math.nan, None), (1e9, None), ("30 fps", None)]
)
def test_rates(told, meant):
    assert rate(told) == meant


def test_a_key_is_found_however_it_is_spelt():
    fields = Fields({"Sound_Description": " a bell\n", "scene": None, "setting": "yard", "n": 3})
    assert fields.text("sound description") == "a bell"
    assert fields.get("scene", "setting") == "yard"
    assert fields.text("n") is None
    assert fields.items("n") == []
    assert not Fields("text")


def test_a_name_as_it_is_written_comes_before_one_that_is_alike():
    names = Names(["Hen", "hen", "red_fox"])
    assert [names.find(told) for told in ("hen", "Hen", "HEN", "Red  Fox", "wolf")] == ["hen", "Hen", "Hen", "red_fox", None]


def test_notes_count_and_give_three_examples():
    notes = Notes()
    for number in range(9):
        notes.add("story 1", "somebody unknown", f"who {number}")
    notes.add("", "something")
    assert notes.lines() == ("story 1: somebody unknown ('who 0', 'who 1', 'who 2') (9 times)", "something")
    for number in range(500):
        notes.add(f"story {number}", "odd")
    assert len(notes.lines()) == 201
    assert notes.lines()[-1] == "and 302 more like these"


def test_json_says_where_it_is_wrong():
    with pytest.raises(DataError, match=r"^a\.zip: b\.json: is not UTF-8 \(byte 7\)"):
        load_json(b'{"a": "\xff"}', "a.zip: b.json")
    assert load_json(b'\xef\xbb\xbf{"a": 1}', "x") == {"a": 1}
