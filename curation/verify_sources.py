"""``animeshooter verify-sources``: which sources of a dataset, of the official release or of a list can still be had.

Each source is asked once, see :mod:`curation.probe_source`: one at a time from one host, at a distance, several hosts in
parallel. A host that refuses several in a row is left alone until the next run, and a network that is down ends the run.

Answers are written down as they come, in a folder beside the report; a run that was ended at any moment goes on where it was.
The finished report has a line a source. For a dataset it is ``availability.jsonl`` inside it, whose card and manifest are made
true again in the same step; for a release or a list it is a file beside it.
"""

from __future__ import annotations

import os
import queue
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import ValidationError

from animeshooter_dataset import AvailabilityRecord, DataError, dump, read_manifest
from curation.availability import (
    AVAILABILITY,
    STATES,
    AvailabilityReport,
    dataset_sources,
    read_availability,
    summarize,
)
from curation.edition import edition, replace_file
from curation.lines import JsonLines, one_line, read_json_lines
from curation.origin import Address
from curation.pack import file_hash, write_manifest
from curation.probe_source import Finding, SourceProbe, SourcesConfig
from curation.source_list import Sources, is_dataset, read_sources
from curation.ytdlp import Gate, LeftAlone
from curation.ytdlp import today as this_day

RECHECK_AFTER = 30
"""Days after which an answer is asked for again."""
SILENT_START, SILENT = 10, 50
"""Sources in a row without any answer after which the network counts as down: while nothing has answered yet, and later."""


def verify_sources(
    where: Path,
    *,
    out: Path | None = None,
    config: SourcesConfig | None = None,
    recheck_after: int = RECHECK_AFTER,
    limit: int | None = None,
    today: str | None = None,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
) -> AvailabilityReport:
    """Ask the sources that were not asked yet, or long ago, or of which nothing is known; write and return the report.

    An answer that says nothing of a film never replaces an older one that did.

    Args:
        where: a dataset directory; the official release, as a zip, a folder or a JSON file; or a list with a YouTube id or an
            address a line.
        out: the report; by default ``availability.jsonl`` in a dataset, which is then changed as a whole, or
            ``NAME.availability.jsonl`` beside a release or list. A text file beside a report of one's own says it in words.
        config: how sources are asked.
        recheck_after: days after which an answer is asked for again.
        limit: at most so many sources are asked in this run.
        today: ISO date of the answers; by default the day in UTC.
        progress: called with sources asked, sources to ask, and the address, as answers come; before that, with what is read of
            a release.

    Raises:
        DataError: there is nothing to read sources from, the network is down, another run is at it, or a file or folder cannot
            be written.
    """
    config = config or SourcesConfig()
    sources = read_sources(where, progress)
    report, work, inside = _places(where, out)
    with _results(work) as results:
        known = _Known(sources, report, results)
        due = known.due(today or this_day(), recheck_after)
        chosen = due if limit is None else due[: max(0, limit)]
        try:
            stopped = _ask_all(chosen, known, config, today, progress) if chosen else []
        finally:
            known.file.close()
        summary = summarize(known.records.values(), len(sources.addresses) - len(known.records), sources.without)
        left, hosts = len(due) - known.asked, _by_host(known)
        found = AvailabilityReport(one_line(where), report, summary, hosts, known.asked, left, tuple(stopped), sources.problems)
        if inside:
            _write_into_dataset(where.resolve(), known.records)
        else:
            _write(report, _lines(known.records))
            _write(_stem(report, ".summary.txt"), [(found.text() + "\n").encode()])
        shutil.rmtree(work, ignore_errors=True)
    return found


def _places(where: Path, out: Path | None) -> tuple[Path, Path, bool]:
    """The report, the folder to work in beside it, and whether the report is a dataset's own."""
    home = where.resolve()
    inside = is_dataset(where)
    if out is None and inside:
        return home / AVAILABILITY, home.with_name(f"{home.name}.availability.work"), True
    report = out or home.with_name(f"{home.name if home.is_dir() else home.stem}.availability.jsonl")
    if out is not None and (out.is_dir() or out.resolve() == home or (inside and out.resolve().is_relative_to(home))):
        raise DataError(f"{one_line(out)}: cannot be the report; name a file of its own, outside the dataset")
    return report, _stem(report, ".work"), False


