"""``animeshooter stats DIR``: what a dataset directory holds, counted from its records, beside the paper's own numbers."""

from __future__ import annotations

import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np

from animeshooter_dataset import (
    MEMBERS,
    AudioRecord,
    DataError,
    Record,
    ShotRecord,
    StoryRecord,
    parse,
    read_index,
    read_manifest,
    read_rights,
    read_samples,
    shards,
    splits,
)

PAPER_SOURCE = "the AnimeShooter paper (arXiv 2506.03126), of its own dataset"
PAPER_COUNTS = {"videos": 29_000, "stories": 148_000, "shots": 2_200_000}
"""The size of the paper's dataset, rounded there to thousands."""
MEASURES: dict[str, tuple[str, float | None]] = {
    "stories_per_video": ("stories a video", 5.07),
    "story_seconds": ("story, seconds", 56.72),
    "shots_per_story": ("shots a story", 14.82),
    "characters_per_story": ("characters a story", 2.26),
    "scenes_per_story": ("scenes a story", 2.20),
    "shot_seconds": ("shot, seconds", 3.85),
    "storyline_words": ("words of a storyline", 33.55),
    "narrative_words": ("words of a narrative caption", 10.62),
    "descriptive_words": ("words of a descriptive caption", 30.80),
    "audio_seconds": ("audio clip, seconds", None),
}
"""What is measured: a label, and the mean that the paper gives (None where it gives none)."""
QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}
FILM_STAGES = ("collect", "curate")
"""Stages at which a drop loses a whole film; at others it loses a story, a clip, or a script."""


@dataclass
class Tally:
    """What was counted in one split, or in several added up.

    Attributes:
        counts: plain numbers by name.
        kinds: how often each value of a property occurs, by property.
        values: every value of each of :data:`MEASURES`.
        videos: licence of each video, None where it is not stated.
        stories_of: number of stories of each video.
    """

    counts: Counter[str] = field(default_factory=Counter)
    kinds: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    values: dict[str, array] = field(default_factory=lambda: {name: array("d") for name in MEASURES})
    videos: dict[str, str | None] = field(default_factory=dict)
    stories_of: Counter[str] = field(default_factory=Counter)

    def add_story(self, story: StoryRecord) -> None:
        """Count a story."""
        self.counts["stories"] += 1
        self.videos[story.video] = story.licence
        self.stories_of[story.video] += 1
        seconds, words = story.end_time - story.start_time, len(story.storyline.split())
        for name, value in (("story_seconds", seconds), ("shots_per_story", len(story.shots)), ("storyline_words", words)):
            self.values[name].append(value)
        self.values["characters_per_story"].append(len(story.characters))
        self.values["scenes_per_story"].append(len(story.scenes))
        model = f" ({story.annotator.model})" if story.annotator.model else ""
        self.count("annotators", story.annotator.kind + model)
        self.counts["characters"] += len(story.characters)
        seen = {reference.character for reference in story.references}
        self.counts["characters_never_referenced"] += len({character.id for character in story.characters} - seen)

    def add_shot(self, shot: ShotRecord) -> None:
        """Count a shot; a reference leaks if it shows a frame of the very shot that it is a reference for."""
        self.counts["shots"] += 1
        self.values["shot_seconds"].append(shot.end_time - shot.start_time)
        self.values["narrative_words"].append(len(shot.narrative_caption.split()))
        self.values["descriptive_words"].append(len(shot.descriptive_caption.split()))
        self.count("transitions", shot.transition_in)
        self.count("sizes", f"{shot.width}x{shot.height}")
        self.count("fps", f"{shot.fps:.2f}")
        if shot.prologue_or_epilogue:
            self.count("prologue_epilogue", shot.prologue_or_epilogue)
        self.counts["shots_with_sound"] += shot.has_audio
        self.counts["shots_with_character"] += bool(shot.characters)
        self.counts["shots_with_reference"] += bool(shot.references)
        self.counts["shots_missing_a_reference"] += bool(shot.characters_without_reference)
        self.counts["references"] += len(shot.references)
        own = sum(shot.start_frame <= reference.frame < shot.end_frame for reference in shot.references)
        self.counts["references_from_own_shot"] += own

    def add_audio(self, clip: AudioRecord) -> None:
        """Count a clip of the audio subset."""
        self.counts["audio"] += 1
        self.values["audio_seconds"].append(clip.end_time - clip.start_time)
        self.count("sound_types", clip.type)

    def add(self, other: Tally) -> None:
        """Add what another split counted."""
        self.counts.update(other.counts)
        for name, kinds in other.kinds.items():
            self.kinds[name].update(kinds)
        for name, values in other.values.items():
            self.values[name].extend(values)
        self.videos |= other.videos
        self.stories_of.update(other.stories_of)

    def count(self, name: str, value: str) -> None:
        """Count one occurrence of ``value`` of a property."""
        self.kinds[name][value] += 1


