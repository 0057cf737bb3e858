"""One film from its file to stories ready to pack: the stages in data order, each staged on disk.

``cuts → clips → rows`` (script, references and audio subset, a story at a time). A stage's folder is named by its settings and
those of the stages before it: a run with other settings redoes what depends on them and nothing else.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from animeshooter_dataset import DataError
from curation.annotators import question_of
from curation.clips import ClipConfig, ClipInfo, ClipSpan, FilmShots, cut_clips
from curation.collect import Dropped, Film
from curation.config import BuildConfig
from curation.cuts import FilmCuts, Span, detect_cuts, shots
from curation.pack import CuratedStory
from curation.rows import read_stories, write_stories
from curation.sidecar import Rights, SidecarScript, read_sidecar
from curation.staging import fingerprint, staged

STAGES = ("cuts", "clips", "rows")
"""Names under which the progress of a film is told."""
REVISION = 3
"""Raised when a stage's code changes its results, so that staged results of older code are not taken for new ones."""


@dataclass(frozen=True)
class Curated:
    """What one film gave: its stories, the rights its script states, and what was dropped on the way."""

    film: Film
    title: str | None
    rights: Rights
    stories: Sequence[CuratedStory]
    dropped: Sequence[Dropped]


def curate(film: Film, config: BuildConfig, work: Path, progress: Callable[[str], None] = lambda _: None) -> Curated:
    """Take one film through all stages.

    Args:
        film: the film.
        config: the settings.
        work: folder for staged results; the film gets one of its own in it.
        progress: called with the name of each stage of :data:`STAGES` when it is done.

    Raises:
        DataError: nothing of this film can be kept; the line says why.
    """
    script, lost = _script_of(film, config)
    home = work / film.id
    mark = fingerprint(REVISION, asdict(config.cuts))
    cuts = FilmCuts.load(staged(home / f"cuts-{mark}", lambda folder: detect_cuts(film.path, config.cuts).save(folder)))
    progress("cuts")
    spans = shots(cuts)
    times = [*(float(cuts.frames.pts[span.start_frame]) for span in spans), film_end(cuts)]
    mark = fingerprint(mark, asdict(config.clips))
    store = staged(home / f"clips-{mark}", lambda folder: _store_clips(film, spans, times, folder, config.clips))
    infos = [ClipInfo(**info) for info in json.loads((store / "clips.json").read_text())]
    progress("clips")
    whole = FilmShots(film, cuts, spans, times, [store / f"{number:05d}.mp4" for number in range(len(spans))], infos)
    words = film.script.read_text(errors="replace") if film.script else None
    mark = fingerprint(mark, asdict(config), words, question_of(config))
    rows = staged(home / f"rows-{mark}", lambda folder: write_stories(whole, script, config, folder))
    progress("rows")
    stories, dropped = read_stories(rows)
    if not stories:
        raise DataError(dropped[0].reason if dropped else f"{film.path}: no story could be made of it")
    return Curated(film, script.title if script else None, script.rights if script else Rights(), stories, lost + dropped)


def film_end(cuts: FilmCuts) -> float:
    """Seconds at which the last frame ends: its time and the average distance of frames."""
    last = float(cuts.frames.pts[-1])
    return last + (last / (cuts.n_frames - 1) if cuts.n_frames > 1 and last > 0 else 1 / cuts.fps)


def _script_of(film: Film, config: BuildConfig) -> tuple[SidecarScript | None, list[Dropped]]:
    """The script beside a film. One that cannot be read loses the film, unless its captions are not wanted anyway."""
    if film.script is None:
        if config.annotator == "sidecar":
            need = f"no {film.path.stem}.script.json beside it; write one or build with --annotator measure"
            raise DataError(f"{film.path}: {need}")
        return None, []
    try:
        return read_sidecar(film.script), []
    except DataError as error:
        if config.annotator in ("auto", "sidecar"):
            raise
        return None, [Dropped(film.path, "script", f"{error} (the film is kept, its rights are not stated)")]


def _store_clips(film: Film, spans: Sequence[Span], times: Sequence[float], folder: Path, config: ClipConfig) -> None:
    wanted = [
        ClipSpan(folder / f"{number:05d}.mp4", span.start_frame, span.end_frame, start, end)
        for number, (span, start, end) in enumerate(zip(spans, times, times[1:]))
    ]
    infos = cut_clips(film, wanted, config)
    (folder / "clips.json").write_text(json.dumps([asdict(info) for info in infos]))
