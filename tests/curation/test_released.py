from collections import Counter
from fractions import Fraction

import cv2
import numpy as np
import pytest
from films import numbered, read_number, write_film
from releases import make_mask, make_segment, make_shot, make_video
from undrawn import film

from curation import released
from curation.align import align
from curation.clips import ClipInfo, FilmShots
from curation.collect import Film
from curation.references import sheet
from curation.release import ReleaseMask, ReleaseReference
from curation.released import NOWHERE, ReleasedConfig, fitted, read_pictures, release_references
from curation.video import decode, probe, read_frames

WIDTH, HEIGHT = 160, 96
CUTS = [40, 80, 120]
TOLD = [(0, 2), (2, 3), (3, 5), (5, 7)]


def oval(width=WIDTH, height=HEIGHT, centre=(0.5, 0.55), axes=(0.22, 0.4)):
    pixels = np.zeros((height, width), np.uint8)
    middle = (round(centre[0] * width), round(centre[1] * height))
    cv2.ellipse(pixels, middle, (round(axes[0] * width), round(axes[1] * height)), 0, 0, 360, 1, -1)
    return pixels.astype(bool)


def block():
    """A mask over the strip that says which picture it is."""
    pixels = np.zeros((HEIGHT, WIDTH), bool)
    pixels[:60] = True
    return pixels


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4", size=(WIDTH, HEIGHT), frames=168, fps=24)


def placed(path, masks, *, fps=24.0, cuts=CUTS, told=TOLD, end=168, clip=None, extra=()):
    """A story of four shots on a film, and that film with clips of any size."""
    info = probe(path)
    times = [time for _, time, _ in decode(path)]
    found = film(len(times), cuts, fps=info.fps, pts=times)
    segment = make_segment(0, end, [make_shot(*pair, characters=["hen"]) for pair in told], masks={"hen": masks})
    if extra:
        told_masks = segment.references[0].masks + tuple(extra)
        segment = type(segment)(**{**vars(segment), "references": (ReleaseReference("hen", told_masks),)})
    result = align(make_video("abcdefghijk", [segment], fps=fps), found)
    infos = [ClipInfo(1, 24.0, *(clip or (info.height, info.width)), False) for _ in result.spans]
    whole = FilmShots(Film("film", path, "0" * 64, info, None), found, result.spans, [], [], infos)
    return result.stories[0], whole


def picture(path, frame):
    return next(each.image for each in read_frames(path) if each.index == frame)


def test_the_mask_is_the_alpha_and_the_colours_are_the_frames_to_the_pixel(path):
    mask = oval()
    result = release_references(*placed(path, {100: mask}))
    (image,) = result.images
    ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    x0, y0, x1, y1 = xs[0], ys[0], xs[-1] + 1, ys[-1] + 1
    assert image.box == (x0, y0, x1, y1)
    assert np.array_equal(image.image[..., 3], mask[y0:y1, x0:x1] * np.uint8(255))
    inside = mask[y0:y1, x0:x1]
    assert np.array_equal(image.image[inside, :3], picture(path, 100)[y0:y1, x0:x1][inside])
    assert not image.image[~inside].any()
    assert (image.character, image.position, image.frame, image.verifier) == ("hen", 2, 100, "release")
    assert 0 < image.score <= 1
    assert not result.rejected


@pytest.mark.parametrize("compressed", [True, False])
def test_each_mask_is_laid_over_its_own_frame(path, compressed):
    frames = [0, 39, 40, 79, 80, 119, 167]
    extra = [make_mask(frame, block(), compressed=compressed) for frame in frames]
    result = release_references(*placed(path, {20: block()}, extra=extra), ReleasedConfig(images=10))
    assert sorted(image.frame for image in result.images) == sorted([20, *frames])
    for image in result.images:
        assert read_number(image.image[..., :3]) == image.frame
        assert image.position == sum(cut <= image.frame for cut in CUTS)


