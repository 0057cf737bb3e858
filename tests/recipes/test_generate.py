import itertools
import json

import av
import numpy as np
import pytest
from PIL import Image

from animeshooter_dataset import DataError
from recipes.cli import main
from recipes.generate import ClipWriter, generate, read_reference, read_script


def frames_of(path):
    with av.open(str(path)) as container:
        rate = float(container.streams.video[0].average_rate)
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]), rate


@pytest.fixture(scope="module")
def told(chain, tmp_path_factory):
    folder = tmp_path_factory.mktemp("story")
    image = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    image.paste((220, 40, 40, 255), (10, 10, 30, 30))
    image.save(folder / "red.png")
    captions = ["Red walks on.", "Red stops.", "Red sits down.", "Red goes home."]
    (folder / "script.json").write_text(json.dumps({"captions": captions}))
    shots = []
    story = generate(
        chain["lora"],
        folder / "red.png",
        folder / "script.json",
        folder / "out",
        seed=1,
        steps=2,
        on_shot=lambda *a: shots.append(a),
    )
    return folder, story, shots


def test_a_story_is_playable_shot_by_shot_and_joined(told):
    folder, story, shots = told
    parts = []
    for number in range(1, 5):
        frames, rate = frames_of(folder / "out" / f"shot_{number}.mp4")
        assert frames.shape == (9, 64, 96, 3)
        assert rate == 8
        parts.append(frames)
    joined, _ = frames_of(story)
    assert joined.shape == (36, 64, 96, 3)
    assert np.abs(joined[:9].astype(int) - parts[0]).mean() < 4
    assert shots == [(number, folder / "out" / f"shot_{number}.mp4") for number in range(1, 5)]
    assert all((a != b).any() for a, b in itertools.pairwise(parts))


def test_a_story_says_what_made_it(told):
    folder, _, _ = told
    record = json.loads((folder / "out" / "story.json").read_text())
    assert record["captions"][2] == "Red sits down."
    assert record["settings"] == {"seed": 1, "steps": 2, "guidance": 6.0, "fps": 8}
    assert (record["frames"], record["height"], record["width"]) == (9, 64, 96)
    assert record["checkpoint"]["stage"] == "lora"


def test_the_same_seed_tells_the_same_story_and_another_seed_another(told, chain, tmp_path):
    folder, _, _ = told
    (tmp_path / "one.json").write_text(json.dumps({"captions": ["Red walks on."]}))
    first = {}
    for seed in (1, 2):
        out = tmp_path / str(seed)
        generate(chain["lora"], folder / "red.png", tmp_path / "one.json", out, seed=seed, steps=2)
        first[seed] = (out / "shot_1.mp4").read_bytes()
    assert first[1] == (folder / "out" / "shot_1.mp4").read_bytes()
    assert first[1] != first[2]


def test_the_command_line_tells_a_story_of_a_dataset(chain, dataset, tmp_path, capsys):
    from tiny_dataset import story_records

    records = story_records(0, 0, 2, 9, True, False)
    (tmp_path / "story.json").write_text(json.dumps({"shots": [record.model_dump(mode="json") for record in records]}))
    arguments = ["generate", str(chain["multi_shot"]), "--script", str(tmp_path / "story.json"), "--steps", "1"]
    assert main([*arguments, "--out", str(tmp_path / "out"), "--fps", "12"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"story: {tmp_path / 'out' / 'story.mp4'}"
    assert frames_of(tmp_path / "out" / "story.mp4")[1] == 12
    record = json.loads((tmp_path / "out" / "story.json").read_text())
    assert record["captions"] == [one.descriptive_caption for one in records]
    assert main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("caption", "expected"), [("descriptive", ["a", "c"]), ("narrative", ["b", "c"]), ("both", ["b a", "c"])]
)
def test_scripts_with_two_captions_are_read_as_the_checkpoint_was_trained(tmp_path, caption, expected):
    shots = [{"descriptive_caption": "a", "narrative_caption": "b"}, {"descriptive_caption": "c"}]
    (tmp_path / "s.json").write_text(json.dumps({"shots": shots, "storyline": "x"}))
    assert read_script(tmp_path / "s.json", caption) == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "not a readable script"),
        ("[]", "neither a list 'captions' nor a list 'shots'"),
        ('{"captions": "one"}', "neither a list"),
        ('{"captions": []}', "has no shots"),
        ('{"captions": ["a", " "]}', "shot 2 has no caption"),
        ('{"shots": [{"scene": "x"}]}', "shot 1 has no caption"),
    ],
)
def test_a_script_that_cannot_be_read_is_named(tmp_path, text, says):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(DataError, match=says) as error:
        read_script(tmp_path / "s.json")
    assert str(tmp_path / "s.json") in str(error.value)


def test_transparency_of_a_reference_becomes_white(tmp_path):
    Image.new("RGBA", (4, 4), (9, 9, 9, 0)).save(tmp_path / "r.png")
    assert read_reference(tmp_path / "r.png").getpixel((0, 0)) == (255, 255, 255)
    with pytest.raises(DataError, match=r"none.png: not a readable picture"):
        read_reference(tmp_path / "none.png")


def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "s.json").write_text('{"captions": ["a"]}')
    (tmp_path / "empty").mkdir()
    arguments = ["generate", str(tmp_path / "empty"), "--script", str(tmp_path / "s.json"), "--out", str(tmp_path / "o")]
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert "no model_index.json" in error
    assert error.count("\n") == 1


def test_a_clip_that_was_not_finished_leaves_nothing(tmp_path):
    def stop_in_the_middle():
        with ClipWriter(tmp_path / "a.mp4", 8) as writer:
            writer.write(np.zeros((3, 32, 32, 3), np.uint8))
            raise RuntimeError

    with pytest.raises(RuntimeError):
        stop_in_the_middle()
    assert not list(tmp_path.iterdir())
