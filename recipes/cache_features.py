"""Cache of features: what the frozen VAE and text encoder make of every shot, made once and written next to the dataset.

Makes     latents (mean and log-variance), first and last frames, features of captions
From      the checkpoint that the stage will start from, or its preset
Shots     all that a stream with these settings would draw, at each of `data.clip.starts` starts
Writes    DATA.features/<kind>/<fingerprint>/, see streams/features.py

Every process writes shards of its own and waits for none. A run that was stopped or killed is completed by the same command.

Run: accelerate launch recipes/cache_features.py --stage single_shot --from checkpoints/align --data animeshooter \
         --set data.clip.starts=1
     accelerate launch recipes/single_shot.py --from checkpoints/align --data animeshooter --set data.clip.starts=1 \
         --set data.features=animeshooter.features
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import chain, groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from animeshooter_dataset import DataError, ShotRecord, parse
from animeshooter_streams import ShotStream
from recipes import align, lora, multi_shot, pretrain, single_shot
from recipes.config import Config, override
from recipes.encoding import posterior
from recipes.features import clip_of, identities, needs_of, used_rows
from recipes.parts import PART_OF, load_gen
from recipes.record import read_record
from recipes.stage import Stage, model_errors, quiet_loading
from streams.clips import ClipSpec, decode_clip
from streams.feature_files import (
    Entry,
    Wanted,
    drop_damaged,
    finish,
    part_files,
    replace_whole,
    verify,
    write_shard,
)
from streams.features import (
    KIND_OF,
    KINDS,
    Features,
    FeatureStore,
    caption_of,
    clip_hash,
    fingerprint_of,
    png,
    text_source,
    video_source,
)

if TYPE_CHECKING:
    from model import AnimeShooterGen

STAGES: dict[str, Stage] = {one.STAGE.name: one.STAGE for one in (pretrain, align, single_shot, multi_shot, lora)}
SHARD_MB = 256
"""About how large a shard becomes."""
OLD = 3600.0
"""Seconds after which a half-written file is taken for one that a killed run left."""
TOLD = 5
"""Shots that failed that are named on the screen."""


@dataclass(frozen=True)
class Worker:
    """This process: its number, how many there are, where it computes and how."""

    rank: int
    world: int
    device: torch.device
    precision: str

    def say(self, text: str) -> None:
        """Tell the user who says it."""
        print(f"process {self.rank}: {text}" if self.world > 1 else text, flush=True)

    def arithmetic(self) -> Any:
        """The precision in which the stages call the frozen parts."""
        types = {"bf16": torch.bfloat16, "fp16": torch.float16}
        return torch.autocast(self.device.type, types[self.precision]) if self.precision in types else nullcontext()


@dataclass(frozen=True)
class Item:
    """One entry to make: its unit of work, the shot's row of the index, and what it is of."""

    unit: int
    row: dict[str, Any]
    picture: tuple[int, int, int, int] | None
    caption: str
    part: int
    source: bytes


@dataclass(frozen=True)
class Job:
    """One kind of features of one dataset, on one process."""

    kind: str
    store: Any
    folder: Path
    clip: ClipSpec
    caption: str
    rows: pa.Table
    batch: int
    workers: int

    @property
    def parts(self) -> range:
        """Entries of a shot."""
        return {"latents": range(self.clip.starts or 0), "ends": range(2), "text": range(1)}[self.kind]


