"""``animeshooter stats DIR``: what a dataset holds and what was dropped on the way to it, beside the paper's numbers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from animeshooter_dataset import DroppedRecord, FilmRecord, RightsRecord, read_lines, read_manifest
from curation.rules import Rule, RuleReport, rules_from
from curation.tally import MEASURES, SCORES, Distribution, Tally, gather

PAPER_SOURCE = "the AnimeShooter paper (arXiv 2506.03126), of its own dataset"
PAPER_COUNTS = {"videos": 29_000, "stories": 148_000, "shots": 2_200_000}
"""The size of the paper's dataset, rounded there to thousands."""
QUANTILES = {"p10": 0.1, "p50": 0.5, "p90": 0.9}
LINES, KINDS = 200, 2000
"""Dropped things and films that are listed one by one, and reasons that are told apart; all are counted."""
TWIN = "the same bytes as"
"""What the reason of a film says that is there twice."""


@dataclass
class Films:
    """What became of the films that were named, from ``films.jsonl``, and what else was dropped, from ``dropped.jsonl``.

    Attributes:
        states: number of films by what became of them.
        lost: number of dropped films by stage, and by the check they failed where it was the screen.
        checks: of each check of films, how many passed, failed, or could not be told; and its values and limit.
        listed: the first films that were not kept, then the first that were.
        by_stage: things dropped, by stage; these may also be stories, clips or scripts.
        by_reason: the same by reason, without numbers and file names.
        lines: the first of them.
    """

    states: Counter[str] = field(default_factory=Counter)
    lost: Counter[str] = field(default_factory=Counter)
    checks: dict[str, dict[str, Any]] = field(default_factory=dict)
    listed: list[FilmRecord] = field(default_factory=list)
    by_stage: Counter[str] = field(default_factory=Counter)
    by_reason: Counter[str] = field(default_factory=Counter)
    lines: list[DroppedRecord] = field(default_factory=list)

    @classmethod
    def of(cls, directory: Path) -> Films:
        """Read both files, a line at a time.

        Raises:
            DataError: one is missing or damaged.
        """
        found, kept = cls(), list[FilmRecord]()
        for film in read_lines(directory / "films.jsonl", FilmRecord):
            found._add_film(film)
            listed = kept if film.state == "kept" else found.listed
            if len(listed) < LINES:
                listed.append(film)
        found.listed = (found.listed + kept)[:LINES]
        for loss in read_lines(directory / "dropped.jsonl", DroppedRecord):
            found.by_stage[loss.stage] += 1
            kind = _kind(loss)
            found.by_reason[kind if kind in found.by_reason or len(found.by_reason) < KINDS else "other reasons"] += 1
            if len(found.lines) < LINES:
                found.lines.append(loss)
        return found

    def _add_film(self, film: FilmRecord) -> None:
        self.states[film.state] += 1
        failed = [item.check for item in film.evidence if item.passed is False]
        if film.state == "dropped":
            stage = film.stage or "unknown stage"
            what = failed[0] if stage == "screen" and failed else "twice" if TWIN in (film.reason or "") else "unreadable"
            self.lost[f"{stage}: {what}" if stage in ("collect", "screen") else stage] += 1
        for item in film.evidence:
            check = self.checks.setdefault(
                item.check, {"passed": 0, "failed": 0, "unknown": 0, "limit": None, "values": Distribution(0.0005)}
            )
            check[{True: "passed", False: "failed", None: "unknown"}[item.passed]] += 1
            check["limit"] = item.limit if item.limit is not None else check["limit"]
            if item.value is not None:
                check["values"].add(item.value)

    def numbers(self) -> dict[str, Any]:
        """The films in numbers, for JSON."""
        checks = {
            name: {**check, "values": distribution(check["values"]) if check["values"] else None}
            for name, check in self.checks.items()
        }
        unread, screened = (
            sum(number for name, number in self.lost.items() if name.startswith(f"{stage}: "))
            for stage in ("collect", "screen")
        )
        return {
            "named": self.states.total(),
            "unavailable": self.states["unavailable"],
            "withdrawn": self.states["withdrawn"],
            "unreadable_or_twice": unread,
            "screened_out": screened,
            "lost_later": self.states["dropped"] - unread - screened,
            "kept": self.states["kept"],
            "lost_by": _sorted(self.lost),
            "checks": checks,
        }


def stats(directory: Path) -> dict[str, Any]:
    """Numbers of a dataset directory, ready for JSON and the same for the same bytes.

    Raises:
        DataError: it is no dataset directory, or a part of it is damaged.
    """
    read_manifest(directory)
    films = Films.of(directory)
    return summarise(directory, gather(directory), films)


def rules_of(directory: Path) -> tuple[Rule, ...]:
    """The rules a dataset is marked by, from its manifest; none where it does not say."""
    return rules_from(read_manifest(directory).get("rules", []), str(directory / "manifest.json"))


