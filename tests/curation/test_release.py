"""The official release: every spelling that was published is read, whatever is odd costs itself and one line."""

import json
import math
import os
import pickle
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from releases import (
    DISC,
    DOCUMENTED,
    ID,
    RELEASED,
    Spelling,
    as_json,
    audio_json,
    hen_document,
    hen_story,
    make_mask,
    make_sound,
    make_video,
    only_entry,
    read_back,
    sample_release,
    script_and_shot,
    write_members,
    write_release,
)

from animeshooter_dataset import KEY_PATTERN, Character, DataError, Scene
from curation.captions import LONGEST_TEXT
from curation.lines import one_line
from curation.loose import NOTHING, clean
from curation.masks import decode_rle
from curation.release import (
    ReleaseEntry,
    ReleaseReference,
    ReleaseSegment,
    ReleaseShot,
    ReleaseSound,
    ReleaseVideo,
    open_release,
    read_video,
)


def problem(tmp_path, value, name=f"{ID}.json"):
    """The one line that says why a file beside a good one cannot be used."""
    path = write_members(
        tmp_path / "problem", {name: value, "good_file_1.json": as_json(make_video("good_file_1", [hen_story()]))}
    )
    release = open_release(path)
    assert [entry.id for entry in release.entries] == ["good_file_1"]
    (told,) = release.problems
    assert told.stage == "collect"
    assert told.film == name
    assert str(path) not in told.public()["reason"]
    assert told.reason == one_line(told.reason)
    return told.reason.removeprefix(f"{path}: {name}: ")


# --- what is written is what is read -----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["release.zip", "release"])
@pytest.mark.parametrize(
    "spelling",
    [RELEASED, DOCUMENTED, Spelling(captions="flat", hours=True, nothing="null"), Spelling(scenes="scenes", nothing="")],
)
@pytest.mark.parametrize("compressed", [True, False])
def test_every_published_spelling_reads_the_same(tmp_path, kind, spelling, compressed):
    sounds = [make_sound(0, 5, characters=["fox"], scene="yard"), make_sound(5, 10)]
    video = make_video(ID, [hen_story(sounds=sounds, compressed=compressed), hen_story(300, 900, number=2)])
    audio = tmp_path / f"audio_{kind}"
    write_release(tmp_path / kind, [video], audio=audio, spelling=spelling, inside="dataset_anime_shooter/")
    found = read_video(only_entry(tmp_path / kind, audio))
    assert replace(found, notes=()) == video
    mask = found.segments[0].references[0].masks[1]
    assert np.array_equal(decode_rle(mask), ~DISC)
    assert mask.frame == 42


def texts(most=60):
    return st.text(max_size=most).map(clean)


def names():
    return texts(30).filter(lambda name: name.casefold() not in NOTHING)


@st.composite
def videos(draw):
    """Any video that the format can tell; times are such that text holds them exactly."""
    edges = sorted(draw(st.sets(st.integers(0, 40_000), min_size=2, max_size=4)))
    segments = [draw(stories(number, *span)) for number, span in enumerate(pairwise(edges), 1)]
    id = draw(st.from_regex(r"[A-Za-z0-9_-]{11}", fullmatch=True) | texts(40).filter(bool))
    url = draw(st.sampled_from(["https://www.youtube.com/watch?v=LvJRvwIDh0E", "http://films.example/a.mp4?x=1"]))
    fps = draw(st.sampled_from([30.0, 24000 / 1001, 25.0, 59.94]) | st.floats(0.5, 1000))
    return make_video(id, segments, fps=fps, url=url)


@st.composite
def stories(draw, number, start, end):
    people, places = draw(st.lists(names(), max_size=3, unique=True)), draw(st.lists(names(), max_size=3, unique=True))
    times = st.integers(0, 80_000).map(lambda eighths: eighths / 8)
    cast = st.lists(st.sampled_from(people), unique=True).map(tuple) if people else st.just(())
    scene = st.sampled_from([*places, None])
    window = st.none() | st.tuples(times, times).filter(lambda pair: pair[0] < pair[1])
    word = st.sampled_from([None, "prologue", "epilogue"])
    shots = st.lists(st.builds(ReleaseShot, times, times, window, word, cast, scene, texts(), texts()), min_size=1, max_size=4)
    sounds = st.lists(st.builds(ReleaseSound, times, times, *[texts()] * 5, scene, cast), max_size=3, unique=True)
    shape = draw(st.tuples(st.integers(1, 9), st.integers(1, 9)))
    pixels = st.integers(0, 2**81 - 1).map(lambda bits: np.array([bits >> place & 1 for place in range(81)], bool))
    frames = st.sets(st.integers(start, end - 1), min_size=1, max_size=3)
    references = []
    for name in people:
        if draw(st.booleans()):
            masks = [
                make_mask(frame, draw(pixels)[: math.prod(shape)].reshape(shape), compressed=draw(st.booleans()))
                for frame in draw(frames)
            ]
            references.append(ReleaseReference(name, tuple(masks)))
    return ReleaseSegment(
        number,
        start,
        end,
        draw(texts()),
        tuple(Character(id=name, appearance=draw(texts())) for name in people),
        tuple(Scene(id=name, environment=draw(texts())) for name in places),
        tuple(draw(shots)),
        tuple(draw(sounds)),
        tuple(references),
    )


