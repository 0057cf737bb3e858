import shutil

import films
import pytest

from curation.collect import collect, read_film


@pytest.fixture
def film(tmp_path):
    return films.write_film(tmp_path / "My Film (1).mp4", frames=6)


def test_an_id_is_a_key_that_does_not_depend_on_the_folder(film, tmp_path):
    other = tmp_path / "elsewhere"
    other.mkdir()
    shutil.copy(film, other)
    assert read_film(film).id == read_film(other / film.name).id
    assert read_film(film).id.startswith("my-film-1-")


def test_a_folder_stands_for_the_films_below_it(film, tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    films.write_film(tmp_path / "a" / "b" / "deep.mkv", frames=5)
    (tmp_path / "notes.txt").write_text("not a film")
    found, dropped = collect([tmp_path])
    assert [found_film.path.name for found_film in found] == ["deep.mkv", "My Film (1).mp4"]
    assert dropped == []


def test_what_is_no_film_costs_only_itself(film, tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    films.without_index(film, tmp_path / "cut.mp4")
    found, dropped = collect([tmp_path, tmp_path / "missing.mp4"])
    assert [found_film.path for found_film in found] == [film]
    assert [loss.path.name for loss in dropped] == ["cut.mp4", "empty.mp4", "text.mp4", "missing.mp4"]
    assert all(loss.path.name in loss.reason and "\n" not in loss.reason for loss in dropped)


def test_the_same_bytes_count_once(film, tmp_path):
    shutil.copy(film, tmp_path / "copy.mp4")
    found, dropped = collect([tmp_path])
    assert len(found) == 1
    assert "same bytes" in dropped[0].reason


def test_a_script_beside_a_film_is_found(film):
    script = film.with_name("My Film (1).script.json")
    assert read_film(film).script is None
    script.write_text("{}")
    assert read_film(film).script == script
