"""COCO run-length masks: both kinds, to the pixel, and nothing hostile gets as far as the C code."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pycocotools import mask as coco

from animeshooter_dataset import DataError
from curation.masks import LONGEST_SIDE, MOST_PIXELS, BadMask, decode_rle, encode_rle, run_lengths
from curation.release import ReleaseMask

PIXELS = hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40))


@settings(deadline=None)
@given(PIXELS)
def test_both_kinds_give_back_every_pixel(pixels):
    height, width = pixels.shape
    for compressed in (True, False):
        decoded = decode_rle(ReleaseMask(0, height, width, encode_rle(pixels, compressed)))
        assert decoded.dtype == bool
        assert np.array_equal(decoded, pixels)


@settings(deadline=None)
@given(PIXELS)
def test_runs_are_those_of_the_columns(pixels):
    runs = run_lengths(*pixels.shape, encode_rle(pixels))
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    assert np.array_equal(flat.reshape(pixels.shape[::-1]).T, pixels)


def test_runs_of_a_large_picture_need_several_letters():
    pixels = np.zeros((2160, 3840), bool)
    pixels[:, 1900:] = True
    pixels[7, 3000] = False
    assert np.array_equal(decode_rle(ReleaseMask(0, 2160, 3840, encode_rle(pixels))), pixels)


@pytest.mark.parametrize("counts", ["placeholder in case the file is too large", "", "…", "\u0000"])
def test_a_text_in_the_place_of_counts_is_told_apart(counts):
    with pytest.raises(BadMask) as error:
        run_lengths(4, 4, counts)
    assert error.value.placeholder


@pytest.mark.parametrize(
    ("height", "width", "counts"),
    [
        (4, 4, [16, 1]),
        (4, 4, [15]),
        (4, 4, []),
        (4, 4, [-1, 17]),
        (4, 4, [2**64, 2]),
        (4, 4, [2**32 + 16]),
        (4, 4, [1.0, 15.0]),
        (4, 4, [True, 15]),
        (4, 4, [float("nan")]),
        (4, 4, ["16"]),
        (4, 4, None),
        (4, 4, {"0": 16}),
        (4, 4, 16),
        (4, 4, "ooooooooooooo"),
        (4, 4, "o" * 1000 + "0"),
        (4, 4, "P" * 7 + "0"),
        (4, 4, "P" * 30 + "0"),
        (4, 4, "O"),
        (4, 4, "0000"),
        (4, 4, "`"),
        (0, 4, []),
        (-4, -4, [16]),
        (4.0, 4, [16]),
        (True, 1, [1]),
        ("4", 4, [16]),
        (None, None, [16]),
        (10**30, 1, [1]),
        (LONGEST_SIDE + 1, 1, [LONGEST_SIDE + 1]),
        (LONGEST_SIDE, LONGEST_SIDE, [LONGEST_SIDE * LONGEST_SIDE]),
    ],
)
def test_a_mask_that_claims_what_does_not_hold_is_refused(height, width, counts):
    with pytest.raises(BadMask) as error:
        run_lengths(height, width, counts)
    assert not error.value.placeholder
    assert isinstance(error.value, DataError)
    assert "\n" not in str(error.value)


def test_the_largest_picture_is_still_taken():
    assert run_lengths(LONGEST_SIDE, MOST_PIXELS // LONGEST_SIDE, [MOST_PIXELS]).tolist() == [MOST_PIXELS]


@settings(deadline=None, max_examples=300)
@given(st.integers(1, 9), st.integers(1, 9), st.binary(max_size=12) | st.lists(st.integers(-3, 90), max_size=8).map(tuple))
def test_whatever_passes_the_check_decodes_to_what_the_runs_say(height, width, counts):
    try:
        runs = run_lengths(height, width, counts)
    except BadMask:
        return
    pixels = decode_rle(ReleaseMask(0, height, width, counts))
    assert pixels.shape == (height, width)
    assert pixels.sum() == runs[1::2].sum()


@settings(deadline=None, max_examples=200)
@given(PIXELS, st.data())
def test_one_wrong_letter_is_refused_or_harmless(pixels, data):
    letters = bytearray(encode_rle(pixels))
    letters[data.draw(st.integers(0, len(letters) - 1))] = data.draw(st.integers(0, 255))
    height, width = pixels.shape
    try:
        decoded = decode_rle(ReleaseMask(0, height, width, bytes(letters)))
    except BadMask:
        return
    assert decoded.shape == pixels.shape


def test_letters_are_those_that_pycocotools_writes():
    pixels = np.eye(5, dtype=bool)
    assert encode_rle(pixels) == coco.encode(np.asfortranarray(pixels, np.uint8))["counts"]
    assert encode_rle(pixels, compressed=False) == (0, 1, 5, 1, 5, 1, 5, 1, 5, 1)
