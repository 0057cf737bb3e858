"""DeepSpeed ZeRO-2 and ZeRO-3, and FSDP2, on two real processes: trained, killed, gone on, and gone on in another layout."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tiny_dataset import write_dataset

from recipes import pretrain
from recipes.trainer import main

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240.0
"""Seconds after which a launch counts as hanging."""
LAYOUTS = {"zero2": "DeepSpeed ZeRO-2", "zero3": "DeepSpeed ZeRO-3", "fsdp2": "FSDP2"}
SETTINGS = {
    "train.steps": 8,
    "train.global_batch": 4,
    "train.save_every": 2,
    "train.keep": 9,
    "train.warmup": 3,
    "train.ema": 0.9,
}


@pytest.fixture(scope="module", autouse=True)
def _installed():
    pytest.importorskip("deepspeed")


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    directory = tmp_path_factory.mktemp("sharded") / "animeshooter"
    write_dataset(directory, videos=2, shots=5)
    return directory


@pytest.fixture(scope="module")
def alone(films, tmp_path_factory):
    """The same run on one process: losses and weights that all the others must come to."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("alone") / "out"
    assert main(pretrain.STAGE, line(films, out)) == 0
    return out


def line(data, out, *more, **settings):
    changed = SETTINGS | {name.replace("__", "."): value for name, value in settings.items()}
    found = [part for name, value in changed.items() for part in ("--set", f"{name}={value}")]
    return ["--data", str(data), "--out", str(out), *found, *more]


def start(config, arguments, *, processes=2, said):
    """`accelerate launch` in a session of its own, with its words in the file ``said``."""
    command = [sys.executable, "recipes/launch/launch.py", "--config_file", f"recipes/launch/{config}.yaml"]
    command += ["--num_processes", str(processes), "--mixed_precision", "no", "--main_process_port", "0"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "FSDP_"))}
    with open(said, "w") as file:
        return psutil.Popen(
            [*command, "recipes/pretrain.py", *arguments],
            cwd=ROOT,
            env=environment | {"OMP_NUM_THREADS": "1"},
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def losses(folder):
    try:
        whole = (folder / "log.jsonl").read_text().rpartition("\n")[0]
    except FileNotFoundError:
        return []
    return [json.loads(text)["loss"] for text in whole.splitlines()]


def family(launcher):
    return [launcher, *launcher.children(recursive=True)]


def kill(processes):
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, LIMIT)


def until(launcher, condition, said):
    end = time.monotonic() + LIMIT
    while not condition():
        assert launcher.poll() is None, said.read_text()
        assert time.monotonic() < end, said.read_text()
        time.sleep(0.01)


@pytest.fixture(scope="module")
def broken_off(films, tmp_path_factory):
    """A layout's run, killed all at once in or after its fifth step, what it had logged by then, and what it said."""
    folder, kept = tmp_path_factory.mktemp("broken"), {}

    def run(config):
        if config not in kept:
            out, said = folder / config / "out", folder / f"{config}.txt"
            work = out.with_name("out.partial")
            out.parent.mkdir()
            launcher = start(config, line(films, out), said=said)
            try:
                until(launcher, lambda: len(losses(work)) >= 5 and (work / "snapshots/step-000004").is_dir(), said)
            finally:
                kill(family(launcher))
            kept[config] = (work, losses(work), said.read_text())
        return kept[config]

    return run


@pytest.mark.parametrize("config", LAYOUTS)
def test_a_killed_run_goes_on_bit_for_bit(films, alone, broken_off, tmp_path, config):
    """Back to the snapshot of step 2, whatever newer ones there were: what comes again must be what was there before."""
    work, before, first = broken_off(config)
    assert f"pretrain: 2 processes on cpu ({LAYOUTS[config]})" in first
    out, said = tmp_path / "out", tmp_path / "said.txt"
    shutil.copytree(work, tmp_path / "out.partial")
    launcher = start(config, line(films, out, "--resume", str(tmp_path / "out.partial/snapshots/step-000002")), said=said)
    try:
        assert launcher.wait(LIMIT) == 0, said.read_text()
    finally:
        kill(family(launcher) if launcher.is_running() else [])
    assert "pretrain: goes on after step 2 of 8" in said.read_text()
    again = losses(out)
    assert len(before) >= 5
    assert again[: len(before)] == before
    assert again == pytest.approx(losses(alone), rel=1e-4)
    assert json.loads((out / "training.json").read_text())["run"]["starts"][1] == {"step": 2, "processes": 2}
    same_weights(alone, out)


