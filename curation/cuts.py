"""Shot boundaries: hard cuts to the frame, gradual transitions as spans.

One decode feeds everything: each frame is scaled once to 160 x 90 and measured (:mod:`curation.changes`). A hard cut is an
isolated change that holds little of the picture and that TransNetV2 or PySceneDetect notices. Isolation and held texture do
the telling apart (worlds that flash up behind a still figure, pictures that pop into a composition and light that goes on and
off hold much, cuts hold almost nothing), so the two detectors may be asked with low thresholds. Where TransNetV2 cannot be
loaded, a change that stands out very far stands in for it. What lies between is searched for gradual transitions
(:mod:`curation.transitions`).

Boundaries are decided a stretch of film at a time, each with its surroundings in view, so memory does not grow with the film
but for a few numbers a frame.
"""

from __future__ import annotations

import json
import os
import zipfile
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from animeshooter_dataset import DataError
from curation import network, transitions
from curation.changes import REACH, SMALL, FrameFeatures, FrameMeter, Thumbnails, isolation, isolation_among_moves, standing_out
from curation.video import Frame, RgbScaler, decode, probe

STRETCH, CONTEXT = 4096, 512
"""Frames decided on at a time, and frames in view on both sides of them; no flash or transition is longer than these."""


@dataclass(frozen=True)
class CutsConfig:
    """Settings of the detector; differences are in grey levels of 255, the rest are ratios.

    Attributes:
        network: Use TransNetV2; without it (or when it cannot be loaded) two measures decide.
        notice: TransNetV2 probability from which it notices a change.
        sure: TransNetV2 probability from which it sees a cut, by its authors' rule for use alone.
        content: PySceneDetect content score from which it notices one (its default threshold).
        isolation: Least ratio of a cut's change to any neighbouring change.
        outstanding: The same from which a change needs no other witness when there is no network, and from which it may
            have one more cut near it.
        max_held: Share of textured blocks that may stay the same across a cut.
        certain: TransNetV2 probability from which a cut that the other measures see as well is plain.
        max_held_plain: The same share for a plain cut: somebody may stand where somebody stood before it.
        flash_seconds: Longest flash: the picture is back within this time.
        repeat_level: Difference up to which a frame repeats the one before (a lossy codec's residue).
        gradual: Settings of the search for fades and dissolves.
    """

    network: bool = True
    notice: float = 0.2
    sure: float = 0.5
    content: float = 27.0
    isolation: float = 1.5
    outstanding: float = 3.0
    max_held: float = 0.25
    certain: float = 0.9
    max_held_plain: float = 0.35
    flash_seconds: float = 0.35
    repeat_level: float = 0.25
    gradual: transitions.GradualConfig = field(default_factory=transitions.GradualConfig)


@dataclass(frozen=True)
class Vote:
    """What each detector says of a candidate for a hard cut.

    Attributes:
        frame: First frame of the supposed new shot.
        network: TransNetV2's probability; None where it was not asked.
        content: PySceneDetect's content score.
        isolation: Ratio of the change to the strongest one nearby.
        held: Share of texture that stayed.
        believed: Whether it is taken for a cut.
    """

    frame: int
    network: float | None
    content: float
    isolation: float
    held: float
    believed: bool


