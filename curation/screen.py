"""Stage ``screen``: is a film one to make a dataset of, and what of its picture lies inside black bars.

Each check measures something, stores what it measured beside its limit, and says whether the film passed; the first one that
did not is the reason for which the film is dropped (AnimeShooter, arXiv 2506.03126, section 3: over 20 minutes, not
animation, embedded subtitles).

* ``duration``: the container's word.
* ``subtitles`` and ``watermark``: text detection at points spread evenly over the film, see ``curation.subtitles``. Subtitles
  drop the film; a watermark is recorded, and drops it only where the settings say so.
* ``subtitles_judged``: a judge's verdict, where one is asked. It drops the film as well, but only when the detector saw text at
  all: a film without any text has no subtitles, whatever a model says.
* ``letterbox``: rows and columns along the border that stay black, text on them left out, while the picture is lit. Pictures
  that are dark as a whole tell nothing and are not asked. The film is dropped only when little is left between the bars.
* ``animation``: a judge's verdict. Without a judge it is not told: grain and held picture are recorded, see
  ``curation.animation``, and drop the film only where the settings say so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from animeshooter_dataset import DataError, Evidence
from curation.animation import Grain, film_grain, measure_grain
from curation.collect import Film
from curation.judge import FILM_FRAMES, FilmVerdict, Judge
from curation.lines import one_line
from curation.sampling import Reader, Sample, Sampler, size_of
from curation.script import NoAnswer
from curation.subtitles import Box, Line, find_overlays, lines_at, subtitle_place
from curation.text import LONG_SIDE, find_text, text_mask

LOST = 0.1
"""Share of points that may not be had by seeking before the film is read from start to end instead."""
BLACK = 12
"""Luma (0 to 255, full range) up to which a pixel is black; lossy codecs leave a few levels of noise on bars."""
STORY = (0.1, 0.8)
"""Part of the film in which text is reason to look closer; before and after it there are titles and credits."""
GRAIN_POINTS = 10
"""Points at which two pictures in a row are compared."""
MOMENT = 1e-4
"""Seconds by which the next picture is later at the least."""
MIN_LIT_SHARE = 0.2
"""Share of its pixels above black from which a picture says anything about bars: night and fades do not."""
MIN_LIT = 4
"""Pictures that must be lit before bars are looked for."""
LIT_LINE = 0.01
"""Share of the pixels of a row or column above black from which it has light."""
STRAY = 0.05
"""Share of the lit pictures that may light a bar: a studio's card in another shape, say."""
CRISP, CRISP_PERCENTILE = 30.0, 75
"""Mean luma of what is not black that the row one hundredth of the frame inside the edge of a bar must reach in a quarter of
the lit pictures."""


@dataclass(frozen=True)
class ScreenConfig:
    """Settings of the checks.

    Attributes:
        max_seconds: films longer than this are dropped (20 minutes in the paper); None for no limit.
        points: points of the film looked at; less in films shorter than half a second a point.
        later: seconds between the two pictures of a point in which text must persist.
        subtitle_texts: different texts in one place from which they are subtitles; None to keep films with subtitles.
        subtitle_share: share of points that must have one, besides.
        subtitle_parts: of eight equal parts of the film, how many must have one, besides.
        watermark_share: share of points from which one text in one place is a watermark.
        drop_watermarks: whether films with a watermark are dropped.
        min_picture: share of the frame that must lie inside black bars; 0 for no limit.
        max_grain: grain in grey levels from which a film counts as photographed where no judge is asked; None not to decide by
            that. Films drawn and coloured on a computer have little; 1.0 parts them from an uncompressed camera.
    """

    max_seconds: float | None = 1200.0
    points: int = 40
    later: float = 0.5
    subtitle_texts: int | None = 3
    subtitle_share: float = 0.05
    subtitle_parts: int = 3
    watermark_share: float = 0.3
    drop_watermarks: bool = False
    min_picture: float = 0.5
    max_grain: float | None = None


