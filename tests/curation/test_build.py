import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import built
import films
import numpy as np
import pytest

import animeshooter_dataset as dataset
from animeshooter_dataset import AnimeShooter, DataError
from curation.build import build
from curation.clips import ClipConfig
from curation.config import BuildConfig
from curation.lint import lint
from curation.video import read_frames


def hashes(directory):
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("build")


@pytest.fixture(scope="module")
def directory(folder):
    return built.build_walkers(folder)


def records(directory, config):
    tars = dataset.shards(directory, config, "train")
    return [
        (dataset.parse(config, members["json"], key), members) for tar in tars for key, members in dataset.read_samples(tar)
    ]


def test_what_is_built_passes_lint(directory):
    assert lint(directory).problems == []


def test_shots_are_cut_where_the_picture_cuts_and_carry_the_scripts_words(directory):
    shots = [record for record, _ in records(directory, "shots")]
    assert [shot.start_frame for shot in shots] == [number * built.SHOT_FRAMES for number in range(len(built.SHOTS))]
    assert [shot.narrative_caption for shot in shots] == [f"Walk number {number}." for number in range(len(built.SHOTS))]
    assert shots[2].annotated_start_time == pytest.approx(2 * built.SHOT_FRAMES / built.FPS + 0.05)
    assert shots[2].start_time == pytest.approx(2 * built.SHOT_FRAMES / built.FPS)


def test_first_and_last_frame_of_every_clip_are_the_films(directory, folder, tmp_path):
    source = {frame.index: frame.image.astype(int) for frame in read_frames(folder / "walkers.mp4")}
    for shot, members in records(directory, "shots"):
        clip = tmp_path / "clip.mp4"
        clip.write_bytes(members["mp4"])
        frames = [frame.image for frame in read_frames(clip)]
        for stored, index in ((frames[0], shot.start_frame), (frames[-1], shot.end_frame - 1)):
            distance = {near: np.abs(stored - source[near]).mean() for near in range(index - 2, index + 3) if near in source}
            assert min(distance, key=distance.get) == index
            assert distance[index] < 3


def test_references_are_of_other_shots_and_show_their_character(directory):
    import io

    from PIL import Image

    found = 0
    for shot, members in records(directory, "shots"):
        sheet = np.asarray(Image.open(io.BytesIO(members["png"])))
        for reference in shot.references:
            assert reference.shot != shot.key
            assert reference.character in shot.characters
            x0, y0, x1, y1 = reference.box
            cut = sheet[y0:y1, x0:x1]
            colour = cut[cut[..., 3] > 200][:, :3].mean(0)
            assert np.abs(colour - built.WHO[reference.character]).mean() < 40
            found += 1
    assert found >= 4


def test_short_audio_clips_are_dropped_with_a_reason_and_the_others_kept(directory):
    [(clip, members)] = records(directory, "audio")
    assert (clip.start_time, clip.end_time) == (1.0, 5.0)
    assert clip.frames == 48
    assert clip.samples == 4 * 48000
    assert len(members["flac"]) > 1000
    dropped = dataset.read_manifest(directory)["dropped"]
    assert len(dropped) == 1
    assert "under 3 s" in dropped[0]["reason"]


@pytest.mark.parametrize("config", ["shots", "stories", "audio"])
def test_datasets_alone_loads_every_config(directory, config, tmp_path):
    import datasets

    asked = {"split": "train", "features": dataset.features(config, decode=False)}
    table = datasets.load_dataset(str(directory), config, cache_dir=str(tmp_path), **asked)
    stream = datasets.load_dataset(str(directory), config, streaming=True, **asked)
    rows = list(stream)
    assert len(rows) == len(table) == len(records(directory, config))
    assert rows[0]["json"] == table[0]["json"]
    assert rows[0]["__key__"] == table[0]["__key__"]
    for row, (record, members) in zip(rows, records(directory, config)):
        assert row["json"]["key"] == record.key
        for name in ("mp4", "flac"):
            blob = row.get(name)
            assert (blob["bytes"] if isinstance(blob, dict) else blob) == members.get(name)


