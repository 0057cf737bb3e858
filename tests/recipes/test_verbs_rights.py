import json
import os
import subprocess
import sys

import built
import pytest
import releases
from hub_server import HubServer
from media_server import MediaServer, Served

from animeshooter_dataset import read_records, read_rights
from recipes.cli import main


def said(capsys):
    return capsys.readouterr().out


def test_a_release_is_imported_from_the_command_line(tmp_path, capsys):
    (tmp_path / "videos").mkdir()
    film = built.write_walkers(tmp_path / "videos", "abcdefghijk")
    film.with_name("abcdefghijk.script.json").unlink()
    shots = [releases.make_shot(0, 5, characters=["Red"]), releases.make_shot(5, 15, scene="yard")]
    story = releases.make_segment(0, 180, shots)
    releases.write_release(tmp_path / "main.zip", [releases.make_video("abcdefghijk", [story], fps=built.FPS)])
    command = ["import-release", str(tmp_path / "main.zip"), "--out", str(tmp_path / "out"), "--workers", "1"]
    assert main(command) == 2
    assert "--videos DIR, or --download" in capsys.readouterr().err
    assert main([*command, "--videos", str(tmp_path / "videos"), "--contact", "rights@example.org", "--json"]) == 0
    report = json.loads(said(capsys))
    assert (report["films"], report["stories"], report["shots"]) == (1, 1, 2)
    assert "rights@example.org" in (tmp_path / "out" / "README.md").read_text()
    inside = [record.scores.cuts_inside for record, _ in read_records(tmp_path / "out", "shots", ("json",))]
    rejected = [record.rejected_by for record, _ in read_records(tmp_path / "out", "shots", ("json",))]
    assert inside == [1, 3]
    assert all("cuts inside" in names for names in rejected)


def test_sources_are_verified_and_the_exit_code_says_whether_all_were(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with MediaServer() as server:
        server.serve("/here.mp4", Served(b"film"))
        (tmp_path / "list.txt").write_text(f"{server.url}/here.mp4\n{server.url}/gone.mp4\n")
        asked = ["verify-sources", str(tmp_path / "list.txt"), "--interval", "0"]
        assert main([*asked, "--limit", "1", "--json"]) == 1
        assert json.loads(said(capsys))["left"] == 1
        assert main(asked) == 0
    assert "1 of 2 sources available (50.0 %)" in said(capsys)


def test_a_film_is_taken_down_and_everything_says_so(copy, capsys, tmp_path):
    (video,) = (line.video for line in read_rights(copy))
    assert main(["takedown", str(copy)]) == 2
    assert main(["takedown", str(copy), "nobody"]) == 2
    assert "no video has the id nobody" in capsys.readouterr().err
    assert main(["card", str(copy), "--contact", "rights@example.org"]) == 0
    assert "written anew" in said(capsys)
    (tmp_path / "list.txt").write_text(f"{video}\n")
    assert main(["takedown", str(copy), "--list", str(tmp_path / "list.txt"), "--reason", "asked", "--json"]) == 0
    told = json.loads(said(capsys))
    assert [(line["video"], line["shots"], line["reason"]) for line in told["removed"]] == [(video, 6, "asked")]
    assert main(["takedown", str(copy), video]) == 0
    assert f"already withdrawn: {video}" in said(capsys)
    assert main(["lint", str(copy)]) == 0


@pytest.fixture
def hub():
    with HubServer() as server:
        yield server


def test_a_dataset_is_published_by_the_command_alone(copy, hub, tmp_path):
    environment = os.environ | {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": hub.token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "NO_PROXY": "127.0.0.1",
    }

    def run(*options):
        command = [sys.executable, "-m", "recipes.cli", "publish", str(copy), "org/walkers", "--verify", "none", *options]
        return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)

    planned = run("--dry-run")
    assert (planned.returncode, "would go to" in planned.stdout, hub.puts) == (0, True, [])
    done = run("--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["version"] == "v1.2.0"
    assert hub.token not in done.stdout + done.stderr
    assert set(hub.repo("dataset", "org/walkers").tags) == {"v1.2.0"}
    (copy / "README.md").write_text("stale")
    refused = run()
    assert refused.returncode == 2
    assert "`animeshooter card`" in refused.stderr
