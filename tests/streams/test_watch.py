"""The watchdog ends what would hang, with every stack; bad samples are named and counted together."""

import io
import multiprocessing
import pickle
import subprocess
import sys
import time
from pathlib import Path

import pytest
from media_server import MediaServer, Served

from animeshooter_dataset import DataError
from streams import watch
from streams.watch import BadSamples, Watchdog

BODY = bytes(range(256)) * 1024
SHARD = "shots/train-00000.tar"


@pytest.fixture
def web():
    with MediaServer() as server:
        yield server


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


STALLED = """
import sys
from streams.store import Store, StoreOptions, Watchdog
from streams import watch
watch.GRACE = float(sys.argv[2])
store = Store.open(sys.argv[1], StoreOptions(timeout=float(sys.argv[3])))
store.read("manifest.json")  # what reading imports is imported: from here on only the server can be slow
def samples():
    for at in (0, 100, 200):
        yield store.range("shots/train-00000.tar", at, 50_000)
try:
    for sample in Watchdog(0.5, more=0.5, what="the test").watch(samples()):
        print("one", flush=True)
except ValueError as error:
    print("told", error, flush=True)
"""


@pytest.mark.parametrize(("grace", "timeout"), [(0.3, 100), (30, 1.5)], ids=["never wakes", "wakes"])
def test_a_server_that_stalls_for_ever_ends_with_every_stack_and_what_was_read(web, grace, timeout):
    web.serve("/data/manifest.json", Served(b'{"schema_version": "1.2", "files": {}}'))
    web.serve(f"/data/{SHARD}", Served(BODY), Served(BODY, stall_at=4096))
    command = [sys.executable, "-c", STALLED, f"{web.url}/data", str(grace), str(timeout)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=Path(__file__).parent.parent, check=False)
    assert done.stdout.startswith("one\n")
    assert "watchdog of the test" in done.stderr
    assert "nothing was delivered for" in done.stderr
    assert f"reading: {web.url}/data/{SHARD} at byte 100 (50000 bytes), for" in done.stderr
    assert "in range" in done.stderr  # the stack of the thread that reads
    assert "giving up" in done.stderr
    if grace < 1:
        assert done.returncode == watch.EXIT
        assert "the wait does not end; this process ends with status 75" in done.stderr
    else:
        assert done.returncode == 0
        assert "told watchdog of the test" in done.stdout


def test_a_watchdog_is_quiet_while_things_come_and_while_nobody_waits():
    out = io.StringIO()
    patient = Watchdog(2.0, out=out)  # so long that a busy machine does not take its time
    for _ in patient.watch(range(1)):
        time.sleep(2.5)  # a long step is no stall
    with patient:
        for _ in range(25):
            time.sleep(0.1)
            patient.delivered()
    assert out.getvalue() == ""
    dog = Watchdog(0.3, out=out)
    with dog:
        until(lambda: "until(lambda" in out.getvalue())  # this very line, in the stack of this thread
    assert "nothing was delivered for 0 s; the stacks of all threads follow" in out.getvalue()
    assert "Thread MainThread:" in out.getvalue()
    assert pickle.loads(pickle.dumps(dog)).seconds == 0.3


class Hanging:
    """A data set whose third sample never comes."""

    def __init__(self):
        self.dog = Watchdog(0.4, more=0.2, what="a worker")

    def __len__(self):
        return 5

    def __getitem__(self, which):
        with self.dog:
            while which == 2:
                time.sleep(0.1)
        return which


def test_a_worker_that_hangs_is_ended_by_its_watchdog(monkeypatch, capfd):
    from torch.utils.data import DataLoader

    monkeypatch.setattr(watch, "GRACE", 0.2)
    loader, got = DataLoader(Hanging(), batch_size=None, num_workers=1, multiprocessing_context="fork"), []
    with pytest.raises(RuntimeError, match=r"DataLoader worker .* exited unexpectedly"):
        got.extend(loader)
    said = capfd.readouterr().err
    assert "watchdog of a worker" in said
    assert "in __getitem__" in said
    assert "this process ends with status 75" in said


# ---- bad samples ----


def test_bad_samples_are_named_and_above_the_budget_the_run_stops(capsys):
    bad = BadSamples(2)
    bad.met("film0-s0-001", "does not decode\nat all")
    bad.met("film0-s0-001", "again")
    bad.met("film0-s0-002", DataError("truncated"))
    assert capsys.readouterr().err.splitlines() == [
        "bad sample 1 (at most 2): film0-s0-001: does not decode at all",
        "bad sample 2 (at most 2): film0-s0-002: truncated",
    ]
    with pytest.raises(DataError, match="3 bad samples, the budget is 2: film0-s0-001, film0-s0-002, film0-s0-003"):
        bad.met("film0-s0-003", "gone")
    assert bad.names == ["film0-s0-001", "film0-s0-002", "film0-s0-003"]


def test_a_share_is_of_a_known_number_and_none_allows_none():
    assert BadSamples(0.01, samples=1050).budget == 10
    with pytest.raises(DataError, match="a share of a known number"):
        BadSamples(0.01)
    with pytest.raises(DataError, match="1 bad samples, the budget is 0: k"):
        BadSamples(0).met("k", "gone")


def meet(bad, worker, raised):
    for number in range(5):
        try:
            bad.met(f"w{worker}-{number}", "gone")
        except DataError:
            raised.put(worker)
            return


def test_workers_count_together_and_a_resumed_run_goes_on_counting(tmp_path):
    context = multiprocessing.get_context("spawn")
    bad, raised = BadSamples(8), context.SimpleQueue()
    processes = [context.Process(target=meet, args=(bad, worker, raised)) for worker in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert len(bad.names) >= 9  # of ten that there were to meet
    assert not raised.empty()
    path = BadSamples(1).ledger
    assert not path.exists()  # gone with its object
    BadSamples(1, ledger=tmp_path / "bad.jsonl").met("a", "gone")
    with pytest.raises(DataError, match="2 bad samples, the budget is 1: a, b"):
        BadSamples(1, ledger=tmp_path / "bad.jsonl").met("b", "gone")
