"""What ``benchmarks.learning`` measures: held-out losses, latents against targets, and whose colour a character has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from animeshooter_streams import Batch
from recipes.config import Config, DropoutConfig
from recipes.features import open_features
from recipes.stage import Stage, generator_of, open_stream

INSIDE = 0.95
"""Share of a pixel that must be the character's to count as its colour."""


# ---- losses ----


def batches_of(stage: Stage, config: Config, data: Path, split: str, model: Path | None = None) -> Iterator[Batch]:
    """Every sample of a split once, in a fixed order.

    Where the settings name cached features and ``model`` is the checkpoint they are read for, they are taken from there.
    """
    if model is None:
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, features=None))
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, split=split))
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, global_batch=4))
    features = None if model is None else open_features(stage, config, data, model, "no")
    stream = open_stream(stage, config, data, features)
    for (batch,) in stream.batches(steps=stream.steps_per_epoch):
        yield batch


@torch.no_grad()
def held_out_loss(
    stage: Stage, config: Config, gen: Any, data: Path, split: str, draws: int = 4, model: Path | None = None
) -> np.ndarray:
    """The stage's own loss without dropout, of every sample of a split.

    Noise and timesteps are a function of the sample and the draw: two models are compared on the very same ones.

    Args:
        stage: whose loss and stream.
        config: its settings.
        gen: the model.
        data: dataset directory.
        split: of the dataset.
        draws: of noise and timestep for each sample, averaged.
        model: see :func:`batches_of`.

    Returns:
        float64 [samples].
    """
    config = dataclasses.replace(config, dropout=DropoutConfig())
    gen.eval()
    found: list[np.ndarray] = []
    for batch in batches_of(stage, config, data, split, model):
        told = []
        for draw in range(draws):
            generators = [generator_of(10_000 + draw, batch, place) for place in range(len(batch.samples))]
            told.append(stage.loss(gen, batch, config, generators).per_sample.double().numpy())
        found.append(np.mean(told, axis=0))
    return np.concatenate(found)


def compared(before: np.ndarray, after: np.ndarray) -> dict[str, float]:
    """Two losses of the same samples: their means, and the fall of each sample with its spread over samples."""
    fall = before - after
    return {
        "samples": len(before),
        "before": float(before.mean()),
        "after": float(after.mean()),
        "lower by": float(fall.mean()),
        "lower by, standard deviation": float(fall.std()),
        "lower by, per cent": 100 * float(fall.mean() / before.mean()),
        "samples that fell": float((fall > 0).mean()),
    }


# ---- latents ----


def nearest(sampled: Sequence[Sequence[Tensor]], targets: Sequence[Tensor]) -> dict[str, Any]:
    """How often a sampled latent is closer to its own target than to every other, by mean squared difference.

    Args:
        sampled: of each target's caption, what was sampled from several noises.
        targets: latents of the true shots.

    Returns:
        The share; chance; the mean distance to the own target and to the nearest other one; the table of mean distances, a row
        for each caption.
    """
    each = np.array([[[float((one - other).square().mean()) for other in targets] for one in row] for row in sampled])
    own = each[np.arange(len(targets)), :, np.arange(len(targets))]
    others = np.where(np.eye(len(targets), dtype=bool)[:, None], np.inf, each).min(2)
    table = each.mean(1)
    return {
        "shots": len(targets),
        "sampled": own.size,
        "closest to their own": float((own < others).mean()),
        "chance": 1 / len(targets),
        "distance to own": float(own.mean()),
        "distance to nearest other": float(others.mean()),
        "distances": table.round(4).tolist(),
    }


# ---- colours ----


