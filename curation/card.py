"""The dataset card: rendered from ``dataset_card.md`` and from what is in the shards, never from what a build believes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.compute as pc
import yaml

from animeshooter_dataset import (
    MEMBERS,
    SCHEMA_VERSION,
    RightsRecord,
    features,
    read_lines,
    read_samples,
    shards,
    splits,
)
from curation.index import index_batches
from curation.rules import rules_from

TEMPLATE = Path(__file__).with_name("dataset_card.md")
LISTED_VIDEOS = 50
"""Videos named in the card's rights table; all are in ``rights.jsonl``."""
HUB_LICENCES = {
    "CC0-1.0": "cc0-1.0",
    "CC BY 3.0": "cc-by-3.0",
    "CC BY 4.0": "cc-by-4.0",
    "CC BY-SA 4.0": "cc-by-sa-4.0",
    "CC BY-NC 4.0": "cc-by-nc-4.0",
}
"""Names of licences as the Hub spells them; any other, or a mix, is ``other``."""
ANNOTATORS = {
    "sidecar": "written by the film's maker in a script beside the film",
    "openai": "written by a vision language model that was asked over an API",
    "measure": "made without any model; the text says only what was measured in the pictures",
}


@dataclass
class Spread:
    """Mean, least and most of numbers that are seen once."""

    total: float = 0.0
    count: int = 0
    least: float = float("inf")
    most: float = float("-inf")

    def add(self, value: float) -> None:
        """See one more."""
        self.total, self.count = self.total + value, self.count + 1
        self.least, self.most = min(self.least, value), max(self.most, value)

    @property
    def mean(self) -> float:
        """Their mean."""
        return self.total / self.count


@dataclass
class _Told:
    """What the stories' records tell, summed up."""

    annotators: Counter[str] = field(default_factory=Counter)
    videos: set[str] = field(default_factory=set)
    spread: dict[str, Spread] = field(default_factory=dict)

    def add(self, story: dict[str, Any]) -> None:
        """Count one story."""
        self.annotators[story["annotator"]["kind"]] += 1
        self.videos.add(story["video"])
        self._add("story, seconds", story["end_time"] - story["start_time"])
        for shot in story["shots"]:
            self._add("shot, seconds", shot["end_time"] - shot["start_time"])
        for name in ("shots", "characters", "scenes"):
            self._add(f"{name} a story", len(story[name]))
        self._add("words of a storyline", len(story["storyline"].split()))
        for name in ("narrative", "descriptive"):
            for shot in story["shots"]:
                self._add(f"words of a {name} caption", len(shot[f"{name}_caption"].split()))

    def _add(self, name: str, value: float) -> None:
        self.spread.setdefault(name, Spread()).add(value)


@dataclass
class _Rights:
    """What the rights ledger tells of the videos that are in the dataset, summed up; the first lines are kept."""

    listed: list[RightsRecord] = field(default_factory=list)
    count: int = 0
    licences: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, directory: Path) -> _Rights:
        """Read the ledger."""
        found = cls()
        for line in read_lines(directory / "rights.jsonl", RightsRecord):
            if line.state == "kept":
                found.count += 1
                found.licences.add(HUB_LICENCES.get(line.licence or "", "other"))
                if len(found.listed) < LISTED_VIDEOS:
                    found.listed.append(line)
        return found


