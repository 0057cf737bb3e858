import json

import av
import numpy as np
import pytest
import torch
from PIL import Image
from plain_sets import clip, write_clips, write_webvid
from safetensors.torch import load_file

from animeshooter_dataset import DataError
from recipes import align
from recipes.clips_folder import ClipsStream, is_clips_folder
from recipes.lora import STAGE, lora_main
from recipes.plain_clips import stream_for
from recipes.trainer import main
from streams.clips import ClipSpec

CLIP = ClipSpec(frames=9, height=64, width=96, fps=8)


def open_clips(folder, **settings):
    clip_of = settings.pop("clip", CLIP)
    return ClipsStream(folder, clip_of, **({"global_batch": 2, "n": 3} | settings))


def samples(stream, epochs=1):
    return [one for (batch,) in stream.batches(steps=epochs * stream.steps_per_epoch) for one in batch.samples]


# ---- sequences and references ----


def test_clips_are_drawn_into_sequences_of_different_clips_with_their_captions(tmp_path):
    found = samples(open_clips(write_clips(tmp_path / "fox")), epochs=3)
    assert all(len(set(one.keys)) == 3 for one in found)
    assert {key for one in found for key in one.keys} == {f"clip{n}" for n in range(5)}
    assert all(text == f"Red moves, take {key[-1]}" for one in found for key, text in zip(one.keys, one.descriptive))
    assert len({one.keys for one in found}) > 3


def test_a_picture_that_is_given_is_the_reference(tmp_path):
    stream = open_clips(write_clips(tmp_path / "fox", reference=(10, 200, 30)))
    assert "reference: reference" in stream.describe()
    for one in samples(stream):
        assert one.reference.getpixel((5, 5)) == (10, 200, 30)
        assert not one.reference_inside


def test_without_a_picture_the_reference_is_a_frame_of_another_clip(tmp_path):
    stream = open_clips(write_clips(tmp_path / "fox"))
    assert "the middle frame of another clip" in stream.describe()
    for one in samples(stream):
        assert one.reference_shots[0] not in one.keys
        assert not one.reference_inside
        assert one.references[0].shape == (72, 128, 3)
    assert len(open_clips(tmp_path / "fox", require_reference=True)) == 5


def test_with_no_other_clip_the_reference_comes_from_inside_and_says_so(tmp_path):
    stream = open_clips(write_clips(tmp_path / "fox", clips=3))
    assert "one of its own clips, for there is no other" in stream.describe()
    assert all(one.reference_inside for one in samples(stream))


def test_of_several_pictures_a_sequence_has_those_of_whom_its_clips_show(tmp_path):
    folder = write_clips(tmp_path / "fox", clips=4)
    (folder / "references").mkdir()
    for name, colour in {"Blue": (0, 0, 255), "Red": (255, 0, 0), "Stranger": (0, 0, 0)}.items():
        Image.new("RGBA", (8, 8), (*colour, 255)).save(folder / "references" / f"{name}.png")
    (folder / "clip3.txt").write_text("blue waits for red")
    for one in samples(open_clips(folder, references=2)):
        assert one.characters == (("Red", "Blue") if "clip3" in one.keys else ("Red",))
        assert one.references[0][0, 0].tolist() == [255, 0, 0]
    (one, *_) = samples(open_clips(folder, references=1))
    assert one.characters == ("Red",)