def summarise(directory: Path, tallies: Mapping[str, Tally], films: Films) -> dict[str, Any]:
    """Numbers of what was gathered from a directory; see :func:`stats`."""
    manifest, whole = read_manifest(directory), whole_of(tallies)
    means = {name: paper for name, (_, paper, _) in MEASURES.items() if paper is not None}
    rights = Counter(line.state for line in read_lines(directory / "rights.jsonl", RightsRecord))
    rules = whole.rules.report(rules_of(directory))
    found = {
        "dataset": directory.resolve().name,
        "schema_version": manifest["schema_version"],
        "whole": _numbers(whole),
        "splits": {split: _numbers(tally) for split, tally in tallies.items()},
        "paper": {"source": PAPER_SOURCE, "counts": PAPER_COUNTS, "means": means},
        "rights": dict(sorted(rights.items())),
        "films": films.numbers(),
        "rules": rules.as_dict(),
        "dropped": {
            "number": films.by_stage.total(),
            "by_stage": _sorted(films.by_stage),
            "by_reason": _sorted(films.by_reason),
            "lines": [line.model_dump() for line in films.lines],
        },
    }
    return found | {"funnel": [{"step": step.label, "number": step.number, "lost": step.lost} for step in funnel(found, rules)]}


@dataclass(frozen=True)
class Step:
    """One step of the funnel: what is left, what was lost on the way to it by reason, and a remark."""

    label: str
    number: int
    lost: Mapping[str, int]
    unit: str


def funnel(found: Mapping[str, Any], rules: RuleReport) -> list[Step]:
    """From the films that were named to the shots that training takes."""
    films, whole = found["films"], found["whole"]
    by = films["lost_by"]
    groups = ("collect: ", "screen: ")
    unread, screened = ({name.removeprefix(group): n for name, n in by.items() if name.startswith(group)} for group in groups)
    later = {name: number for name, number in by.items() if not name.startswith(groups)}
    available = films["named"] - films["unavailable"] - films["withdrawn"]
    readable = available - films["unreadable_or_twice"]
    stories = found["dropped"]["by_stage"].get("script", 0) - by.get("script", 0)
    failing = {f"{one.name} (alone {one.alone})": one.shots for one in rules.rules if one.shots}
    left, cards = rules.shots - rules.rejected, whole["cards_not_rejected"]
    return [
        Step("films named", films["named"], {}, "films"),
        Step("available", available, _some({name: films[name] for name in ("unavailable", "withdrawn")}), "films"),
        Step("readable, each once", readable, unread, "films"),
        Step("passed the screen", readable - films["screened_out"], screened, "films"),
        Step("curated", films["kept"], later, "films"),
        Step("stories", whole["stories"], _some({"stories or scripts": stories}), "stories"),
        Step("shots", whole["shots"], {}, "shots"),
        Step("pass every rule", left, failing, "shots"),
        Step("for training", left - cards, _some({"title or credits": cards}), "shots"),
    ]


def _some(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: number for name, number in counts.items() if number}


def whole_of(tallies: Mapping[str, Tally]) -> Tally:
    """All splits added up."""
    whole = Tally()
    for tally in tallies.values():
        whole.merge(tally)
    return whole


def _numbers(tally: Tally) -> dict[str, Any]:
    counts, kinds = tally.counts, tally.kinds
    return {
        "videos": len(tally.videos),
        "stories": counts["stories"],
        "shots": counts["shots"],
        "audio_clips": counts["audio"],
        "hours": round(tally.values["story_seconds"].total / 3600, 4),
        "cards_not_rejected": counts["cards_not_rejected"],
        "distributions": {name: distribution(tally.values[name]) for name in MEASURES if tally.values[name]},
        "scores": {name: distribution(tally.values[name]) for name in SCORES if tally.values[name]},
        "styles": _sorted(kinds["style"]),
        "talking": {"yes": kinds["talking"]["True"], "no": kinds["talking"]["False"]},
        "transitions": _sorted(kinds["transitions"]),
        "prologue_epilogue": {name: kinds["prologue_or_epilogue"][name] for name in ("prologue", "epilogue")},
        "annotators": _sorted(kinds["annotators"]),
        "licences": _sorted(Counter(licence or "not stated" for licence in tally.videos.values())),
        "references": {
            "shots_with_character": counts["shots_with_character"],
            "shots_with_reference": counts["shots_with_reference"],
            "shots_without_reference": counts["shots"] - counts["shots_with_reference"],
            "shots_missing_a_reference": counts["shots_missing_a_reference"],
            "characters": counts["characters"],
            "characters_never_referenced": counts["characters_never_referenced"],
        },
        "leakage": {
            "shots_looked_at": counts["shots_checked"],
            "references": counts["references"],
            "from_own_shot": counts["references_from_own_shot"],
        },
        "shots_with_sound": counts["shots_with_sound"],
        "sizes": _sorted(kinds["sizes"]),
        "fps": _sorted(kinds["fps"]),
        "sound_types": _sorted(kinds["sound_types"]),
    }


