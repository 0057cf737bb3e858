import hashlib
import json
import shutil
from pathlib import Path

import pytest
from hub_server import HubServer
from huggingface_hub import snapshot_download

from animeshooter_dataset import DataError, RightsRecord, dump
from recipes.publish import publish, publish_model
from recipes.reload import compare


@pytest.fixture
def hub(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")  # of the process that loads it back
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with HubServer() as server:
        yield server


@pytest.fixture
def lora(chain, tmp_path):
    shutil.copytree(chain["lora"], tmp_path / "fallen" / "lora")
    return tmp_path / "fallen" / "lora"


def told(hub, **more):
    return {"token": hub.token, "endpoint": hub.url, "verify": "none", "patience": (0.0, 0.0), **more}


def films(checkpoint, *changes):
    path = checkpoint / "films.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(film | what) + "\n" for film, what in zip(lines, changes, strict=True)))


def files(folder):
    return {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}


def test_a_checkpoint_is_published_whole_and_loads_by_its_name(hub, lora, tmp_path):
    done = publish(lora, "org/red", **told(hub, verify="sample"))
    assert set(done.loaded) == {"mllm", "adapter", "text_encoder", "transformer", "vae"}
    assert done.version == "v1.1.0"
    assert "loaded again from a clean cache" in done.lines()[-1]
    there = files(Path(snapshot_download("org/red", endpoint=hub.url, cache_dir=tmp_path / "clean", revision=done.version)))
    assert there.keys() - {".gitattributes"} == files(lora).keys() | {"README.md"}
    for name, path in files(lora).items():
        if name != "training.json":
            assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(there[name].read_bytes()).digest(), name
    assert 'AnimeShooterPipeline.from_pretrained(\n    "org/red"' in there["README.md"].read_text()
    for name, path in there.items():
        assert str(tmp_path).encode() not in path.read_bytes(), name
    assert not (lora / "README.md").exists()


def test_publishing_again_sends_nothing_and_a_change_makes_the_next_version(hub, lora):
    first = publish_model(lora, "org/red", **told(hub))
    again = publish_model(lora, "org/red", **told(hub))
    assert (again.commit, again.version, again.plan.send) == (first.commit, "v1.1.0", ())
    assert "nothing to publish" in again.lines()[0]
    (lora / "log.jsonl").write_text("")
    changed = publish_model(lora, "org/red", message="A log less", **told(hub))
    assert (changed.plan.send, changed.version) == (("log.jsonl",), "v1.1.1")
    assert hub.repo("model", "org/red").log()[0] == "A log less"


def test_a_broken_line_costs_nothing_that_was_sent(hub, lora):
    hub.fault("put", drop_after=100, skip=2)
    hub.fault("commit", status=503)
    done = publish_model(lora, "org/red", **told(hub))
    assert done.commit
    assert len(hub.puts) == len(set(hub.puts)) == len(list(lora.rglob("*.safetensors")))


@pytest.mark.parametrize(
    ("endpoint", "status", "says"), [("whoami", 401, "does not accept the token"), ("create", 403, "the token may not do this")]
)
def test_a_hub_that_refuses_is_one_line(hub, lora, endpoint, status, says):
    hub.fault(endpoint, status=status, times=99)
    with pytest.raises(DataError, match=says) as error:
        publish_model(lora, "org/red", **told(hub))
    assert "\n" not in str(error.value)
    assert hub.token not in str(error.value)
    assert not hub.puts


def test_a_dry_run_sends_nothing(hub, lora):
    done = publish_model(lora, "org/red", dry_run=True, **told(hub))
    assert done.commit is None
    assert set(done.plan.send) == files(lora).keys() | {"README.md"}
    assert "would go to" in done.lines()[0]
    assert "as v1.1.0" in done.lines()[-1]
    assert not hub.repos


def test_paths_of_old_records_are_not_published(hub, lora):
    record = json.loads((lora / "training.json").read_text())
    record["parent"] = {"path": "/home/me/ck/multi_shot", "stage": "multi_shot"}
    record["dataset"]["directory"] = "/home/me/animeshooter"
    record["history"][0]["dataset"]["directory"] = "C:\\Users\\me\\animeshooter"
    (lora / "training.json").write_text(json.dumps(record))
    publish_model(lora, "org/red", **told(hub))
    repo = hub.repo("model", "org/red")
    sent = b"".join(repo.bytes(name) for name in repo.head.files)
    assert b"/home/me" not in sent
    assert b"Users" not in sent
    assert b'"multi_shot"' in sent


def test_the_card_is_made_anew_unless_the_own_one_is_kept(hub, lora):
    (lora / "README.md").write_text("---\nlicense: mit\n---\nMine.\n")
    publish_model(lora, "org/red", **told(hub))
    assert b"AnimeShooterGen" in hub.repo("model", "org/red").bytes("README.md")
    publish_model(lora, "org/red", keep_card=True, **told(hub))
    assert hub.repo("model", "org/red").bytes("README.md").endswith(b"Mine.\n")
    (lora / "README.md").unlink()
    with pytest.raises(DataError, match=r"README\.md: not there; write it, or leave out --keep-card"):
        publish_model(lora, "org/red", keep_card=True, **told(hub))


# ---- refusals ----


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("mllm/pytorch_model.bin", b"x", "may hold a pickle"),
        ("optimizer.pt", b"x", "may hold a pickle"),
        ("transformer/extra.ckpt", b"x", "may hold a pickle"),
        ("vae/more.safetensors", b"\x80\x04}.", "no safetensors file"),
        ("modeling.py", b"x", "nothing a checkpoint is made of"),
        ("mllm/README.md", b"x", "nothing a checkpoint is made of"),
        ("story.mp4", b"x", "nothing a checkpoint is made of"),
    ],
)
def test_only_weights_settings_and_text_are_published(hub, lora, name, content, says):
    (lora / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        publish_model(lora, "org/red", **told(hub))
    assert str(lora / name) in str(error.value)
    assert not hub.asked


def test_names_that_are_none_are_refused_before_anything_is_asked(hub, lora):
    for name, datasets in (("red", []), ("org/../red", []), ("org/red", ["animeshooter"]), ("org/red", ["a/b](x)"])):
        with pytest.raises(DataError, match="no name of a repository"):
            publish_model(lora, name, datasets=datasets, **told(hub))
    assert not hub.asked


def test_what_is_no_checkpoint_is_refused(hub, lora, tmp_path):
    with pytest.raises(DataError, match="neither a dataset directory"):
        publish(tmp_path, "org/red", **told(hub))
    with pytest.raises(DataError, match="no such folder"):
        publish_model(tmp_path / "none", "org/red", **told(hub))
    shutil.rmtree(lora / "vae")
    with pytest.raises(DataError, match="vae: folder is missing"):
        publish(lora, "org/red", **told(hub))
    (lora / "training.json").unlink()
    with pytest.raises(DataError, match=r"no training\.json"):
        publish(lora, "org/red", **told(hub))
    assert not hub.asked


def test_a_link_out_of_the_folder_is_refused(hub, lora, tmp_path):
    (tmp_path / "passwords.txt").write_text("secret")
    (lora / "tokenizer" / "vocab.txt").symlink_to(tmp_path / "passwords.txt")
    with pytest.raises(DataError, match="leads out of the folder"):
        publish_model(lora, "org/red", **told(hub))
    assert not hub.puts


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (({"licence": None}, {}), r"trained on film0 \(no licence stated\), whose licence does not allow"),
        (({}, {"licence": "CC BY-ND 4.0"}), r"trained on film1 \(CC BY-ND 4\.0\), whose licence does not allow"),
        (({"annotation_licences": ["all rights reserved"]}, {}), "the licence of captions it was trained on"),
    ],
)
def test_films_whose_licence_forbids_it_keep_a_model_private_unless_rights_are_cleared(hub, lora, changes, says):
    films(lora, *changes)
    with pytest.raises(DataError, match=f"{says}.*--rights-cleared"):
        publish_model(lora, "org/red", **told(hub))
    assert not hub.repos
    done = publish_model(lora, "org/red", private=True, **told(hub))
    assert done.lines()[0].startswith("note: ")
    assert hub.repo("model", "org/red").private
    assert not publish_model(lora, "org/red", **told(hub)).plan.changes  # it stays private
    hub.repo("model", "org/red").private = False  # its owner opened it
    with pytest.raises(DataError, match="--rights-cleared"):
        publish_model(lora, "org/red", **told(hub))
    assert publish_model(lora, "org/red", rights_cleared=True, **told(hub)).commit == done.commit


