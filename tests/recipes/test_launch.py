import contextlib
import json
import os
import re
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from animeshooter_dataset import DataError
from recipes import pretrain, sharding
from recipes.together import check_launch
from recipes.trainer import main

ROOT = Path(__file__).resolve().parents[2]
LIMIT = 240.0
"""Seconds after which a launch counts as hanging."""


def launch(config, out, dataset):
    """`accelerate launch` of the pretrain recipe: its loss depends on noise, timesteps and dropout."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", f"recipes/launch/{config}.yaml"]
    command += ["recipes/pretrain.py", "--data", str(dataset), "--out", str(out), "--set", "train.steps=3"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_")}
    done = subprocess.run(command, cwd=ROOT, env=environment | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout, [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_two_processes_train_as_one_at_the_same_global_batch(dataset, tmp_path):
    said_one, one = launch("cpu_1", tmp_path / "one", dataset)
    said_two, two = launch("cpu_2", tmp_path / "two", dataset)
    assert "pretrain: 1 process on cpu" in said_one
    assert "pretrain: 2 processes on cpu" in said_two
    assert {sample[:2] for line in one for sample in line["samples"]} == {"0:"}
    assert [[sample[:2] for sample in line["samples"]] for line in two] == [["0:", "0:", "1:", "1:"]] * 3
    keys_one, keys_two = ([[sample[2:] for sample in line["samples"]] for line in lines] for lines in (one, two))
    assert keys_one == keys_two
    # The same samples with the same noise: only the order of summation differs.
    assert [line["loss"] for line in two] == pytest.approx([line["loss"] for line in one], rel=1e-4)
    assert len({line["loss"] for line in two}) == 3


# ---- several nodes ----

SRUN = """#!/bin/bash
# Stands in for srun: as many tasks as asked for, each as if on a node of its own, all on this machine; SIGTERM goes to all.
while [[ $1 == --* ]]; do [[ $1 == --ntasks=* ]] && tasks=${1#--ntasks=}; shift; done
pids=()
for ((node = 0; node < tasks; node++)); do
    SLURM_NODEID=$node SLURM_PROCID=$node SLURM_STEP_ID=0 SLURM_NTASKS=$tasks "$@" & pids+=($!)
done
trap 'kill -TERM "${pids[@]}"' TERM
worst=0
for pid in "${pids[@]}"; do
    while wait "$pid"; kill -0 "$pid" 2>/dev/null; do :; done
    wait "$pid"; code=$?; (( code > worst )) && worst=$code
done
exit $worst
"""
SCONTROL = """#!/bin/bash
case $1 in
    show) echo 127.0.0.1; echo 127.0.0.1;;
    requeue) echo "$2" >> "$REQUEUED";;
esac
"""


@pytest.fixture
def slurm(tmp_path):
    """Starts recipes/launch/slurm.sh as the batch script of a job of two nodes, each with one process."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ACCELERATE_", "SLURM_"))}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_NODELIST": "node[1-2]", "PROCESSES_PER_NODE": "1"}
    ours = {"PORT": str(port), "PYTHON": sys.executable, "REQUEUED": str(tmp_path / "requeued"), "OMP_NUM_THREADS": "1"}
    environment = kept | job | ours | {"PATH": f"{tools}:{os.environ['PATH']}", "LAUNCH_ARGUMENTS": "--mixed_precision no"}

    def start(*arguments, **more):
        said = open(tmp_path / "said.txt", "a+")  # noqa: SIM115
        command = ["bash", "recipes/launch/slurm.sh", *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env=environment | more, stdout=said, stderr=subprocess.STDOUT, start_new_session=True
        )

    return start


