"""Stories of the release: what is odd in them costs itself and is noted in one line, however often it is met."""

import json

import pytest
from releases import (
    ID,
    as_json,
    audio_json,
    hen_document,
    hen_story,
    make_segment,
    make_shot,
    make_sound,
    make_video,
    only_entry,
    read_back,
    script_and_shot,
    write_members,
    write_release,
)

from animeshooter_dataset import DataError
from curation.captions import LONGEST_TEXT
from curation.release import open_release, read_video


@pytest.mark.parametrize("nothing", ["N/A", "n/a", "null", None, "", "None"])
def test_no_scene_is_none_and_noted(tmp_path, nothing):
    value = hen_document()
    script_and_shot(value)[1]["setting"] = nothing
    video = read_back(tmp_path, value)
    assert video.segments[0].shots[0].scene is None
    assert [note.startswith("story 1: a shot is in no scene") for note in video.notes] == [True]


def test_names_are_mended_where_only_case_and_blanks_differ(tmp_path):
    value = hen_document()
    script_and_shot(value)[1].update({"main characters": [" HEN ", "hen", "wolf", "N/A"], "setting": "Yard "})
    video = read_back(tmp_path, value)
    assert video.segments[0].shots[0].characters == ("hen",)
    assert video.segments[0].shots[0].scene == "yard"
    assert "story 1: a shot has somebody who is not among the main characters, left out of it ('wolf')" in video.notes


def test_a_scene_that_is_not_listed_is_none_and_noted(tmp_path):
    value = hen_document()
    script_and_shot(value)[1]["setting"] = "moon"
    video = read_back(tmp_path, value)
    assert video.segments[0].shots[0].scene is None
    assert any("'moon'" in note for note in video.notes)


def test_a_shot_without_times_is_left_out_alone(tmp_path):
    value = hen_document()
    script_and_shot(value)[1]["start time"] = "soon"
    video = read_back(tmp_path, value)
    assert video.segments[0].shots == hen_story().shots[1:]
    assert "story 1: a shot's times are no times, left out ('soon to 00:04')" in video.notes


def test_times_are_kept_as_told_however_odd(tmp_path):
    shots = [make_shot(5, 3), make_shot(0, 9), make_shot(2, 2), make_shot(5000, 5004), make_shot(20, 24)]
    video = make_video(ID, [make_segment(0, 300, shots)])
    assert read_back(tmp_path, as_json(video)).segments == video.segments


def test_a_bad_segment_costs_itself_only(tmp_path):
    good = as_json(make_video(ID, [hen_story(0, 300), hen_story(300, 600), hen_story(600, 900)]))
    backwards, nameless, empty = (json.loads(json.dumps(good["segments"][0])) for _ in range(3))
    backwards["start frame index"], nameless["end frame index"] = 301, "many"
    empty.update({"start frame index": 900, "end frame index": 1000, "story script": {"shots": []}})
    whole_film = good["segments"][0] | {"end frame index": 901}
    twice = good["segments"][1]
    good["segments"] = [whole_film, *good["segments"], backwards, nameless, empty, twice, "text", None]
    video = read_back(tmp_path, good)
    assert [(each.number, each.start_frame) for each in video.segments] == [(2, 0), (3, 300), (4, 600)]
    assert video.notes[0].startswith("a story ends before it starts, left out ('story 5: frames 301 to 300')")
    assert video.notes[1].startswith(
        "a story's frames are no whole numbers, left out ('story 6: 0 to many', 'story 9: None to None'"
    )
    assert video.notes[2] == "a story overlaps another, left out ('story 8 and story 3', 'story 1 and story 4') (2 times)"
    assert "story 7: has no shot, left out" in video.notes


def test_a_video_without_a_good_story_is_one_line(tmp_path):
    value = hen_document()
    value["segments"][0]["end frame index"] = 0
    path = write_members(tmp_path / "r", {f"{ID}.json": value})
    with pytest.raises(
        DataError, match=r"has no story that can be used \(a story ends before it starts.*take it out or mend it$"
    ):
        read_video(only_entry(path))


def test_prologue_or_epilogue_that_is_only_true_is_told_by_where_it_lies(tmp_path):
    shots = [make_shot(0, 4, prologue="prologue"), make_shot(4, 9)]
    video = make_video(ID, [make_segment(0, 300, shots), make_segment(300, 600, shots, number=2)])
    found = read_back(tmp_path, as_json(video))
    assert [[shot.prologue_or_epilogue for shot in each.shots] for each in found.segments] == [
        ["prologue", None],
        ["epilogue", None],
    ]


