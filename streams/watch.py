"""What keeps long reading honest: a watchdog that never lets a run hang, and a budget for samples that cannot be read."""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

from animeshooter_records import DataError

T = TypeVar("T")
EXIT = 75
"""Exit status of a process that its watchdog ended (EX_TEMPFAIL of sysexits.h: trying again may help)."""
GRACE = 5.0
"""Seconds between asking the readers to give up and ending the process."""

_reading: dict[int, tuple[str, float]] = {}
_stopped: list[str] = []


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Note what this thread reads from now on, for :class:`Watchdog` to tell."""
    thread = threading.get_ident()
    before, _reading[thread] = _reading.get(thread), (what, time.monotonic())
    try:
        yield
    finally:
        if before is None:
            _reading.pop(thread, None)
        else:
            _reading[thread] = before


def check_stopped() -> None:
    """Raise the watchdog's verdict; called by whoever waits.

    Raises:
        DataError: a watchdog of this process has given up.
    """
    if _stopped:
        raise DataError(_stopped[0])


class Watchdog:
    """Ends a wait that has become a hang: stacks of all threads after ``seconds``, the end after ``more`` further seconds.

    It counts only while somebody waits, so that a long validation or saving is no stall::

        for batches in Watchdog(600).watch(stream.batches(rank, world_size)):
            train(batches)

    or, inside a worker, ``with watchdog: read_and_decode()``. :meth:`delivered` starts the count anew. At the end every
    :class:`~streams.store.Store` of the process raises :class:`DataError`; a process that is still waiting after
    :data:`GRACE` seconds leaves with status :data:`EXIT` (a DataLoader then says that its worker exited). Code that
    hangs inside a library without releasing Python's lock is not reached. It pickles as its settings.

    Args:
        seconds: of waiting until the stacks are printed.
        more: further seconds until the end; as many again if None.
        out: where to; the standard error if None (not kept when pickled).
        what: whose watchdog it is, for its lines.
    """

    def __init__(self, seconds: float, more: float | None = None, out: TextIO | None = None, what: str = "") -> None:
        if not seconds > 0 or (more is not None and not more > 0):
            raise DataError(f"watchdog: seconds must be more than 0, not {seconds} and {more}")
        self.seconds, self.more, self.out, self.what = seconds, seconds if more is None else more, out, what
        self._start()

    def _start(self) -> None:
        self._pid, self._wake = os.getpid(), threading.Condition()
        self._armed, self._since = 0, 0.0
        self._thread: threading.Thread | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "more": self.more, "what": self.what}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, out=None)
        self._start()

    def __enter__(self) -> Watchdog:
        if self._pid != os.getpid():  # after a fork the thread is not there
            self._start()
        with self._wake:
            self._armed, self._since = self._armed + 1, time.monotonic()
            if self._thread is None:
                self._thread = threading.Thread(target=self._guard, name="watchdog", daemon=True)
                self._thread.start()
            self._wake.notify()
        return self

    def __exit__(self, *_: object) -> None:
        with self._wake:
            self._armed -= 1
            self._since = time.monotonic()

    def delivered(self) -> None:
        """Something came: count anew."""
        self._since = time.monotonic()

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """The items, guarding the wait for each."""
        source = iter(items)
        while True:
            with self:
                try:
                    item = next(source)
                except StopIteration:
                    return
            yield item

    def _guard(self) -> None:
        told = 0.0  # the wait whose stacks were printed
        while True:
            with self._wake:
                while not self._armed:
                    self._wake.wait()
                since = self._since
            waited = time.monotonic() - since
            if waited >= self.seconds + self.more:
                return self._end(since, waited)
            if waited >= self.seconds and told != since:
                told = since
                self._tell(f"nothing was delivered for {waited:.0f} s; the stacks of all threads follow", stacks=True)
            limit = self.seconds if told != since else self.seconds + self.more
            time.sleep(min(max(since + limit - time.monotonic(), 0.01), 1.0))

    def _end(self, since: float, waited: float) -> None:
        line = f"nothing was delivered for {waited:.0f} s ({_told_reading() or 'nothing is being read'})"
        _stopped.append(f"{self._name()}: {line}; see the stacks above, look at the server or disk, and run again to go on")
        self._tell(f"{line}; giving up")
        end = time.monotonic() + GRACE
        while time.monotonic() < end:
            time.sleep(0.05)
            if not self._armed or self._since != since:  # whoever waited has got the error
                _stopped.clear()
                self._thread = None
                return
        self._tell(f"the wait does not end; this process ends with status {EXIT}, run again to go on")
        os._exit(EXIT)

    def _name(self) -> str:
        return f"watchdog{' of ' + self.what if self.what else ''} (process {os.getpid()})"

    def _tell(self, line: str, *, stacks: bool = False) -> None:
        out = self.out or sys.stderr
        with suppress(OSError, ValueError):  # a closed stream must not keep it from its work
            said = _told_reading()
            print(f"{self._name()}: {line}" + (f"\n  reading: {said}" if stacks and said else ""), file=out, flush=True)
            if stacks:
                _print_stacks(out)


def _told_reading() -> str:
    now = time.monotonic()
    return "; ".join(f"{what}, for {now - since:.0f} s" for what, since in sorted(_reading.values(), key=lambda each: each[1]))


def _print_stacks(out: TextIO) -> None:
    try:
        faulthandler.dump_traceback(out, all_threads=True)
    except (AttributeError, ValueError, OSError):  # a stream without a file descriptor
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        for ident, frame in sys._current_frames().items():
            print(f"Thread {names.get(ident, ident)}:", "".join(traceback.format_stack(frame)), sep="\n", file=out)
    out.flush()


class BadSamples:
    """Samples that cannot be read are named and counted; above the budget the run stops.

    The count is of distinct keys, over every process that shares the ledger, a file with one JSON line a sample. Without
    ``ledger`` that is a temporary file, shared by this object and its pickled copies (the workers of one process); a path in
    the run's folder counts over all processes that see it, and over resumes. A sample is in the ledger before :meth:`met`
    returns, so the process that adds the one too many always raises; others that are not asked again go on until then.

    Args:
        budget: samples that may be bad; a float below 1 is a share of ``samples``, rounded down.
        samples: how many there are (needed for a share).
        ledger: where to count.
    """

    def __init__(self, budget: int | float, samples: int | None = None, ledger: Path | None = None) -> None:
        share = isinstance(budget, float) and not budget.is_integer()
        if budget < 0 or (share and (budget > 1 or samples is None)):
            raise DataError(f"budget of bad samples: a number, or a share of a known number of samples, not {budget}")
        self.budget = int(budget * samples) if share and samples is not None else int(budget)
        self.ledger, self._owner = ledger, None if ledger else os.getpid()
        if self.ledger is None:
            handle, path = tempfile.mkstemp(prefix="bad-samples-", suffix=".jsonl")
            os.close(handle)
            self.ledger = Path(path)
        self._clear()

    def _clear(self) -> None:
        self._lock, self._read, self._met = threading.Lock(), 0, dict[str, str]()

    def __getstate__(self) -> dict[str, Any]:
        return {"budget": self.budget, "ledger": self.ledger, "_owner": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clear()

    def __del__(self) -> None:
        if getattr(self, "_owner", None) == os.getpid():
            with suppress(OSError):
                self.ledger.unlink()  # type: ignore[union-attr] # an owner has one

    @property
    def names(self) -> list[str]:
        """The bad samples met so far, by all who share the ledger, in the order in which they were met."""
        with self._lock:
            self._update()
            return list(self._met)

    def met(self, key: str, reason: object) -> None:
        """Record a bad sample, and name it on the standard error the first time.

        Raises:
            DataError: there are more than the budget allows; names all.
        """
        said = " ".join(str(reason).split())
        with self._lock:
            self._update()
            if key not in self._met:
                self._write(key, said)
                self._update()
                print(f"bad sample {len(self._met)} (at most {self.budget}): {key}: {said}", file=sys.stderr, flush=True)
            count = len(self._met)
        if count > self.budget:
            names = ", ".join(self._met)
            raise DataError(
                f"{count} bad samples, the budget is {self.budget}: {names} (the last: {said}); mend the dataset, "
                "or allow more of them"
            )

    def _write(self, key: str, said: str) -> None:
        line = json.dumps({"key": key, "reason": said}) + "\n"
        try:
            handle = os.open(self.ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)  # type: ignore[arg-type]
            try:
                os.write(handle, line.encode())  # one write: lines of several processes do not mix
            finally:
                os.close(handle)
        except OSError as error:
            raise DataError(f"{self.ledger}: cannot note the bad sample {key} ({error.strerror}); {said}") from None

    def _update(self) -> None:
        with suppress(FileNotFoundError), open(self.ledger, "rb") as file:  # type: ignore[arg-type]
            file.seek(self._read)
            whole, newline, _ = file.read().rpartition(b"\n")
            self._read += len(whole) + len(newline)
            for line in whole.splitlines():
                with suppress(ValueError, KeyError, TypeError):  # half a line of a process that was killed
                    noted = json.loads(line)
                    self._met.setdefault(str(noted["key"]), str(noted["reason"]))