def test_films_that_nobody_recorded_count_as_without_licence(hub, lora):
    (lora / "films.jsonl").unlink()
    with pytest.raises(DataError, match="was not recorded in full"):
        publish_model(lora, "org/red", **told(hub))
    assert publish_model(lora, "org/red", rights_cleared=True, **told(hub)).commit


def test_a_model_of_withdrawn_films_is_not_for_everybody(hub, lora, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "rights.jsonl").write_bytes(dump(RightsRecord(video="film1", state="withdrawn")) + b"\n")
    with pytest.raises(DataError, match="trained on film1, not to be used any more; train anew without"):
        publish_model(lora, "org/red", data=data, rights_cleared=True, **told(hub))
    assert not hub.repos
    (tmp_path / "list.txt").write_text("film0\n")
    with pytest.raises(DataError, match="trained on film0, not to be used any more"):
        publish_model(lora, "org/red", opt_out=[tmp_path / "list.txt"], **told(hub))
    assert publish_model(lora, "org/red", data=data, private=True, **told(hub)).notes
    with pytest.raises(DataError, match=r"no rights\.jsonl"):
        publish_model(lora, "org/red", data=tmp_path, **told(hub))


def test_options_of_datasets_are_not_for_checkpoints_and_the_other_way_round(hub, lora, dataset):
    with pytest.raises(DataError, match="is a checkpoint, which --no-decode is not for"):
        publish(lora, "org/red", decode=False)
    with pytest.raises(DataError, match="is a dataset directory, which --keep-card is not for"):
        publish(dataset, "org/red", keep_card=True)
    with pytest.raises(DataError, match="lint"):
        publish(dataset, "org/red", **told(hub))


def test_a_purge_leaves_the_newest_state_alone(hub, lora):
    publish_model(lora, "org/red", **told(hub))
    (lora / "log.jsonl").write_text("")
    done = publish_model(lora, "org/red", purge_history=True, **told(hub))
    repo = hub.repo("model", "org/red")
    assert len(repo.log()) == 1
    assert repo.tags == {"v1.1.2": done.commit}
    assert repo.bytes("log.jsonl") == b""


def test_other_weights_on_the_hub_than_here_are_noticed(hub, chain, lora):
    done = publish_model(lora, "org/red", **told(hub))
    with pytest.raises(DataError, match="the weights of transformer are not those of"):
        compare("org/red", done.commit, chain["multi_shot"], endpoint=hub.url, token=hub.token, clean=str)


def test_what_does_not_load_from_the_hub_is_one_line(monkeypatch, lora):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(DataError, match=r"is on the Hub at 00000000, but does not load from there .*no such folder") as error:
        compare("org/red", "0" * 40, lora, endpoint="http://127.0.0.1:1", token=None, clean=str)
    assert "\n" not in str(error.value)