def main(argv: list[str] | None = None) -> int:
    """Make what is missing; returns the exit code: 0 done, 2 an error the user can mend or shots that failed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="animeshooter", help="dataset directory, or its URL")
    parser.add_argument("--from", dest="parent", type=Path, help="checkpoint whose VAE and text encoder make the features")
    parser.add_argument("--stage", choices=sorted(STAGES), help="make what this stage needs (default: all that can be made)")
    parser.add_argument("--preset", help="settings (and model, where it starts from none)")
    parser.add_argument("--set", action="append", default=[], metavar="A.B=C", help="change one setting; may be repeated")
    parser.add_argument("--out", type=Path, help="where to write (default: DATA.features)")
    parser.add_argument("--batch", type=int, default=4, help="clips or captions that are encoded at a time")
    parser.add_argument("--shard-mb", type=float, default=SHARD_MB, help="about how large a shard becomes")
    parser.add_argument(
        "--verify", action="store_true", help="read every byte of the cache, compare with the manifest, and stop"
    )
    args = parser.parse_args(argv)
    try:
        out = args.out or _beside(args.data)
        if args.verify:
            return _verify(out)
        return cache(args.data, out, args.parent, _stage(args.stage), _config(args), args.batch, int(args.shard_mb * 2**20))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 2


def _beside(data: str) -> Path:
    if "://" in data:
        raise DataError(f"{data}: a cache is written to a folder on this machine; name one with --out")
    return Path(data).with_name(f"{Path(data).name}.features")


def _stage(name: str | None) -> Stage | None:
    return None if name is None else STAGES[name]


def _config(args: argparse.Namespace) -> Config:
    stage = STAGES[args.stage or "single_shot"]
    known = read_record(args.parent).get("preset") if args.parent is not None else None
    preset = args.preset or known or "tiny"
    if known not in (None, preset):
        raise DataError(f"{args.parent}: a model of preset {known}, not {preset}; leave out --preset")
    if preset not in stage.presets:
        raise DataError(f"{stage.name} has no preset {preset}; choose one of {', '.join(stage.presets)}")
    return override(stage.presets[preset], args.set)


def cache(data: str, out: Path, parent: Path | None, stage: Stage | None, config: Config, batch: int, shard: int) -> int:
    """Make the features of a dataset that are missing.

    Args:
        data: dataset directory, or its URL.
        out: ``<DIR>.features``.
        parent: checkpoint; None for the preset.
        stage: whose needs are met; None for all that the model can make.
        config: its settings.
        batch: clips or captions encoded at a time.
        shard: bytes of a shard, about.

    Returns:
        0, or 2 where shots failed; they are named.

    Raises:
        DataError: dataset, checkpoint or settings are wrong, or the disk is full.
    """
    me = _this_process(config)
    kinds = [kind for kind in KINDS if stage is None or kind in {KIND_OF[need] for need in needs_of(stage)}]
    if stage is None and parent is not None and not (parent / "text_encoder").is_dir():
        kinds.remove("text")
        me.say(f"{parent}: no text encoder, so no features of captions")
    if "latents" in kinds and config.data.clip.starts is None:
        raise DataError(
            "latents need clips that start at fixed places: --set data.clip.starts=1 (or more; the stages the same)"
        )
    stream = _all_shots(config, data)
    quiet_loading()
    with model_errors():
        without = [part for kind, part in PART_OF.items() if kind not in kinds]
        gen = load_gen(config, parent, without) if set(kinds) & set(PART_OF) else None
        if gen is not None:
            for part in set(PART_OF.values()) - set(without):
                getattr(gen, part).to(me.device)
    failed: list[str] = []
    for kind, identity in identities(kinds, config, parent, me.precision, gen).items():
        folder = out / kind / fingerprint_of(identity)
        job = Job(
            kind, stream.store, folder, clip_of(config), config.data.caption, used_rows(stream), batch, config.data.workers
        )
        _prepare(folder, identity, me)
        failed += _make(job, gen, me, shard)
        _finish(job, stream, me)
    for problem in failed[:TOLD]:
        print(f"error: {problem}", file=sys.stderr, flush=True)
    if failed:
        print(f"error: {len(failed)} entries could not be made and are missing", file=sys.stderr, flush=True)
    return 2 if failed else 0


def _this_process(config: Config) -> Worker:
    """By the launcher's variables alone: these processes need no group, and none has to wait for another."""
    rank, world, local = (
        int(os.environ.get(name, default)) for name, default in zip(("RANK", "WORLD_SIZE", "LOCAL_RANK"), "010")
    )
    use_cpu = os.environ.get("ACCELERATE_USE_CPU", "false").lower() in ("1", "true", "yes")
    device = torch.device("cuda", local) if torch.cuda.is_available() and not use_cpu else torch.device("cpu")
    return Worker(rank, world, device, config.train.precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no"))


def _all_shots(config: Config, data: str) -> ShotStream:
    """The stream that draws every shot any stage draws with these settings."""
    chosen = config.data
    return ShotStream(
        data,
        clip_of(config),
        global_batch=1,
        split=chosen.split,
        seed=config.train.seed,
        video=chosen.video,
        character=chosen.character,
        prologue_and_epilogue=chosen.prologue_and_epilogue,
        rejected=chosen.rejected,
        features=Features({}, ()),  # so that the index has the clips' hashes
    )


def _prepare(folder: Path, identity: dict[str, Any], me: Worker) -> None:
    """The folder, without what a killed run left half-written."""
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "identity.json").is_file():
            replace_whole(folder / "identity.json", (json.dumps(identity, indent=2, sort_keys=True) + "\n").encode())
        for shard in drop_damaged(folder):
            me.say(f"{shard}: gone or damaged; its entries are made again")
        for path in folder.glob(".*.partial") if me.rank == 0 else ():
            if time.time() - path.stat().st_mtime > OLD:
                path.unlink(missing_ok=True)


# ---- the work of one process ----