def render_card(directory: Path, manifest: Mapping[str, Any]) -> str:
    """The text of ``README.md`` for a dataset directory, with the YAML that ``load_dataset`` reads.

    Memory does not grow with the dataset: the stories' records are read once, one at a time.

    Args:
        directory: shards, index and rights must stand in it.
        manifest: what its manifest says, or will say; ``files`` is not looked at.
    """
    settings = manifest.get("settings", {})
    told, rights = _Told(), _Rights.of(directory)
    for story in _stories(directory):
        told.add(story)
    counted = {config: _count(directory, config) for config in MEMBERS}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        front=_front(directory, counted, rights.licences),
        title="AnimeShooter dataset",
        counts=_counts(directory, told, counted),
        first_split=splits(directory)[0],
        rows=lambda config: ", ".join(f"{split} {number}" for split, number in counted[config].items()),
        spread=list(told.spread.items()),
        annotators=sorted(told.annotators.items()),
        meaning=lambda kind: ANNOTATORS.get(kind, "an annotator of another version"),
        rules=[
            {
                "name": rule.name,
                "says": rule.says(),
                "why": rule.why,
                "count": manifest.get("rejected_by", {}).get(rule.name, 0),
            }
            for rule in rules_from(manifest.get("rules", []), "manifest.json")
        ],
        dropped=sorted(manifest.get("dropped", {}).items()),
        judged=bool(settings.get("judge")),
        segmenter=settings.get("references", {}).get("segmenter", "classical"),
        rights=rights.listed,
        more_rights=rights.count - len(rights.listed),
        attributions=sorted({_cell(line.attribution) for line in rights.listed if line.attribution}),
        cell=_cell,
        schema_version=SCHEMA_VERSION,
    )


def _front(directory: Path, counted: dict[str, dict[str, int]], licences: set[str]) -> str:
    filled = [config for config in MEMBERS if counted[config]]
    head = {
        "pretty_name": "AnimeShooter dataset",
        "license": next(iter(licences)) if len(licences) == 1 else "other",
        "task_categories": ["text-to-video", "image-to-video"],
        "tags": ["animation", "multi-shot", "storytelling", "webdataset"],
        "configs": [
            {
                "config_name": config,
                "data_files": [{"split": split, "path": f"{config}/{split}-*.tar"} for split in counted[config]],
                **({"default": True} if config == "shots" else {}),
            }
            for config in filled
        ],
        "dataset_info": [
            {
                "config_name": config,
                "features": features(config)._to_yaml_list(),
                "splits": [
                    {"name": split, "num_bytes": _bytes(directory, config, split), "num_examples": number}
                    for split, number in counted[config].items()
                ],
            }
            for config in filled
        ],
    }
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _stories(directory: Path) -> Iterator[dict[str, Any]]:
    for split in splits(directory, "stories"):
        for tar in shards(directory, "stories", split):
            for _, members in read_samples(tar, ("json",)):
                yield json.loads(members["json"])


def _count(directory: Path, config: str) -> dict[str, int]:
    return {
        split: sum(1 for tar in shards(directory, config, split) for _ in read_samples(tar, ()))
        for split in splits(directory, config)
    }


def _bytes(directory: Path, config: str, split: str) -> int:
    return sum(path.stat().st_size for path in shards(directory, config, split))


def _counts(directory: Path, told: _Told, counted: dict[str, dict[str, int]]) -> dict[str, float]:
    columns = ["has_audio", "characters", "references", "rejected_by", "prologue_or_epilogue"]
    whole: Counter[str] = Counter()
    for batch in index_batches(directory, columns, splits(directory)):
        whole["shots"] += batch.num_rows
        whole["with_sound"] += pc.sum(batch["has_audio"]).as_py() or 0
        whole["with_character"] += pc.sum(pc.greater(pc.list_value_length(batch["characters"]), 0)).as_py() or 0
        whole["with_reference"] += pc.sum(pc.greater(batch["references"], 0)).as_py() or 0
        whole["titles"] += batch.num_rows - batch["prologue_or_epilogue"].null_count
        whole["rejected"] += pc.sum(pc.greater(pc.list_value_length(batch["rejected_by"]), 0)).as_py() or 0
    return {
        **{name: whole[name] for name in ("shots", "with_sound", "with_character", "with_reference", "rejected", "titles")},
        "stories": sum(counted["stories"].values()),
        "audio": sum(counted["audio"].values()),
        "videos": len(told.videos),
        "minutes": (told.spread["story, seconds"].total / 60) if told.spread else 0.0,
    }


def _cell(text: str | None) -> str:
    """Text from a film's script as one harmless table cell: no line break, no HTML, no table or link mark-up."""
    if not text:
        return "not stated"
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\|[]`*_":
        escaped = escaped.replace(mark, "\\" + mark)
    return escaped
