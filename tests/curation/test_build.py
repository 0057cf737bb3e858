import contextlib
import hashlib
import json
import os
import random
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
from animeshooter_dataset import AnimeShooter, DataError, FilmRecord, RightsRecord, read_lines
from curation.build import build
from curation.clips import ClipConfig
from curation.config import BuildConfig
from curation.job import public_settings
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
    dropped, note = dataset.read_lines(directory / "dropped.jsonl", dataset.DroppedRecord)
    assert (dropped.film, dropped.stage) == ("walkers.mp4", "audio")
    assert "not over 3 s" in dropped.reason
    assert "holds markup ('<b>') and 5 more (kept" in note.reason
    assert dataset.read_manifest(directory)["dropped"] == {"audio": 1, "captions": 1}


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


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_workers_engine_and_place_change_no_byte(directory, folder, tmp_path, engine):
    if engine == "ray":
        pytest.importorskip("ray")
    for path in folder.glob("walkers.*"):
        shutil.copy(path, tmp_path)
    build([tmp_path / "walkers.mp4"], tmp_path / "again", workers=2, engine=engine)
    assert hashes(tmp_path / "again") == hashes(directory)


def test_a_kept_work_folder_redoes_no_film_when_one_is_added(directory, folder, tmp_path, monkeypatch):
    shutil.copytree(folder, tmp_path / "films", ignore=shutil.ignore_patterns("animeshooter*"))
    build([tmp_path / "films"], tmp_path / "first", work=tmp_path / "work")
    assert hashes(tmp_path / "first") == hashes(directory)
    stamps = {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("walkers-*/**/*")}
    films.write_film(tmp_path / "films" / "second.mp4", frames=20)
    report = build([tmp_path / "films"], tmp_path / "second", work=tmp_path / "work")
    assert report.films == 2
    assert stamps == {path: path.stat().st_mtime_ns for path in (tmp_path / "work").glob("walkers-*/**/*")}


def test_other_rules_redo_no_film_and_mark_other_shots(folder, tmp_path):
    from curation.rules import rules_from

    film, work = folder / "walkers.mp4", tmp_path / "work"
    build([film], tmp_path / "all", work=work, rules=())
    stamps = {path: path.stat().st_mtime_ns for path in work.glob("walkers-*/**/*")}
    rules = rules_from([{"name": "two", "column": "characters", "least": 2, "why": "a test"}], "here")
    report = build([film], tmp_path / "two", work=work, rules=rules)
    assert stamps == {path: path.stat().st_mtime_ns for path in work.glob("walkers-*/**/*")}
    marked = [record.rejected_by for record, _ in records(tmp_path / "two", "shots")]
    assert marked == [[] if len(names) == 2 else ["two"] for names in built.SHOTS]
    assert report.rejected == 5
    assert lint(tmp_path / "two").problems == []


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
    bad = {"text.mp4", "empty.mp4", "truncated.mp4", "broken_script.mp4"}
    lines = list(dataset.read_lines(tmp_path / "out" / "films.jsonl", dataset.FilmRecord))
    assert {line.film for line in lines if line.state == "dropped"} == bad
    assert all(line.film.partition(".")[0] in line.reason and "\n" not in line.reason for line in lines if line.reason)
    assert all(str(tmp_path) not in line.model_dump_json() for line in lines)
    assert report.films == 4
    kept = {record.video.rpartition("-")[0] for record, _ in records(tmp_path / "out", "stories")}
    assert kept == {"good", "one_frame", "silent_odd", "variable"}
    assert good.exists()


def test_names_that_are_no_keys_and_a_script_of_another_film(tmp_path):
    names = ['it\'s a "film".mp4', "two\nlines.mp4", "--out..mp4", "Übung é.mp4", "a;rm -rf $HOME.mp4"]
    for number, name in enumerate(names):
        films.write_film(tmp_path / name, frames=12 + number)
    films.write_film(tmp_path / "long_script.mp4", frames=20)
    script = built.script()
    (tmp_path / "long_script.script.json").write_text(json.dumps(script))
    report = build([tmp_path], tmp_path / "out")
    assert report.films == len(names)
    assert lint(tmp_path / "out").problems == []
    [lost] = dataset.read_lines(tmp_path / "out" / "dropped.jsonl", dataset.DroppedRecord)
    assert lost.stage == "script"
    assert "tells of 15.1 s, the film beside it ends at 0.8 s" in lost.reason
    told = [line.film for line in dataset.read_lines(tmp_path / "out" / "films.jsonl", dataset.FilmRecord)]
    assert "two\\nlines.mp4" in told


