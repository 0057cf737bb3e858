"""Classifier-free guidance with one scale, or with one for the reference and one for the captions.

Each step of denoising predicts once for every :class:`Branch`, and the predictions are summed with weights that add up to 1.
With one scale s the prediction is e(blank) + s (e(all) - e(blank)). With two it goes the way of InstructPix2Pix (Brooks et
al. 2023, section 3.2.1), the reference in the place of its image and the captions in the place of its instruction::

    e(blank) + s_reference (e(reference) - e(blank)) + s_captions (e(reference, captions) - e(reference))

With equal scales that is the guidance with one scale. Memory of earlier shots stands in every branch: what is guided away
from is a story that goes on with nobody known and nothing told, as training with dropout makes it.
"""

from __future__ import annotations

import math
from typing import NamedTuple


class Branch(NamedTuple):
    """One condition of a guided prediction: whether it has the reference, whether the captions, and its weight in the sum."""

    reference: bool
    caption: bool
    weight: float


def guided(scale: float = 6.0, reference_scale: float | None = None) -> tuple[Branch, ...]:
    """The conditions of a guided prediction, the full one first; those of weight 0 are left out.

    Args:
        scale: of the captions, and of the reference too where that has none of its own; at most 1 then turns guidance off.
        reference_scale: of the reference against a blank one; None gives it ``scale``.

    Raises:
        ValueError: a scale is negative or not finite.
    """
    for name, value in (("guidance_scale", scale), ("reference_guidance_scale", reference_scale)):
        if value is not None and not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name} is a number from 0, not {value}")
    if reference_scale is None:
        reference_scale = scale = max(1.0, scale)
    branches = (
        Branch(reference=True, caption=True, weight=scale),
        Branch(reference=True, caption=False, weight=reference_scale - scale),
        Branch(reference=False, caption=False, weight=1.0 - reference_scale),
    )
    return tuple(branch for branch in branches if branch.weight)
