"""Readers of the same shots compared: ours, ``datasets``, webdataset, mosaicml-streaming, megatron-energon; and the floor.

All give the same tensors with as many workers; the floor is the bare decoder over clips already in memory, in as many
processes. Rounds are interleaved (A B C A B C ...), each reader in a fresh process, so that load hits all alike; figures are
medians, and the ratio to the floor is taken within each round. Besides: the keys of an epoch, time to the first batch, an epoch
stopped and resumed twice, memory of a worker, ours over http on loopback, and the index of 2.2 M shots on made-up rows.

Run: python -m benchmarks.streams [DIR] [--rounds 5] [--workers 2] [--seconds 10] [--peers-python PYTHON] [--json FILE]
(without DIR on drawn shots; peers that PYTHON cannot import are reported as not installed)
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from animeshooter_dataset import read_records
from benchmarks.index_cost import FILMS, SHOTS, STORIES, write_rows
from benchmarks.layout import lay_out
from benchmarks.loopback import serve
from benchmarks.measure import FLOORS
from benchmarks.readers import READERS, Task
from streams.clips import ClipSpec, pick_reference

ROOT = Path(__file__).resolve().parent.parent
HTTP = "ours over http"
LONGEST = 1800
"""Seconds after which a reader is given up."""
PEERS = ("datasets", "webdataset", "mosaicml-streaming", "megatron-energon")
"""Run under ``--peers-python``."""


def main() -> None:
    """Compare what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", nargs="?", type=Path, help="dataset directory (default: drawn shots)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=10, help="of reading, a reader and round")
    parser.add_argument("--clip", default="25x256x448@8", help="frames x height x width @ frames a second")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--shots", type=int, default=240, help="shots to read, copies where DIR has fewer")
    parser.add_argument("--shards", type=int, default=8, help="tars these are laid out in")
    parser.add_argument("--readers", nargs="+", choices=READERS, default=list(READERS))
    parser.add_argument("--index-shots", type=int, default=SHOTS, help="rows of the made-up index; 0 leaves that part out")
    parser.add_argument(
        "--peers-python", default=sys.executable, help="interpreter that has the peers and the project's packages"
    )
    parser.add_argument("--folder", type=Path, help="where to work (a temporary folder)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = compare(options, Path(folder))
    print(tables(found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def compare(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All figures."""
    data = folder / "data"
    lay_out(options.directory, data, options.shots, options.shards)
    task = make_task(data, folder / "scratch", options)
    with Comparison(task, folder, options) as bench:
        found: dict[str, Any] = {"machine": machine(), "versions": bench.versions, "missing": bench.missing}
        found["settings"] = {
            **{name: value for name, value in asdict(task).items() if name not in ("draws", "data", "scratch")}
        }
        found["settings"] |= {"shots": options.shots, "shards": options.shards, "rounds": options.rounds}
        found["settings"]["clips"] = "drawn" if options.directory is None else options.directory.name
        found["notes"] = {name: READERS[name].note for name in bench.names if READERS[name].note}
        found["resume"] = {name: bench.resume(name) for name in bench.names}
        found["rounds"] = bench.rounds(options.rounds)
        found["medians"] = medians(found["rounds"])
    if options.index_shots:
        found["index"] = index_cost(folder / "index", options.index_shots)
    found["machine"]["load_after"] = os.getloadavg()[0]
    return found


def make_task(data: Path, scratch: Path, options: argparse.Namespace) -> Task:
    """What all readers are to read; the draws are those of our stream's first epoch."""
    frames, height, width, fps = re.split("[x@]", options.clip)
    clip, draws = ClipSpec(int(frames), int(height), int(width), float(fps), min_frames=1), {}
    scratch.mkdir()
    for record, _ in read_records(data, "shots", ["json"]):
        draws[record.key] = draws_of(record, clip)
    size = (clip.frames, clip.height, clip.width, clip.fps)
    return Task(str(data), str(scratch), *size, options.batch, options.workers, options.seconds, draws)


def draws_of(record: Any, clip: ClipSpec) -> tuple[float, int | None]:
    """Where our stream's clip of a shot starts in its first epoch, and which reference comes with it."""
    from animeshooter_streams import draw, start_of

    picked = pick_reference([record], draw(0, 0, record.key, "reference"))
    return start_of(0, 0, record.key, clip)[0], record.references.index(picked[1]) if picked else None


class Comparison:
    """Readers that can run, each in a process of its own for every measurement."""

    def __init__(self, task: Task, folder: Path, options: argparse.Namespace) -> None:
        self.task, self.folder = task, folder
        self.pythons = {name: options.peers_python if name in PEERS else sys.executable for name in options.readers}
        self.versions: dict[str, str] = {name: version(name) for name in ("torch", "av", "numpy")}
        self.missing: dict[str, str] = {}
        self.names: list[str] = []
        self.stack = contextlib.ExitStack()

    def __enter__(self) -> Comparison:
        for name in self.pythons:
            found = self.run(name, "prepare")
            if "error" in found:
                self.missing[name] = found["error"]
            else:
                self.names.append(name)
                self.versions[name] = found["version"]
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def run(self, name: str, mode: str, *more: str) -> dict[str, Any]:
        """What ``benchmarks.measure`` prints, or ``error``: its last line of complaint."""
        place, task = self.folder / "task.json", self.task
        with contextlib.ExitStack() as stack:
            if name == HTTP:
                task, name = replace(task, data=stack.enter_context(serve(Path(task.data)))), "ours"
            place.write_text(json.dumps(asdict(task)))
            command = [self.pythons.get(name, sys.executable), "-m", "benchmarks.measure", name, mode, str(place), *more]
            try:
                done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST)
            except (subprocess.TimeoutExpired, OSError) as error:
                return {"error": str(error)[-200:]}
        if done.returncode:
            return {"error": complaint(done.stderr)}
        return json.loads(done.stdout.splitlines()[-1])

    def resume(self, name: str) -> dict[str, Any]:
        """An epoch in one go, and one stopped after a third and two thirds, each part in a process of its own."""
        whole = self.run(name, "walk", "-", "-", "-")
        if "error" in whole:
            return whole
        found = {**self.epoch(whole["keys"]), "first_batch_s": whole["first_batch_s"]}
        if not READERS[name].resumes:
            return {**found, "resume": "has no state to resume from"}
        length, endless = len(whole["keys"]), READERS[name].resumes_endless
        if endless:
            whole = self.run(name, "walk", "-", "-", str(length))
        third = max(1, length // 3)
        rest = str(length - 2 * third) if endless else "-"
        states = [str(self.folder / f"state-{part}") for part in range(2)]
        parts = []
        for more in (("-", states[0], str(third)), (states[0], states[1], str(third)), (states[1], "-", rest)):
            parts.append(self.run(name, "walk", *more))
            if "error" in parts[-1]:
                return {**found, "resume": parts[-1]["error"]}
        again = [keys for part in parts for keys in part["keys"]]
        once, twice = (Counter(key for keys in batches for key in keys) for batches in (whole["keys"], again))
        found |= {"resume_first_batch_s": median(part["first_batch_s"] or 0 for part in parts[1:])}
        found |= {"state_bytes": parts[0]["state_bytes"], "same_batches": again == whole["keys"]}
        return {**found, "lost": sum((once - twice).values()), "repeated": sum((twice - once).values())}

    def epoch(self, keys: list[list[str]]) -> dict[str, int]:
        """How often an epoch gives what it should."""
        seen = Counter(key for batch in keys for key in batch)
        unknown = sum(count for key, count in seen.items() if key not in self.task.draws)
        padded = sum(count - 1 for count in seen.values())
        return {"keys": len(seen), "missing": len(self.task.draws.keys() - seen.keys()), "unknown": unknown, "padding": padded}

    def rounds(self, count: int) -> list[dict[str, Any]]:
        """Each reader once a round."""
        order = [*FLOORS, *(name for name in self.names)]
        if "ours" in order:
            order.insert(order.index("ours") + 1, HTTP)
        found = []
        for number in range(count):
            found.append({name: self.run(name, "speed") for name in order})
            print(f"round {number + 1}: " + ", ".join(told(name, values) for name, values in found[-1].items()), flush=True)
            order = order if not unavailable(found[-1].get(HTTP)) else [name for name in order if name != HTTP]
        return found


def told(name: str, values: dict[str, Any]) -> str:
    """One reader's part of the line of a round."""
    return f"{name} {values['shots_per_s']:.1f}" if "shots_per_s" in values else f"{name}: {values['error']}"


def unavailable(values: dict[str, Any] | None) -> bool:
    """Whether a reader failed."""
    return bool(values) and "error" in (values or {})


def complaint(text: str) -> str:
    """What a failed process said last; of a missing module only that it is not installed."""
    lines = [line for line in text.splitlines() if re.match(r"[\w.]+(Error|Exception|Interrupt|Warning)?: ", line)]
    last = lines[-1] if lines else (text.splitlines() or ["ended without a word"])[-1]
    absent = re.match(r"ModuleNotFoundError: No module named '([\w.]+)'", last)
    return f"{absent[1]} is not installed" if absent else last[:300]


def medians(rounds: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Medians of each reader's figures, and of its ratio to the floor and of ours to it, taken within each round."""
    found: dict[str, dict[str, float]] = {}
    for name in rounds[0]:
        good = [each[name] for each in rounds if "shots_per_s" in each.get(name, {})]
        if not good:
            continue
        found[name] = {what: median(values[what] for values in good) for what in good[0] if good[0][what] is not None}
        for base, label in (("floor", "to_floor"), ("ours", "ours_to_it")):
            pairs = [(each[name]["shots_per_s"], each[base]["shots_per_s"]) for each in rounds if both(each, name, base)]
            if pairs:
                found[name][label] = median(a / b if base == "floor" else b / a for a, b in pairs)
    return found


def both(each: dict[str, Any], *names: str) -> bool:
    """Whether these readers all have a figure in a round."""
    return all("shots_per_s" in each.get(name, {}) for name in names)


def index_cost(folder: Path, shots: int) -> dict[str, Any]:
    """See ``benchmarks.index_cost``; stories and films in the proportions of the whole."""
    write_rows(folder, shots, max(1, STORIES * shots // SHOTS), max(1, FILMS * shots // SHOTS))
    command = [sys.executable, "-m", "benchmarks.index_cost", str(folder), str(10**6)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LONGEST)
    return {"error": complaint(done.stderr)} if done.returncode else json.loads(done.stdout.splitlines()[-1])


def machine() -> dict[str, Any]:
    """Where this ran, and how loaded it was."""
    about = {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()}
    return {**about, "date": time.strftime("%Y-%m-%d"), "load_before": os.getloadavg()[0]}


def tables(found: dict[str, Any]) -> str:
    """The figures as text."""
    return (
        "\n\n".join("\n".join(lines) for lines in (speed_table(found), resume_table(found), index_lines(found)) if lines) + "\n"
    )


def speed_table(found: dict[str, Any]) -> list[str]:
    """Medians of the rounds."""
    columns = {"shots_per_s": "shots/s", "to_floor": "to floor", "ours_to_it": "ours to it", "first_batch_s": "first batch s"}
    columns |= {"worker_mib": "MiB a worker", "cpu_ms_per_shot": "CPU ms a shot"}
    lines = [
        f"{'median of ' + str(len(found['rounds'])) + ' rounds':<22}" + "".join(f"{what:>15}" for what in columns.values())
    ]
    for name, values in found["medians"].items():
        cells = (f"{values[what]:.2f}" if what in values else "-" for what in columns)
        lines.append(f"{name:<22}" + "".join(f"{cell:>15}" for cell in cells))
    failed = {name: values["error"] for each in found["rounds"] for name, values in each.items() if "error" in values}
    missing = {**found["missing"], **{name: why for name, why in failed.items() if name not in found["medians"]}}
    return lines + [f"{name:<22} not available: {why}" for name, why in missing.items()]


def resume_table(found: dict[str, Any]) -> list[str]:
    """The keys of an epoch, and what two resumes did to them."""
    columns = {"keys": "keys", "missing": "missing", "padding": "padding", "first_batch_s": "first batch s"}
    columns |= {"resume_first_batch_s": "after resume s", "state_bytes": "state bytes", "lost": "lost", "repeated": "repeated"}
    columns |= {"same_batches": "same batches"}
    lines = [f"{'epoch, resumed twice':<22}" + "".join(f"{what:>15}" for what in columns.values())]
    for name, values in found["resume"].items():
        cells = [values.get(what, "-") for what in columns]
        words = [f"{cell:.2f}" if isinstance(cell, float) else str(cell) for cell in cells]
        lines.append(f"{name:<22}" + "".join(f"{word:>15}" for word in words))
        lines += [f"{name:<22} {values[what]}" for what in ("resume", "error") if what in values]
    return lines


def index_lines(found: dict[str, Any]) -> list[str]:
    """What the made-up index cost."""
    values = found.get("index", {}).items()
    return [
        f"index: {name:<20} " + (f"{value:>14,.2f}" if isinstance(value, float) else f"{value:>14}") for name, value in values
    ]


if __name__ == "__main__":
    main()
