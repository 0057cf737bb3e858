import numpy as np
import pytest
import torch
from PIL import Image

from model.images import as_frames, as_references, blank_reference, to_rgb, to_signed_clip, to_uint8_clip


def test_transparent_pixels_become_white_and_opaque_ones_stay():
    sheet = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    sheet.putpixel((1, 0), (10, 20, 30, 255))
    pixels = np.asarray(to_rgb(sheet))
    assert pixels.tolist() == [[[255, 255, 255], [10, 20, 30]]]
    assert np.array_equal(np.asarray(to_rgb(np.asarray(sheet))), pixels)
    assert np.array_equal(np.asarray(to_rgb(torch.from_numpy(np.array(sheet)))), pixels)


@pytest.mark.parametrize("bad", [np.zeros((4, 4, 3)), np.zeros((3, 8, 8), np.uint8), torch.zeros(4, 4)])
def test_other_arrays_are_refused(bad):
    with pytest.raises(ValueError, match=r"uint8 of shape \[H, W, 3 or 4\]"):
        to_rgb(bad)


def test_references_come_alone_in_lists_or_not_at_all(picture):
    assert len(as_references(picture(1))) == 1
    assert len(as_references([picture(1), picture(2)])) == 2
    for nothing in (None, [], {}):
        (reference,) = as_references(nothing)
        assert reference.picture.tobytes() == blank_reference().tobytes()
        assert reference.name is None


def test_references_keep_their_characters_names(picture):
    for several in (
        {"Fox": picture(1), "Owl": picture(2)},
        [("Fox", picture(1)), ("Owl", np.asarray(picture(2)))],
        (("Fox", picture(1)), ("Owl", picture(2))),
    ):
        assert [one.name for one in as_references(several)] == ["Fox", "Owl"]
    (alone,) = as_references(("Fox", picture(1)))
    assert alone.name == "Fox"
    assert [one.name for one in as_references((picture(1), picture(2)))] == [None, None]


def test_a_remembered_shot_is_a_frame_or_several(picture, clips):
    assert [len(as_frames(shot)) for shot in (picture(1), [picture(1), picture(2)], clips(1)[0, :3], clips(1)[0, 0])] == [
        1,
        2,
        3,
        1,
    ]


def test_clip_conversion_loses_nothing(clips):
    clip = clips(2)
    assert torch.equal(to_uint8_clip(to_signed_clip(clip)), clip)


def test_clips_of_another_type_are_refused():
    with pytest.raises(ValueError, match=r"uint8 of shape \[B, F, H, W, 3\], not torch.float32"):
        to_signed_clip(torch.zeros(1, 9, 64, 96, 3))
