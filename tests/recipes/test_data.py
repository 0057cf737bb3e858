"""What a run reads, by its settings: several clip sizes, drawn numbers of shots, references, datasets elsewhere, damage."""

import json
import shlex
import warnings

import numpy as np
import pytest
import torch
from folder_server import FolderServer
from tiny_dataset import write_dataset

from animeshooter_dataset import DataError
from recipes import align, cache_features, multi_shot, pretrain, single_shot
from recipes.config import override
from recipes.data import clips_of, open_stream, shots_of
from recipes.features import coverage_of, open_features
from recipes.record import read_films, read_record
from recipes.stage import StageModule, load_model
from recipes.trainer import main
from streams import batches

SIZES = "5x64x96@8 9x64x96@8"
"""Of the shots of :func:`mixed`, those of 7 frames fill the first only."""


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """Shots of 7 frames, and of 20, told apart by their film."""
    torch.set_num_threads(1)
    directory = tmp_path_factory.mktemp("mixed") / "animeshooter"
    write_dataset(directory, videos=2, shots=4, frames={"film0": 7, "film1": 20})
    return directory


def config_of(recipe, *settings):
    return override(recipe.STAGE.presets["tiny"], list(settings))


def losses(recipe, data, parent, *settings, steps=4):
    """The loss of each step without any update, by step with its bucket."""
    stage, config = recipe.STAGE, config_of(recipe, *settings)
    cache = open_features(stage, config, data, parent, "no")
    stream = open_stream(stage, config, data, cache)
    coverage = coverage_of(stage, config, cache, stream)
    module = StageModule(load_model(stage, config, parent, coverage.without), stage, config)
    with torch.no_grad():
        found = [(batch.bucket, module(batch).per_sample.mean().item()) for (batch,) in stream.batches(steps=steps)]
    return found, coverage


# ---- several clip sizes ----


def test_a_run_trains_on_several_clip_sizes_one_a_step(mixed, tmp_path, capsys):
    arguments = ["--data", str(mixed), "--out", str(tmp_path / "out"), "--set", "train.steps=4", "--set", f"data.clips={SIZES}"]
    assert main(pretrain.STAGE, arguments) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    assert {line["bucket"] for line in lines} == set(SIZES.split())
    for line in lines:
        film = "film0" if line["bucket"].startswith("5x") else "film1"
        assert all(sample.startswith(f"0:{film}") for sample in line["samples"])
    said = capsys.readouterr().out
    assert "2 steps an epoch in 2 buckets" in said
    assert "5x64x96@8: 4 samples, 1 steps of 4" in said


def test_batches_by_tokens_differ_by_clip_size(mixed):
    # 5 and 9 frames of 64 x 96 are 2 and 3 latent frames of 4 x 6 tokens
    config = config_of(pretrain, f"data.clips={SIZES}", "train.batch_tokens=200", "train.batch_multiple=1")
    assert [one.batch for one in open_stream(pretrain.STAGE, config, mixed).buckets] == [4, 2]


@pytest.mark.parametrize(
    ("clips", "says"),
    [
        ("17x480x720", "'17x480x720' is not like 49x480x720@8"),
        ("16x480x720@8", "frames must be 4k"),
        ("5x64x96@8, 5x64x96@8", "twice"),
    ],
)
def test_clip_sizes_that_are_none_are_refused(clips, says):
    with pytest.raises(DataError, match=says):
        clips_of(config_of(pretrain, f"data.clips={clips}"))


def test_every_clip_size_must_fit_the_model(mixed, tmp_path, capsys):
    clips = "data.clips=5x64x96@8 9x72x96@8"
    assert main(pretrain.STAGE, ["--data", str(mixed), "--out", str(tmp_path / "out"), "--set", clips]) == 2
    assert "multiples of 16, not 72 x 96" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", [pretrain, align, single_shot, multi_shot], ids=lambda recipe: recipe.STAGE.name)
def test_cached_features_of_several_clip_sizes_give_the_same_losses(recipe, mixed, chain, tmp_path, monkeypatch):
    parents = {"single_shot": chain["align"], "multi_shot": chain["single_shot"]}
    parent, out = parents.get(recipe.STAGE.name), tmp_path / "features"
    settings = [f"data.clips={SIZES}", "data.clip.starts=1"]
    command = [
        "--stage",
        recipe.STAGE.name,
        "--data",
        str(mixed),
        "--out",
        str(out),
        *(["--from", str(parent)] if parent else []),
    ]
    assert cache_features.main([*command, *(word for one in settings for word in ("--set", one))]) == 0
    uncached, _ = losses(recipe, mixed, parent, *settings)
    monkeypatch.setattr(batches, "decode_clip", lambda *_, **__: pytest.fail("a clip is decoded"))
    cached, coverage = losses(recipe, mixed, parent, *settings, f"data.features={out}")
    assert len({bucket for bucket, _ in cached}) == 2
    assert [bucket for bucket, _ in cached] == [bucket for bucket, _ in uncached]
    assert [loss for _, loss in cached] == pytest.approx([loss for _, loss in uncached], rel=2e-5)
    assert coverage.without == ("vae", "text_encoder")