@dataclass(frozen=True)
class Screening:
    """What the checks found.

    Attributes:
        evidence: every check, passed or not.
        picture: what lies inside black bars: (x0, y0, x1, y1) in pixels of the film as displayed, ends exclusive.
        reason: one line that says which check dropped the film, with its numbers; None when it is kept.
    """

    evidence: list[Evidence]
    picture: tuple[int, int, int, int]
    reason: str | None

    def save(self, folder: Path) -> None:
        """Writes ``screening.json``."""
        record = {**asdict(self), "evidence": [item.model_dump(mode="json") for item in self.evidence]}
        (folder / "screening.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Screening:
        """Reads what :meth:`save` wrote."""
        record = json.loads((folder / "screening.json").read_text())
        x0, y0, x1, y1 = record["picture"]
        return cls([Evidence.model_validate(item) for item in record["evidence"]], (x0, y0, x1, y1), record["reason"])


class Light(NamedTuple):
    """Light in the rows, or columns, of a picture.

    Attributes:
        lit: which have some, bool [n].
        luma: mean luma of the pixels of each that are not black, 0 to 255, [n].
    """

    lit: np.ndarray
    luma: np.ndarray


@dataclass
class Look:
    """What was seen of a film at its sampled points.

    Attributes:
        seconds: length of the film.
        size: (width, height) of the film as displayed.
        times: of the points, ascending.
        pictures: the first picture of each point, RGB uint8 at most :data:`LONG_SIDE` long.
        with_text: points at which the detector found any text.
        lines: lines of text that persisted.
        rows: for every picture that is not dark, the light of its rows outside text, see :class:`Light`.
        columns: the same of its columns.
        grains: of some points, how two pictures in a row differ.
    """

    seconds: float
    size: tuple[int, int]
    times: list[float] = field(default_factory=list)
    pictures: list[np.ndarray] = field(default_factory=list)
    with_text: int = 0
    lines: list[Line] = field(default_factory=list)
    rows: list[Light] = field(default_factory=list)
    columns: list[Light] = field(default_factory=list)
    grains: list[Grain] = field(default_factory=list)


def screen(film: Film, config: ScreenConfig, judge: Judge | None = None) -> Screening:
    """Puts a film to all checks.

    Args:
        film: the film.
        config: limits.
        judge: who says whether the film is animation and has subtitles; None to go by measurement. It is asked only about
            films that pass what can be measured.

    Raises:
        DataError: the film cannot be read.
        NoAnswer: the judge could not be asked; the film is not settled.
    """
    look = look_at(film, config)
    picture, letterbox = check_letterbox(look, config)
    subtitles, watermark = check_subtitles(look, config), check_watermark(look, config)
    evidence = [check_duration(film.info.duration, config), subtitles, watermark, letterbox]
    if judge is not None and not any(item.passed is False for item in evidence):
        evidence += ask(judge, look)
    else:
        evidence.append(check_animation(look, config))
    failed = next((item for item in evidence if item.passed is False), None)
    return Screening(evidence, picture, f"{film.path}: {failed.check}: {failed.detail}" if failed else None)


def look_at(film: Film, config: ScreenConfig) -> Look:
    """Visits points spread evenly over the film, by seeking; where that fails, by reading it from start to end.

    Where text kept to one place but too few points had it for a decision, as many points again are visited between them, unless
    it came only where credits do.

    Raises:
        DataError: the film is damaged, truncated, or not to be decoded.
    """
    info = film.info
    look = Look(info.duration, (info.width, info.height))
    count = max(1, min(config.points, int(info.duration / max(config.later, 0.1))))
    gap = info.duration / count
    times = [(number + 0.5) * gap for number in range(count)]
    with Sampler(film.path) as sampler:
        lost = visit(look, sampler, times, gap, config)
        if lost <= LOST * count:
            if _undecided(look, config):
                visit(look, sampler, [number * gap for number in range(1, count)], gap / 4, config)
                order = sorted(range(len(look.times)), key=look.times.__getitem__)
                look.times = [look.times[place] for place in order]
                look.pictures = [look.pictures[place] for place in order]
            return look
    look = Look(info.duration, (info.width, info.height))
    with Reader(film.path) as reader:
        visit(look, reader, times, gap, config)
        reader.finish()
    return look


def visit(look: Look, reader: Sampler | Reader, times: Sequence[float], gap: float, config: ScreenConfig) -> int:
    """Looks at some points of a film.

    Args:
        look: takes what is seen.
        reader: reads the film.
        times: of the points in seconds, ascending.
        gap: seconds from one to the next; a key frame up to this much earlier will do, where the point before is not close.
        config: settings.

    Returns:
        How many points gave no picture.
    """
    size = size_of(*look.size, LONG_SIDE)
    lost, before, stride = 0, -gap, max(1, len(times) // GRAIN_POINTS)
    for number, time in enumerate(times):
        first = reader.at(time, max(time - gap, before + gap / 4))
        if first is None:
            lost += 1
            continue
        before = first.time
        image = first.rgb(size)
        polygons = find_text(image)
        look.times.append(first.time)
        look.pictures.append(image)
        _note_light(look, first, polygons, size)
        following = reader.until(first.time + MOMENT) if number % stride == stride // 2 else None
        if following is not None:
            look.grains.append(measure_grain(first.luma(), following.luma()))
        second = reader.until(first.time + config.later) if polygons else None
        look.with_text += bool(polygons)
        if second is not None:
            later = second.rgb(size)
            look.lines += lines_at(first.time, image, later, polygons, find_text(later))
    return lost


def check_duration(seconds: float, config: ScreenConfig) -> Evidence:
    """Whether a film is short enough."""
    limit = config.max_seconds
    passed = limit is None or seconds <= limit
    detail = f"{seconds:.1f} s long" + ("" if limit is None else f", {'within' if passed else 'over'} the limit of {limit:g} s")
    return Evidence(check="duration", passed=passed, value=round(seconds, 3), limit=limit, detail=detail)


def check_subtitles(look: Look, config: ScreenConfig) -> Evidence:
    """Whether subtitles are burnt in: texts that come and go at one place away from the middle, all through the film."""
    limit, overlay = config.subtitle_texts, subtitle_place(look.lines)
    if overlay is None:
        return _overlay("subtitles", True, 0, limit, f"no text comes and goes at one place at {len(look.times)} points")
    times = sorted({time for text in overlay.passing for time in text})
    texts = min(len(overlay.passing), len(times))  # of two rows at once one counts
    parts = len({int(8 * time / look.seconds) for time in times})
    few = (
        limit is None or texts < limit or len(times) < config.subtitle_share * len(look.times) or parts < config.subtitle_parts
    )
    detail = (
        f"{texts} different texts in {_place(overlay.place)}, at {len(times)} of {len(look.times)} points, "
        f"in {parts} of 8 parts of the film"
    )
    return _overlay("subtitles", few, texts, limit, detail)


def _undecided(look: Look, config: ScreenConfig) -> bool:
    """Whether some text came and went, elsewhere than near the film's ends, but not often enough to be called subtitles."""
    overlay = subtitle_place(look.lines)
    if overlay is None or config.subtitle_texts is None or not check_subtitles(look, config).passed:
        return False
    return any(STORY[0] <= time / look.seconds <= STORY[1] for text in overlay.passing for time in text)


def check_watermark(look: Look, config: ScreenConfig) -> Evidence:
    """Whether one text stands at one place all through the film."""
    overlay = max(find_overlays(look.lines), key=lambda overlay: len(overlay.lasting), default=None)
    most, points = len(overlay.lasting) if overlay else 0, len(look.times)
    share = most / max(1, points)
    found = most > 0 and share >= config.watermark_share
    detail = (
        f"the same text at {most} of {points} points in {_place(overlay.place)}" if overlay and most else "no text that stays"
    )
    return _overlay("watermark", not (found and config.drop_watermarks), share, config.watermark_share, detail)


def _overlay(check: str, passed: bool, value: float, limit: float | None, detail: str) -> Evidence:
    return Evidence(
        check=check, passed=passed, value=round(float(value), 4), limit=None if limit is None else float(limit), detail=detail
    )


def check_letterbox(look: Look, config: ScreenConfig) -> tuple[tuple[int, int, int, int], Evidence]:
    """What lies inside black bars, in displayed pixels, and whether enough does."""
    width, height = look.size
    whole = (0, 0, width, height)
    if len(look.rows) < MIN_LIT:
        detail = f"{len(look.rows)} of {len(look.times)} pictures are lit: too dark to tell"
        return whole, Evidence(check="letterbox", passed=None, value=None, limit=config.min_picture, detail=detail)
    y0, y1 = _inside(look.rows)
    x0, x1 = _inside(look.columns)
    share = (x1 - x0) * (y1 - y0) / (width * height)
    detail = f"picture {x1 - x0} x {y1 - y0} at ({x0}, {y0}) of {width} x {height}" if share < 1 else "no bars"
    passed = share >= config.min_picture
    return (x0, y0, x1, y1), Evidence(
        check="letterbox",
        passed=passed,
        value=round(share, 4),
        limit=config.min_picture,
        detail=f"{share:.0%} of the frame: {detail}",
    )


def ask(judge: Judge, look: Look) -> list[Evidence]:
    """A judge's verdict on a film as evidence; one that cannot be used tells nothing, and drops nothing.

    Raises:
        NoAnswer: the judge could not be asked.
    """
    try:
        verdict = judge.film(_uniform(look.pictures, FILM_FRAMES))
    except NoAnswer:
        raise
    except DataError as error:
        return [Evidence(check="animation", passed=None, detail=f"the judge gave no verdict: {one_line(str(error))}")]
    return [check_verdict(verdict, look), judged_animation(verdict)]


def check_verdict(verdict: FilmVerdict, look: Look) -> Evidence:
    """A judge's word on subtitles; without any text in the film it is not believed."""
    passed = None if verdict.subtitles and not look.with_text else not verdict.subtitles
    doubt = f" (not believed: no text at {len(look.times)} points)" if passed is None else ""
    return Evidence(check="subtitles_judged", passed=passed, detail=f"judge: {verdict.reason}{doubt}")


def judged_animation(verdict: FilmVerdict) -> Evidence:
    """Whether a film is animation, by a judge's word."""
    return Evidence(check="animation", passed=verdict.animation, detail=f"judge: {verdict.reason}")


def check_animation(look: Look, config: ScreenConfig) -> Evidence:
    """Whether a film is animation, as far as grain tells; None where it does not."""
    grain, limit = film_grain(look.grains), config.max_grain
    if grain is None or grain.noise is None:
        return Evidence(
            check="animation", passed=None, limit=limit, detail="not told without a judge: no still ground to see grain on"
        )
    seen = f"grain of {grain.noise:.2f} grey levels, {grain.held:.0%} of the picture held from one frame to the next"
    passed = None if limit is None else grain.noise < limit
    told = "not told without a judge: " if passed is None else ""
    return Evidence(check="animation", passed=passed, value=round(grain.noise, 4), limit=limit, detail=told + seen)


def _note_light(look: Look, sample: Sample, polygons: Sequence[np.ndarray], size: tuple[int, int]) -> None:
    """Notes which rows and columns of a picture have light outside text, unless the whole picture is dark."""
    width, height = look.size
    luma = sample.luma()
    if luma.shape != (height, width):
        luma = cv2.resize(luma, (width, height), interpolation=cv2.INTER_AREA)
    scale = np.array([width / size[0], height / size[1]])
    lit = (luma > BLACK) & ~text_mask([polygon * scale for polygon in polygons], height, width)
    if lit.mean() >= MIN_LIT_SHARE:
        shining = np.where(lit, luma, 0)
        for lights, axis in ((look.rows, 1), (look.columns, 0)):
            count = lit.sum(axis=axis)
            lights.append(Light(count > LIT_LINE * lit.shape[axis], shining.sum(axis=axis) / np.maximum(count, 1)))


def _inside(lights: Sequence[Light]) -> tuple[int, int]:
    """First row (or column) inside the bars and first after it.

    Just inside a bar the picture has its full light; where light comes in gradually, a dark floor or a vignette was no bar.
    """
    lit = np.mean([light.lit for light in lights], axis=0)
    luma = np.percentile([light.luma for light in lights], CRISP_PERCENTILE, axis=0)
    length = len(lit)
    steps = max(2, length // 100)
    inside = np.flatnonzero(lit > STRAY)
    if not len(inside):
        return 0, length
    first, last = int(inside[0]), int(inside[-1])
    # The codec bleeds a little light into a bar: its edge is where the full light begins
    bright = luma >= CRISP
    first = next((line for line in range(first, min(first + steps + 1, length)) if bright[line]), 0)
    last = next((line for line in range(last, max(last - steps - 1, -1), -1) if bright[line]), length - 1)
    return first, last + 1


def _place(box: Box) -> str:
    return "the box " + " ".join(f"{value:.2f}" for value in box) + " of the frame"


def _uniform(pictures: Sequence[np.ndarray], count: int) -> list[np.ndarray]:
    """At most ``count`` of the pictures, evenly spread."""
    count = min(count, len(pictures))
    return [pictures[(2 * number + 1) * len(pictures) // (2 * count)] for number in range(count)]
