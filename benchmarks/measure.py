"""Measures one reader of ``benchmarks.readers`` in a process of its own, under whichever interpreter has what it needs.

Run by ``benchmarks.streams``: ``python -m benchmarks.measure NAME MODE TASK.json [MORE]`` prints one line of JSON. Modes:

``prepare``                     convert the dataset, where the peer needs it
``speed``                       shots a second over a stretch of endless reading, after the first batches; time to first batch;
                                memory of each worker; processor time a shot
``walk STATE NEXT BATCHES``     from a state (or ``-``) to the end of the epoch or so many batches on, then save the state
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import pickle
import sys
import tarfile
import time
import warnings
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import psutil

from benchmarks.readers import READERS, HuggingFace, Reader, Task, decode, tars

FLOORS = {"floor": False, "floor with ends": True}
"""The bare decoder, for the drawn frames and for these and the first and last clean frame."""


def main() -> None:
    """Measure what the command line names."""
    name, mode, place, *more = sys.argv[1:]
    task = Task(**json.loads(Path(place).read_text()))
    warnings.simplefilter("ignore")
    if name in FLOORS:
        print("\n" + json.dumps(floor(task, FLOORS[name])), flush=True)
        return
    modes: dict[str, Callable[..., dict[str, Any]]] = {"prepare": prepare, "speed": speed, "walk": walk}
    print("\n" + json.dumps(modes[mode](READERS[name](task), *more)), flush=True)


def prepare(reader: Reader) -> dict[str, Any]:
    """Convert the dataset if the peer needs it; the version of the peer."""
    from importlib.metadata import packages_distributions, version

    module = importlib.import_module(reader.needs)
    reader.prepare()
    known = packages_distributions().get(module.__name__.split(".")[0], [])
    names = [name for name in known if name.replace("_", "-") == reader.package] or known
    return {"version": version(names[0]) if names else ""}


def speed(reader: Reader) -> dict[str, Any]:
    """Endless reading: the clock of the first batch starts before the reader's libraries are imported (torch and av are)."""
    task, began = reader.task, time.perf_counter()
    batches = reader.batches(endless=True)
    next(batches)
    first = time.perf_counter() - began
    for _ in range(3 * max(1, task.workers)):  # what was decoded while nobody asked
        next(batches)
    used, start, shots, now = processor_seconds(), time.perf_counter(), 0, 0.0
    while now < task.seconds:
        shots += len(next(batches).keys)
        now = time.perf_counter() - start
    spent = processor_seconds() - used
    memory = worker_memory(task.workers)
    batches.close()  # type: ignore[attr-defined]
    return {"shots_per_s": shots / now, "first_batch_s": first, "worker_mib": memory, "cpu_ms_per_shot": 1000 * spent / shots}


def walk(reader: Reader, state: str, following: str, count: str) -> dict[str, Any]:
    """Part of an epoch, from a saved state to the next: keys of each batch and the seconds to the first."""
    if isinstance(reader, HuggingFace):
        # The epoch in one go too, so that its order can be compared; without torchdata only that one can be read.
        reader.stateful = following != "-" or state != "-" or importlib.util.find_spec("torchdata") is not None
    began = time.perf_counter()
    endless = reader.resumes_endless and count != "-"
    batches = reader.batches(endless, None if state == "-" else pickle.loads(Path(state).read_bytes()))
    found, first, size = [], None, 0
    for batch in islice(batches, None if count == "-" else int(count)):
        first = first or time.perf_counter() - began
        found.append(batch.keys)
    if following != "-":
        size = Path(following).write_bytes(pickle.dumps(reader.state()))
    batches.close()  # type: ignore[attr-defined]
    return {"keys": found, "first_batch_s": first, "state_bytes": size}


# ---- the floor ----


def floor(task: Task, ends: bool) -> dict[str, Any]:
    """The bare decoder over clips in memory, in as many processes as there would be workers."""
    clips = []
    for tar in tars(task):
        with tarfile.open(tar) as archive:
            blobs = {entry.name: archive.extractfile(entry).read() for entry in archive}  # type: ignore[union-attr]
        keys = [name.removesuffix(".mp4") for name in blobs if name.endswith(".mp4")]
        clips += [(json.loads(blobs[f"{key}.json"]), blobs[f"{key}.mp4"]) for key in keys]
    count = max(1, task.workers)
    context = multiprocessing.get_context("fork")
    together, told = context.Barrier(count), context.SimpleQueue()
    processes = [
        context.Process(target=_decode_on, args=(clips[part::count], task, ends, together, told)) for part in range(count)
    ]
    for process in processes:
        process.start()
    found = [told.get() for _ in processes]
    for process in processes:
        process.join()
    rate = sum(shots / seconds for shots, seconds, _ in found)
    spent = sum(used for *_, used in found)
    return {"shots_per_s": rate, "cpu_ms_per_shot": 1000 * spent / sum(shots for shots, *_ in found)}


def _decode_on(clips: list[tuple[dict[str, Any], bytes]], task: Task, ends: bool, together: Any, told: Any) -> None:
    decode(clips[0][1], clips[0][0], task, ends)
    together.wait()
    used, start, shots, now = time.process_time(), time.perf_counter(), 0, 0.0
    while now < task.seconds:
        record, clip = clips[shots % len(clips)]
        decode(clip, record, task, ends)
        shots += 1
        now = time.perf_counter() - start
    told.put((shots, now, time.process_time() - used))


# ---- what a process uses ----


def processor_seconds() -> float:
    """Processor time of this process and all below it, so far."""
    this = psutil.Process()
    return sum(sum(process.cpu_times()[:2]) for process in [this, *this.children(recursive=True)])


def worker_memory(workers: int) -> float | None:
    """Mean proportional set size of the workers, MiB: shared pages are divided among those that share them."""
    sizes = sorted(process.memory_full_info().pss for process in psutil.Process().children(recursive=True))
    return sum(sizes[-workers:]) / workers / 2**20 if workers and sizes else None


if __name__ == "__main__":
    main()
