"""The record of a training run, as it stands in a checkpoint: all that only a run can know, for its card and for the next run.

``training.json``   what was trained, from what, on which data, with which settings, for how long and on what; ``history`` holds
                    the same of every stage before it, oldest first, so that a checkpoint tells its whole chain alone
``films.jsonl``     a line for every film that trained it, over all stages, with its licence and who is to be named
``log.jsonl``       a line a step (the trainer writes it)

Nothing in it names a machine, a user, a path or a key: a folder appears by its last name only. Records without the key
``record`` are of earlier versions; what they lack was not recorded, and readers say so.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import platform
import resource
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow.compute as pc
from pydantic import ValidationError

from animeshooter_dataset import DataError, RightsRecord, ShotRecord, first_problem, parse, read_rights
from streams.store import Store, store_manifest

if TYPE_CHECKING:
    from model import ModelConfig
    from recipes.stage import Stream

RECORD_VERSION = "1.1"
"""Of ``training.json``; earlier ones carry no number."""
AT_ONCE = 256
"""Records of shots that are asked for at a time."""
SMOOTHING = 0.9
"""Weight of the past in the smoothed loss, an exponential moving average corrected for its start."""
CURVE_POINTS = 10
"""Most points of the loss curve that a record keeps of an earlier stage."""
LICENCES = {"Qwen/Qwen3-VL-8B-Instruct": "apache-2.0", "zai-org/CogVideoX-2b": "apache-2.0"}
"""Licences of the base models of our presets, as their own model cards state them."""
SAMPLES = "sample_stories"
"""The folder of stories generated during training, and the field of the log that names their films, relative to the log."""
STILLS = "stills.jpg"
"""Beside each of these films: first, middle and last frame of each shot, a row a shot."""
LIBRARIES = ("torch", "accelerate", "diffusers", "transformers", "peft", "datasets", "animeshooter")


# ---- reading ----


def read_record(checkpoint: Path) -> dict[str, Any]:
    """The ``training.json`` of a checkpoint.

    Raises:
        DataError: there is none, or it is no record of these recipes.
    """
    path = checkpoint / "training.json"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{checkpoint}: not a checkpoint of these recipes (no training.json)") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable ({error}); the checkpoint is damaged, train or download it again") from None
    if not isinstance(record, dict) or not isinstance(record.get("stage"), str):
        raise DataError(f"{path}: names no training stage; the checkpoint is damaged, train or download it again")
    return record


def read_films(checkpoint: Path) -> list[dict[str, Any]] | None:
    """The films that trained a checkpoint, over all its stages, by id; None where that was not recorded.

    Raises:
        DataError: a line is damaged.
    """
    path = checkpoint / "films.jsonl"
    if not path.is_file():
        return None
    films = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            films.append(dict(json.loads(line)))
            films[-1]["video"], films[-1]["stages"].items()
        except (ValueError, KeyError, TypeError, AttributeError):
            raise DataError(f"{path}: line {number} is damaged; train or download the checkpoint again") from None
    return films


def chain(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The records of all stages that made a checkpoint, oldest first, as far as they were recorded."""
    return [*record.get("history", []), dict(record)]


def smoothed(losses: list[float]) -> list[float]:
    """Exponential moving average of a loss, :data:`SMOOTHING`, without bias towards zero at its start."""
    out, mean = [], 0.0
    for number, loss in enumerate(losses, 1):
        mean = SMOOTHING * mean + (1 - SMOOTHING) * loss
        out.append(mean / (1 - SMOOTHING**number))
    return out


def curve(losses: list[float]) -> list[list[float]]:
    """At most :data:`CURVE_POINTS` points of a loss, spread evenly: [step from 1, loss, smoothed loss]."""
    means = smoothed(losses)
    places = sorted({round(place) for place in np.linspace(0, len(losses) - 1, min(CURVE_POINTS, len(losses)))})
    return [[place + 1, losses[place], means[place]] for place in places]


# ---- writing ----


@dataclass(frozen=True)
class Machine:
    """What a run ran on: devices by name with their number, and the largest memory any process of it took, in bytes."""

    device: str
    devices: dict[str, int]
    processes: int
    precision: str
    peak_memory: int | None
    memory_of: str


