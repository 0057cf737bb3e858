"""Where films are worked on: a pool of processes on this machine, or a Ray cluster. The same functions run on both.

Neither is a scheduler of ours. A task is one call on one film; results come back in the order in which they are ready, and only
a few calls more than there are workers are handed out at a time, so that a list of thirty thousand films takes no memory.
"""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

from animeshooter_dataset import DataError

ENGINES = ("local", "ray")
AHEAD = 2
"""Calls handed out for each worker: one at work, one that it can begin at once."""
POLL = 0.2
"""Seconds between two looks at what the workers have told."""

Item = TypeVar("Item")


class Died(DataError):
    """A worker process ended before its call did."""


class Teller(Protocol):
    """The end of a queue that a worker process holds."""

    def put(self, item: Any) -> None:
        """Send something small to the process that runs the build."""
        ...


def run(
    engine: str,
    workers: int,
    task: Callable[[Item, Teller], Any],
    items: Sequence[Item],
    heard: Callable[[Any], None] = lambda told: None,
) -> Iterator[tuple[Item, Any]]:
    """Call ``task`` on every item, several at once.

    Args:
        engine: ``local`` or ``ray``.
        workers: most calls at once; on Ray, each asks for one CPU of the cluster.
        task: a function of a module, called with an item and a teller.
        items: what to call it on, in the order in which to begin.
        heard: called in this process with whatever tasks have told, in between.

    Yields:
        Each item with what its call returned, or the :class:`DataError` it raised, in the order of completion. Other
        exceptions of a task end the run.

    Raises:
        DataError: the engine is not there.
        Died: a worker ended before its call did.
    """
    if engine not in ENGINES:
        raise DataError(f"no engine '{engine}'; there are {' and '.join(ENGINES)}")
    if items:
        yield from (_local if engine == "local" else _ray)(workers, task, items, heard)


def _guarded(task: Callable[[Item, Teller], Any], item: Item, teller: Teller) -> Any:
    """What the task returns, or its DataError as a value: a plain value passes every process border unharmed."""
    try:
        return task(item, teller)
    except DataError as error:
        return error


def _local(
    workers: int, task: Callable[[Item, Teller], Any], items: Sequence[Item], heard: Callable[[Any], None]
) -> Iterator[tuple[Item, Any]]:
    context = multiprocessing.get_context("spawn")
    workers = max(1, min(workers, len(items)))
    with context.Manager() as manager, ProcessPoolExecutor(workers, context, _die_with_parent, (os.getpid(),)) as pool:
        told, left = manager.Queue(), iter(items)
        running: dict[Future[Any], Item] = {}
        try:
            while True:
                for item in islice(left, workers * AHEAD - len(running)):
                    running[pool.submit(_guarded, task, item, told)] = item
                if not running:
                    break
                ready, _ = wait(running, timeout=POLL, return_when=FIRST_COMPLETED)
                while not told.empty():
                    heard(told.get())
                for future in ready:
                    yield running.pop(future), future.result()
            while not told.empty():
                heard(told.get())
        except BrokenProcessPool:
            raise Died("a worker process died (out of memory, or killed)") from None
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _die_with_parent(parent: int) -> None:
    """End this worker when the process that runs the build is gone, killed say: nobody would take what it goes on to make."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _ray(
    workers: int, task: Callable[[Item, Teller], Any], items: Sequence[Item], heard: Callable[[Any], None]
) -> Iterator[tuple[Item, Any]]:
    """The same on Ray: on the cluster that ``RAY_ADDRESS`` names, or on one that is started on this machine for the run."""
    try:
        import ray
    except ImportError:
        raise DataError("--engine ray needs Ray: pip install 'animeshooter[ray]'") from None
    started = not ray.is_initialized()
    if started:
        _join(ray, workers)
    told: Any = ray.remote(num_cpus=0)(_Told).remote()
    remote: Any = ray.remote(num_cpus=1, max_retries=0)(_guarded)
    left = iter(items)
    running: dict[Any, Item] = {}
    try:
        while True:
            for item in islice(left, workers - len(running)):
                running[remote.remote(task, item, _RayTeller(told))] = item
            if not running:
                break
            ready, _ = ray.wait(list(running), num_returns=1, timeout=POLL)
            for something in ray.get(told.take.remote()):
                heard(something)
            for reference in ready:
                yield running.pop(reference), ray.get(reference)
        for something in ray.get(told.take.remote()):
            heard(something)
    except ray.exceptions.WorkerCrashedError:
        raise Died("a Ray worker died (out of memory, or killed)") from None
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    finally:
        for reference in running:
            ray.cancel(reference, force=True)
        ray.kill(told)
        if started:
            ray.shutdown()


class _Told:
    """The actor that keeps what tasks tell until it is taken."""

    def __init__(self) -> None:
        self.kept: list[Any] = []

    def add(self, item: Any) -> None:
        """Keep something."""
        self.kept.append(item)

    def take(self) -> list[Any]:
        """All that was kept since the last time."""
        kept, self.kept = self.kept, []
        return kept


@dataclass(frozen=True)
class _RayTeller:
    """Tells without waiting for an answer: Ray lends the CPU of a task that waits to another, and too many would run."""

    told: Any

    def put(self, item: Any) -> None:
        """Send something small."""
        self.told.add.remote(item)


def _join(ray: Any, workers: int) -> None:
    """Connect to the cluster in ``RAY_ADDRESS``, or start one of ``workers`` CPUs here."""
    import logging

    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if not os.environ.get("RAY_ADDRESS"):
        settings |= {"num_cpus": workers, "include_dashboard": False}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        ray.init(**settings)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise DataError(f"no Ray cluster: {' '.join(str(error).split())}; see RAY_ADDRESS") from None
