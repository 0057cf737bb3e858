"""What a run shows of itself: held-out losses, sample stories, trackers, and the card made of them."""

import json
import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import av
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest
import torch
from hub_server import HubServer
from tiny_dataset import write_dataset

from recipes import align, multi_shot, pretrain, single_shot
from recipes.model_card import render_model_card
from recipes.publish import files_of
from recipes.tracking import scalars
from recipes.trainer import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """Three films, the last of which is the split ``test``."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("watching") / "animeshooter"
    write_dataset(directory, videos=3, shots=4)
    rows = pq.read_table(directory / "index" / "train.parquet")
    held = pc.equal(rows["video"].cast("string"), "film2")
    pq.write_table(rows.filter(held), directory / "index" / "test.parquet")
    pq.write_table(rows.filter(pc.invert(held)), directory / "index" / "train.parquet")
    return directory


def run(stage, films, out, *more, parent=None):
    settings = [part for setting in more for part in ("--set", setting)]
    start = [] if parent is None else ["--from", str(parent)]
    return main(stage.STAGE, ["--data", str(films), "--out", str(out), *settings, *start])


@pytest.fixture(scope="module")
def aligned(films, tmp_path_factory):
    out = tmp_path_factory.mktemp("aligned") / "align"
    assert run(align, films, out, "train.steps=2") == 0
    return out


@pytest.fixture(scope="module")
def single(films, aligned, tmp_path_factory):
    """A single-shot run with everything on."""
    out = tmp_path_factory.mktemp("single") / "single_shot"
    asked = (
        "held_out.every=2",
        "held_out.samples=4",
        "samples.every=3",
        "samples.steps=2",
        "samples.stories=2",
        "samples.shots=2",
    )
    tracked = ("track.to=wandb,tensorboard", "track.every=1", "train.steps=4", "train.learning_rate=0.01")
    patch = pytest.MonkeyPatch()
    patch.delenv("WANDB_API_KEY", raising=False)
    patch.setenv("WANDB_SILENT", "true")
    try:
        assert run(single_shot, films, out, *asked, *tracked, parent=aligned) == 0
    finally:
        patch.undo()
    return out


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


# ---- held-out loss ----


def test_the_held_out_loss_stands_in_the_log_where_it_was_measured(single):
    lines = log_of(single)
    assert ["held_out" in line for line in lines] == [False, True, False, True]
    assert "held_out_before" in lines[0]
    found = lines[-1]["held_out"]
    assert found["samples"] == 4
    assert {"loss", "loss_by_timestep", "without_reference", "without_caption"} <= set(found)
    assert found["without_reference"] != found["loss"]


def test_measuring_changes_nothing_that_is_trained(films, aligned, single, tmp_path):
    assert run(single_shot, films, tmp_path / "plain", "train.steps=4", "train.learning_rate=0.01", parent=aligned) == 0
    assert [line["loss"] for line in log_of(tmp_path / "plain")] == [line["loss"] for line in log_of(single)]


def test_two_measurements_of_the_same_weights_are_the_same(films, aligned, tmp_path):
    still = ("train.steps=2", "train.learning_rate=0", "train.weight_decay=0", "held_out.every=1")
    assert run(single_shot, films, tmp_path / "out", *still, parent=aligned) == 0
    lines = log_of(tmp_path / "out")
    measured = [{**line, "seconds": 0} for line in (lines[0]["held_out_before"], lines[0]["held_out"], lines[1]["held_out"])]
    assert measured[0] == measured[1] == measured[2]


def test_what_is_trained_on_is_not_held_out(films, tmp_path, capsys):
    assert run(align, films, tmp_path / "out", "held_out.every=1", "held_out.split=train") == 2
    assert "is what is trained on" in capsys.readouterr().err


def test_a_dataset_without_another_split_says_how_to_get_one(tmp_path, capsys):
    write_dataset(tmp_path / "animeshooter", videos=1)
    assert run(align, tmp_path / "animeshooter", tmp_path / "out", "held_out.every=1") == 2
    assert "--splits train=.9,test=.1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_shots_of_a_story_are_told_apart(films, single, tmp_path):
    assert run(multi_shot, films, tmp_path / "out", "train.steps=1", "held_out.every=1", "data.shots=2", parent=single) == 0
    assert len(log_of(tmp_path / "out")[-1]["held_out"]["loss_by_shot"]) == 2


def test_a_held_out_clip_that_one_process_cannot_read_ends_all_with_one_line(films, tmp_path):
    data = shutil.copytree(films, tmp_path / "data")
    for shard in (data / "shots").glob("*.tar"):
        with tarfile.open(shard) as tar:
            places = [(one.offset_data, one.size) for one in tar if one.name == "film2-s0-001.mp4"]
        with open(shard, "r+b") as file:
            for offset, size in places:
                file.seek(offset)
                file.write(bytes(size))
    command = [sys.executable, "recipes/launch/launch.py", "--config_file", "recipes/launch/cpu_2.yaml", "recipes/align.py"]
    settings = ("held_out.every=2", "train.steps=2", "train.patience=60")
    command += ["--data", str(data), "--out", str(tmp_path / "out"), *(part for one in settings for part in ("--set", one))]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    done = subprocess.run(command, cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    told = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert len(told) == 1
    assert "film2-s0-001: the clip does not decode" in told[0]


# ---- sample stories ----


def test_sample_stories_stand_in_the_checkpoint(single):
    lines = log_of(single)
    assert [len(line.get("sample_stories", [])) for line in lines] == [0, 0, 2, 2]
    for line in lines[2:]:
        for name in line["sample_stories"]:
            with av.open(str(single / name)) as film:
                assert sum(1 for _ in film.decode(video=0)) == 2 * 9
    told = json.loads((single / lines[-1]["sample_stories"][0]).with_name("story.json").read_text())
    assert [key.partition("-")[0] for key in told["keys"]] == ["film2", "film2"]


def test_pretraining_generates_from_text(films, tmp_path):
    more = ("train.steps=1", "samples.every=1", "samples.steps=1", "samples.stories=1", "samples.shots=1")
    assert run(pretrain, films, tmp_path / "out", *more) == 0
    assert (tmp_path / "out" / log_of(tmp_path / "out")[0]["sample_stories"][0]).stat().st_size > 0


# ---- trackers ----


def wandb_records(file):
    """The records of an offline run: protobuf in the log format of LevelDB, blocks of 32 KiB after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = file.read_bytes(), 7, b""
    while place + 7 <= len(data):
        if 32768 - place % 32768 < 7:  # too short for a record: filled up
            place += 32768 - place % 32768
            continue
        length, kind = int.from_bytes(data[place + 4 : place + 6], "little"), data[place + 6]
        parts += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def test_an_offline_wandb_run_holds_scalars_and_videos(single):
    folder = single.with_name("single_shot.tracking") / "wandb"
    (run,) = folder.glob("offline-run-*")
    assert list(run.glob("files/media/videos/samples/*.mp4"))
    (file,) = run.glob("*.wandb")
    names = {item.key or "/".join(item.nested_key) for record in wandb_records(file) for item in record.history.item}
    assert {"loss", "lr", "held_out/loss", "held_out/without_reference", "grad_norm"} <= set(names)