def test_a_second_build_on_one_output_and_a_full_disk_are_one_line(tmp_path, monkeypatch):
    from filelock import FileLock

    film = films.write_film(tmp_path / "film.mp4", frames=10)
    (tmp_path / "out.work").mkdir()
    with FileLock(tmp_path / "out.work" / "lock"), pytest.raises(DataError, match="another build is writing this output"):
        build([film], tmp_path / "out")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("curation.job.Job._pack", full)
    with pytest.raises(DataError, match=r"cannot write.*No space left.*run again to go on"):
        build([film], tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert build([film], tmp_path / "out").films == 1


def test_what_is_published_of_settings_names_no_address_and_no_folder():
    settings = {
        "annotator": "openai:http://10.0.0.7:8000/v1#Qwen/Qwen3-VL-8B",
        "judge": "local:/home/somebody/models/vlm",
        "language": "English",
        "references": {"segmenter": "gdino+sam2:/data/a/dino,/data/b/sam", "verifier": "classical"},
        "scores": {"aesthetic_head": "/data/head.safetensors", "aesthetic_model": "openai/clip-vit-large-patch14"},
    }
    assert public_settings(settings) == {
        "annotator": "openai:Qwen/Qwen3-VL-8B",
        "judge": "local:vlm",
        "language": "English",
        "references": {"segmenter": "gdino+sam2:dino,sam", "verifier": "classical"},
        "scores": {"aesthetic_head": "head.safetensors", "aesthetic_model": "openai/clip-vit-large-patch14"},
    }


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


def test_builds_killed_at_random_leave_nothing_visible_and_end_at_the_same_bytes(directory, folder, tmp_path):
    for path in folder.glob("walkers.*"):
        shutil.copy(path, tmp_path)
    command = [sys.executable, "-m", "recipes.cli", "build", str(tmp_path / "walkers.mp4"), "--out", str(tmp_path / "out")]
    began, moments = time.monotonic(), random.Random(8)
    subprocess.run([*command[:-1], str(tmp_path / "undisturbed")], check=True, capture_output=True)
    whole = time.monotonic() - began
    killed = 0
    for _ in range(int(os.environ.get("ANIMESHOOTER_KILLS", "4"))):
        process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(moments.uniform(0.2, 1.0) * whole)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            killed += 1
        process.wait()
        assert not (tmp_path / "out").exists() or hashes(tmp_path / "out") == hashes(directory)
    assert killed
    result = subprocess.run([*command, "--json"], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout)["shots"] == len(built.SHOTS)
    assert hashes(tmp_path / "out") == hashes(directory) == hashes(tmp_path / "undisturbed")
    assert not (tmp_path / "out.work").exists()


def test_what_is_opted_out_or_known_to_be_gone_is_not_asked_for(tmp_path, monkeypatch):
    from media_server import MediaServer, Served

    from curation.origin import Address
    from curation.source_list import key_of
    from curation.ytdlp import DownloadConfig

    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    film = built.write_walkers(tmp_path).read_bytes()
    with MediaServer() as server:
        addresses = {name: f"{server.url}/{name}.mp4" for name in ("here", "never", "gone")}
        for name in addresses:
            server.serve(f"/{name}.mp4", Served(film))
        (tmp_path / "never.txt").write_text(f"{addresses['never']}  # asked in a letter\n")
        seen = {"source": addresses["gone"], "state": "gone", "reason": "HTTP 404", "checked": "2026-11-01"}
        seen["video"] = key_of(Address.parse(addresses["gone"]))
        (tmp_path / "seen.jsonl").write_text(json.dumps(seen) + "\n")
        lists = {"opt_out": [tmp_path / "never.txt"], "availability": tmp_path / "seen.jsonl"}
        config = BuildConfig(download=DownloadConfig(interval=0.0))
        assert build(list(addresses.values()), tmp_path / "out", config, **lists).films == 1
        assert {asked.path for asked in server.asked} == {"/here.mp4"}
    rights = {line.source: line.state for line in read_lines(tmp_path / "out" / "rights.jsonl", RightsRecord)}
    assert rights == {addresses["here"]: "kept", addresses["never"]: "withdrawn", addresses["gone"]: "unavailable"}
    assert lint(tmp_path / "out", decode=False).problems == []


def test_an_opted_out_uploader_is_known_by_the_script_beside_the_film(tmp_path):
    film = built.write_walkers(tmp_path)
    other = films.write_film(tmp_path / "other.mp4", frames=30)
    (tmp_path / "never.txt").write_text("uploader:Tests\n")
    report = build([film, other], tmp_path / "out", opt_out=[tmp_path / "never.txt"])
    states = {line.film: line.state for line in read_lines(tmp_path / "out" / "films.jsonl", FilmRecord)}
    assert (report.films, sorted(states.values())) == (1, ["kept", "withdrawn"])
    assert "walk" not in (tmp_path / "out" / "dropped.jsonl").read_text().replace("walkers-", "")
