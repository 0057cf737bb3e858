import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hub_server import HubServer
from packed import write_packed

from animeshooter_dataset import DataError, RightsRecord, dump, read_lines, read_samples, shards
from curation.lint import lint
from curation.pack import file_hash
from curation.publish import may_pass_on, publish_dataset

NAME = "org/animeshooter"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def packed(tmp_path_factory):
    """Four films, two stories each, a shard a story; the clips are none, so lint may not decode them."""
    return write_packed(tmp_path_factory.mktemp("packed") / "animeshooter", films=4, shots=3, shard_size=1)


@pytest.fixture
def publish(hub, tmp_path):
    def run(directory, **more):
        options = {"verify": "none", "decode": False, "patience": (0.01,), "cache": tmp_path / "cache"} | more
        return publish_dataset(directory, NAME, endpoint=hub.url, token=hub.token, **options)

    return run


def repo_of(hub):
    return hub.repo("dataset", NAME)


def downloaded(repo, to, revision="main"):
    """The repository's files in a folder, as a user gets them."""
    for path in repo.commit(revision).files:
        if path != ".gitattributes":
            (to / path).parent.mkdir(parents=True, exist_ok=True)
            (to / path).write_bytes(repo.bytes(path, revision))
    return to


def change_rights(directory, change):
    """Other rights of all videos, in a dataset that lint accepts."""
    lines = [change(line) for line in read_lines(directory / "rights.jsonl", RightsRecord)]
    (directory / "rights.jsonl").write_bytes(b"".join(dump(line) + b"\n" for line in lines))
    rewrite(directory)


def rewrite(directory):
    from curation.pack import write_manifest

    manifest = json.loads((directory / "manifest.json").read_text())
    files = {name: file_hash(directory / name) for name in manifest["files"]}
    write_manifest(directory, manifest, files)


def test_a_dataset_is_published_loaded_again_and_tagged(hub, publish, walkers, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in walkers.rglob("*")}
    said = []
    done = publish(walkers, verify="all", decode=True, say=said.append)
    repo = repo_of(hub)
    assert done.version == "v1.2.0"
    assert repo.tags == {"v1.2.0": done.commit}
    assert done.commit == repo.head.sha
    rows = sum(
        1 for config in ("shots", "stories", "audio") for tar in shards(walkers, config, "train") for _ in read_samples(tar)
    )
    assert done.rows == rows > 5
    assert {path: path.stat().st_mtime_ns for path in walkers.rglob("*")} == before
    copy = downloaded(repo, tmp_path / "copy")
    for path in walkers.rglob("*"):
        name = path.relative_to(walkers).as_posix()
        if path.is_file() and name not in ("README.md", "manifest.json"):
            assert (copy / name).read_bytes() == path.read_bytes()
    assert lint(copy).problems == []
    assert f'load_dataset("{NAME}", "shots"' in (copy / "README.md").read_text()
    assert any("clean cache" in line for line in said)


USER = """
import hashlib, json, sys
import fsspec
from datasets import Video, load_dataset
from huggingface_hub import hf_hub_download, snapshot_download

name, tar = sys.argv[1:]
sha = lambda blob: hashlib.sha256(blob).hexdigest()
clip = lambda row: [row["__key__"], row["json"]["descriptive_caption"], sha(row["mp4"]["bytes"])]
told = {}
stream = load_dataset(name, "shots", streaming=True)
told["splits"] = sorted(stream)
told["streamed"] = [clip(row) for row in stream["train"].decode(False)]
stories = load_dataset(name, "stories", split="train")
told["stories"] = [[row["__key__"], row["json"]["storyline"], row["png"].mode, row["jpg"].size] for row in stories]
shots = load_dataset(name, "shots", split="train").cast_column("mp4", Video(decode=False))
told["mapped"] = [clip(row) for row in shots]
told["downloaded"] = sha(open(hf_hub_download(name, tar, repo_type="dataset", revision="v1.2.0"), "rb").read())
with fsspec.open(f"hf://datasets/{name}/{tar}") as file:
    file.seek(512)
    told["part"] = sha(file.read(2000))
told["snapshot"] = sha(open(snapshot_download(name, repo_type="dataset") + "/" + tar, "rb").read())
print(json.dumps(told))
"""


