"""Stage ``scores``: measures of every shot's pictures, by which rules filter later without touching media.

What holds for every frame (held and black frames, brightness) comes from the measures of the one decode of the film. The rest
is taken from the stored clips: a few short windows of each shot are decoded, reached by key frame, and every window gives a
still for text, contrast, colour and sharpness, and some pairs of consecutive *unique* frames for motion. A clip that does
not decode is an error, never a clean still shot.

Motion is dense optical flow (DIS: Kroeger et al., ECCV 2016, arXiv 1603.03590) between unique frames: drawings are held for
two or three frames, and 24 frames a second carried at 30 repeat every fourth, so flow between neighbouring frames would
measure the repeats. Displacement is summed over the pairs of a shot and divided by the time between their frames, so that the
same pan has the same value on ones, on twos, and at any rate.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np

from animeshooter_dataset import DataError, ShotScores
from curation.clips import FilmShots
from curation.cuts import Span
from curation.judge import Judge, ShotVerdict
from curation.script import NoAnswer
from curation.text import find_text, text_cover
from curation.video import RgbScaler

LUMA = np.array([0.299, 0.587, 0.114], np.float32)
"""ITU-R BT.601 weights, as in OpenCV's conversion to grey."""
SHARPNESS_SIDE = 480
"""Short side at which sharpness is measured, so that clips of all sizes compare."""
CHROMA_WIDTH = 160
"""Width at which colour is looked for: small enough that a codec's colour noise averages out."""


@dataclass(frozen=True)
class ScoresConfig:
    """Settings of the scores; levels are of 255.

    Attributes:
        window_seconds: a shot gets one window for every so many seconds, or part of it.
        most_windows: the same, at most so many.
        pairs: pairs of unique frames in a window; four hold a whole cycle of 24 frames a second carried at 30.
        flow_width: width at which optical flow is measured.
        text: whether to look for text.
        black_level: mean luma up to which a frame is black.
        grey_level: chroma (largest less smallest of R, G, B) that 99 of 100 pixels of a picture without colour stay under.
        aesthetic_model: folder or name of a CLIP ViT-L/14 (transformers); None: not scored.
        aesthetic_head: the LAION linear head on it, a safetensors file; None: not scored.
    """

    window_seconds: float = 2.0
    most_windows: int = 4
    pairs: int = 4
    flow_width: int = 320
    text: bool = True
    black_level: float = 3.0
    grey_level: float = 12.0
    aesthetic_model: str | None = None
    aesthetic_head: str | None = None


@dataclass(frozen=True)
class Plan:
    """Which frames of a clip are looked at: pairs (first, second) for motion, and stills; indices in the clip."""

    pairs: tuple[tuple[int, int], ...]
    stills: tuple[int, ...]


@dataclass(frozen=True)
class _Still:
    """What one still measures."""

    contrast: float
    sharpness: float
    grey: bool | None


def score_shots(
    whole: FilmShots,
    config: ScoresConfig | None = None,
    judge: Judge | None = None,
    picture: tuple[int, int, int, int] | None = None,
) -> list[ShotScores]:
    """Score every shot of a film.

    Args:
        whole: the film's shots with their stored clips.
        config: the settings.
        judge: says style and talking; without one they stay None, as where its answer cannot be used.
        picture: what lies inside the film's black bars, (x0, y0, x1, y1) in pixels of the clips, ends exclusive; None where
            it has none. Bars are a matter of the film: a single shot may show a bright picture on a black wall.

    Returns:
        One entry a shot, in order.

    Raises:
        DataError: a clip does not decode, or the aesthetic model cannot be read; the line names it.
    """
    config = config or ScoresConfig()
    confidences = dict(zip(whole.cuts.cuts, whole.cuts.confidence))
    with _one_thread():
        return [_score(whole, number, confidences, config, judge, picture) for number in range(len(whole.spans))]