SPELLINGS = st.builds(
    Spelling,
    scenes=st.sampled_from(["settings", "scenes"]),
    captions=st.sampled_from(["annotation", "raw", "flat"]),
    extra=st.sampled_from(["timestamp", "segment"]),
    prologue=st.just("word"),
    nothing=st.sampled_from(["N/A", "null", None, "", "n/a", "None"]),
    hours=st.booleans(),
    sparse=st.booleans(),
)


@settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck))
@given(videos(), SPELLINGS, st.sampled_from(["release", "release.zip"]))
def test_any_record_of_the_format_is_read_as_it_was_written(tmp_path_factory, video, spelling, kind):
    folder = tmp_path_factory.mktemp("any")
    write_members(folder / kind, {"0.json": as_json(video, spelling)})
    heard = any(segment.sounds for segment in video.segments)
    audio = write_members(folder / f"audio_{kind}", {"0.json": audio_json(video, spelling)}) if heard else None
    entry = only_entry(folder / kind, audio)
    found = read_video(pickle.loads(pickle.dumps(entry)))
    assert replace(found, notes=()) == video
    assert (entry.id, entry.segments) == (video.id, len(video.segments))
    assert entry.shots == sum(len(segment.shots) for segment in video.segments)
    assert entry.seconds == video.segments[-1].end_frame / video.fps
    assert re.fullmatch(KEY_PATTERN, entry.key)


# --- hostile files ------------------------------------------------------------------------------------------------------

DEEP = json.loads("[" * 190 + "]" * 190)
NUMBERS = [0, -1, 1.5, math.nan, math.inf, -math.inf, 2**31, 2**63, 10**400, 10**4299, 10**4300 - 1]
TEXTS = [
    "",
    " ",
    "N/A",
    "\x00\x1b[2J\n",
    "../../etc/passwd",
    "x" * 5000,
    "99:99",
    "-1:00",
    "0:0:0:0",
    "1e9",
    "nan",
    "\u202ekcab",
]
MASKS = [{"size": [2**31, 2**31], "counts": "o" * 50}, {"size": [1, 1], "counts": [10**400]}]
NASTY = st.sampled_from(
    [None, True, False, *NUMBERS, *TEXTS, *MASKS, [], {}, [[]], [None], {"": None}, DEEP, ["a", "a"], [{"ID": None}]]
)


def places_in(value, path=()):
    """Paths to every value inside a JSON value."""
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield (*path, key)
        yield from places_in(each, (*path, key))


def put(value, path, new):
    for key in path[:-1]:
        value = value[key]
    value[path[-1]] = new


def outcome(call, *args):
    """What a call gives, or the one line with which it refuses."""
    try:
        return call(*args), ""
    except DataError as error:
        return None, str(error)


def check_hostile(folder, data):
    """Whatever the bytes are: a video, or one line."""
    path = write_members(folder, {f"{ID}.json": data})
    release, line = outcome(open_release, path, path)  # as audio release too: every reader sees it
    told = [line, *(each.reason for each in release.problems)]
    entry = ReleaseEntry(ID, "key", None, path, f"{ID}.json", (path, f"{ID}.json"), "0" * 64, 0, 0, 0.0)
    video, line = outcome(read_video, entry)
    assert video or line
    assert all(each == one_line(each) for each in (*told, line))
    if video:
        check_promises(video)


