import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save

from animeshooter_dataset import DataError
from streams import feature_files as files
from streams.clips import ClipSpec
from streams.feature_files import Entry, Wanted, covers, drop_damaged, finish, forget_video, verify, write_shard
from streams.features import (
    FeatureStore,
    differences,
    fingerprint_of,
    from_png,
    identity_of,
    open_store,
    png,
    text_source,
)

CLIP = ClipSpec(frames=9, height=64, width=96, fps=8, starts=2)
SECRET = {"film0": b"what only film0 shows", "film1": b"what only film1 shows"}


def value(key, part):
    return torch.arange(6, dtype=torch.float32).reshape(2, 3) + 10 * part + len(key)


def entry(key, part=0, source=b"s" * 16, clip=b"c" * 16):
    video = key.split("-")[0]
    blob = save({"latents": value(key, part)}, {"film": SECRET[video].decode() if video in SECRET else ""})
    return Entry(key, video, part, source, clip, blob)


@pytest.fixture
def features(tmp_path):
    """A cache of two films: one shard of each film alone and one of both."""
    root = tmp_path / "animeshooter.features"
    identity = identity_of("latents", CLIP, "model")
    directory = root / "latents" / fingerprint_of(identity)
    directory.mkdir(parents=True)
    (directory / "identity.json").write_text(files.json.dumps(identity))
    for name, keys in {
        "a": ["film0-s0-000", "film0-s0-001"],
        "b": ["film0-s0-002", "film1-s0-000"],
        "c": ["film1-s0-001"],
    }.items():
        write_shard(directory, name, [entry(key, part) for key in keys for part in range(2)])
    finish(directory)
    return root


def store_of(root):
    return open_store(root, identity_of("latents", CLIP, "model"))


# ---- reading ----


def test_an_entry_is_found_by_key_and_part_also_in_another_process(features):
    store = store_of(features)
    for one in (store, pickle.loads(pickle.dumps(store))):
        assert torch.equal(one.get("film1-s0-000", 1)["latents"], value("film1-s0-000", 1))
        assert one.get("film1-s0-000", 2) is None
        assert one.get("film2-s0-000") is None


def test_an_entry_of_another_source_is_none(features):
    assert store_of(features).get("film0-s0-000", 0, b"s" * 16) is not None
    assert store_of(features).get("film0-s0-000", 0, text_source("changed")) is None


def test_several_sources_of_one_shot_stand_beside_one_another(features):
    directory = store_of(features).directory
    write_shard(directory, "d", [entry("film0-s0-000", 0, b"t" * 16)])
    finish(directory)
    assert {source for source in (b"s" * 16, b"t" * 16) if store_of(features).get("film0-s0-000", 0, source)} == {
        b"s" * 16,
        b"t" * 16,
    }


def test_what_was_written_twice_is_listed_once(features):
    directory = store_of(features).directory
    write_shard(directory, "z", [entry("film0-s0-000", 0)])
    assert finish(directory)["entries"] == 10


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete"])
def test_a_damaged_shard_is_named_and_made_again(features, damage):
    store = store_of(features)
    shard = store.directory / "b.tar"
    blob = bytearray(shard.read_bytes())
    if damage == "flip":
        row = store.find("film1-s0-000", 0)
        blob[store.index["offset"][row].as_py() + store.index["size"][row].as_py() - 1] ^= 1
        shard.write_bytes(blob)
    elif damage == "truncate":
        shard.write_bytes(blob[:700])
    else:
        shard.unlink()
    with pytest.raises(DataError, match=r"b\.tar: film1-s0-000: .*cache_features\.py again"):
        store.get("film1-s0-000", 0)
    assert len(verify(store.directory)) == 1
    if damage != "flip":
        assert drop_damaged(store.directory) == [shard]
        finish(store.directory)
        assert store_of(features).get("film1-s0-000", 0) is None
        assert store_of(features).get("film0-s0-000", 0) is not None