def test_a_cache_of_one_of_two_clip_sizes_is_completed_by_the_command_it_names(mixed, chain, tmp_path, capsys):
    out, parent = tmp_path / "features", chain["align"]
    begun = ["--stage", "single_shot", "--data", str(mixed), "--out", str(out), "--from", str(parent)]
    assert cache_features.main([*begun, "--set", "data.clips=5x64x96@8", "--set", "data.clip.starts=1"]) == 0
    settings = [f"data.clips={SIZES}", "data.clip.starts=1", f"data.features={out}"]
    _, coverage = losses(single_shot, mixed, parent, *settings, steps=1)
    assert "latents 4 of 8" in coverage.line
    words = coverage.line.split("recipes/cache_features.py ")[1].split("; not in memory")[0]
    capsys.readouterr()
    assert cache_features.main(shlex.split(words)) == 0
    assert "latents: 4 entries made" in capsys.readouterr().out
    assert losses(single_shot, mixed, parent, *settings, steps=1)[1].without == ("vae", "text_encoder")


# ---- drawn numbers of shots, references ----


def test_a_stage_draws_the_number_of_shots_of_every_step(dataset, chain, tmp_path):
    arguments = ["--data", str(dataset), "--from", str(chain["single_shot"]), "--out", str(tmp_path / "out")]
    settings = ["data.shots=2-4", "train.steps=8", "train.global_batch=1"]
    assert main(multi_shot.STAGE, [*arguments, *(word for one in settings for word in ("--set", one))]) == 0
    lines = [json.loads(line) for line in (tmp_path / "out" / "log.jsonl").read_text().splitlines()]
    shots = [line["samples"][0].count("+") + 1 for line in lines]
    assert {2, 3} <= set(shots) <= {2, 3, 4}
    assert [line["bucket"] for line in lines] == [f"{n} x 9x64x96@8" for n in shots]


@pytest.mark.parametrize(("shots", "says"), [("3", 3), ("2-4", (2, 4)), ("story", "story"), ("some", None)])
def test_numbers_of_shots_are_read(shots, says):
    config = config_of(multi_shot, f"data.shots={shots}")
    if says is None:
        with pytest.raises(DataError, match="'some' is neither a number, nor least and most like 2-4"):
            shots_of(config)
    else:
        assert shots_of(config) == says


def test_references_of_several_characters_come_with_their_names(dataset):
    config = config_of(multi_shot, "data.references=3", "train.global_batch=2")
    ((batch,),) = open_stream(multi_shot.STAGE, config, dataset).batches(steps=1)
    for sample in batch.samples:
        assert sample.characters == ("Red", "Blue")
        for character, picture, shot in zip(sample.characters, sample.references, sample.reference_shots):
            assert picture.dtype == np.uint8
            red, _, blue = picture[16, 16].tolist()
            assert (red > blue) == (character == "Red")
            assert shot[:9] == sample.keys[0][:9] or shot[:8] == sample.keys[0][:8]
        assert np.array_equal(np.asarray(sample.reference), sample.references[0])
        assert (sample.character, sample.reference_shot) == ("Red", sample.reference_shots[0])
    ((one,),) = open_stream(multi_shot.STAGE, config_of(multi_shot), dataset).batches(steps=1)
    assert [np.array_equal(a.reference, b.reference) for a, b in zip(one.samples, batch.samples)] == [True, True]


# ---- datasets elsewhere ----


def test_a_stage_trained_from_a_server_has_the_losses_of_the_folder(dataset, tmp_path, capsys):
    told = {}
    with FolderServer(dataset) as server:
        for name, data in {"folder": str(dataset), "server": server.url}.items():
            settings = ["train.steps=3", f"data.cache={tmp_path / 'kept'}"]
            arguments = ["--data", data, "--out", str(tmp_path / name), *(w for one in settings for w in ("--set", one))]
            assert main(align.STAGE, arguments) == 0, capsys.readouterr().err
            told[name] = read_record(tmp_path / name)
    assert told["server"]["losses"] == told["folder"]["losses"]
    assert told["server"]["dataset"]["directory"] == server.url
    same = ("shots_read", "annotators", "licences", "fingerprint", "schema_version")
    assert [told["server"]["dataset"][name] for name in same] == [told["folder"]["dataset"][name] for name in same]
    assert read_films(tmp_path / "server") == read_films(tmp_path / "folder")


