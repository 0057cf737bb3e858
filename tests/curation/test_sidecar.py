import json
from itertools import pairwise

import numpy as np
import pytest

from animeshooter_dataset import DataError
from curation.cuts import Span
from curation.script import StoryView
from curation.sidecar import Sidecar, check_length, read_sidecar

SCRIPT = {
    "format": "animeshooter-script",
    "version": 1,
    "title": "Fox",
    "rights": {"licence": "CC0-1.0"},
    "characters": [{"id": "Fox", "appearance": "red"}, {"id": "Crow", "appearance": "blue"}],
    "scenes": [{"id": "Wood", "environment": "dark"}, {"id": "Town", "environment": "light"}],
    "stories": [{"start": 0, "end": 10, "storyline": "First."}, {"start": 10, "end": 20, "storyline": "Second."}],
    "shots": [
        {"start": 0, "end": 4.2, "scene": "Wood", "characters": ["Fox"], "narrative_caption": "a", "descriptive_caption": "A"},
        {"start": 4.2, "end": 10, "scene": "Wood", "characters": [], "narrative_caption": "b", "descriptive_caption": "B"},
        {"start": 10, "end": 20, "scene": "Town", "characters": ["Crow"], "narrative_caption": "c", "descriptive_caption": "C"},
    ],
    "audio": [
        {
            "start": 1,
            "end": 5,
            "type": "sound effect",
            "sound_description": "steps",
            "visual_context": "walks",
            "narrative_caption": "n",
            "descriptive_caption": "d",
            "characters": ["Fox"],
        }
    ],
}


def write(tmp_path, change=None):
    path = tmp_path / "fox.script.json"
    path.write_text(json.dumps(SCRIPT | (change or {})))
    return path


def view(*times):
    shots = len(times) - 1
    nothing = [np.zeros((0, 3))] * shots
    spans = [Span(10 * start, 10 * end, 10 * start, 10 * end, "cut") for start, end in pairwise(times)]
    return StoryView(None, "Fox", spans, times, [[]] * shots, nothing, nothing)


def annotate(path, *times):
    return Sidecar(read_sidecar(path), path).annotate(view(*times))


def test_each_detected_shot_takes_the_words_it_overlaps_most(tmp_path):
    told = annotate(write(tmp_path), 0, 4, 7, 10)
    assert [shot.narrative_caption for shot in told.shots] == ["a", "b", "b"]
    assert told.shots[0].annotated == (0, 4.2)
    assert told.annotator.kind == "sidecar"


def test_a_noted_boundary_inside_a_shot_is_passed_on_as_a_doubt(tmp_path):
    told = annotate(write(tmp_path), 0, 2, 10)
    assert [shot.possible_cuts for shot in told.shots] == [(), (4.2,)]


def test_a_script_of_a_longer_film_is_refused(tmp_path):
    path = write(tmp_path)
    check_length(read_sidecar(path), path, 19.5)
    with pytest.raises(DataError, match=r"tells of 20\.0 s, the film beside it ends at 4\.0 s"):
        check_length(read_sidecar(path), path, 4.0)


def test_a_story_tells_only_of_who_and_what_is_in_it(tmp_path):
    told = annotate(write(tmp_path), 0, 4, 10)
    assert [character.id for character in told.characters] == ["Fox"]
    assert [scene.id for scene in told.scenes] == ["Wood"]
    assert told.storyline == "First."
    assert [sound.type for sound in told.sounds] == ["sound effect"]
    assert annotate(write(tmp_path), 10, 20).sounds == ()


def test_a_story_the_script_is_silent_about_is_refused(tmp_path):
    class Film:
        name = "fox.mp4"

    path = write(tmp_path)
    late = view(30, 40)
    with pytest.raises(DataError, match=r"fox\.script\.json.*30"):
        Sidecar(read_sidecar(path), path).annotate(StoryView(Film, *list(vars(late).values())[1:]))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"format": "other"}, "format"),
        ({"shots": [{"start": 5, "end": 5, "narrative_caption": "", "descriptive_caption": ""}]}, "not after its start"),
        ({"shots": [SCRIPT["shots"][0] | {"characters": ["Bear"]}]}, "Bear"),
        ({"audio": [SCRIPT["audio"][0] | {"scene": "Moon"}]}, "Moon"),
        ({"author": "x"}, "author"),
    ],
)
def test_a_wrong_script_is_one_line_that_names_file_and_field(tmp_path, change, says):
    with pytest.raises(DataError, match=says) as caught:
        read_sidecar(write(tmp_path, change))
    assert "fox.script.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_script_that_is_not_json_says_so(tmp_path):
    path = tmp_path / "fox.script.json"
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(DataError, match=r"fox\.script\.json"):
        read_sidecar(path)
