"""The sample films: their structure, their truth and their sound agree with what is drawn."""

import json
from dataclasses import replace
from functools import cache
from itertools import pairwise

import av
import cv2
import numpy as np
import pytest

from curation.sample_films import FILMS, frame, load_truth, render_film, render_films
from curation.sample_films.compositor import Stage
from curation.sample_films.render import load_film
from curation.sample_films.script import script
from curation.sample_films.soundtrack import mix
from curation.sample_films.storyboard import FPS, HEIGHT, WIDTH, timeline
from curation.sample_films.truth import Recorder

SIDE_FILES = (".mp4", ".truth.json", ".truth.npz", ".script.json")


@cache
def stage(name):
    return Stage(load_film(name))


@cache
def small(name, index):
    return cv2.resize(stage(name).picture(index).image, (64, 36), interpolation=cv2.INTER_AREA).astype(float)


def change(name, index):
    """Mean absolute difference between a frame and the one before it."""
    return np.abs(small(name, index) - small(name, index - 1)).mean()


@pytest.fixture(scope="module")
def rendered(tmp_path_factory):
    folder = tmp_path_factory.mktemp("films")
    return render_film("fallen_star", folder, seconds=3)


def test_same_seed_gives_the_same_bytes(rendered, tmp_path):
    again = render_film("fallen_star", tmp_path, seconds=3)
    for suffix in SIDE_FILES:
        name = "fallen_star" + suffix
        assert (again.parent / name).read_bytes() == (rendered.parent / name).read_bytes(), name
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted("fallen_star" + s for s in SIDE_FILES)


def test_a_seed_varies_details_but_not_the_structure():
    film = load_film("paper_boat")
    one, other = Stage(film, 0), Stage(film, 1)
    assert one.time == other.time
    a, b = one.picture(60).image.astype(int), other.picture(60).image.astype(int)
    assert 0.5 < np.abs(a - b).mean() < 40


def test_the_film_is_h264_and_aac_with_frequent_keyframes(rendered):
    with av.open(str(rendered)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.width, video.height) == ("h264", WIDTH, HEIGHT)
        assert video.average_rate == FPS
        assert (audio.codec_context.name, audio.rate, audio.channels) == ("aac", 48_000, 2)
        keys = [i for i, image in enumerate(container.decode(video)) if image.key_frame]
    assert keys[0] == 0
    assert max(np.diff([*keys, 3 * FPS])) <= 48


def test_encoded_frames_show_what_was_drawn(rendered):
    with av.open(str(rendered)) as container:
        images = [image.to_ndarray(format="rgb24") for image in container.decode(video=0)]
    assert len(images) == 3 * FPS
    drawn = frame("fallen_star", 50).astype(int)
    assert np.abs(images[50].astype(int) - drawn).mean() < 6
    assert np.abs(images[50].astype(int) - images[10].astype(int)).mean() > 6


@pytest.mark.parametrize("name", FILMS)
def test_the_picture_changes_at_every_cut_and_only_there(name):
    time = stage(name).time
    for cut in time.cuts:
        assert change(name, cut) > 8, f"frame {cut}"
        assert change(name, cut) > 2.5 * max(change(name, cut - 1), change(name, cut + 1)), f"frame {cut}"


@pytest.mark.parametrize("name", FILMS)
def test_a_flash_whitens_a_shot_that_goes_on(name):
    time = stage(name).time
    ((first, last),) = time.flashes
    assert not any(first - 1 <= cut <= last + 1 for cut in time.cuts)
    assert time.shot_at(first - 1) == time.shot_at(last + 1)
    assert small(name, first).mean() > 240
    assert np.abs(small(name, first - 1) - small(name, last + 1)).mean() < 30


@pytest.mark.parametrize("name", FILMS)
def test_gradual_spans_are_gradual_and_fades_reach_black(name):
    time = stage(name).time
    shots = load_film(name).shots
    for first, last in time.gradual[1:-1]:
        assert max(change(name, i) for i in range(first, last + 2)) < 18
    assert {shot.into for shot in shots} == {"cut", "dissolve", "fade"}
    assert small(name, 0).mean() < 8
    assert small(name, time.n_frames - 1).mean() < 8
    fade = time.starts[next(i for i, shot in enumerate(shots) if shot.into == "fade")]
    assert small(name, fade).mean() < 8