def test_who_has_no_code_of_ours_streams_loads_and_downloads_what_was_built(hub, publish, walkers, tmp_path):
    publish(walkers)
    tar = "shots/train-00000.tar"
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_TOKEN")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-P", "-c", USER, NAME, tar]
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    told = json.loads(result.stdout.splitlines()[-1])
    built = [(key, json.loads(members["json"]), members) for key, members in read_samples(walkers / tar)]
    expected = [[key, record["descriptive_caption"], sha(members["mp4"])] for key, record, members in built]
    assert told["splits"] == ["train"]
    assert told["streamed"] == told["mapped"] == expected
    assert told["stories"][0][1:3] == ["Two ovals walk.", "RGBA"]
    whole = (walkers / tar).read_bytes()
    assert told["downloaded"] == told["snapshot"] == sha(whole)
    assert told["part"] == sha(whole[512:2512])
    assert hub.tokens == {f"Bearer {hub.token}"}  # the reader sent none


def sha(blob):
    return hashlib.sha256(blob).hexdigest()


def test_publishing_the_same_again_makes_no_commit_and_no_tag(hub, publish, packed):
    first = publish(packed)
    again = publish(packed)
    assert not again.changed
    assert (again.version, again.commit) == (first.version, first.commit)
    assert len(repo_of(hub).log()) == 2
    assert list(repo_of(hub).tags) == ["v1.2.0"]
    assert "nothing to publish" in again.lines()[0]


def test_a_changed_dataset_is_the_next_version_and_what_vanished_is_deleted(hub, publish, packed, tmp_path):
    publish(packed)
    fewer = write_packed(tmp_path / "animeshooter", films=3, shots=3, shard_size=1)
    done = publish(fewer)
    repo = repo_of(hub)
    assert (done.version, done.changed) == ("v1.2.1", True)
    assert "shots/train-00007.tar" in done.plan.delete
    assert set(repo.tags) == {"v1.2.0", "v1.2.1"}
    assert lint(downloaded(repo, tmp_path / "new"), decode=False).problems == []
    assert lint(downloaded(repo, tmp_path / "old", "v1.2.0"), decode=False).problems == []
    assert len(shards(tmp_path / "new", "shots", "train")) == 6


def test_a_dry_run_says_what_would_go_where_and_changes_nothing(hub, publish, packed):
    told = publish(packed, dry_run=True)
    assert hub.repos == {}
    assert told.commit is None
    lines = told.lines()
    assert NAME in lines[0]
    assert "does not exist yet" in lines[0]
    assert "  send    shots/train-00003.tar" in lines
    assert lines[-1] == "as v1.2.0"
    publish(packed)
    assert publish(packed, dry_run=True).lines()[-1] == "nothing changes"
    assert len(repo_of(hub).log()) == 2


def refusal(publish, directory, hub, **more):
    with pytest.raises(DataError) as caught:
        publish(directory, **more)
    assert "\n" not in str(caught.value)
    assert str(directory) in str(caught.value)
    assert hub.repos == {}
    return str(caught.value)


def test_what_is_no_dataset_is_not_published(hub, publish, tmp_path):
    assert "not a dataset directory" in refusal(publish, tmp_path, hub)


def test_what_lint_rejects_is_not_published(hub, publish, copy):
    tar = copy / "shots/train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:-20_000])
    (copy / "notes.txt").write_text("mine")
    line = refusal(publish, copy, hub)
    assert "lint finds" in line
    assert "notes.txt: not named in manifest.json" in line


def test_a_stale_card_is_not_published(hub, publish, copy):
    (copy / "README.md").write_text((copy / "README.md").read_text().replace("Two", "Three") + "\nMore.\n")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["files"]["README.md"] = file_hash(copy / "README.md")
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "README.md: stale" in refusal(publish, copy, hub)


