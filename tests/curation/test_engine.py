import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from animeshooter_dataset import DataError
from curation import engine


def double(item, teller):
    teller.put(f"at {item}")
    if item < 0:
        raise DataError(f"item {item} is below zero")
    return 2 * item


def explode(item, teller):
    raise OSError(28, "No space left on device")


def die(item, teller):
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for(gate, item, teller):
    deadline = time.monotonic() + 60
    while item == 0 and not gate.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    return item


def endless(handed):
    for number in range(1000):
        handed.append(number)
        yield number


def run(name, task, items, **settings):
    return list(engine.run(name, 2, task, items, **settings))


@pytest.mark.parametrize("name", engine.ENGINES)
def test_results_come_with_their_items_errors_as_values_and_what_was_told(name):
    if name == "ray":
        pytest.importorskip("ray")
    told = []
    results = dict(run(name, double, [3, -1, 2], heard=told.append))
    assert (results[3], results[2]) == (6, 4)
    assert isinstance(results[-1], DataError)
    assert "below zero" in str(results[-1])
    everything = ["at -1", "at 2", "at 3"]
    assert sorted(told) == everything if name == "local" else set(told) <= set(everything)


@pytest.mark.parametrize("name", engine.ENGINES)
def test_other_errors_and_dead_workers_end_the_run(name):
    if name == "ray":
        pytest.importorskip("ray")
    with pytest.raises(OSError, match="No space"):
        run(name, explode, [1])
    with pytest.raises(engine.Died, match="worker"):
        run(name, die, [1])


def test_only_a_few_calls_are_handed_out_at_a_time():
    handed = []
    results = engine.run("local", 2, double, _Lazy(handed))
    next(results)
    assert len(handed) <= 2 * engine.AHEAD + 2
    results.close()


class _Lazy(list):
    """A list that notes which of its items were asked for."""

    def __init__(self, handed):
        super().__init__([None] * 1000)
        self.handed = handed

    def __iter__(self):
        return endless(self.handed)


def test_a_long_film_does_not_hold_up_the_others(tmp_path):
    gate = tmp_path / "gate"
    results = engine.run("local", 2, partial(wait_for, gate), list(range(12)))
    first = [item for item, _ in (next(results) for _ in range(11))]
    gate.touch()
    assert sorted(first) == list(range(1, 12))
    assert [item for item, _ in results] == [0]


def test_workers_end_when_the_process_that_runs_them_is_killed(tmp_path):
    code = f"""
import sys
sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parent.parent.parent)!r}]
import test_engine
from curation import engine
from functools import partial
from pathlib import Path
if __name__ == "__main__":
    list(engine.run("local", 1, partial(test_engine.note_and_wait, Path({str(tmp_path)!r})), [0]))
"""
    (tmp_path / "run.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(tmp_path / "run.py")])
    deadline = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = int((tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    while _alive(worker) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _alive(worker)


def note_and_wait(folder, item, teller):
    (folder / "pid.partial").write_text(str(os.getpid()))
    (folder / "pid.partial").rename(folder / "pid")
    time.sleep(120)


def _alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_engine_that_is_not_there_is_named():
    with pytest.raises(DataError, match="there are local and ray"):
        run("slurm", double, [1])