def check_promises(video):
    """What every user of a video may rely on."""
    assert isinstance(video, ReleaseVideo)
    assert 0 < video.fps <= 1000
    assert all(note == one_line(note) for note in video.notes)
    assert video.segments
    assert all(early.end_frame <= late.start_frame for early, late in pairwise(video.segments))
    for segment in video.segments:
        people, scenes = {each.id for each in segment.characters}, {each.id for each in segment.scenes} | {None}
        assert 0 <= segment.start_frame < segment.end_frame
        assert segment.shots
        for part in (*segment.shots, *segment.sounds):
            assert set(part.characters) <= people
            assert part.scene in scenes
            assert math.isfinite(part.start) and math.isfinite(part.end)  # noqa: PT018
            assert max(len(part.narrative_caption), len(part.descriptive_caption)) <= LONGEST_TEXT
        assert all(shot.prologue_or_epilogue in (None, "prologue", "epilogue") for shot in segment.shots)
        for reference in segment.references:
            assert reference.character in people
            for mask in reference.masks:
                assert segment.start_frame <= mask.frame < segment.end_frame
                assert decode_rle(mask).shape == (mask.height, mask.width)
    json.dumps([repr(video)], ensure_ascii=False).encode()  # no text that UTF-8 cannot hold


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_values_in_any_place_give_a_video_or_one_line(tmp_path_factory, data):
    value = as_json(make_video(ID, [hen_story(), hen_story(300, 600, number=2)]))
    for part in audio_json(make_video(ID, [hen_story(sounds=[make_sound(0, 4)])]))["segments"]:
        script_and_shot(value)[0]["shots"] += part["story script"]["shots"]
    paths = list(places_in(value))
    for _ in range(data.draw(st.integers(1, 6))):
        path = data.draw(st.sampled_from(paths))
        try:
            put(value, path, data.draw(NASTY))
        except (KeyError, IndexError, TypeError):
            continue
    check_hostile(tmp_path_factory.mktemp("hostile"), json.dumps(value).encode())


@settings(deadline=None, max_examples=200, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_any_damage_to_the_bytes_gives_a_video_or_one_line(tmp_path_factory, data):
    whole = json.dumps(hen_document(), ensure_ascii=False).encode()
    start, end = sorted(data.draw(st.tuples(*[st.integers(0, len(whole))] * 2)))
    damaged = whole[:start] + data.draw(st.binary(max_size=20)) + whole[data.draw(st.sampled_from([start, end, start + 1])) :]
    check_hostile(tmp_path_factory.mktemp("damaged"), damaged)


@pytest.mark.parametrize(
    ("data", "word"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b"\xef\xbb\xbf", "is empty"),
        ('{"video ID": "é"}'.encode("latin-1"), "not UTF-8"),
        ('{"video ID": "x"}'.encode("utf-16"), "not UTF-8"),
        (b"{", "no JSON"),
        (b"<html>404</html>", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"fps": ' + b"9" * 100_000 + b"}", "no JSON"),
        (b'{"segments": "\\ud800"}', "no JSON"),
        (b"[]", "a JSON list"),
        (b"NaN", "a JSON number"),
        (b'"text"', "a JSON text"),
        (b"{}", "no 'segments'"),
        (b'{"segments": {}}', "no 'segments'"),
    ],
)
def test_a_file_that_is_no_annotation_is_one_line(tmp_path, data, word):
    assert word in problem(tmp_path, data)


@pytest.mark.parametrize("fps", [None, 0, -30, "fast", math.nan, math.inf, True, [30], 10**400])
def test_frames_without_a_rate_mean_nothing(tmp_path, fps):
    assert "'fps'" in problem(tmp_path, hen_document() | {"fps": fps})


def test_a_byte_order_mark_and_nan_elsewhere_do_no_harm(tmp_path):
    value = hen_document()
    value["views"] = math.nan
    video = read_back(tmp_path, b"\xef\xbb\xbf" + json.dumps(value).encode())
    assert video.segments == (hen_story(),)
    assert video.notes == ("story 1: a shot is in no scene ('N/A')",)


def test_many_bad_things_are_few_lines_and_take_no_time_that_grows_with_their_square(tmp_path):
    value = hen_document()
    script, shot = script_and_shot(value)
    mask = {"frame index": 7, "rle mask": {"size": [40, 60], "counts": "placeholder in case the file is too large"}}
    value["segments"][0]["reference images"] = [{"ID": "hen", "masks": [mask] * 5000}]
    script["shots"] = [shot | {"main characters": [f"stranger {n}"], "setting": f"place {n}"} for n in range(5000)]
    script["main characters"] += [{"ID": f"extra {n}", "appearance": ""} for n in range(5000)]
    value["segments"] += [hen_document(end=10**6 + n)["segments"][0] for n in range(3000)]
    video = read_back(tmp_path, value)
    assert [each.number for each in video.segments] == [1]
    assert len(video.notes) <= 201
    assert "story 1, 'hen': a mask is only a placeholder, left out (5000 times)" in video.notes
    assert sum("not among the main characters" in note for note in video.notes) == 1


# --- identity --------------------------------------------------------------------------------------------------------------


def test_the_id_is_that_of_the_file_where_none_is_told(tmp_path):
    value = hen_document()
    del value["video ID"], value["url"]
    video = read_back(tmp_path, value)
    assert (video.id, video.url) == (ID, f"https://www.youtube.com/watch?v={ID}")
    assert video.notes[0] == f"no video ID is told, the file's name is used ('{ID}')"


def test_an_id_that_is_not_the_file_name_is_noted(tmp_path):
    video = read_back(tmp_path, hen_document(), name="other.json")
    assert video.id == ID
    assert "the video ID is not the file's name" in video.notes[0]


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "javascript:alert(1)", "ftp://x.example/a", "https://", 7, "http://a b", "-o/x"]
)
def test_an_address_that_is_none_is_not_used(tmp_path, url):
    value = hen_document() | {"url": url, "video ID": "no youtube id"}
    entry = only_entry(write_members(tmp_path / "r", {"a.json": value}))
    assert entry.url is None
    assert read_video(entry).url is None