def _score(
    whole: FilmShots,
    number: int,
    confidences: dict[int, float],
    config: ScoresConfig,
    judge: Judge | None,
    picture: tuple[int, int, int, int] | None,
) -> ShotScores:
    span, frames, info = whole.spans[number], whole.cuts.frames, whole.infos[number]
    repeat, pts = frames.repeat[span.start_frame : span.end_frame], frames.pts[span.start_frame : span.end_frame]
    with open_clip(whole.clips[number], info.frames) as clip:
        plan = plan_of(span, repeat, pts, clip.keys, config)
        greys, stills = _look(clip, plan, config)
    light = frames.mean_rgb[span.start_frame : span.end_frame] @ LUMA
    luma = light[span.clean_start - span.start_frame : span.clean_end - span.start_frame]
    pairs = [pair for pair in plan.pairs if light[list(pair)].min() > config.black_level]  # flow in black is noise
    x0, y0, x1, y1 = picture or (0, 0, info.width, info.height)
    measured = [_measure_still(np.ascontiguousarray(still[y0:y1, x0:x1]), config) for still in stills]
    readable = stills[1 - len(stills) % 2 :: 2] if config.text else []
    verdict = _verdict(judge, stills)
    coloured = [still.grey for still in measured if still.grey is not None]
    return ShotScores(
        text_cover=_mean([text_cover(find_text(still), *still.shape[:2]) for still in readable]),
        motion=motion_of(greys, pairs, pts),
        held_frames=_mean(repeat[max(1, span.clean_start - span.start_frame) : span.clean_end - span.start_frame]),
        brightness=_mean(luma),
        contrast=_mean([still.contrast for still in measured]),
        black_frames=_mean(luma <= config.black_level),
        grey_frames=_mean(coloured),
        sharpness=_mean([still.sharpness for still in measured]),
        picture_share=round((x1 - x0) * (y1 - y0) / (info.width * info.height), 6),
        cut_confidence=confidences.get(span.start_frame),
        aesthetic=_aesthetic_of(stills, config),
        style=verdict.style,
        talking=verdict.talking,
    )


def _verdict(judge: Judge | None, stills: Sequence[np.ndarray]) -> ShotVerdict:
    """What the judge says; an answer that cannot be used leaves style and talking unknown, no answer is asked for again."""
    try:
        return judge.shot(stills) if judge else ShotVerdict()
    except NoAnswer:
        raise
    except DataError:
        return ShotVerdict()


def _mean(values: Any) -> float | None:
    """The mean, rounded so that its text is short and the same everywhere; None of nothing."""
    numbers = np.asarray(values, dtype=np.float64)
    return round(float(numbers.mean()), 6) if numbers.size else None


def plan_of(span: Span, repeat: np.ndarray, pts: np.ndarray, keys: Sequence[int], config: ScoresConfig) -> Plan:
    """Choose what to look at: windows at about even distances over the clean frames of a shot, of consecutive unique frames.

    Args:
        span: the shot.
        repeat: whether each frame of the shot repeats the one before.
        pts: seconds of each frame of the shot.
        keys: key frames of its clip, ascending: a window moves to one that is near, since what follows it decodes at once.
        config: the settings.
    """
    first, last = span.clean_start - span.start_frame, span.clean_end - span.start_frame - 1
    unique = [first, *(index for index in range(first + 1, last + 1) if not repeat[index])]
    if len(unique) == 1 and last > first:
        unique.append(last)  # nothing ever changes visibly from frame to frame; a slow drift does from first to last
    pairs = list(pairwise(unique))
    seconds = float(pts[last] - pts[first])
    windows = min(config.most_windows, max(1, math.ceil(seconds / config.window_seconds)))
    middles = pts[first] + (np.arange(windows) + 0.5) / windows * seconds
    middle_frames = [first + int(np.searchsorted(pts[first : last + 1], middle)) for middle in middles]
    if len(pairs) <= windows * config.pairs:
        return Plan(tuple(pairs), tuple(sorted(set(middle_frames))))
    chosen: set[int] = set()
    stills: set[int] = set()
    reach = (last - first) / windows / 2
    for middle in middle_frames:
        near = [key for key in keys if windows > 1 and first <= key <= last and abs(key - middle) <= reach]
        start = min(near, key=lambda key: abs(key - middle)) if near else middle
        place = min(max(0, bisect_left(unique, start)), len(pairs) - config.pairs)
        chosen |= set(range(place, place + config.pairs))
        stills.add(unique[place + config.pairs])
    return Plan(tuple(pairs[number] for number in sorted(chosen)), tuple(sorted(stills)))


