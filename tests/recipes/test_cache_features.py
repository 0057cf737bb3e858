import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tiny_dataset import write_dataset

from animeshooter_dataset import DataError
from animeshooter_streams import DrawnStream, ShotStream, StoryStream
from recipes import align, cache_features, lora, multi_shot, pretrain, single_shot
from recipes.cache_features import main
from recipes.config import override
from recipes.data import clips_of
from recipes.features import coverage_of, open_features
from recipes.parts import load_gen, make_whole
from recipes.stage import StageModule, load_model, open_stream
from recipes.trainer import main as train
from streams import batches
from streams import feature_files as files
from streams.features import FeatureStore, forget_video

ROOT = Path(__file__).resolve().parents[2]
STARTS = ["--set", "data.clip.starts=2"]
PARENTS = {pretrain: None, align: None, single_shot: "align", multi_shot: "single_shot", lora: "multi_shot"}


@pytest.fixture(scope="session")
def features(dataset, tmp_path_factory):
    """Everything that can be cached of the dataset with the tiny preset."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("cache") / "animeshooter.features"
    assert main(["--data", str(dataset), "--out", str(out), *STARTS]) == 0
    return out


def losses(recipe, dataset, parent, features, *settings, steps=2):
    """The loss of the first steps of a stage without any update, as its module computes it; and what was said of the cache."""
    stage = recipe.STAGE
    changed = ["data.clip.starts=2", *settings, *([f"data.features={features}"] if features else [])]
    config = override(stage.presets["tiny"], changed)
    cache = open_features(stage, config, dataset, parent, "no")
    stream = open_stream(stage, config, dataset, cache)
    coverage = coverage_of(stage, config, cache, stream)
    module = StageModule(load_model(stage, config, parent, coverage.without), stage, config)
    with torch.no_grad():
        return [module(batch).per_sample.mean().item() for (batch,) in stream.batches(0, 1, steps=steps)], coverage


def folder(features, kind):
    (path,) = (features / kind).iterdir()
    return path


# ---- the same training ----


@pytest.mark.parametrize("recipe", PARENTS, ids=lambda recipe: recipe.STAGE.name)
@pytest.mark.parametrize("latents", ["mode", "sample"])
def test_cached_features_give_the_same_loss_and_no_clip_is_decoded(recipe, latents, dataset, chain, features, monkeypatch):
    parent = chain[PARENTS[recipe]] if PARENTS[recipe] else None
    uncached, _ = losses(recipe, dataset, parent, None, f"data.latents={latents}")
    monkeypatch.setattr(batches, "decode_clip", lambda *_, **__: pytest.fail("a clip is decoded"))
    cached, coverage = losses(recipe, dataset, parent, features, f"data.latents={latents}")
    assert cached == pytest.approx(uncached, rel=2e-5)
    assert coverage.without == ("vae", "text_encoder")
    assert "not in memory: vae, text_encoder" in coverage.line
    assert len(set(cached)) == 2


def test_a_draw_from_the_posterior_is_another_one_than_its_mode(dataset, chain, features):
    mode, _ = losses(single_shot, dataset, chain["align"], features)
    drawn, _ = losses(single_shot, dataset, chain["align"], features, "data.latents=sample")
    again, _ = losses(single_shot, dataset, chain["align"], features, "data.latents=sample")
    assert drawn == again
    assert abs(drawn[0] - mode[0]) > 1e-3


def test_a_stage_leaves_out_what_it_does_not_use_also_without_a_cache(dataset, chain):
    assert losses(align, dataset, None, None)[1].without == ("vae",)
    assert losses(multi_shot, dataset, chain["single_shot"], None)[1].without == ("text_encoder",)
    assert losses(pretrain, dataset, None, None)[1].without == ()


def test_a_run_with_a_cache_writes_a_whole_checkpoint(dataset, chain, features, tmp_path, capsys):
    arguments = ["--data", str(dataset), "--from", str(chain["align"]), "--set", "train.steps=2", *STARTS]
    told = {}
    for name, more in {"plain": [], "cached": ["--set", f"data.features={features}"]}.items():
        assert train(single_shot.STAGE, [*arguments, "--out", str(tmp_path / name), *more]) == 0
        told[name] = json.loads((tmp_path / name / "training.json").read_text())
    assert told["cached"]["losses"] == pytest.approx(told["plain"]["losses"], rel=2e-5)
    assert told["cached"]["parameters"] == told["plain"]["parameters"]
    assert f"features {features}: cached latents 16 of 16, what the MLLM sees in " in capsys.readouterr().out
    for part in ("vae", "text_encoder"):
        written, before = (
            {file.name: file.read_bytes() for file in (path / part).glob("*.safetensors")}
            for path in (tmp_path / "cached", chain["align"])
        )
        assert written
        assert written == before


def test_parts_of_a_preset_are_put_back_as_they_were():
    config = align.PRESETS["tiny"]
    whole, bare = load_gen(config, None), load_gen(config, None, ["vae", "text_encoder"])
    assert not [name for name in bare.state_dict() if name.startswith(("vae", "text_encoder"))]
    make_whole(bare, config, None)
    state = whole.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in bare.state_dict().items())
    assert len(bare.state_dict()) == len(state)


# ---- parts of a cache ----


@pytest.fixture
def partial(features, tmp_path):
    """A cache that lacks the shots of film0."""
    out = tmp_path / "animeshooter.features"
    shutil.copytree(features, out)
    forget_video(out, ["film0"])
    return out


@pytest.mark.parametrize("recipe", [align, single_shot, multi_shot], ids=lambda recipe: recipe.STAGE.name)
def test_what_is_missing_is_made_on_the_fly(recipe, dataset, chain, partial):
    parent = chain[PARENTS[recipe]] if PARENTS[recipe] else None
    uncached, _ = losses(recipe, dataset, parent, None)
    mixed, coverage = losses(recipe, dataset, parent, partial)
    assert mixed == pytest.approx(uncached, rel=2e-5)
    assert "of 16" in coverage.line or "4 of 8" in coverage.line
    assert f"complete it with: accelerate launch recipes/cache_features.py --stage {recipe.STAGE.name} --data" in coverage.line
    assert "--set data.clip.starts=2" in coverage.line


def test_the_command_a_stage_names_completes_its_cache(dataset, chain, partial, capsys):
    _, coverage = losses(multi_shot, dataset, chain["single_shot"], partial)
    words = coverage.line.split("recipes/cache_features.py ")[1].split("; ")[0].split()
    assert main(words) == 0
    assert "latents: 8 entries made" in capsys.readouterr().out
    assert losses(multi_shot, dataset, chain["single_shot"], partial)[1].without == ("vae", "text_encoder")


def test_a_caption_that_changed_is_not_taken_for_the_cached_one(chain, features, tmp_path, monkeypatch):
    data, cache = tmp_path / "animeshooter", tmp_path / "animeshooter.features"
    write_dataset(data, videos=2, shots=4)
    shutil.copytree(features, cache)
    shard = next((data / "shots").glob("*.tar"))
    shard.write_bytes(shard.read_bytes().replace(b"to the right in shot 2.", b"to the left, in shot 2."))
    with pytest.raises(DataError, match=r"-s0-002: text not cached for the shot as it is now.*complete the cache: accelerate"):
        losses(align, data, None, cache)
    assert main(["--data", str(data), *STARTS]) == 0
    uncached, _ = losses(align, data, None, None)
    assert losses(align, data, None, cache)[0] == pytest.approx(uncached, rel=2e-5)


def test_a_stream_whose_starts_are_drawn_anew_is_refused_cached_latents(dataset, chain, features):
    config = override(multi_shot.PRESETS["tiny"], [f"data.features={features}"])
    with pytest.raises(DataError, match=r"clip\.starts was 2, is None"):
        open_features(multi_shot.STAGE, config, dataset, chain["single_shot"], "no")


# ---- refusals ----


@pytest.mark.parametrize(
    ("settings", "precision", "says"),
    [
        (
            ["data.clip.height=80"],
            "no",
            "not of this model and these clips: clip.height was 64, is 80. Make it for",
        ),
        ([], "bf16", "precision was no, is bf16"),
        (["data.features=nowhere"], "no", "nowhere: no cache of features; make it with: accelerate launch"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(settings, precision, says, dataset, chain, features):
    changed = ["data.clip.starts=2", f"data.features={features}", *settings]
    config = override(single_shot.PRESETS["tiny"], changed)
    with pytest.raises(DataError, match=says):
        open_features(single_shot.STAGE, config, dataset, chain["align"], precision)


def test_a_cache_of_another_model_is_refused(dataset, features):
    config = override(pretrain.PRESETS["tiny"], ["data.clip.starts=2", f"data.features={features}", "train.seed=1"])
    with pytest.raises(DataError, match=r"model was [0-9a-f]{16}, is [0-9a-f]{16}"):
        open_features(pretrain.STAGE, config, dataset, None, "no")


def test_a_cache_of_another_dataset_is_refused(chain, features, tmp_path):
    write_dataset(tmp_path / "other", videos=2, shots=3, frames=16)
    with pytest.raises(DataError, match=r"animeshooter \[train\]: shots was 8, is 6; keys was .*Make it for this"):
        losses(single_shot, tmp_path / "other", chain["align"], features)


def test_latents_need_fixed_starts(dataset, tmp_path, capsys):
    assert main(["--data", str(dataset), "--out", str(tmp_path / "out"), "--stage", "single_shot"]) == 2
    assert "--set data.clip.starts=1" in capsys.readouterr().err


# ---- making it ----


def test_only_what_a_stage_needs_is_made(dataset, tmp_path):
    out = tmp_path / "out"
    assert main(["--data", str(dataset), "--out", str(out), "--stage", "align"]) == 0
    assert sorted(path.name for path in out.iterdir()) == ["ends", "text", "vision"]


def test_processes_share_the_work_and_the_last_one_says_that_all_is_there(dataset, tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        assert main(["--data", str(dataset), "--out", str(out), "--shard-mb", "0.03", *STARTS]) == 0
        told = json.loads((folder(out, "latents") / "manifest.json").read_text())["datasets"]["animeshooter [train]"]
        assert told["complete"] == (rank == "1")
        assert ("latents: 16 of 16 entries" in capsys.readouterr().out) == (rank == "1")
    for kind, entries in {"latents": 16, "ends": 16, "text": 9}.items():
        path = folder(out, kind)
        counts = [pq.read_metadata(part).num_rows for part in files.part_files(path)]
        assert sum(counts) == FeatureStore(path).index.num_rows == entries
        assert len(counts) > 1


def test_a_killed_run_is_completed_by_the_same_command(dataset, tmp_path, capsys):
    out = tmp_path / "out"
    arguments = [
        "--data",
        str(dataset),
        "--out",
        str(out),
        "--stage",
        "single_shot",
        "--shard-mb",
        "0.01",
        "--batch",
        "1",
        *STARTS,
    ]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": os.environ | {"OMP_NUM_THREADS": "1"}}
    run = subprocess.Popen([sys.executable, "-m", "recipes.cache_features", *arguments], cwd=ROOT, **quiet)
    deadline = time.monotonic() + 120
    while len(list(out.glob("latents/*/*.parquet"))) < 2 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    run.send_signal(signal.SIGKILL)
    run.wait()
    path = folder(out, "latents")
    before = {part: part.stat().st_mtime_ns for part in files.part_files(path)}
    assert 2 <= len(before) < 8
    assert not (path / "manifest.json").is_file()
    assert FeatureStore(path).index.num_rows < 16
    assert main(arguments) == 0
    assert all(part.stat().st_mtime_ns == when for part, when in before.items())
    assert not list(out.rglob("*.partial"))
    assert FeatureStore(path).index.num_rows == 16
    assert main(["--verify", "--out", str(out)]) == 0
    assert " 0 wrong" in capsys.readouterr().out


def test_a_clip_that_does_not_decode_is_named_and_the_others_are_made(tmp_path, capsys):
    data = tmp_path / "animeshooter"
    write_dataset(data, videos=1, shots=3, clips={"film0-s0-001": b"no clip at all"})
    assert main(["--data", str(data), "--stage", "single_shot", *STARTS]) == 2
    said = capsys.readouterr()
    assert "film0-s0-001: the clip does not decode" in said.err
    assert "2 entries could not be made" in said.err
    assert "latents: 4 of 6 entries" in said.out


def test_a_full_disk_is_one_line(dataset, tmp_path, capsys, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache_features, "write_shard", full)
    assert main(["--data", str(dataset), "--out", str(tmp_path / "out"), "--stage", "align"]) == 2
    said = capsys.readouterr().err
    assert "cannot write (No space left on device); make room there, and run the same command again" in said


def test_damage_is_found_when_every_byte_is_read(features, tmp_path, capsys):
    out = tmp_path / "out"
    shutil.copytree(features, out)
    shard = next(folder(out, "ends").glob("*.tar"))
    blob = bytearray(shard.read_bytes())
    blob[-1] ^= 1
    shard.write_bytes(blob)
    assert main(["--verify", "--out", str(out)]) == 2
    assert f"{shard}: its bytes are not those of the manifest" in capsys.readouterr().err


def test_every_start_is_the_one_a_stream_draws(tmp_path):
    """Cached latents are of the frames that the stream decodes for the start it drew, and of no other."""
    data = tmp_path / "animeshooter"
    write_dataset(data, videos=1, shots=3, frames=30)
    assert main(["--data", str(data), "--stage", "single_shot", *STARTS]) == 0
    config = override(single_shot.PRESETS["tiny"], ["data.clip.starts=2"])
    gen = load_gen(config, None)
    store = FeatureStore(folder(tmp_path / "animeshooter.features", "latents"))
    stream = ShotStream(data, clips_of(config), global_batch=3)
    seen = set()
    for (batch,) in stream.batches(0, 1, steps=4):
        for sample, made in zip(batch.samples, cache_features.posterior(gen, batch.frames[:, 0])):
            (key,), (start,) = sample.keys, sample.starts
            assert torch.allclose(store.get(key, start)["latents"], made, atol=1e-3)
            assert not torch.allclose(store.get(key, 1 - start)["latents"], made, atol=1e-2)
            seen.add(start)
    assert seen == {0, 1}


def test_streams_hand_on_what_is_cached(dataset, features):
    config = override(multi_shot.PRESETS["tiny"], ["data.clip.starts=2", f"data.features={features}"])
    cache = open_features(multi_shot.STAGE, config, dataset, None, "no")
    for kind in (StoryStream, DrawnStream):
        stream = kind(dataset, clips_of(config), global_batch=2, n=3, features=cache)
        plain = kind(dataset, clips_of(config), global_batch=2, n=3)
        ((one,),), ((two,),) = stream.batches(0, 1, steps=1), plain.batches(0, 1, steps=1)
        assert one.frames is None
        assert one.keys == two.keys
        last = torch.stack([torch.stack([shot["last"] for shot in sample.features]) for sample in one.samples])
        assert torch.equal(last, two.last)
        plain.load_state_dict(stream.state_dict())  # a run may go on with or without a cache
