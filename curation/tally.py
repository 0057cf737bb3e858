"""What a dataset directory holds, counted in one pass: the index, and the stories' records beside it.

Every story's record is read and every row of the index; pictures, clips and sound are not. Shots' own records repeat what these
two say, so of them only a sample is read, at even distances, and checked against the schema like a sample of the stories; a
dataset of at most :data:`CHECKED` shots is checked whole. Memory grows with the number of films and not with that of shots.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from animeshooter_dataset import DataError, ShotRecord, parse, read_manifest, read_samples, shards, splits
from curation.index import index_batches
from curation.rules import RuleTally

MEASURES: dict[str, tuple[str, float | None, float]] = {
    "stories_per_video": ("stories a video", 5.07, 1),
    "story_seconds": ("story, seconds", 56.72, 0.001),
    "shots_per_story": ("shots a story", 14.82, 1),
    "characters_per_story": ("characters a story", 2.26, 1),
    "scenes_per_story": ("scenes a story", 2.20, 1),
    "shot_seconds": ("shot, seconds", 3.85, 0.001),
    "storyline_words": ("words of a storyline", 33.55, 1),
    "narrative_words": ("words of a narrative caption", 10.62, 1),
    "descriptive_words": ("words of a descriptive caption", 30.80, 1),
    "audio_seconds": ("audio clip, seconds", None, 0.001),
}
"""What is measured: a label, the mean that the paper gives (None where it gives none), and how finely values are told apart."""
SCORES: dict[str, tuple[str, float]] = {
    "text_cover": ("share under text", 0.0005),
    "cuts_inside": ("hard cuts inside", 1.0),
    "motion": ("motion, diagonals a second", 0.0005),
    "held_frames": ("share of held frames", 0.005),
    "brightness": ("brightness, of 255", 0.5),
    "contrast": ("contrast, of 255", 0.1),
    "black_frames": ("share of black frames", 0.005),
    "grey_frames": ("share of frames without colour", 0.005),
    "sharpness": ("sharpness, grey levels squared", 0.5),
    "picture_share": ("share of the frame inside black bars", 0.001),
    "cut_confidence": ("confidence of the cut", 0.005),
    "aesthetic": ("aesthetic score", 0.01),
    "speech": ("share with speech", 0.005),
    "music": ("share with music", 0.005),
    "silence": ("share of silence", 0.005),
    "loudness": ("loudness, LUFS", 0.1),
    "peak": ("peak, dB", 0.1),
    "clipping": ("share of clipped samples", 0.0001),
}
"""Scores of shots, columns of the index: a label, and how finely values are told apart."""
WORDS = ("style", "talking", "prologue_or_epilogue")
"""Columns of the index of which each value is counted."""
COLUMNS = (
    *("key", "video", "shard", "mp4_offset", "mp4_size", "json_offset", "json_size", "png_offset", "png_size"),
    *("frames", "fps", "height", "width", "has_audio", "characters", "references", "rejected_by", *WORDS, *SCORES),
)
"""Columns of the index that are read."""
CHECKED = 2000
"""About how many stories, and how many shots, are checked against the schema."""


class Distribution:
    """How values are distributed: each is counted at the nearest multiple of ``step``, so that memory does not grow with them.

    Mean, least and most are exact; quantiles are exact for multiples of ``step``, else within half of it.
    """

    def __init__(self, step: float) -> None:
        self.step, self.counts = step, Counter[int]()
        self.number, self.total, self.least, self.most = 0, 0.0, float("inf"), float("-inf")

    def __bool__(self) -> bool:
        return self.number > 0

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[round(value / self.step)] += 1
        self.number, self.total = self.number + 1, self.total + value
        self.least, self.most = min(self.least, value), max(self.most, value)

    def add_all(self, values: np.ndarray) -> None:
        """Count values; those that are not a number are left out."""
        values = values[np.isfinite(values)]
        if len(values):
            keys, numbers = np.unique(np.rint(values / self.step).astype(np.int64), return_counts=True)
            self.counts.update(dict(zip(keys.tolist(), numbers.tolist())))
            self.number, self.total = self.number + len(values), self.total + float(values.sum())
            self.least, self.most = min(self.least, float(values.min())), max(self.most, float(values.max()))

    def merge(self, other: Distribution) -> None:
        """Count what another has counted with the same step."""
        self.counts.update(other.counts)
        self.number, self.total = self.number + other.number, self.total + other.total
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)

    def values(self) -> tuple[np.ndarray, np.ndarray]:
        """The different values, ascending, and how often each occurs."""
        keys = sorted(self.counts)
        return np.array(keys, np.float64) * self.step, np.array([self.counts[key] for key in keys], np.int64)

    def quantile(self, share: float) -> float:
        """The value below which ``share`` of all lie, between two of them in proportion."""
        values, numbers = self.values()
        ends = np.cumsum(numbers)
        place = share * (self.number - 1)
        low = values[np.searchsorted(ends, int(place), side="right")]
        high = values[np.searchsorted(ends, min(int(place) + 1, self.number - 1), side="right")]
        return min(max(float(low + (high - low) * (place - int(place))), self.least), self.most)


def _distributions() -> dict[str, Distribution]:
    steps = {name: step for name, (_, _, step) in MEASURES.items()} | {name: step for name, (_, step) in SCORES.items()}
    return {name: Distribution(step) for name, step in steps.items()}


@dataclass
class Tally:
    """What was counted in one split, or in several added up.

    Attributes:
        counts: plain numbers by name.
        kinds: how often each value of a property occurs, by property.
        values: distributions of all of :data:`MEASURES` and :data:`SCORES`.
        videos: licence of each video, None where it is not stated.
        stories_of: number of stories of each video.
        rules: which shots rules reject.
    """

    counts: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    values: dict[str, Distribution] = field(default_factory=_distributions)
    videos: dict[str, str | None] = field(default_factory=dict)
    stories_of: Counter[str] = field(default_factory=Counter)
    rules: RuleTally = field(default_factory=RuleTally)

    def add_story(self, story: Mapping[str, Any]) -> None:
        """Count a story, from its record as JSON."""
        self.counts["stories"] += 1
        self.videos[story["video"]] = story["licence"]
        self.stories_of[story["video"]] += 1
        self.values["story_seconds"].add(story["end_time"] - story["start_time"])
        self.values["storyline_words"].add(len(story["storyline"].split()))
        for name in ("shots", "characters", "scenes"):
            self.values[f"{name}_per_story"].add(len(story[name]))
        by = story["annotator"]
        self.kinds["annotators"][by["kind"] + (f" ({by['model']})" if by["model"] else "")] += 1
        shown: dict[str, set[str]] = defaultdict(set)
        for reference in story["references"]:
            shown[reference["character"]].add(reference["shot"])
        self.counts["characters"] += len(story["characters"])
        self.counts["characters_never_referenced"] += sum(who["id"] not in shown for who in story["characters"])
        for shot in story["shots"]:
            self.kinds["transitions"][shot["transition_in"]] += 1
            self.values["narrative_words"].add(len(shot["narrative_caption"].split()))
            self.values["descriptive_words"].add(len(shot["descriptive_caption"].split()))
            lacking = any(not shown[name] - {shot["key"]} for name in shot["characters"])
            self.counts["shots_missing_a_reference"] += lacking

    def add_rows(self, batch: pa.RecordBatch) -> None:
        """Count shots, from rows of the index."""
        self.counts["shots"] += batch.num_rows
        for name in SCORES:
            self.values[name].add_all(_numbers(batch, name))
        seconds = _numbers(batch, "frames") / _numbers(batch, "fps")
        self.values["shot_seconds"].add_all(seconds)
        for name in WORDS:
            self.kinds[name].update(str(value) for value in batch[name].to_pylist() if value is not None)
        sizes = zip(batch["width"].to_pylist(), batch["height"].to_pylist())
        self.kinds["sizes"].update(f"{width}x{height}" for width, height in sizes)
        self.kinds["fps"].update(f"{fps:.2f}" for fps in batch["fps"].to_pylist())
        self.counts["shots_with_sound"] += sum(batch["has_audio"].to_pylist())
        self.counts["shots_with_character"] += sum(map(bool, batch["characters"].to_pylist()))
        self.counts["shots_with_reference"] += sum(map(bool, batch["references"].to_pylist()))
        cards = batch["prologue_or_epilogue"].to_pylist()
        rejected = [names or () for names in batch["rejected_by"].to_pylist()]
        for video, length, names, card in zip(batch["video"].to_pylist(), seconds.tolist(), rejected, cards):
            self.rules.add(video, length, names)
            self.counts["cards_not_rejected"] += card is not None and not names

    def add_audio(self, clip: Mapping[str, Any]) -> None:
        """Count a clip of the audio subset, from its record as JSON."""
        self.counts["audio"] += 1
        self.values["audio_seconds"].add(clip["end_time"] - clip["start_time"])
        self.kinds["sound_types"][clip["type"]] += 1

    def add_checked(self, shot: ShotRecord) -> None:
        """Count a shot whose record was read; a reference leaks if it shows a frame of the very shot that it is one for."""
        self.counts["shots_checked"] += 1
        self.counts["references"] += len(shot.references)
        own = sum(shot.start_frame <= reference.frame < shot.end_frame for reference in shot.references)
        self.counts["references_from_own_shot"] += own

    def merge(self, other: Tally) -> None:
        """Add what another split counted."""
        self.counts.update(other.counts)
        for name, kinds in other.kinds.items():
            self.kinds[name].update(kinds)
        for name, values in other.values.items():
            self.values[name].merge(values)
        self.videos |= other.videos
        self.stories_of.update(other.stories_of)
        self.rules.merge(other.rules)


def _numbers(batch: pa.RecordBatch, name: str) -> np.ndarray:
    """A column as float64, NaN where it holds no value."""
    return batch[name].cast(pa.float64()).to_numpy(zero_copy_only=False)


@dataclass(frozen=True)
class Seen:
    """A story as :func:`gather` passes it on: its record as JSON, its shots' rows of the index, and the tar it lies in."""

    story: Mapping[str, Any]
    rows: Sequence[Mapping[str, Any]]
    tar: Path


