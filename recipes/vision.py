"""What the MLLM's vision tower makes of pictures, kept: looked up in training instead of being made anew.

The vision tower is frozen in every stage (the LoRA of the MLLM is on its language model), so its output for a picture never
changes. ``recipes/cache_features.py`` writes it by the picture's hash (:func:`streams.features.picture_hash`); the processes
that decode read it along (``Sample.vision``); and within :func:`vision_of` the model's image processor and
``get_image_features`` take it from there. Pictures that are not known are made as ever, so a cache may lack any of them.

It works for every MLLM of transformers whose features are one tensor a picture, with or without deep-stack features
(:class:`Seer` tries it). Where weights are sharded over processes (ZeRO-3, FSDP) it stays out of the way: there all
processes must call the vision tower alike.
"""

from __future__ import annotations

import weakref
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from animeshooter_dataset import DataError
from streams.features import picture_hash

if TYPE_CHECKING:
    from animeshooter_streams import Batch
    from model import AnimeShooterGen

Tensors = Mapping[str, Tensor]
"""Of one picture: ``pooler`` [tokens, D], ``deepstack.N`` [tokens, D] where the model has them, and ``grid`` [3] likewise."""
KEPT = 16
"""Pictures made in training that are kept, such as the blank one that stands for a reference left out."""
GRID = "image_grid_thw"
CLOSE = 1e-3
"""How far conditions with and without a lookup may lie apart, relative to their size: rounding of 16-bit weights."""

_made: weakref.WeakKeyDictionary[Any, OrderedDict[bytes, Tensors]] = weakref.WeakKeyDictionary()


@contextmanager
def vision_of(gen: AnimeShooterGen, batch: Batch) -> Iterator[None]:
    """Inside, the MLLM takes what the batch brings of its pictures' features."""
    brought = [found for sample in batch.samples if (found := getattr(sample, "vision", None)) is not None]
    if not brought or _sharded(gen.mllm):
        yield
        return
    with lookup(gen, {which: tensors for found in brought for which, tensors in found.items()}):
        yield


@contextmanager
def lookup(gen: AnimeShooterGen, known: Mapping[bytes, Tensors]) -> Iterator[Lookup]:
    """Inside, the features of known pictures are looked up, those of others made, and some of them kept."""
    mllm, processor = gen.mllm.base_model, gen.image_processor
    table = Lookup(mllm.get_image_features, processor, known, _made.setdefault(gen, OrderedDict()))
    gen.image_processor, mllm.get_image_features = Prepared(processor, table), table.features
    try:
        yield table
    finally:
        gen.image_processor = processor
        del mllm.get_image_features  # the method of the class shows again


class Prepared:
    """Stands in for an image processor: pictures become numbers of a :class:`Lookup`, where they need not be prepared."""

    def __init__(self, processor: Any, table: Lookup) -> None:
        self._processor, self._table = processor, table

    def __getattr__(self, name: str) -> Any:
        return getattr(self._processor, name)

    def __call__(self, images: Sequence[Any], **settings: Any) -> dict[str, Tensor]:
        """See :meth:`Lookup.prepare`."""
        return self._table.prepare(images, settings)


class Lookup:
    """Features of pictures by number, from a table or made.

    Args:
        make: the model's own ``get_image_features``.
        processor: its image processor.
        known: features by the pictures' hash.
        made: where those that are made are kept.

    Attributes:
        found: pictures that were looked up.
        missed: pictures that were not known.
        prepared: what the image processor was told besides the pictures.
        asked: what ``get_image_features`` was told besides pixels and grids.
    """

    def __init__(self, make: Any, processor: Any, known: Mapping[bytes, Tensors], made: OrderedDict[bytes, Tensors]) -> None:
        self.make, self.processor, self.known, self.made = make, processor, known, made
        self.found = self.missed = 0
        self.prepared: dict[str, Any] = {}
        self.asked: dict[str, Any] = {}
        self._asked: list[tuple[bytes, Tensors | None]] = []
        self._pixels: dict[bytes, dict[str, Tensor]] = {}

    def prepare(self, images: Sequence[Any], settings: Mapping[str, Any]) -> dict[str, Tensor]:
        """What the model is given of pictures: their numbers in place of pixels, and their grids where it counts in them."""
        self.prepared = dict(settings)
        grids, numbers = [], []
        for image in images:
            which = picture_hash(np.asarray(image))
            tensors = self.known.get(which) or self.made.get(which)
            if tensors is None:
                self.missed += 1
                if which not in self._pixels:
                    self._pixels[which] = dict(self.processor(images=[image], **settings))
                grid = self._pixels[which].get(GRID)
                grids.append(None if grid is None else grid[0])
            else:
                self.found += 1
                grids.append(tensors.get("grid"))
            numbers.append(len(self._asked))
            self._asked.append((which, tensors))
        told = {"pixel_values": torch.tensor(numbers)[:, None]}
        return told if any(grid is None for grid in grids) else {**told, GRID: torch.stack(grids)}

    def features(self, pixel_values: Tensor, *rest: Any, **settings: Any) -> Any:
        """In place of ``get_image_features``: numbers are looked up, pixels are left to the model."""
        if pixel_values.is_floating_point():
            return self.make(pixel_values, *rest, **settings)
        asked = [self._asked[number] for number in pixel_values.flatten().tolist()]
        self.asked = {name: value for name, value in settings.items() if name != GRID}
        missing = list(dict.fromkeys(which for which, tensors in asked if tensors is None and which not in self.made))
        for which in missing:
            pixels = self._pixels.pop(which)
            self.made[which] = features_of(self.make, pixels, pixel_values.device, self.asked)
        each = [self.made[which] if tensors is None else tensors for which, tensors in asked]
        while len(self.made) > KEPT:
            self.made.popitem(last=False)
        return _together(each, pixel_values.device)


