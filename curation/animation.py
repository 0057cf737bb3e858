"""What can be measured of whether a film is drawn or photographed: grain and held picture. It does not decide by itself.

A camera's sensor, and film, make every picture a little different also where nothing moves; drawn and rendered pictures are the
same there until the codec touches them. So two pictures that follow one another are compared in blocks of 8 x 8 pixels: which
share of them is held (equal to the last bit), and how much the blocks differ that neither move nor have texture.

What this rests on is little: three short clips from a camera had 0.00, 0.01 and 0.13 of their blocks held and a grain of 1.35,
1.22 and 0.41 grey levels; seven animated films, rendered and flat, held 0.24 to 0.87 and had a grain of 0.00 to 0.74 (the most
where falling snow was added). A strongly compressed camera picture loses its grain, and cel animation scanned from film has
it. The measure is therefore recorded, and drops a film only where the settings give a limit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

BLOCK = 8
STILL, SMOOTH = 0.5, 6.0
"""Grey levels: change of a block's mean up to which it does not move, standard deviation up to which it has no texture."""
RANGE = (20.0, 235.0)
"""Mean luma of blocks that are asked: black and white are clipped, and have no grain."""
FEW = 50
"""Blocks that must be still for a word on grain."""


@dataclass(frozen=True)
class Grain:
    """Of two pictures in a row: ``held`` is the share of blocks equal to the last bit, ``noise`` the median standard deviation
    of the change inside still blocks without texture, in grey levels; None where there are too few of them.
    """

    held: float
    noise: float | None


def measure_grain(first: np.ndarray, second: np.ndarray) -> Grain:
    """Compares two pictures that follow one another.

    Args:
        first: luma, uint8 [H, W].
        second: the next picture's luma; where a film changes its size between the two, nothing is said.
    """
    if first.shape != second.shape:
        return Grain(0.0, None)
    one, two = _blocks(first), _blocks(second)
    change = two - one
    mean = one.mean(axis=1)
    asked = (np.abs(change.mean(axis=1)) < STILL) & (one.std(axis=1) < SMOOTH) & (mean > RANGE[0]) & (mean < RANGE[1])
    noise = float(np.median(change[asked].std(axis=1))) if asked.sum() >= FEW else None
    return Grain(float((change == 0).all(axis=1).mean()), noise)


def film_grain(grains: Sequence[Grain]) -> Grain | None:
    """The medians over a film; None without any pair of pictures."""
    if not grains:
        return None
    noises = [grain.noise for grain in grains if grain.noise is not None]
    return Grain(float(np.median([grain.held for grain in grains])), float(np.median(noises)) if noises else None)


def _blocks(luma: np.ndarray) -> np.ndarray:
    """Blocks of a picture as rows, float32 [n, 64]."""
    rows, columns = luma.shape[0] // BLOCK, luma.shape[1] // BLOCK
    tiles = luma[: rows * BLOCK, : columns * BLOCK].reshape(rows, BLOCK, columns, BLOCK)
    return tiles.transpose(0, 2, 1, 3).reshape(-1, BLOCK * BLOCK).astype(np.float32)
