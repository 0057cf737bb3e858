"""Late filtering: a declared file of rules over the columns of the shard index, and what each of them rejects.

Every score stays a column, so that another set of rules needs no media and no model. A rejected shot stays in its story, which
has no gaps, and is marked; training streams leave it out.
"""

from __future__ import annotations

import difflib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from animeshooter_dataset import INDEX_SCHEMA, DataError, first_problem

DEFAULT = Path(__file__).with_name("rules.yaml")
"""The rules of a build that names none."""
DERIVED = {
    "seconds": "number",
    "clean_seconds": "number",
    "short_side": "number",
    "characters": "number",
}
"""Columns computed from those of the index: length with and without gradual transitions, short side in pixels, and how many
characters are listed."""
UNFIT = frozenset({"key", "story", "shard", "sha256", "rejected_by"})
"""Columns that say where a shot lies and not what it is."""


def _kinds() -> dict[str, str]:
    found = {}
    for column in INDEX_SCHEMA:
        kind = "word" if pa.types.is_string(column.type) else "yes or no" if pa.types.is_boolean(column.type) else "number"
        if column.name not in UNFIT and not column.name.endswith(("_offset", "_size")) and not pa.types.is_list(column.type):
            found[column.name] = kind
    return found | DERIVED


COLUMNS = _kinds()
"""What rules may be about: name of a column, and whether it holds a number, a word, or yes and no."""

Scalar = bool | int | float | str