def lab(pictures: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of sRGB pictures: uint8 [..., H, W, 3] to float32 of the same shape."""
    import cv2

    shape = pictures.shape
    flat = np.ascontiguousarray(pictures.reshape(-1, shape[-2], 3)).astype(np.float32) / 255
    return cv2.cvtColor(flat, cv2.COLOR_RGB2LAB).reshape(shape)


def colour_inside(frames: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Mean L*a*b* of a clip inside a character's mask, float64 [3].

    Args:
        frames: uint8 [F, H, W, 3].
        share: the character's share of each pixel, [F, H, W]; pixels of at least :data:`INSIDE` count.

    Raises:
        ValueError: no pixel is the character's.
    """
    inside = share >= INSIDE
    if not inside.any():
        raise ValueError("the character is nowhere in the clip, so it has no colour there")
    return lab(frames)[inside].astype(np.float64).mean(0)


@dataclass(frozen=True)
class Swapped:
    """Colours of one shot, L*a*b* [3] each.

    Attributes:
        own: of the character in the true shot.
        other: of the other character in its true shots.
        kept: generated with its own reference.
        swapped: generated with the other's.
        blank: generated with none.
    """

    own: np.ndarray
    other: np.ndarray
    kept: np.ndarray
    swapped: np.ndarray
    blank: np.ndarray

    def way(self, colour: np.ndarray) -> float:
        """How far a colour lies on the way from the own (0) to the other (1), projected on the line between them."""
        line = self.other - self.own
        return float((colour - self.own) @ line / (line @ line))


def swap_summary(found: Sequence[Swapped]) -> dict[str, Any]:
    """Means and standard deviations over shots.

    ``way`` is 0 at the own colour and 1 at the other's. A model that does not look at the reference moves by 0 and is nearer to
    the other colour after the swap as often as before it. Where stories are swapped both ways, a colour that is nobody's is
    half of the way on average and nearer to the other in half of the shots; whether it is the other's is told by ``at the
    other``: the share of shots whose colour lies within half the distance of the two.
    """
    names = ("kept", "swapped", "blank")
    apart = np.array([np.linalg.norm(one.other - one.own) for one in found])
    told: dict[str, Any] = {"shots": len(found), "chance": {"way moved by the swap": 0.0, "nearer to other": 0.5}}
    for name in names:
        ways = np.array([one.way(getattr(one, name)) for one in found])
        to_own = np.array([np.linalg.norm(getattr(one, name) - one.own) for one in found])
        to_other = np.array([np.linalg.norm(getattr(one, name) - one.other) for one in found])
        told[name] = {
            "way": _spread(ways),
            "distance to own": _spread(to_own),
            "distance to other": _spread(to_other),
            "nearer to other": float((to_other < to_own).mean()),
            "at the other": float((to_other < apart / 2).mean()),
        }
    for name in ("swapped", "blank"):
        moved = np.array([one.way(getattr(one, name)) - one.way(one.kept) for one in found])
        told[f"way moved, {name} against kept"] = _spread(moved)
    told["distance between the two"] = _spread(apart)
    return told


def _spread(values: np.ndarray) -> dict[str, float]:
    return {"mean": float(values.mean()), "standard deviation": float(values.std()), "least": float(values.min())}


def pairs_to_swap(stories: Sequence[tuple[str, str, str]]) -> list[tuple[str, str]]:
    """Stories whose references change places: of the same body in different colours, each story once as the first.

    Args:
        stories: (video, body, colour) of each.

    Returns:
        (video, video of the other): the other is the story of the same rank among those of the body's next colour.
    """
    groups: dict[str, dict[str, list[str]]] = {}
    for video, body, colour in stories:
        groups.setdefault(body, {}).setdefault(colour, []).append(video)
    pairs = []
    for colours in groups.values():
        names = sorted(colours)
        for place, name in enumerate(names):
            others = colours[names[(place + 1) % len(names)]]
            if len(names) > 1:
                pairs += [(video, others[rank % len(others)]) for rank, video in enumerate(colours[name])]
    return pairs


Generate = Callable[[Any, str, int], np.ndarray]
"""(reference or None, caption, seed) to frames uint8 [F, H, W, 3]."""


def swap(generate: Generate, shots: Sequence[Any], references: dict[str, Any], truth: Any, pairs: Any) -> list[Swapped]:
    """Generate every shot with its own reference, with that of the other story, and with none, from the same noise.

    Args:
        generate: a model.
        shots: samples of one shot each, of all stories (``keys``, ``videos``, ``narrative``, ``frames``).
        references: of every video, what ``generate`` takes for a reference.
        truth: of every shot by key, the character's share of the pixels.
        pairs: (video, other video).
    """
    colours = {one.keys[0]: colour_inside(one.frames[0], np.asarray(truth[one.keys[0]], np.float32)) for one in shots}
    of: dict[str, list[Any]] = {}
    for one in shots:
        of.setdefault(video_of(one.keys[0]), []).append(one)
    found = []
    for video, other in pairs:
        theirs = np.mean([colours[one.keys[0]] for one in of[other]], axis=0)
        for number, one in enumerate(of[video]):
            key, share = one.keys[0], np.asarray(truth[one.keys[0]], np.float32)
            pictures = (references[video], references[other], None)
            made = [colour_inside(generate(picture, one.narrative[0], number), share) for picture in pictures]
            found.append(Swapped(colours[key], theirs, *made))
    return found


def video_of(key: str) -> str:
    """The video of a shot's key."""
    return key.rsplit("-", 2)[0]
