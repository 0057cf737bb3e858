"""Which sources of a dataset, a release or a list could be had, and when: the records, their summary and the report.

What asks the sources is :func:`curation.verify_sources.verify_sources`; this module only reads and counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from animeshooter_dataset import AvailabilityRecord, DataError, RightsRecord, first_problem, read_lines
from curation.lines import one_line
from curation.origin import Address

AVAILABILITY = "availability.jsonl"
"""File of :class:`AvailabilityRecord` lines in a dataset directory, in the order of the videos' ids."""
STATES = {
    "available": "available",
    "gone": "gone",
    "private": "private or behind a sign-in",
    "blocked": "blocked in the region they were asked from",
    "unknown": "unknown",
}
"""The states of a source in the order in which they are told, and how a reader is told of them.

available: the site has the film and shows it to anybody. gone: removed, its account closed, taken down for copyright, or HTTP
404 or 410. private: there, but not for everybody (private, members only, sign-in, age limit, paid, DRM). blocked: not shown in
the region it was asked from. unknown: the answer says nothing of the film (network, rate limit, robot check, server error).
"""
USED = ("kept", "unavailable")
"""States of a video in ``rights.jsonl`` whose source is of interest: a dropped or withdrawn one is nobody's to fetch."""
SHOWN_HOSTS = 12
"""Hosts in the report's text; ``as_dict`` has all."""


@dataclass(frozen=True)
class AvailabilitySummary:
    """What share of a dataset's sources could be had, and when.

    Attributes:
        counts: sources by state, every state of :data:`STATES` in its order.
        unchecked: sources that were never asked.
        without_source: videos that name no address, such as films of one's own.
        first: ISO date of the oldest answer; None without any.
        last: ISO date of the newest.
    """

    counts: Mapping[str, int] = field(default_factory=lambda: dict.fromkeys(STATES, 0))
    unchecked: int = 0
    without_source: int = 0
    first: str | None = None
    last: str | None = None

    @property
    def checked(self) -> int:
        """Sources that were asked."""
        return sum(self.counts.values())

    @property
    def share(self) -> float | None:
        """Share of the asked sources that were available, 0 to 1; None when none was asked."""
        return self.counts["available"] / self.checked if self.checked else None

    @property
    def when(self) -> str:
        """The days of the answers as words: ``on 2026-11-20`` or ``between … and …``."""
        return f"on {self.last}" if self.first == self.last else f"between {self.first} and {self.last}"

    def says(self) -> str:
        """All of it as one sentence without its full stop."""
        if self.share is None:
            told = f"none of {self.unchecked:,} sources was asked yet" if self.unchecked else "there is no source to ask"
        else:
            others = ", ".join(f"{n:,} {STATES[state]}" for state, n in self.counts.items() if n and state != "available")
            told = f"{self.counts['available']:,} of {self.checked:,} sources available ({_percent(self.share)}) {self.when}"
            told += f"; {others}" if others else ""
            told += f"; {self.unchecked:,} never asked" if self.unchecked else ""
        if self.without_source:
            told += f"; {self.without_source:,} video{' names' if self.without_source == 1 else 's name'} no address"
        return told


def _percent(share: float) -> str:
    """A share as per cent; never 100 or 0 where it is not wholly so."""
    return f"{min(max(share * 100, 0.1), 99.9) if 0 < share < 1 else share * 100:.1f} %"


def summarize(records: Iterable[AvailabilityRecord], unchecked: int = 0, without_source: int = 0) -> AvailabilitySummary:
    """Count records; the other two numbers are passed on."""
    counts, first, last = Counter[str](), None, None
    for record in records:
        counts[record.state] += 1
        first = min(first or record.checked, record.checked)
        last = max(last or record.checked, record.checked)
    return AvailabilitySummary({state: counts[state] for state in STATES}, unchecked, without_source, first, last)


def availability_summary(directory: Path) -> AvailabilitySummary:
    """What share of a dataset's sources was available when, from its ``rights.jsonl`` and ``availability.jsonl``.

    Only videos that are kept or unavailable count, and of these only answers for the source they name now. ``checked`` is 0
    when the sources were never asked.

    Raises:
        DataError: a line of one of the files is no such line.
    """
    sources, without = dataset_sources(directory)
    path = directory / AVAILABILITY
    known = read_availability(path) if path.is_file() else {}
    found = [record for video, source in sources.items() if (record := known.get(video)) and record.source == source.public]
    return summarize(found, len(sources) - len(found), without)


