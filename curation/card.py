"""The dataset card: rendered from ``dataset_card.md`` and from what is in the shards, never from what a build believes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jinja2
import yaml

from animeshooter_dataset import INDEX_SCHEMA, MEMBERS, SCHEMA_VERSION, features, read_rights, read_samples, shards, splits

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


def render_card(directory: Path) -> str:
    """The text of ``README.md`` for a dataset directory, with the YAML that ``load_dataset`` reads."""
    stories = [story for split in splits(directory, "stories") for story in _stories(directory, split)]
    shots = _index(directory)
    rights = [line.model_dump() for line in read_rights(directory)]
    counted = {config: _count(directory, config) for config in MEMBERS}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        front=_front(directory, counted, rights),
        title="AnimeShooter dataset",
        counts=_counts(stories, shots, counted),
        first_split=splits(directory)[0],
        rows=lambda config: ", ".join(f"{split} {number}" for split, number in counted[config].items()),
        spread=_spread(stories),
        annotators=sorted(Counter(story["annotator"]["kind"] for story in stories).items()),
        meaning=lambda kind: ANNOTATORS.get(kind, "an annotator of another version"),
        rights=rights[:LISTED_VIDEOS],
        more_rights=max(0, len(rights) - LISTED_VIDEOS),
        attributions=sorted({_cell(line["attribution"]) for line in rights if line["attribution"]}),
        cell=_cell,
        schema_version=SCHEMA_VERSION,
    )


def _front(directory: Path, counted: dict[str, dict[str, int]], rights: list[dict[str, Any]]) -> str:
    filled = [config for config in MEMBERS if counted[config]]
    licences = {HUB_LICENCES.get(line["licence"] or "", "other") for line in rights}
    head = {
        "pretty_name": "AnimeShooter dataset",
        "license": licences.pop() if len(licences) == 1 else "other",
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


def _stories(directory: Path, split: str) -> Iterable[dict[str, Any]]:
    for tar in shards(directory, "stories", split):
        for _, members in read_samples(tar, ("json",)):
            yield json.loads(members["json"])


def _index(directory: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    paths = [directory / "index" / f"{split}.parquet" for split in splits(directory)]
    return [row for path in paths for row in pq.read_table(path, schema=INDEX_SCHEMA).to_pylist()]


def _count(directory: Path, config: str) -> dict[str, int]:
    return {
        split: sum(1 for tar in shards(directory, config, split) for _ in read_samples(tar, ()))
        for split in splits(directory, config)
    }


def _bytes(directory: Path, config: str, split: str) -> int:
    return sum(path.stat().st_size for path in shards(directory, config, split))


def _counts(stories: list[dict[str, Any]], shots: list[dict[str, Any]], counted: dict[str, dict[str, int]]) -> dict[str, float]:
    return {
        "stories": len(stories),
        "shots": len(shots),
        "audio": sum(counted["audio"].values()),
        "videos": len({story["video"] for story in stories}),
        "minutes": sum(story["end_time"] - story["start_time"] for story in stories) / 60,
        "with_sound": sum(shot["has_audio"] for shot in shots),
        "with_character": sum(bool(shot["characters"]) for shot in shots),
        "with_reference": sum(shot["references"] > 0 for shot in shots),
    }


def _spread(stories: list[dict[str, Any]]) -> list[tuple[str, dict[str, float]]]:
    shots = [shot for story in stories for shot in story["shots"]]
    table = {
        "story, seconds": [story["end_time"] - story["start_time"] for story in stories],
        "shot, seconds": [shot["end_time"] - shot["start_time"] for shot in shots],
        "shots a story": [len(story["shots"]) for story in stories],
        "characters a story": [len(story["characters"]) for story in stories],
        "scenes a story": [len(story["scenes"]) for story in stories],
        "words of a storyline": [len(story["storyline"].split()) for story in stories],
        "words of a narrative caption": [len(shot["narrative_caption"].split()) for shot in shots],
        "words of a descriptive caption": [len(shot["descriptive_caption"].split()) for shot in shots],
    }
    return [
        (name, {"mean": sum(values) / len(values), "least": min(values), "most": max(values)}) for name, values in table.items()
    ]


def _cell(text: str | None) -> str:
    """Text from a film's script as one harmless table cell: no line break, no HTML, no table or link mark-up."""
    if not text:
        return "not stated"
    escaped = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for mark in "\\|[]`*_":
        escaped = escaped.replace(mark, "\\" + mark)
    return escaped
