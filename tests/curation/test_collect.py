import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import films
import pytest

from animeshooter_dataset import DataError
from curation.collect import Dropped, Plan, collect, expand, read_film, rights_of, title_of, unique
from curation.origin import SOURCE_SUFFIX, Address, Source
from curation.sidecar import Rights, SidecarScript

WEIRD = [
    "sp ace.mp4",
    'it\'s "so".mp4',
    "new\nline.mp4",
    "turn\u202eed.mp4",
    "[1] *.mp4",
    "%d.mp4",
    "-i.mp4",
    os.fsdecode(b"\xff\xfe.mp4"),
]


@pytest.fixture
def film(tmp_path):
    return films.write_film(tmp_path / "My Film (1).mp4", frames=6)


def names(sources):
    paths, dropped = expand(sources)
    assert dropped == []
    return [path.name for path in paths]


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
    (tmp_path / ".partial").mkdir()
    for hidden in (".partial/half.mp4", "._My Film (1).mp4"):
        shutil.copy(film, tmp_path / hidden)
    found, dropped = collect([tmp_path])
    assert [found_film.path.name for found_film in found] == ["deep.mkv", "My Film (1).mp4"]
    assert dropped == []


def test_what_is_no_film_costs_only_itself(film, tmp_path):
    (tmp_path / "text.mp4").write_text("hello")
    (tmp_path / "empty.mp4").touch()
    films.without_index(film, tmp_path / "cut.mp4")
    found, dropped = collect([tmp_path, tmp_path / "missing.mp4"])
    assert [found_film.path for found_film in found] == [film]
    assert [loss.path.name for loss in dropped] == ["cut.mp4", "empty.mp4", "missing.mp4", "text.mp4"]
    assert all(loss.path.name in loss.reason and "\n" not in loss.reason for loss in dropped)


def test_the_same_bytes_count_once_and_the_first_path_wins(film, tmp_path):
    for name in ("b.mp4", "a.mp4"):
        shutil.copy(film, tmp_path / name)
    found = [read_film(tmp_path / name) for name in ("b.mp4", "My Film (1).mp4", "a.mp4")]
    for order in (found, found[::-1]):
        kept, dropped = unique(order)
        assert [one.path.name for one in kept] == ["My Film (1).mp4"]
        assert [loss.path.name for loss in dropped] == ["a.mp4", "b.mp4"]
        assert "same bytes as My Film (1).mp4" in dropped[0].reason


def test_a_script_beside_a_film_is_found(film):
    script = film.with_name("My Film (1).script.json")
    assert read_film(film).script is None
    script.write_text("{}")
    assert read_film(film).script == script


def test_a_pattern_stands_for_the_films_it_matches(film, tmp_path):
    for name in ("part 1.mp4", "part 2.mkv", "part 3.script.json", "part 4.bin"):
        shutil.copy(film, tmp_path / name)
    assert names([f"{tmp_path}/part *"]) == ["part 1.mp4", "part 2.mkv"]
    assert names([f"{tmp_path}/part ?.bin"]) == ["part 4.bin"]
    assert names([f"{tmp_path}/**/part 1.*"]) == ["part 1.mp4"]
    paths, dropped = expand([f"{tmp_path}/none*.mp4"])
    assert paths == []
    assert "none*.mp4: no film has a name like this" in dropped[0].reason


