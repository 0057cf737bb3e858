import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from plain_sets import clip, write_listed, write_tar, write_webvid
from tiny_dataset import encode, picture, write_dataset

from animeshooter_dataset import DataError
from recipes import align, multi_shot, pretrain, single_shot
from recipes.plain_clips import probe, stream_for
from recipes.text_video import FOLDER, TextVideoStream, is_text_video
from recipes.trainer import main
from streams.clips import ClipSpec

ROOT = Path(__file__).resolve().parents[2]
CLIP = ClipSpec(frames=9, height=64, width=96, fps=8)


@pytest.fixture(scope="module")
def webvid(tmp_path_factory):
    return write_webvid(tmp_path_factory.mktemp("sets") / "webvid")


def open_set(source, **settings):
    return TextVideoStream(source, CLIP, **({"global_batch": 4} | settings))


def epoch(stream):
    """Texts by key over one epoch, repeated samples once."""
    found = {}
    for (batch,) in stream.batches(steps=stream.steps_per_epoch):
        for sample in batch.samples:
            found[sample.keys[0]] = sample.descriptive[0]
    return found


# ---- what is read ----


def test_every_clip_of_the_tars_comes_with_its_text(webvid):
    found = epoch(open_set(webvid))
    assert len(found) == 15
    assert all(found[f"{n:05}/{n:02}{p:03}"] == f"square {p} of tar {n}" for n in range(3) for p in range(5))


def test_a_pattern_takes_some_of_the_tars(webvid):
    stream = open_set(f"{webvid}/{{00001..00002}}.tar", global_batch=5)
    assert {key.split("/")[0] for key in epoch(stream)} == {"00001", "00002"}
    with pytest.raises(DataError, match="no such tars"):
        open_set(f"{webvid}/{{00007..00009}}.tar")


def test_frames_are_those_of_the_clip(webvid):
    stream = open_set(webvid, global_batch=15)
    (batch,) = next(stream.batches())
    place = batch.keys.index(("00001/01002",))
    expected = picture(0, 14, 7 % 3, 7, ["Red"])
    shown = batch.first[place, 0].numpy()
    assert abs(shown[40, 10].astype(int) - expected[45, 13].astype(int)).max() < 12  # the background, some way off the square


def test_a_table_with_ids_finds_clips_by_page(tmp_path):
    folder = write_listed(tmp_path / "web")
    assert is_text_video(folder)
    found = epoch(open_set(folder, global_batch=2))
    assert found["videos/page1/1003"] == "square 3, moving"
    assert len(found) == 6


def test_clips_that_no_line_names_and_lines_without_a_clip_are_told(tmp_path):
    folder = write_listed(tmp_path / "web")
    (folder / "extra.mp4").write_bytes(clip(1))
    (folder / "videos" / "page0" / "1002.mp4").unlink()
    told = open_set(folder, global_batch=2).describe()
    assert "left out: 2" in told
    assert "extra.mp4: has no text" in told
    assert "1002.mp4: is not there" in told


