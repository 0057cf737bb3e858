"""The dataset card: a datasheet rendered from ``dataset_card.md`` and from what is in the shards and beside them.

It follows Gebru et al., "Datasheets for Datasets" (arXiv 1803.09010): motivation, composition, collection, processing, uses,
distribution, maintenance. No number in it is a build's belief: all are counted from the directory when the card is rendered.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import yaml

from animeshooter_dataset import MEMBERS, SCHEMA_VERSION, features, shards, splits
from curation.availability import availability_summary
from curation.card_facts import Facts
from curation.card_text import cell, hub_licence
from curation.rules import rules_from
from curation.tally import MEASURES

__all__ = ["cell", "hub_licence", "render_card"]

NOTHING_LEFT = """# Nothing is left of this dataset

Every video of it was withdrawn; `removals.jsonl` says when. `rights.jsonl` stays, so that a later build at this place knows
what it must not use.
"""
"""The card of a dataset of which the last film went."""
TEMPLATE = Path(__file__).with_name("dataset_card.md")
WRITERS = {
    "sidecar": ("came with the film, in a script beside it", "the film's own licence"),
    "openai": ("written by a vision language model that was asked over an API", "none stated apart from the film's"),
    "local": ("written by a vision language model run by the builder", "none stated apart from the film's"),
    "release": ("written by a vision language model for the official AnimeShooter release", "the release's"),
    "measure": (
        "made without any model: it says only what was measured in the pictures, names no character and tells no plot",
        "none stated; measurements made by the builder's tool",
    ),
}
"""Who writes text: what that means, and on what terms the text is where its record states none."""
CREATORS = {"sidecar": "found"}
"""Writers in the Hub's words; all others are machines."""
LANGUAGES = dict(
    pair.split("=")
    for pair in (
        "english=en chinese=zh mandarin=zh japanese=ja korean=ko german=de french=fr spanish=es portuguese=pt italian=it "
        "russian=ru dutch=nl polish=pl turkish=tr ukrainian=uk arabic=ar hindi=hi indonesian=id vietnamese=vi thai=th"
    ).split()
)
"""ISO codes of the languages that a build is asked to write in, by their English names."""
SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"), (10**7, "1M<n<10M"))
LISTED = 20
"""Licences, hosts, writers and models that the card names; the rest are summed up."""
GATE = (
    "Each film in this dataset keeps its own licence. Ask for access only if you will use and pass on the clips within those "
    "licences alone, and delete what is withdrawn."
)
"""What is shown to who asks for access, where access is gated and no other text is given."""
CHANGES = (
    (
        "1.2",
        "the licence of words and masks beside the film's (`annotation_licence`), `cuts_inside`, withdrawn films, "
        "`removals.jsonl`, `availability.jsonl`",
    ),
    ("1.1", "`films.jsonl` and `dropped.jsonl`, scores of picture and sound, rules, black bars"),
    ("1.0", "first layout: shots, stories, audio, index, rights"),
)


def render_card(directory: Path, manifest: Mapping[str, Any]) -> str:
    """The text of ``README.md`` for a dataset directory, with the YAML that ``load_dataset`` and the Hub read.

    The same directory gives the same text. Memory grows with the number of films alone; no media are read.

    Args:
        directory: shards, index and the files of lines must stand in it.
        manifest: what its manifest says, or will say; ``files`` is not looked at. Besides the settings, the text follows
            ``contact`` (where rights holders write to), ``repository`` (``org/name``) and ``gated`` (True, or what is asked:
            ``prompt`` and ``fields``).

    Raises:
        DataError: a part of the directory is missing or damaged.
    """
    if not any(splits(directory, config) for config in MEMBERS):
        return NOTHING_LEFT
    facts = Facts.of(directory)
    settings = manifest.get("settings") or {}
    schema = manifest.get("schema_version", SCHEMA_VERSION)
    repository = _repository(manifest)
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, keep_trailing_newline=True, autoescape=False, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"n": lambda value: f"{value:,}", "number": _number, "cell": cell, "share": _share}
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        front=_front(directory, facts, manifest, repository),
        facts=facts,
        settings=_settings(settings),
        counts=_counts(facts),
        spread=_spread(facts),
        sizes={config: _megabytes(directory, config, facts) for config in MEMBERS},
        licences=_first(facts.licences()),
        terms=_first(facts.annotation_licences()),
        hub_licence=hub_licence,
        writers=_writers(facts.written),
        hearers=_writers(facts.heard),
        hosts=_first(facts.ledger.hosts),
        rules=_rules(manifest),
        lost=dict(list(facts.sources.losses.numbers()["lost_by"].items())[:LISTED]),
        availability=availability_summary(directory),
        release=manifest.get("release") or None,
        released="release" in _kinds(facts),
        parts=[(stage, number) for stage, number in sorted(facts.sources.parts.items()) if number > 0][:LISTED],
        reach=_reach(manifest.get("contact") or settings.get("contact"), repository),
        repository=repository,
        name=repository or "animeshooter",
        first_split=next(iter(facts.splits), "train"),
        schema_version=schema,
        tag=manifest.get("version") or f"v{schema}.0",
        rows=lambda config: ", ".join(f"{split} {number:,}" for split, number in facts.counted[config].items()),
        first=_first,
        languages=_told_languages(facts, settings),
        non_commercial=_non_commercial(facts),
        changes=CHANGES,
        states=STATES,
    )


