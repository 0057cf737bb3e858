"""Screening: what is dropped, what is kept, and the evidence for both, on small rendered films."""

import os
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import films
import numpy as np
import pytest
from overlays import Style, card, dialogue, marked, subtitled, world, write

from animeshooter_dataset import DataError
from curation.collect import read_film
from curation.judge import FilmVerdict
from curation.sampling import Reader, Sampler
from curation.screen import ScreenConfig, Screening, screen
from curation.script import NoAnswer

FPS, SECONDS, SIZE = 8, 24, (320, 180)
CONFIG = ScreenConfig(points=18)


@cache
def base():
    return list(world(SECONDS, FPS, SIZE))


def film(path, pictures, size=SIZE, **options):
    settings = {"g": "24", "bf": "2", **options.pop("options", {})}
    return read_film(films.write_film(path, size=size, fps=FPS, frames=pictures, crf=20, options=settings, **options))


SPOKEN = [
    (0.8, 3.0, "the boat is gone"),
    (4.5, 7.5, "who took it away from here"),
    (9.0, 11.0, "nobody"),
    (11.5, 14.5, "wait for us"),
]


def evidence(screening, check):
    return next(item for item in screening.evidence if item.check == check)


def judge(animation=True, subtitles=False):
    class Judge:
        asked = ()

        def film(self, frames):
            self.asked = frames
            return FilmVerdict(reason="so it looks", animation=animation, subtitles=subtitles)

    return Judge()


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    return film(tmp_path_factory.mktemp("clean") / "clean.mp4", base())


SPARSE = [
    (2.5, 4, "who\nis it"),
    (9, 10.5, "nobody we know"),
    (15.5, 17, "then let them in\nand close the door"),
    (21, 22.5, "why"),
]


@pytest.mark.parametrize(
    ("style", "lines"),
    [
        (Style(), dialogue(SECONDS, 5)),
        (Style(size=0.07, fill=(255, 230, 40), font=1), dialogue(SECONDS, 5, spoken=0.4, rows=2)),
        (Style(centre=0.09, font=2), dialogue(SECONDS, 6)),
        (Style(align="left", outline=False), dialogue(SECONDS, 5, spoken=0.6)),
        (Style(size=0.06), SPARSE),
    ],
    ids=["white", "yellow two rows", "top", "left without outline", "sparse"],
)
def test_burnt_in_subtitles_drop_a_film(tmp_path, style, lines):
    found = screen(film(tmp_path / "film.mp4", subtitled(base(), FPS, lines, style)), CONFIG)
    assert found.reason
    assert "film.mp4: subtitles: " in found.reason
    assert "\n" not in found.reason
    proof = evidence(found, "subtitles")
    assert proof.passed is False
    assert proof.value >= proof.limit == 3
    assert evidence(found, "watermark").value < CONFIG.watermark_share


def test_a_film_without_text_is_kept_with_evidence_of_every_check(clean):
    found = screen(clean, CONFIG)
    assert found.reason is None
    assert found.picture == (0, 0, *SIZE)
    assert [item.check for item in found.evidence] == ["duration", "subtitles", "watermark", "letterbox", "animation"]
    assert [item.passed for item in found.evidence] == [True, True, True, True, None]
    assert evidence(found, "subtitles").value == 0
    assert "without a judge" in evidence(found, "animation").detail