def test_text_files_beside_clips_do(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.mp4").write_bytes(clip(0))
    (tmp_path / "a" / "one.txt").write_text("a red\nsquare ")
    assert epoch(open_set(tmp_path, global_batch=1)) == {"a/one": "a red square"}


# ---- what is left out ----


def test_damaged_clips_and_clips_without_text_are_left_out_and_named(tmp_path):
    whole = clip(0)
    write_tar(
        tmp_path / "s.tar",
        {
            "good": {"mp4": whole, "txt": b"fine"},
            "noise": {"mp4": b"no video" * 200, "txt": b"text"},
            "cut": {"mp4": faststart(tmp_path / "f.mp4")[:-300], "txt": b"text"},
            "blank": {"mp4": whole, "txt": b" \n"},
            "silent": {"mp4": whole},
            "broken": {"mp4": whole, "json": b"{"},
        },
    )
    stream = open_set(tmp_path / "s.tar", global_batch=1)
    assert list(epoch(stream)) == ["s/good"]
    told = stream.describe()
    assert "left out: 5" in told
    assert "s.tar: s/noise: does not open as a video" in told
    assert "s.tar: s/cut: is cut off" in told
    assert all(f"s.tar: s/{key}: has no text" in told for key in ("blank", "silent", "broken"))


def faststart(path):
    """A clip whose header comes before its pictures."""
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=12)
        stream.height, stream.width, stream.pix_fmt = 72, 128, "yuv420p"
        for number in range(14):
            frame = av.VideoFrame.from_ndarray(picture(number, 14, 0, 0, ["Red"]), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path.read_bytes()


@pytest.mark.parametrize("kept", [0.95, 0.5])
def test_a_tar_that_ends_early_is_named_and_what_is_before_is_used(webvid, tmp_path, kept):
    whole = (webvid / "00000.tar").read_bytes()
    (tmp_path / "x.tar").write_bytes(whole[: int(len(whole.rstrip(b"\0")) * kept)])
    stream = open_set(tmp_path, global_batch=1)
    assert 0 < len(stream) < 5
    assert "x.tar: x: the tar is damaged after x/00" in stream.describe()


def test_nothing_usable_is_one_line(tmp_path):
    write_tar(tmp_path / "s.tar", {"a": {"mp4": b"x" * 99, "txt": b"text"}})
    with pytest.raises(DataError, match=r"no clip can be used; the first: s.tar: s/a: does not open"):
        open_set(tmp_path)


def test_a_listing_may_not_lead_out_of_the_folder(tmp_path):
    (tmp_path / "a.mp4").write_bytes(clip(0))
    (tmp_path / "metadata.jsonl").write_text(json.dumps({"file_name": "../a.mp4", "text": "x"}) + "\n")
    with pytest.raises(DataError, match=r"metadata.jsonl: line 1 names no clip of the folder"):
        open_set(tmp_path)


def test_frames_before_the_start_that_an_edit_list_sets_do_not_count(tmp_path):
    """A clip cut without encoding begins with frames that players do not show."""
    (tmp_path / "set").mkdir()
    source, cut = tmp_path / "whole.mp4", tmp_path / "set" / "cut.mp4"
    source.write_bytes(encode(np.stack([picture(n, 24, 0, 0, ["Red"]) for n in range(24)])))
    with av.open(str(source)) as one, av.open(str(cut), "w") as other:
        stream = one.streams.video[0]
        copy = other.add_stream_from_template(stream)
        for packet in one.demux(stream):
            if packet.dts is not None:
                shift = int(0.5 / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                other.mux(packet)
    with open(cut, "rb") as file:
        found = probe(file, cut.stat().st_size)
    with av.open(str(cut)) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert found["clean_start"] > 0
    assert found["clean_end"] - found["clean_start"] == len(shown)
    cut.with_suffix(".txt").write_text("a square")
    clip_of_it = ClipSpec(frames=1, height=72, width=128, fps=12)
    (batch,) = next(TextVideoStream(tmp_path / "set", clip_of_it, global_batch=1).batches())
    assert np.abs(batch.first[0, 0].numpy().astype(int) - shown[0]).mean() < 3
    assert np.abs(batch.last[0, 0].numpy().astype(int) - shown[-1]).mean() < 3


# ---- the index ----


def test_the_clips_are_looked_at_once_and_again_only_where_a_tar_changed(webvid, tmp_path, monkeypatch):
    import recipes.text_video as room

    folder = write_webvid(tmp_path / "w", tars=2)
    looked = []
    look = room.look_at_tar
    monkeypatch.setattr(room, "look_at_tar", lambda path, name: looked.append(name) or look(path, name))
    before = epoch(open_set(folder, global_batch=5))
    assert looked == ["00000.tar", "00001.tar"]
    assert epoch(open_set(folder, global_batch=5)) == before
    assert len(looked) == 2
    write_tar(folder / "00001.tar", {"new": {"mp4": clip(3), "txt": b"another"}})
    assert epoch(open_set(folder, global_batch=2))["00001/new"] == "another"
    assert looked[2:] == ["00001.tar"]
    assert len(list((folder / FOLDER).glob("*.parquet"))) == 2


def test_tars_of_like_names_are_kept_apart(tmp_path):
    for name in ("a.1.tar", "a_1.tar"):
        write_tar(tmp_path / "set" / name, {"one": {"mp4": clip(0), "txt": name.encode()}})
    assert sorted(epoch(open_set(tmp_path / "set", global_batch=2)).values()) == ["a.1.tar", "a_1.tar"]
    assert len(list((tmp_path / "set" / FOLDER).glob("*.parquet"))) == 2


def test_where_no_index_can_be_kept_beside_the_clips_it_is_in_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    folder = write_webvid(tmp_path / "w", tars=1)
    (folder / FOLDER).write_text("a file where the folder would be")
    assert len(open_set(folder, global_batch=5)) == 5
    assert list((tmp_path / "home" / ".cache" / "animeshooter" / "indexes").glob("w-*/*.parquet"))


# ---- order, sharing, resuming ----


def test_two_processes_share_what_one_reads(webvid):
    whole = [batch.keys for (batch,) in open_set(webvid).batches(steps=6)]
    halves = [[batch.keys for (batch,) in open_set(webvid).batches(rank, 2, steps=6)] for rank in (0, 1)]
    assert [a + b for a, b in zip(*halves)] == whole


def test_it_goes_on_where_it_was_and_refuses_another_set(webvid, tmp_path):
    stream = open_set(webvid)
    keys = [batch.keys for (batch,) in stream.batches(steps=9)]
    stopped = open_set(webvid)
    list(stopped.batches(steps=5))
    later = open_set(webvid)
    later.load_state_dict(json.loads(json.dumps(stopped.state_dict())))
    assert [batch.keys for (batch,) in later.batches(steps=4)] == keys[5:]
    other = write_webvid(tmp_path / "other")
    write_tar(other / "00002.tar", {"02000": {"mp4": clip(10), "txt": b"another text"}})
    with pytest.raises(DataError, match="cannot resume"):
        open_set(other).load_state_dict(stopped.state_dict())


# ---- training ----


def arguments(data, out, steps):
    return ["--data", str(data), "--out", str(out), "--set", f"train.steps={steps}", "--set", "train.save_every=3"]


def test_alignment_on_tars_that_was_killed_ends_as_if_it_had_not_been(webvid, tmp_path):
    steps = 24
    torch.set_num_threads(1)
    assert main(align.STAGE, arguments(webvid, tmp_path / "whole", steps)) == 0
    out = tmp_path / "killed"
    command = [sys.executable, "recipes/align.py", *arguments(webvid, out, steps)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 120
        while not list((tmp_path / "killed.partial").glob("snapshots/step-*")) and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert main(align.STAGE, arguments(webvid, out, steps)) == 0
    one, two = (json.loads((path / "training.json").read_text()) for path in (tmp_path / "whole", out))
    assert len(two["run"]["starts"]) == 2
    assert two["losses"] == one["losses"]
    assert two["dataset"]["kind"] == "text_video"
    assert two["dataset"]["annotators"] == {"not stated": 15}
    (film,) = [json.loads(line) for line in (out / "films.jsonl").read_text().splitlines()]
    assert (film["title"], film["clips"], film["stages"]) == ("webvid", 15, {"align": 15})


def test_stages_that_need_stories_or_references_refuse_such_a_set(webvid, tmp_path):
    assert stream_for(align.STAGE, webvid) is stream_for(pretrain.STAGE, webvid) is TextVideoStream
    for stage in (single_shot.STAGE, multi_shot.STAGE):
        with pytest.raises(DataError, match=f"without stories and references; {stage.name} needs a dataset directory"):
            stream_for(stage, webvid)
    write_dataset(tmp_path / "dataset", videos=1)
    assert stream_for(align.STAGE, tmp_path / "dataset") is None
    assert stream_for(multi_shot.STAGE, "https://example.org/animeshooter") is None


def test_what_needs_a_dataset_is_refused(webvid):
    from streams.store import StoreOptions

    with pytest.raises(DataError, match="15 samples without reference left out"):
        open_set(webvid, require_reference=True)
    with pytest.raises(DataError, match=r"leave out data\.verify"):
        open_set(webvid, options=StoreOptions(verify=True))
    with pytest.raises(DataError, match=r"no row with licence==CC0-1\.0"):
        open_set(webvid, where=["licence==CC0-1.0"])