class Rule(BaseModel):
    """One rule: what a shot must be. ``why`` says where its limit comes from."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True, allow_inf_nan=False)

    name: str = Field(min_length=1, max_length=40)
    column: str
    least: float | None = Field(default=None, strict=True)
    most: float | None = Field(default=None, strict=True)
    equals: Scalar | None = None
    one_of: tuple[Scalar, ...] | None = Field(default=None, alias="in", min_length=1)
    missing: Literal["keep", "reject"] = "keep"
    why: str = Field(min_length=1)

    @model_validator(mode="after")
    def _sensible(self) -> Rule:
        if self.column not in COLUMNS:
            near = difflib.get_close_matches(self.column, COLUMNS, n=1, cutoff=0.4)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(COLUMNS))}"
            raise ValueError(f"unknown column '{self.column}'; {hint}")
        kind = COLUMNS[self.column]
        limits = self.least is not None or self.most is not None
        if limits + (self.equals is not None) + (self.one_of is not None) != 1:
            raise ValueError("give a range by 'least' and 'most' (one or both), or 'equals', or 'in'")
        if limits and kind != "number":
            raise ValueError(f"'{self.column}' holds a {kind}: use 'equals' or 'in'")
        if self.least is not None and self.most is not None and self.least > self.most:
            raise ValueError("'least' is above 'most', so that every shot fails")
        for value in (*(self.one_of or ()), *(() if self.equals is None else (self.equals,))):
            if _kind_of(value) != kind:
                raise ValueError(f"'{self.column}' holds a {kind}, {value!r} is a {_kind_of(value)}")
        return self

    def passes(self, row: Mapping[str, Any]) -> bool:
        """Whether a shot keeps the rule, by its row of the index."""
        value = value_of(row, self.column)
        if value is None:
            return self.missing == "keep"
        if self.equals is not None:
            return bool(value == self.equals)
        if self.one_of is not None:
            return value in self.one_of
        return (self.least is None or value >= self.least) and (self.most is None or value <= self.most)

    def says(self) -> str:
        """The rule in words: ``text_cover at most 0.01``."""
        parts = [f"at least {self.least:g}"] if self.least is not None else []
        parts += [f"at most {self.most:g}"] if self.most is not None else []
        parts += [f"equal to {_spelt(self.equals)}"] if self.equals is not None else []
        parts += [f"one of {', '.join(map(_spelt, self.one_of))}"] if self.one_of is not None else []
        return f"{self.column} {' and '.join(parts)}" + (", and known" if self.missing == "reject" else "")


def _kind_of(value: Scalar) -> str:
    return "yes or no" if isinstance(value, bool) else "word" if isinstance(value, str) else "number"


def _spelt(value: Scalar) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def value_of(row: Mapping[str, Any], column: str) -> Any:
    """The value of a column, also of a derived one; None where it is not known."""
    if column == "seconds":
        return row["frames"] / row["fps"]
    if column == "clean_seconds":
        return (row["clean_end"] - row["clean_start"]) / row["fps"]
    if column == "short_side":
        return min(row["height"], row["width"])
    if column == "characters":
        return len(row["characters"])
    return row.get(column)


def needs(column: str) -> tuple[str, ...]:
    """The columns of the index from which :func:`value_of` a column comes."""
    derived = {
        "seconds": ("frames", "fps"),
        "clean_seconds": ("clean_start", "clean_end", "fps"),
        "short_side": ("height", "width"),
    }
    return derived.get(column, (column,))


class _RuleFile(BaseModel):
    model_config = ConfigDict(extra="forbid")

    rules: list[Rule]


def load_rules(path: Path | None = None) -> tuple[Rule, ...]:
    """Read a file of rules; the default one for None.

    Raises:
        DataError: it cannot be read, or is no file of rules; the line names the first that is wrong.
    """
    path = path or DEFAULT
    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise DataError(f"{path}: cannot be read ({reason}); name a file of rules") from None
    except yaml.YAMLError as error:
        raise DataError(f"{path}: not YAML ({' '.join(str(error).split())}); mend it") from None
    if not isinstance(found, dict) or not isinstance(found.get("rules"), list):
        raise DataError(f"{path}: no list of 'rules'; begin from {DEFAULT.name} of this package")
    return rules_from(found, str(path))


def rules_from(found: Mapping[str, Any] | Sequence[Mapping[str, Any]], where: str) -> tuple[Rule, ...]:
    """Rules from their plain form, as a file or a manifest holds it.

    Raises:
        DataError: one of them is none; the line names ``where`` and the rule.
    """
    entries: Any = found if isinstance(found, Mapping) else {"rules": found}
    try:
        rules = tuple(_RuleFile.model_validate(entries).rules)
    except ValidationError as error:
        place, problem = error.errors(include_url=False)[0]["loc"], first_problem(error).replace("Value error, ", "", 1)
        name = _named(entries, place)
        if name:
            problem = problem.removeprefix(f"rules.{place[1]}").removeprefix(".").removeprefix(": ")
        raise DataError(f"{where}: {name}{problem}") from None
    twice = [name for name, number in Counter(rule.name for rule in rules).items() if number > 1]
    if twice:
        raise DataError(f"{where}: two rules are called '{twice[0]}'; give each a name of its own")
    return rules


def _named(entries: Mapping[str, Any], place: Sequence[Any]) -> str:
    """The name of the rule a problem is in, where it has one."""
    if len(place) < 2 or not isinstance(place[1], int) or not isinstance(entries["rules"][place[1]], Mapping):
        return ""
    name = entries["rules"][place[1]].get("name")
    return f"rule '{name}': " if isinstance(name, str) else ""


def dump_rules(rules: Iterable[Rule]) -> list[dict[str, Any]]:
    """The plain form of rules, for JSON: only what they say."""
    return [rule.model_dump(mode="json", by_alias=True, exclude_none=True) for rule in rules]


def rejected_by(rules: Iterable[Rule], row: Mapping[str, Any]) -> list[str]:
    """The names of the rules that a shot fails, in their order.

    Args:
        rules: the rules.
        row: the shot's row of the index, see :data:`animeshooter_dataset.INDEX_SCHEMA`; None where a value is not known.
    """
    return [rule.name for rule in rules if not rule.passes(row)]


@dataclass(frozen=True)
class RuleCount:
    """What one rule rejected.

    Attributes:
        name: of the rule.
        says: the rule in words; empty where only its name is known.
        why: its reason.
        shots: shots that fail it.
        seconds: their length.
        films: films with such a shot.
        alone: shots that fail it and no other rule: taking it out would bring these back.
        alone_seconds: their length.
    """

    name: str
    says: str
    why: str
    shots: int
    seconds: float
    films: int
    alone: int
    alone_seconds: float


@dataclass(frozen=True)
class RuleReport:
    """What a set of rules rejected of a dataset.

    Attributes:
        shots: all shots.
        seconds: their length.
        films: all films.
        rejected: shots that fail at least one rule.
        rejected_seconds: their length.
        lost_films: films of which every shot is rejected.
        rules: each rule by itself, in their order.
        together: how many shots fail exactly the named rules, the most frequent first.
    """

    shots: int
    seconds: float
    films: int
    rejected: int
    rejected_seconds: float
    lost_films: int
    rules: Sequence[RuleCount]
    together: Sequence[tuple[tuple[str, ...], int]]

    def as_dict(self) -> dict[str, Any]:
        """The report for JSON."""
        return {
            **{
                name: getattr(self, name)
                for name in ("shots", "seconds", "films", "rejected", "rejected_seconds", "lost_films")
            },
            "rules": [vars(rule) for rule in self.rules],
            "together": [{"rules": list(names), "shots": shots} for names, shots in self.together],
        }

    def text(self) -> str:
        """The report as a table for the terminal."""
        share = f"{100 * self.rejected / self.shots:.1f} %" if self.shots else "none"
        minutes, kept = self.rejected_seconds / 60, (self.seconds - self.rejected_seconds) / 60
        lines = [
            f"{self.rejected} of {self.shots} shots are rejected ({share}, {minutes:.1f} minutes); {kept:.1f} minutes are left",
            f"{self.lost_films} of {self.films} films lose every shot",
        ]
        if not self.rules:
            return "\n".join([*lines, "no rules"])
        rows = [["rule", "shots", "seconds", "films", "alone", "seconds", "keeps shots with"]]
        for one in self.rules:
            numbers = [str(one.shots), f"{one.seconds:.1f}", str(one.films), str(one.alone), f"{one.alone_seconds:.1f}"]
            rows.append([one.name, *numbers, one.says])
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        lines.append("")
        for row in rows:
            cells = [
                cell.rjust(width) if 0 < place < 6 else cell.ljust(width)
                for place, (cell, width) in enumerate(zip(row, widths))
            ]
            lines.append("  ".join(cells).rstrip())
        lines += ["alone: by no other rule; taking the rule out would bring these back", ""]
        several = [(names, shots) for names, shots in self.together if len(names) > 1]
        lines += [f"{shots} by {' and '.join(names)} together" for names, shots in several[:12]]
        return "\n".join(lines).rstrip()


@dataclass
class RuleTally:
    """Counts what rules reject, a shot at a time; memory grows with films and combinations of rules, not with shots."""

    shots: int = 0
    seconds: float = 0.0
    together: Counter[tuple[str, ...]] = field(default_factory=Counter)
    length: defaultdict[tuple[str, ...], float] = field(default_factory=lambda: defaultdict(float))
    films: dict[str, bool] = field(default_factory=dict)
    films_of: dict[str, set[str]] = field(default_factory=dict)

    def add(self, video: str, seconds: float, rejected: Sequence[str]) -> None:
        """Count a shot.

        Args:
            video: its film.
            seconds: its length.
            rejected: names of the rules it fails.
        """
        names = tuple(rejected)
        self.shots += 1
        self.seconds += seconds
        self.together[names] += 1
        self.length[names] += seconds
        self.films[video] = self.films.get(video, False) or not names
        for name in names:
            self.films_of.setdefault(name, set()).add(video)

    def merge(self, other: RuleTally) -> None:
        """Count what another has counted."""
        self.shots += other.shots
        self.seconds += other.seconds
        self.together.update(other.together)
        for names, seconds in other.length.items():
            self.length[names] += seconds
        for video, kept in other.films.items():
            self.films[video] = self.films.get(video, False) or kept
        for name, films in other.films_of.items():
            self.films_of.setdefault(name, set()).update(films)

    def report(self, rules: Sequence[Rule]) -> RuleReport:
        """What was counted, in the order of ``rules``; names that are none of theirs come after them."""
        known = {rule.name: rule for rule in rules}
        names = [*known, *sorted({name for group in self.together for name in group} - known.keys())]
        groups = {group: shots for group, shots in self.together.items() if group}
        return RuleReport(
            shots=self.shots,
            seconds=round(self.seconds, 3),
            films=len(self.films),
            rejected=sum(groups.values()),
            rejected_seconds=round(sum(self.length[group] for group in groups), 3),
            lost_films=sum(not kept for kept in self.films.values()),
            rules=[self._count(name, known.get(name)) for name in names],
            together=sorted(groups.items(), key=lambda item: (-item[1], item[0])),
        )

    def _count(self, name: str, rule: Rule | None) -> RuleCount:
        groups = [group for group in self.together if name in group]
        return RuleCount(
            name=name,
            says=rule.says() if rule else "",
            why=rule.why if rule else "",
            shots=sum(self.together[group] for group in groups),
            seconds=round(sum(self.length[group] for group in groups), 3),
            films=len(self.films_of.get(name, ())),
            alone=self.together[(name,)],
            alone_seconds=round(self.length[(name,)], 3),
        )
