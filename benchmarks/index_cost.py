"""What the index of a full dataset costs: start-up, memory, the order of an epoch and a resume, on made-up rows.

``write_rows`` writes an index of millions of shots, all columns filled, no media.
``python -m benchmarks.index_cost DIR STEP`` opens it in a process of its own and prints one line of JSON.
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from animeshooter_dataset import INDEX_SCHEMA, SCHEMA_VERSION

SHOTS, STORIES, FILMS = 2_200_000, 148_000, 29_000
"""Sizes of the paper's dataset, about."""
RANKS = 1024
PART = 100_000


def write_rows(directory: Path, shots: int, stories: int, films: int) -> None:
    """Write manifest and index of a dataset of so many shots."""
    (directory / "index").mkdir(parents=True)
    (directory / "manifest.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "files": {}}))
    rng = np.random.default_rng(0)
    with pq.ParquetWriter(directory / "index" / "train.parquet", INDEX_SCHEMA) as writer:
        for first in range(0, shots, PART):
            writer.write_table(rows(rng, np.arange(first, min(shots, first + PART)), shots, stories, films))


def rows(rng: np.random.Generator, number: np.ndarray, shots: int, stories: int, films: int) -> pa.Table:
    """The rows of so many shots: lengths of 2 to 12 seconds, one to three characters, every score there."""
    story, count = number * stories // shots, len(number)
    begins = -(-story * shots // stories)
    film = story * films // stories
    frames = rng.integers(48, 288, count)
    size = rng.integers(2 * 10**5, 2 * 10**6, count)
    names = [[f"character {place}" for place in range(people)] for people in rng.integers(1, 4, count)]
    known: dict[str, Any] = {
        "key": [f"film{a:06d}-{b:06d}-{c:07d}" for a, b, c in zip(film, story, number)],
        "story": [f"film{a:06d}-{b:06d}" for a, b in zip(film, story)],
        "video": [f"film{a:06d}" for a in film],
        "position": number - begins,
        "shard": [f"shots/train-{place:05d}.tar" for place in number // 500],
        "mp4_offset": number % 500 * 2**21,
        "mp4_size": size,
        "json_offset": number % 500 * 2**21 + size,
        "json_size": np.full(count, 4096),
        "png_offset": number % 500 * 2**21 + size + 8192,
        "png_size": np.full(count, 32768),
        "frames": frames,
        "fps": np.full(count, 24.0),
        "height": np.full(count, 480),
        "width": np.full(count, 854),
        "clean_start": np.zeros(count, int),
        "clean_end": frames,
        "has_audio": np.ones(count, bool),
        "characters": names,
        "references": rng.integers(0, 4, count),
        "licence": ["CC-BY-4.0"] * count,
        "rejected_by": [["text"] if bad else [] for bad in rng.random(count) < 0.05],
        "sha256": [hashlib.sha256(b"%d" % place).hexdigest() for place in number],
    }
    columns = []
    for field in INDEX_SCHEMA:
        if field.name in known:
            columns.append(pa.array(known[field.name], field.type))
        elif pa.types.is_floating(field.type):
            columns.append(pa.array(rng.random(count), field.type))
        else:
            columns.append(pa.nulls(count, field.type))
    return pa.Table.from_arrays(columns, schema=INDEX_SCHEMA)


def cost(directory: Path, resume_at: int) -> dict[str, Any]:
    """Seconds and MiB of opening the index, of an epoch's order for all ranks, and of a resume."""
    from animeshooter_streams import ShotStream
    from streams.clips import ClipSpec

    warnings.simplefilter("ignore")
    clip, imported = ClipSpec(frames=49, height=480, width=720, fps=8), memory()
    began = time.perf_counter()
    stream = ShotStream(directory, clip, global_batch=RANKS)
    found: dict[str, Any] = {"samples": len(stream), "start_s": time.perf_counter() - began}
    found |= {"start_peak_mib": memory(), "imports_mib": imported}
    began = time.perf_counter()
    first = stream.batch(0)
    found["first_step_s"] = time.perf_counter() - began
    assert len(first) == RANKS
    began = time.perf_counter()
    seen = np.zeros(len(stream), np.int64)
    for step in range(stream.steps_per_epoch):
        seen[[place.sample for place in stream.batch(step)]] += 1
    found |= {"epoch_order_s": time.perf_counter() - began, "steps": stream.steps_per_epoch}
    found |= {"samples_missed": int((seen == 0).sum()), "samples_repeated": int((seen - 1).clip(0).sum())}
    stream.step = resume_at
    state = json.dumps(stream.state_dict())
    del stream
    stream = ShotStream(directory, clip, global_batch=RANKS)
    began = time.perf_counter()
    stream.load_state_dict(json.loads(state))
    stream.batch(stream.step)
    return {
        **found,
        "resume_at": resume_at,
        "resume_s": time.perf_counter() - began,
        "state_bytes": len(state),
        "peak_mib": memory(),
    }


def memory() -> float:
    """Peak of resident memory so far, MiB (``getrusage`` would count what the process that started this one held)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) / 1024


if __name__ == "__main__":
    print(json.dumps(cost(Path(sys.argv[1]), int(sys.argv[2]))))
