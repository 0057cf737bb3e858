import itertools
import json
import shutil
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from animeshooter_dataset import DataError
from recipes.cli import main
from recipes.generate import ClipWriter, generate, named_references, read_reference, read_script, read_shots

NEW = ("condition_policy", "clip_size", "context")  # what model_index.json did not have


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
    assert record["settings"] == {"seed": 1, "steps": 2, "guidance": 6.0, "reference_guidance": None, "fps": 8}
    assert [(one["name"], one["path"]) for one in record["references"]] == [(None, str(folder / "red.png"))]
    assert record["condition"]["memory"] == "last"
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
        ('{"shots": [{"descriptive_caption": 3}]}', "shot 1 has no caption"),
        ('{"shots": [{"descriptive_caption": "a", "characters": "Fox"}]}', "shot 1: 'characters' is not a list of names"),
    ],
)
def test_a_script_that_cannot_be_read_is_named(tmp_path, text, says):
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(DataError, match=says) as error:
        read_script(tmp_path / "s.json")
    assert str(tmp_path / "s.json") in str(error.value)


def test_references_have_names_or_the_names_of_their_files(tmp_path):
    (tmp_path / "a=b.png").write_bytes(b"")
    assert named_references([]) is None
    assert named_references(["fox.png"]) == Path("fox.png")
    assert named_references(["Fox=fox.png"]) == {"Fox": Path("fox.png")}
    assert named_references([str(tmp_path / "a=b.png")]) == tmp_path / "a=b.png"
    assert named_references(["Fox=a.png", "in/Owl.png"]) == {"Fox": Path("a.png"), "Owl": Path("in/Owl.png")}
    with pytest.raises(DataError, match="a reference of Fox already"):
        named_references(["Fox=a.png", "Fox=b.png"])


def test_shots_say_who_is_in_them(tmp_path):
    shots = [{"descriptive_caption": "a", "characters": ["Fox"]}, {"narrative_caption": "b"}, "c"]
    (tmp_path / "s.json").write_text(json.dumps({"shots": shots}))
    assert [shot.characters for shot in read_shots(tmp_path / "s.json")] == [("Fox",), None, None]
    first, second, third = read_shots(tmp_path / "s.json")
    assert (first.prompt("both"), second.prompt("descriptive"), third.prompt("narrative")) == ("a", "b", "c")


def test_a_shot_reads_the_references_of_who_is_in_it(chain, tmp_path, capsys):
    for name, colour in (("Red", "red"), ("Blue", "blue"), ("Grey", "grey")):
        Image.new("RGB", (40, 40), colour).save(tmp_path / f"{name}.png")
    shots = [{"descriptive_caption": "a", "characters": ["Blue", "Red"]}, {"descriptive_caption": "b", "characters": ["Green"]}]
    (tmp_path / "s.json").write_text(json.dumps({"shots": shots}))

    def tell(out, *more):
        arguments = ["generate", str(chain["single_shot"]), "--script", str(tmp_path / "s.json"), "--steps", "1"]
        references = [part for name in ("Red", "Blue") for part in ("--reference", f"{name}={tmp_path / name}.png")]
        return main([*arguments, *references, *more, "--out", str(tmp_path / out)])

    assert tell("one", "--reference-guidance", "3") == 0
    record = json.loads((tmp_path / "one" / "story.json").read_text())
    assert record["characters"] == [["Blue", "Red"], []]
    assert [one["name"] for one in record["references"]] == ["Red", "Blue"]
    assert record["settings"]["reference_guidance"] == 3.0
    assert "up to 2 references a shot, and the checkpoint was trained with at most 1" in capsys.readouterr().err
    assert tell("two") == 0
    assert (tmp_path / "one" / "shot_1.mp4").read_bytes() != (tmp_path / "two" / "shot_1.mp4").read_bytes()
    assert tell("three", "--reference", f"Grey={tmp_path / 'Grey.png'}") == 2
    assert "Grey, of whom there is a reference, is in no shot; it has Blue, Red, Green" in capsys.readouterr().err
    assert tell("three", "--guidance", "-1", "--reference-guidance", "2") == 2
    assert "guidance_scale is a number from 0, not -1.0" in capsys.readouterr().err


def test_checkpoints_of_before_there_was_a_policy_still_tell_stories(chain, tmp_path):
    shutil.copytree(chain["multi_shot"], tmp_path / "old")
    index, record = tmp_path / "old" / "model_index.json", tmp_path / "old" / "training.json"
    settings = {name: value for name, value in json.loads(index.read_text()).items() if name not in NEW}
    index.write_text(json.dumps(settings))
    told = json.loads(record.read_text())
    told["config"] = {name: value for name, value in told["config"].items() if name in ("preset", "data", "train", "dropout")}
    told["config"]["data"]["caption"] = "narrative"
    record.write_text(json.dumps(told))
    (tmp_path / "s.json").write_text(
        '{"shots": [{"narrative_caption": "n", "descriptive_caption": "d"}, {"narrative_caption": "m"}]}'
    )
    generate(tmp_path / "old", None, tmp_path / "s.json", tmp_path / "out", steps=1)
    story = json.loads((tmp_path / "out" / "story.json").read_text())
    assert story["captions"] == ["n", "m"]
    assert (story["condition"]["memory"], story["characters"]) == ("last", [None, None])


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