def test_hostile_ids_become_plain_keys(tmp_path):
    ids = ["../../etc/passwd", "/abs", "a\\b", "x" * 200, "ＡＢＣ", "-", "‮"]
    path = write_members(
        tmp_path / "r", {f"{n}.json": as_json(make_video(id, [hen_story()], url=None)) for n, id in enumerate(ids)}
    )
    release = open_release(path)
    assert {entry.id for entry in release.entries} == set(ids)
    assert all(re.fullmatch(KEY_PATTERN, entry.key) for entry in release.entries)
    assert len({entry.key for entry in release.entries}) == len(ids)
    assert {path.name for path in tmp_path.rglob("*")} == {"r", *(f"{n}.json" for n in range(len(ids)))}


def test_of_two_files_of_one_video_the_first_is_kept(tmp_path):
    path = write_members(
        tmp_path / "r.zip",
        {"b.json": hen_document(), "a.json": hen_document(), "c.json": as_json(make_video("x", [hen_story()]))},
    )
    release = open_release(path)
    assert sorted(entry.member for entry in release.entries) == ["a.json", "c.json"]
    assert [each.reason for each in release.problems] == [f"{path}: b.json: its video '{ID}' is that of a.json, which is used"]


def test_entries_are_in_the_order_of_keys_and_tell_what_is_inside(tmp_path):
    videos = [make_video(id, [hen_story()]) for id in ("zzzzzzzzzzz", "aaaaaaaaaaa", "MMMMMMMMMMM")]
    seen = []
    release = open_release(write_release(tmp_path / "r.zip", videos), progress=lambda *told: seen.append(told))
    assert [entry.key for entry in release.entries] == sorted(entry.key for entry in release.entries)
    entry = release.entries[0]
    assert (entry.id, entry.segments, entry.shots, entry.seconds) == ("aaaaaaaaaaa", 1, 2, 10.0)
    assert seen == [(n, 3, f"{id}.json") for n, id in enumerate(sorted(video.id for video in videos), 1)]


# --- the release as a whole --------------------------------------------------------------------------------------------------


def test_ids_without_annotation_are_one_line(tmp_path):
    listed = [ID, "bad_file_01", *(f"missing_{n:03}" for n in range(9))]
    video = make_video(ID, [hen_story()])
    path = write_release(tmp_path / "inside.zip", [video], ids=listed)
    (told,) = open_release(path).problems
    assert "of 11 ids 10 (bad_file_01, missing_000, missing_001, missing_002, missing_003, …) have no annotation" in told.reason
    path = write_release(tmp_path / "x" / "beside.zip", [video])
    (tmp_path / "x" / "video_ids.txt").write_text(f"{ID}\r\nmissing_000\r\n\r\n")
    (told,) = open_release(path).problems
    assert "of 2 ids 1 (missing_000) has no annotation" in told.reason


def test_a_folder_as_it_was_downloaded_is_read_as_its_zips(tmp_path):
    video = make_video(ID, [hen_story(sounds=[make_sound(0, 5)])])
    write_release(tmp_path / "dataset_anime_shooter.zip", [video], audio=tmp_path / "dataset_anime_shooter_audio.zip")
    (tmp_path / "video_ids.txt").write_text(f"{ID}\n")
    assert read_video(only_entry(tmp_path)).segments == video.segments


