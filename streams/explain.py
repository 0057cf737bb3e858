"""Where each clip of a dataset goes and why some are left out, before training."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow.compute as pc

from animeshooter_streams import DrawnStream, ShotStream, StoryStream, told_n
from streams.clips import ClipSpec
from streams.order import fit, shards_in_play

Stream = ShotStream | StoryStream | DrawnStream


@dataclass(frozen=True)
class BucketReport:
    """One bucket. Shares are 0 to 1, means over its samples.

    Attributes:
        bucket: frames x height x width @ rate, with the number of shots a sample before it where that is not 1.
        samples: of an epoch.
        tokens: latent tokens of a sample.
        batch: samples a step.
        tokens_a_step: latent tokens of a step.
        steps: steps an epoch.
        repeated: samples that fill up the last batch of an epoch.
        cropped: share of the picture that is cut off.
        enlarged: samples whose picture is enlarged.
        largest_scale: of all enlargements; under 1 where all pictures are made smaller.
        frames_used: share of the clean frames that an epoch reads.
        hurried: samples with a shot too short for the rate, spread over the clip.
        held: samples with a shot of fewer frames than the clip, whose last frame is repeated.
    """

    bucket: str
    samples: int
    tokens: int
    batch: int
    tokens_a_step: int
    steps: int
    repeated: int
    cropped: float
    enlarged: int
    largest_scale: float
    frames_used: float
    hurried: int
    held: int


@dataclass(frozen=True)
class Report:
    """What a stream makes of a dataset; ``left_out`` counts shots by reason, ``samples_left_out`` samples."""

    dataset: str
    stream: str
    split: str
    shots: int
    buckets: list[BucketReport]
    left_out: dict[str, int]
    samples_left_out: dict[str, int]
    samples: int
    steps_an_epoch: int
    tokens_an_epoch: int
    shards_in_play: float
    warnings: list[str]

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return asdict(self)

    def text(self) -> str:
        """For a terminal."""
        lines = [f"{self.stream} {self.dataset} [{self.split}]: {self.shots} shots, {self.samples} samples an epoch", ""]
        taken = [one for one in self.buckets if one.samples]
        empty = [one.bucket for one in self.buckets if not one.samples]
        lines += [*_table(taken), *([f"without samples: {', '.join(empty)}"] if empty else []), ""]
        for title, counts in (("shots left out", self.left_out), ("samples left out", self.samples_left_out)):
            if counts:
                lines += [f"{title}:"] + [f"  {count:>9,}  {reason}" for reason, count in counts.items()]
            else:
                lines.append(f"{title}: none")
        repeated = sum(one.repeated for one in self.buckets)
        lines += [
            "",
            f"{self.steps_an_epoch:,} steps an epoch, {self.tokens_an_epoch:,} latent tokens; {repeated:,} samples "
            f"({repeated / max(1, self.samples):.1%}) repeated to fill the last batch of each bucket",
            f"shards in play at a time: {self.shards_in_play:.1f}",
        ]
        return "\n".join(lines + [f"note: {warning}" for warning in self.warnings])


COLUMNS: tuple[str, ...] = tuple(
    "bucket samples tokens batch tokens/step steps repeated cropped enlarged used hurried held".split()
)


def _table(buckets: list[BucketReport]) -> list[str]:
    rows = [COLUMNS]
    for one in buckets:
        enlarged = f"{one.enlarged} (to {one.largest_scale:.2f}x)" if one.enlarged else "0"
        numbers = (one.samples, one.tokens, one.batch, one.tokens_a_step, one.steps, one.repeated)
        told = (f"{one.cropped:.1%}", enlarged, f"{one.frames_used:.1%}", f"{one.hurried}", f"{one.held}")
        rows.append((one.bucket, *(f"{number:,}" for number in numbers), *told))
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return ["  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:]))]) for row in rows]


def explain(
    directory: str | Path, clips: ClipSpec | Sequence[ClipSpec], *, stream: type[Stream] = ShotStream, **settings: Any
) -> Report:
    """What a stream would make of a dataset.

    Args:
        directory: dataset directory or address.
        clips: the buckets.
        stream: which stream.
        settings: the stream's other arguments, among them ``global_batch`` or ``batch_tokens``.

    Raises:
        DataError: no such dataset, or nothing to train on, with the counts.
    """
    return report(*open_for_report(directory, clips, stream=stream, **settings))


def open_for_report(
    directory: str | Path, clips: ClipSpec | Sequence[ClipSpec], *, stream: type[Stream] = ShotStream, **settings: Any
) -> tuple[Stream, list[str]]:
    """The stream, and what it warned of."""
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        opened = stream(directory, clips, **settings)
    return opened, [str(warning.message) for warning in told if issubclass(warning.category, UserWarning)]


def report(stream: Stream, warned: Sequence[str] = ()) -> Report:
    """What an open stream makes of its dataset."""
    shard = stream.index["shard"].combine_chunks().indices.to_numpy()[stream.sequences[:, 0]]
    buckets = [_bucket(stream, number) for number, one in enumerate(stream.buckets)]
    return Report(
        dataset=stream.name,
        stream=type(stream).__name__,
        split=stream.split,
        shots=stream.index.num_rows,
        buckets=buckets,
        left_out={reason: count for reason, count in _shots_left_out(stream).items() if count},
        samples_left_out={reason: count for reason, count in _samples_left_out(stream).items() if count},
        samples=len(stream),
        steps_an_epoch=stream.steps_per_epoch,
        tokens_an_epoch=sum(one.tokens_a_step * one.steps for one in buckets),
        shards_in_play=shards_in_play(stream.plan, shard),
        warnings=list(warned),
    )


def _bucket(stream: Stream, number: int) -> BucketReport:
    one, rows = stream.buckets[number], stream.sequences[stream.plan.bucket == number]
    rows = rows[:, : one.n] if rows.shape[1] > 1 else rows
    shots, clip = stream.shots(), cast(ClipSpec, one.clip)
    scale, kept = fit(shots, rows, clip) if len(rows) else (np.zeros(1), np.ones(1))
    clean, seconds = shots.clean[rows], shots.seconds[rows]
    held = clean < clip.frames
    hurried = ~held & (seconds < (clip.frames - 1) / clip.fps - 1e-6)
    return BucketReport(
        bucket=str(one),
        samples=one.samples,
        tokens=one.tokens,
        batch=one.batch,
        tokens_a_step=one.tokens * one.batch,
        steps=one.steps,
        repeated=one.steps * one.batch - one.samples,
        cropped=round(float(1 - kept.mean()), 4),
        enlarged=int((scale > 1 + 1e-6).sum()),
        largest_scale=round(float(scale.max()), 4),
        frames_used=round(float(np.minimum(clip.frames / clean, 1).mean()), 4) if len(rows) else 0.0,
        hurried=int((hurried.any(axis=1) & ~held.any(axis=1)).sum()),
        held=int(held.any(axis=1).sum()),
    )


def _shots_left_out(stream: Stream) -> dict[str, int]:
    counts = {}
    for reason, rows in stream.left_out.items():
        if reason == "rejected by a rule":
            names = pc.list_flatten(stream.index["rejected_by"].filter(rows)).to_pylist()
            told = ", ".join(f"{name} {names.count(name)}" for name in sorted(set(names)))
            counts[f"{reason} ({told})"] = int(rows.sum())
        elif reason.startswith("conditions"):
            counts[f"conditions not met ({', '.join(map(str, stream.where))})"] = int(rows.sum())
        else:
            counts[reason] = int(rows.sum())
    used = np.zeros(stream.index.num_rows, dtype=bool)
    used[stream.sequences[stream.sequences >= 0]] = True
    counts[f"in no sequence of {told_n(stream.n)} shots"] = stream.index.num_rows - int(used.sum()) - sum(counts.values())
    return counts


def _samples_left_out(stream: Stream) -> dict[str, int]:
    bare = stream.without_reference if stream.require_reference else 0
    dropped = int(stream.plan.dropped.sum())
    return {
        "without any reference image": bare,
        "of buckets with less than one batch": dropped,
        "of buckets with fewer shots than a sample": len(stream.sequences) - len(stream) - bare - dropped,
    }


def keys(stream: Stream) -> Iterator[tuple[str, str]]:
    """Every sample (its keys joined by ``+``) with its bucket, then every shot that is left out with the reason."""
    names = stream.index["key"].to_pylist()
    for number, rows in enumerate(stream.sequences):
        bucket = int(stream.plan.bucket[number])
        told = str(stream.buckets[bucket]) if bucket >= 0 else "left out: no reference image, or too few in its bucket"
        yield "+".join(names[row] for row in rows if row >= 0), told
    rules = stream.index["rejected_by"].to_pylist()
    for reason, left in stream.left_out.items():
        for row in np.flatnonzero(left):
            why = f"rejected by {', '.join(rules[row])}" if reason == "rejected by a rule" else reason
            yield names[row], f"left out: {why}"