@pytest.mark.parametrize("name", FILMS)
def test_every_film_is_a_story_of_the_promised_size(name):
    film, time = load_film(name), stage(name).time
    assert 60 <= time.n_frames / FPS <= 90
    assert 10 <= len(film.shots) <= 18
    assert len({shot.scene for shot in film.shots}) >= 3
    assert 2 <= len(film.cast) <= 3
    assert film.shots[0].card
    assert film.shots[-1].card
    assert all(sum(any(a.who == r.id for a in shot.acts) for shot in film.shots) >= 3 for r in film.cast)


def test_drawings_hold_for_two_frames_under_a_resting_camera():
    film = load_film("snow_portrait")
    shots = tuple(replace(s, camera=s.camera[:1], air=(), shake=None, flash=None, into="cut") for s in film.shots)
    still = Stage(replace(film, shots=shots))
    first = still.time.starts[3]
    images = [still.picture(i).image for i in range(first, first + 12)]
    assert all(np.array_equal(a, b) for a, b in zip(images[::2], images[1::2]))
    assert not any(np.array_equal(a, b) for a, b in zip(images[1::2], images[2::2]))


@pytest.mark.parametrize(
    ("name", "index", "who"), [("paper_boat", 430, "mina"), ("fallen_star", 1150, "inky"), ("snow_portrait", 520, "grum")]
)
def test_masks_are_the_pixels_a_character_changes(name, index, who):
    film = load_film(name)
    bare = tuple(replace(s, acts=tuple(replace(a, shadow=False) for a in s.acts)) for s in film.shots)
    gone = tuple(replace(s, acts=tuple(a for a in s.acts if a.who != who)) for s in bare)
    picture = Stage(replace(film, shots=bare)).picture(index)
    without = Stage(replace(film, shots=gone)).picture(index).image
    changed = np.abs(picture.image.astype(int) - without.astype(int)).max(2) > 0
    mask = picture.masks[who]
    assert mask.sum() > 500
    grown = cv2.dilate(mask.astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
    assert (changed & ~grown).sum() < 0.05 * mask.sum()  # a soft edge, a thin whisker
    assert (changed & mask).sum() > 0.93 * mask.sum()


def test_a_character_in_front_hides_the_one_behind():
    picture = stage("paper_boat").picture(1230)
    film = load_film("paper_boat")
    overlap = tuple(
        replace(s, acts=tuple(replace(a, at=((0, 60, 320),), z=10 + (a.who == "toto")) for a in s.acts)) for s in film.shots
    )
    covered = Stage(replace(film, shots=overlap)).picture(1230)
    assert not (covered.masks["mina"] & covered.masks["toto"]).any()
    assert covered.masks["mina"].sum() < 0.9 * picture.masks["mina"].sum()


def test_stored_masks_come_back_exactly_and_fill_their_boxes(tmp_path):
    film = load_film("paper_boat")
    ids = [r.id for r in film.cast]
    recorder, pictures = Recorder(ids), [stage("paper_boat").picture(i) for i in (60, 1230, 1500)]
    for picture in pictures:
        recorder.add(picture.masks)
    np.savez_compressed(tmp_path / "x.truth.npz", **recorder.arrays())
    (tmp_path / "x.truth.json").write_text("{}")
    truth = load_truth(tmp_path / "x.mp4")
    for i, picture in enumerate(pictures):
        for k, who in enumerate(ids):
            mask = truth.mask(i, who)
            assert np.array_equal(mask, picture.masks.get(who, np.zeros_like(mask)))
            if mask.any():
                rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
                assert truth.boxes[i, k].tolist() == [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
            else:
                assert truth.boxes[i, k].tolist() == [-1] * 4
    assert len(pictures[1].masks) == 2


def test_the_truth_file_describes_the_film(rendered):
    truth = load_truth(rendered)
    facts, time = truth.facts, stage("fallen_star").time
    assert facts["fps"] == 24
    assert facts["n_frames"] == time.n_frames
    assert facts["cuts"] == list(time.cuts)
    edges = [(s["start_frame"], s["end_frame"]) for s in facts["shots"]]
    assert edges[0][0] == 0
    assert edges[-1][1] == facts["n_frames"]
    assert all(a[1] == b[0] for a, b in pairwise(edges))
    assert truth.boxes.shape == (3 * FPS, 3, 4)
    assert tuple(facts["characters"]) == truth.characters == ("bolt", "nova", "inky")
    assert all(0 <= e["start"] < e["end"] <= time.n_frames / FPS and e["label"] for e in facts["sounds"])
    assert {e["character"] for e in facts["sounds"]} <= {*truth.characters, None}


@pytest.mark.parametrize("name", FILMS)
def test_the_script_is_complete_and_consistent(name):
    film, time = load_film(name), timeline(load_film(name))
    text = script(film, time, 0)
    assert json.loads(json.dumps(text)) == text
    assert (text["format"], text["version"], text["rights"]["licence"]) == ("animeshooter-script", 1, "CC0-1.0")
    people, places = {c["id"] for c in text["characters"]}, {s["id"] for s in text["scenes"]}
    shots = text["shots"]
    assert len(shots) == len(film.shots)
    for i, shot in enumerate(shots):
        assert shot["end"] - shot["start"] > 1.5
        assert abs(shot["start"] - time.starts[i] / FPS) <= 0.31
        assert shot["scene"] is None or shot["scene"] in places
        assert set(shot["characters"]) <= people
    assert all(a["end"] == b["start"] for a, b in pairwise(shots))
    assert any(abs(s["start"] - t / FPS) > 0.04 for s, t in zip(shots, time.starts))
    assert [s["prologue_or_epilogue"] for s in shots] == ["prologue", *[None] * (len(shots) - 2), "epilogue"]
    captions = [s[k] for s in shots for k in ("narrative_caption", "descriptive_caption")]
    assert len(set(captions)) == len(captions)
    assert all(7 <= len(s["narrative_caption"].split()) <= 24 for s in shots)
    assert all(22 <= len(s["descriptive_caption"].split()) <= 48 for s in shots)
    audio = text["audio"]
    assert len(audio) >= 4
    assert all(a["end"] - a["start"] > 3 for a in audio)
    assert all(a["end"] <= b["start"] for a, b in pairwise(audio))
    assert all((a["scene"] is None or a["scene"] in places) and set(a["characters"]) <= people for a in audio)
    assert {a["type"] for a in audio} <= {"sound effect", "ambience", "music", "speech"}


@pytest.mark.parametrize("name", FILMS)
def test_the_characters_the_script_lists_are_seen(name):
    film, st = load_film(name), stage(name)
    for start, shot in zip(st.time.starts, film.shots):
        named = {a.who for a in shot.acts} & {r.id for r in film.cast}
        frames = range(start + 14, start + shot.frames - 12, 10)
        seen = set()
        for i in frames:
            seen |= {who for who, mask in st.picture(i).masks.items() if mask.sum() > 300}
            if seen == named:
                break
        assert seen == named, f"shot at frame {start}"


@pytest.mark.parametrize("name", FILMS)
def test_sound_starts_where_the_truth_says(name):
    film = load_film(name)
    stereo, events = mix(replace(film, beds=()), timeline(film), 0)
    assert np.abs(stereo).max() <= 0.9
    level = np.sqrt((stereo**2).mean(1))
    loud = []
    for event in events:
        at = round(event["start"] * 48_000)
        after = level[at : at + 9_600].max()
        assert after > 0.01, event
        loud.append(after)
    silent = np.ones(len(level), bool)
    for event in events:
        silent[round(event["start"] * 48_000) : round((event["end"] + 1.2) * 48_000)] = False
    assert level[silent].max() < 0.05 * np.median(loud)


def test_steps_sound_when_a_foot_comes_down():
    film = load_film("snow_portrait")
    events = mix(replace(film, beds=()), timeline(film), 0)[1]
    start = timeline(film).starts[3] / FPS
    steps = [e["start"] - start for e in events if e["character"] == "pola" and 0 <= e["start"] - start < 5]
    steps = [s for s in steps if any(e["label"] == "footstep in snow" and abs(e["start"] - start - s) < 1e-6 for e in events)]
    assert len(steps) >= 9
    assert all(abs(gap - 1 / 3) < 0.09 for gap in np.diff(steps))


def test_an_unknown_film_is_one_clear_line(tmp_path):
    with pytest.raises(ValueError, match="no such film; choose from paper_boat, fallen_star, snow_portrait"):
        render_films(tmp_path, names=["paper_bot"])
    with pytest.raises(ValueError, match="frames 0 to"):
        frame("paper_boat", 10**6)
