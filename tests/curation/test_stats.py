import json

import pytest
from packed import repack, write_packed

from animeshooter_dataset import DataError, FilmRecord, ShotRecord, dump, read_samples
from curation.stats import Films, stats, stats_text


def tar_of(directory, config):
    return directory / config / "train-00000.tar"


def records(directory, config):
    return [json.loads(members["json"]) for _, members in read_samples(tar_of(directory, config), ("json",))]


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Two films of two stories of four shots; two of the shots fail rules."""
    scores = {"film00000-000-001": {"text_cover": 0.3}, "film00001-001-002": {"text_cover": 0.2, "black_frames": 1.0}}
    return write_packed(tmp_path_factory.mktemp("packed") / "animeshooter", scores=scores)


def test_counts_are_those_of_the_film_that_was_built(walkers):
    numbers, shots = stats(walkers)["whole"], records(walkers, "shots")
    assert [numbers[name] for name in ("videos", "stories", "shots", "audio_clips")] == [1, 1, len(shots), 1]
    assert numbers["hours"] == pytest.approx(15 / 3600, abs=1e-4)
    assert numbers["shots_with_sound"] == len(shots)
    assert numbers["licences"] == {"CC0-1.0": 1}
    assert numbers["annotators"] == {"sidecar": 1}
    assert numbers["transitions"] == {"cut": len(shots) - 1, "start": 1}
    assert numbers["sizes"] == {"192x108": len(shots)}
    assert numbers["fps"] == {"12.00": len(shots)}
    assert numbers["sound_types"] == {"sound effect": 1}


def test_distributions_agree_with_the_records(walkers):
    found = stats(walkers)["whole"]["distributions"]
    shots, (story,) = records(walkers, "shots"), records(walkers, "stories")
    words = [len(shot["descriptive_caption"].split()) for shot in shots]
    assert found["descriptive_words"]["mean"] == pytest.approx(sum(words) / len(words), abs=1e-3)
    seconds = [shot["end_time"] - shot["start_time"] for shot in shots]
    assert found["shot_seconds"]["mean"] == pytest.approx(sum(seconds) / len(shots), abs=1e-3)
    assert found["shot_seconds"]["most"] == pytest.approx(max(seconds), abs=1e-3)
    assert found["shots_per_story"]["p50"] == len(shots)
    assert found["characters_per_story"]["mean"] == len(story["characters"]) == 2
    assert found["storyline_words"]["most"] == 3


def test_references_agree_with_the_records(walkers):
    found, shots = stats(walkers)["whole"], records(walkers, "shots")
    number = sum(len(shot["references"]) for shot in shots)
    assert found["leakage"] == {"shots_looked_at": len(shots), "references": number, "from_own_shot": 0}
    assert number > 0
    references = found["references"]
    assert references["shots_with_reference"] == sum(bool(shot["references"]) for shot in shots)
    assert references["shots_with_reference"] + references["shots_without_reference"] == len(shots)
    assert references["shots_missing_a_reference"] == sum(bool(shot["characters_without_reference"]) for shot in shots)
    assert references["characters_never_referenced"] == 0


def test_characters_without_any_reference_are_counted(packed):
    references = stats(packed)["whole"]["references"]
    assert references["characters_never_referenced"] == references["characters"] == 8
    assert references["shots_missing_a_reference"] == 16


def test_a_reference_from_the_shot_itself_is_counted_as_leakage(walkers, tmp_path):
    def leak(record):
        if not isinstance(record, ShotRecord) or not record.references:
            return record
        first = record.references[0].model_copy(update={"frame": record.start_frame})
        return record.model_copy(update={"references": [first, *record.references[1:]]})

    leaks = sum(bool(shot["references"]) for shot in records(walkers, "shots"))
    assert stats(repack(walkers, tmp_path / "leaky", leak))["whole"]["leakage"]["from_own_shot"] == leaks > 0


def test_the_funnel_goes_from_films_to_shots_for_training(packed, tmp_path):
    steps = {step["step"]: (step["number"], step["lost"]) for step in stats(packed)["funnel"]}
    assert steps == {
        "films named": (7, {}),
        "available": (6, {"unavailable": 1}),
        "readable, each once": (4, {"twice": 1, "unreadable": 1}),
        "passed the screen": (2, {"length": 1, "subtitles": 1}),
        "curated": (2, {}),
        "stories": (4, {}),
        "shots": (16, {}),
        "pass every rule": (14, {"text (alone 1)": 2, "black (alone 0)": 1}),
        "for training": (14, {}),
    }


def test_titles_and_credits_are_the_last_step_of_the_funnel(packed, tmp_path):
    def card(record):
        first = isinstance(record, ShotRecord) and record.position == 0
        return record.model_copy(update={"prologue_or_epilogue": "prologue"}) if first else record

    found = stats(repack(packed, tmp_path / "cards", card))
    assert found["funnel"][-1] == {"step": "for training", "number": 10, "lost": {"title or credits": 4}}
    assert found["whole"]["prologue_epilogue"] == {"prologue": 4, "epilogue": 0}


def test_what_rules_reject_is_told(packed):
    found = stats(packed)["rules"]
    assert (found["shots"], found["rejected"], found["lost_films"]) == (16, 2, 0)
    (text,) = [rule for rule in found["rules"] if rule["name"] == "text"]
    assert (text["shots"], text["alone"], text["says"]) == (2, 1, "text_cover at most 0.01")
    assert {"rules": ["text", "black"], "shots": 1} in found["together"]


def test_scores_are_distributions_of_what_is_known(packed):
    scores = stats(packed)["whole"]["scores"]
    assert scores["text_cover"]["mean"] == pytest.approx(0.5 / 16, abs=1e-4)
    assert scores["text_cover"]["most"] == 0.3
    assert scores["motion"] == dict.fromkeys(scores["motion"], 0.1)
    assert scores["loudness"]["p50"] == -20
    assert "aesthetic" not in scores


def test_checks_of_films_are_told_with_their_evidence(packed):
    checks = stats(packed)["films"]["checks"]
    assert (checks["animation"]["passed"], checks["animation"]["failed"]) == (4, 0)
    assert checks["subtitles"]["failed"] == 1
    assert checks["subtitles"]["limit"] == 0.2
    assert checks["subtitles"]["values"]["most"] == pytest.approx(0.41)


def test_what_was_dropped_is_told_by_stage_and_reason(packed):
    dropped = stats(packed)["dropped"]
    assert dropped["by_stage"] == {"collect": 3, "screen": 2}
    assert dropped["by_reason"]["screen: over N minutes"] == 1
    assert dropped["by_reason"]["collect: no picture decodes"] == 1
    assert dropped["lines"][0] == {"film": "https://films.example/1", "stage": "collect", "reason": "gone"}


def test_long_lists_of_losses_are_counted_and_capped(packed, tmp_path, monkeypatch):
    from curation import stats as module

    monkeypatch.setattr(module, "LINES", 2)
    monkeypatch.setattr(module, "KINDS", 3)
    films = Films.of(packed)
    assert len(films.lines) == len(films.listed) == 2
    assert films.by_reason["other reasons"] == 2
    assert films.by_reason.total() == 5
    assert "3 more in dropped.jsonl" in stats_text(stats(packed))


def test_the_paper_stands_apart_from_what_was_measured(walkers):
    found = stats(walkers)
    assert "2506.03126" in found["paper"]["source"]
    assert found["paper"]["means"]["shot_seconds"] == 3.85
    assert found["paper"]["means"].keys() <= found["whole"]["distributions"].keys()
    assert "audio_seconds" not in found["paper"]["means"]


def test_splits_add_up(tmp_path):
    shares = {"train": 0.5, "validation": 0.25, "test": 0.25}
    found = stats(write_packed(tmp_path / "animeshooter", films=8, shares=shares))
    assert set(found["splits"]) == {"train", "validation", "test"}
    for name in ("videos", "stories", "shots"):
        assert sum(part[name] for part in found["splits"].values()) == found["whole"][name] > 0
    assert found["whole"]["shots"] == found["rules"]["shots"] == 64
    assert "validation" in stats_text(found)


def test_numbers_do_not_depend_on_where_the_dataset_lies(walkers, copy):
    assert json.dumps(stats(walkers)) == json.dumps(stats(copy))


def test_the_table_shows_measured_values_beside_the_papers(packed):
    lines = stats_text(stats(packed)).splitlines()
    (line,) = [line for line in lines if line.startswith("shot, seconds")]
    assert line.split()[2:] == ["2.00"] * 6 + ["3.85"]
    assert any(line.split() == ["screen:", "over", "20", "minutes"] for line in lines)
    assert any(line.startswith("for training") and " 14" in line for line in lines)


def test_text_of_a_film_cannot_steer_the_terminal(packed, tmp_path):
    hostile = "free\x1b[2J\nrights  all yours"
    out = repack(packed, tmp_path / "hostile", lambda record: record.model_copy(update={"licence": hostile}))
    lines = (out / "dropped.jsonl").read_text()
    (out / "dropped.jsonl").write_text(lines.replace("gone", "gone \\u001b[2J"))
    text = stats_text(stats(out))
    assert "\x1b" not in text
    assert not any(line.startswith("rights  all") for line in text.splitlines())


@pytest.mark.parametrize("name", ["films.jsonl", "dropped.jsonl", "rights.jsonl"])
@pytest.mark.parametrize("content", [None, '{"video": "UPPER"}\n', "[1"])
def test_a_ledger_that_cannot_be_read_is_one_line(copy, name, content):
    if content is None:
        (copy / name).unlink()
    else:
        (copy / name).write_text(content)
    with pytest.raises(DataError, match=name) as error:
        stats(copy)
    assert "\n" not in str(error.value)
    assert "build the dataset again" in str(error.value)


def test_films_that_were_not_kept_are_listed_first(packed):
    states = [film.state for film in Films.of(packed).listed]
    assert states == ["unavailable"] + ["dropped"] * 4 + ["kept"] * 2


def test_a_film_lost_at_a_later_stage_has_its_stage_in_the_funnel(packed, tmp_path):
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(packed, copy)
    lost = FilmRecord(video="odd", film="odd.mp4", state="dropped", stage="cuts", reason="odd.mp4: damaged")
    with (copy / "films.jsonl").open("ab") as lines:
        lines.write(dump(lost) + b"\n")
    found = stats(copy)
    assert found["films"]["lost_later"] == 1
    assert {"step": "curated", "number": 2, "lost": {"cuts": 1}} in found["funnel"]


def test_a_folder_that_is_no_dataset_is_one_line(tmp_path):
    with pytest.raises(DataError, match="not a dataset directory"):
        stats(tmp_path)
