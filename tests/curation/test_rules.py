import json

import pytest
import yaml

from animeshooter_dataset import DataError
from curation.rules import COLUMNS, DEFAULT, RuleTally, dump_rules, load_rules, rejected_by, rules_from

NORMAL = {
    "frames": 96,
    "fps": 24.0,
    "clean_start": 0,
    "clean_end": 90,
    "height": 480,
    "width": 854,
    "characters": ["Fox", "Crow"],
    "text_cover": 0.002,
    "motion": 0.05,
    "held_frames": 0.6,
    "brightness": 110.0,
    "contrast": 40.0,
    "black_frames": 0.0,
    "picture_share": 1.0,
    "style": "2D",
    "talking": None,
    "has_audio": True,
    "licence": "CC0-1.0",
}


def written(tmp_path, text):
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    return path


def rule(**values):
    (made,) = rules_from([{"name": "one", "why": "a test", **values}], "here")
    return made


def test_the_default_keeps_a_normal_shot_and_says_where_each_limit_comes_from():
    rules = load_rules()
    assert rejected_by(rules, NORMAL) == []
    assert all(len(rule.why) > 10 for rule in rules)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"clean_end": 6}, ["too short"]),
        ({"text_cover": 0.2}, ["text"]),
        ({"black_frames": 1.0, "contrast": 0.0, "motion": None}, ["black", "flat"]),
        ({"motion": 0.0, "held_frames": 1.0}, ["still"]),
        ({"picture_share": 0.3}, ["bars"]),
        ({"picture_share": 0.75}, []),
        ({"text_cover": None, "motion": None, "contrast": None}, []),
    ],
)
def test_the_default_rejects_what_no_training_wants(change, names):
    assert rejected_by(load_rules(), NORMAL | change) == names


@pytest.mark.parametrize(
    ("values", "passing", "failing"),
    [
        ({"column": "motion", "least": 0.1}, 0.1, 0.09),
        ({"column": "motion", "most": 0.1}, 0.1, 0.11),
        ({"column": "motion", "least": 0.1, "most": 0.2}, 0.15, 0.25),
        ({"column": "style", "equals": "2D"}, "2D", "3D"),
        ({"column": "talking", "equals": False}, False, True),
        ({"column": "licence", "in": ["CC0-1.0", "CC-BY-4.0"]}, "CC0-1.0", "all rights reserved"),
        ({"column": "height", "equals": 480}, 480, 360),
    ],
)
def test_every_kind_of_rule(values, passing, failing):
    made = rule(**values)
    assert made.passes(NORMAL | {values["column"]: passing})
    assert not made.passes(NORMAL | {values["column"]: failing})
    assert made.passes(NORMAL | {values["column"]: None})
    assert not rule(**values, missing="reject").passes(NORMAL | {values["column"]: None})


def test_derived_columns():
    assert rule(column="seconds", least=4, most=4).passes(NORMAL)
    assert rule(column="clean_seconds", least=3.75, most=3.75).passes(NORMAL)
    assert rule(column="short_side", equals=480).passes(NORMAL)
    assert rule(column="characters", least=2, most=2).passes(NORMAL)


def test_rules_go_through_json_unchanged():
    rules = load_rules()
    plain = json.loads(json.dumps(dump_rules(rules)))
    assert rules_from(plain, "manifest.json") == rules
    assert "in_" not in json.dumps(plain)
    assert all(None not in entry.values() for entry in plain)


