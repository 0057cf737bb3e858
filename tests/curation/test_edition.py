import errno
import hashlib
import json
import os
from contextlib import suppress

import pytest
from filelock import FileLock
from packed import write_packed

from animeshooter_dataset import DataError, read_manifest
from curation.edition import edition, held, renew_card, replace_file
from curation.lint import lint
from curation.pack import file_hash, write_manifest


@pytest.fixture
def data(tmp_path):
    return write_packed(tmp_path / "data", films=1, stories=1)


def state(directory):
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def mark(new):
    """A change as its users make it: a line of rights is rewritten."""
    path = new / "rights.jsonl"
    text = path.read_text().replace("CC0-1.0", "CC BY 4.0")
    replace_file(path).write_text(text)
    manifest = read_manifest(new)
    write_manifest(new, manifest, manifest["files"] | {path.name: file_hash(path)})


def change_and_fail(data, error):
    with edition(data) as new:
        mark(new)
        (new / "shots" / "train-00000.tar").unlink()
        raise error


def test_a_change_takes_place_in_one_step_and_what_does_not_change_is_the_same_file(data):
    before, tar = state(data), (data / "shots" / "train-00000.tar").stat().st_ino
    with edition(data) as new:
        mark(new)
        assert state(data) == before
    after = state(data)
    changed = {name for name in before if before[name] != after[name]}
    assert {"rights.jsonl", "manifest.json"} <= changed <= {"rights.jsonl", "manifest.json", "README.md"}
    assert after.keys() == before.keys()
    assert (data / "shots" / "train-00000.tar").stat().st_ino == tar
    assert not lint(data, decode=False).problems
    assert os.listdir(data.parent) == ["data"]


def test_any_exception_leaves_everything_as_it_was(data):
    before = state(data)
    with pytest.raises(KeyboardInterrupt):
        change_and_fail(data, KeyboardInterrupt())
    assert state(data) == before
    assert os.listdir(data.parent) == ["data"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS, errno.EDQUOT])
def test_a_full_disk_is_one_line_and_the_old_dataset(data, code):
    before = state(data)
    with pytest.raises(DataError, match="it is as it was; make room") as error:
        change_and_fail(data, OSError(code, os.strerror(code)))
    assert "\n" not in str(error.value)
    assert state(data) == before
    assert os.listdir(data.parent) == ["data"]


def test_other_errors_of_the_block_are_not_taken_for_a_full_disk(data):
    with pytest.raises(FileNotFoundError), edition(data):
        (data / "none").read_bytes()


def test_nobody_else_may_write_it(data):
    (data.parent / "data.work").mkdir()
    with FileLock(data.parent / "data.work" / "lock"), pytest.raises(DataError, match="another run is writing"):
        edition(data).__enter__()
    assert state(data)
    with held(data), pytest.raises(DataError, match="another run is writing"), held(data):
        pass
    with held(data, data.parent / "data.work"):  # the same folder under another name is not somebody else
        pass


def test_what_a_build_keeps_beside_it_stays(data):
    kept = data.parent / "data.work" / "film" / "rows"
    kept.mkdir(parents=True)
    with edition(data) as new:
        mark(new)
    assert kept.is_dir()


def test_what_a_killed_run_left_is_removed(data):
    before = state(data)
    for name in ("data.edition", "data.old"):
        (data.parent / name / "shots").mkdir(parents=True)
        (data.parent / name / "shots" / "train-00000.tar").write_bytes(b"removed")
    with held(data):
        pass
    assert os.listdir(data.parent) == ["data"]
    assert state(data) == before


def test_a_dataset_that_was_moved_away_is_put_back(data):
    before = state(data)
    data.rename(data.parent / "data.old")
    with edition(data) as new:
        mark(new)
    assert state(data).keys() == before.keys()
    assert os.listdir(data.parent) == ["data"]


def test_beside_what_is_no_dataset_nothing_is_made_or_removed(tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos.old").mkdir()
    for name in ("photos", "none"):
        with pytest.raises(DataError, match="not a dataset directory"), edition(tmp_path / name):
            pass
    assert sorted(os.listdir(tmp_path)) == ["photos", "photos.old"]


def test_behind_a_symbolic_link_the_dataset_itself_changes(data, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(data)
    with edition(link) as new:
        mark(new)
    assert link.is_symlink()
    assert "CC BY 4.0" in (data / "rights.jsonl").read_text()
    assert sorted(os.listdir(tmp_path)) == ["data", "link"]
    (tmp_path / "link.work").mkdir()
    with FileLock(tmp_path / "link.work" / "lock"), pytest.raises(DataError, match="another run"), edition(link):
        pass


def test_a_dataset_whose_files_lie_elsewhere_is_refused(data, tmp_path):
    moved = (data / "shots").rename(tmp_path / "elsewhere")
    (data / "shots").symlink_to(moved)
    with pytest.raises(DataError, match="symbolic link"), edition(data):
        pass
    assert not (tmp_path / "data.edition").exists()


def test_where_links_do_not_work_files_are_copied(data, monkeypatch):
    def refuse(source, target):
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    before = state(data)
    with edition(data) as new:
        mark(new)
    assert {name: value for name, value in state(data).items() if name.endswith((".tar", ".parquet"))} == {
        name: value for name, value in before.items() if name.endswith((".tar", ".parquet"))
    }
    assert not lint(data, decode=False).problems


def test_card_and_manifest_may_be_written_as_they_are(data):
    before = state(data)
    with suppress(RuntimeError), edition(data) as new:
        (new / "README.md").write_text("in place")
        (new / "manifest.json").write_text("{}")
        raise RuntimeError
    assert state(data) == before


def test_folders_keep_their_rights(data):
    data.chmod(0o2775)
    with edition(data) as new:
        mark(new)
    assert data.stat().st_mode & 0o7777 == 0o2775
    assert json.loads((data / "manifest.json").read_text())["files"]


def test_a_card_of_another_version_is_written_anew_and_all_else_stays(data):
    before = state(data)
    assert not renew_card(data)
    (data / "README.md").write_text("a card of long ago")
    assert renew_card(data)
    assert state(data) == before
    assert renew_card(data, "rights@example.org")
    assert "rights@example.org" in (data / "README.md").read_text()
    assert {name for name, digest in state(data).items() if before[name] != digest} == {"README.md", "manifest.json"}
    assert lint(data, decode=False).problems == []


def test_a_dataset_of_an_earlier_schema_keeps_its_name(data):
    manifest = read_manifest(data) | {"schema_version": "1.1"}
    (data / "manifest.json").write_text(json.dumps(manifest))
    assert renew_card(data)
    assert read_manifest(data)["schema_version"] == "1.1"
