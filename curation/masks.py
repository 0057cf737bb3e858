"""COCO run-length masks, compressed and not, from files that nobody vouches for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from animeshooter_dataset import DataError

if TYPE_CHECKING:
    from curation.release_records import ReleaseMask

LONGEST_SIDE = 16384
MOST_PIXELS = 1 << 26
"""Twice the pixels of an 8K picture; a mask takes a byte a pixel."""
_GROUPS = 7
"""Letters of one number: 7 x 5 bits hold every number up to :data:`MOST_PIXELS`, with sign; more than 12 overflow in C."""


class BadMask(DataError):
    """A mask that cannot be decoded; ``placeholder`` where its counts are a text in the place of a mask."""

    def __init__(self, reason: str, placeholder: bool = False) -> None:
        super().__init__(reason)
        self.placeholder = placeholder


def run_lengths(height: object, width: object, counts: object) -> np.ndarray:
    """Check a mask as it stands in a file, and give its runs.

    Nothing is allocated by what the mask claims before these hold: height and width are whole numbers from 1 to
    :data:`LONGEST_SIDE` and their product at most :data:`MOST_PIXELS`; counts are a text of COCO's 64 letters, each number of
    at most seven of them and the last one complete, or a list of whole numbers; no run is negative or longer than the picture;
    the runs add up to height x width.

    Args:
        height: rows.
        width: columns.
        counts: str, bytes, or a sequence of ints.

    Returns:
        int64 [n], runs column by column, background first.

    Raises:
        BadMask: one of these does not hold.
    """
    if not all(type(side) is int and 0 < side <= LONGEST_SIDE for side in (height, width)):
        raise BadMask(f"its size is not two whole numbers from 1 to {LONGEST_SIDE}")
    assert isinstance(height, int)
    assert isinstance(width, int)
    pixels = height * width
    if pixels > MOST_PIXELS:
        raise BadMask(f"its size is more than {MOST_PIXELS} pixels")
    if isinstance(counts, str | bytes):
        runs = _decompressed(counts)
    elif isinstance(counts, Sequence) and all(type(run) is int and 0 <= run <= pixels for run in counts):
        runs = np.array(counts, np.int64)
    else:
        raise BadMask("its counts are neither text nor a list of whole numbers from 0 to its pixels")
    if len(runs) and (runs.min() < 0 or runs.max() > pixels):
        raise BadMask("a run is negative or longer than the picture")
    if int(runs.sum()) != pixels:  # at most 64 Mi runs of 64 Mi pixels: no overflow
        raise BadMask(f"its runs add up to {int(runs.sum())} pixels, its size to {pixels}")
    return runs


def _decompressed(counts: str | bytes) -> np.ndarray:
    """The runs of COCO's compressed letters, int64 [n], not checked against a picture.

    A number is written in groups of five bits, least significant first, a letter each: 48 + group, + 32 where more follow; the
    fifth bit of the last group is the sign. From the fourth on, numbers are differences to the last but one (cocoapi,
    ``rleToString`` in ``maskApi.c``).
    """
    try:
        letters = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    except UnicodeEncodeError:
        raise BadMask("a text stands in the place of its counts", placeholder=True) from None
    if not len(letters):
        raise BadMask("its counts are empty", placeholder=True)
    if letters.min() < 0 or letters.max() > 63:
        raise BadMask("a text stands in the place of its counts", placeholder=True)
    ends = np.flatnonzero(letters < 32)
    if not len(ends) or ends[-1] != len(letters) - 1:
        raise BadMask("its counts break off inside a number")
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() >= _GROUPS:
        raise BadMask("a number of its counts is too long")
    shift = 5 * (np.arange(len(letters)) - np.repeat(starts, ends - starts + 1))
    values = np.add.reduceat((letters & 31) << shift, starts)
    values -= np.where(letters[ends] & 16, np.int64(1) << (5 * (ends - starts + 1)), 0)
    # Differences of at most 2**34 in at most 64 Mi runs stay far inside 64 bits.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values


def decode_rle(mask: ReleaseMask) -> np.ndarray:
    """The pixels of a mask, bool [height, width]; the same for both kinds of counts.

    The mask is checked by :func:`run_lengths` before pycocotools sees it: its C code trusts size and counts.

    Raises:
        BadMask: it cannot be decoded.
    """
    from pycocotools import mask as coco

    run_lengths(mask.height, mask.width, mask.counts)
    size = [mask.height, mask.width]
    if isinstance(mask.counts, bytes):
        return coco.decode({"size": size, "counts": mask.counts}).astype(bool)
    packed = coco.frPyObjects({"size": size, "counts": list(mask.counts)}, *size)
    return coco.decode(packed).astype(bool)


def encode_rle(pixels: np.ndarray, compressed: bool = True) -> bytes | tuple[int, ...]:
    """The counts of a mask, bool [height, width]: bytes in COCO's letters, or the runs themselves, background first."""
    from pycocotools import mask as coco

    letters: bytes = coco.encode(np.asfortranarray(pixels, np.uint8))["counts"]
    if compressed:
        return letters
    height, width = pixels.shape
    return tuple(run_lengths(height, width, letters).tolist())