def test_a_file_whose_name_looks_like_a_pattern_an_address_or_a_list_is_that_file(film, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("[1] *.mp4", "1 x.mp4", "@list.txt", "yt:abcdefghijk"):
        shutil.copy(film, name)
    for name in ("[1] *.mp4", "@list.txt", "yt:abcdefghijk"):
        assert names([name]) == [name]
    assert names([Path("[2] *.mp4")]) == ["[2] *.mp4"]
    os.remove("[1] *.mp4")
    assert names(["[1] *.mp4"]) == ["1 x.mp4"]


def test_a_list_names_sources_relative_to_itself(film, tmp_path):
    (tmp_path / "lists" / "films [old]").mkdir(parents=True)
    for name in ("films [old]/a.mp4", "films [old]/b.mp4", "c.mp4", "abcdefghijk"):
        shutil.copy(film, tmp_path / "lists" / name)
    more = tmp_path / "lists" / "more.txt"
    more.write_text("@all.txt\n../My Film (1).mp4\n")
    text = "\ufeff# films\n\nfilms [old]\r\n  c.mp4  \nabcdefghijk\nmore.txt\nmissing.mp4\nnone/*.mkv\n"
    (tmp_path / "lists" / "all.txt").write_text(text)
    for source in (f"@{tmp_path}/lists/all.txt", f"{tmp_path}/lists/all.txt", tmp_path / "lists" / "all.txt"):
        paths, dropped = expand([source])
        wanted = ["../My Film (1).mp4", "abcdefghijk", "c.mp4", "films [old]/a.mp4", "films [old]/b.mp4", "missing.mp4"]
        assert [os.path.relpath(path, tmp_path / "lists") for path in paths] == wanted
        assert [loss.reason.partition("lists/")[2].partition(":")[0] for loss in dropped] == ["none/*.mkv"]


def test_lists_that_say_nothing_are_told(tmp_path):
    (tmp_path / "empty.txt").write_text("# nothing yet\n")
    _, dropped = expand([f"{tmp_path}/empty.txt", f"@{tmp_path}/missing.txt", ""])
    assert "empty.txt: the list is empty" in dropped[0].reason
    assert "missing.txt: the list cannot be read (No such file or directory)" in dropped[1].reason
    assert "an empty name" in dropped[2].reason


def test_a_film_named_txt_is_a_film(film, tmp_path):
    shutil.copy(film, tmp_path / "film.txt")
    found, dropped = collect([str(tmp_path / "film.txt")])
    assert (len(found), dropped) == (1, [])


def test_bare_ids_of_a_list_are_youtube_films_and_named_in_what_was_dropped(tmp_path):
    listed = tmp_path / "video_ids.txt"
    listed.write_text("LvJRvwIDh0E\n-abcdefghi_\n")
    with pytest.raises(DataError, match=r"watch\?v=LvJRvwIDh0E: no folder for downloads"):
        expand([str(listed)])
    pages = [f"https://www.youtube.com/watch?v={video}" for video in ("LvJRvwIDh0E", "-abcdefghi_")]
    failed = {"reason": "private", "kind": "permanent", "attempts": 1, "date": "2026-01-01"}
    lines = [json.dumps({"key": Address.parse(page).key, "address": page, **failed}) + "\n" for page in pages]
    (tmp_path / "failed.jsonl").write_text("".join(lines))
    paths, dropped = expand([str(listed)], tmp_path)  # both are known to fail for good, so that nothing is asked for
    assert paths == []
    assert [loss.film for loss in dropped] == pages
    assert dropped[0].reason.startswith(f"{pages[0]}: private; --retry-failed asks for it again")


def test_a_file_counts_once_however_it_is_spelt(film, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a").mkdir()
    assert names([film, str(film), "a/../My Film (1).mp4", ".", f"{tmp_path}/*.mp4"]) == ["My Film (1).mp4"]


@pytest.mark.parametrize("name", WEIRD)
def test_whatever_a_file_is_called_what_is_said_of_it_is_one_clean_line(film, tmp_path, name):
    folder = tmp_path / "fol\nder"
    folder.mkdir()
    good, bad = folder / name, folder / f"bad {name}"
    shutil.copy(film, good)
    bad.write_text("not a film")
    found, dropped = collect([str(folder)])
    assert [one.path for one in found] == [good]
    assert found[0].id == pickle.loads(pickle.dumps(found[0])).id
    for text in (found[0].name, dropped[0].reason, *dropped[0].public().values()):
        assert text.isprintable()
        text.encode()
    public = dropped[0].public()
    assert "der" not in public["reason"].partition(":")[0]
    assert public["reason"].startswith(public["film"])


def test_what_is_dropped_is_told_without_the_folders_of_this_machine():
    loss = Dropped(Path("/home/me/a.mp4"), "collect", "/home/me/a.mp4: the same bytes as /home/me/b.mp4")
    assert loss.public() == {"film": "a.mp4", "stage": "collect", "reason": "a.mp4: the same bytes as b.mp4"}


def test_the_makers_word_on_rights_comes_before_the_sites(film):
    found = read_film(film)
    assert rights_of(found, None) == Rights()
    record = Source(
        address="https://host/x",
        extractor="Site",
        id="x",
        title="Site's",
        uploader="Up",
        licence="CC BY",
        retrieved="2026-01-02",
    )
    film.with_name(film.stem + SOURCE_SUFFIX).write_text(record.model_dump_json())
    found = read_film(film)
    told = Rights(licence="CC BY", uploader="Up", source="https://host/x", retrieved="2026-01-02")
    assert rights_of(found, None) == told
    script = SidecarScript(format="animeshooter-script", version=1, rights=Rights(licence="CC0", attribution="Me"))
    assert rights_of(found, script) == told.model_copy(update={"licence": "CC0", "attribution": "Me"})
    assert [title_of(found, None), title_of(found, script)] == ["Site's", "Site's"]
    assert title_of(found, script.model_copy(update={"title": "Mine"})) == "Mine"


def test_a_plan_gives_back_what_was_read_while_the_file_stays_as_it_is(film, tmp_path):
    found = read_film(film)
    plan = Plan.load(tmp_path / "work" / "plan.jsonl")
    assert plan.get(film) is None
    plan.put(found)
    for known in (plan, Plan.load(tmp_path / "work" / "plan.jsonl")):
        assert known.get(film) == found
    film.with_name("My Film (1).script.json").write_text("{}")
    assert plan.get(film) == read_film(film)
    os.utime(film, ns=(1, 1))
    assert plan.get(film) is None
    plan.put(read_film(film))
    assert Plan.load(tmp_path / "work" / "plan.jsonl").get(film) == read_film(film)
    film.unlink()
    assert plan.get(film) is None


def test_a_plan_survives_being_cut_off_anywhere(film, tmp_path):
    found, path = read_film(film), tmp_path / "plan.jsonl"
    others = [replace(found, path=tmp_path / name) for name in ("b.mp4", WEIRD[-1])]
    for other in others:
        os.link(film, other.path)
    plan = Plan.load(path)
    for one in (found, *others):
        plan.put(one)
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == 10]
    for cut in (0, 1, ends[0] - 1, ends[0], ends[0] + 5, ends[1] + 90, len(whole)):
        path.write_bytes(whole[:cut])
        plan = Plan.load(path)
        assert len(plan) == sum(end <= cut for end in ends)
        plan.put(others[1])
        again = Plan.load(path)
        assert again.get(others[1].path).sha256 == found.sha256
        assert len(again) == min(3, sum(end <= cut for end in ends) + 1)


def test_a_plan_of_films_that_change_often_does_not_grow_without_end(film, tmp_path):
    found, path = read_film(film), tmp_path / "plan.jsonl"
    for _ in range(3):
        plan = Plan.load(path)
        for _ in range(30):
            plan.put(found)
    assert len(Plan.load(path)) == 1
    assert len(path.read_bytes().splitlines()) < 40
    assert Plan.load(path).get(film) == found


def test_a_film_that_is_still_being_written_is_refused(film, monkeypatch):
    states = iter([(1, 1), (2, 2)])
    monkeypatch.setattr("curation.collect._stamp", lambda path: next(states))
    with pytest.raises(DataError, match="changed while it was read"):
        read_film(film)