def test_features_of_a_dataset_on_a_server_are_cached_here(dataset, chain, tmp_path, capsys):
    out, settings = tmp_path / "features", ["data.clip.starts=1"]
    with FolderServer(dataset) as server:
        command = ["--stage", "single_shot", "--from", str(chain["align"]), "--set", *settings, "--data", server.url]
        assert cache_features.main(command) == 2
        assert "a cache is written to a folder on this machine; name one with --out" in capsys.readouterr().err
        assert cache_features.main([*command, "--out", str(out)]) == 0
        cached, coverage = losses(single_shot, server.url, chain["align"], *settings, f"data.features={out}")
    uncached, _ = losses(single_shot, dataset, chain["align"], *settings)
    assert [loss for _, loss in cached] == pytest.approx([loss for _, loss in uncached], rel=2e-5)
    assert coverage.without == ("vae", "text_encoder")


def test_an_address_where_nothing_is_is_one_line(tmp_path, capsys):
    with FolderServer(tmp_path) as server:
        assert main(align.STAGE, ["--data", server.url, "--out", str(tmp_path / "out")]) == 2
    assert f"error: {server.url}: not a dataset directory (no manifest.json); check the address" in capsys.readouterr().err


# ---- damage ----


def test_one_budget_of_bad_samples_counts_over_all_processes(tmp_path):
    """Two processes meet one bad sample each: a budget of one is not enough for both."""
    write_dataset(tmp_path / "whole", videos=1, shots=16)
    config = config_of(pretrain, "train.global_batch=2")
    order = open_stream(pretrain.STAGE, config, tmp_path / "whole")
    bad = {order.batch_keys(step)[rank][0]: b"no film at all" * 9 for step, rank in ((1, 0), (6, 1))}
    write_dataset(tmp_path / "d", videos=1, shots=16, clips=bad)
    ledger = tmp_path / "out.partial" / "bad_samples.jsonl"
    ledger.parent.mkdir()

    def read(rank, budget):
        config = config_of(pretrain, f"data.bad_samples={budget}", "train.global_batch=2")
        stream = open_stream(pretrain.STAGE, config, tmp_path / "d", ledger=ledger)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [batch.keys for (batch,) in stream.batches(rank, 2, steps=8)], stream.bad.names

    seen = {rank: read(rank, 2)[0] for rank in (0, 1)}
    assert len(ledger.read_text().splitlines()) == 2
    assert set(read(0, 2)[1]) == set(bad)
    assert all(len(keys) == 8 for keys in seen.values())
    ledger.unlink()
    met = []
    for rank in (0, 1):  # alone neither meets more than it may
        try:
            met.append(read(rank, 1)[1])
        except DataError as error:
            met.append(str(error))
    assert len(met[0]) == 1
    assert "2 bad samples, the budget is 1" in met[1]


def test_a_run_with_damaged_clips_ends_and_names_them(tmp_path, capsys):
    write_dataset(tmp_path / "d", videos=1, shots=8, clips={"film0-s0-003": b"no film at all" * 9})
    arguments = ["--data", str(tmp_path / "d"), "--set", "train.steps=2"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert main(pretrain.STAGE, [*arguments, "--out", str(tmp_path / "a")]) == 2
        assert "film0-s0-003: the clip does not decode" in capsys.readouterr().err
        assert main(pretrain.STAGE, [*arguments, "--out", str(tmp_path / "b"), "--set", "data.bad_samples=0.2"]) == 0
    assert "bad sample 1 (at most 1): film0-s0-003" in capsys.readouterr().err


def test_clips_are_compared_with_their_hash_where_asked_for(tmp_path, capsys):
    write_dataset(tmp_path / "d", videos=1, shots=4)
    shard = next((tmp_path / "d" / "shots").glob("*.tar"))
    blob = bytearray(shard.read_bytes())
    blob[blob.index(b"mdat") + 200] ^= 1
    shard.write_bytes(blob)
    arguments = ["--data", str(tmp_path / "d"), "--out", str(tmp_path / "out"), "--set", "data.verify=true"]
    assert main(pretrain.STAGE, arguments) == 2
    assert "are not what the index says (SHA-256 differs)" in capsys.readouterr().err