def test_an_index_that_is_none_is_named(features):
    directory = store_of(features).directory
    (directory / "index.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"index\.parquet: not readable"):
        _ = store_of(features).index


def test_a_shard_without_its_part_of_the_index_is_not_there(features):
    directory = store_of(features).directory
    write_shard(directory, "d", [entry("film1-s0-009")])
    (directory / "d.parquet").unlink()
    assert finish(directory)["entries"] == 10


def test_an_unfinished_run_can_be_read(features):
    directory = store_of(features).directory
    (directory / "manifest.json").unlink()
    (directory / "index.parquet").unlink()
    assert store_of(features).get("film1-s0-001", 1) is not None


def test_a_shard_that_appears_while_the_index_is_written_is_listed(features, monkeypatch):
    directory = store_of(features).directory
    write_index, added = files.replace_whole, []

    def and_meanwhile(path, content):
        write_index(path, content)
        if path.name == "index.parquet" and not added:
            added.append(write_shard(directory, "late", [entry("film1-s0-002")]))

    monkeypatch.setattr(files, "replace_whole", and_meanwhile)
    assert finish(directory)["entries"] == 11
    assert store_of(features).get("film1-s0-002") is not None


def test_a_dataset_is_told_whole_or_not(features):
    directory = store_of(features).directory
    keys = pa.array(["film0-s0-000", "film1-s0-001"])
    clips = pa.array([b"c" * 16] * 2, pa.binary(16))
    told = finish(directory, Wanted("tiny [train]", {"shots": 2}, keys, clips, range(2)))["datasets"]["tiny [train]"]
    assert (told["cached"], told["entries"], told["complete"]) == (4, 4, True)
    other = pa.array([b"c" * 16, b"d" * 16], pa.binary(16))
    told = finish(directory, Wanted("tiny [train]", {"shots": 2}, keys, other, range(2)))["datasets"]["tiny [train]"]
    assert (told["cached"], told["complete"]) == (2, False)
    assert covers(store_of(features).index, keys, 0, other).tolist() == [True, False]


def test_pictures_come_back_as_they_were():
    image = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    assert np.array_equal(from_png(png(image)).numpy(), image)


# ---- another cache ----


@pytest.mark.parametrize(
    ("identity", "says"),
    [
        (
            identity_of("latents", ClipSpec(frames=9, height=80, width=96, fps=8, starts=2), "model"),
            "clip.height was 64, is 80",
        ),
        (identity_of("latents", ClipSpec(frames=9, height=64, width=96, fps=8, starts=3), "model"), "clip.starts was 2, is 3"),
        (identity_of("latents", CLIP, "other"), "model was model, is other"),
        (identity_of("latents", CLIP, "model", "bf16"), "precision was no, is bf16"),
    ],
)
def test_a_cache_of_something_else_is_refused_with_what_differs(features, identity, says):
    with pytest.raises(DataError, match=says):
        open_store(features, identity)


def test_the_least_length_of_shots_changes_no_latents():
    longer = identity_of("latents", replace(CLIP, min_frames=5), "model")
    assert differences(identity_of("latents", CLIP, "model"), longer) == []


def test_a_kind_that_was_never_made_is_none(features):
    assert open_store(features, identity_of("text", None, "model")) is None


# ---- forgetting ----


def holds(root, video):
    """Files in which something of a film is left: its bytes, its keys, its rows."""
    told = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    found = [path for path, blob in told.items() if SECRET[video] in blob or video.encode() in blob]
    tables = [path for path in root.rglob("*.parquet") if video in pq.read_table(path)["video"].to_pylist()]
    return sorted({*found, *tables})


def test_a_forgotten_film_leaves_nothing_and_the_other_everything(features):
    directory = store_of(features).directory
    (directory / ".d.tar.partial").write_bytes(SECRET["film0"])
    write_shard(directory, "e", [entry("film0-s0-003")])
    (directory / "e.parquet").unlink()
    kept = (directory / "c.tar").read_bytes()
    assert holds(features, "film0")
    assert {path.name for path in forget_video(features, ["film0"])} == {"a.tar", "b.tar"}
    assert holds(features, "film0") == []
    store = store_of(features)
    for key in ("film1-s0-000", "film1-s0-001"):
        assert torch.equal(store.get(key, 1)["latents"], value(key, 1))
    assert (directory / "c.tar").read_bytes() == kept
    assert verify(directory) == []
    assert forget_video(features, ["film0"]) == []


def test_both_films_forgotten_leave_an_empty_cache(features):
    forget_video(features, ["film0", "film1"])
    assert holds(features, "film0") == holds(features, "film1") == []
    assert store_of(features).index.num_rows == 0
    assert forget_video(features.with_name("nothing"), ["film0"]) == []


def test_forgetting_that_is_killed_at_any_point_is_completed_by_the_next(features, tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def armed(name, after):
        real = getattr(Path, name)

        def step(self, *args, **kwargs):
            after[0] -= 1
            if after[0] < 0:
                raise Killed
            return real(self, *args, **kwargs)

        return step

    killed = 0
    for moment in range(40):
        root = tmp_path / f"copy{moment}" / "x.features"
        shutil.copytree(features, root)
        left = [moment]
        with monkeypatch.context() as patch:
            for name in ("rename", "unlink"):
                patch.setattr(Path, name, armed(name, left))
            try:
                forget_video(root, ["film0"])
            except Killed:
                killed += 1
        forget_video(root, ["film0"])
        assert holds(root, "film0") == []
        assert store_of(root).index["key"].to_pylist() == ["film1-s0-000"] * 2 + ["film1-s0-001"] * 2
        assert store_of(root).get("film1-s0-000", 1) is not None
    assert 5 < killed < 40


def test_a_store_that_is_none_is_named(tmp_path):
    with pytest.raises(DataError, match=r"no cache of features \(no identity.json\)"):
        FeatureStore(tmp_path)