def gather(directory: Path, each: Callable[[Record], None] = lambda record: None) -> dict[str, Tally]:
    """Read every record of a dataset directory once, no clip and no picture; returns a tally a split.

    Args:
        directory: the dataset.
        each: called with every record, for what else one wants to know of it.

    Raises:
        DataError: it is no dataset directory, or a shard of it is damaged.
    """
    if not splits(directory):
        read_manifest(directory)
        raise DataError(f"{directory}: it has no shots; build the dataset again")
    tallies: dict[str, Tally] = {}
    for split in splits(directory):
        tally = tallies[split] = Tally()
        promised = read_index(directory, split).num_rows
        for config in MEMBERS:
            for tar in shards(directory, config, split):
                for key, members in read_samples(tar, ("json",)):
                    record = parse(config, members["json"], f"{config}/{tar.name}: {key}")
                    _add(tally, record)
                    each(record)
        told = int(sum(tally.values["shots_per_story"]))
        if not tally.counts["shots"] == told == promised:
            found = f"{tally.counts['shots']} shots, the stories tell of {told}, the index of {promised}"
            raise DataError(f"{directory}: the shards of '{split}' hold {found}; build or download it again")
        tally.values["stories_per_video"].extend(tally.stories_of.values())
    return tallies


def _add(tally: Tally, record: Record) -> None:
    if isinstance(record, ShotRecord):
        tally.add_shot(record)
    elif isinstance(record, StoryRecord):
        tally.add_story(record)
    else:
        tally.add_audio(cast(AudioRecord, record))


def stats(directory: Path) -> dict[str, Any]:
    """Numbers of a dataset directory, ready for JSON and the same for the same bytes.

    Raises:
        DataError: it is no dataset directory, or a part of it is damaged.
    """
    return summarise(directory, gather(directory))


def summarise(directory: Path, tallies: Mapping[str, Tally]) -> dict[str, Any]:
    """Numbers of what was gathered from a directory, its manifest and its rights; see :func:`stats`."""
    manifest = read_manifest(directory)
    whole = whole_of(tallies)
    means = {name: paper for name, (_, paper) in MEASURES.items() if paper is not None}
    return {
        "dataset": directory.resolve().name,
        "schema_version": manifest["schema_version"],
        "whole": _numbers(whole),
        "splits": {split: _numbers(tally) for split, tally in tallies.items()},
        "paper": {"source": PAPER_SOURCE, "counts": PAPER_COUNTS, "means": means},
        "rights": dict(sorted(Counter(line.state for line in read_rights(directory)).items())),
        "dropped": _dropped(directory, manifest),
    }


def whole_of(tallies: Mapping[str, Tally]) -> Tally:
    """All splits added up."""
    whole = Tally()
    for tally in tallies.values():
        whole.add(tally)
    return whole


def _numbers(tally: Tally) -> dict[str, Any]:
    counts = tally.counts
    return {
        "videos": len(tally.videos),
        "stories": counts["stories"],
        "shots": counts["shots"],
        "audio_clips": counts["audio"],
        "hours": round(sum(tally.values["story_seconds"]) / 3600, 4),
        "distributions": {name: distribution(values) for name, values in tally.values.items() if values},
        "transitions": _sorted(tally.kinds["transitions"]),
        "prologue_epilogue": {name: tally.kinds["prologue_epilogue"][name] for name in ("prologue", "epilogue")},
        "annotators": _sorted(tally.kinds["annotators"]),
        "licences": _sorted(Counter(licence or "not stated" for licence in tally.videos.values())),
        "references": {
            "shots_with_character": counts["shots_with_character"],
            "shots_with_reference": counts["shots_with_reference"],
            "shots_without_reference": counts["shots"] - counts["shots_with_reference"],
            "shots_missing_a_reference": counts["shots_missing_a_reference"],
            "characters": counts["characters"],
            "characters_never_referenced": counts["characters_never_referenced"],
        },
        "leakage": {"references": counts["references"], "from_own_shot": counts["references_from_own_shot"]},
        "shots_with_sound": counts["shots_with_sound"],
        "sizes": _sorted(tally.kinds["sizes"]),
        "fps": _sorted(tally.kinds["fps"]),
        "sound_types": _sorted(tally.kinds["sound_types"]),
    }


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    """Most frequent first, equals by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def distribution(values: Sequence[float]) -> dict[str, float]:
    """Mean, least, most and the quantiles of :data:`QUANTILES`, rounded to four places."""
    numbers = np.asarray(values, dtype=np.float64)
    found = {"mean": numbers.mean(), "least": numbers.min(), "most": numbers.max()}
    found |= {name: np.quantile(numbers, share) for name, share in QUANTILES.items()}
    return {name: round(float(value), 4) for name, value in found.items()}


def _dropped(directory: Path, manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What the manifest says was dropped: by stage, by reason without its numbers and file name, and line by line."""
    try:
        lines = [{name: str(loss[name]) for name in ("film", "stage", "reason")} for loss in manifest.get("dropped", [])]
    except (TypeError, KeyError) as error:
        raise DataError(f"{directory / 'manifest.json'}: 'dropped' is not as declared ({error}); build again") from None
    return {
        "films": sum(loss["stage"] in FILM_STAGES for loss in lines),
        "by_stage": _sorted(Counter(loss["stage"] for loss in lines)),
        "by_reason": _sorted(Counter(_kind(loss) for loss in lines)),
        "lines": lines,
    }