def test_a_folder_with_both_zips_unpacked_keeps_sounds_apart(tmp_path):
    video = make_video(ID, [hen_story(sounds=[make_sound(0, 5)])])
    write_release(tmp_path / "dataset_anime_shooter", [video], audio=tmp_path / "dataset_anime_shooter_audio")
    (tmp_path / "video_ids.txt").write_text(f"{ID}\n")
    assert read_video(only_entry(tmp_path)).segments == video.segments


def test_the_audio_release_alone_can_be_read(tmp_path):
    video = make_video(ID, [hen_story(sounds=[make_sound(0, 5), make_sound(5, 9)])])
    write_release(tmp_path / "main", [video], audio=tmp_path / "release_audio")
    (segment,) = read_video(only_entry(tmp_path / "release_audio")).segments
    assert [(shot.start, shot.end) for shot in segment.shots] == [(0, 5), (5, 9)]
    assert segment.sounds == video.segments[0].sounds


def test_a_release_without_annotation_is_one_line(tmp_path):
    for path in (write_members(tmp_path / "r.zip", {"a.txt": b"x"}), write_members(tmp_path / "r", {"a.txt": b"x"})):
        with pytest.raises(DataError, match="holds no annotation"):
            open_release(path)
    with pytest.raises(DataError, match="holds no annotation"):
        open_release(write_release(tmp_path / "good", [make_video(ID, [hen_story()])]), tmp_path / "r.zip")


# --- real ones ---------------------------------------------------------------------------------------------------------------


def test_a_release_of_a_rendered_film_has_its_true_masks(tmp_path):
    from curation.sample_films import storyboard, truth

    pixels = np.zeros((storyboard.HEIGHT, storyboard.WIDTH), bool)
    pixels[100:300, 200:400] = True
    recorder = truth.Recorder(["hen"])
    for number in range(96):
        recorder.add({"hen": np.roll(pixels, number, axis=1)} if number < 48 else {})
    np.savez(tmp_path / "film.truth.npz", **recorder.arrays())
    shots = [
        {"start_frame": 0, "end_frame": 48, "characters": ["hen"]},
        {"start_frame": 48, "end_frame": 96, "characters": []},
    ]
    facts = {"film": "film", "fps": 24, "n_frames": 96, "cuts": [48], "shots": shots}
    (tmp_path / "film.truth.json").write_text(json.dumps(facts))
    words = {"narrative_caption": "n", "descriptive_caption": "d", "scene": "yard", "prologue_or_epilogue": None}
    script = {
        "characters": [{"id": "hen", "appearance": "red"}],
        "scenes": [{"id": "yard", "environment": "sunny"}],
        "stories": [{"start": 0, "end": 4, "storyline": "A hen leaves."}],
        "shots": [{"start": 0.0, "characters": ["hen"], **words}, {"start": 2.0, "characters": [], **words}],
        "audio": [
            {
                "start": 0.0,
                "end": 4.0,
                "type": "music",
                "sound_description": "s",
                "visual_context": "v",
                "characters": [],
                **words,
            }
        ],
    }
    (tmp_path / "film.script.json").write_text(json.dumps(script))
    told = sample_release(tmp_path, compressed=False)
    write_release(tmp_path / "r.zip", told, audio=tmp_path / "a.zip")
    video = read_video(only_entry(tmp_path / "r.zip", tmp_path / "a.zip"))
    assert replace(video, notes=()) == told[0]
    ((reference,), (sound,)) = video.segments[0].references, video.segments[0].sounds
    assert [mask.frame for mask in reference.masks] == [12, 36]
    for mask in reference.masks:
        assert np.array_equal(decode_rle(mask), truth.load_truth(tmp_path / "film.mp4").mask(mask.frame, "hen"))
    assert (sound.start, sound.end) == (0, 4)


@pytest.mark.skipif("ANIMESHOOTER_OFFICIAL" not in os.environ, reason="needs the folder of an official file")
def test_the_official_file():
    release = open_release(Path(os.environ["ANIMESHOOTER_OFFICIAL"]))
    (entry,) = release.entries
    video = read_video(entry)
    check_promises(video)
    assert (len(video.segments), sum(len(each.shots) for each in video.segments)) == (8, 64)
    assert (entry.segments, entry.shots) == (8, 64)
    assert "story 8: a shot is in no scene ('N/A')" in video.notes
    placeholders = [int(re.search(r"\((\d+) times\)", note)[1]) for note in video.notes if "placeholder" in note]
    assert (len(placeholders), sum(placeholders)) == (21, 293)
    assert len(video.notes) == 22
    assert video.segments[-1].shots[-1].prologue_or_epilogue == "epilogue"
    assert video.segments[0].shots[0].representative == (4.0, 8.0)
