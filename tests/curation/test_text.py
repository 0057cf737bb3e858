"""Text in pictures: found where it is, at any size, counted once where polygons overlap."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from overlays import Style, write

from curation.text import find_text, text_cover, text_mask

ROOT = Path(__file__).parent.parent.parent


def landscape(width=640, height=360):
    y, x = np.mgrid[0:height, 0:width]
    return np.stack([90 + 60 * np.sin(x / 40), 110 + 80 * y / height, 160 - 60 * y / height], axis=-1).astype(np.uint8)


def box(polygons):
    points = np.concatenate(polygons)
    return [*points.min(axis=0), *points.max(axis=0)]


@pytest.mark.parametrize("size", [(320, 180), (640, 360), (1280, 720), (270, 480)])
def test_a_line_is_found_where_it_stands(size):
    picture = write(landscape(*size), "Wait for me", Style(size=0.06 if size[0] > size[1] else 0.03, centre=0.8))
    blank = landscape(*size)
    y, x = np.nonzero(np.abs(picture.astype(int) - blank).max(axis=-1) > 30)
    found = box(find_text(picture))
    slack = 0.03 * max(size)
    assert np.allclose(found, [x.min(), y.min(), x.max(), y.max()], atol=slack)


def test_polygons_have_four_corners_in_pixels():
    polygons = find_text(write(landscape(), "Red sky at night", Style(fill=(210, 40, 40), outline=False, centre=0.5)))
    assert polygons
    assert all(polygon.shape == (4, 2) and polygon.dtype == np.float64 for polygon in polygons)


def test_pictures_without_text_have_none():
    assert find_text(landscape()) == []
    assert find_text(np.zeros((90, 160, 3), np.uint8)) == []


def test_a_large_round_figure_is_not_a_letter():
    import cv2

    picture = landscape()
    cv2.circle(picture, (320, 180), 130, (240, 200, 60), -1, cv2.LINE_AA)
    for x in (270, 370):
        cv2.circle(picture, (x, 150), 22, (20, 20, 20), -1, cv2.LINE_AA)
    cv2.ellipse(picture, (320, 220), (60, 30), 0, 0, 180, (20, 20, 20), 8, cv2.LINE_AA)
    assert text_cover(find_text(picture), 360, 640) < 0.02


def test_cover_is_the_share_under_the_union():
    square = np.array([[10.0, 10], [29, 10], [29, 29], [10, 29]])
    assert text_cover([], 100, 100) == 0
    assert text_cover([square], 100, 100) == pytest.approx(0.04)
    assert text_cover([square, square], 100, 100) == pytest.approx(0.04)
    assert text_cover([square, square + np.array([10, 0])], 100, 100) == pytest.approx(0.06)
    assert text_mask([square], 100, 100)[10:30, 10:30].all()
    everything = np.array([[-5.0, -5], [200, -5], [200, 200], [-5, 200]])
    assert text_cover([everything], 100, 100) == 1


def test_the_same_picture_gives_the_same_polygons_and_the_console_stays_quiet():
    code = (
        "import numpy as np\nfrom curation.text import find_text\nfrom overlays import Style, write\n"
        "picture = write(np.full((180, 320, 3), 80, np.uint8), 'Twice the same', Style(size=0.1, centre=0.5))\n"
        "print([polygon.tolist() for polygon in find_text(picture)] == [p.tolist() for p in find_text(picture)])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    assert (done.stdout, done.stderr) == ("True\n", "")
