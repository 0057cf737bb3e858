"""Runs that are killed, stopped or starved, and go on: real launches for what needs several processes."""

import contextlib
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_dataset import write_dataset

from animeshooter_streams import ShotStream
from recipes import lora, multi_shot, pretrain, single_shot
from recipes.config import TINY_CLIP
from recipes.saving import WorkFolder
from recipes.trainer import main
from streams.clips import ClipSpec

ROOT = Path(__file__).resolve().parents[2]
KILLS = int(os.environ.get("ANIMESHOOTER_KILLS", "2"))
"""How often the run of :func:`test_a_killed_run` is killed."""
LIMIT = 120.0
"""Seconds after which a launch counts as hanging."""
STEPS = 8
SETTINGS = {"train.steps": STEPS, "train.global_batch": 3, "train.save_every": 3, "train.warmup": 5}
MANY = {"train__steps": 4 * KILLS + 4, "train__global_batch": 6}
"""What is launched is longer, to be killed on the way, and its batch can be shared by one, two or three processes."""


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    """21 shots: three and a half batches of six, so that the last one of an epoch is filled up."""
    directory = tmp_path_factory.mktemp("resume") / "animeshooter"
    write_dataset(directory, videos=3, shots=7)
    return directory


@pytest.fixture(scope="module")
def undisturbed(films, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert main(pretrain.STAGE, arguments(films, out)) == 0
    return out


@pytest.fixture(scope="module")
def undisturbed_long(films, tmp_path_factory):
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("undisturbed_long") / "out"
    assert main(pretrain.STAGE, arguments(films, out, **MANY)) == 0
    return out


def arguments(data, out, parent=None, **more):
    settings = SETTINGS | {name.replace("__", "."): value for name, value in more.items()}
    found = ["--data", str(data), "--out", str(out), *(["--from", str(parent)] if parent else [])]
    return found + [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]


def tensors(checkpoint):
    return {
        f"{file.parent.name}/{name}": tensor
        for file in sorted(checkpoint.rglob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def log_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def same_run(one, other, *, exactly):
    """Whether two checkpoints come of the same steps on the same samples, and have the same weights."""
    logs = [
        [(line["step"], line["loss"], [s.partition(":")[2] for s in line["samples"]]) for line in log_of(x)]
        for x in (one, other)
    ]
    assert [line[0] for line in logs[1]] == list(range(len(logs[0])))
    assert [line[2] for line in logs[0]] == [line[2] for line in logs[1]]
    losses = [[line[1] for line in log] for log in logs]
    assert losses[1] == (losses[0] if exactly else pytest.approx(losses[0], rel=1e-3))
    assert json.loads((other / "training.json").read_text())["losses"] == losses[1]
    first, second = tensors(one), tensors(other)
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        if exactly:
            assert torch.equal(tensor, second[name]), name
        else:
            torch.testing.assert_close(second[name], tensor, rtol=1e-2, atol=1e-4, msg=name)


# ---- launches ----


class Launch:
    """An `accelerate launch` that can be watched and killed; it never outlives the test."""

    def __init__(self, processes, stage, line):
        self.out, self.began = Path(line[line.index("--out") + 1]), time.time()
        command = [sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", f"recipes/launch/cpu_{min(processes, 2)}.yaml", "--num_processes", str(processes)]
        environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
        self.told = open(self.out.with_name(f"{time.monotonic_ns()}.txt"), "w+")  # noqa: SIM115
        self.launcher = psutil.Popen(
            [*command, f"recipes/{stage}.py", *line],
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=self.told,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def ranks(self):
        return self.launcher.children()

    def until(self, steps):
        """Wait until the log has so many steps; False if the launch ended before."""
        log, end = self.out.with_name(f"{self.out.name}.partial") / "log.jsonl", time.monotonic() + LIMIT
        while not self.has(log, steps):
            if self.launcher.poll() is not None:
                return False
            assert time.monotonic() < end, self.said()
            time.sleep(0.005)
        return True

    def has(self, log, steps):
        try:
            return log.stat().st_mtime > self.began and log.read_bytes().count(b"\n") >= steps
        except FileNotFoundError:  # not there yet, or removed by a run that starts anew
            return False

    def kill(self):
        """SIGKILL to the launcher and everything it started, all at once."""
        try:
            family = [self.launcher, *self.launcher.children(recursive=True)]
        except psutil.NoSuchProcess:
            family = []
        for process in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.launcher.wait(LIMIT)
        psutil.wait_procs(family, LIMIT)

    def end(self):
        """Wait for the launcher; returns its exit code."""
        return self.launcher.wait(LIMIT)

    def said(self):
        self.told.seek(0)
        return self.told.read()

    def errors(self):
        return [line for line in self.said().replace("\r", "\n").splitlines() if line.startswith("error")]


# ---- one process: exactly as if nothing had been ----


class Crash(BaseException):
    """What no part of a run expects."""


def at_step(stage, step, action):
    """The stage with something happening in the middle of one of its steps."""

    def loss(gen, batch, config, generators):
        if batch.step == step:
            action()
        return stage.loss(gen, batch, config, generators)

    return replace(stage, loss=loss)


def crash():
    raise Crash


def crashed(stage, step, line):
    with pytest.raises(Crash):
        main(at_step(stage, step, crash), line)


def steps_saved(out):
    return sorted(int(path.name[5:]) for path in out.with_name(f"{out.name}.partial").glob("snapshots/step-*"))


@pytest.mark.parametrize(("stage", "parent"), [(pretrain, None), (multi_shot, "single_shot"), (lora, "multi_shot")])
def test_a_run_that_crashed_twice_is_bit_for_bit_the_one_that_did_not(films, chain, tmp_path, capsys, stage, parent):
    one, two = tmp_path / "one", tmp_path / "two"
    more = {"parent": parent and chain[parent], "train__steps": 6, "train__save_every": 2}
    assert main(stage.STAGE, arguments(films, one, **more)) == 0
    line = arguments(films, two, **more)
    crashed(stage.STAGE, 3, line)
    crashed(stage.STAGE, 4, line)
    assert steps_saved(two) == [2, 4]
    capsys.readouterr()
    assert main(stage.STAGE, line) == 0
    assert f"{stage.STAGE.name}: goes on after step 4 of 6" in capsys.readouterr().out
    same_run(one, two, exactly=True)
    run = json.loads((two / "training.json").read_text())["run"]
    assert [start["step"] for start in run["starts"]] == [0, 2, 4]


def test_what_may_change_between_two_starts(films, undisturbed, tmp_path):
    crashed(pretrain.STAGE, 4, arguments(films, tmp_path / "out", train__accumulate=3, train__steps=5))
    assert main(pretrain.STAGE, arguments(films, tmp_path / "out", train__keep=1, train__save_every=5)) == 0
    same_run(undisturbed, tmp_path / "out", exactly=False)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_that_is_asked_to_stop_finishes_its_step_and_saves(films, undisturbed, tmp_path, capsys, number):
    line = arguments(films, tmp_path / "out", train__save_every=None)
    handlers = [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
    assert main(at_step(pretrain.STAGE, 4, lambda: os.kill(os.getpid(), number)), line) == 75
    assert handlers == [signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)]
    said = f"stopped by {number.name}. Of {STEPS} steps 5 are done; the same command goes on after step 5\n"
    assert said in capsys.readouterr().err
    assert steps_saved(tmp_path / "out") == [5]
    assert main(pretrain.STAGE, line) == 0
    same_run(undisturbed, tmp_path / "out", exactly=True)


def test_only_the_newest_snapshots_stay_and_nothing_in_them_is_pickled(films, tmp_path):
    crashed(pretrain.STAGE, 7, arguments(films, tmp_path / "out", train__save_every=1, train__keep=3))
    assert steps_saved(tmp_path / "out") == [5, 6, 7]
    files = {path.name for path in (tmp_path / "out.partial" / "snapshots").rglob("*") if path.is_file()}
    assert files == {"weights.safetensors", "optimizer.safetensors", "losses.safetensors", "state.json"}


# ---- damage ----


@pytest.fixture(scope="module")
def _broken_off(films, tmp_path_factory):
    """A run that crashed in its eighth step; snapshots after 3 and 6."""
    folder = tmp_path_factory.mktemp("broken")
    crashed(pretrain.STAGE, 7, arguments(films, folder / "out"))
    return folder / "out.partial"


@pytest.fixture
def broken_off(_broken_off, tmp_path):
    return Path(shutil.copytree(_broken_off, tmp_path / "out.partial"))


@pytest.mark.parametrize("name", ["optimizer.safetensors", "state.json"])
def test_a_truncated_snapshot_is_left_aside(films, undisturbed, broken_off, capsys, name):
    damaged = broken_off / "snapshots" / "step-000006" / name
    os.truncate(damaged, damaged.stat().st_size - 3)
    assert main(pretrain.STAGE, arguments(films, broken_off.with_name("out"))) == 0
    said = capsys.readouterr().out
    assert "step-000006" in said
    assert "left aside" in said
    assert f"goes on after step 3 of {STEPS}" in said
    same_run(undisturbed, broken_off.with_name("out"), exactly=True)


def test_half_written_snapshots_and_lines_are_not_used(films, undisturbed, broken_off):
    shutil.copytree(broken_off / "snapshots" / "step-000003", broken_off / "snapshots" / ".new-step-000009")
    (broken_off / "snapshots" / ".old-step-000001").mkdir()
    (broken_off / ".checkpoint.77.partial").mkdir()
    with open(broken_off / "log.jsonl", "a") as log:
        log.write('{"step": 7, "lo')
    assert main(pretrain.STAGE, arguments(films, broken_off.with_name("out"))) == 0
    same_run(undisturbed, broken_off.with_name("out"), exactly=True)


def test_without_a_whole_snapshot_the_user_must_say_that_it_starts_anew(films, undisturbed, broken_off, capsys):
    for path in broken_off.rglob("weights.safetensors"):
        path.unlink()
    line = arguments(films, broken_off.with_name("out"))
    assert main(pretrain.STAGE, line) == 2
    assert "none of 2 snapshots is whole; --resume never starts anew\n" in capsys.readouterr().err
    assert main(pretrain.STAGE, [*line, "--resume", "never"]) == 0
    same_run(undisturbed, broken_off.with_name("out"), exactly=True)


def test_a_log_that_is_not_the_snapshot_s_is_refused(films, broken_off, capsys):
    lines = (broken_off / "log.jsonl").read_text().splitlines(keepends=True)
    (broken_off / "log.jsonl").write_text("".join(lines[:4]))
    assert main(pretrain.STAGE, arguments(films, broken_off.with_name("out"))) == 2
    assert (
        "log.jsonl: does not end with step 5 where the snapshot says; --resume never starts anew\n" in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train__seed": 1}, "train.seed was 0, is 1"),
        (
            {"train__learning_rate": 0.5, "train__clip_norm": 2},
            "train.learning_rate was 0.001, is 0.5; train.clip_norm was 1.0, is 2",
        ),
        ({"data__clip__frames": 5}, "data.clip.frames was 9, is 5"),
        ({"train__global_batch": 6}, "train.global_batch was 3, is 6"),
        ({"train__steps": 5}, "has done 6 steps, more than train.steps=5"),
    ],
)
def test_a_snapshot_of_other_settings_is_refused(films, broken_off, capsys, change, says):
    before = sorted(broken_off.rglob("*"))
    assert main(pretrain.STAGE, arguments(films, broken_off.with_name("out"), **change)) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(broken_off.rglob("*")) == before


def test_a_snapshot_of_another_dataset_is_refused(broken_off, tmp_path, capsys):
    write_dataset(tmp_path / "other", videos=3, shots=8)
    assert main(pretrain.STAGE, arguments(tmp_path / "other", broken_off.with_name("out"))) == 2
    error = capsys.readouterr().err
    assert "cannot resume: " in error
    assert "shots was 21, is 24" in error


def test_a_snapshot_of_another_parent_is_refused(films, chain, tmp_path, capsys):
    crashed(single_shot.STAGE, 4, arguments(films, tmp_path / "out", chain["align"]))
    for name, says in (
        ("training.json", "the checkpoint it started from is another"),
        ("vae", "frozen weights of the vae are others"),
    ):
        other = Path(shutil.copytree(chain["align"], tmp_path / name / "align"))
        if name == "vae":
            weights = load_file(file := next((other / "vae").glob("*.safetensors")))
            save_file({key: tensor + 0.01 for key, tensor in weights.items()}, file, {"format": "pt"})
        else:
            (other / name).write_text((other / name).read_text() + "\n")
        assert main(single_shot.STAGE, arguments(films, tmp_path / "out", other)) == 2
        assert says in capsys.readouterr().err


def test_a_snapshot_of_another_version_is_refused(films, broken_off, capsys):
    file = broken_off / "snapshots" / "step-000006" / "state.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"version": 99}))
    assert main(pretrain.STAGE, arguments(films, broken_off.with_name("out"))) == 2
    assert "a snapshot of version 99" in capsys.readouterr().err


def test_two_runs_never_write_to_one_place(films, broken_off, capsys):
    other = WorkFolder(broken_off, keep=2)
    assert main(pretrain.STAGE, arguments(films, broken_off.with_name("out"))) == 2
    assert "another run is writing there" in capsys.readouterr().err
    other.close()


@pytest.mark.parametrize("step", [5, STEPS - 1])
def test_a_full_disk_ends_the_run_and_leaves_the_last_snapshot(films, undisturbed, tmp_path, capsys, step):
    """No file may grow beyond 50 KB from the middle of a step on: the next snapshot, or the last one, cannot be written."""
    line, limits = arguments(films, tmp_path / "out"), resource.getrlimit(resource.RLIMIT_FSIZE)
    full = at_step(pretrain.STAGE, step, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1])))
    try:
        assert main(full, line) == 2
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = [one for one in capsys.readouterr().err.splitlines() if one.startswith("error")]
    assert len(error) == 1
    assert "cannot write the snapshot (" in error[0]
    assert steps_saved(tmp_path / "out")[-1] == 3 * (step // 3)
    assert main(pretrain.STAGE, line) == 0
    same_run(undisturbed, tmp_path / "out", exactly=True)


# ---- which snapshot ----


def test_an_older_snapshot_can_be_chosen(films, undisturbed, broken_off, capsys):
    line = [*arguments(films, broken_off.with_name("out")), "--resume", str(broken_off / "snapshots" / "step-000003")]
    assert main(at_step(pretrain.STAGE, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)), line) == 75
    assert f"goes on after step 3 of {STEPS}; --resume never would start anew" in capsys.readouterr().out
    assert steps_saved(broken_off.with_name("out")) == [3, 5]
    assert main(pretrain.STAGE, arguments(films, broken_off.with_name("out"))) == 0
    same_run(undisturbed, broken_off.with_name("out"), exactly=True)


def test_another_run_can_go_on_from_a_snapshot_and_leaves_it_as_it_is(films, undisturbed, broken_off, tmp_path, capsys):
    before = {path: path.read_bytes() for path in broken_off.rglob("*") if path.is_file()}
    line = [*arguments(films, tmp_path / "new", train__save_every=None), "--resume", str(broken_off)]
    assert main(pretrain.STAGE, line) == 0
    assert f"goes on after step 6 of {STEPS}" in capsys.readouterr().out
    same_run(undisturbed, tmp_path / "new", exactly=True)
    assert {path: path.read_bytes() for path in broken_off.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    ("resume", "says"),
    [
        ("nowhere", "nowhere: no snapshot and no folder of a run"),
        ("other/snapshots/step-000003", "holds a run of its own: go on with it (--resume auto)"),
        ("out.partial/snapshots/step-000007", "no snapshot and no folder of a run"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused(films, broken_off, tmp_path, capsys, monkeypatch, resume, says):
    shutil.copytree(broken_off, tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    before = sorted(broken_off.rglob("*"))
    assert main(pretrain.STAGE, [*arguments(films, tmp_path / "out"), "--resume", resume]) == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert sorted(broken_off.rglob("*")) == before


# ---- snapshots that are written beside the steps ----


def test_a_snapshot_is_that_of_its_step_however_long_it_takes_to_write(films, undisturbed, tmp_path, monkeypatch):
    """The disk is slower than the steps: what is written is what was there at the step, and the next save waits."""
    began, waited = [], threading.Event()
    write = WorkFolder._write

    def slowly(folder, snapshot):
        began.append(snapshot.step)
        if snapshot.step == 3:
            assert waited.wait(LIMIT)
        write(folder, snapshot)

    monkeypatch.setattr(WorkFolder, "_write", slowly)
    stage = at_step(pretrain.STAGE, 5, waited.set)
    crashed(replace(stage, loss=at_step(stage, 7, crash).loss), 7, arguments(films, tmp_path / "out"))
    assert began == [3, 6]
    assert steps_saved(tmp_path / "out") == [3, 6]
    shutil.rmtree(tmp_path / "out.partial" / "snapshots" / "step-000006")
    assert main(pretrain.STAGE, arguments(films, tmp_path / "out", train__async_save=False)) == 0
    same_run(undisturbed, tmp_path / "out", exactly=True)


def test_a_stop_waits_for_the_snapshot_that_is_being_written(films, tmp_path, monkeypatch, capsys):
    write = WorkFolder._write

    def slowly(folder, snapshot):
        time.sleep(0.5)
        write(folder, snapshot)

    monkeypatch.setattr(WorkFolder, "_write", slowly)
    line = arguments(films, tmp_path / "out", train__save_every=4)
    assert main(at_step(pretrain.STAGE, 4, lambda: os.kill(os.getpid(), signal.SIGTERM)), line) == 75
    assert "the same command goes on after step 5\n" in capsys.readouterr().err
    assert steps_saved(tmp_path / "out") == [4, 5]


# ---- several processes ----


def test_a_killed_run_ends_as_if_it_had_never_been_killed(films, undisturbed_long, tmp_path):
    """SIGKILL at random steps to all processes, or to one alone; then on with another number of processes."""
    out, chance = tmp_path / "out", random.Random(KILLS)
    line, done = arguments(films, out, **MANY), 0
    for kill in range(KILLS):
        processes = (2, 3, 1)[kill % 3]
        with Launch(processes, "pretrain", line) as launch:
            assert launch.until(done + 1 + chance.randrange(3)), launch.said()
            time.sleep(0.2 * chance.random())
            if processes > 1 and (kill + kill // 3) % 2:
                chance.choice(launch.ranks()).kill()
                assert launch.end() != 0
                assert all("another process was lost (" in error for error in launch.errors()), launch.said()
            else:
                launch.kill()
            assert f"goes on after step {done} of {MANY['train__steps']}" in launch.said() or not done
        assert not out.exists()
        done = max(steps_saved(out), default=0)
    assert main(pretrain.STAGE, line) == 0
    same_run(undisturbed_long, out, exactly=False)
    assert not (tmp_path / "out.partial").exists()
    assert_epochs_are_whole(log_of(out), ShotStream(films, ClipSpec(**asdict(TINY_CLIP)), global_batch=6))


def assert_epochs_are_whole(log, stream):
    """Every sample of every epoch once, but for those that fill up the last step."""
    keys, steps = stream.index["key"].to_pylist(), stream.steps_per_epoch
    assert (len(keys), steps) == (21, 4)
    for epoch in range(len(log) // steps):
        read = [sample.partition(":")[2] for line in log[epoch * steps : (epoch + 1) * steps] for sample in line["samples"]]
        assert Counter(read[:21]) == Counter(keys)
        assert read[21:] == read[:3]


def test_a_process_that_hangs_is_given_up(films, tmp_path):
    with Launch(2, "pretrain", arguments(films, tmp_path / "out", **MANY, train__patience=12)) as launch:
        assert launch.until(4), launch.said()
        hanging = next(one for one in launch.ranks() if one.environ()["RANK"] == "1")
        hanging.suspend()
        waiting = next(one for one in launch.ranks() if one != hanging)
        waiting.wait(LIMIT)
        assert len(launch.errors()) == 1, launch.said()
        assert launch.errors()[0].startswith("error: another process was lost (")
        assert "the same command goes on after step 3" in launch.errors()[0]


def test_a_stop_is_shared_and_a_bad_sample_ends_all_processes_with_one_line(films, undisturbed_long, tmp_path):
    data, out = Path(shutil.copytree(films, tmp_path / "animeshooter")), tmp_path / "out"
    with Launch(2, "pretrain", arguments(data, out, **MANY, data__workers=1)) as launch:
        assert launch.until(1), launch.said()
        launch.launcher.terminate()
        assert launch.end() != 0
        done = len(log_of(tmp_path / "out.partial"))
        said = f"pretrain: stopped by SIGTERM. Of {MANY['train__steps']} steps {done} are done; the same command goes on after"
        assert f"{said} step {done}" in launch.said().splitlines()
    for shard in (data / "shots").glob("*.tar"):
        os.truncate(shard, shard.stat().st_size // 2)
    with Launch(2, "pretrain", arguments(data, out, **MANY)) as launch:
        assert launch.end() != 0
        assert len(launch.errors()) == 1, launch.said()
        assert ".tar" in launch.errors()[0]
    shutil.copytree(films / "shots", data / "shots", dirs_exist_ok=True)
    assert main(pretrain.STAGE, arguments(data, out, **MANY)) == 0
    same_run(undisturbed_long, out, exactly=False)
