"""What a dataset's card tells, counted from its shards and the files beside them; memory grows with films, not with shots."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from animeshooter_dataset import (
    MEMBERS,
    DataError,
    FilmRecord,
    RemovalRecord,
    RightsRecord,
    read_lines,
    read_samples,
    shards,
    splits,
)
from curation.index import index_batches
from curation.stats import Films
from curation.tally import Distribution, Tally

LISTED_VIDEOS = 50
"""Videos named in the card's table; all are in ``rights.jsonl``."""
LISTED_ATTRIBUTIONS = 200
RELEASED_CUTS = "released cuts"
"""The check of films that says how many of a release's boundaries met a detected cut."""
COLUMNS = (
    *("frames", "fps", "height", "width", "has_audio", "characters", "references", "rejected_by", "prologue_or_epilogue"),
    *("style", "talking"),
)
"""Columns of the index that are read."""
LATER = ("cuts_inside",)
"""The same, of columns that an index of schema 1.1 does not have."""


@dataclass
class Holding:
    """What one licence, host or writer holds."""

    films: int = 0
    stories: int = 0
    seconds: float = 0.0


@dataclass
class Ledger:
    """What ``rights.jsonl`` and ``removals.jsonl`` say.

    Attributes:
        states: videos by state.
        listed: lines of the first kept videos.
        attributions: of kept videos, each once, the first of them; ``more_attributions`` counts lines beyond.
        hosts: kept videos by the host of their source; "" where the source is no address, None where there is none.
        uploaders: kept videos by uploader; None where it is not stated.
        retrieved: first and last day on which a kept video was fetched, as far as told.
        removed: videos that were taken out, with stories, shots, audio clips and the last day.
    """

    states: Counter[str] = field(default_factory=Counter)
    listed: list[RightsRecord] = field(default_factory=list)
    attributions: list[str] = field(default_factory=list)
    more_attributions: int = 0
    hosts: Counter[str | None] = field(default_factory=Counter)
    uploaders: Counter[str | None] = field(default_factory=Counter)
    retrieved: tuple[str, str] | None = None
    removed: Counter[str] = field(default_factory=Counter)
    last_removal: str | None = None

    @classmethod
    def of(cls, directory: Path) -> Ledger:
        """Read both files, a line at a time."""
        found, seen = cls(), set[str]()
        for line in read_lines(directory / "rights.jsonl", RightsRecord):
            found.states[line.state] += 1
            if line.state == "kept":
                found._add(line, seen)
        if (directory / "removals.jsonl").is_file():
            for gone in read_lines(directory / "removals.jsonl", RemovalRecord):
                found.removed.update({"videos": 1, "stories": gone.stories, "shots": gone.shots, "audio": gone.audio})
                found.last_removal = max(found.last_removal or "", gone.removed)
        return found

    def _add(self, line: RightsRecord, seen: set[str]) -> None:
        if len(self.listed) < LISTED_VIDEOS:
            self.listed.append(line)
        self.hosts[host_of(line.source)] += 1
        self.uploaders[line.uploader] += 1
        if line.retrieved and re.match(r"\d{4}-\d{2}-\d{2}", line.retrieved):
            day = line.retrieved[:10]
            first, last = self.retrieved or (day, day)
            self.retrieved = (min(first, day), max(last, day))
        if line.attribution and line.attribution not in seen:
            if len(self.attributions) < LISTED_ATTRIBUTIONS:
                seen.add(line.attribution)
                self.attributions.append(line.attribution)
            else:
                self.more_attributions += 1


def host_of(source: str | None) -> str | None:
    """The host of a source; "" where it is a text and no address, None where it is not stated."""
    try:
        return None if not source else (urlsplit(source).hostname or "").removeprefix("www.")
    except ValueError:
        return ""


