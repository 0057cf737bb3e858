"""Segmenters that are told in words whom to find: SAM 3, and GroundingDINO with SAM 2, through transformers.

The shapes and names used here are those of transformers 5.23, and every class runs in the tests with a small random
configuration. The published weights were never run here: thresholds are those of the models' own documentation and not tuned
on animation. Weights are read from safetensors only and no remote code is run.

The image processors of SAM 2 and SAM 3 need torchvision, which has no build for CPU-only installations. All that they do is
to stretch the picture to a square and normalise it; :func:`squared` does the same from the constants that stand in the
checkpoint's ``preprocessor_config.json`` or ``processor_config.json``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Protocol

import numpy as np

from animeshooter_dataset import Character, DataError
from curation.script import Sample, StoryScript, StoryView
from curation.segment import ClassicalSegmenter, Segmenter

SAM3 = "facebook/sam3"
DETECTOR = "IDEA-Research/grounding-dino-base"
SAM2 = "facebook/sam2.1-hiera-base-plus"
CHOICES = "classical, sam3, sam3:MODEL, gdino+sam2, gdino+sam2:DETECTOR,SEGMENTER"
GROUNDED = ("grounding-dino", "mm-grounding-dino")
DTYPES = ("float32", "bfloat16", "float16")


def segmenter_of(spec: str, device: str = "auto", dtype: str = "float32") -> Segmenter:
    """The segmenter that a spec names; models are loaded once a process.

    Args:
        spec: ``classical``, ``sam3[:MODEL]`` or ``gdino+sam2[:DETECTOR,SEGMENTER]``; a model is a folder or a name on the Hub.
        device: a torch device, or ``auto``: the accelerator where there is one, else the CPU. The CPU's masks and an
            accelerator's may differ in single pixels.
        dtype: of the weights, one of :data:`DTYPES`.

    Raises:
        DataError: the spec names no segmenter, or its model cannot be loaded.
    """
    kind, models = _parsed(spec, dtype)
    if kind == "classical":
        return ClassicalSegmenter()
    return TextSegmenter(_sam3(*models, device, dtype) if kind == "sam3" else _grounded(*models, device, dtype))


def check_segmenter(spec: str, dtype: str = "float32") -> None:
    """Say at once what :func:`segmenter_of` could not make, by the models' configurations and without their weights.

    Raises:
        DataError: as :func:`segmenter_of`.
    """
    kind, models = _parsed(spec, dtype)
    if kind == "classical":
        return
    from transformers import AutoConfig

    wanted = {"sam3": [("sam3", "sam3_video")], "gdino+sam2": [GROUNDED, ("sam2", "sam2_video")]}[kind]
    for name, types in zip(models, wanted, strict=True):
        _of_type(_opened(AutoConfig, name).model_type, name, types)


def _parsed(spec: str, dtype: str) -> tuple[str, list[str]]:
    """A spec's kind and the names of its models."""
    kind, colon, rest = spec.partition(":")
    models = (
        [name.strip() for name in rest.split(",")] if colon else {"sam3": [SAM3], "gdino+sam2": [DETECTOR, SAM2]}.get(kind, [])
    )
    if {"classical": 0, "sam3": 1, "gdino+sam2": 2}.get(kind) != len(models) or not all(models):
        raise DataError(f"no segmenter '{spec}'; there are {CHOICES}")
    if dtype not in DTYPES:
        raise DataError(f"segmenter dtype '{dtype}' is none of {', '.join(DTYPES)}")
    return kind, models


def _of_type(found: str, name: str, types: Sequence[str]) -> None:
    if found not in types:
        raise DataError(f"{name}: a {found} model, where one of {', '.join(types)} is needed")


@dataclass(frozen=True)
class Candidates:
    """What a model found in one frame for every prompt.

    Attributes:
        scores: confidence, float [prompts, n], -inf or 0 where a candidate is not the prompt's.
        regions: bool masks [n, h, w], or boxes float [n, 4] as (x0, y0, x1, y1).
    """

    scores: np.ndarray
    regions: np.ndarray