def _stem(report: Path, suffix: str) -> Path:
    """A path beside the report and named like it."""
    return report.with_name(report.name.removesuffix(".jsonl") + suffix)


class _Known:
    """What is known of sources: from the report that stands, from a run that was ended, and from this one.

    Answers are kept of the sources that are asked for only. ``asked`` counts those of this run.
    """

    def __init__(self, sources: Sources, report: Path, results: Path) -> None:
        self.sources, self.asked = sources, 0
        self.records: dict[str, AvailabilityRecord] = {}
        for record in read_availability(report).values() if report.is_file() else ():
            self._learn(record)
        for entry in read_json_lines(results):
            try:
                self._learn(AvailabilityRecord.model_validate(entry))
            except ValidationError:
                continue  # of another version: asked again
        self.file = JsonLines(results)

    def due(self, today: str, recheck_after: int) -> list[tuple[str, Address]]:
        """The sources to ask."""
        return [(video, address) for video, address in self.sources.addresses.items() if self._due(video, today, recheck_after)]

    def _due(self, video: str, today: str, recheck_after: int) -> bool:
        record = self.records.get(video)
        if record is None or record.state == "unknown":
            return True
        try:
            return (date.fromisoformat(today) - date.fromisoformat(record.checked)).days > recheck_after
        except ValueError:  # a day that is in no calendar
            return True

    def add(self, video: str, finding: Finding, today: str) -> None:
        """Write an answer down.

        Raises:
            OSError: the disk is full.
        """
        source = self.sources.addresses[video].public
        record = AvailabilityRecord(video=video, source=source, state=finding.state, reason=finding.reason, checked=today)
        self.file.append(record.model_dump())
        self._learn(record)
        self.asked += 1

    def _learn(self, record: AvailabilityRecord) -> None:
        address = self.sources.addresses.get(record.video)
        if address is None or record.source != address.public:
            return
        if record.state != "unknown" or self.records.get(record.video, record).state == "unknown":
            self.records[record.video] = record


def _lines(records: Mapping[str, AvailabilityRecord]) -> Iterator[bytes]:
    """A report, in the order of keys."""
    return (dump(records[video]) + b"\n" for video in sorted(records))


@dataclass
class _Host:
    """A host and the sources to ask it for; those of the same address are asked for once."""

    name: str
    sources: dict[str, tuple[Address, list[str]]] = field(default_factory=dict)


@dataclass(frozen=True)
class _End:
    """A host is through, or left alone for a reason."""

    host: str
    reason: str | None = None


_Told = queue.SimpleQueue[tuple[list[str], Address, Finding] | _End | BaseException]


def _ask_all(
    due: Iterable[tuple[str, Address]],
    known: _Known,
    config: SourcesConfig,
    today: str | None,
    progress: Callable[[int, int, str], None],
) -> list[str]:
    """Ask sources, several hosts at a time; returns a line on each host that is left alone."""
    hosts: dict[str, _Host] = {}
    total = 0
    for video, address in due:
        host = hosts.setdefault(address.host, _Host(address.host))
        host.sources.setdefault(address.url, (address, []))[1].append(video)
        total += 1
    gate, told, silence = Gate(config), _Told(), _Silence(known, today, total)
    pool = ThreadPoolExecutor(max(1, config.hosts), "sources")
    stopped = []
    done = 0
    try:
        for host in hosts.values():
            pool.submit(_ask_host, host, config, gate, told)
        open_hosts = len(hosts)
        while open_hosts:
            news = told.get()
            if isinstance(news, BaseException):
                raise news
            if isinstance(news, _End):
                open_hosts -= 1
                stopped += [news.reason] if news.reason else []
                continue
            videos, address, finding = news
            silence.hear(videos, finding)
            done += len(videos)
            progress(done, total, address.public)
        silence.end()
    finally:
        gate.stopped.set()
        pool.shutdown(cancel_futures=True)
    return stopped