@dataclass
class Sources:
    """What ``films.jsonl`` says of the kept films as they came, and of what became of all that were named.

    ``parts`` counts by stage the losses that are not whole films: stories, scripts, clips. ``boundaries`` is, of films of a
    release, the number of told boundaries that met a detected cut, and of all; ``others`` counts films whose cuts look like
    those of another video than the annotated one.
    """

    losses: Films
    kept: int = 0
    parts: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0
    short_sides: Distribution = field(default_factory=lambda: Distribution(1))
    variable: int = 0
    silent: int = 0
    boxed: int = 0
    boundaries: tuple[int, int] = (0, 0)
    others: int = 0

    @classmethod
    def of(cls, directory: Path) -> Sources:
        """Read the films and the losses, a line at a time."""
        found = cls(Films.of(directory))
        found.parts.update(found.losses.by_stage)
        for film in read_lines(directory / "films.jsonl", FilmRecord):
            if film.state == "kept":
                found._add(film)
            elif film.stage:
                found.parts[film.stage] -= 1
        return found

    def _add(self, film: FilmRecord) -> None:
        self.kept += 1
        self.seconds += film.duration or 0.0
        self.variable += bool(film.variable_frame_rate)
        self.silent += film.has_audio is False
        if film.width and film.height:
            self.short_sides.add(min(film.width, film.height))
            self.boxed += film.picture is not None and film.picture != (0, 0, film.width, film.height)
        for item in film.evidence:
            if item.check != RELEASED_CUTS:
                continue
            self.others += item.passed is False
            if told := re.search(r"(\d+) of (\d+) told shot boundaries", item.detail):
                self.boundaries = (self.boundaries[0] + int(told[1]), self.boundaries[1] + int(told[2]))


