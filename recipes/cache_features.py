"""Cache of features: what the frozen parts of the model make of every shot, made once and written next to the dataset.

Makes     latents (mean and log-variance), first and last frames, features of captions, what the MLLM sees in pictures
From      the checkpoint that the stage will start from, or its preset
Shots     all that a stream with these settings would draw, at each of `data.clip.starts` starts; with several clips
          (`data.clips`) each shot at the sizes it is drawn in
Writes    DATA.features/<kind>/<fingerprint>/, see streams/features.py

Every process writes shards of its own and waits for none. A run that was stopped or killed is completed by the same command.

Run: accelerate launch recipes/cache_features.py --stage single_shot --from checkpoints/align --data animeshooter \
         --set data.clip.starts=1
     accelerate launch recipes/single_shot.py --from checkpoints/align --data animeshooter --set data.clip.starts=1 \
         --set data.features=animeshooter.features
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors.torch import save
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm.auto import tqdm

from animeshooter_dataset import DataError, ShotRecord, parse
from animeshooter_streams import ShotStream
from recipes import align, lora, multi_shot, pretrain, single_shot
from recipes.cache_vision import make_vision
from recipes.cache_work import Disk, Job, Named, Worker, member, place, prepare, this_process
from recipes.config import Config, TrainConfig, override
from recipes.data import clips_of, open_stream
from recipes.encoding import posterior
from recipes.features import identities, needs_of, used_rows
from recipes.parts import MADE_BY, PART_OF, load_gen
from recipes.record import read_record
from recipes.stage import Stage, Stream, model_errors, quiet_loading
from streams.clips import ClipSpec, decode_clip
from streams.feature_files import Entry, Wanted, finish, part_files, verify, write_shard
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
from streams.workers import settle_in, without_main, worker_context

if TYPE_CHECKING:
    from model import AnimeShooterGen

STAGES: dict[str, Stage] = {one.STAGE.name: one.STAGE for one in (pretrain, align, single_shot, multi_shot, lora)}
SHARD_MB = 256
"""About how large a shard becomes."""
TOLD = 5
"""Shots that failed that are named on the screen."""


@dataclass(frozen=True)
class Item:
    """One entry to make: its unit of work, the shot's row of the index, and what it is of."""

    unit: int
    row: dict[str, Any]
    picture: tuple[int, int, int, int] | None
    caption: str
    part: int
    source: bytes


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
    me = this_process(config)
    needs = needs_of(stage, config) if stage else frozenset(KIND_OF)
    kinds = [kind for kind in KINDS if kind in {KIND_OF[need] for need in needs}]
    if stage is None and parent is not None and not (parent / "text_encoder").is_dir():
        kinds.remove("text")
        me.say(f"{parent}: no text encoder, so no features of captions")
    if "latents" in kinds and config.data.clip.starts is None:
        raise DataError(
            "latents need clips that start at fixed places: --set data.clip.starts=1 (or more; the stages the same)"
        )
    streams = _streams(stage, config, data)
    quiet_loading()
    with model_errors():
        without = [part for kind, part in PART_OF.items() if kind not in kinds]
        gen = load_gen(config, parent, without) if set(kinds) & set(MADE_BY) else None
        if gen is not None:
            for part in {MADE_BY[kind] for kind in kinds if kind in MADE_BY} | ({"adapter"} if "vision" in kinds else set()):
                getattr(gen, part).to(me.device)
    failed: list[str] = []
    ends: list[tuple[int, FeatureStore]] = []
    clips: dict[str, list[ClipSpec]] = {}  # two that differ in rate alone have the same ends
    found = identities(kinds, config, parent, me.precision, gen)
    for (_, clip), identity in found.items():
        clips.setdefault(fingerprint_of(identity), []).extend([clip] if clip else clips_of(config))
    for fingerprint, identity in {fingerprint_of(identity): identity for identity in found.values()}.items():
        kind, sizes = identity["kind"], clips[fingerprint]
        folder, rows = out / kind / fingerprint, _drawn(streams, sizes)
        prepare(folder, identity, me)
        job = Job(kind, streams[0].store, folder, sizes[0], config.data.caption, rows, batch, config.data.workers)
        if not rows.num_rows:
            continue
        if kind == "vision":
            assert gen is not None
            failed += make_vision(job, ends, gen, me, shard)
            continue
        failed += _make(job, gen, me, shard)
        _finish(job, streams[0], me)
        if kind == "ends":
            shown = [part for part, need in enumerate(("first", "last")) if need in needs]
            ends += [(part, FeatureStore(folder, unfinished=True)) for part in shown]
    for problem in failed[:TOLD]:
        print(f"error: {problem}", file=sys.stderr, flush=True)
    if failed:
        print(f"error: {len(failed)} entries could not be made and are missing", file=sys.stderr, flush=True)
    return 2 if failed else 0


def _streams(stage: Stage | None, config: Config, data: str) -> list[Stream]:
    """Streams that together draw every shot that a stage with these settings draws, at the sizes it is drawn in.

    The first has every single shot, so that one cache serves all stages; sequences of shots go by their shortest one, so that a
    stage that reads them may draw a shot at another size.
    """
    hashed = Features({}, ())  # so that the index has the clips' hashes
    alone = replace(config, data=replace(config.data, shots=1, require_reference=False, where=None))
    found = [open_stream(single_shot.STAGE, replace(alone, train=_one_a_step(alone.train)), data, hashed)]
    if stage is not None and len(clips_of(config)) > 1 and stage.stream is not ShotStream:
        found.append(open_stream(stage, replace(config, train=_one_a_step(config.train)), data, hashed))
    return found