GOOD = {"name": "one", "column": "motion", "least": 1, "why": "a test"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"column": "text_cove"}, r"rule 'one': .*unknown column 'text_cove'; did you mean 'text_cover'\?"),
        ({"column": "zzz"}, "unknown column 'zzz'; there are .*aesthetic"),
        ({"column": "mp4_offset"}, "unknown column"),
        ({"least": None}, "give a range"),
        ({"equals": 3}, "give a range"),
        ({"least": "much"}, "least: "),
        ({"least": float("nan")}, "least: "),
        ({"least": 2, "most": 1}, "every shot fails"),
        ({"column": "style"}, "holds a word: use 'equals' or 'in'"),
        ({"least": None, "equals": "fast"}, "holds a number, 'fast' is a word"),
        ({"column": "talking", "least": None, "equals": 1}, "holds a yes or no, 1 is a number"),
        ({"missing": "maybe"}, "missing: "),
        ({"why": ""}, "why: "),
        ({"wy": "typo"}, "wy: "),
        ({"least": None, "in": []}, "in: "),
    ],
)
def test_a_wrong_rule_is_one_line_that_names_it(change, message):
    values = {name: value for name, value in (GOOD | change).items() if value is not None}
    with pytest.raises(DataError, match=message) as error:
        rules_from([values], "my.yaml")
    assert str(error.value).startswith("my.yaml: rule 'one': ")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rules: [", "not YAML"),
        ("- name: one", "no list of 'rules'"),
        ("rules: {name: one}", "no list of 'rules'"),
        ("", "no list of 'rules'"),
        ("rules: [7]", "rules.0: "),
        ("rules: !!python/object/apply:os.getcwd []", "not YAML"),
        ("rule: []\nrules: []", "rule: "),
    ],
)
def test_a_file_that_is_none_is_one_line(tmp_path, text, message):
    path = written(tmp_path, text)
    with pytest.raises(DataError, match=message) as error:
        load_rules(path)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(DataError, match="No such file"):
        load_rules(tmp_path / "none.yaml")


def test_two_rules_of_one_name_are_refused():
    with pytest.raises(DataError, match="two rules are called 'one'"):
        rules_from([GOOD, GOOD | {"most": 2}], "here")


def test_no_rules_reject_nothing(tmp_path):
    assert load_rules(written(tmp_path, "rules: []")) == ()
    assert rejected_by((), NORMAL) == []


def test_places_in_the_dataset_are_no_columns():
    assert {"text_cover", "seconds", "loudness", "licence"} <= COLUMNS.keys()
    assert not {"key", "shard", "sha256", "mp4_offset", "json_size", "rejected_by"} & COLUMNS.keys()


def tally():
    found = RuleTally()
    for film, seconds, names in [
        ("a", 2.0, []),
        ("a", 3.0, ["text"]),
        ("a", 4.0, ["text", "black"]),
        ("b", 5.0, ["black"]),
        ("b", 6.0, ["black"]),
    ]:
        found.add(film, seconds, names)
    return found


def test_what_each_rule_rejects_alone_and_with_others():
    rules = load_rules()
    report = tally().report(rules)
    assert (report.shots, report.rejected, report.seconds, report.rejected_seconds) == (5, 4, 20, 18)
    assert (report.films, report.lost_films) == (2, 1)
    by = {one.name: one for one in report.rules}
    assert list(by) == [rule.name for rule in rules]
    assert (by["text"].shots, by["text"].alone, by["text"].films, by["text"].seconds) == (2, 1, 1, 7)
    assert (by["black"].shots, by["black"].alone, by["black"].films, by["black"].alone_seconds) == (3, 2, 2, 11)
    assert by["still"].shots == 0
    assert dict(report.together) == {("text",): 1, ("text", "black"): 1, ("black",): 2}
    assert json.loads(json.dumps(report.as_dict()))["rules"][1]["alone"] == 1


def test_the_report_in_words():
    text = tally().report(load_rules()).text()
    assert "4 of 5 shots are rejected (80.0 %" in text
    assert "1 of 2 films lose every shot" in text
    assert "1 by text and black together" in text
    assert "text_cover at most 0.01" in text
    assert RuleTally().report(()).text().endswith("no rules")


def test_names_that_no_rule_declares_are_still_counted():
    report = tally().report(())
    assert [one.name for one in report.rules] == ["black", "text"]
    assert report.rejected == 4


def test_parts_add_up():
    whole = tally()
    whole.merge(tally())
    report = whole.report(())
    assert (report.shots, report.films, report.lost_films, report.rejected_seconds) == (10, 2, 1, 36)


def test_the_stricter_rules_that_the_default_file_proposes_are_rules():
    proposed = [line.removeprefix("#   ") for line in DEFAULT.read_text().splitlines() if line.startswith("#   - {")]
    rules = rules_from(yaml.safe_load("\n".join(proposed)), DEFAULT.name)
    assert len(rules) == len(proposed) > 3
    assert rejected_by(rules, NORMAL | {"motion": 0.01, "style": "3D"}) == ["moves", "drawn"]