def test_images_come_best_first_but_from_different_shots_first(path):
    masks = {frame: oval(axes=(0.1 + frame / 1000, 0.4)) for frame in (10, 20, 30, 90, 100, 130)}
    result = release_references(*placed(path, masks), ReleasedConfig(images=4))
    assert {image.position for image in result.images[:3]} == {0, 2, 3}
    assert result.images[0].score >= result.images[1].score >= result.images[2].score
    assert len(result.images) == 4
    assert all(image.agreement is not None and 0 < image.agreement <= 1 for image in result.images)
    assert Counter(each.reason for each in result.rejected) == {"more than 4 images of the character": 2}


def test_a_cut_out_is_scaled_to_a_longest_side_without_a_rim(path):
    result = release_references(*placed(path, {100: oval(centre=(0.5, 0.64), axes=(0.3, 0.34))}), ReleasedConfig(side=40))
    image = result.images[0].image
    assert max(image.shape[:2]) == 40
    assert set(np.unique(image[..., 3])) == {0, 255}
    inside = image[..., 3] > 0
    assert image[inside, 2].min() >= 70  # all of it is 90 in blue: nothing black was mixed in
    assert not image[~inside].any()


def test_boxes_are_in_pixels_of_the_clip(path):
    (image,) = release_references(*placed(path, {100: oval()}, clip=(48, 80))).images
    (full,) = release_references(*placed(path, {100: oval()})).images
    assert np.abs(np.array(image.box) * 2 - full.box).max() <= 2
    assert image.image.shape == full.image.shape


@pytest.mark.parametrize("scale", [0.5, 2 / 3, 2])
def test_masks_of_another_size_but_the_same_shape_are_resampled(path, scale):
    size = round(WIDTH * scale), round(HEIGHT * scale)
    (image,) = release_references(*placed(path, {100: oval(*size)})).images
    alpha, true = np.zeros((HEIGHT, WIDTH), bool), oval()
    x0, y0, x1, y1 = image.box
    alpha[y0:y1, x0:x1] = image.image[..., 3] > 0
    assert (alpha & true).sum() / (alpha | true).sum() > 0.93


def test_enlarged_masks_have_smooth_edges():
    large = fitted(oval(80, 48), 640, 384)
    steps = cv2.resize(oval(80, 48).astype(np.uint8), (640, 384), interpolation=cv2.INTER_NEAREST).astype(bool)
    true = oval(640, 384)
    miss, coarse = (large ^ true).sum(), (steps ^ true).sum()
    assert miss < coarse


def test_masks_that_cannot_be_used_are_refused_with_a_reason(path):
    square = np.zeros((90, 90), bool)
    square[20:70, 20:70] = True
    tiny = np.zeros((HEIGHT, WIDTH), bool)
    tiny[10:60, 10:20] = True
    extra = [ReleaseMask(110, HEIGHT, WIDTH, b"0123"), make_mask(100, oval()), make_mask(400, oval())]
    masks = {10: square, 20: np.zeros((HEIGHT, WIDTH), bool), 30: tiny, 100: oval()}
    result = release_references(*placed(path, masks, extra=extra))
    assert [image.frame for image in result.images] == [100]
    reasons = {each.frame: each.reason for each in result.rejected if each.frame != 100}
    assert reasons[10] == "the mask is 90 x 90 pixels, another shape than the film's 160 x 96"
    assert reasons[20] == "the mask is empty"
    assert reasons[30] == "the mask is tiny: a side of its box is under 24 pixels"
    assert reasons[400] == "its frame lies past the film's end"
    assert "pixels" in reasons[110]
    assert "a mask of the same character and frame came before it" in {each.reason for each in result.rejected}


def test_masks_outside_the_storys_shots_are_refused(path):
    result = release_references(*placed(path, {60: oval(), 130: oval()}, told=[(0, 2), (2, 4)], end=80))
    assert [image.frame for image in result.images] == [60]
    assert [(each.frame, each.position, each.reason) for each in result.rejected] == [
        (130, NOWHERE, "its frame lies in no shot of the story")
    ]