def test_a_listing_says_captions_and_characters(tmp_path):
    folder = write_clips(tmp_path / "fox", clips=3)
    for path in folder.glob("*.txt"):
        path.unlink()
    (folder / "references").mkdir()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(folder / "references" / "Ann.png")
    Image.new("RGB", (8, 8), (3, 2, 1)).save(folder / "references" / "Bob.png")
    lines = [{"file_name": f"clip{n}.mp4", "caption": f"take {n}", "characters": ["Bob"]} for n in range(3)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (one, *_) = samples(open_clips(folder))
    assert one.characters == ("Bob",)
    assert one.descriptive[0] == f"take {one.keys[0][-1]}"
    (folder / "captions.jsonl").unlink()
    (folder / "captions.csv").write_text(
        "file_name,caption,characters\n" + "".join(f"clip{n},take {n},Ann|Bob\n" for n in range(3))
    )
    assert samples(open_clips(folder, references=2))[0].characters == ("Ann", "Bob")


def test_workers_and_processes_change_nothing(tmp_path):
    folder = write_clips(tmp_path / "fox")
    alone = [one.reference_shots + one.keys for one in samples(open_clips(folder))]
    shared = [
        batch.samples[0].reference_shots + batch.samples[0].keys
        for pair in zip(*(open_clips(folder).batches(rank, 2, steps=3) for rank in (0, 1)))
        for (batch,) in pair
    ]
    assert shared == alone
    (batch,) = next(open_clips(folder).batches(workers=1, steps=1))
    assert batch.samples[0].reference_shots + batch.samples[0].keys == alone[0]


def test_another_clip_under_the_same_name_is_another_run(tmp_path):
    folder = write_clips(tmp_path / "fox")
    state = open_clips(folder).state_dict()
    open_clips(folder).load_state_dict(state)
    (folder / "clip2.mp4").write_bytes(clip(9))
    with pytest.raises(DataError, match="cannot resume"):
        open_clips(folder).load_state_dict(state)


# ---- faults ----


def no_caption(folder):
    (folder / "clip1.txt").unlink()


def blank_caption(folder):
    (folder / "clip1.txt").write_text(" \n")


def no_video(folder):
    (folder / "clip1.mp4").write_bytes(b"hardly a clip" * 50)


def damaged(folder):
    """The header is whole; a picture is not."""
    with av.open(str(folder / "clip1.mp4")) as container:
        places = [entry.pos for entry in container.streams.video[0].index_entries]
    with open(folder / "clip1.mp4", "r+b") as file:
        file.seek(places[7])
        file.write(b"\xff" * 4)


def short(folder):
    (folder / "clip1.mp4").write_bytes(clip(1, frames=3))


def one_only(folder):
    for path in folder.glob("clip[1-9].*"):
        path.unlink()


def listed_twice(folder):
    (folder / "captions.jsonl").write_text('{"file_name": "clip1.mp4", "caption": "a"}\n' * 2)


def not_there(folder):
    (folder / "captions.jsonl").write_text('{"file_name": "clip7.mp4", "caption": "a"}\n')


def not_listed(folder):
    (folder / "clip4.txt").unlink()
    lines = [{"file_name": f"clip{n}.mp4", "caption": "a"} for n in range(4)]
    (folder / "captions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def no_picture(folder):
    (folder / "reference.png").write_text("no picture")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (no_caption, "clip1.mp4: no caption; write it into clip1.txt beside it"),
        (blank_caption, "clip1.mp4: no caption"),
        (no_video, "clip1.mp4: does not open as a video"),
        (damaged, "clip1.mp4: does not decode"),
        (short, "clip1.mp4: 3 frames, and a clip needs 9 (data.clip.min_frames)"),
        (one_only, "fox: 1 clip, and a sequence has 3 different ones; add clips, or set data.shots=1"),
        (listed_twice, "fox: a clip is listed twice"),
        (not_there, "clip7.mp4: is listed and not there"),
        (not_listed, "clip4.mp4: no caption"),
        (no_picture, "reference.png: not a readable picture"),
    ],
)
def test_each_fault_is_one_line(tmp_path, capsys, parents, spoil, says):
    folder = write_clips(tmp_path / "fox")
    spoil(folder)
    arguments = ["--clips", str(folder), "--from", str(parents["multi_shot"]), "--out", str(tmp_path / "out")]
    assert lora_main([*arguments, "--set", "data.clip.min_frames=9"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_clips_and_a_dataset_at_once_are_refused(tmp_path, capsys):
    folder = write_clips(tmp_path / "fox", clips=1)
    with pytest.raises(SystemExit) as stopped:
        lora_main(["--clips", str(folder), "--data", "animeshooter", "--video", "x"])
    assert stopped.value.code == 2
    assert "--clips is a folder of clips by itself; leave out --video and --data" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        lora_main(["--clips", str(tmp_path / "nothing")])
    assert "no folder with clips" in capsys.readouterr().err


# ---- training ----


@pytest.fixture(scope="session")
def parents(chain):
    return chain


def test_a_lora_is_trained_on_the_folder_and_its_record_says_so(tmp_path, parents, capsys):
    folder = write_clips(tmp_path / "fox")
    out = tmp_path / "out"
    torch.set_num_threads(1)
    arguments = ["--clips", str(folder), "--from", str(parents["multi_shot"]), "--out", str(out), "--set", "train.steps=2"]
    assert lora_main(arguments) == 0
    told = capsys.readouterr().out
    assert "5 clips" in told
    assert "the middle frame of another clip" in told
    assert "adds a new LoRA of rank 4 on the video transformer" in told
    ups = [
        tensor for name, tensor in load_file(next((out / "transformer_lora").glob("*.safetensors"))).items() if "lora_B" in name
    ]
    assert any(tensor.abs().max() > 0 for tensor in ups)
    record = json.loads((out / "training.json").read_text())
    assert record["dataset"]["kind"] == "clips"
    assert [one["name"] for one in record["dataset"]["clips"]] == [f"clip{n}" for n in range(5)]
    assert "middle frame of another clip" in record["dataset"]["references"]
    assert str(tmp_path) not in json.dumps(record)
    films = [json.loads(line) for line in (out / "films.jsonl").read_text().splitlines()]
    assert films[-1 if films[0]["video"] != "clips:fox" else 0]["clips"] == 5


def test_what_a_folder_is_is_seen_by_looking(tmp_path):
    fox, tars = write_clips(tmp_path / "fox"), write_webvid(tmp_path / "web", tars=1)
    assert is_clips_folder(fox)
    assert not is_clips_folder(tars)
    assert stream_for(STAGE, fox) is ClipsStream
    assert stream_for(align.STAGE, fox).__name__ == "TextVideoStream"
    with pytest.raises(DataError, match="without stories and references; lora needs a dataset directory"):
        stream_for(STAGE, tars)


def test_no_dataset_and_no_clips_is_the_dataset_s_own_line(tmp_path, capsys):
    arguments = ["--data", str(tmp_path), "--out", str(tmp_path / "out")]
    assert main(align.STAGE, arguments) == 2
    assert "not a dataset directory" in capsys.readouterr().err


def test_frames_are_decoded_at_the_clip_s_size(tmp_path):
    (one, *_) = samples(open_clips(write_clips(tmp_path / "fox")))
    assert one.frames.shape == (3, 9, 64, 96, 3)
    assert one.frames.dtype == np.uint8