def _look(clip: StoredClip, plan: Plan, config: ScoresConfig) -> tuple[dict[int, np.ndarray], list[np.ndarray]]:
    """Small grey pictures of the frames of pairs, by index, and the stills as RGB."""
    in_pairs = {index for pair in plan.pairs for index in pair}
    greys: dict[int, np.ndarray] = {}
    stills: list[np.ndarray] = []
    small: RgbScaler | None = None
    for index, frame in clip.frames(sorted(in_pairs | set(plan.stills))):
        if small is None:
            width = min(config.flow_width, frame.width)
            small = RgbScaler((width, max(2, round(frame.height * width / frame.width))))
            full = RgbScaler((frame.width, frame.height))
        if index in in_pairs:
            greys[index] = cv2.cvtColor(small(frame), cv2.COLOR_RGB2GRAY)
        if index in plan.stills:
            stills.append(full(frame))
    return greys, stills


class StoredClip:
    """A stored clip, of which single frames are decoded.

    Attributes:
        keys: its key frames in presentation order, ascending.
    """

    def __init__(self, container: Any, n_frames: int) -> None:
        self._container, self._stream = container, container.streams.video[0]
        self._stream.codec_context.thread_count = 1
        packets = [(packet.pts, packet.is_keyframe) for packet in container.demux(self._stream) if packet.pts is not None]
        self._times = sorted(pts for pts, _ in packets)
        if len(self._times) != n_frames:
            raise ValueError(f"it holds {len(self._times)} frames, {n_frames} were stored")
        self.keys = [bisect_left(self._times, pts) for pts in sorted(pts for pts, is_key in packets if is_key)]

    def frames(self, wanted: Sequence[int]) -> Iterator[tuple[int, av.VideoFrame]]:
        """Decode frames, going from one to the next by key frame where that is shorter.

        Args:
            wanted: indices in presentation order, ascending.

        Yields:
            Index and picture of each.
        """
        frames: Iterator[av.VideoFrame] = iter(())
        at = -1
        for index in wanted:
            key = self.keys[max(0, bisect_right(self.keys, index) - 1)]
            if key > at:
                self._container.seek(self._times[key], stream=self._stream, backward=True)
                frames = self._container.decode(self._stream)
            for frame in frames:
                at = bisect_left(self._times, frame.pts)
                if frame.is_corrupt:
                    raise ValueError(f"frame {at} is damaged")
                if at >= index:
                    break
            if at != index:
                raise ValueError(f"frame {index} is missing")
            yield index, frame


@contextmanager
def open_clip(path: Path, n_frames: int) -> Iterator[StoredClip]:
    """Open a stored clip that must hold ``n_frames``.

    Raises:
        DataError: it holds another number of frames, or what is looked at inside the ``with`` block is missing or damaged.
    """
    try:
        # Damage that a player would hide must be an error here
        with av.open(str(path), options={"err_detect": "explode"}) as container:
            yield StoredClip(container, n_frames)
    except (av.FFmpegError, OSError, IndexError, ValueError) as error:
        again = "remove the folder it lies in and build again"
        raise DataError(f"{path}: a stored clip that does not decode ({error}); {again}") from None


def motion_of(greys: dict[int, np.ndarray], pairs: Sequence[tuple[int, int]], pts: np.ndarray) -> float | None:
    """How fast the fastest twentieth of the picture moves, in picture diagonals a second.

    On pans of known speed it is right to 0.01 and a few per cent up to half a diagonal a second, also on threes; between two
    drawings flow follows about an eighth of the diagonal, so that what is faster counts as less than it is.

    Args:
        greys: grey uint8 pictures of one size, by index.
        pairs: which of them are compared.
        pts: seconds, by index.

    Returns:
        The 95th percentile of displacement, summed over pairs, by the time between their frames; None without a pair.
    """
    if not pairs:
        return None
    flow = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    distance, seconds = 0.0, 0.0
    for before, after in pairs:
        field = flow.calc(greys[before], greys[after], None)
        distance += float(np.percentile(np.hypot(field[..., 0], field[..., 1]), 95))
        seconds += float(pts[after] - pts[before])
    height, width = greys[pairs[0][0]].shape
    return round(distance / math.hypot(height, width) / seconds, 6)