class _Silence:
    """Tells a network that is down from sources that do not answer: nothing is written down before somebody has answered."""

    def __init__(self, known: _Known, today: str | None, total: int) -> None:
        self.known, self.today, self.total = known, today, total
        self.heard = False
        self.waiting: list[tuple[list[str], Finding]] = []

    def hear(self, videos: list[str], finding: Finding) -> None:
        """Take an answer, or that none came.

        Raises:
            DataError: the network is down.
        """
        self.waiting.append((videos, finding))
        if finding.answered:
            self.heard = True
            self._write()
        elif len(self.waiting) >= (SILENT if self.heard else SILENT_START):
            self._give_up()

    def end(self) -> None:
        """Nothing more comes.

        Raises:
            DataError: nothing has answered in the whole run, which is not about the last few of many either.
        """
        if self.waiting and not self.heard and not (self.known.records and self.total < SILENT_START):
            self._give_up()
        self._write()

    def _write(self) -> None:
        for videos, finding in self.waiting:
            for video in videos:
                self.known.add(video, finding, self.today or this_day())
        self.waiting.clear()

    def _give_up(self) -> None:
        number = f"{len(self.waiting)} sources" if len(self.waiting) > 1 else "the only source asked"
        raise DataError(
            f"no answer from {number}, the last with: {self.waiting[-1][1].reason}; the network seems to be down, so nothing "
            "is written of that: run again when it is up"
        )


def _ask_host(host: _Host, config: SourcesConfig, gate: Gate, told: _Told) -> None:
    """Ask the sources of one host, one after another, until it refuses too many in a row."""
    in_a_row, asked = 0, 0
    try:
        with SourceProbe(config, gate) as probe:
            for address, videos in host.sources.values():
                finding = probe.ask(address)
                told.put((videos, address, finding))
                asked += 1
                in_a_row = in_a_row + 1 if finding.turned_away else 0
                left = len(host.sources) - asked
                if in_a_row >= config.give_up_after and left:
                    last = f"{in_a_row} sources in a row gave no answer about the film, the last with: {finding.reason}"
                    told.put(_End(host.name, f"{host.name}: {last}; {left:,} of it are left for another run, in some hours"))
                    return
        told.put(_End(host.name))
    except LeftAlone as problem:
        left = len(host.sources) - asked
        told.put(_End(host.name, f"{host.name}: {problem.reason} ({left:,} of it are left)"))
    except BaseException as error:
        told.put(error)


def _by_host(known: _Known) -> dict[str, dict[str, int]]:
    hosts: dict[str, dict[str, int]] = {}
    for video, record in known.records.items():
        states = hosts.setdefault(known.sources.addresses[video].host, dict.fromkeys(STATES, 0))
        states[record.state] += 1
    return dict(sorted(hosts.items(), key=lambda host: (-sum(host[1].values()), host[0])))


@contextmanager
def _results(work: Path) -> Iterator[Path]:
    """The file of answers of a run, in a folder that one process at a time works in; it stays if the run does not end well."""
    shown = one_line(work)
    try:
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(work / "lock", timeout=0):
            results = work / "results.jsonl"
            try:
                yield results
            finally:
                if results.is_file() and not results.stat().st_size:
                    shutil.rmtree(work)
    except Timeout:
        raise DataError(f"{shown}: another run is asking these sources; wait for it, or name another --out") from None
    except OSError as error:
        raise DataError(f"{shown}: cannot be written ({error.strerror}); make room or rights, or name another --out") from None


def _write(path: Path, lines: Iterable[bytes]) -> None:
    """Write a file anew; the old one stands until the new one is whole."""
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.writelines(lines)
    os.replace(partial, path)


def _write_into_dataset(home: Path, records: Mapping[str, AvailabilityRecord]) -> None:
    """Put the report into a dataset, with card and manifest that know of it; one that says so already is left as it is."""
    standing = home / AVAILABILITY
    if standing.is_file() and standing.read_bytes() == b"".join(_lines(records)):
        return
    if not records and not standing.is_file():
        return
    with edition(home) as new:
        sources, _ = dataset_sources(new)  # videos may have been withdrawn since the first was asked
        path = replace_file(new / AVAILABILITY)
        _write(path, _lines({video: record for video, record in records.items() if video in sources}))
        manifest = read_manifest(new)
        write_manifest(new, manifest, {**manifest["files"], AVAILABILITY: file_hash(path)})
