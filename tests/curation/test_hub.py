import hashlib
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hub_server import HubServer

from animeshooter_dataset import DataError
from curation import hub as hub_module
from curation import hub_calls
from curation.hub import Local, Repository, next_version

NAME = "org/stories"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def hub(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    with HubServer(page=3) as server:
        yield server


@pytest.fixture
def waits(monkeypatch):
    """Seconds that were waited for, none of them really."""
    waited = []
    monkeypatch.setattr("time.sleep", waited.append)
    return waited


@pytest.fixture
def folder(tmp_path):
    """Six tars in a folder, some small files, one of them empty."""
    made = tmp_path / "folder"
    for number in range(6):
        write(made / f"shots/train-{number:05d}.tar", bytes([number]) * 40_000)
    write(made / "README.md", b"---\nlicense: cc0-1.0\n---\n# Stories\n")
    write(made / "rights.jsonl", b"{}\n")
    write(made / "dropped.jsonl", b"")
    return made


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def remote_contents(repo, revision="main"):
    return {path: repo.bytes(path, revision) for path in repo.commit(revision).files if path != ".gitattributes"}


class Publisher:
    """A repository of the mock Hub and all that was said about it."""

    def __init__(self, hub, tmp_path, kind="dataset", **more):
        self.hub, self.cache, self.kind, self.said, self.steps = hub, tmp_path / "cache", kind, [], []
        options = {"endpoint": hub.url, "token": hub.token, "patience": (1, 2, 3)} | more
        self.repository = Repository(NAME, kind, say=self.said.append, **options)

    def local(self, folder, **more):
        return Local.of(folder, cache=self.cache, progress=self.steps.append, **more)

    def upload(self, folder, local=None, **more):
        return self.repository.upload(local or self.local(folder), message="a state", progress=self.steps.append, **more)

    @property
    def repo(self):
        return self.hub.repo(self.kind, NAME)


@pytest.fixture
def publisher(hub, tmp_path, waits):
    return Publisher(hub, tmp_path)


def refusal(publisher, folder, **more):
    """The one clear line that an upload ends with."""
    with pytest.raises(DataError) as caught:
        publisher.upload(folder, **more)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith((f"{NAME}: ", str(folder)))
    assert publisher.hub.token not in line
    assert not any(publisher.hub.token in said or "secretOfThePut" in said for said in publisher.said)
    return line


@pytest.mark.parametrize("kind", ["dataset", "model"])
def test_a_folder_arrives_as_it_is_in_one_commit_and_nothing_is_written_into_it(hub, tmp_path, folder, waits, kind):
    publisher, before = Publisher(hub, tmp_path, kind), contents(folder)
    done = publisher.upload(folder)
    assert remote_contents(publisher.repo) == before == contents(folder)
    assert publisher.repo.log() == ["a state", "initial commit"]
    assert done.changed
    assert done.commit == publisher.repo.head.sha
    assert publisher.repository.differences(publisher.local(folder), done.commit) == []
    assert publisher.steps[-1].files == publisher.steps[-1].of_files == 9
    assert publisher.steps[-1].bytes == publisher.steps[-1].of_bytes == sum(map(len, before.values()))


def test_an_upload_without_change_hashes_sends_and_commits_nothing(publisher, folder):
    first = publisher.upload(folder)
    publisher.steps.clear()
    again = publisher.upload(folder)
    assert not again.changed
    assert again.commit == first.commit
    assert publisher.steps == []
    assert publisher.hub.asked["commit"] == publisher.hub.asked["preupload"] == 1


def test_a_file_is_hashed_once(publisher, folder, monkeypatch):
    local = publisher.local(folder)
    monkeypatch.setattr("hashlib.file_digest", None)
    monkeypatch.setattr("huggingface_hub.lfs.sha_fileobj", None)
    publisher.upload(folder, local)
    publisher.upload(folder)
    assert remote_contents(publisher.repo) == contents(folder)


def test_a_changed_folder_sends_what_differs_and_deletes_what_vanished(publisher, folder):
    first = publisher.upload(folder)
    before = contents(folder)
    (folder / "shots/train-00005.tar").unlink()
    (folder / "rights.jsonl").unlink()
    write(folder / "shots/train-00000.tar", b"new" * 20_000)
    write(folder / "audio/train-00000.tar", b"sound" * 9_000)
    publisher.hub.puts.clear()
    done = publisher.upload(folder)
    assert done.plan.send == ("audio/train-00000.tar", "shots/train-00000.tar")
    assert done.plan.delete == ("rights.jsonl", "shots/train-00005.tar")
    assert len(publisher.hub.puts) == 2
    assert remote_contents(publisher.repo) == contents(folder)
    assert remote_contents(publisher.repo, first.commit) == before
    assert ".gitattributes" in publisher.repo.head.files


def test_large_files_go_in_parts(publisher, folder):
    publisher.hub.part = 15_000
    publisher.upload(folder)
    assert len(publisher.hub.puts) == 6 * 3
    assert remote_contents(publisher.repo) == contents(folder)


def test_files_from_memory_stand_for_those_of_the_folder(publisher, folder):
    local = publisher.local(folder, files=["README.md", "rights.jsonl"], extra={"README.md": b"# Other\n", "new.json": b"{}"})
    publisher.upload(folder, local)
    assert remote_contents(publisher.repo) == {"README.md": b"# Other\n", "rights.jsonl": b"{}\n", "new.json": b"{}"}


def test_a_gitignore_in_the_repository_drops_nothing(publisher, folder):
    repo = publisher.hub.add_repo("dataset", NAME)
    repo.add_commit("main", "ignore", repo.head.sha, {**repo.head.files, ".gitignore": repo.blob(b"*.tar\n")})
    publisher.upload(folder)
    assert remote_contents(repo) == contents(folder)


def test_a_branch_is_made_where_it_is_missing(hub, tmp_path, folder, waits):
    publisher = Publisher(hub, tmp_path, revision="next")
    publisher.upload(folder)
    assert remote_contents(publisher.repo, "next") == contents(folder)
    assert remote_contents(publisher.repo, "main") == {}


@pytest.mark.parametrize(
    ("endpoint", "status", "says"),
    [
        ("whoami", 401, "hf auth login"),
        ("info", 401, "hf auth login"),
        ("create", 403, "write permission"),
        ("create", 402, "billing"),
        ("preupload", 403, "write permission"),
        ("preupload", 404, "check ORG/NAME"),
        ("batch", 401, "hf auth login"),
        ("put", 403, "write permission"),
        ("commit", 403, "write permission"),
        ("commit", 409, "conflicts with what is there"),
        ("commit", 412, "somebody else changed"),
        ("commit", 413, "larger shards"),
        ("commit", 422, "the Hub refuses it"),
    ],
)
def test_what_the_hub_refuses_is_one_line_with_the_mend_and_nobody_sees_half(publisher, folder, waits, endpoint, status, says):
    repo = publisher.hub.add_repo("dataset", NAME) if endpoint != "create" else None
    publisher.hub.fault(endpoint, status=status, times=99)
    line = refusal(publisher, folder)
    assert says in line
    assert str(status) in line
    assert waits == []
    if repo:
        assert repo.log() == ["initial commit"]


@pytest.mark.parametrize(("status", "says"), [(401, "hf auth login"), (403, "write permission"), (404, "check ORG/NAME")])
def test_what_the_storage_of_the_hub_refuses_is_one_line_too(publisher, folder, monkeypatch, status, says):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", False)
    publisher.hub.fault("xet-token", status=status, times=99)
    assert says in refusal(publisher, folder)
    assert publisher.repo.log() == ["initial commit"]


@pytest.mark.parametrize(
    ("endpoint", "fault"),
    [
        ("whoami", {"status": 503, "times": 2}),
        ("whoami", {"drop_after": 0}),
        ("info", {"status": 500}),
        ("create", {"status": 503}),
        ("create", {"lost": True}),
        ("tree", {"status": 429}),
        ("preupload", {"status": 503, "times": 3}),
        ("batch", {"drop_after": 10}),
        ("batch", {"status": 504, "times": 8}),
        ("put", {"status": 503, "times": 2}),
        ("put", {"drop_after": 10_000, "times": 3}),
        ("put", {"lost": True}),
        ("verify", {"status": 500}),
        ("commit", {"status": 503}),
        ("commit", {"drop_after": 100, "times": 2}),
        ("commit", {"lost": True}),
    ],
)
def test_what_passes_is_waited_for(publisher, folder, waits, endpoint, fault):
    publisher.hub.fault(endpoint, **fault)
    publisher.upload(folder)
    assert remote_contents(publisher.repo) == contents(folder)
    assert publisher.repo.log() == ["a state", "initial commit"]
    assert not any(each.times for each in publisher.hub.faults[endpoint])
    assert waits or "lost" in fault  # a commit whose answer was lost is seen to be there
    assert not any(publisher.hub.token in said or "secretOfThePut" in said for said in publisher.said)


@pytest.mark.parametrize("endpoint", ["whoami", "preupload", "put", "commit"])
def test_the_pause_that_the_hub_asks_for_is_made(publisher, folder, waits, endpoint):
    publisher.hub.fault(endpoint, status=429, headers={"Retry-After": "41"})
    publisher.upload(folder)
    assert max(waits) in (41, 42)
    assert any("429" in said or "Rate limited" in said for said in publisher.said)


def test_a_rate_limit_of_hours_ends_the_run(publisher, folder, waits):
    publisher.hub.fault("whoami", status=429, headers={"Retry-After": "7200"})
    assert "wait 120 minutes" in refusal(publisher, folder)
    assert waits == []


@pytest.mark.parametrize(("status", "says"), [(429, "too many requests"), (503, "the Hub is not well")])
def test_what_does_not_pass_ends_with_one_line_and_the_next_run_goes_on(publisher, folder, status, says):
    publisher.hub.fault("put", status=status, skip=4, times=1000)
    line = refusal(publisher, folder)
    assert says in line
    assert "run the same command again" in line
    assert len(publisher.said) == 3  # one a pause, not one a file and attempt
    publisher.hub.faults.clear()
    sent = list(publisher.hub.puts)
    publisher.upload(folder)
    assert len(publisher.hub.puts) == 6
    assert set(publisher.hub.puts[len(sent) :]).isdisjoint(sent)
    assert remote_contents(publisher.repo) == contents(folder)


def test_a_hub_that_falls_silent_counts_as_lost(publisher, folder, monkeypatch):
    monkeypatch.setattr(hub_calls, "LIMITS", {"connect": 1.0, "read": 0.15, "write": 0.15, "pool": None})
    publisher.hub.fault("put", stall=True)
    publisher.upload(folder)
    assert remote_contents(publisher.repo) == contents(folder)
    publisher.hub.fault("tree", stall=True, times=99)
    assert "fell silent" in refusal(publisher, folder)


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("http://127.0.0.1:9", "cannot be reached"),
        ("http://no-such-host.invalid", "cannot be looked up"),
        ("no address", "HF_ENDPOINT is no address"),
    ],
)
def test_a_hub_that_is_not_there(hub, tmp_path, folder, waits, endpoint, says):
    line = refusal(Publisher(hub, tmp_path, endpoint=endpoint), folder)
    assert says in line