def features_of(make: Any, pixels: Mapping[str, Tensor], device: torch.device, asked: Mapping[str, Any]) -> Tensors:
    """What a model makes of one prepared picture.

    Args:
        make: its ``get_image_features``.
        pixels: what its image processor made of the picture.
        device: where the model is.
        asked: what it is told besides.

    Raises:
        DataError: the features are of a form that is not understood.
    """
    grid = pixels.get(GRID)
    more = {} if grid is None else {GRID: grid.to(device)}
    dtype = next(make.__self__.parameters()).dtype
    with torch.no_grad():
        output = make(pixels["pixel_values"].to(device, dtype), **{**asked, **more, "return_dict": True})
    pooled = getattr(output, "pooler_output", None)
    first = pooled[0] if isinstance(pooled, (tuple, list)) and len(pooled) == 1 else pooled
    if isinstance(first, Tensor) and first.ndim == 3 and len(first) == 1:
        first = first[0]
    if not isinstance(first, Tensor) or first.ndim != 2:
        raise DataError(f"{type(make.__self__).__name__}: what it sees cannot be kept (its features are no tensor a picture)")
    found = {"pooler": first}
    for number, layer in enumerate(getattr(output, "deepstack_features", None) or ()):
        found[f"deepstack.{number}"] = layer[0] if isinstance(layer, (tuple, list)) else layer
    if isinstance(pooled, (tuple, list)):
        found["apart"] = torch.ones(1, dtype=torch.uint8)
    return {**found, **({} if grid is None else {"grid": grid[0]})}


def _together(each: Sequence[Tensors], device: torch.device) -> Any:
    """Features of several pictures as the model gives them."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    def all_of(name: str) -> tuple[Tensor, ...]:
        return tuple(tensors[name].to(device, non_blocking=True) for tensors in each)

    pooled = all_of("pooler")
    output = BaseModelOutputWithPooling(pooler_output=pooled if "apart" in each[0] else torch.stack(pooled))
    layers = sorted((name for name in each[0] if name.startswith("deepstack.")), key=lambda name: int(name.partition(".")[2]))
    output.deepstack_features = [all_of(name) for name in layers]
    return output


def _sharded(mllm: Any) -> bool:
    return any(hasattr(parameter, "ds_id") or hasattr(parameter, "placements") for parameter in mllm.parameters())


class Seer:
    """Makes the features of pictures as a model makes them for itself, after trying whether they can be looked up.

    Args:
        gen: the model.

    Raises:
        DataError: it has no features that can be kept, or conditions with looked-up features are not those without.
    """

    def __init__(self, gen: AnimeShooterGen) -> None:
        name = type(gen.mllm).__name__
        if not hasattr(gen.mllm.base_model, "get_image_features"):
            raise DataError(f"{name}: what it sees cannot be kept (it has no get_image_features)")
        rng = np.random.default_rng(0)
        self.gen, self.prepared, self.asked = gen, dict[str, Any](), dict[str, Any]()
        pictures = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((96, 64), (64, 128))]
        captions = [["a hen"], ["a red fox runs"]]
        with torch.no_grad():
            plain = gen.condition(pictures, captions).float()
            with lookup(gen, {}) as table:
                gen.condition(pictures[:1], captions[:1])
            self.prepared, self.asked = table.prepared, table.asked
            with lookup(gen, {picture_hash(picture): self(picture) for picture in pictures}) as table:
                looked_up = gen.condition(pictures, captions).float()
        apart = float((looked_up - plain).norm() / plain.norm())
        if table.missed or not apart <= CLOSE:
            raise DataError(f"{name}: what it sees cannot be kept (conditions lie {apart:.1e} apart, {table.missed} not found)")

    def __call__(self, picture: np.ndarray) -> Tensors:
        """The features of a picture, uint8 [H, W, 3], on the CPU."""
        mllm, pixels = self.gen.mllm, dict(self.gen.image_processor(images=[Image.fromarray(picture)], **self.prepared))
        found = features_of(mllm.base_model.get_image_features, pixels, mllm.device, self.asked)
        return {name: tensor.cpu() for name, tensor in found.items()}