def machine(accelerator: Any) -> Machine:
    """What this run runs on; every process must call it, and near its end, for the memory."""
    import torch
    from accelerate.utils import gather_object

    if accelerator.device.type == "cuda":
        name, peak, of = torch.cuda.get_device_name(), torch.cuda.max_memory_allocated(), "device"
    else:
        scale = 1 if sys.platform == "darwin" else 1024
        name, peak, of = _processor(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale, "process"
    told = gather_object([(name, peak)])
    return Machine(
        device=accelerator.device.type,
        devices=dict(Counter(name for name, _ in told)),
        processes=accelerator.num_processes,
        precision=accelerator.mixed_precision,
        peak_memory=max(peak for _, peak in told) or None,
        memory_of=of,
    )


def _processor() -> str:
    """The model of this machine's processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def parameters_of(gen: Any) -> dict[str, dict[str, int]]:
    """Parameters of each component, trainable and frozen; to be asked before anything is sharded."""
    from model import parameter_table

    return {
        name: {"trainable": trainable, "frozen": total - trainable} for name, (total, trainable) in parameter_table(gen).items()
    }


def base_weights(preset: str | ModelConfig, *, revisions: bool = True) -> dict[str, dict[str, Any] | None]:
    """What each part of a model starts from, by its preset or configuration: name, revision, licence; None for random weights.

    Without ``revisions`` they are None: what is in the cache now need not be what a run of another day started from.
    """
    from model import preset as described

    config = described(preset) if isinstance(preset, str) else preset
    sources = {"mllm": config.mllm.pretrained, "video": config.video.pretrained, "adapter": None}
    return {part: None if source is None else _base(source, revisions) for part, source in sources.items()}


def _base(source: str, revisions: bool) -> dict[str, Any]:
    if Path(source).is_dir():  # where it lies says nothing of the model
        return {"name": Path(source).resolve().name, "revision": None, "licence": None}
    return {"name": source, "revision": _revision(source) if revisions else None, "licence": LICENCES.get(source)}


def _revision(repository: str) -> str | None:
    """The commit of a Hub repository that the cache holds as its main branch."""
    from huggingface_hub import try_to_load_from_cache

    for name in ("model_index.json", "config.json"):
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            parts = Path(found).parts
            return parts[parts.index("snapshots") + 1]
    return None


@dataclass(frozen=True)
class Data:
    """The data of a run: ``told`` for ``training.json``, and the films of it and of all stages before, for ``films.jsonl``."""

    told: dict[str, Any]
    films: list[dict[str, Any]]


def data_of(stream: Stream, stage: str, steps: int, parent: Path | None) -> Data:
    """What ``steps`` steps from the stream's beginning read, to be asked before them: the rights of that day count.

    Raises:
        DataError: the dataset's ledger, or the list of films of the parent, is damaged.
    """
    from recipes.plain_clips import PlainClips

    if isinstance(stream, PlainClips):
        told, films = stream.record_data(stage, steps)
        return Data(told, merged_films(parent, films))
    rows = stream.rows_read(steps)
    table = stream.index.select(["video", "licence"]).take(rows)
    shots = {entry["values"]: entry["counts"] for entry in pc.value_counts(table["video"].combine_chunks()).to_pylist()}
    licences = dict(zip(table["video"].to_pylist(), table["licence"].to_pylist()))
    ledger = {line.video: line for line in _rights(stream.store)}
    words, annotators = _annotations(stream, rows)
    films = []
    for video in sorted(shots):
        right = ledger.get(video)
        known = {name: getattr(right, name, None) for name in ("title", "attribution", "uploader", "source", "sha256")}
        licence = licences[video] or getattr(right, "licence", None)
        about = {"video": video, "licence": licence, **known, "annotation_licences": sorted(words.get(video, ()))}
        films.append({**about, "stages": {stage: shots[video]}})
    manifest = store_manifest(stream.store)
    told = {
        "directory": name_of(stream.store),
        "schema_version": manifest["schema_version"],
        "release": (manifest.get("release") or {}).get("name"),
        "contact": manifest.get("contact"),
        **stream.state_dict(),
        "samples": len(stream),
        "samples_read": stream.samples_read(steps),
        "shots_read": len(rows),
        "epochs": round(stream.samples_read(steps) / len(stream), 4),
        "films": len(films),
        "licences": _counted(film["licence"] for film in films),
        "annotation_licences": _counted(text for film in films for text in film["annotation_licences"]),
        "annotators": dict(sorted(annotators.items())),
    }
    return Data(told, merged_films(parent, films))


def _counted(names: Any) -> dict[str, int]:
    return dict(sorted(Counter(name or "not stated" for name in names).items()))


def name_of(store: Store) -> str:
    """How a record names a dataset: the folder's name, or the address without password and key."""
    return store.name if store.local is None else store.local.resolve().name


def _rights(store: Store) -> list[RightsRecord]:
    """The lines of the dataset's ledger; none where it has no ledger."""
    if store.local is not None:
        return read_rights(store.local) if (store.local / "rights.jsonl").is_file() else []
    if "rights.jsonl" not in store.files():
        return []
    try:
        return [RightsRecord.model_validate_json(line) for line in store.read("rights.jsonl").splitlines()]
    except ValidationError as error:
        raise DataError(f"{store.name}/rights.jsonl: {first_problem(error)}; build the dataset again") from None


def _annotations(stream: Stream, rows: np.ndarray) -> tuple[dict[str, set[str]], Counter[str]]:
    """Licences of the words by video, and stories by who wrote their captions, of all stories of which a shot is read.

    The record of one shot a story says both: over the network that is one small range a story.
    """
    licences: dict[str, set[str]] = {}
    annotators: Counter[str] = Counter()
    columns = ["key", "story", "shard", "json_offset", "json_size"]
    table = stream.index.select(columns).take(rows)
    _, first = np.unique(table["story"].combine_chunks().indices.to_numpy(), return_index=True)
    places = [
        (f"shots/{Path(row['shard']).name}", row["json_offset"], row["json_size"]) for row in table.take(first).to_pylist()
    ]
    for begin in range(0, len(places), AT_ONCE):
        some = places[begin : begin + AT_ONCE]
        stream.store.prefetch(some)
        for place in some:
            shot = cast(ShotRecord, parse("shots", stream.store.range(*place), f"{stream.store.name}/{place[0]}"))
            annotators[f"{shot.annotator.kind}: {shot.annotator.model}" if shot.annotator.model else shot.annotator.kind] += 1
            if shot.annotation_licence:
                licences.setdefault(shot.video, set()).add(shot.annotation_licence)
    return licences, annotators


def parent_of(parent: Path) -> dict[str, str]:
    """How a record names the checkpoint it started from: no path."""
    return {"name": parent.resolve().name, "stage": read_record(parent)["stage"]}


def history_of(parent: Path | None) -> list[dict[str, Any]]:
    """The records of all stages before a run, oldest first, each with a short loss curve in place of every loss."""
    if parent is None:
        return []
    entries = []
    for entry in chain(public(read_record(parent))):
        losses = entry.pop("losses", None)
        entry.pop("history", None)
        entries.append({**entry, "curve": curve(losses)} if losses else entry)
    return entries


def public(record: Mapping[str, Any]) -> dict[str, Any]:
    """A record without what earlier versions told of the machine: paths become last names, here and in its history."""
    out = dict(record)
    if isinstance(out.get("parent"), dict):
        parent = dict(out["parent"])
        path = parent.pop("path", None)
        out["parent"] = {"name": _last_name(path), **parent} if path else parent
    if isinstance(out.get("dataset"), dict):
        out["dataset"] = {**out["dataset"], "directory": _last_name(out["dataset"].get("directory"))}
    if "history" in out:
        out["history"] = [public(entry) for entry in out["history"]]
    return out


def _last_name(path: str | None) -> str | None:
    return None if path is None else path.replace("\\", "/").rstrip("/").rpartition("/")[2]


def merged_films(parent: Path | None, films: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The films of a run and of all stages before it, by id; what the newest run knows of one stands."""
    known = {film["video"]: film for film in (read_films(parent) or [] if parent is not None else [])}
    for film in films:
        before = known.get(film["video"], {})
        words = sorted({*before.get("annotation_licences", []), *film["annotation_licences"]})
        known[film["video"]] = {**film, "annotation_licences": words, "stages": {**before.get("stages", {}), **film["stages"]}}
    return [known[video] for video in sorted(known)]


def versions() -> dict[str, str]:
    """Versions of Python and of the libraries that trained."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a folder that was not installed
            continue
    return found


def run_record(
    *,
    stage: str,
    config: Any,
    parent: Path | None,
    data: Data,
    losses: list[float],
    seconds: float,
    ran_on: Machine,
    optimizer: Mapping[str, Any],
    parameters: Mapping[str, Any],
    starts: list[dict[str, int]],
    held_out: list[dict[str, Any]],
) -> dict[str, Any]:
    """Everything that ``training.json`` says.

    Args:
        stage: name of the stage.
        config: its resolved settings.
        parent: checkpoint it started from.
        data: what it read.
        losses: of every step.
        seconds: from the first step to the last.
        ran_on: see :class:`Machine`.
        optimizer: name and settings of the optimizer, and the schedule in words.
        parameters: see :func:`parameters_of`.
        starts: each time the run was started: after which step, on how many processes.
        held_out: see :func:`held_out_of`.
    """
    from recipes.parts import model_config

    history = history_of(parent)
    return {
        "record": RECORD_VERSION,
        "stage": stage,
        "parent": None if parent is None else parent_of(parent),
        "preset": config.preset,
        "base": base_weights(model_config(config)) if parent is None else history[-1].get("base"),
        "config": dataclasses.asdict(config),
        "dataset": data.told,
        "optimizer": dict(optimizer),
        "parameters": dict(parameters),
        "steps": len(losses),
        "loss_first": losses[0],
        "loss_last": losses[-1],
        "loss_smoothed": smoothed(losses)[-1],
        "run": {
            "finished": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "seconds": round(seconds, 1),
            "starts": starts,
            **dataclasses.asdict(ran_on),
        },
        "versions": versions(),
        "losses": losses,
        **({"held_out": held_out} if held_out else {}),
        "history": history,
    }


def held_out_of(log: Path) -> list[dict[str, Any]]:
    """The held-out losses of a run by its log, each with the ``step`` after which it was measured."""
    found = []
    with open(log, encoding="utf-8") as lines:
        for text in lines:
            if '"held_out' in text:
                line = json.loads(text)
                named = (("held_out_before", line["step"]), ("held_out", line["step"] + 1))
                found += [{"step": step, **line[name]} for name, step in named if name in line]
    return found
