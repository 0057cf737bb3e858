import io
import json
import shutil
import tarfile

import pytest

from animeshooter_dataset import DataError, read_samples
from curation.stats import stats, stats_text


def tar_of(directory, config):
    return directory / config / "train-00000.tar"


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


def change_json(tar, change):
    """Change the records of a tar: ``change(record)`` works on the parsed JSON in place."""

    def changed(name, blob):
        if not name.endswith(".json"):
            return blob
        record = json.loads(blob)
        change(record)
        return json.dumps(record).encode()

    rewrite(tar, changed)


def records(directory, config):
    return [json.loads(members["json"]) for _, members in read_samples(tar_of(directory, config))]


def test_counts_are_those_of_the_film_that_was_built(walkers):
    numbers = stats(walkers)["whole"]
    assert [numbers[name] for name in ("videos", "stories", "shots", "audio_clips")] == [1, 1, 6, 1]
    assert numbers["hours"] == pytest.approx(15 / 3600, abs=1e-4)
    assert numbers["shots_with_sound"] == 6
    assert numbers["licences"] == {"CC0-1.0": 1}
    assert numbers["annotators"] == {"sidecar": 1}
    assert numbers["transitions"] == {"cut": 5, "start": 1}
    assert numbers["sizes"] == {"192x108": 6}
    assert numbers["fps"] == {"12.00": 6}
    assert numbers["sound_types"] == {"sound effect": 1}


def test_distributions_agree_with_the_records(walkers):
    found = stats(walkers)["whole"]["distributions"]
    shots, (story,) = records(walkers, "shots"), records(walkers, "stories")
    words = [len(shot["descriptive_caption"].split()) for shot in shots]
    assert found["descriptive_words"]["mean"] == pytest.approx(sum(words) / len(words), abs=1e-3)
    assert found["shot_seconds"] == pytest.approx(dict.fromkeys(found["shot_seconds"], 2.5), abs=1e-3)
    assert found["shots_per_story"]["p50"] == 6
    assert found["characters_per_story"]["mean"] == len(story["characters"]) == 2
    assert found["storyline_words"]["most"] == 3


def test_quantiles_follow_the_values(copy):
    lengths = iter((1, 2, 3, 4, 5, 11))
    change_json(tar_of(copy, "shots"), lambda shot: shot.update(narrative_caption="word " * next(lengths)))
    found = stats(copy)["whole"]["distributions"]["narrative_words"]
    assert found == {"mean": 4.3333, "least": 1, "most": 11, "p10": 1.5, "p50": 3.5, "p90": 8}


def test_references_agree_with_the_records(walkers):
    found, shots = stats(walkers)["whole"], records(walkers, "shots")
    assert found["leakage"] == {"references": sum(len(shot["references"]) for shot in shots), "from_own_shot": 0}
    assert found["leakage"]["references"] > 0
    references = found["references"]
    assert references["shots_with_reference"] == sum(bool(shot["references"]) for shot in shots)
    assert references["shots_with_reference"] + references["shots_without_reference"] == 6
    assert references["shots_missing_a_reference"] == sum(bool(shot["characters_without_reference"]) for shot in shots)


def test_a_character_without_any_reference_is_counted(copy):
    change_json(tar_of(copy, "stories"), lambda story: story.update(references=[]))
    assert stats(copy)["whole"]["references"]["characters_never_referenced"] == 2


def test_a_reference_from_the_shot_itself_is_counted_as_leakage(copy):
    def leak(shot):
        for reference in shot["references"][:1]:
            reference["frame"] = shot["start_frame"]

    leaks = sum(bool(shot["references"]) for shot in records(copy, "shots"))
    change_json(tar_of(copy, "shots"), leak)
    assert stats(copy)["whole"]["leakage"]["from_own_shot"] == leaks > 0


def test_what_was_dropped_is_told_by_stage_and_reason(walkers):
    dropped = stats(walkers)["dropped"]
    assert dropped["films"] == 0
    assert dropped["by_stage"] == {"audio": 1}
    assert dropped["by_reason"] == {"audio: audio clip at N s is N s long, under N s": 1}
    assert dropped["lines"][0]["film"] == "walkers.mp4"


def test_the_paper_stands_apart_from_what_was_measured(walkers):
    found = stats(walkers)
    assert "2506.03126" in found["paper"]["source"]
    assert found["paper"]["means"]["shot_seconds"] == 3.85
    assert found["paper"]["means"].keys() <= found["whole"]["distributions"].keys()
    assert "audio_seconds" not in found["paper"]["means"]


def test_splits_add_up(copy):
    for config in ("shots", "stories"):
        shutil.copy(tar_of(copy, config), copy / config / "test-00000.tar")
    shutil.copy(copy / "index" / "train.parquet", copy / "index" / "test.parquet")
    found = stats(copy)
    assert found["splits"].keys() == {"train", "test"}
    assert found["splits"]["test"]["audio_clips"] == 0
    assert found["whole"]["shots"] == 12
    assert found["whole"]["videos"] == 1
    assert found["whole"]["transitions"] == {"cut": 10, "start": 2}
    assert "test" in stats_text(found)


def test_numbers_do_not_depend_on_where_the_dataset_lies(walkers, copy):
    assert json.dumps(stats(walkers)) == json.dumps(stats(copy))


def test_the_table_shows_measured_values_beside_the_papers(walkers):
    lines = stats_text(stats(walkers)).splitlines()
    (line,) = [line for line in lines if line.startswith("shot, seconds")]
    assert line.split()[2:] == ["2.50"] * 6 + ["3.85"]
    assert any("under 3 s" in line for line in lines)


def test_text_of_a_film_cannot_steer_the_terminal(copy):
    change_json(tar_of(copy, "stories"), lambda story: story.update(licence="free\x1b[2J\nrights  all yours"))
    text = stats_text(stats(copy))
    assert "\x1b" not in text
    assert not any(line.startswith("rights  all") for line in text.splitlines())


@pytest.mark.parametrize("size", [100, 512, 5000])
@pytest.mark.parametrize("config", ["shots", "stories", "audio"])
def test_a_damaged_tar_is_one_line(copy, config, size):
    tar = tar_of(copy, config)
    tar.write_bytes(tar.read_bytes()[:size])
    with pytest.raises(DataError, match="train-00000") as error:
        stats(copy)
    assert "\n" not in str(error.value)


def test_a_shard_that_lost_a_shot_is_found(copy):
    key = records(copy, "shots")[3]["key"]
    rewrite(tar_of(copy, "shots"), lambda name, blob: None if name.startswith(f"{key}.") else blob)
    with pytest.raises(DataError, match="hold 5 shots"):
        stats(copy)


def test_a_record_of_another_schema_is_named(copy):
    change_json(tar_of(copy, "stories"), lambda story: story.pop("storyline"))
    with pytest.raises(DataError, match=r"stories/train-00000\.tar: walkers.*storyline"):
        stats(copy)


def test_rights_that_cannot_be_read_are_one_line(copy):
    (copy / "rights.jsonl").write_text('{"video": "UPPER"}\n')
    with pytest.raises(DataError, match=r"rights.jsonl") as error:
        stats(copy)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_dataset_is_one_line(tmp_path):
    with pytest.raises(DataError, match="not a dataset directory"):
        stats(tmp_path)