def gather(
    directory: Path,
    each: Callable[[Seen], None] | None = None,
    clip: Callable[[str], None] = lambda key: None,
    progress: Callable[[str], None] = lambda name: None,
) -> dict[str, Tally]:
    """Count what a dataset directory holds; returns a tally a split.

    Args:
        directory: the dataset.
        each: called with every story and its rows of the index.
        clip: called with the key of every audio clip.
        progress: called with the name of each shard before it is read.

    Raises:
        DataError: it is no dataset directory, or a part of it is damaged or disagrees with another.
    """
    read_manifest(directory)
    if not splits(directory):
        raise DataError(f"{directory}: it has no shots; build the dataset again")
    tallies: dict[str, Tally] = {}
    for split in splits(directory):
        tally = tallies[split] = Tally()
        _gather_stories(directory, split, tally, each, progress)
        for tar in shards(directory, "audio", split):
            progress(f"audio/{tar.name}")
            for key, members in read_samples(tar, ("json",)):
                _light(tally.add_audio, members["json"], "audio", f"audio/{tar.name}: {key}")
                clip(key)
        for number in tally.stories_of.values():
            tally.values["stories_per_video"].add(number)
    return tallies


def _gather_stories(
    directory: Path, split: str, tally: Tally, each: Callable[[Seen], None] | None, progress: Callable[[str], None]
) -> None:
    rows = _rows(directory, split, tally)
    every = _distance(directory, split)
    seen = due = 0
    for tar in shards(directory, "stories", split):
        progress(f"stories/{tar.name}")
        for key, members in read_samples(tar, ("json",)):
            where = f"stories/{tar.name}: {key}"
            if seen >= due:
                parse("stories", members["json"], where)
                due = seen + every
            story = _light(tally.add_story, members["json"], "stories", where)
            told = [shot["key"] for shot in story["shots"]]
            found = list(islice(rows, len(told)))
            seen += len(told)
            if [row["key"] for row in found] != told:
                raise DataError(f"{directory}: {where}: the index of '{split}' lists other shots; build or download it again")
            if each:
                each(Seen(story, found, tar))
    if next(rows, None) is not None:
        raise DataError(f"{directory}: the index of '{split}' lists shots of no story; build or download it again")