def _kind(loss: Mapping[str, str]) -> str:
    reason = loss["reason"].removeprefix(f"{loss['film']}: ")
    return f"{loss['stage']}: {re.sub(r'[0-9]+([.][0-9]+)?', 'N', reason)}"


def stats_text(found: Mapping[str, Any]) -> str:
    """The numbers of :func:`stats` as a table for the terminal."""
    whole, paper = found["whole"], found["paper"]
    lines = [f"{found['dataset']}, schema {found['schema_version']}", ""]
    rows = [["", "videos", "stories", "shots", "audio clips", "hours"]]
    for split, numbers in [*found["splits"].items(), ("whole", whole)][: None if len(found["splits"]) > 1 else 1]:
        counts = [str(numbers[name]) for name in ("videos", "stories", "shots", "audio_clips")]
        rows.append([split, *counts, f"{numbers['hours']:.3f}"])
    lines += [*_table(rows), ""]
    columns = ("mean", "least", *QUANTILES, "most")
    rows = [["", *columns, "paper's mean"]]
    for name, (label, _) in MEASURES.items():
        if name in whole["distributions"]:
            values = [f"{whole['distributions'][name][column]:.2f}" for column in columns]
            rows.append([label, *values, f"{paper['means'][name]:.2f}" if name in paper["means"] else "-"])
    lines += [*_table(rows), f"paper's mean: as reported by {paper['source']}", ""]
    rows = [[label, text] for label, text in facts(found)]
    width = max(len(label) for label, _ in rows)
    lines += [f"{label:<{width}}  {text}" for label, text in rows]
    for loss in found["dropped"]["lines"]:
        lines.append(f"{'':<{width}}  {loss['stage']}: {loss['reason']}")
    return "\n".join("".join(mark if mark.isprintable() else " " for mark in line) for line in lines)


def facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What else :func:`stats` counted, as pairs of a label and one line."""
    whole, dropped = found["whole"], found["dropped"]
    references, leakage, shots = whole["references"], whole["leakage"], whole["shots"]
    never = f"{references['characters_never_referenced']} of {references['characters']}"
    pairs = [
        ("transition into a shot", _spelt(whole["transitions"])),
        ("prologue, epilogue", _spelt(whole["prologue_epilogue"])),
        ("annotators, by story", _spelt(whole["annotators"])),
        ("licences, by video", _spelt(whole["licences"])),
        ("shots with a character", f"{references['shots_with_character']} of {shots}"),
        ("shots with a reference", f"{references['shots_with_reference']} of {shots}"),
        (
            "shots lacking a character's reference",
            f"{references['shots_missing_a_reference']} of {references['shots_with_character']}",
        ),
        ("characters never referenced", never),
        ("leakage", f"{leakage['from_own_shot']} of {leakage['references']} references come from the shot itself"),
        ("shots with sound", f"{whole['shots_with_sound']} of {shots}"),
        ("clip sizes, by shot", _spelt(whole["sizes"])),
        ("frames a second, by shot", _spelt(whole["fps"])),
        ("sounds, by audio clip", _spelt(whole["sound_types"])),
        ("rights, by video", _spelt(found["rights"])),
        ("dropped, by stage", _spelt(dropped["by_stage"])),
    ]
    return [(label, text or "none") for label, text in pairs]


def _spelt(counts: Mapping[str, int], most: int = 8) -> str:
    shown = [f"{name} {number}" for name, number in counts.items()][:most]
    return ", ".join(shown) + (f" and {len(counts) - most} more" if len(counts) > most else "")


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            cell.ljust(width) if not column else cell.rjust(width) for column, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    ]
