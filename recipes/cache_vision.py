"""What the MLLM sees in the pictures of a dataset, made once: references, and the first and last frames that stages show it.

Every picture is made once, however many shots share it. Frames come from the cache of them, which is made before.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from safetensors.torch import save
from tqdm.auto import tqdm

from animeshooter_dataset import DataError, ShotRecord, parse
from recipes.cache_work import Disk, Job, Named, Worker, member
from recipes.vision import Seer
from streams.clips import cut_reference
from streams.feature_files import Entry, finish, write_shard
from streams.features import FeatureStore, from_png, picture_hash, video_source

if TYPE_CHECKING:
    from model import AnimeShooterGen

Ends = Sequence[tuple[int, FeatureStore]]
"""Which end of shots is shown (0 first, 1 last), and the cache it is in, for every size of clips."""


def make_vision(job: Job, ends: Ends, gen: AnimeShooterGen, me: Worker, shard: int) -> list[str]:
    """Write the shards of this process.

    Args:
        job: its rows are all shots of the dataset that are drawn.
        ends: see there.
        gen: the model.
        me: this process.
        shard: bytes of a shard, about.

    Returns:
        What went wrong, a line a shot.

    Raises:
        DataError: the MLLM is of a kind whose features cannot be kept; the disk is full.
    """
    with torch.no_grad(), me.arithmetic():
        see = Seer(gen)
        size = len(_entry("", np.full((64, 64, 3), 255, np.uint8), see).blob)
    failed: list[str] = []
    units = me.units(job.rows.num_rows, shard // size)
    began, made, written = time.perf_counter(), 0, 0
    with tqdm(total=sum(len(rows) for _, rows in units), unit="shot", desc=job.kind, disable=me.rank != 0) as bar:
        found = _entries(job, ends, see, me, units, bar, failed)
        for unit, entries in groupby(found, lambda one: one[0]):
            named = Named(entry for _, entry in entries)
            with Disk(job.folder):
                written += write_shard(job.folder, f"{unit:06}-{named.name}", named)
            made += named.count
    if made:
        me.say(f"{job.kind}: {made} pictures made, {written / 2**20:.1f} MB in {time.perf_counter() - began:.1f} s")
    with Disk(job.folder):
        told = finish(job.folder)
    me.say(f"{job.kind}: {told['entries']} pictures cached, {told['bytes'] / 2**20:.1f} MB in {job.folder}")
    return failed


def _entries(
    job: Job,
    ends: Ends,
    see: Seer,
    me: Worker,
    units: Sequence[tuple[int, range]],
    bar: Any,
    failed: list[str],
) -> Iterator[tuple[int, Entry]]:
    """The pictures that are missing, each with its unit."""
    store, seen = FeatureStore(job.folder, unfinished=True), set[bytes]()
    for unit, rows in units:
        for row in job.rows.slice(rows.start, len(rows)).to_pylist():
            try:
                pictures = list(_pictures(job, row, ends))
            except DataError as error:
                failed.append(str(error))
                pictures = []
            for picture in pictures:
                which = picture_hash(picture)
                if which not in seen and store.find(which.hex(), 0, which) is None:
                    with torch.no_grad(), me.arithmetic():
                        yield unit, _entry(row["video"], picture, see)
                seen.add(which)
            bar.update()


def _pictures(job: Job, row: dict[str, Any], ends: Ends) -> Iterator[np.ndarray]:
    """The pictures of a shot that a stage may show the MLLM, uint8 [H, W, 3]."""
    where = f"{job.store.name}: {row['key']}"
    record = cast(ShotRecord, parse("shots", member(job.store, row, "json"), where))
    sheet = member(job.store, row, "png") if record.references else b""
    for reference in record.references:
        yield np.asarray(cut_reference(sheet, reference, where))
    for part, store in ends:
        entry = store.get(row["key"], part, video_source(row, record))
        if entry is not None:
            yield from_png(entry["png"]).numpy()


def _entry(video: str, picture: np.ndarray, see: Seer) -> Entry:
    which = picture_hash(picture)
    tensors = {name: tensor.contiguous() for name, tensor in see(picture).items()}
    return Entry(which.hex(), video, 0, which, None, save(tensors))