def _distance(directory: Path, split: str) -> int:
    """Shots from one that is checked to the next."""
    return max(1, pq.read_metadata(directory / "index" / f"{split}.parquet").num_rows // CHECKED)


def _light(count: Callable[[Mapping[str, Any]], None], blob: bytes, config: str, where: str) -> Mapping[str, Any]:
    """Count a record from its JSON alone; one that does not have what is counted is checked, to say what is wrong with it."""
    try:
        record = json.loads(blob)
        count(record)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        parse(config, blob, where)
        raise DataError(f"{where}: cannot be read ({error}); build or download it again") from None
    return record


def _rows(directory: Path, split: str, tally: Tally) -> Iterator[Mapping[str, Any]]:
    """The rows of a split's index, counted, with their shards looked at: whole to the last byte, and some records checked."""
    every, number = _distance(directory, split), 0
    shard, size = "", 0
    for batch in index_batches(directory, COLUMNS, [split]):
        tally.add_rows(batch)
        for row in batch.to_pylist():
            if row["shard"] != shard:
                shard = row["shard"]
                size = _size(directory, shard)
            if any(row[f"{member}_offset"] + row[f"{member}_size"] > size for member in ("mp4", "json", "png")):
                raise DataError(f"{directory / shard}: ends before {row['key']} does; build or download it again")
            if number % every == 0:
                tally.add_checked(_checked(directory / shard, row))
            number += 1
            yield row


def _size(directory: Path, shard: str) -> int:
    path = directory / shard
    if not path.is_file() or path.parent != directory / "shots":
        raise DataError(f"{path}: named in the index but not there; build or download the dataset again")
    return path.stat().st_size


def _checked(tar: Path, row: Mapping[str, Any]) -> ShotRecord:
    with tar.open("rb") as file:
        file.seek(row["json_offset"])
        blob = file.read(row["json_size"])
    where = f"shots/{tar.name}: {row['key']}"
    record = parse("shots", blob, where)
    if not isinstance(record, ShotRecord) or record.key != row["key"]:
        raise DataError(f"{where}: another record lies where the index says; build or download it again")
    return record
