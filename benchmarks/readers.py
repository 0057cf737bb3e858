"""The readers that ``benchmarks.streams`` compares: each gives the same batches of the same shots, as its users would write it.

A batch is a :class:`Batch`: frames uint8 [B, F, H, W, 3], and for each sample its key, its caption and its reference image. All
peers decode with :func:`decode`, plain PyAV; ``floor`` is that function over clips already in memory and nothing else. Which
frames are drawn, and which reference, is in the task, so that all draw the same.

This module imports nothing of the project but in ``Ours``: it runs under the interpreter of each peer.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import av
import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader

BUFFER = 100
"""Samples of the shuffle buffers of ``datasets``, webdataset and energon (their documents say 100 to 1,000)."""


@dataclass(frozen=True)
class Task:
    """What to read: ``data`` is a dataset directory or its address, ``scratch`` holds what peers need converted.

    ``draws`` gives for each key where its clip starts, in [0, 1), and the number of its reference in its record or None.
    """

    data: str
    scratch: str
    frames: int
    height: int
    width: int
    fps: float
    batch: int
    workers: int
    seconds: float
    draws: dict[str, tuple[float, int | None]] = field(repr=False)


@dataclass
class Sample:
    """One shot."""

    key: str
    frames: np.ndarray
    caption: str
    reference: Image.Image | None


class Batch(NamedTuple):
    """Samples put together: ``frames`` is uint8 [B, F, H, W, 3]. A tuple: mosaicml-streaming counts its first part."""

    keys: list[str]
    frames: torch.Tensor
    captions: list[str]
    references: list[Image.Image | None]


# ---- what all peers share ----


def decode(clip: bytes, record: dict[str, Any], task: Task, ends: bool = False) -> np.ndarray:
    """The drawn frames of a clip, uint8 [F, H, W, 3]; with ``ends`` also its first and last clean frame, [F + 2, H, W, 3].

    The rule of ``streams.clips`` written anew: frames at a rate from a drawn start, scaled to cover and cropped. Decoding
    starts with the clip and stops with the last frame that is wanted. One thread a process: with a process a core more threads
    cost more processor time, and on a busy machine they would take a larger share of it than the other readers get.
    """
    with av.open(io.BytesIO(clip)) as container:
        stream = container.streams.video[0]
        stream.codec_context.thread_count = 1
        base = float(stream.time_base or 0)
        ticks = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
        start = record["start_frame"]
        clean = ticks[record["clean_start_frame"] - start : record["clean_end_frame"] - start]
        chosen = [clean[which] for which in _times(np.array(clean) * base, task, task.draws[record["key"]][0])]
        if ends:
            chosen += [clean[0], clean[-1]]
        container.seek(0, stream=stream)
        wanted, images = set(chosen), {}
        for frame in container.decode(stream):
            if frame.pts in wanted:
                images[frame.pts] = _fit(frame, task.height, task.width, record.get("picture"))
                if len(images) == len(wanted):
                    break
    return np.stack([images[tick] for tick in chosen])


def _times(times: np.ndarray, task: Task, at: float) -> np.ndarray:
    room = float(times[-1] - times[0]) - (task.frames - 1) / task.fps
    if room >= 0:
        return np.searchsorted(times, times[0] + room * at + np.arange(task.frames) / task.fps + 1e-6, side="right") - 1
    if len(times) >= task.frames:
        return np.linspace(0, len(times) - 1, task.frames).round().astype(int)
    return np.minimum(np.arange(task.frames), len(times) - 1)


def _fit(frame: av.VideoFrame, height: int, width: int, picture: Sequence[int] | None) -> np.ndarray:
    left, top, right, bottom = picture or (0, 0, frame.width, frame.height)
    scale = max(height / (bottom - top), width / (right - left))
    tall, wide = max(height, round(frame.height * scale)), max(width, round(frame.width * scale))
    how = "AREA" if scale < 1 else "BICUBIC"
    image = frame.reformat(width=wide, height=tall, format="rgb24", interpolation=how, threads=1).to_ndarray()
    if picture:
        top, bottom, left, right = (round(edge * scale) for edge in (top, bottom, left, right))
    else:
        bottom, right = tall, wide
    y = min(max((top + bottom - height) // 2, 0), tall - height)
    x = min(max((left + right - width) // 2, 0), wide - width)
    return image[y : y + height, x : x + width]


def make_sample(task: Task, record: dict[str, Any], clip: bytes, sheet: bytes) -> Sample:
    """A sample from the members of a shot."""
    number, reference = task.draws[record["key"]][1], None
    if number is not None:
        part = Image.open(io.BytesIO(sheet)).convert("RGBA").crop(record["references"][number]["box"])
        reference = Image.alpha_composite(Image.new("RGBA", part.size, "white"), part).convert("RGB")
    return Sample(record["key"], decode(clip, record, task), record["descriptive_caption"], reference)


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples as a batch."""
    return Batch(
        [sample.key for sample in samples],
        torch.from_numpy(np.stack([sample.frames for sample in samples])),
        [sample.caption for sample in samples],
        [sample.reference for sample in samples],
    )


