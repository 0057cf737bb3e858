"""One film from its file to stories ready to pack: the stages in data order, each staged on disk.

``screen → cuts → clips → scores → rows`` (titles, script, references and audio subset, a story at a time). A stage's folder is
named by its settings and those of the stages before it: a run with other settings redoes what depends on them and nothing
else. What became of the film stands in one small file at the end; where that is there, nothing else is looked at.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from animeshooter_dataset import DataError, DroppedRecord, Evidence, FilmRecord, RightsRecord, ShotScores
from curation.annotators import question_of
from curation.asking import ABOUT, prompt
from curation.clips import ClipConfig, ClipInfo, ClipSpan, FilmShots, cut_clips
from curation.collect import Dropped, Film, rights_of, title_of
from curation.config import LATE, OUTSIDE, BuildConfig
from curation.cuts import FilmCuts, Span, detect_cuts, shots
from curation.judge import Judge, judge_of
from curation.memory import give_back, keep_large_blocks_apart
from curation.rows import write_stories
from curation.scores import load_aesthetic, score_shots
from curation.screen import Screening, screen
from curation.script import NoAnswer
from curation.sidecar import SidecarScript, check_length, read_sidecar
from curation.sound import FilmSound, hear
from curation.staging import fingerprint, staged
from curation.story import Picture, StudiedFilm

if TYPE_CHECKING:
    from curation.align import Alignment

STAGES = ("screen", "cuts", "clips", "scores", "rows")
"""Names under which the progress of a film is told, and under which it is dropped."""
REVISION = 7
"""Raised when a stage's code changes its results, so that staged results of older code are not taken for new ones."""


JUDGED = ("film", "shot", "reference")
"""What a judge is asked about; the prompts are ``judge_*.md``."""


class Curated(BaseModel):
    """What became of one film; its stories and media, where it has any, lie in the folder ``rows`` beside this file."""

    record: FilmRecord
    rights: RightsRecord
    rows: str | None
    dropped: list[DroppedRecord]


@dataclass(frozen=True)
class _Marks:
    """Names of the folders of a film's staged results.

    They are hashes of settings alone, so that a film that is done is known without reading any of its results.
    """

    screen: str
    cuts: str
    clips: str
    scores: str
    rows: str
    result: str


def curate(film: Film, config: BuildConfig, work: Path, progress: Callable[[str], None] = lambda _: None) -> Path:
    """Take one film through all stages.

    Args:
        film: the film.
        config: the settings.
        work: folder for staged results; the film gets one of its own in it.
        progress: called with the name of each stage of :data:`STAGES` when it is done.

    Returns:
        The file that holds a :class:`Curated`. A film that cannot be used has one too, which says why.

    Raises:
        NoAnswer: a model could not be asked; the film is not settled, another run may go on with it.
    """
    keep_large_blocks_apart()
    home = work / film.id
    marks = _marks_of(film, config)
    result = home / f"result-{marks.result}.json"
    if result.is_file():
        return result
    ABOUT.set(film.id)
    curated = _Run(film, config, home, marks, progress).through()
    home.mkdir(parents=True, exist_ok=True)
    partial = result.with_suffix(".partial")
    partial.write_text(curated.model_dump_json())
    os.replace(partial, result)
    return result


def _marks_of(film: Film, config: BuildConfig) -> _Marks:
    judge = [config.judge, asdict(config.ask), *(prompt(f"judge_{what}.md") for what in JUDGED)] if config.judge else None
    release = [film.release.sha256, asdict(config.align)] if film.release else None
    screened = fingerprint(REVISION, asdict(config.screen), judge, bool(release))
    cuts = fingerprint(REVISION, asdict(config.cuts))
    clips = fingerprint(cuts, asdict(config.clips), release)
    scores = fingerprint(clips, screened, asdict(config.scores), asdict(config.sound), judge)
    settings = {name: value for name, value in asdict(config).items() if name not in (*LATE, *OUTSIDE)}
    words = film.script.read_text(errors="replace") if film.script else None
    source = film.source.model_dump(mode="json") if film.source else None
    rows = fingerprint(scores, settings, words, source, question_of(config), film.name)
    return _Marks(screened, cuts, clips, scores, rows, fingerprint(screened, rows))


def film_record(film: Film, **values: Any) -> FilmRecord:
    """The line of ``films.jsonl`` on a film that can be read, with what else is known of it."""
    known = {name: getattr(film.info, name) for name in FilmRecord.model_fields if hasattr(film.info, name)}
    return FilmRecord(video=film.id, film=film.name, sha256=film.sha256, **known, **values)