def test_masks_that_are_none_are_counted_by_character(tmp_path):
    value = hen_document()
    masks = value["segments"][0]["reference images"][0]["masks"]
    good = masks[0]
    rle = good["rle mask"]
    masks += [{"frame index": 50 + n, "rle mask": rle | {"counts": "placeholder"}} for n in range(4)]
    masks += [
        {"frame index": 60, "rle mask": rle | {"size": [2**20, 2**20]}},
        {"frame index": 61, "rle mask": rle | {"counts": [1]}},
    ]
    masks += [{"frame index": 300, "rle mask": rle}, {"frame index": -1, "rle mask": rle}, good]
    value["segments"][0]["reference images"] += [{"ID": "wolf", "masks": [good]}, {"ID": "HEN", "masks": []}]
    video = read_back(tmp_path, value)
    assert video.segments[0].references == hen_story().references
    assert len(video.notes) == 6
    assert "story 1, 'hen': a mask is only a placeholder, left out (4 times)" in video.notes
    assert sum("cannot be decoded" in note and note.endswith("(2 times)") for note in video.notes) == 1
    assert any("lies outside the story" in note and "'300', '-1'" in note for note in video.notes)
    assert any("two masks of one frame" in note for note in video.notes)
    assert any("'wolf'" in note for note in video.notes)


def test_texts_are_clean_and_of_a_bounded_length(tmp_path):
    value = hen_document()
    script_and_shot(value)[1]["visual annotation"] = {
        "narrative caption": " a\x00b\nc\u2028d ",
        "descriptive caption": "long " * 2000,
    }
    shot = read_back(tmp_path, value).segments[0].shots[0]
    assert shot.narrative_caption == "a b c d"
    assert len(shot.descriptive_caption) <= LONGEST_TEXT


def audio_of(segments, fps=30.0, id=ID):
    return audio_json(make_video(id, segments, fps=fps))


def test_sounds_go_to_the_story_that_shares_most_frames_and_keep_their_place_in_the_film(tmp_path):
    main = make_video(ID, [hen_story(0, 300), hen_story(300, 900, number=2)])
    heard = make_segment(270, 870, [make_shot(0, 1)], sounds=[make_sound(2, 7, characters=["fox", "wolf"])])
    video = read_back(tmp_path, as_json(main), audio=audio_of([heard]))
    assert video.segments[0].sounds == ()
    (sound,) = video.segments[1].sounds
    assert (sound.start, sound.end) == (1.0, 6.0)
    assert sound.characters == ("fox",)
    assert any(note.startswith("audio of story 2: a shot has somebody") for note in video.notes)


def test_sounds_of_another_rate_are_mapped_by_time(tmp_path):
    main = make_video(ID, [hen_story(0, 300), hen_story(300, 900, number=2)])
    heard = make_segment(250, 750, [make_shot(0, 1)], sounds=[make_sound(2, 7)])
    video = read_back(tmp_path, as_json(main), audio=audio_of([heard], fps=25.0))
    assert [(sound.start, sound.end) for sound in video.segments[1].sounds] == [(2.0, 7.0)]
    assert "audio: has another fps, mapped by time" in video.notes


def test_sounds_of_a_story_that_is_not_there_are_noted(tmp_path):
    heard = make_segment(5000, 5300, [make_shot(0, 1)], sounds=[make_sound(2, 7)])
    video = read_back(tmp_path, hen_document(), audio=audio_of([heard]))
    assert "audio: a story that the video's annotation does not have, left out ('frames 5000 to 5300')" in video.notes


def test_sounds_inside_the_main_file_are_shots_too(tmp_path):
    value = hen_document()
    script_and_shot(value)[1]["audio annotation"] = {"type": "music", "sound description": "a lute", "visual context": "a yard"}
    (segment,) = read_back(tmp_path, value).segments
    assert segment.shots == hen_story().shots
    (sound,) = segment.sounds
    assert (sound.start, sound.end, sound.type, sound.characters, sound.scene) == (0, 4, "music", ("hen",), "yard")


def test_videos_with_audio_annotation_only_are_one_line(tmp_path):
    heard = make_segment(0, 300, [make_shot(0, 1)], sounds=[make_sound(2, 7)])
    write_members(tmp_path / "main.zip", {f"{ID}.json": hen_document()})
    write_members(tmp_path / "a.zip", {f"{id}.json": audio_of([heard], id=id) for id in (ID, "other_film1", "other_film2")})
    release = open_release(tmp_path / "main.zip", tmp_path / "a.zip")
    assert [entry.audio for entry in release.entries] == [(tmp_path / "a.zip", f"{ID}.json")]
    assert ["2 (other_film1, other_film2) have audio annotation only" in each.reason for each in release.problems] == [True]


def test_an_entry_changes_with_its_audio_annotation(tmp_path):
    video = make_video(ID, [hen_story(sounds=[make_sound(0, 5)])])
    write_release(tmp_path / "r.zip", [video], audio=tmp_path / "a.zip")
    hashes = {only_entry(tmp_path / "r.zip").sha256, only_entry(tmp_path / "r.zip", tmp_path / "a.zip").sha256}
    assert len(hashes) == 2