def _one_a_step(train: TrainConfig) -> TrainConfig:
    return replace(train, global_batch=1, batch_tokens=None)


def _drawn(streams: Sequence[Stream], clips: Sequence[ClipSpec]) -> pa.Table:
    """Rows of the index that are drawn as clips of these sizes, each once."""
    keys = pc.unique(pa.concat_arrays([used_rows(one, clip)["key"].combine_chunks() for one in streams for clip in clips]))
    index = streams[0].index
    return index.filter(pc.is_in(index["key"], value_set=keys))


# ---- the work of one process ----


def _make(job: Job, gen: AnimeShooterGen | None, me: Worker, shard: int) -> list[str]:
    """Write the shards of this process; returns what went wrong, a line a shot."""
    failed: list[str] = []
    store = FeatureStore(job.folder, unfinished=True)
    mine = me.units(job.rows.num_rows, shard // (_entry_bytes(job, gen) * len(job.parts)))
    began, made, written = time.perf_counter(), 0, 0
    with tqdm(
        total=sum(len(rows) for _, rows in mine), unit="shot", desc=job.kind, disable=me.rank != 0, mininterval=0.5
    ) as bar:
        for unit, entries in groupby(_entries(job, _planned(job, store, mine, bar), gen, me, failed), lambda one: one[0]):
            counted = Named(entry for _, entry in entries)
            with Disk(job.folder):
                written += write_shard(job.folder, f"{unit:06}-{counted.name}", counted)
            made += counted.count
    seconds = time.perf_counter() - began
    if made:
        me.say(f"{job.kind}: {made} entries made, {written / 2**20:.1f} MB in {seconds:.1f} s")
    return failed


def _planned(job: Job, store: FeatureStore, units: Sequence[tuple[int, range]], bar: Any) -> Iterator[Item]:
    """The entries that are missing, in the order of the index; reads the shots' records, not their clips."""
    if job.kind == "text" and units and units[0][0] == 0 and store.find("", 0, text_source("")) is None:
        yield Item(0, {"key": "", "video": ""}, None, "", 0, text_source(""))
    for unit, rows in units:
        for row in job.rows.slice(rows.start, len(rows)).to_pylist():
            record = cast(ShotRecord, parse("shots", member(job.store, row, "json"), f"{job.store.name}: {row['key']}"))
            caption = caption_of(record, job.caption)
            source = text_source(caption) if job.kind == "text" else video_source(row, record)
            for part in job.parts:
                if store.find(row["key"], part, source) is None:
                    yield Item(unit, row, record.picture, caption, part, source)
            bar.update()


class _Decoder(Dataset):
    """Frames of items, in whichever process it is."""

    def __init__(self, job: Job) -> None:
        self.store, self.kind, self.clip = job.store, job.kind, job.clip

    def __getitems__(self, items: list[Item]) -> list[tuple[Item, Tensor | str]]:
        """Each item with its frames uint8 [F, H, W, 3] (latents), its PNG (ends), or why there are none."""
        if self.kind != "text":
            self.store.prefetch([place(item.row, "mp4") for item in items])
        return [(item, self.decode(item)) for item in items]

    def decode(self, item: Item) -> Tensor | str:
        """See :meth:`__getitems__`."""
        if self.kind == "text":
            return torch.empty(0)
        where = f"{self.store.name}: {item.row['key']}"
        clip = self.clip if self.kind == "latents" else replace(self.clip, frames=1)
        at = (item.part + 0.5) / self.clip.starts if self.kind == "latents" and self.clip.starts else 0.0
        try:
            frames, first, last = decode_clip(member(self.store, item.row, "mp4"), item.row, clip, at, where, item.picture)
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
        multiprocessing_context=worker_context() if job.workers and job.kind != "text" else None,
        worker_init_fn=settle_in,
    )
    with without_main(job.store):
        batches = iter(loader)
    for batch in batches:
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
        return gen.backbone.condition_length * gen.backbone.condition_size * gen.text_encoder.dtype.itemsize
    return 2 * math.prod(gen.backbone.latent_shape(clip.frames, clip.height, clip.width)) * gen.vae.dtype.itemsize


def _finish(job: Job, stream: Stream, me: Worker) -> None:
    """Index and manifest of all shards there are; the process that comes last lists those of all."""
    keys = job.rows["key"].combine_chunks()
    columns = (job.rows[name].to_pylist() for name in ("sha256", "clean_start", "clean_end"))
    clips = None if job.kind == "text" else pa.array([clip_hash(*one) for one in zip(*columns)], pa.binary(16))
    name = f"{Path(stream.name).name} [{stream.split}]"
    with Disk(job.folder):
        wanted = Wanted(name, stream.state_dict()["fingerprint"], keys, clips, job.parts)
        tools = {tool: version(tool) for tool in ("torch", "diffusers", "transformers", "av")}
        told = finish(job.folder, wanted, tools)
    there, size = told["datasets"][name], told["bytes"] / 2**20
    if me.world == 1 or there["complete"]:
        me.say(f"{job.kind}: {there['cached']} of {there['entries']} entries of {name} cached, {size:.1f} MB in {job.folder}")


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