@dataclass
class Facts:
    """All that the card tells of one dataset directory.

    Attributes:
        tally: what the stories' records say.
        splits: films, stories, shots, audio clips and seconds of each split.
        seconds_of: seconds of each film's stories.
        written: stories by who wrote their text and on what terms: (kind, model, licence of the annotation).
        shots: what the index says, counted.
        values: distributions of ``seconds``, ``short_side`` and ``fps`` of the shots.
        heard: audio clips by who wrote their text.
        counted: samples by config and split, of shots as the index has them.
        ledger: rights and removals.
        sources: the films as they came, and what was lost.
    """

    ledger: Ledger
    sources: Sources
    tally: Tally = field(default_factory=Tally)
    splits: dict[str, Counter[str]] = field(default_factory=dict)
    seconds_of: Counter[str] = field(default_factory=Counter)
    written: Counter[tuple[str, str | None, str | None]] = field(default_factory=Counter)
    heard: Counter[tuple[str, str | None, str | None]] = field(default_factory=Counter)
    shots: Counter[str] = field(default_factory=Counter)
    values: dict[str, Distribution] = field(
        default_factory=lambda: {"seconds": Distribution(0.001), "short_side": Distribution(1), "fps": Distribution(0.01)}
    )
    counted: dict[str, dict[str, int]] = field(default_factory=dict)

    @classmethod
    def of(cls, directory: Path) -> Facts:
        """Count a directory in which shards, index and the files of lines stand; media are not read, nor the shards of shots.

        Raises:
            DataError: a part of it is missing or damaged.
        """
        facts = cls(Ledger.of(directory), Sources.of(directory))
        facts.counted = {config: {} for config in MEMBERS}
        for config, add in (("stories", facts._add_story), ("audio", facts._add_clip)):
            for split in splits(directory, config):
                number = 0
                for record in _records(directory, config, split):
                    add(split, record)
                    number += 1
                facts.counted[config][split] = number
        for number in facts.tally.stories_of.values():
            facts.tally.values["stories_per_video"].add(number)
        for split in splits(directory):
            before = facts.shots["all"]
            for batch in index_batches(directory, (*COLUMNS, *_later(directory, split)), [split]):
                facts._add_rows(batch)
            facts.counted["shots"][split] = facts.shots["all"] - before
            facts.splits.setdefault(split, Counter())["shots"] = facts.counted["shots"][split]
        return facts

    def _add_story(self, split: str, story: Mapping[str, Any]) -> None:
        here = self.splits.setdefault(split, Counter())
        here["films"] += story["video"] not in self.tally.stories_of
        here["stories"] += 1
        seconds = story["end_time"] - story["start_time"]
        here["milliseconds"] += round(seconds * 1000)
        self.seconds_of[story["video"]] += seconds
        self.tally.add_story(story)
        self.written[_writer(story)] += 1

    def _add_clip(self, split: str, clip: Mapping[str, Any]) -> None:
        self.splits.setdefault(split, Counter())["audio"] += 1
        self.tally.add_audio(clip)
        self.heard[_writer(clip)] += 1

    def _add_rows(self, batch: pa.RecordBatch) -> None:
        frames, fps = (batch[name].to_numpy(zero_copy_only=False) for name in ("frames", "fps"))
        self.values["seconds"].add_all(frames / fps)
        self.values["fps"].add_all(fps)
        sides = [batch[name].to_numpy(zero_copy_only=False) for name in ("height", "width")]
        self.values["short_side"].add_all(np.minimum(*sides).astype(np.float64))
        yes = {
            "with_sound": batch["has_audio"],
            "with_character": pc.greater(pc.list_value_length(batch["characters"]), 0),
            "with_reference": pc.greater(batch["references"], 0),
            "titles": pc.is_valid(batch["prologue_or_epilogue"]),
            "rejected": pc.greater(pc.list_value_length(batch["rejected_by"]), 0),
            "2D": pc.equal(batch["style"], "2D"),
            "3D": pc.equal(batch["style"], "3D"),
            "talking": batch["talking"],
            "told_talking": pc.is_valid(batch["talking"]),
        }
        if "cuts_inside" in batch.schema.names:
            yes["with_cuts_inside"] = pc.greater(batch["cuts_inside"], 0)
        self.shots["all"] += batch.num_rows
        self.shots.update({name: pc.sum(column).as_py() or 0 for name, column in yes.items()})

    @property
    def minutes(self) -> float:
        """Minutes of all stories."""
        return self.tally.values["story_seconds"].total / 60

    @property
    def words(self) -> int:
        """Words of all storylines and captions of shots."""
        names = ("storyline_words", "narrative_words", "descriptive_words")
        return round(sum(self.tally.values[name].total for name in names))

    def licences(self) -> dict[str | None, Holding]:
        """Films, stories and seconds by the films' licence as it is stated, most footage first."""
        found: dict[str | None, Holding] = {}
        for video, licence in self.tally.videos.items():
            held = found.setdefault(licence, Holding())
            held.films += 1
            held.stories += self.tally.stories_of[video]
            held.seconds += self.seconds_of[video]
        return dict(sorted(found.items(), key=lambda item: (-item[1].seconds, item[0] or "")))

    def annotation_licences(self) -> Counter[str | None]:
        """Stories by the licence of their words and masks; None where none is stated apart from the film's."""
        found: Counter[str | None] = Counter()
        for (_, _, licence), number in self.written.items():
            found[licence] += number
        return found


def _later(directory: Path, split: str) -> list[str]:
    path = directory / "index" / f"{split}.parquet"
    try:
        names = pq.read_schema(path).names
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: not readable as a shard index ({error}); build or download it again") from None
    return [name for name in LATER if name in names]


def _writer(record: Mapping[str, Any]) -> tuple[str, str | None, str | None]:
    by = record["annotator"]
    return by["kind"], by["model"], record.get("annotation_licence")


def _records(directory: Path, config: str, split: str) -> Iterator[dict[str, Any]]:
    for tar in shards(directory, config, split):
        for key, members in read_samples(tar, ("json",)):
            try:
                yield json.loads(members["json"])
            except ValueError as error:
                raise DataError(f"{config}/{tar.name}: {key}: not JSON ({error}); build or download it again") from None