@dataclass
class FilmCuts:
    """Shot boundaries of one film.

    Attributes:
        film: File name.
        fps: Average frame rate.
        n_frames: Frames decoded.
        cuts: First frame of every new shot after a hard cut, ascending.
        confidence: For every cut, 0 to 1: mean of the network's probability, isolation and share of texture not held.
        gradual: [first, last] frame of every fade and dissolve, ascending, disjoint.
        frames: Measures of every frame.
        possible: Frames at which a detector saw a cut by its own rule for use alone and was not believed, ascending: at
            most one a second, none beside a cut, in a gradual transition or in a flash.
        votes: What the detectors said of every candidate, believed or not, ascending.
    """

    film: str
    fps: float
    n_frames: int
    cuts: list[int]
    confidence: list[float]
    gradual: list[list[int]]
    frames: FrameFeatures
    possible: list[int] = field(default_factory=list)
    votes: list[Vote] = field(default_factory=list)

    @property
    def flat(self) -> list[list[int]]:
        """[first, last] frame of every stretch of a single colour, such as black, ascending, disjoint."""
        edges = np.flatnonzero(np.diff(np.r_[False, self.frames.flat, False]))
        return [[int(first), int(end) - 1] for first, end in edges.reshape(-1, 2)]

    @property
    def step(self) -> float:
        """Average distance of frames, seconds."""
        last = float(self.frames.pts[-1])
        return last / (self.n_frames - 1) if self.n_frames > 1 and last > 0 else 1 / self.fps

    @property
    def end(self) -> float:
        """Seconds at which the last frame ends: its time and the average distance of frames."""
        return float(self.frames.pts[-1]) + self.step

    def save(self, directory: Path | str) -> None:
        """Writes ``cuts.json`` and ``frames.npz`` into a directory, each by an atomic rename."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        partial = directory / f"frames.{os.getpid()}.npz"
        np.savez_compressed(partial, **vars(self.frames))
        partial.replace(directory / "frames.npz")
        record = {**cuts_json(self), "confidence": self.confidence, "votes": [asdict(vote) for vote in self.votes]}
        partial = directory / f"cuts.{os.getpid()}.json"
        partial.write_text(json.dumps(record, indent=1) + "\n")
        partial.replace(directory / "cuts.json")

    @classmethod
    def load(cls, directory: Path | str) -> FilmCuts:
        """Reads what :meth:`save` wrote.

        Raises:
            DataError: A file is missing or damaged.
        """
        directory = Path(directory)
        try:
            record = json.loads((directory / "cuts.json").read_text())
            record["votes"] = [Vote(**vote) for vote in record["votes"]]
            with np.load(directory / "frames.npz", allow_pickle=False) as arrays:
                frames = FrameFeatures(**{item.name: arrays[item.name] for item in fields(FrameFeatures)})
            return cls(frames=frames, **record)
        except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise DataError(f"{directory}: no readable shot boundaries ({error}); run the cuts stage again") from error


@dataclass(frozen=True)
class Span:
    """One shot as a stretch of frames.

    Attributes:
        start_frame: First frame; the middle of the transition when it is gradual.
        end_frame: Frame after the last.
        clean_start: First frame without any of a gradual transition, or of a short stretch of black, in it.
        clean_end: Frame after the last such; a shot that is all transition keeps its whole stretch.
        transition_in: ``start`` (of the film), ``cut`` or ``gradual``.
    """

    start_frame: int
    end_frame: int
    clean_start: int
    clean_end: int
    transition_in: Literal["start", "cut", "gradual"]


def detect_cuts(film: Path | str | Iterable[Frame], config: CutsConfig | None = None, *, name: str = "") -> FilmCuts:
    """Finds the shot boundaries of a film in one pass.

    Args:
        film: A file, or its frames in order (any size; then the frame rate is taken from their times).
        config: Settings.
        name: File name to record when frames are given.

    Returns:
        Boundaries and the measures they rest on. The same film gives the same result whatever else the machine does.

    Raises:
        DataError: The film cannot be read, or has no frame.
    """
    config = config or CutsConfig()
    pictures: Iterable[tuple[float, np.ndarray]]
    if isinstance(film, (str, Path)):
        info = probe(film)
        name, fps = name or Path(film).name, info.fps
        shrink = RgbScaler(SMALL)
        pictures = ((time, shrink(frame)) for _, time, frame in decode(film))
    else:
        fps = 0.0
        pictures = ((frame.pts, cv2.resize(frame.image, SMALL, interpolation=cv2.INTER_AREA)) for frame in film)
    model = network.load_model() if config.network else None
    meter = FrameMeter(model, config.repeat_level, (config.isolation, config.outstanding, config.max_held))
    votes: list[Vote] = []
    gradual: list[list[int]] = []
    for time, picture in pictures:
        meter.push(time, picture)
        if len(meter) % STRETCH == 0 and len(meter) > STRETCH:
            _decide(meter, len(meter) - 2 * STRETCH, len(meter) - STRETCH, config, votes, gradual)
    n_frames = len(meter)
    if not n_frames:
        raise DataError("the film has no frame; fetch it again")
    meter.finish()
    for first in range(max(0, n_frames // STRETCH - 1) * STRETCH, n_frames, STRETCH):
        _decide(meter, first, min(first + STRETCH, n_frames), config, votes, gradual)
    frames = meter.features()
    if not fps:
        fps = (n_frames - 1) / float(frames.pts[-1] - frames.pts[0]) if n_frames > 1 else 1.0
    believed = [vote for vote in votes if vote.believed]
    cuts, confidence = [vote.frame for vote in believed], [_confidence(vote) for vote in believed]
    possible = _doubted(votes, gradual, frames.pts, config)
    return FilmCuts(name, fps, n_frames, cuts, confidence, gradual, frames, possible, votes)


def _decide(meter: FrameMeter, first: int, end: int, config: CutsConfig, votes: list[Vote], gradual: list[list[int]]) -> None:
    """Decides on the boundaries in frames ``first`` to ``end`` with the frames around them in view; appends what it finds."""
    low, high = max(0, first - CONTEXT), min(len(meter), end + CONTEXT)
    frames, pictures = meter.features(low, high), meter.thumbnails(low, high)
    found = find_cuts(frames, pictures, config)
    cuts = [vote.frame for vote in found if vote.believed]
    votes += [replace(vote, frame=vote.frame + low) for vote in found if first <= vote.frame + low < end]
    for start, last in transitions.find_gradual(pictures, frames, cuts, config.gradual):
        taken = gradual and start + low <= gradual[-1][1]
        if first <= (start + last) // 2 + low < end and not taken:
            gradual.append([start + low, last + low])
    meter.forget(max(0, end - CONTEXT))


def find_cuts(frames: FrameFeatures, pictures: Thumbnails, config: CutsConfig) -> list[Vote]:
    """Decides on hard cuts from the measures (rule: see the module).

    Returns:
        All candidates: changes that stand out and are noticed, and what a detector would call a cut by itself.
    """
    alone = isolation(frames.difference)
    opinion = np.nan_to_num(frames.network)
    changed = frames.content >= config.content
    noticed = changed | (opinion >= config.notice)
    if np.isnan(frames.network).all():
        noticed |= alone >= config.outstanding
    isolated = standing_out(frames.difference, config.isolation, config.outstanding)
    around = np.max(np.lib.stride_tricks.sliding_window_view(np.pad(opinion, REACH), 2 * REACH + 1), axis=1)
    seen = ((opinion >= config.sure) & (opinion == around)) | (changed & (alone >= config.outstanding))
    among = isolation_among_moves
    held_drawings = among(frames.difference, config.repeat_level) >= config.isolation
    held_drawings |= among(frames.difference, config.repeat_level, rank=2) >= config.outstanding
    plain = changed & (alone >= config.outstanding) & (opinion >= config.certain)
    most = np.where(plain, config.max_held_plain, config.max_held)
    accepted = noticed & isolated & (held_drawings | (opinion >= config.sure)) & (frames.held <= most)
    accepted[0] = seen[0] = False
    candidates = [int(k) for k in np.flatnonzero(accepted | seen)]
    return [
        Vote(
            frame=k,
            network=None if np.isnan(frames.network[k]) else round(float(frames.network[k]), 3),
            content=round(float(frames.content[k]), 2),
            isolation=round(float(alone[k]), 2),
            held=round(float(frames.held[k]), 3),
            believed=bool(accepted[k]),
        )
        for k in drop_flashes(candidates, frames, pictures.colour, config.flash_seconds)
    ]


def _confidence(vote: Vote) -> float:
    parts = [min(vote.isolation / 4, 1.0), 1 - vote.held]
    return round(float(np.mean(parts if vote.network is None else [*parts, vote.network])), 4)


def _doubted(votes: Sequence[Vote], gradual: Sequence[Sequence[int]], pts: np.ndarray, config: CutsConfig) -> list[int]:
    """Candidates that were not believed: of those within a second the one with the strongest vote, none beside a boundary."""
    cuts = np.array([vote.frame for vote in votes if vote.believed], int)
    near = 3
    doubted = [
        (max(vote.network or 0.0, min(1.0, vote.content / (2 * config.content))), vote.frame)
        for vote in votes
        if not vote.believed
        and not (np.abs(cuts - vote.frame) <= near).any()
        and not any(first - near <= vote.frame <= last + near for first, last in gradual)
    ]
    kept: list[int] = []
    for _, frame in sorted(doubted, key=lambda item: (-item[0], item[1])):
        if all(abs(pts[frame] - pts[other]) >= 1.0 for other in kept):
            kept.append(frame)
    return sorted(kept)


def drop_flashes(cuts: list[int], frames: FrameFeatures, colour: np.ndarray, seconds: float) -> list[int]:
    """Removes cuts into and out of a flash: a moment of light, or a frame or three of anything, then the same picture.

    Short stretches of darkness or of another picture between two different pictures stay shots.

    Args:
        cuts: Candidates, ascending.
        frames: Measures.
        colour: Thumbnails of the same frames, uint8 RGB (n, 9, 16, 3).
        seconds: Longest flash.
    """
    luma = frames.mean_rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    dropped: set[int] = set()
    for cut in cuts:
        latest = int(np.searchsorted(frames.pts, frames.pts[cut] + seconds, side="right"))
        earliest = int(np.searchsorted(frames.pts, frames.pts[cut - 1] - seconds))
        after = _return(colour[cut - 1 : latest], luma[cut - 1 : latest])
        before = _return(colour[earliest : cut + 1][::-1], luma[earliest : cut + 1][::-1])
        if after or before:
            dropped.update(k for k in cuts if cut - before <= k <= cut + after)
    return [cut for cut in cuts if cut not in dropped]


def _return(colour: np.ndarray, luma: np.ndarray) -> int:
    """After how many frames the first picture is back, having been away by light or for three frames; 0 when it is not."""
    away = np.abs(colour.astype(np.int16) - colour[0]).mean(axis=(1, 2, 3))
    for back in range(len(colour) - 1, 1, -1):
        lit = luma[1:back].max() > luma[0] + 16
        if (lit or back <= 4) and away[back] < 0.25 * away[1:back].max():
            return back - 1
    return 0


def cuts_json(film_cuts: FilmCuts) -> dict[str, Any]:
    """The boundaries as a plain dictionary: film, fps, n_frames, cuts, gradual, possible."""
    return {
        "film": film_cuts.film,
        "fps": film_cuts.fps,
        "n_frames": film_cuts.n_frames,
        "cuts": list(film_cuts.cuts),
        "gradual": [list(span) for span in film_cuts.gradual],
        "possible": list(film_cuts.possible),
    }


def shots(film_cuts: FilmCuts, flat_seconds: float = 1.5) -> list[Span]:
    """Shots of a film: consecutive, without gap or overlap, from the first frame to the last.

    A gradual transition divides at its middle, unless it touches the film's start or end, or nothing lies beyond it. A short
    stretch of black (or of any one colour) between two shots is no shot: it becomes the unclean end of the shot before it, at
    the film's start the unclean start of the first shot.

    Args:
        film_cuts: The boundaries.
        flat_seconds: Shortest stretch of a single colour that is a shot of its own.
    """
    spans = _divide(film_cuts)
    short = [span.clean_end - span.clean_start < flat_seconds * film_cuts.fps for span in spans]
    flat = [is_short and is_flat for is_short, is_flat in zip(short, flat_shots(film_cuts, spans))]
    kept: list[Span] = []
    waiting: Span | None = None  # flat, at the start of the film
    for span, absorbed in zip(spans, flat):
        if absorbed and kept:
            kept[-1] = replace(kept[-1], end_frame=span.end_frame)
        elif absorbed:
            waiting = span if waiting is None else replace(waiting, end_frame=span.end_frame)
        elif waiting is not None:
            kept.append(replace(span, start_frame=0, transition_in="start"))
            waiting = None
        else:
            kept.append(span)
    return kept if waiting is None else [waiting]


def flat_shots(film_cuts: FilmCuts, spans: Sequence[Span]) -> list[bool]:
    """Whether each shot shows nothing but a single colour, such as black, from its first clean frame to its last."""
    if film_cuts.frames is None:
        return [False] * len(spans)
    seen = np.r_[0, np.cumsum(film_cuts.frames.flat)]
    return [bool(seen[span.clean_end] - seen[span.clean_start] == span.clean_end - span.clean_start) for span in spans]


def _divide(film_cuts: FilmCuts) -> list[Span]:
    n_frames = film_cuts.n_frames
    starts_of = [first for first, _ in film_cuts.gradual]
    borders: dict[int, Literal["cut", "gradual"]] = {cut: "cut" for cut in film_cuts.cuts if 0 < cut < n_frames}
    for first, last in film_cuts.gradual:
        inside = bisect_left(film_cuts.cuts, first) < bisect_right(film_cuts.cuts, last + 1)
        if not inside and first > 0 and last < n_frames - 1:
            borders[(first + last + 1) // 2] = "gradual"

    def spans_at(frame: int) -> list[list[int]]:
        """The transitions (one at most) that reach over a frame."""
        before = bisect_right(starts_of, frame)
        return [span for span in film_cuts.gradual[max(0, before - 1) : before] if span[1] >= frame]

    ordered = sorted(borders)
    spans = []
    for start, end in zip([0, *ordered], [*ordered, n_frames], strict=True):
        kind: Literal["start", "cut", "gradual"] = borders[start] if start else "start"
        clean_start, clean_end = start, end
        for _, last in spans_at(start):
            clean_start = last + 1
        for first, _ in spans_at(end - 1):
            clean_end = first
        if clean_start >= clean_end or clean_end > end or clean_start < start:
            clean_start, clean_end = start, end
        spans.append(Span(start, end, clean_start, clean_end, kind))
    return spans