def tars(task: Task) -> list[str]:
    """The shards of the dataset."""
    return sorted(str(path) for path in Path(task.data, "shots").glob("train-*.tar"))


# ---- readers ----


class Reader:
    """A way to read a dataset. ``batches`` walks one epoch, or goes on for ever; a state is what it resumes from.

    Attributes:
        needs: the module without which it is not installed, and ``package``, where that comes from.
        resumes: whether there is a state to resume from; ``resumes_endless``: only from one of endless reading.
        note: what a reader of the figures should know.
    """

    needs: ClassVar[str] = ""
    package: ClassVar[str] = ""
    resumes: ClassVar[bool] = True
    resumes_endless: ClassVar[bool] = False
    note: ClassVar[str] = ""

    def __init__(self, task: Task) -> None:
        self.task = task

    def prepare(self) -> None:
        """Convert the dataset, where the peer needs it."""

    def batches(self, endless: bool, state: Any = None) -> Iterator[Batch]:
        """Batches of an epoch in order; from where ``state`` was taken."""
        raise NotImplementedError

    def state(self) -> Any:
        """Where the walk stands after the batch that was given last."""
        raise NotImplementedError


class Ours(Reader):
    """``ShotStream.batches``: every shot of the split, also those that training would leave out."""

    needs, package = "animeshooter_streams", "animeshooter"
    note = "also delivers the first and the last clean frame of every shot"

    def batches(self, endless: bool, state: Any = None) -> Iterator[Batch]:
        """See :meth:`Reader.batches`."""
        from animeshooter_streams import ShotStream
        from streams.clips import ClipSpec

        task = self.task
        clip = ClipSpec(task.frames, task.height, task.width, task.fps, min_frames=1)
        self.stream = ShotStream(task.data, clip, global_batch=task.batch, rejected=True, prologue_and_epilogue=True)
        if state is not None:
            self.stream.load_state_dict(state)
        steps = None if endless else self.stream.steps_per_epoch - self.stream.step
        for (batch,) in self.stream.batches(workers=task.workers, steps=steps):
            samples = batch.samples
            keys, captions = [sample.keys[0] for sample in samples], [sample.descriptive[0] for sample in samples]
            yield Batch(keys, batch.frames[:, 0], captions, [sample.reference for sample in samples])

    def state(self) -> Any:
        """See :meth:`Reader.state`."""
        return self.stream.state_dict()


class HuggingFace(Reader):
    """``load_dataset(..., streaming=True)`` with a shuffle buffer, decoded in a map; resumed by torchdata, as documented."""

    needs, package = "datasets", "datasets"
    note = (
        f"shuffle buffer of {BUFFER}, lost on a resume; StatefulDataLoader and max_buffer_input_shards=1 only where a state "
        "is taken"
    )
    stateful = False

    def batches(self, endless: bool, state: Any = None) -> Iterator[Batch]:
        """See :meth:`Reader.batches`."""
        from datasets import load_dataset

        rows: Any = load_dataset(self.task.data, "shots", split="train", streaming=True).decode(False)
        # With the default of 10 a state of several workers does not load again (IndexError in 5.2).
        rows = rows.shuffle(seed=0, buffer_size=BUFFER, max_buffer_input_shards=1 if self.stateful else 10)
        rows = rows.map(self._sample, remove_columns=["__key__", "__url__", "mp4", "json", "png"])
        if endless:
            rows = rows.repeat(None)
        loader: type = DataLoader
        if self.stateful:
            from torchdata.stateful_dataloader import StatefulDataLoader as loader  # type: ignore[no-redef]
        self.loader = loader(rows, batch_size=self.task.batch, num_workers=self.task.workers, collate_fn=_collate_rows)
        if state is not None:
            self.loader.load_state_dict(state)
        yield from self.loader

    def _sample(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"sample": make_sample(self.task, row["json"], row["mp4"]["bytes"], row["png"]["bytes"])}

    def state(self) -> Any:
        """See :meth:`Reader.state`."""
        return self.loader.state_dict()


def _collate_rows(rows: Sequence[dict[str, Any]]) -> Batch:
    return collate([row["sample"] for row in rows])


class WebDataset(Reader):
    """``wds.WebDataset`` over the tars: shards shuffled, then a buffer, batched in the workers."""

    needs, package = "webdataset", "webdataset"
    resumes = False
    note = f"shuffle buffer of {BUFFER}; has no state to resume from"

    def batches(self, endless: bool, state: Any = None) -> Iterator[Batch]:
        """See :meth:`Reader.batches`."""
        import webdataset as wds

        task, shards = self.task, tars(self.task)
        rows = wds.WebDataset(shards, shardshuffle=len(shards), seed=0).shuffle(BUFFER).map(self._sample)
        rows = rows.batched(task.batch, collation_fn=collate, partial=True)
        if endless:
            rows = rows.repeat()
        yield from wds.WebLoader(rows, batch_size=None, num_workers=task.workers)

    def _sample(self, row: dict[str, Any]) -> Sample:
        return make_sample(self.task, json.loads(row["json"]), row["mp4"], row["png"])