@pytest.mark.parametrize("config", ["shots", "stories"])
def test_the_builder_gives_the_same_rows(directory, config, tmp_path):
    import datasets

    builder = AnimeShooter(config_name=config, data_dir=str(directory), cache_dir=str(tmp_path))
    ours = list(builder.as_streaming_dataset("train").decode(False))
    theirs = list(datasets.load_dataset(str(directory), config, split="train", streaming=True).decode(False))
    assert [row["json"] for row in ours] == [row["json"] for row in theirs]
    assert [row["png"]["bytes"] for row in ours] == [row["png"]["bytes"] for row in theirs]
    builder.download_and_prepare()
    assert len(builder.as_dataset("train")) == len(theirs)


def test_workers_and_place_change_no_byte(directory, folder, tmp_path):
    for path in folder.glob("walkers.*"):
        shutil.copy(path, tmp_path)
    build([tmp_path / "walkers.mp4"], tmp_path / "again", workers=2)
    assert hashes(tmp_path / "again") == hashes(directory)


def test_bad_films_cost_only_themselves(tmp_path):
    inside = tmp_path / "films"
    inside.mkdir()
    good = films.write_film(inside / "good.mp4", frames=30, sound=films.tone(1.25))
    (inside / "text.mp4").write_text("not a film")
    (inside / "empty.mp4").touch()
    films.truncate(films.write_film(tmp_path / "whole.mp4", frames=200, crf=1), inside / "truncated.mp4", 0.5)
    films.write_film(inside / "one_frame.mp4", frames=1)
    films.write_film(inside / "silent_odd.mp4", size=(85, 47), frames=20)
    films.write_film(inside / "variable.mkv", frames=20, times=list(np.cumsum([0.02 + 0.03 * (n % 3) for n in range(20)])))
    films.write_film(inside / "broken_script.mp4", frames=20)
    (inside / "broken_script.script.json").write_text("{")
    report = build([inside], tmp_path / "out", workers=2)
    assert lint(tmp_path / "out").problems == []
    assert {loss.path.name for loss in report.dropped} == {"text.mp4", "empty.mp4", "truncated.mp4", "broken_script.mp4"}
    assert all(loss.path.stem in loss.reason and "\n" not in loss.reason for loss in report.dropped)
    kept = {record.video.rpartition("-")[0] for record, _ in records(tmp_path / "out", "stories")}
    assert kept == {"good", "one_frame", "silent_odd", "variable"}
    assert good.exists()


def test_nothing_built_says_why_and_leaves_no_output(tmp_path):
    (tmp_path / "text.mp4").write_text("not a film")
    with pytest.raises(DataError, match=r"nothing was built:\n.*text\.mp4"):
        build([tmp_path / "text.mp4"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    film = films.write_film(tmp_path / "film.mp4", frames=5)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(DataError, match="not a dataset directory"):
        build([film], tmp_path / "out")
    assert (tmp_path / "out" / "thesis.tex").read_text() == "years of work"


def test_asked_for_splits_are_by_video_and_an_empty_one_is_left_out(tmp_path):
    for number in range(4):
        films.write_film(tmp_path / f"film{number}.mp4", frames=8 + number)
    config = BuildConfig(shares={"train": 0.5, "validation": 0.0, "test": 0.5}, clips=ClipConfig(short_side=48))
    build([tmp_path], tmp_path / "out", config, workers=2)
    present = dataset.splits(tmp_path / "out")
    assert "validation" not in present
    assert lint(tmp_path / "out").problems == []
    card = (tmp_path / "out" / "README.md").read_text()
    assert ("test-*.tar" in card) == ("test" in present)


def test_a_killed_build_leaves_nothing_visible_and_goes_on_to_the_same_bytes(directory, folder, tmp_path):
    for path in folder.glob("walkers.*"):
        shutil.copy(path, tmp_path)
    command = [sys.executable, "-m", "recipes.cli", "build", str(tmp_path / "walkers.mp4"), "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    work = tmp_path / "out.work"
    deadline = time.monotonic() + 60
    while not list(work.glob("*/clips-*")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out").exists()
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["shots"] == len(built.SHOTS)
    assert hashes(tmp_path / "out") == hashes(directory)