def test_tensorboard_holds_scalars_and_stills(single):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = single.with_name("single_shot.tracking") / "tensorboard" / "single_shot"
    events = EventAccumulator(str(folder))
    events.Reload()
    tags = events.Tags()
    assert {"loss", "held_out/loss"} <= set(tags["scalars"])
    assert tags["images"]


def test_an_unknown_tracker_is_refused(films, tmp_path, capsys):
    assert run(align, films, tmp_path / "out", "track.to=wanbd") == 2
    assert "no tracker wanbd; there are wandb, tensorboard, trackio" in capsys.readouterr().err


def test_scalars_are_the_numbers_of_a_line():
    line = {
        "step": 3,
        "loss": 0.5,
        "bucket": "x",
        "samples": ["0:a"],
        "skipped": None,
        "by": [1.0, None],
        "held_out": {"loss": 2, "ok": True},
    }
    assert scalars(line) == {"loss": 0.5, "by/1": 1.0, "held_out/loss": 2.0}


# ---- the card, and the Hub ----


def test_a_run_puts_its_checkpoint_on_the_hub(films, tmp_path):
    with HubServer() as hub:
        environment = os.environ | {
            "HF_ENDPOINT": hub.url,
            "HF_TOKEN": hub.token,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(tmp_path / "home"),
            "XDG_CACHE_HOME": str(tmp_path / "cache"),
            "NO_PROXY": "127.0.0.1",
            "OMP_NUM_THREADS": "1",
        }

        def launch(name, **other):
            command = [sys.executable, "recipes/align.py", "--data", str(films), "--out", str(tmp_path / "align")]
            command += ["--set", "train.steps=1", "--push-to-hub", name]
            return subprocess.run(command, capture_output=True, text=True, env=environment | other, cwd=ROOT, check=False)

        refused = launch("org/align", HF_TOKEN="")
        assert refused.returncode == 2
        assert "not logged in" in refused.stderr
        assert not (tmp_path / "align").exists()
        done = launch("org/align")
        assert done.returncode == 0, done.stderr
        repo = hub.repo("model", "org/align")
        assert repo.private
        assert set(repo.tags) == {"v1.1.0"}
        assert hub.token not in done.stdout + done.stderr


def test_the_card_shows_held_out_losses_and_stories(single):
    card = render_model_card(single)
    assert "no validation loss was measured" not in card
    assert "sample_stories/step-000004/story-1/stills.jpg" in card
    assert "| 0 |" in card
    assert "sample_stories/step-000004/story-2/story.mp4" in files_of(single)
