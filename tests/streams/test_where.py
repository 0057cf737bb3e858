import numpy as np
import pyarrow as pa
import pytest

from animeshooter_dataset import INDEX_SCHEMA, DataError
from streams.where import Condition, conditions, holds, offered

COLUMNS = ("key", "video", "characters", "licence", "aesthetic", "frames", "talking")
VALUES = [
    ("a", "one", ["Red", "Blue"], "CC0-1.0", 5.0, 9, True),
    ("b", "one", ["Blue"], "CC BY 4.0", 6.5, 20, False),
    ("c", "two", [], None, None, 30, None),
    ("d", "two", None, "all rights reserved", 2.0, 40, None),
]
ROWS = [dict(zip(COLUMNS, values)) for values in VALUES]
TABLE = pa.Table.from_pylist(ROWS, schema=INDEX_SCHEMA)


def kept(*where):
    mask = np.ones(len(ROWS), dtype=bool)
    for condition in conditions(where, INDEX_SCHEMA):
        mask &= holds(condition, TABLE)
    return "".join(row["key"] for row, keep in zip(ROWS, mask) if keep)


@pytest.mark.parametrize(
    ("where", "keys"),
    [
        ("aesthetic>=5", "ab"),
        ("aesthetic > 5", "b"),
        ("aesthetic<5", "d"),
        ("aesthetic != 5", "bd"),  # null meets no condition
        ("frames<=20", "ab"),
        ("frames in 9|40", "ad"),
        ("licence == CC BY 4.0", "b"),
        ("licence in CC0-1.0|CC BY 4.0", "ab"),
        ("licence!=CC0-1.0", "bd"),
        ("licence==null", "c"),
        ("licence!=null", "abd"),
        ("characters has Red", "a"),
        ("characters has Red|Blue", "ab"),
        ("characters has Green", ""),
        ("talking==true", "a"),
        ("talking != true", "b"),
        (("aesthetic", ">=", 5), "ab"),
        (("licence", "in", ["CC0-1.0", "all rights reserved"]), "ad"),
        (("characters", "has", "Blue"), "ab"),
        (("aesthetic", "==", None), "c"),
        (Condition("frames", ">", (20.0,)), "cd"),
    ],
)
def test_a_condition_keeps_the_rows_that_meet_it(where, keys):
    assert kept(where) == keys


def test_all_conditions_must_hold_and_the_table_may_have_dictionaries():
    assert kept("frames>9", "video==one") == "b"
    encoded = TABLE.set_column(2, "video", TABLE["video"].dictionary_encode())
    (condition,) = conditions(["video in two"], INDEX_SCHEMA)
    assert holds(condition, encoded).tolist() == [False, False, True, True]


@pytest.mark.parametrize(
    "text", ["aesthetic>=5.0", "licence in CC0-1.0|CC BY 4.0", "characters has Red", "licence!=null", "talking==True"]
)
def test_a_condition_reads_what_it_writes(text):
    (condition,) = conditions([text], INDEX_SCHEMA)
    assert str(condition) == text
    assert conditions([str(condition)], INDEX_SCHEMA) == [condition]


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("aestetic>=5", "no column 'aestetic'; did you mean aesthetic"),
        ("aesthetic>=high", "'high' is not a number"),
        ("aesthetic=5", "write it as 'aesthetic>=5'"),
        ("aesthetic>=", "write it as"),
        ("licence>=CC0", "licence is no number"),
        ("talking==maybe", "not true or false"),
        ("characters==Red", "characters is a list: use has"),
        ("video has one", "video is no list"),
        ("aesthetic>null", "null is asked for with == or != only"),
        (("frames", "~", 5), "no operator '~'"),
        (("frames", "==", [1, 2]), "use in for several"),
        (("frames", "in", []), "takes"),
    ],
)
def test_what_is_no_condition_is_refused_with_the_mend(where, says):
    with pytest.raises(DataError, match=says.replace("(", r"\(")):
        conditions([where], INDEX_SCHEMA)


def test_what_a_column_offers_is_told():
    assert offered("video", TABLE) == "video has one, two"
    assert offered("characters", TABLE) == "characters has Blue, Red"
    assert offered("aesthetic", TABLE) == "aesthetic runs from 2 to 6.5"
    assert offered("style", TABLE) == "style is null everywhere"