def test_another_rate_finds_the_picture_and_leaves_out_those_beside_a_cut(tmp_path):
    """24 pictures a second carried at 30: numbers are those of the drawn pictures."""
    drawn = [numbered(index, WIDTH, HEIGHT) for index in range(168)]
    shown = [k * 4 // 5 for k in range(210)]
    path = write_film(tmp_path / "film.mp4", size=(WIDTH, HEIGHT), frames=[drawn[k] for k in shown], fps=30)
    cuts = [shown.index(cut) for cut in CUTS]
    masks = {frame: block() for frame in (20, 38, 39, 40, 41, 60, 100, 150)}
    result = release_references(*placed(path, masks, cuts=cuts))
    assert sorted(read_number(image.image[..., :3]) for image in result.images) == [20, 38, 41, 60, 100, 150]
    assert {each.reason for each in result.rejected} == {
        "a cut lies within a frame of it, and the film has another frame rate than the release"
    }


def test_an_unsteady_film_is_searched_by_time(tmp_path):
    """A film without the repeated pictures of its second half."""
    kept = [*range(80), *range(80, 168, 2)]
    drawn = [numbered(index, WIDTH, HEIGHT) for index in kept]
    path = write_film(tmp_path / "film.mp4", size=(WIDTH, HEIGHT), frames=drawn, fps=24, times=[k / 24 for k in kept])
    masks = {frame: block() for frame in (10, 60, 100, 131)}
    result = release_references(*placed(path, masks, cuts=[40, 80, 100]))
    assert sorted(read_number(image.image[..., :3]) for image in result.images) == [10, 60, 100, 130]


# Frames of a film


@pytest.mark.parametrize("name", ["film.mp4", "film.mkv", "film.avi", "film.ts", "film.webm"])
def test_sought_pictures_are_those_of_a_whole_decode(tmp_path, monkeypatch, name):
    codec = {"film.webm": "libvpx", "film.avi": "mpeg4"}.get(name, "libx264")
    quick = {"g": "25", "deadline": "realtime", "cpu-used": "8"} if codec == "libvpx" else {"g": "25"}
    options = {"bf": "3", "g": "25", "x264-params": "open-gop=1"} if codec == "libx264" else quick
    path = write_film(
        tmp_path / name, size=(WIDTH, HEIGHT), frames=300, fps=Fraction(12000, 1001), codec=codec, options=options
    )
    whole = list(read_frames(path))
    pts = np.array([each.pts for each in whole])
    wanted = [0, 1, 60, 61, 240, 299]
    passes = []
    monkeypatch.setattr(released, "decode", lambda film: passes.append(film) or decode(film))
    found = dict(read_pictures(Film("film", path, "0" * 64, probe(path), None), pts, wanted))
    assert sorted(found) == wanted
    assert not passes or path.suffix not in (".mp4", ".mkv", ".webm")
    for frame in wanted:
        assert np.array_equal(found[frame], whole[frame].image)


def test_turned_films_are_read_from_their_start(tmp_path):
    path = write_film(tmp_path / "film.mp4", size=(WIDTH, HEIGHT), frames=60, rotation=90)
    whole = list(read_frames(path))
    found = dict(read_pictures(Film("film", path, "0" * 64, probe(path), None), np.array([each.pts for each in whole]), [30]))
    assert found[30].shape == (WIDTH, HEIGHT, 3)
    assert np.array_equal(found[30], whole[30].image)


def test_images_lie_on_a_sheet(path):
    result = release_references(*placed(path, {100: oval(), 20: oval()}))
    picture, boxes = sheet(result.images)
    assert len(boxes) == 2
    x0, y0, x1, y1 = boxes[0]
    assert np.array_equal(picture[y0:y1, x0:x1], result.images[0].image)