@dataclass
class _Run:
    """One film on its way through the stages."""

    film: Film
    config: BuildConfig
    home: Path
    marks: _Marks
    progress: Callable[[str], None]
    stage: str = "script"
    script: SidecarScript | None = None
    screening: Screening | None = None
    evidence: list[Evidence] = field(default_factory=list)

    def through(self) -> Curated:
        """All stages, or as far as the film gets."""
        try:
            return self._stages()
        except NoAnswer:
            raise
        except DataError as error:
            return self._lost(str(error))

    def _stages(self) -> Curated:
        film, config = self.film, self.config
        self.script, dropped = _script_of(film, config)
        judge = judge_of(config.judge, config.ask, config.limits)
        self.screening = Screening.load(self._staged("screen", lambda folder: self._screen(judge).save(folder)))
        if self.screening.reason and not film.release:
            return self._lost(self.screening.reason)
        cuts = FilmCuts.load(self._staged("cuts", lambda folder: detect_cuts(film.path, config.cuts).save(folder)))
        told = self._told(cuts)
        if self.script is not None and film.script is not None and config.annotator in ("auto", "sidecar"):
            self.stage = "script"
            check_length(self.script, film.script, cuts.end)
        whole = self._clips(cuts, told.spans if told else shots(cuts))
        picture = self._picture(whole.infos[0])
        store = self._staged("scores", lambda folder: self._score(whole, picture, judge, folder))
        scores = [ShotScores.model_validate(each) for each in json.loads((store / "scores.json").read_text())]
        studied = StudiedFilm(whole, picture, scores, FilmSound.load(store / "sound.npz"))
        rows = self._staged("rows", lambda folder: write_stories(studied, self.script, config, judge, folder, told))
        written = json.loads((rows / "summary.json").read_text())
        dropped += [Dropped(film.path, stage, reason) for stage, reason in written["dropped"]]
        if not written["stories"]:
            raise DataError(dropped[0].reason if dropped else f"{film.path}: no story could be made of it")
        heard = studied.sound.scores(0.0, whole.times[-1])
        counts = {"stories": written["stories"], "shots": written["shots"], "sound": heard}
        return Curated(
            record=self._record(state="kept", **counts),
            rights=self._rights("kept"),
            rows=rows.name,
            dropped=[DroppedRecord(**loss.public()) for loss in dropped],
        )

    def _staged(self, stage: str, make: Callable[[Path], None]) -> Path:
        self.stage = stage
        folder = staged(self.home / f"{stage}-{getattr(self.marks, stage)}", make)
        give_back()
        self.progress(stage)
        return folder

    def _screen(self, judge: Judge | None) -> Screening:
        """The checks of a film. A film of the official release was chosen by others: nothing but its picture is asked for."""
        if self.film.release:
            return screen(self.film, replace(self.config.screen, max_seconds=None), None)
        return screen(self.film, self.config.screen, judge)

    def _told(self, cuts: FilmCuts) -> Alignment | None:
        """What the official release tells of a film, laid on the film's own cuts; None for a film of any other origin.

        Raises:
            DataError: its file cannot be used, or it tells of no story in this film.
        """
        if not self.film.release:
            return None
        from curation.align import align
        from curation.release import read_video

        self.stage = "release"
        video = read_video(self.film.release)
        told = align(video, cuts, self.config.align)
        told = replace(told, dropped=(*video.notes, *told.dropped))
        self.evidence = list(told.evidence)
        if not told.stories:
            raise DataError(f"{self.film.path}: {'; '.join(told.dropped) or 'the release tells of no story in it'}")
        return told

    def _clips(self, cuts: FilmCuts, spans: Sequence[Span]) -> FilmShots:
        times = [*(float(cuts.frames.pts[span.start_frame]) for span in spans), cuts.end]
        store = self._staged("clips", lambda folder: _store_clips(self.film, spans, times, folder, self.config.clips))
        infos = [ClipInfo(**info) for info in json.loads((store / "clips.json").read_text())]
        paths = [store / f"{number:05d}.mp4" for number in range(len(spans))]
        return FilmShots(self.film, cuts, spans, times, paths, infos)

    def _picture(self, clip: ClipInfo) -> Picture | None:
        """What lies inside black bars in pixels of the clips; None for all of it."""
        assert self.screening is not None
        info, box = self.film.info, self.screening.picture
        if box == (0, 0, info.width, info.height):
            return None
        across, down = clip.width / info.width, clip.height / info.height
        x0, y0 = math.ceil(box[0] * across - 1e-6), math.ceil(box[1] * down - 1e-6)
        x1, y1 = math.floor(box[2] * across + 1e-6), math.floor(box[3] * down + 1e-6)
        return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None

    def _score(self, whole: FilmShots, picture: Picture | None, judge: Judge | None, folder: Path) -> None:
        config = self.config.scores
        if config.aesthetic_model and config.aesthetic_head:
            try:
                load_aesthetic(config.aesthetic_model, config.aesthetic_head)
            except DataError as error:
                raise NoAnswer(str(error)) from None  # the model is at fault and not the film
        scores = score_shots(whole, config, judge, picture)
        (folder / "scores.json").write_text(json.dumps([each.model_dump(mode="json") for each in scores]))
        hear(self.film, self.config.sound).save(folder / "sound.npz")

    def _lost(self, reason: str) -> Curated:
        told = DroppedRecord(**Dropped(self.film.path, self.stage, reason).public())
        record = self._record(state="dropped", stage=self.stage, reason=told.reason)
        return Curated(record=record, rights=self._rights("dropped"), rows=None, dropped=[told])

    def _record(self, **values: Any) -> FilmRecord:
        if self.screening is not None:
            values |= {"evidence": [*self.screening.evidence, *self.evidence], "picture": self.screening.picture}
        return film_record(self.film, **values)

    def _rights(self, state: Any) -> RightsRecord:
        film, script = self.film, self.script
        stated = rights_of(film, script).model_dump()
        return RightsRecord(video=film.id, title=title_of(film, script), sha256=film.sha256, state=state, **stated)


def _script_of(film: Film, config: BuildConfig) -> tuple[SidecarScript | None, list[Dropped]]:
    """The script beside a film. One that cannot be read loses the film, unless its captions are not wanted anyway."""
    if film.script is None:
        if config.annotator == "sidecar" and not film.release:
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