def sign(number, image):
    """A board in the world: another place in every shot, moving with the camera."""
    pick = random.Random(number // (3 * FPS))
    x, y = pick.uniform(0.3, 0.7) + pick.choice((-1, 1)) * 0.004 * (number % (3 * FPS)), pick.uniform(0.3, 0.9)
    image = image.copy()
    height, width = image.shape[:2]
    image[round((y - 0.07) * height) : round((y + 0.07) * height), round((x - 0.15) * width) : round((x + 0.15) * width)] = (
        90,
        50,
        30,
    )
    return write(image, pick.choice(("BAKERY", "HOTEL", "FISH", "OPEN")), Style(size=0.09, outline=False), (x, y))


def logo(number, image):
    return write(image, "TOON TV", Style(size=0.06), (0.87, 0.08))


def title_and_credits(number, image):
    seconds = number / FPS
    if seconds < 2:
        return card("The Long\nWay Home", SIZE)
    if 2 <= seconds < 4:
        return write(image, "directed by Someone", Style(size=0.07))
    if seconds >= SECONDS - 7:
        names = "\n".join(
            f"{work}   {name}"
            for work, name in zip(("story", "paint", "light", "sound"), ("A. Bee", "C. Dee", "E. Eff", "G. Aitch"))
        )
        return write(np.zeros_like(image), names, Style(size=0.08, outline=False), (0.5, 0.5 + 0.1 * (SECONDS - 4 - seconds)))
    return image


@pytest.mark.parametrize("draw", [sign, logo, title_and_credits])
def test_other_text_is_no_subtitle(tmp_path, draw):
    found = screen(film(tmp_path / "film.mp4", marked(base(), draw)), CONFIG)
    assert found.reason is None
    assert evidence(found, "subtitles").passed is True
    assert (evidence(found, "watermark").value >= CONFIG.watermark_share) == (draw is logo)


def test_a_watermark_drops_a_film_where_that_is_wanted(tmp_path):
    found = screen(film(tmp_path / "film.mp4", marked(base(), logo)), replace(CONFIG, drop_watermarks=True))
    assert "watermark: the same text" in (found.reason or "")


def test_cards_all_through_a_trailer_are_no_subtitles(tmp_path):
    cards = ["FROM THE MAKERS", "OF NOTHING AT ALL", "A JOURNEY BEGINS", "THIS WINTER", "COMING SOON"]

    def draw(number, image):
        turn, within = divmod(number, 6 * FPS)
        return card(cards[turn], SIZE) if within < 2 * FPS else image

    assert screen(film(tmp_path / "film.mp4", marked(base(), draw)), CONFIG).reason is None


def test_films_with_subtitles_can_be_wanted(tmp_path):
    made = film(tmp_path / "film.mp4", subtitled(base(), FPS, dialogue(SECONDS, 5), Style()))
    found = screen(made, replace(CONFIG, subtitle_texts=None))
    assert found.reason is None
    assert evidence(found, "subtitles").value >= 3


def boxed(pictures, size, inner):
    x0, y0, x1, y1 = inner
    for image in pictures:
        whole = np.zeros((size[1], size[0], 3), np.uint8)
        whole[y0:y1, x0:x1] = image
        yield whole


def test_bars_are_found_to_the_pixel_with_subtitles_in_them(tmp_path):
    inner = (0, 22, 320, 158)
    pictures = boxed(world(12, FPS, (320, 136)), SIZE, inner)
    fades = marked(pictures, lambda number, image: (image * min(1.0, number / FPS / 4)).astype(np.uint8))
    lines = [(start, start + 1.5, text) for start, text in ((1, "under the picture"), (5, "stands a word"), (9, "or two"))]
    found = screen(film(tmp_path / "film.mp4", subtitled(fades, FPS, lines, Style(centre=0.94))), CONFIG)
    assert np.abs(np.subtract(found.picture, inner)).max() <= 1
    assert evidence(found, "letterbox").passed is True
    assert evidence(found, "letterbox").value == pytest.approx(136 / 180, abs=0.02)


def test_a_small_picture_in_a_large_frame_drops_the_film(tmp_path):
    inner = (110, 30, 210, 150)
    found = screen(film(tmp_path / "film.mp4", boxed(world(6, FPS, (100, 120)), SIZE, inner)), CONFIG)
    assert "letterbox: 21% of the frame" in (found.reason or "")
    assert (
        screen(
            film(tmp_path / "film.mp4", boxed(world(6, FPS, (100, 120)), SIZE, inner)), replace(CONFIG, min_picture=0.2)
        ).reason
        is None
    )


def test_dark_scenes_and_a_dark_floor_are_no_bars(tmp_path):
    floor = np.clip(1 - (np.arange(180) - 100) / 60, 0, 1)[:, None, None]

    def night(number, image):
        dark = 0.03 if number // (2 * FPS) % 2 else 1.0
        return (image * floor * dark).astype(np.uint8)

    found = screen(film(tmp_path / "film.mp4", marked(base()[: 12 * FPS], night)), CONFIG)
    assert found.picture == (0, 0, *SIZE)
    black = screen(film(tmp_path / "black.mp4", (np.zeros((180, 320, 3), np.uint8) for _ in range(4 * FPS))), CONFIG)
    assert evidence(black, "letterbox").passed is None
    assert black.reason is None


def test_long_films_are_dropped_unless_no_limit_is_set(clean):
    found = screen(clean, replace(CONFIG, max_seconds=20.0))
    assert "duration: 24.0 s long, over the limit of 20 s" in (found.reason or "")
    assert evidence(screen(clean, replace(CONFIG, max_seconds=None)), "duration").passed is True


def test_a_judge_is_given_sixteen_frames_and_decides_what_is_animation(clean):
    asked = judge()
    assert screen(clean, CONFIG, asked).reason is None
    assert len(asked.asked) == 16
    assert all(frame.dtype == np.uint8 and frame.shape[2] == 3 for frame in asked.asked)
    found = screen(clean, CONFIG, judge(animation=False))
    assert "animation: judge: so it looks" in (found.reason or "")


def test_a_judge_without_a_usable_verdict_drops_nothing_and_one_that_cannot_be_asked_ends_it(clean):
    def fails(error):
        return SimpleNamespace(film=mock.Mock(side_effect=error))

    found = screen(clean, CONFIG, fails(DataError("it said\nnothing")))
    assert found.reason is None
    assert evidence(found, "animation").passed is None
    assert "gave no verdict: it said\\nnothing" in evidence(found, "animation").detail
    with pytest.raises(NoAnswer):
        screen(clean, CONFIG, fails(NoAnswer("down")))


def test_a_judge_is_believed_on_subtitles_only_where_there_is_text(clean, tmp_path):
    unseen = screen(clean, CONFIG, judge(subtitles=True))
    assert unseen.reason is None
    assert evidence(unseen, "subtitles_judged").passed is None
    twice = [(3.0, 6.0, "just one line"), (9.0, 11.0, "or two")]
    rare = film(tmp_path / "film.mp4", subtitled(base(), FPS, twice, Style()))
    assert screen(rare, CONFIG).reason is None
    assert "subtitles_judged" in (screen(rare, CONFIG, judge(subtitles=True)).reason or "")


def test_a_judge_is_not_asked_about_films_dropped_already(clean):
    unasked = SimpleNamespace(film=mock.Mock())
    assert "duration" in (screen(clean, replace(CONFIG, max_seconds=20.0), unasked).reason or "")
    unasked.film.assert_not_called()


def test_grain_is_recorded_and_drops_a_film_only_by_a_limit(clean, tmp_path):
    noise = np.random.default_rng(0)
    grainy = marked(
        base()[: 6 * FPS], lambda _, image: np.clip(image + noise.normal(0, 4, image.shape), 0, 255).astype(np.uint8)
    )
    made = film(tmp_path / "film.mp4", grainy, options={"crf": "4"})
    assert evidence(screen(made, CONFIG), "animation").passed is None
    limited = replace(CONFIG, max_grain=1.0)
    assert "animation: grain of" in (screen(made, limited).reason or "")
    assert screen(clean, limited).reason is None


@pytest.mark.parametrize(("name", "codec"), [("film.mkv", "libx264"), ("film.avi", "mpeg4"), ("film.ts", "libx264")])
def test_every_container_gives_the_same_answer(tmp_path, name, codec):
    made = film(tmp_path / name, subtitled(base()[: 15 * FPS], FPS, SPOKEN, Style()), codec=codec)
    assert "subtitles" in (screen(made, CONFIG).reason or "")


def test_reading_from_start_to_end_finds_the_same_pictures_as_seeking(clean):
    times = [0.3, 2.2, 9.0, 17.6]
    with Sampler(clean.path) as seeking, Reader(clean.path) as reading:
        for time in times:
            sought, read = seeking.at(time, time), reading.at(time, time)
            assert abs(sought.time - read.time) <= 2 / FPS
            assert time <= read.time < time + 1 / FPS
            assert np.abs(sought.luma().astype(int) - read.luma()).mean() < 8
        assert seeking.until(SECONDS) is None
        reading.finish()


def test_a_rotated_film_is_looked_at_upright(tmp_path):
    upright = subtitled(world(15, FPS, (180, 320)), FPS, SPOKEN, Style(size=0.03))
    made = film(tmp_path / "film.mp4", (np.rot90(image, -1) for image in upright), rotation=90)
    assert (made.info.width, made.info.height) == (180, 320)
    assert "subtitles" in (screen(made, CONFIG).reason or "")


def test_a_film_cut_off_is_one_clear_line(clean, tmp_path):
    cut = read_film(films.truncate(clean.path, tmp_path / "cut.mp4", 0.5))
    with pytest.raises(DataError, match=r"cut\.mp4: (truncated|damaged)") as caught:
        screen(cut, CONFIG)
    assert "\n" not in str(caught.value)


def test_a_screening_survives_the_disk_and_is_the_same_every_time(clean, tmp_path):
    found = screen(clean, CONFIG)
    found.save(tmp_path)
    assert Screening.load(tmp_path) == found == screen(clean, CONFIG)


@pytest.mark.skipif("ANIMESHOOTER_FILMS" not in os.environ, reason="set ANIMESHOOTER_FILMS to a folder of real films")
def test_real_films_are_kept():
    for path in sorted(Path(os.environ["ANIMESHOOTER_FILMS"]).glob("*.mp4")):
        assert screen(read_film(path), ScreenConfig()).reason is None