class TextModel(Protocol):
    """A model that marks what words name in pictures."""

    def masks(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[list[np.ndarray | None]]:
        """For each image (RGB uint8 [H, W, 3]) and each prompt a bool mask [H, W], or None; no pixel-alike masks for two."""
        ...


@dataclass
class TextSegmenter:
    """A :class:`curation.segment.Segmenter` made of a model that is prompted with words.

    All characters of a shot are looked for together, so that one figure is not given to two of them.
    """

    model: TextModel
    _shot: tuple[Any, ...] = field(default=(), init=False, repr=False)
    _found: list[dict[str, np.ndarray | None]] = field(default_factory=list, init=False, repr=False)

    def study(self, script: StoryScript, view: StoryView) -> None:
        """Nothing to learn: the model knows what words mean."""

    def segment(self, shot: Sequence[Sample], character: Character, cast: Sequence[Character]) -> list[np.ndarray | None]:
        """See :meth:`curation.segment.Segmenter.segment`."""
        everyone = list({member.id: member for member in (*cast, character)}.values())
        key = tuple(everyone), tuple((sample.frame, id(sample.image)) for sample in shot)
        if key != self._shot:
            named = phrases(everyone)
            masks = self.model.masks([sample.image for sample in shot], [named[member.id] for member in everyone])
            self._found = [dict(zip((member.id for member in everyone), row, strict=True)) for row in masks]
            self._shot = key
        return [row[character.id] for row in self._found]


@dataclass
class Sam3:
    """SAM 3 (Meta, 2025): every instance of a concept that a short noun phrase names, in one forward pass.

    Attributes:
        model: a ``Sam3Model``.
        tokenizer: its CLIP tokenizer.
        square: how its pictures are prepared.
        threshold: least score of an instance (its own times the concept's presence).
        batch: pictures encoded at once.
    """

    model: Any
    tokenizer: Any
    square: Square
    threshold: float = 0.5
    batch: int = 4

    def masks(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[list[np.ndarray | None]]:
        """See :meth:`TextModel.masks`."""
        import torch

        # 32 tokens are all that the text encoder was trained with; Sam3Processor pads to them and does not cut
        words = self.tokenizer(list(prompts), return_tensors="pt", padding="max_length", max_length=32, truncation=True)
        words = {name: words[name].to(self.model.device) for name in ("input_ids", "attention_mask")}
        found: list[list[np.ndarray | None]] = []
        with torch.inference_mode():
            for first in range(0, len(images), self.batch):
                part = images[first : first + self.batch]
                pictures = self.model.get_vision_features(pixel_values=self._pixels(part))
                answers = []
                for k in range(len(prompts)):
                    text = {name: value[k : k + 1].expand(len(part), -1) for name, value in words.items()}
                    answers.append(self.model(vision_embeds=pictures, **text))
                found += [self._choose(answers, i, image.shape[:2]) for i, image in enumerate(part)]
        return found

    def _pixels(self, images: Sequence[np.ndarray]) -> Any:
        return squared(images, self.square).to(self.model.device, self.model.dtype)

    def _choose(self, answers: Sequence[Any], i: int, size: tuple[int, int], most: int = 8) -> list[np.ndarray | None]:
        """The instance of frame ``i`` for each prompt, among its ``most`` best ones."""
        import torch

        scores, logits = [], []
        for answer in answers:
            sure = answer.pred_logits[i].float().sigmoid()
            if answer.presence_logits is not None:
                sure = sure * answer.presence_logits[i].float().sigmoid()
            best = sure.topk(min(most, len(sure)))
            scores.append(best.values.cpu().numpy())
            logits.append(answer.pred_masks[i][best.indices].float())
        table = np.zeros((len(answers), sum(map(len, scores))), np.float32)
        place = 0
        for row, values in enumerate(scores):
            table[row, place : place + len(values)] = values
            place += len(values)
        small = torch.cat(logits)
        chosen = assign(Candidates(table, (small > 0).cpu().numpy()), self.threshold)
        return [None if k is None else _full_mask(small[k].sigmoid(), size, 0.5) for k in chosen]


@dataclass
class GroundedSam2:
    """GroundingDINO (Liu et al., ECCV 2024) finds boxes for phrases, SAM 2 (Ravi et al., 2024) fills them.

    Attributes:
        detector: a ``GroundingDinoForObjectDetection`` (or the MM-GroundingDINO of the same outputs).
        processor: its processor.
        segmenter: a ``Sam2Model``.
        square: how the pictures of ``segmenter`` are prepared.
        threshold: least score of a box: its best token of the phrase.
        batch: pictures seen at once.
    """

    detector: Any
    processor: Any
    segmenter: Any
    square: Square
    threshold: float = 0.3
    batch: int = 4

    def masks(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[list[np.ndarray | None]]:
        """See :meth:`TextModel.masks`."""
        import torch

        found: list[list[np.ndarray | None]] = []
        with torch.inference_mode():
            for first in range(0, len(images), self.batch):
                part = images[first : first + self.batch]
                boxes = self._boxes(part, prompts)
                pixels = squared(part, self.square).to(self.segmenter.device, self.segmenter.dtype)
                features = self.segmenter.get_image_embeddings(pixels)
                for i, image in enumerate(part):
                    found.append(self._fill([level[i : i + 1] for level in features], image.shape[:2], boxes[i]))
        return found

    def _boxes(self, images: Sequence[np.ndarray], prompts: Sequence[str]) -> list[list[np.ndarray | None]]:
        """For each image and prompt its box (x0, y0, x1, y1) in pixels, or None."""
        text = " ".join(f"{prompt.lower()}." for prompt in prompts)
        inputs = self.processor(images=list(images), text=[text] * len(images), return_tensors="pt", truncation=True)
        inputs = {
            name: value.to(self.detector.device, self.detector.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        answer = self.detector(**inputs)
        spans = self._spans(inputs["input_ids"][0].tolist(), len(prompts))
        found = []
        for logits, centred, image in zip(answer.logits, answer.pred_boxes, images, strict=True):
            height, width = image.shape[:2]
            sure = logits.float().sigmoid().cpu().numpy()
            scores = [sure[:, span].max(-1) if span else np.zeros(len(sure)) for span in spans]
            x, y, w, h = np.moveaxis(centred.float().cpu().numpy(), -1, 0)
            corners = np.stack([(x - w / 2) * width, (y - h / 2) * height, (x + w / 2) * width, (y + h / 2) * height], -1)
            corners = np.clip(corners, 0, (width, height, width, height))
            chosen = assign(Candidates(np.stack(scores), corners), self.threshold)
            found.append([None if k is None else corners[k] for k in chosen])
        return found

    def _spans(self, tokens: Sequence[int], count: int) -> list[list[int]]:
        """The token positions of each phrase: full stops part them; phrases cut off by the text's limit have none."""
        stop = self.processor.tokenizer.convert_tokens_to_ids(".")
        special = set(self.processor.tokenizer.all_special_ids)
        spans: list[list[int]] = [[]]
        for place, token in enumerate(tokens):
            if token == stop:
                spans.append([])
            elif token not in special:
                spans[-1].append(place)
        return (spans + [[]] * count)[:count]

    def _fill(self, features: list[Any], size: tuple[int, int], boxes: Sequence[np.ndarray | None]) -> list[np.ndarray | None]:
        import torch

        given = [box for box in boxes if box is not None]
        if not given:
            return [None] * len(boxes)
        scale = np.array([self.square.width / size[1], self.square.height / size[0]] * 2)
        prompt = torch.tensor((np.stack(given) * scale)[None], dtype=self.segmenter.dtype, device=self.segmenter.device)
        # a box leaves little to guess, so that the one mask made for unambiguous prompts is asked for
        answer = self.segmenter(image_embeddings=features, input_boxes=prompt, multimask_output=False)
        masks = iter(answer.pred_masks[0, :, 0].float())
        return [None if box is None else _full_mask(next(masks), size, 0.0) for box in boxes]


def assign(found: Candidates, threshold: float, overlap: float = 0.5) -> list[int | None]:
    """Give every prompt at most one candidate, the surest pair first.

    A candidate that overlaps one already given to another prompt by more than ``overlap`` (intersection over union) is the
    same figure and not given again.

    Returns:
        For each prompt the index of its candidate, or None.
    """
    chosen: list[int | None] = [None] * len(found.scores)
    for flat in np.argsort(-found.scores, axis=None, kind="stable"):
        prompt, k = divmod(int(flat), found.scores.shape[1])
        if found.scores[prompt, k] < threshold:
            break
        taken = [other for other in chosen if other is not None]
        if chosen[prompt] is None and all(_overlap(found.regions[k], found.regions[other]) <= overlap for other in taken):
            chosen[prompt] = k
    return chosen


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two masks, or of two boxes."""
    if a.ndim == 2:
        return float((a & b).sum() / max((a | b).sum(), 1))
    width, height = np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2])
    common = max(float(width), 0.0) * max(float(height), 0.0)
    both = sum(float((box[2] - box[0]) * (box[3] - box[1])) for box in (a, b))
    return common / max(both - common, 1e-9)


_ASIDE = re.compile(r"\([^)]*\)|#[0-9a-f]{6}\b", re.IGNORECASE)
_PRONOUN = re.compile(r"^(?:she|he|it|they)\s+(?:is|are|has|have|wears?)\s+", re.IGNORECASE)
_BREAK = re.compile(r"\s*[.;:,!?]\s*|\s+(?=(?:with|wearing|and|who|which|that|has|in|on)\s)", re.IGNORECASE)


def phrases(cast: Sequence[Character], words: int = 16) -> dict[str, str]:
    """A short noun phrase for each character, long enough to tell it from the others.

    It is the beginning of the character's appearance, up to the first break ("a small violet cat | with lime-green eyes |
    ..."), and one part more for as long as every word of it stands in another character's appearance too. A description
    without a noun ("She has grey hair") borrows the character's name.

    Args:
        cast: the characters of a shot.
        words: most words of a phrase; SAM 3 reads 32 tokens.
    """
    parts = {each.id: _parts(each) for each in cast}
    every = {name: set(re.findall(r"\w+", " ".join(found).lower())) for name, found in parts.items()}
    named = {}
    for name, found in parts.items():
        others = [known for other, known in every.items() if other != name]
        count = 1
        while count < len(found) and any(set(re.findall(r"\w+", " ".join(found[:count]).lower())) <= o for o in others):
            count += 1
        named[name] = " ".join(" ".join(found[:count]).split()[:words])
    return named


def _parts(character: Character) -> list[str]:
    """An appearance in parts that each say one more thing; the first holds the noun."""
    text = " ".join(_ASIDE.sub(" ", character.appearance).split())
    name = re.sub(r"[\W_]+", " ", character.id).strip()
    bare = _PRONOUN.sub("", text)
    parts = [part.strip() for part in _BREAK.split(bare) if part and part.strip()]
    if bare != text and parts:
        parts[0] = f"{name} with {parts[0]}"
    if len(parts) > 1 and parts[0].lower() == name.lower():  # "Grum, a huge yeti"
        parts = parts[1:]
    return parts or [name]


@dataclass(frozen=True)
class Square:
    """How a checkpoint's pictures are prepared: stretched to height x width, scaled to 0..1, and normalised."""

    height: int
    width: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def squared(images: Sequence[np.ndarray], square: Square) -> Any:
    """RGB uint8 pictures [H, W, 3] as a float tensor [n, 3, height, width], as the models' own image processors make it."""
    import torch

    rows = []
    for image in images:
        picture = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)[None]
        size = (square.height, square.width)
        rows.append(torch.nn.functional.interpolate(picture, size, mode="bilinear", antialias=True, align_corners=False))
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (square.mean, square.std))
    return (torch.cat(rows).float() / 255 - mean) / std


def _full_mask(values: Any, size: tuple[int, int], threshold: float) -> np.ndarray | None:
    """A model's small mask [h, w] at frame size, bool [H, W]; None where nothing of it is set."""
    import torch

    large = torch.nn.functional.interpolate(values[None, None], size, mode="bilinear", align_corners=False)[0, 0]
    mask = (large > threshold).cpu().numpy()
    return mask if mask.any() else None


@lru_cache(maxsize=1)
def _sam3(name: str, device: str, dtype: str) -> Sam3:
    from transformers import AutoTokenizer, Sam3Model

    model = _loaded(Sam3Model, name, device, dtype)
    size = model.config.image_size
    return Sam3(model, _opened(AutoTokenizer, name), _square(name, size, (0.5,) * 3, (0.5,) * 3))


@lru_cache(maxsize=1)
def _grounded(detector: str, segmenter: str, device: str, dtype: str) -> GroundedSam2:
    from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor, Sam2Model

    finder = _loaded(AutoModelForZeroShotObjectDetection, detector, device, dtype)
    _of_type(finder.config.model_type, detector, GROUNDED)
    model = _loaded(Sam2Model, segmenter, device, dtype)
    size = model.config.prompt_encoder_config.image_size
    square = _square(segmenter, size, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return GroundedSam2(finder, _opened(AutoProcessor, detector), model, square)


def _loaded(kind: Any, name: str, device: str, dtype: str) -> Any:
    """A model's weights on their device, for inference."""
    import torch

    place = device
    if device == "auto":
        place = str(torch.accelerator.current_accelerator()) if torch.accelerator.is_available() else "cpu"
    try:
        return _opened(kind, name, dtype=getattr(torch, dtype), use_safetensors=True).to(place).eval().requires_grad_(False)
    except (RuntimeError, AssertionError) as error:
        raise DataError(f"{name}: cannot be put on device '{device}': {_first_line(error)}") from None


def _opened(kind: Any, name: str, **settings: Any) -> Any:
    """``kind.from_pretrained(name)``; what its user can cause as one line."""
    try:
        return kind.from_pretrained(name, trust_remote_code=False, **settings)
    except (OSError, ValueError, KeyError) as error:
        mend = "give a folder or a Hub name with its configuration and model.safetensors"
        raise DataError(f"{name}: cannot be loaded as a segmenter ({_first_line(error)}); {mend}") from None


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _square(name: str, size: Any, mean: tuple[float, ...], std: tuple[float, ...]) -> Square:
    """How pictures are prepared for a checkpoint of this size; ``mean`` and ``std`` where it declares none."""
    from transformers.utils import cached_file

    declared: dict[str, Any] = {}
    for file in ("preprocessor_config.json", "processor_config.json"):
        path = cached_file(name, file, _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_gated_repo=False)
        if path is not None and not declared:
            with open(path, encoding="utf-8") as stream:
                content = json.load(stream)
            declared = content.get("image_processor", content)
    height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
    return Square(height, width, tuple(declared.get("image_mean") or mean), tuple(declared.get("image_std") or std))
