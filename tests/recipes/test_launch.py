import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


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