def test_who_is_not_logged_in_is_told_how(hub, tmp_path, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    assert "hf auth login" in refusal(Publisher(hub, tmp_path, token=None), folder)


@pytest.mark.parametrize("token", ["hf_wrongTokenOfSomebody99", "wrongTokenOfAnotherKind"])
def test_a_wrong_token_is_not_shown(hub, tmp_path, folder, waits, token):
    publisher = Publisher(hub, tmp_path, token=token)
    hub.fault("whoami", status=401, message=f"the token {token} is wrong")
    line = refusal(publisher, folder)
    assert "hf auth login" in line
    assert "wrongToken" not in line


def test_a_repository_of_somebody_else(hub, tmp_path, folder, waits):
    repository = Repository("somebody/stories", "dataset", endpoint=hub.url, token=hub.token)
    with pytest.raises(DataError, match=r"^somebody/stories: making the repository: .*403.*write permission"):
        repository.upload(Local.of(folder, cache=tmp_path / "cache"), message="a state")


@pytest.mark.parametrize(
    "name", ["stories", "org/", "/stories", "org/two/three", "org/..", "org/a b", "org/a\nb", f"org/{'a' * 99}"]
)
def test_a_name_that_is_none(name):
    with pytest.raises(DataError, match="ORG/NAME"):
        Repository(name, "dataset", token="x")


def test_two_publishers_at_once(publisher, folder):
    """The other one commits while this one sends; what the other published is not lost unseen."""
    repo = publisher.hub.add_repo("dataset", NAME)

    def meddle(_):
        publisher.hub.hold = None
        repo.add_commit("main", "another state", repo.head.sha, {**repo.head.files, "other.txt": repo.blob(b"other")})

    publisher.hub.hold = meddle
    assert "somebody else changed" in refusal(publisher, folder)
    assert repo.log() == ["another state", "initial commit"]


def test_a_file_that_changes_meanwhile_is_not_published(publisher, folder):
    def meddle(_):
        publisher.hub.hold = None
        write(folder / "rights.jsonl", b"{}\n{}\n")

    publisher.hub.hold = meddle
    assert "changed while it was published" in refusal(publisher, folder)
    assert publisher.repo.log() == ["initial commit"]


def test_a_file_that_is_not_what_it_should_be(publisher, folder):
    right = {"rights.jsonl": hashlib.sha256(b"{}\n").hexdigest()}
    publisher.local(folder, hashes=right)
    write(folder / "rights.jsonl", b"[]\n")
    with pytest.raises(DataError, match=r"rights\.jsonl: its sha256 is not the one"):
        publisher.local(folder, hashes=right)
    with pytest.raises(DataError, match=r"gone\.tar: not there"):
        publisher.local(folder, files=["gone.tar"])


def test_a_link_that_leads_out_of_the_folder_is_not_followed(publisher, folder, tmp_path):
    write(tmp_path / "secret", b"secret")
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    assert "leads out of the folder" in refusal(publisher, folder)
    assert publisher.hub.repos == {}


def test_hidden_files_stay_here(publisher, folder):
    write(folder / ".cache/huggingface/x", b"x")
    write(folder / ".env", b"x")
    publisher.upload(folder)
    assert not any("/." in f"/{path}" for path in remote_contents(publisher.repo))


def test_too_many_files_are_refused_before_anything_is_made(publisher, folder, monkeypatch):
    monkeypatch.setattr(hub_module, "MOST_IN_FOLDER", 5)
    assert "larger shards" in refusal(publisher, folder)
    assert publisher.hub.repos == {}


def test_access_is_closed_before_there_is_anything_to_read(publisher, folder):
    publisher.hub.fault("commit", status=413)
    refusal(publisher, folder, private=True, gated="manual")
    assert (publisher.repo.private, publisher.repo.gated) == (True, "manual")
    assert publisher.repo.log() == ["initial commit"]
    publisher.upload(folder, private=True)
    assert publisher.repo.gated == "manual"


def test_private_into_a_public_repository_is_refused(publisher, folder):
    repo = publisher.hub.add_repo("dataset", NAME)
    assert "is public" in refusal(publisher, folder, private=True)
    assert repo.log() == ["initial commit"]


def test_a_cache_that_cannot_be_written_costs_only_time(hub, tmp_path, folder, waits):
    publisher = Publisher(hub, tmp_path)
    write(publisher.cache, b"a file where a folder should be")
    publisher.upload(folder)
    assert remote_contents(publisher.repo) == contents(folder)


def test_versions_only_grow():
    assert next_version([], "1.2") == "v1.2.0"
    assert next_version(["v1.2.0", "v1.2.10", "v1.2.9", "v1.1.40", "v1.2.x", "latest"], "1.2") == "v1.2.11"


def test_a_purge_leaves_the_newest_state_alone(publisher, folder):
    old = publisher.upload(folder)
    publisher.repository.tag("v1.2.0", old.commit)
    (folder / "shots/train-00005.tar").unlink()
    new = publisher.upload(folder)
    publisher.repository.tag("v1.2.1", new.commit)
    assert len(publisher.repo.objects) == 6
    purged = publisher.repository.purge(new.commit, "v1.2.2", "purged")
    assert (purged.objects, purged.bytes, purged.tags) == (1, 40_000, ("v1.2.0", "v1.2.1"))
    assert publisher.repo.log() == ["purged"]
    assert publisher.repo.tags == {"v1.2.2": purged.commit}
    assert remote_contents(publisher.repo) == contents(folder)
    assert publisher.repository.differences(publisher.local(folder), purged.commit) == []


def test_a_version_that_somebody_else_took_is_not_moved(publisher, folder):
    done = publisher.upload(folder)
    publisher.repository.tag("v1.2.0", done.commit)
    publisher.repository.tag("v1.2.0", done.commit)
    write(folder / "rights.jsonl", b"{}\n{}\n")
    with pytest.raises(DataError, match=r"somebody else published v1\.2\.0"):
        publisher.repository.tag("v1.2.0", publisher.upload(folder).commit)


def test_a_purge_touches_nothing_where_it_would_break_something(publisher, folder):
    done = publisher.upload(folder)
    with pytest.raises(DataError, match="somebody else changed it"):
        publisher.repository.purge("0" * 40, "v1.2.1", "purged")
    publisher.repo.branches["mine"] = done.commit
    with pytest.raises(DataError, match="has the branch mine"):
        publisher.repository.purge(done.commit, "v1.2.1", "purged")
    assert publisher.repo.log() == ["a state", "initial commit"]


KILLED = """
import sys
from pathlib import Path
from curation.hub import Local, Repository
folder, cache, endpoint, token = sys.argv[1:]
repository = Repository("org/stories", "dataset", endpoint=endpoint, token=token)
repository.upload(Local.of(Path(folder), cache=Path(cache)), message="a state")
"""


def test_an_upload_that_is_killed_goes_on_with_what_is_missing(hub, tmp_path, folder):
    arrived, release, count = threading.Event(), threading.Event(), []

    def hold(_):
        count.append(1)
        if len(count) > 2:  # two files pass, the others wait in the middle
            arrived.set()
            hub.lock.release()
            release.wait(30)
            hub.lock.acquire()
            raise ConnectionResetError

    hub.hold = hold
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", KILLED, str(folder), str(tmp_path / "cache"), hub.url, hub.token]
    killed = subprocess.Popen(command, env=environment)
    assert arrived.wait(60)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    release.set()
    hub.hold = None
    repo = hub.repo("dataset", NAME)
    assert repo.log() == ["initial commit"]
    sent = list(hub.puts)
    assert len(sent) == 2
    subprocess.run(command, env=environment, check=True)
    assert len(hub.puts) == 6
    assert set(hub.puts[2:]).isdisjoint(sent)
    assert remote_contents(repo) == contents(folder)
    assert repo.log() == ["a state", "initial commit"]