def dataset_sources(directory: Path) -> tuple[dict[str, Address], int]:
    """The sources of a dataset's videos that are kept or unavailable, by video, and how many of these name no address."""
    sources: dict[str, Address] = {}
    without = 0
    for line in read_lines(directory / "rights.jsonl", RightsRecord):
        if line.state in USED:
            try:
                sources[line.video] = Address.parse(line.source or "")
            except DataError:  # words such as "our own studio": fine, but nothing to ask
                without += 1
    return dict(sorted(sources.items())), without


def read_availability(path: Path) -> dict[str, AvailabilityRecord]:
    """The records of a report by their videos; a later line of a video counts.

    Args:
        path: a report, or a dataset directory.

    Raises:
        DataError: there is none, it cannot be read, or a line of it is none.
    """
    if path.is_dir():
        path = path / AVAILABILITY
    found: dict[str, AvailabilityRecord] = {}
    number = 0
    try:
        with path.open("rb") as lines:
            for number, line in enumerate(lines, 1):  # noqa: B007 # told where a line is wrong
                record = AvailabilityRecord.model_validate_json(line)
                found[record.video] = record
    except ValidationError as error:
        raise DataError(
            f"{one_line(path)}: line {number}: {first_problem(error)}; no report of verify-sources; name another, or delete it"
        ) from None
    except OSError as error:
        raise DataError(
            f"{one_line(path)}: not readable ({error.strerror}); name a report that verify-sources has written"
        ) from None
    return found


def gone_sources(path: Path) -> dict[str, AvailabilityRecord]:
    """What a report knows to be gone, by the key of the address (:attr:`curation.origin.Address.key`), so as not to ask for it.

    Raises:
        DataError: see :func:`read_availability`.
    """
    records = read_availability(path).values()
    return {Address.parse(record.source).key: record for record in records if record.state == "gone"}


@dataclass(frozen=True)
class AvailabilityReport:
    """What asking the sources of a dataset, release or list has shown.

    Attributes:
        where: what was named.
        report: the file that holds a line for each source that was ever asked.
        summary: all that is known now, whenever it was asked.
        hosts: sources by host and state, the largest host first.
        asked: sources asked in this run.
        left: sources that were due to be asked and were not: the run was limited, or a host refused.
        stopped: one line a host that is left alone for now, and why.
        problems: one line each on what of the named could not be read as a source.
    """

    where: str
    report: Path
    summary: AvailabilitySummary
    hosts: Mapping[str, Mapping[str, int]]
    asked: int
    left: int
    stopped: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        """Whether nothing is left to ask."""
        return not self.left

    def text(self) -> str:
        """The report for a terminal."""
        lines = [f"{self.where}: {self.summary.says()}"]
        if len(self.hosts) > 1:
            shown = list(self.hosts)[:SHOWN_HOSTS]
            width = max(map(len, shown))
            lines.append(f"  {'':{width}} {''.join(f'{state:>11}' for state in STATES)}")
            lines += [f"  {host:{width}} {''.join(f'{n:>11,}' for n in self.hosts[host].values())}" for host in shown]
            if len(self.hosts) > len(shown):
                lines.append(f"  and {len(self.hosts) - len(shown):,} more hosts")
        lines += [f"skipped: {problem}" for problem in self.problems[:SHOWN_HOSTS]]
        if len(self.problems) > SHOWN_HOSTS:
            lines.append(f"skipped: {len(self.problems) - SHOWN_HOSTS:,} more")
        lines += [f"stopped: {line}" for line in self.stopped[:SHOWN_HOSTS]]
        left = f", {self.left:,} left: the same command again goes on with them" if self.left else ""
        lines.append(f"{self.asked:,} sources asked in this run{left}")
        lines.append(f"report: {one_line(self.report)}")
        return "\n".join(lines)

    def as_dict(self) -> dict[str, Any]:
        """The report for a program."""
        return {
            "where": self.where,
            "report": str(self.report),
            "sources": self.summary.checked + self.summary.unchecked,
            "states": dict(self.summary.counts),
            "available_share": self.summary.share,
            "never_asked": self.summary.unchecked,
            "without_source": self.summary.without_source,
            "first_checked": self.summary.first,
            "last_checked": self.summary.last,
            "hosts": {host: dict(states) for host, states in self.hosts.items()},
            "asked": self.asked,
            "left": self.left,
            "stopped": list(self.stopped),
            "problems": list(self.problems),
        }