def _sorted(counts: Mapping[str, int]) -> dict[str, int]:
    """Most frequent first, equals by name."""
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def distribution(values: Distribution) -> dict[str, float]:
    """Mean, least, most and the quantiles of :data:`QUANTILES`, rounded to four places."""
    found = {"mean": values.total / values.number, "least": values.least, "most": values.most}
    found |= {name: values.quantile(share) for name, share in QUANTILES.items()}
    return {name: round(float(value), 4) for name, value in found.items()}


def _kind(loss: DroppedRecord) -> str:
    """Stage and reason without what differs from film to film: its name, keys of its stories and shots, numbers."""
    reason = re.sub(r"\b[a-z0-9_-]+-[0-9a-f]{8}(-[0-9]+)*", "KEY", loss.reason.removeprefix(f"{loss.film}: "))
    return f"{loss.stage}: {re.sub(r'(?<![A-Za-z0-9])[0-9]+([.][0-9]+)?', 'N', reason)}"


def stats_text(found: Mapping[str, Any]) -> str:
    """The numbers of :func:`stats` as a table for the terminal."""
    whole, paper = found["whole"], found["paper"]
    lines = [f"{found['dataset']}, schema {found['schema_version']}", ""]
    rows = [["", "videos", "stories", "shots", "audio clips", "hours"]]
    for split, numbers in [*found["splits"].items(), ("whole", whole)][: None if len(found["splits"]) > 1 else 1]:
        counts = [str(numbers[name]) for name in ("videos", "stories", "shots", "audio_clips")]
        rows.append([split, *counts, f"{numbers['hours']:.3f}"])
    lines += [*_table(rows), "", *_funnel_lines(found["funnel"]), ""]
    columns = ("mean", "least", *QUANTILES, "most")
    rows = [["", *columns, "paper's mean"]]
    for name, (label, _, _) in MEASURES.items():
        if name in whole["distributions"]:
            shown = [f"{whole['distributions'][name][column]:.2f}" for column in columns]
            rows.append([label, *shown, f"{paper['means'][name]:.2f}" if name in paper["means"] else "-"])
    lines += [*_table(rows), f"paper's mean: as reported by {paper['source']}", ""]
    if whole["scores"]:
        rows = [["scores of shots", *columns]]
        rows += [
            [SCORES[name][0], *(f"{values[column]:.3f}" for column in columns)] for name, values in whole["scores"].items()
        ]
        lines += [*_table(rows), ""]
    rows = [[label, text] for label, text in facts(found)]
    width = max(len(label) for label, _ in rows)
    lines += [f"{label:<{width}}  {text}" for label, text in rows]
    lines += [f"{'':<{width}}  {loss['stage']}: {loss['reason']}" for loss in found["dropped"]["lines"]]
    if found["dropped"]["number"] > len(found["dropped"]["lines"]):
        lines.append(f"{'':<{width}}  and {found['dropped']['number'] - len(found['dropped']['lines'])} more in dropped.jsonl")
    return "\n".join("".join(mark if mark.isprintable() else " " for mark in line) for line in lines)


def _funnel_lines(steps: Iterable[Mapping[str, Any]]) -> list[str]:
    width = max(len(step["step"]) for step in steps)
    return [
        f"{step['step']:<{width}}  {step['number']:>9}" + (f"  lost: {_spelt(step['lost'])}" if step["lost"] else "")
        for step in steps
    ]


def facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What else :func:`stats` counted, as pairs of a label and one line."""
    whole, dropped = found["whole"], found["dropped"]
    references, leakage, shots = whole["references"], whole["leakage"], whole["shots"]
    never = f"{references['characters_never_referenced']} of {references['characters']}"
    of = f"references, in {leakage['shots_looked_at']} shots looked at,"
    pairs = [
        ("transition into a shot", _spelt(whole["transitions"])),
        ("prologue, epilogue", _spelt(whole["prologue_epilogue"])),
        ("style, by shot", _spelt(whole["styles"]) or "not judged"),
        ("annotators, by story", _spelt(whole["annotators"])),
        ("licences, by video", _spelt(whole["licences"])),
        ("shots with a character", f"{references['shots_with_character']} of {shots}"),
        ("shots with a reference", f"{references['shots_with_reference']} of {shots}"),
        (
            "shots lacking a character's reference",
            f"{references['shots_missing_a_reference']} of {references['shots_with_character']}",
        ),
        ("characters never referenced", never),
        ("leakage", f"{leakage['from_own_shot']} of {leakage['references']} {of} come from the shot itself"),
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
