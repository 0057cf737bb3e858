import json

import built
import films
import pytest

from recipes.cli import main


def test_cuts_prints_the_agreed_json(tmp_path, capsys):
    film = built.write_walkers(tmp_path)
    assert main(["cuts", str(film), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert list(found) == ["film", "fps", "n_frames", "cuts", "gradual", "possible"]
    assert found["film"] == "walkers.mp4"
    assert found["fps"] == built.FPS
    assert found["n_frames"] == built.SHOT_FRAMES * len(built.SHOTS)
    assert found["cuts"] == [number * built.SHOT_FRAMES for number in range(1, len(built.SHOTS))]


def test_cuts_for_people_names_every_cut(tmp_path, capsys):
    film = built.write_walkers(tmp_path)
    assert main(["cuts", str(film)]) == 0
    out = capsys.readouterr().out
    assert out.count(" cut\n") == len(built.SHOTS) - 1


def test_an_error_is_one_line_and_exit_code_2(tmp_path, capsys):
    text = tmp_path / "text.mp4"
    text.write_text("hello")
    assert main(["cuts", str(text)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("animeshooter cuts: ")
    assert "text.mp4" in error
    assert error.count("\n") == 1


def test_nothing_built_is_exit_code_2(tmp_path, capsys):
    assert main(["build", str(tmp_path / "missing.mp4"), "--out", str(tmp_path / "out")]) == 2
    assert "missing.mp4" in capsys.readouterr().err


def test_build_reports_as_json(tmp_path, capsys):
    film = films.write_film(tmp_path / "film.mp4", frames=10)
    (tmp_path / "empty.mp4").touch()
    assert main(["build", str(film), str(tmp_path / "empty.mp4"), "--out", str(tmp_path / "out"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["films"], report["shots"]) == (1, 1)
    assert report["dropped"] == {"collect": 1}


def test_lint_says_clean_and_finds_faults(copy, capsys):
    assert main(["lint", str(copy)]) == 0
    assert "clean (6 shots, 1 stories, 1 audio" in capsys.readouterr().out
    (copy / "strange.txt").write_text("?")
    assert main(["lint", str(copy), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["problems"] == ["strange.txt: not named in manifest.json"]


@pytest.mark.parametrize("shares", ["train=.5", "train=1.5,test=-.5", "train", "dev=1"])
def test_shares_that_make_no_sense_are_refused(shares, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["build", "film.mp4", "--splits", shares])
    assert stop.value.code == 2
    assert "train" in capsys.readouterr().err


def test_stats_and_report_answer_for_a_dataset(walkers, tmp_path, capsys):
    assert main(["stats", str(walkers), "--json"]) == 0
    assert "shots" in json.loads(capsys.readouterr().out)["whole"]
    assert main(["report", str(walkers), "--out", str(tmp_path / "page.html")]) == 0
    assert capsys.readouterr().out.strip() == str(tmp_path / "page.html")
    assert "Two walkers" in (tmp_path / "page.html").read_text()
    assert main(["stats", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