def _make(job: Job, gen: AnimeShooterGen | None, me: Worker, shard: int) -> list[str]:
    """Write the shards of this process; returns what went wrong, a line a shot."""
    failed: list[str] = []
    store = FeatureStore(job.folder, unfinished=True)
    size = _entry_bytes(job, gen)
    shots = max(1, min(shard // (size * len(job.parts)), -(-job.rows.num_rows // me.world)))
    units = [
        (unit, range(first, min(first + shots, job.rows.num_rows)))
        for unit, first in enumerate(range(0, job.rows.num_rows, shots))
    ]
    mine = units[me.rank :: me.world]
    began, made, written = time.perf_counter(), 0, 0
    with tqdm(
        total=sum(len(rows) for _, rows in mine), unit="shot", desc=job.kind, disable=me.rank != 0, mininterval=0.5
    ) as bar:
        for unit, entries in groupby(_entries(job, _planned(job, store, mine, bar), gen, me, failed), lambda one: one[0]):
            counted = _Named(entry for _, entry in entries)
            with _disk(job.folder):
                written += write_shard(job.folder, f"{unit:06}-{counted.name}", counted)
            made += counted.count
    seconds = time.perf_counter() - began
    if made:
        me.say(f"{job.kind}: {made} entries made, {written / 2**20:.1f} MB in {seconds:.1f} s")
    return failed


class _Named:
    """The entries of a shard, counted as they are handed on.

    The shard's name comes from the first of them: when a run is killed and repeated, it is the same one again.
    """

    def __init__(self, entries: Iterator[Entry]) -> None:
        self.first, self.rest, self.count = next(entries), entries, 0
        told = f"{self.first.key} {self.first.part} {self.first.source.hex()}"
        self.name = hashlib.sha256(told.encode()).hexdigest()[:8]

    def __iter__(self) -> Iterator[Entry]:
        for entry in chain([self.first], self.rest):
            self.count += 1
            yield entry


def _planned(job: Job, store: FeatureStore, units: Sequence[tuple[int, range]], bar: Any) -> Iterator[Item]:
    """The entries that are missing, in the order of the index; reads the shots' records, not their clips."""
    if job.kind == "text" and units and units[0][0] == 0 and store.find("", 0, text_source("")) is None:
        yield Item(0, {"key": "", "video": ""}, None, "", 0, text_source(""))
    for unit, rows in units:
        for row in job.rows.slice(rows.start, len(rows)).to_pylist():
            record = cast(ShotRecord, parse("shots", _member(job.store, row, "json"), f"{job.store.name}: {row['key']}"))
            caption = caption_of(record, job.caption)
            source = text_source(caption) if job.kind == "text" else video_source(row, record)
            for part in job.parts:
                if store.find(row["key"], part, source) is None:
                    yield Item(unit, row, record.picture, caption, part, source)
            bar.update()


def _place(row: dict[str, Any], member: str) -> tuple[str, int, int]:
    # Only the file's name is taken from the index: a path in it could point anywhere.
    return f"shots/{Path(row['shard']).name}", row[f"{member}_offset"], row[f"{member}_size"]


def _member(store: Any, row: dict[str, Any], member: str) -> bytes:
    return store.range(*_place(row, member))


class _Decoder(Dataset):
    """Frames of items, in whichever process it is."""

    def __init__(self, job: Job) -> None:
        self.store, self.kind, self.clip = job.store, job.kind, job.clip

    def __getitems__(self, items: list[Item]) -> list[tuple[Item, Tensor | str]]:
        """Each item with its frames uint8 [F, H, W, 3] (latents), its PNG (ends), or why there are none."""
        if self.kind != "text":
            self.store.prefetch([_place(item.row, "mp4") for item in items])
        return [(item, self.decode(item)) for item in items]

    def decode(self, item: Item) -> Tensor | str:
        """See :meth:`__getitems__`."""
        if self.kind == "text":
            return torch.empty(0)
        where = f"{self.store.name}: {item.row['key']}"
        clip = self.clip if self.kind == "latents" else replace(self.clip, frames=1)
        at = (item.part + 0.5) / self.clip.starts if self.kind == "latents" and self.clip.starts else 0.0
        try:
            frames, first, last = decode_clip(_member(self.store, item.row, "mp4"), item.row, clip, at, where, item.picture)
        except DataError as error:
            return str(error)
        return torch.from_numpy(np.ascontiguousarray(frames)) if self.kind == "latents" else png((first, last)[item.part])


def _entries(
    job: Job, items: Iterator[Item], gen: AnimeShooterGen | None, me: Worker, failed: list[str]
) -> Iterator[tuple[int, Entry]]:
    """Items decoded, encoded and serialized, each with its unit; what fails is added to ``failed``."""
    loader = DataLoader(
        _Decoder(job),
        batch_sampler=_Batches(items, job.batch),
        collate_fn=_as_it_is,
        num_workers=0 if job.kind == "text" else job.workers,
        multiprocessing_context="spawn" if job.workers and job.kind != "text" else None,
    )
    for batch in loader:
        failed += [found for _, found in batch if isinstance(found, str)]
        good = [(item, found) for item, found in batch if not isinstance(found, str)]
        if good:
            with torch.no_grad(), me.arithmetic(), model_errors():
                tensors = _encode(job.kind, gen, [item for item, _ in good], [found for _, found in good])
            for (item, _), tensor in zip(good, tensors, strict=True):
                yield item.unit, _entry(job.kind, item, tensor)


def _encode(kind: str, gen: AnimeShooterGen | None, items: Sequence[Item], found: Sequence[Tensor]) -> Sequence[Tensor]:
    if kind == "ends":
        return found
    assert gen is not None
    made = gen.text_features([item.caption for item in items]) if kind == "text" else posterior(gen, torch.stack(list(found)))
    return list(made.cpu())


def _entry(kind: str, item: Item, tensor: Tensor) -> Entry:
    clip = None if kind == "text" else clip_hash(item.row["sha256"], item.row["clean_start"], item.row["clean_end"])
    blob = save({"png" if kind == "ends" else kind: tensor.contiguous()}, {"key": item.row["key"], "part": str(item.part)})
    return Entry(item.row["key"], item.row["video"], item.part, item.source, clip, blob)


class _Batches:
    """Items in batches, none over the border of two units."""

    def __init__(self, items: Iterator[Item], size: int) -> None:
        self.items, self.size = items, max(1, size)

    def __iter__(self) -> Iterator[list[Item]]:
        for _, unit in groupby(self.items, lambda item: item.unit):
            batch: list[Item] = []
            for item in unit:
                batch.append(item)
                if len(batch) == self.size:
                    yield batch
                    batch = []
            if batch:
                yield batch


def _as_it_is(batch: Any) -> Any:
    return batch


def _entry_bytes(job: Job, gen: AnimeShooterGen | None) -> int:
    """About how large an entry is."""
    clip = job.clip
    if job.kind == "ends" or gen is None:
        return clip.height * clip.width * 3 // 2
    if job.kind == "text":
        return (
            gen.transformer.config.max_text_seq_length * gen.transformer.config.text_embed_dim * gen.text_encoder.dtype.itemsize
        )
    config = gen.vae.config
    cells = (clip.frames // config.temporal_compression_ratio + 1) * clip.height * clip.width
    return 2 * config.latent_channels * cells // 4 ** (len(config.block_out_channels) - 1) * gen.vae.dtype.itemsize


def _finish(job: Job, stream: ShotStream, me: Worker) -> None:
    """Index and manifest of all shards there are; the process that comes last lists those of all."""
    keys = job.rows["key"].combine_chunks()
    columns = (job.rows[name].to_pylist() for name in ("sha256", "clean_start", "clean_end"))
    clips = None if job.kind == "text" else pa.array([clip_hash(*one) for one in zip(*columns)], pa.binary(16))
    name = f"{Path(stream.name).name} [{stream.split}]"
    with _disk(job.folder):
        wanted = Wanted(name, stream.state_dict()["fingerprint"], keys, clips, job.parts)
        tools = {tool: version(tool) for tool in ("torch", "diffusers", "transformers", "av")}
        told = finish(job.folder, wanted, tools)
    there, size = told["datasets"][name], told["bytes"] / 2**20
    if me.world == 1 or there["complete"]:
        me.say(f"{job.kind}: {there['cached']} of {there['entries']} entries of {name} cached, {size:.1f} MB in {job.folder}")


class _disk:
    """A full or read-only disk is for the user to mend."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        """Nothing yet."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Turn what the system says into one line."""
        if isinstance(error, OSError):
            raise DataError(
                f"{self.folder}: cannot write ({error.strerror or error}); make room there, and run the same command again: "
                "shards that are whole stay"
            ) from None


def _verify(out: Path) -> int:
    """Check every byte of a cache; 0 where all are right."""
    from streams.feature_files import folders

    found = folders(out)
    if not found:
        raise DataError(f"{out}: no cache of features")
    wrong = [problem for folder in found for problem in verify(folder)]
    for problem in wrong:
        print(f"error: {problem}", file=sys.stderr)
    print(f"{out}: {sum(len(part_files(folder)) for folder in found)} shards read, {len(wrong)} wrong")
    return 2 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