class Mosaic(Reader):
    """``StreamingDataset`` over the dataset converted to MDS (not timed), with its own shuffle and its own loader."""

    needs, package = "streaming", "mosaicml-streaming"
    note = "converted to MDS before, which is not timed; the last batches of an epoch are filled up"

    def prepare(self) -> None:
        """Write the MDS shards, as large as the tars."""
        import tarfile

        from streaming import MDSWriter

        target = Path(self.task.scratch, "mds")
        if (target / "index.json").is_file():
            return
        largest = max(Path(tar).stat().st_size for tar in tars(self.task))
        columns = {"mp4": "bytes", "json": "bytes", "png": "bytes"}
        with MDSWriter(out=str(target), columns=columns, size_limit=largest) as writer:
            for tar in tars(self.task):
                with tarfile.open(tar) as archive:
                    row: dict[str, bytes] = {}
                    for entry in archive:
                        file = archive.extractfile(entry)
                        row[entry.name.rpartition(".")[2]] = file.read() if file else b""
                        if len(row) == len(columns):
                            writer.write(row)
                            row = {}

    def batches(self, endless: bool, state: Any = None) -> Iterator[Batch]:
        """See :meth:`Reader.batches`."""
        from streaming import Stream, StreamingDataLoader, StreamingDataset

        task = self.task

        class Shots(StreamingDataset):
            def __getitem__(self, at: int) -> Sample:
                row = super().__getitem__(at)
                return make_sample(task, json.loads(row["json"]), row["mp4"], row["png"])

        source = Stream(local=str(Path(task.scratch, "mds")), repeat=1000 if endless else None)
        rows = Shots(streams=[source], shuffle=True, shuffle_seed=0, batch_size=task.batch)
        self.loader = StreamingDataLoader(rows, batch_size=task.batch, num_workers=task.workers, collate_fn=collate)
        if state is not None:
            self.loader.load_state_dict(state)
        yield from self.loader

    def state(self) -> Any:
        """See :meth:`Reader.state`."""
        return self.loader.state_dict()


class Energon(Reader):
    """megatron-energon over the same tars as a crude dataset, cooked and encoded by a task encoder; its savable loader."""

    needs, package = "megatron.energon", "megatron-energon"
    resumes_endless = True
    note = f"tars indexed by `energon prepare` before, not timed; shuffle buffer of {BUFFER}; resumed with repeat=True"

    def prepare(self) -> None:
        """Link the tars into a folder of its own and index them."""
        import subprocess

        home = Path(self.task.scratch, "energon")
        if (home / ".nv-meta").is_dir():
            return
        home.mkdir(parents=True)
        for tar in tars(self.task):
            os.link(tar, home / Path(tar).name)
        command = [sys.executable, "-m", "megatron.energon.cli.main", "prepare", str(home), "--non-interactive"]
        command += ["--split-parts", "train:train-.*", "--sample-type", "CrudeWebdataset", "--num-workers", "1"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)

    def batches(self, endless: bool, state: Any = None) -> Iterator[Batch]:
        """See :meth:`Reader.batches`."""
        from megatron.energon import WorkerConfig, get_savable_loader, get_train_dataset

        task = self.task
        rows = get_train_dataset(
            str(Path(task.scratch, "energon")),
            worker_config=WorkerConfig(rank=0, world_size=1, num_workers=task.workers, seed_offset=0),
            batch_size=task.batch,
            shuffle_buffer_size=BUFFER,
            max_samples_per_sequence=100,
            task_encoder=_energon_encoder(task),
            repeat=endless,
        )
        self.loader = get_savable_loader(rows)
        if state is not None:
            self.loader.restore_state_rank(state)
        yield from self.loader

    def state(self) -> Any:
        """See :meth:`Reader.state`."""
        return self.loader.save_state_rank()


def _energon_encoder(task: Task) -> Any:
    from megatron.energon import Cooker, DefaultTaskEncoder, SkipSample, basic_sample_keys, cooker, stateless  # noqa: F401

    @stateless
    def cook(row: dict[str, Any]) -> Any:
        return row

    class Encoder(DefaultTaskEncoder):
        cookers = (Cooker(cook),)
        decoder = None

        @stateless
        def encode_sample(self, row: dict[str, Any]) -> Any:
            return make_sample(task, json.loads(row["json"]), row["mp4"], row["png"])

        @stateless
        def batch(self, samples: list[Any]) -> Any:
            return collate(samples)

    return Encoder()


READERS: dict[str, type[Reader]] = {
    "ours": Ours,
    "datasets": HuggingFace,
    "webdataset": WebDataset,
    "mosaicml-streaming": Mosaic,
    "megatron-energon": Energon,
}