def same_weights(one, other):
    """The averages of what was trained, in whole tensors: to rounding; what is frozen to the bit."""
    for file in sorted(one.rglob("*.safetensors")):
        first, second = load_file(file), load_file(other / file.relative_to(one))
        assert first.keys() == second.keys()
        for name, tensor in first.items():
            if file.parent.name == "transformer":
                torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=2e-5, msg=name)
            else:
                assert torch.equal(second[name], tensor), name


@pytest.mark.parametrize("config", LAYOUTS)
def test_a_run_goes_on_in_another_layout(films, alone, broken_off, tmp_path, capsys, config):
    """Snapshots hold whole tensors by name: one process goes on from what two had shared out."""
    work, _, _ = broken_off(config)
    assert main(pretrain.STAGE, line(films, tmp_path / "out", "--resume", str(work / "snapshots/step-000004"))) == 0
    assert "goes on after step 4 of 8" in capsys.readouterr().out
    assert losses(tmp_path / "out") == pytest.approx(losses(alone), rel=1e-4)
    same_weights(alone, tmp_path / "out")


def go_on_from_the_second_step(config, films, work, tmp_path, **settings):
    """Launches what was broken off once more, and waits until it has done a step."""
    said = tmp_path / "said.txt"
    shutil.copytree(work, tmp_path / "out.partial")
    resume = ["--resume", str(tmp_path / "out.partial/snapshots/step-000002")]
    launcher = start(config, line(films, tmp_path / "out", *resume, **settings), said=said)
    try:
        until(launcher, lambda: "goes on after" in said.read_text() and len(losses(tmp_path / "out.partial")) == 3, said)
    except BaseException:
        kill(family(launcher))
        raise
    return launcher, said


def ranks_of(launcher):
    return {one.environ()["RANK"]: one for one in launcher.children()}


def errors_in(said):
    return [text for text in said.read_text().replace("\r", "\n").splitlines() if text.startswith("error")]


def steps_saved(work):
    return sorted(int(path.name[5:]) for path in (work / "snapshots").glob("step-*"))


def test_under_zero_a_lost_process_ends_the_others(films, broken_off, tmp_path):
    launcher, said = go_on_from_the_second_step("zero3", films, broken_off("zero3")[0], tmp_path, train__patience=30)
    try:
        ranks_of(launcher)["1"].send_signal(signal.SIGKILL)
        assert launcher.wait(LIMIT) == 75
    finally:
        kill(family(launcher) if launcher.is_running() else [])
    assert all("another process was lost (" in text for text in errors_in(said)), said.read_text()
    assert steps_saved(tmp_path / "out.partial")[0] == 2


def test_under_zero_a_full_disk_ends_all_with_one_line(films, broken_off, tmp_path):
    """No file of the process that writes may grow beyond 50 KB from some step on."""
    launcher, said = go_on_from_the_second_step("zero2", films, broken_off("zero2")[0], tmp_path, train__save_every=5)
    try:
        ranks_of(launcher)["0"].rlimit(psutil.RLIMIT_FSIZE, (50_000, 50_000))
        assert launcher.wait(LIMIT) == 2
    finally:
        kill(family(launcher) if launcher.is_running() else [])
    assert len(errors_in(said)) == 1, said.read_text()
    assert "step-000005: cannot write the snapshot (" in errors_in(said)[0]
    assert steps_saved(tmp_path / "out.partial") == [2]
