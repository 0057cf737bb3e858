import json
import shutil

import built
import pytest

from animeshooter_dataset import DataError
from recipes.demo import run_demo, story_to_tell


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """One small demo on a film of the user's own."""
    folder = tmp_path_factory.mktemp("demo")
    film = built.write_walkers(folder)
    page = run_demo(folder / "demo", folder / "animeshooter", films=[film], small=True, workers=1)
    return folder, page


def test_the_page_shows_every_link_of_the_chain(whole):
    folder, page = whole
    text = page.read_text()
    assert page == folder / "demo" / "index.html"
    assert text.count("assets/walkers-") >= 6
    assert all(title in text for title in ("Condition alignment", "Single shot", "Multi-shot", "LoRA enhancement"))
    assert text.count("<polyline") == 4
    assert "This looks like noise, and should." in text


def test_captions_on_the_page_are_escaped(whole):
    text = whole[1].read_text()
    assert "Ovals &lt;b&gt;walk&lt;/b&gt;" in text
    assert "<b>walk" not in text


def test_what_the_page_points_to_is_there(whole):
    import re

    folder, page = whole
    named = set(re.findall(r'(?:src|poster|href)="([^"#]+)"', page.read_text()))
    assert len(named) > 10
    assert [name for name in named if not (page.parent / name).is_file()] == []
    assert (folder / "demo" / "checkpoints" / "lora" / "model_index.json").is_file()
    assert json.loads((folder / "demo" / "story" / "story.json").read_text())["shots"] == [f"shot_{n}.mp4" for n in range(1, 5)]


def test_a_dataset_that_no_demo_made_is_not_replaced(whole, tmp_path):
    folder, _ = whole
    shutil.copytree(folder / "animeshooter", tmp_path / "animeshooter")
    with pytest.raises(DataError, match="no demo made"):
        run_demo(tmp_path / "demo", tmp_path / "animeshooter", films=[folder / "walkers.mp4"], small=True)
    assert (tmp_path / "animeshooter" / "manifest.json").is_file()


def test_a_folder_of_somebody_else_is_not_replaced(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "letter.txt").write_text("dear")
    with pytest.raises(DataError, match="not an earlier demo"):
        run_demo(tmp_path / "demo", tmp_path / "animeshooter")
    assert (tmp_path / "demo" / "letter.txt").read_text() == "dear"


def test_the_story_told_has_a_reference(whole):
    assert story_to_tell(whole[0] / "animeshooter").references