STATES = {
    "kept": "its footage is in the dataset, on the terms below",
    "withdrawn": "its rights holder does not want it used: nothing of it is here, and builds with this list leave it out",
    "dropped": "it was looked at and not taken: nothing of it is here; `films.jsonl` says why",
    "unavailable": "it could not be had: nothing of it is here",
}
"""What a state in ``rights.jsonl`` means to a rights holder."""


def _repository(manifest: Mapping[str, Any]) -> str | None:
    name = manifest.get("repository")
    return name if isinstance(name, str) and re.fullmatch(r"[\w.-]{1,96}/[\w.-]{1,96}", name) else None


def _reach(contact: Any, repository: str | None) -> str:
    """Where a rights holder writes to."""
    if contact:
        return cell(str(contact))
    if repository:
        return f"the [discussions of this repository](https://huggingface.co/datasets/{repository}/discussions)"
    return "the holder of this dataset (on the Hub: the discussions of its repository, the tab Community)"


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that limits and biases follow from; None where the manifest does not say."""

    def of(stage: str, name: str) -> Any:
        return (settings.get(stage) or {}).get(name)

    return {
        "judge": settings.get("judge"),
        "network": of("cuts", "network"),
        "max_minutes": (of("screen", "max_seconds") or 0) / 60,
        "segmenter": of("references", "segmenter") or "classical",
        "verifier": of("references", "verifier") or "classical",
        "max_speech": of("audio", "max_speech"),
        "max_music": of("audio", "max_music"),
        "listener": of("audio", "listener"),
        "short_side": of("clips", "short_side"),
        "text": of("scores", "text"),
        "target_seconds": of("stories", "target_seconds"),
        "language": settings.get("language"),
    }


def _counts(facts: Facts) -> dict[str, Any]:
    """Numbers of the whole, and the shares that tell a bias."""
    whole = sum(facts.seconds_of.values())
    stated = Counter({name: number for name, number in facts.ledger.uploaders.items() if name})
    never, characters = (facts.tally.counts[name] for name in ("characters_never_referenced", "characters"))
    return {
        "films": len(facts.tally.videos),
        "stories": facts.tally.counts["stories"],
        "shots": facts.shots["all"],
        "audio": facts.tally.counts["audio"],
        "hours": whole / 3600,
        "minutes": whole / 60,
        "words": facts.words,
        "largest_film": max(facts.seconds_of.values(), default=0.0) / whole if whole else 0.0,
        "uploaders": len(stated),
        "largest_uploader": stated.most_common(1)[0][1] if stated else 0,
        "uploader_unknown": facts.ledger.uploaders[None],
        "hosts": sum(1 for host in facts.ledger.hosts if host),
        "largest_host": max((number for host, number in facts.ledger.hosts.items() if host), default=0),
        "characters": characters,
        "never_referenced": never,
    }


def _spread(facts: Facts) -> list[dict[str, Any]]:
    """Rows of the table of distributions: label, mean, deciles, the paper's mean."""
    rows = []
    for name, (label, paper, _) in MEASURES.items():
        values = facts.values["seconds"] if name == "shot_seconds" else facts.tally.values[name]
        if values:
            points = [values.least, *(values.quantile(share) for share in (0.1, 0.5, 0.9)), values.most]
            rows.append({"label": label, "mean": values.total / values.number, "points": points, "paper": paper})
    return rows


def _first(held: Mapping[Any, Any]) -> list[tuple[Any, Any]]:
    """The first entries, most first where they are counts."""
    found = list(held.most_common()) if isinstance(held, Counter) else list(held.items())
    if isinstance(held, Counter):
        found.sort(key=lambda item: (-item[1], str(item[0])))
    return found[:LISTED]


def _writers(written: Counter[tuple[str, str | None, str | None]]) -> list[dict[str, Any]]:
    found = []
    for (kind, model, licence), number in _first(written):
        says, terms = WRITERS.get(kind, ("by an annotator of another version", "none stated"))
        found.append({"kind": kind, "model": model, "number": number, "says": says, "terms": licence or terms})
    return found


