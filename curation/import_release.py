"""``animeshooter import-release``: the official AnimeShooter release and the videos it tells of, to a dataset directory.

The release is annotation alone. A video is taken from a folder of one's own or fetched from its address; one that is missing or
has changed costs its own rows and nothing else. Splits depend on the release, never on what could be had of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from animeshooter_dataset import AvailabilityRecord, DataError, FilmRecord, RightsRecord
from curation import engine as engines
from curation.availability import read_availability
from curation.collect import Dropped, Film, expand
from curation.config import BuildConfig
from curation.job import BuildReport, Gathered, Job, Lost, Progress, withheld
from curation.lines import one_line
from curation.optout import OptOut
from curation.origin import Address, read_source, source_path
from curation.release import Release, ReleaseEntry, open_release
from curation.rules import Rule
from curation.story import RELEASE_LICENCE


def import_release(
    release: Path,
    out: Path,
    config: BuildConfig | None = None,
    *,
    audio: Path | None = None,
    videos: Path | None = None,
    download: bool = False,
    availability: Path | None = None,
    workers: int = 1,
    engine: str = "local",
    rules: Sequence[Rule] | None = None,
    work: Path | None = None,
    downloads: Path | None = None,
    retry_failed: bool = False,
    opt_out: Sequence[Path] = (),
    progress: Progress = lambda done, total, label: None,
) -> BuildReport:
    """Make a dataset directory of the official release.

    Args:
        release: the release's zip, the folder it was unpacked to, or one of its files.
        out: the directory to write; an earlier dataset there is replaced when the new one is whole.
        config: the settings; those of screening, stories and captions do not matter here, as the release decides on them.
        audio: the release's audio zip or folder.
        videos: folder of videos; a file belongs to the id it is named by (``ID.mp4``, ``Title [ID].mp4``, ``Title-ID.mp4``), or
            that ``NAME.source.json`` beside it tells.
        download: fetch what is not in ``videos``.
        availability: a report of ``verify-sources``; what it says is gone is not asked for.
        workers: as in :func:`curation.build.build`, like all that follow.
        engine: ``local`` or ``ray``.
        rules: which shots training takes.
        work: folder for staged results.
        downloads: folder for fetched videos, kept.
        retry_failed: try also addresses that an earlier run says failed for good.
        opt_out: lists of videos that are not to be used.
        progress: called with steps done, steps in all, and a label.

    Raises:
        DataError: the release cannot be opened, no video of it could be had, or the output cannot be written.
    """
    if videos is None and not download:
        raise DataError(f"{release}: holds no videos; name --videos DIR, or --download to fetch them")
    if videos is not None and not videos.is_dir():
        raise DataError(f"{videos}: no folder; name the folder that holds the videos, or --download to fetch them")
    run = partial(engines.run, engine, workers)
    job = Job(out, config or BuildConfig(), run, rules, work, downloads, opt_out, progress)
    with job.begun() as optout:
        told = open_release(release, audio, progress=progress)
        search = _Search(told.entries, optout)
        if videos is not None:
            search.look(videos)
        known = read_availability(availability) if availability else {}
        if download:
            search.fetch(job, known, retry_failed)
        search.settle()
        return job.finish(replace(_gathered(search, job, told, release, audio), availability=list(known.values())))


def _gathered(search: _Search, job: Job, told: Release, release: Path, audio: Path | None) -> Gathered:
    """Probe the videos that were found, and say of every other one why it is not there."""
    by_path = {path: search.entries[key] for key, path in search.found.items()}
    films, unusable = job.read(sorted(by_path))
    lost = [Lost(problem) for problem in told.problems] + search.lost
    lost += [_missing(by_path[loss.path], loss) for loss in unusable]
    named: list[Film] = []
    for film in films:
        entry = by_path[film.path]
        named.append(replace(film, id=entry.key, release=replace(entry, url=_public(entry.url))))
    facts = {
        "release": {
            "name": release.name,
            "audio": audio.name if audio else None,
            "videos": len(told.entries),
            "stories": sum(entry.segments for entry in told.entries),
            "shots": sum(entry.shots for entry in told.entries),
            "annotation_licence": RELEASE_LICENCE,
        }
    }
    return Gathered(sorted(named, key=lambda film: film.id), lost, len(told.entries), facts)


@dataclass
class _Search:
    """The search for the videos of a release.

    Attributes:
        entries: what is looked for, by key.
        found: files that were found, by key.
        lost: what is not to be had.
    """

    told: Sequence[ReleaseEntry]
    optout: OptOut
    entries: dict[str, ReleaseEntry] = field(default_factory=dict)
    found: dict[str, Path] = field(default_factory=dict)
    lost: list[Lost] = field(default_factory=list)

    def __post_init__(self) -> None:
        for entry in self.told:
            why = self.optout.match(id=entry.key, address=entry.url) or self.optout.match(id=entry.id)
            if why is None:
                self.entries[entry.key] = entry
            else:
                self.lost.append(withheld(entry.key, why, source=_public(entry.url)))

    def look(self, folder: Path) -> None:
        """Find videos in a folder and below."""
        by_id = {entry.id: entry.key for entry in self.entries.values()}
        by_address = {address.key: key for key, address in self._addresses()}
        lengths = sorted({len(name) for name in by_id}, reverse=True)
        for path in expand([folder])[0]:
            key = _by_source(path, by_id, by_address) or _by_name(path.stem, by_id, lengths)
            if key is None:
                continue
            first = self.found.setdefault(key, path)
            if first is not path:
                line = f"{path}: also named as video {_name(self.entries[key])}, which {first.name} stands for"
                self.lost.append(Lost(Dropped(path, "collect", line)))

    def fetch(self, job: Job, known: Mapping[str, AvailabilityRecord], retry_failed: bool) -> None:
        """Fetch what has not been found yet, but for what is known to be gone."""
        from curation.download import fetch

        wanted = {key: address for key, address in self._addresses() if key not in self.found}
        for key in list(wanted):
            if key in known and known[key].state == "gone":
                self._lose(key, f"not asked for, it was gone on {known[key].checked}: {known[key].reason}")
                del wanted[key]
        films, failures = fetch(
            list(wanted.values()), job.downloads, job.config.download, retry_failed=retry_failed, progress=job.progress
        )
        for key, address in wanted.items():
            if address.key in films:
                self.found[key] = films[address.key]
            elif address.key in failures:
                again = "; --retry-failed asks for it again" if failures[address.key].kind == "permanent" else ""
                self._lose(key, failures[address.key].reason + again)

    def settle(self) -> None:
        """Say of everything that was not found that it was not."""
        said = {each.film.video for each in self.lost if each.film}
        for key in self.entries:
            if key not in self.found and key not in said:
                self._lose(key, "no file is named by it and it was not fetched; fetch it, or run again with --download")

    def _lose(self, key: str, reason: str) -> None:
        entry = self.entries[key]
        self.lost.append(_missing(entry, Dropped(Path(), "collect", f"{_name(entry)}: {reason}", _name(entry))))

    def _addresses(self) -> Iterator[tuple[str, Address]]:
        for key, entry in self.entries.items():
            address = _address(entry)
            if address is not None:
                yield key, address


def _missing(entry: ReleaseEntry, loss: Dropped) -> Lost:
    """What is said of a video that gives no rows."""
    told = loss.public()
    film = FilmRecord(video=entry.key, film=told["film"], state="unavailable", stage=told["stage"], reason=told["reason"])
    return Lost(loss, film, RightsRecord(video=entry.key, source=_public(entry.url), state="unavailable"))


def _by_source(path: Path, by_id: Mapping[str, str], by_address: Mapping[str, str]) -> str | None:
    try:
        source = read_source(source_path(path))
        if source is None:
            return None
        return by_id.get(source.id) or by_address.get(Address.parse(source.address).key)
    except DataError:
        return None  # read_film will say what is wrong with it


def _by_name(stem: str, by_id: Mapping[str, str], lengths: Sequence[int]) -> str | None:
    """The video that a file is named by: its whole name, what stands in brackets at its end, or what follows a separator."""
    bracketed = re.search(r"\[([^\[\]]+)\]\s*$", stem)
    if stem in by_id or (bracketed and bracketed[1] in by_id):
        return by_id.get(stem) or by_id[bracketed[1]]  # type: ignore[index]
    for length in lengths:
        if len(stem) > length and stem[-length - 1] in "-_ ." and stem[-length:] in by_id:
            return by_id[stem[-length:]]
    return None


def _address(entry: ReleaseEntry) -> Address | None:
    for text in (entry.url, f"yt:{entry.id}"):
        try:
            return Address.parse(text or "")
        except DataError:
            continue
    return None


def _public(url: str | None) -> str | None:
    try:
        return Address.parse(url or "").public
    except DataError:
        return None


def _name(entry: ReleaseEntry) -> str:
    return one_line(entry.id)[:80]
