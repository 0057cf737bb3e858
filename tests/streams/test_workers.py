"""Decoding processes: started without the main module, and gone with the trainer, however it ends."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from indexes import CLIP
from tiny_dataset import write_dataset

from animeshooter_streams import ShotStream

ROOT = Path(__file__).resolve().parents[2]
TRAINER = """
import multiprocessing, sys, time
from animeshooter_streams import ShotStream
from streams.clips import ClipSpec

print("main runs", flush=True)
if __name__ == "__main__":
    batches = ShotStream(sys.argv[1], ClipSpec(5, 32, 48, 4), global_batch=4).batches(workers=2)
    next(batches)
    print(*(one.pid for one in multiprocessing.active_children()), flush=True)
    time.sleep(600)
"""


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at /proc")
def test_workers_do_not_run_the_main_module_and_end_with_a_killed_trainer(tmp_path):
    write_dataset(tmp_path / "d", videos=1, shots=8)
    (tmp_path / "trainer.py").write_text(TRAINER)
    trainer = subprocess.Popen(
        [sys.executable, "-W", "ignore", str(tmp_path / "trainer.py"), str(tmp_path / "d")],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        cwd=ROOT,
    )
    with trainer:
        try:
            assert trainer.stdout.readline() == "main runs\n"
            workers = [int(pid) for pid in trainer.stdout.readline().split()]  # nothing said by a worker in between
            assert len(workers) == 2
            (server,) = {parent_of(pid) for pid in workers}
            groups = {os.getpgid(pid) for pid in (*workers, server)}
            assert os.getpgid(trainer.pid) not in groups  # its signals do not reach them
        finally:
            trainer.kill()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and any(Path(f"/proc/{pid}").exists() for pid in (*workers, server)):
        time.sleep(0.1)
    assert not [pid for pid in (*workers, server) if Path(f"/proc/{pid}").exists()]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks at /proc")
def test_what_workers_are_forked_from_has_no_threads():
    count = "import os, streams.preload; print(len(os.listdir('/proc/self/task')))"
    clean = {name: value for name, value in os.environ.items() if "THREADS" not in name}
    done = subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, cwd=ROOT, env=clean, check=True)
    assert done.stdout == "1\n"


def test_the_main_module_is_as_before_once_workers_have_started(tmp_path):
    stream = ShotStream(write_and_name(tmp_path), CLIP, global_batch=2)
    main = sys.modules["__main__"]
    before = {name: getattr(main, name, None) for name in ("__spec__", "__file__")}
    (batch,) = next(stream.batches(workers=1, steps=1))
    assert len(batch.samples) == 2
    assert {name: getattr(main, name, None) for name in before} == before


def write_and_name(tmp_path):
    write_dataset(tmp_path / "d", videos=1, shots=4)
    return tmp_path / "d"