def _rules(manifest: Mapping[str, Any]) -> list[dict[str, Any]]:
    counts = manifest.get("rejected_by") or {}
    return [
        {"name": rule.name, "says": rule.says(), "why": rule.why, "count": counts.get(rule.name, 0)}
        for rule in rules_from(manifest.get("rules", []), "manifest.json")
    ]


def _share(part: float, whole: float) -> str:
    """A share in per cent, as people read it."""
    if not whole:
        return "0 %"
    share = 100 * part / whole
    return "under 1 %" if 0 < share < 0.95 else "over 99 %" if 99 < share < 100 else f"{share:.0f} %"


def _number(value: float) -> str:
    """A number with as many places as it is worth: whole numbers without, others with two."""
    return f"{value:,.0f}" if abs(value - round(value)) < 0.005 else f"{value:,.2f}"


def _megabytes(directory: Path, config: str, facts: Facts) -> str:
    size = sum(_bytes(directory, config, split) for split in facts.counted[config])
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _bytes(directory: Path, config: str, split: str) -> int:
    return sum(path.stat().st_size for path in shards(directory, config, split))


def _front(directory: Path, facts: Facts, manifest: Mapping[str, Any], repository: str | None) -> str:
    kinds = _kinds(facts)
    languages = {LANGUAGES.get(name.lower()) for name in _told_languages(facts, manifest.get("settings") or {})} - {None}
    head = {
        "pretty_name": "AnimeShooter dataset",
        **({"language": sorted(filter(None, languages))} if languages else {}),
        **_licence(facts, repository),
        "annotations_creators": sorted({CREATORS.get(kind, "machine-generated") for kind in kinds}) or ["no-annotation"],
        "source_datasets": ["extended|other-animeshooter"] if "release" in kinds else ["original"],
        "size_categories": [next((name for most, name in SIZES if facts.shots["all"] < most), "10M<n<100M")],
        "task_categories": ["text-to-video", "image-to-video"],
        "tags": ["animation", "multi-shot", "storytelling", "webdataset", "arxiv:2506.03126"],
        **_gate(manifest.get("gated")),
        "configs": [
            {
                "config_name": config,
                "data_files": [{"split": split, "path": f"{config}/{split}-*.tar"} for split in facts.counted[config]],
                **({"default": True} if config == "shots" else {}),
            }
            for config in MEMBERS
            if facts.counted[config]
        ],
        "dataset_info": [_info(directory, config, facts.counted[config]) for config in MEMBERS if facts.counted[config]],
    }
    return yaml.safe_dump(head, sort_keys=False, allow_unicode=True)


def _info(directory: Path, config: str, counted: Mapping[str, int]) -> dict[str, Any]:
    parts = [
        {"name": split, "num_bytes": _bytes(directory, config, split), "num_examples": number}
        for split, number in counted.items()
    ]
    size = sum(_bytes(directory, config, split) for split in counted)
    return {
        "config_name": config,
        "features": features(config)._to_yaml_list(),
        "splits": parts,
        "download_size": size,
        "dataset_size": size,
    }


def _kinds(facts: Facts) -> set[str]:
    return {kind for kind, _, _ in (*facts.written, *facts.heard)}


def _told_languages(facts: Facts, settings: Mapping[str, Any]) -> list[str]:
    """The languages of the text, as far as it is known in which it was written: a film's own script may be in any."""
    found = {"English"} if _kinds(facts) & {"measure", "release"} else set()
    if _kinds(facts) & {"openai", "local"} and settings.get("language"):
        found.add(str(settings["language"]).strip())
    return sorted(found)


def _non_commercial(facts: Facts) -> bool:
    """Whether a licence of a film or of its annotations forbids commercial use, by its usual name."""
    names = [str(name) for name in (*facts.licences(), *facts.annotation_licences())]
    return any(bool(re.search(r"(?i)\bNC\b|non-?commercial", name)) for name in names)


def _licence(facts: Facts, repository: str | None) -> dict[str, Any]:
    """The licence that all films and annotations share, if the Hub knows it; ``unknown`` if none is stated; else ``other``."""
    stated = {*facts.licences(), *(licence for licence in facts.annotation_licences() if licence)}
    if stated <= {None}:
        return {"license": "unknown"}
    known = {hub_licence(licence) for licence in stated}
    only = next(iter(known)) if len(known) == 1 else None
    if only:
        return {"license": only}
    link = {"license_link": f"https://huggingface.co/datasets/{repository}#rights-and-removal"} if repository else {}
    return {"license": "other", "license_name": "per-film", **link}


def _gate(gated: Any) -> dict[str, Any]:
    if not gated:
        return {}
    asked = gated if isinstance(gated, Mapping) else {}
    fields = asked.get("fields") or {"I will use each film within its licence and delete what is withdrawn": "checkbox"}
    return {"extra_gated_prompt": str(asked.get("prompt") or GATE), "extra_gated_fields": dict(fields)}