def test_a_withdrawn_video_with_rows_is_not_published(hub, publish, copy):
    change_rights(copy, lambda line: line.model_copy(update={"state": "withdrawn"}))
    assert "is withdrawn but still has rows" in refusal(publish, copy, hub, private=True)


@pytest.mark.parametrize("licence", [None, "CC BY-ND 4.0", "all rights reserved", "Standard YouTube License"])
def test_films_that_may_not_be_passed_on_are_published_only_where_somebody_says_so(hub, publish, copy, licence):
    change_rights(copy, lambda line: line.model_copy(update={"licence": licence}))
    video = next(read_lines(copy / "rights.jsonl", RightsRecord)).video
    line = refusal(publish, copy, hub)
    assert f"{video} ({licence or 'no licence stated'})" in line
    assert "--private" in line
    assert "--rights-cleared" in line
    publish(copy, private=True)
    assert repo_of(hub).private
    publish(copy)  # a repository that is private stays so
    hub.repos.clear()
    publish(copy, rights_cleared=True)
    assert not repo_of(hub).private


@pytest.mark.parametrize(
    ("licence", "allowed"),
    [
        ("CC0-1.0", True),
        ("CC0", True),
        ("Public Domain", True),
        ("Public Domain Mark 1.0", True),
        ("CC BY 3.0", True),
        ("cc-by-4.0", True),
        ("CC BY-SA 4.0", True),
        ("CC BY-NC 4.0", True),
        ("CC BY-NC-SA 3.0", True),
        ("Creative Commons Attribution license (reuse allowed)", True),
        ("Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International", True),
        ("Attribution 4.0 International (CC BY 4.0)", True),
        ("https://creativecommons.org/licenses/by/3.0/", True),
        ("https://creativecommons.org/licenses/by-nc-sa/4.0/deed.en", True),
        ("https://creativecommons.org/publicdomain/zero/1.0/", True),
        ("CC BY-ND 4.0", False),
        ("CC BY-NC-ND 4.0", False),
        ("Creative Commons Attribution-NoDerivatives 4.0", False),
        ("https://creativecommons.org/licenses/by-nc-nd/4.0/", False),
        ("not CC BY 4.0", False),
        ("CC BY 4.0, but not for training", False),
        ("unknown", False),
        ("Youtube", False),
        ("", False),
        (None, False),
    ],
)
def test_which_licences_let_clips_be_passed_on(licence, allowed):
    assert may_pass_on(licence) is allowed