def test_two_nodes_under_slurm_are_stopped_queued_again_and_end_as_one_process_does(dataset, slurm, tmp_path):
    torch.set_num_threads(1)
    line = ["--data", str(dataset), "--set", "train.steps=8", "--set", "train.save_every=none"]
    assert main(pretrain.STAGE, [*line, "--out", str(tmp_path / "one")]) == 0
    out, log = tmp_path / "two", tmp_path / "two.partial" / "log.jsonl"
    job = slurm("recipes/pretrain.py", *line, "--out", str(out))
    end = time.monotonic() + LIMIT
    try:
        while not log.is_file() or log.read_bytes().count(b"\n") < 2:
            assert job.poll() is None, (tmp_path / "said.txt").read_text()
            assert time.monotonic() < end, (tmp_path / "said.txt").read_text()
            time.sleep(0.01)
        job.send_signal(signal.SIGTERM)
        assert job.wait(LIMIT) == 75, (tmp_path / "said.txt").read_text()
        assert (tmp_path / "requeued").read_text() == "77\n"
        said = (tmp_path / "said.txt").read_text()
        assert "pretrain: 2 processes on cpu (DDP)" in said
        assert "pretrain: stopped by SIGTERM. Of 8 steps" in said
        job = slurm("recipes/pretrain.py", *line, "--out", str(out))
        assert job.wait(LIMIT) == 0, (tmp_path / "said.txt").read_text()
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    assert (tmp_path / "requeued").read_text() == "77\n"
    one, two = (json.loads((folder / "training.json").read_text()) for folder in (tmp_path / "one", out))
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert [start["processes"] for start in two["run"]["starts"]] == [2, 2]
    assert two["run"]["starts"][1]["step"] >= 2


# ---- what was started is what was asked for ----


@pytest.mark.parametrize(
    ("environment", "planned", "says"),
    [
        ({"WORLD_SIZE": "8"}, 16, "train.processes is 16, but 8 processes were started"),
        ({}, 2, "train.processes is 2, but 1 process was started; start 2 (accelerate launch --num_processes 2)"),
        ({"SLURM_STEP_ID": "0", "SLURM_NTASKS": "4"}, None, "srun started 4 tasks, but 1 process trains together"),
        (
            {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8", "GPUS": "4"},
            None,
            "8 processes were started on this machine, which has 4 GPUs",
        ),
        ({"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "GPUS": "1"}, 2, "which has 1 GPU: give --num_processes 1"),
    ],
)
def test_a_launch_that_is_not_what_was_meant_is_refused(monkeypatch, environment, planned, says):
    started(monkeypatch, environment)
    with pytest.raises(DataError, match=re.escape(says)):
        check_launch(planned)


@pytest.mark.parametrize(
    ("environment", "planned", "world"),
    [
        ({}, None, 1),
        ({"WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2", "GPUS": "8"}, 16, 16),
        ({"SLURM_NTASKS": "4"}, None, 1),  # in the batch script itself, or in a shell that salloc gave
        ({"SLURM_STEP_ID": "4294967290", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, None, 1),  # as a step of its own
    ],
)
def test_a_launch_that_is_what_was_meant_passes(monkeypatch, environment, planned, world):
    started(monkeypatch, environment)
    assert check_launch(planned) == world


def started(monkeypatch, environment):
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_STEP_ID", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: "GPUS" in environment)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: int(environment["GPUS"]))


def test_another_number_of_processes_than_planned_stops_a_run_before_it_starts(dataset, tmp_path, capsys):
    line = ["--data", str(dataset), "--out", str(tmp_path / "out"), "--set", "train.processes=4"]
    assert main(pretrain.STAGE, line) == 2
    assert "train.processes is 4, but 1 process was started" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("codes", "code"), [([75, -9], 75), ([2, 75], 2), ([-6], 75), ([1], 1), ([1, 75], 75), ([], 1)])
def test_the_launcher_ends_with_the_code_of_its_processes(codes, code):
    name = ROOT / "recipes" / "launch" / "launch.py"
    assert runpy.run_path(str(name))["code_of"](codes) == code


@pytest.mark.parametrize("code", [0, 2, 75])
def test_the_launcher_of_one_process_ends_with_its_code(tmp_path, code):
    script = tmp_path / "script.py"
    script.write_text(f"raise SystemExit({code})\n")
    launch = runpy.run_path(str(ROOT / "recipes" / "launch" / "launch.py"))["main"]
    assert launch(["--config_file", str(ROOT / "recipes" / "launch" / "cpu_1.yaml"), str(script)]) == code


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"FSDP_VERSION": "1"}, "set fsdp_version to 2"),
        ({"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "fsdp_offload_params is not supported"),
    ],
)
def test_fsdp_that_is_not_supported_is_refused(monkeypatch, asked, says):
    monkeypatch.setattr(sharding, "FSDP_ASKED", {"FSDP_OFFLOAD_PARAMS": "false", "ACCELERATE_USE_FSDP": "true"} | asked)
    with pytest.raises(DataError, match=says):
        sharding.fsdp_asked()