def _measure_still(still: np.ndarray, config: ScoresConfig) -> _Still:
    grey = cv2.cvtColor(still, cv2.COLOR_RGB2GRAY)
    scale = SHARPNESS_SIDE / min(grey.shape)
    size = (max(1, round(grey.shape[1] * scale)), max(1, round(grey.shape[0] * scale)))
    scaled = cv2.resize(grey, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    return _Still(float(grey.std()), float(cv2.Laplacian(scaled, cv2.CV_32F).var()), _is_grey(still, config))


def _is_grey(image: np.ndarray, config: ScoresConfig) -> bool | None:
    """Whether a picture has no colour; None of a black one, which has neither."""
    size = (CHROMA_WIDTH, max(1, round(image.shape[0] * CHROMA_WIDTH / image.shape[1])))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    if float((small @ LUMA).mean()) <= config.black_level:
        return None
    chroma = small.max(axis=2) - small.min(axis=2)
    return bool(np.percentile(chroma, 99) <= config.grey_level)


def _aesthetic_of(stills: Sequence[np.ndarray], config: ScoresConfig) -> float | None:
    if config.aesthetic_model is None or config.aesthetic_head is None:
        return None
    return _mean(load_aesthetic(config.aesthetic_model, config.aesthetic_head)(stills))


class Aesthetic:
    """The LAION aesthetic predictor: a linear head on the normalised image embedding of CLIP ViT-L/14.

    Args:
        model: folder, or name on the Hub, of a CLIP model with its image processor (safetensors only).
        head: safetensors of the head: ``weight`` (1, width of the embedding) and ``bias`` (1,), or a chain of linear layers
            ``layers.N.weight`` and ``layers.N.bias`` as in the improved predictor, which has no activations between them.

    Raises:
        DataError: one of them cannot be read, or they do not fit.
    """

    def __init__(self, model: str, head: str) -> None:
        from transformers import CLIPImageProcessor, CLIPModel

        self.weight, self.bias = _read_head(Path(head))
        try:
            self.processor = CLIPImageProcessor.from_pretrained(model)
            self.model = CLIPModel.from_pretrained(model, use_safetensors=True).eval()
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise DataError(
                f"{model}: no CLIP model with its image processor ({reason}); name another aesthetic_model"
            ) from None
        width = self.model.config.projection_dim
        if width != self.weight.shape[1]:
            raise DataError(
                f"{head}: made for embeddings of {self.weight.shape[1]} numbers, {model} gives {width}; name its own head"
            )

    def __call__(self, images: Sequence[np.ndarray]) -> list[float]:
        """The score of each image, RGB uint8 [H, W, 3]; about 1 to 10."""
        import torch

        pixels = self.processor(images=list(images), return_tensors="pt", input_data_format="channels_last")["pixel_values"]
        with torch.inference_mode():
            embedding = self.model.get_image_features(pixel_values=pixels).pooler_output
            embedding = torch.nn.functional.normalize(embedding.double(), dim=-1)
            return [float(score) for score in (embedding @ self.weight.T + self.bias)[:, 0]]


def _read_head(path: Path) -> tuple[Any, Any]:
    """The head as one linear map: weight (1, width) and bias (1,), float64."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        tensors = {name: tensor.double() for name, tensor in load_file(path).items()}
        numbers = sorted({int(name.split(".")[1]) for name in tensors if name.startswith("layers.")})
        layers = [(tensors[f"layers.{n}.weight"], tensors[f"layers.{n}.bias"]) for n in numbers] or [
            (tensors["weight"], tensors["bias"])
        ]
        weight, bias = layers[0]
        for matrix, shift in layers[1:]:
            weight, bias = matrix @ weight, matrix @ bias + shift
        if weight.shape[0] != 1 or bias.shape != torch.Size([1]):
            raise ValueError("it does not end in one number")
    except (OSError, SafetensorError, KeyError, ValueError, IndexError, RuntimeError) as error:
        raise DataError(f"{path}: no aesthetic head ({error}); give its weights as safetensors") from None
    return weight, bias


@lru_cache(maxsize=1)
def load_aesthetic(model: str, head: str) -> Aesthetic:
    """The predictor, loaded once a process."""
    return Aesthetic(model, head)


@contextmanager
def _one_thread() -> Iterator[None]:
    """Hold OpenCV to one thread: worker processes share the cores, and sums are formed in one order."""
    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