def test_an_annotation_that_may_not_be_passed_on(hub, publish, copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["release"] = {"name": "release.zip", "videos": 1, "annotation_licence": "CC BY-ND 4.0"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    rewrite(copy)
    assert "its annotation (CC BY-ND 4.0)" in refusal(publish, copy, hub)


def test_rows_that_come_back_otherwise_are_found(hub, publish, walkers):
    """The Hub answers with another row than was sent, under the right hash."""

    def spoil(line):
        if "clean cache" in line:
            oid = next(file.sha256 for path, file in repo_of(hub).head.files.items() if path.startswith("stories/"))
            repo_of(hub).objects[oid] = repo_of(hub).objects[oid].replace(b"Two ovals walk.", b"Two ovals talk.")

    with pytest.raises(DataError, match=r"stories/train: the row .* is another on the Hub than in"):
        publish(walkers, verify="sample", say=spoil)
    assert repo_of(hub).tags == {}  # what was not found good has no version


def test_a_run_that_ends_between_commit_and_tag_is_finished_by_the_next(hub, publish, packed):
    hub.fault("tag", status=403)
    with pytest.raises(DataError, match=r"tagging v1\.2\.0"):
        publish(packed)
    done = publish(packed)
    assert (done.version, done.changed) == ("v1.2.0", True)
    assert len(repo_of(hub).log()) == 2
    assert repo_of(hub).tags == {"v1.2.0": done.commit}


def test_lint_reads_again_only_what_changed(hub, publish, copy):
    said = []
    publish(copy, say=said.append)
    publish(copy, say=said.append)
    assert sum("checking every file" in line for line in said) == 1
    os.utime(copy / "shots/train-00000.tar")
    publish(copy, say=said.append)
    assert sum("checking every file" in line for line in said) == 2


def test_after_a_purge_nothing_of_a_removed_film_is_left(hub, publish, packed, tmp_path):
    publish(packed)
    gone = (packed / "shots/train-00007.tar").read_bytes()
    fewer = write_packed(tmp_path / "animeshooter", films=3, shots=3, shard_size=1)
    done = publish(fewer, purge_history=True)
    repo = repo_of(hub)
    assert done.version == "v1.2.1"
    assert repo.tags == {"v1.2.1": repo.head.sha}
    assert repo.log() == ["AnimeShooter dataset v1.2.1"]
    assert gone not in repo.objects.values()
    assert set(repo.objects) == {file.sha256 for file in repo.head.files.values() if file.sha256}
    assert lint(downloaded(repo, tmp_path / "copy"), decode=False).problems == []
    assert any("out of reach" in line for line in done.lines())
    assert json.loads(repo.bytes("manifest.json"))["version"] == "v1.2.1"
    again = publish(fewer)
    assert (again.changed, again.version) == (False, "v1.2.1")
    assert publish(fewer, purge_history=True).version == "v1.2.2"
    assert list(repo.tags) == ["v1.2.2"]


def test_a_purge_that_is_broken_off_is_finished_by_the_next(hub, publish, packed, tmp_path):
    publish(packed)
    gone = (packed / "shots/train-00007.tar").read_bytes()
    fewer = write_packed(tmp_path / "animeshooter", films=3, shots=3, shard_size=1)
    for endpoint in ("squash", "tag", "untag", "lfs-delete"):
        hub.fault(endpoint, status=403)
        with pytest.raises(DataError, match="403"):
            publish(fewer, purge_history=True)
        assert repo_of(hub).bytes("rights.jsonl") == (fewer / "rights.jsonl").read_bytes()
    done = publish(fewer, purge_history=True)
    repo = repo_of(hub)
    assert repo.tags == {done.version: repo.head.sha}
    assert len(repo.log()) == 1
    assert gone not in repo.objects.values()


def test_a_dataset_of_which_nothing_is_left_is_not_published(hub, publish, tmp_path):
    (tmp_path / "animeshooter").mkdir()
    (tmp_path / "animeshooter/manifest.json").write_text('{"schema_version": "1.2", "files": {}}')
    assert "no shots to publish" in refusal(publish, tmp_path / "animeshooter", hub)


def test_who_must_ask_for_access_is_told_in_the_card(hub, publish, packed):
    publish(packed, gated="manual")
    assert repo_of(hub).gated == "manual"
    assert b"extra_gated_prompt" in repo_of(hub).bytes("README.md")
    assert not publish(packed).changed


KILLED = """
import sys
from pathlib import Path
from curation.publish import publish_dataset
directory, cache, endpoint, token = sys.argv[1:]
options = {"endpoint": endpoint, "token": token, "cache": Path(cache), "decode": False, "verify": "none"}
publish_dataset(Path(directory), "org/animeshooter", **options)
"""


def test_a_publisher_that_is_killed_goes_on_with_what_is_missing(hub, packed, tmp_path):
    first, second = threading.Event(), threading.Event()

    def hold(_):
        if len(hub.puts) >= 5:
            first.set()
            hub.lock.release()
            second.wait(60)
            hub.lock.acquire()
            raise ConnectionResetError

    hub.hold = hold
    command = [sys.executable, "-c", KILLED, str(packed), str(tmp_path / "cache"), hub.url, hub.token]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    killed = subprocess.Popen(command, env=environment)
    assert first.wait(120)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    second.set()
    hub.hold = None
    assert repo_of(hub).log() == ["initial commit"]
    sent = list(hub.puts)
    subprocess.run(command, env=environment, check=True)
    large = {file.sha256 for file in repo_of(hub).head.files.values() if file.sha256}
    assert len(hub.puts) == len(set(hub.puts)) == len(large)
    assert set(hub.puts[len(sent) :]) == large - set(sent)
    assert lint(downloaded(repo_of(hub), tmp_path / "copy"), decode=False).problems == []
