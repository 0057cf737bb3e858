"""Prologue and epilogue: which shots of a film are title cards, credits and leaders rather than story.

A shot is of that kind when it is black or of one colour, when text covers much of it, or when there is some text and the
picture has no more contrast than that text makes on an empty ground. Only runs that begin with the film's first shot or end
with its last one count, and only up to a share of the film: cards in the middle of a trailer belong to the trailer, and the
sign of a shop in the first shot covers too little of a full picture. Shots full of text, as credits are, count also where a
short scene lies between them and the film's end (a scene after the credits) or its start (a scene before the title).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from animeshooter_dataset import ShotScores
from curation.cuts import FrameFeatures, Span

INK = 0.35
"""Share of a line's polygon that its letters fill, bold ones: white on black, a cover c makes a contrast of 255 sqrt(INK c)."""


@dataclass(frozen=True)
class TitlesConfig:
    """Settings; covers and shares are 0 to 1.

    Attributes:
        cover: text cover from which a shot is a title, whatever is behind the text. The covers are means over a shot, so that
            a title that stands for half of it counts half. A large sign has half as much.
        card_cover: the same for a shot whose picture is otherwise empty.
        credits_cover: text cover from which a shot is one of credits, also away from the film's ends.
        empty: contrast (standard deviation of luma, of 255) that an empty ground may have besides that of the text.
        leader: share of black frames, or of frames of one colour, from which a shot is a leader.
        share: most of the film's time that prologue or epilogue may take, each.
    """

    cover: float = 0.03
    card_cover: float = 0.005
    credits_cover: float = 0.08
    empty: float = 6.0
    leader: float = 0.8
    share: float = 0.25


def find_titles(
    spans: Sequence[Span],
    times: Sequence[float],
    scores: Sequence[ShotScores],
    frames: FrameFeatures,
    config: TitlesConfig | None = None,
) -> list[Literal["prologue", "epilogue"] | None]:
    """Tells prologue and epilogue from story.

    Args:
        spans: all shots of a film, in order.
        times: start of each shot and end of the last, in seconds; one longer than ``spans``.
        scores: measures of each shot; of them ``text_cover``, ``contrast`` and ``black_frames`` are used, None counts as 0.
        frames: measures of the film's frames; of them ``flat`` is used.
        config: settings.

    Returns:
        One entry a shot: ``prologue``, ``epilogue``, or None for story.
    """
    config = config or TitlesConfig()
    title = [_is_title(span, score, frames, config) for span, score in zip(spans, scores)]
    full = [(score.text_cover or 0.0) >= config.credits_cover for score in scores]
    lengths = [end - start for start, end in pairwise(times)]
    budget = config.share * (times[-1] - times[0])
    found: list[Literal["prologue", "epilogue"] | None] = [None] * len(spans)
    for shot in _run(range(len(spans)), title, full, lengths, budget):
        found[shot] = "prologue"
    for shot in _run(reversed(range(len(spans))), title, full, lengths, budget):
        found[shot] = "epilogue"
    return found


def _is_title(span: Span, score: ShotScores, frames: FrameFeatures, config: TitlesConfig) -> bool:
    cover = score.text_cover or 0.0
    flat = float(frames.flat[span.start_frame : span.end_frame].mean())
    if max(score.black_frames or 0.0, flat) >= config.leader or cover >= config.cover:
        return True
    return cover >= config.card_cover and (score.contrast or 0.0) <= config.empty + 255 * (INK * cover) ** 0.5


def _run(
    order: Iterable[int], title: Sequence[bool], full: Sequence[bool], lengths: Sequence[float], budget: float
) -> list[int]:
    """Shots of a run of titles from one end of a film, until ``budget`` seconds are passed.

    Beyond the first shot of story only shots full of text count, and the other titles directly before and after those.
    """
    taken: list[int] = []
    waiting: list[int] = []
    unbroken, passed = True, 0.0
    for shot in order:
        passed += lengths[shot]
        if passed > budget:
            break
        if not title[shot]:
            unbroken, waiting = False, []
        elif unbroken or full[shot]:
            taken += [*waiting, shot]
            unbroken, waiting = True, []
        else:
            waiting.append(shot)
    return taken
