import json
import sys

import pytest

from recipes import doctor
from recipes.cli import main
from recipes.doctor import Finding, examine, packages, report, works

PROJECT = """
[project]
dependencies = ["numpy>=1.0", "pyarrow>=9999", "no-such-package-at-all>=2  "]
[project.optional-dependencies]
speed = ["another-missing-package"]
dev = ["left-out-of-the-report"]
"""


@pytest.fixture
def quick(monkeypatch):
    """Without the trials in processes of their own, which other tests start one by one."""
    monkeypatch.setattr(doctor, "_slow", lambda network: [])


@pytest.fixture
def project(tmp_path):
    (tmp_path / "pyproject.toml").write_text(PROJECT)
    (tmp_path / "constraints.txt").write_text("numpy==1.2.3\n")
    return {one.name: one for one in packages(tmp_path)}


def test_what_a_project_asks_for_is_found_missing_or_too_old(project):
    assert project["numpy"].state == "ok"
    assert "tested with 1.2.3" in project["numpy"].said
    assert project["pyarrow"].state == "broken"
    assert "pyarrow>=9999 is asked for" in project["pyarrow"].said
    assert project["no-such-package-at-all"] == Finding(
        "no-such-package-at-all", "missing", "pip install 'no-such-package-at-all>=2'", True
    )


def test_an_extra_is_not_needed_and_named(project):
    extra = project["another-missing-package [speed]"]
    assert (extra.state, extra.needed) == ("missing", False)
    assert "animeshooter[speed]" in extra.said
    assert not any("left-out" in name for name in project)


def test_every_dependency_of_the_project_is_looked_at_without_its_sources(tmp_path):
    assert {"torch", "av", "transformers"} <= {one.name for one in packages(tmp_path)}


@pytest.mark.parametrize("check", [doctor.devices, doctor.half_precision, doctor.codecs])
def test_what_the_tests_themselves_need_works_here(check):
    assert check().state == "ok"


def test_frames_that_come_back_changed_are_noticed(monkeypatch):
    encode = doctor._encode
    monkeypatch.setattr(doctor, "_encode", lambda av, file, frames: encode(av, file, frames - 3))
    assert "of 8 frames 5 came back" in doctor.codecs().said


def test_two_processes_add_up():
    assert doctor.two_processes() == Finding("two processes", "ok", "gloo adds up over two processes")


def test_a_group_that_fails_is_told_with_its_error(monkeypatch):
    monkeypatch.setattr(doctor, "_TWO", "raise RuntimeError('no interface to bind to')")
    found = doctor.two_processes()
    assert (found.state, found.said) == ("broken", "gloo: RuntimeError: no interface to bind to")


def test_a_trial_without_end_is_given_up(monkeypatch):
    monkeypatch.setattr(doctor, "PATIENCE", 0.2)
    found = doctor._run([sys.executable, "-c", "import time; time.sleep(60)"], "sleeper")
    assert (found.state, found.said) == ("broken", "no end after 0 s")


def test_a_folder_that_does_not_exist_yet_is_judged_by_the_one_above_it(tmp_path):
    found = doctor.disk(tmp_path / "not" / "there")
    assert found.state == "ok"
    assert found.said.startswith(f"{tmp_path}: ")
    assert list(tmp_path.iterdir()) == []


def test_too_little_room_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "NEEDED_SPACE", 10**18)
    assert doctor.disk(tmp_path).state == "broken"


def test_wandb_without_a_key_stays_on_disk(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: object())
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert "no key" in doctor.tracker().said
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password 0000\n")
    assert "a key is there" in doctor.tracker().said
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert doctor.tracker().said.startswith("offline")


def test_a_hub_that_does_not_answer_is_missing(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    found = doctor.hub()
    assert found.state == "missing"
    assert "http://127.0.0.1:9 does not answer" in found.said


def test_a_check_that_raises_is_a_broken_line_and_exit_code_2(monkeypatch, quick, tmp_path, capsys):
    def codecs():
        raise OSError("libx264 is not there")

    monkeypatch.setattr(doctor, "codecs", codecs)
    assert main(["doctor", "--offline", "--folder", str(tmp_path)]) == 2
    said = capsys.readouterr().out
    assert "broken   H.264 and AAC" in said
    assert "OSError: libx264 is not there (needed)" in said
    assert said.rstrip().endswith("the demo cannot run: H.264 and AAC")


def test_json_says_the_same(quick, tmp_path, capsys):
    code = main(["doctor", "--json", "--offline", "--folder", str(tmp_path)])
    told = json.loads(capsys.readouterr().out)
    assert told["works"] is (code == 0)
    assert {"Python", "torch", "devices", "working folder"} <= {one["name"] for one in told["findings"]}


def test_only_what_the_demo_needs_decides():
    optional, needed = Finding("a", "missing", "", False), Finding("b", "broken", "why", True)
    assert works([optional])
    assert not works([optional, needed])
    assert report([optional, needed], False).endswith("the demo cannot run: b")


def test_offline_asks_nothing_of_the_network(monkeypatch):
    assert "Hugging Face Hub" not in [name for name, *_ in doctor._slow(False)]
    assert "Hugging Face Hub" in [name for name, *_ in doctor._slow(True)]
    assert callable(examine)
