import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import built
import datasets
import films
import pyarrow.parquet as pq
import pytest
from endpoint_server import ChatServer, asker_on, completion
from takedowns import ADDRESS, VIDEOS, Sought, state, stored, write

from animeshooter_dataset import (
    AvailabilityRecord,
    DataError,
    DroppedRecord,
    FilmRecord,
    RemovalRecord,
    RightsRecord,
    dump,
    features,
    index_name,
    read_audio_index,
    read_index,
    read_lines,
    read_manifest,
    read_records,
    read_samples,
    shards,
    splits,
)
from curation import pack
from curation.asking import ABOUT, Form, Question
from curation.build import build
from curation.config import BuildConfig
from curation.lint import lint
from curation.optout import OptOut
from curation.origin import Source
from curation.report import write_report
from curation.rules import load_rules
from curation.takedown import takedown


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A folder of answers of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "animeshooter" / "answers"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole") / "data")


@pytest.fixture
def data(whole, tmp_path):
    return Path(shutil.copytree(whole, tmp_path / "data"))


def by_video(path, kind):
    return {line.video: line for line in read_lines(path, kind)}


def test_nothing_of_a_film_is_left_and_nothing_of_others_changes(data, tmp_path):
    sought = Sought(data, VIDEOS[1])
    assert len(sought.windows) > 10_000
    assert len(sought.words) > 10
    assert {path.parent.name for path in sought.found_in(data)} == {
        "shots",
        "stories",
        "audio",
    }  # the search finds what is there
    inodes = {path: path.stat().st_ino for path in data.rglob("*.tar")}
    report = takedown(data, [VIDEOS[1]], reason="asked by its maker", today=lambda: "2026-11-20")
    assert sought.found_in(tmp_path) == []
    for said in (b"Said in movie 1", b"The title of 1", b"makers of 1", b"movie 1.mp4", b"twin-1"):
        assert not any(said in path.read_bytes() for path in data.rglob("*") if path.is_file())
    assert stored(data) == sought.kept
    touched = {data / name for name in (*report.rewritten, *report.deleted)}
    assert {path for path, inode in inodes.items() if not path.exists() or path.stat().st_ino != inode} == {
        path for path in touched if path.suffix == ".tar"
    }
    assert len(touched & inodes.keys()) < len(inodes)
    assert lint(data, decode=False).problems == []
    assert sorted(os.listdir(tmp_path)) == ["data"]
    removal = RemovalRecord(
        video=VIDEOS[1], removed="2026-11-20", reason="asked by its maker", matched="id", stories=2, shots=6, audio=2
    )
    assert list(read_lines(data / "removals.jsonl", RemovalRecord)) == list(report.removed) == [removal]
    assert report.bytes_written == sum((data / name).stat().st_size for name in report.rewritten)


def test_index_rows_say_where_the_samples_lie_now(data):
    takedown(data, VIDEOS[1:3])
    rows = [row for split in splits(data) for row in read_index(data, split).to_pylist()]
    assert {row["video"] for row in rows} == {VIDEOS[0], VIDEOS[3], VIDEOS[4]}
    for row in rows:
        blob = (data / row["shard"]).read_bytes()
        clip = blob[row["mp4_offset"] : row["mp4_offset"] + row["mp4_size"]]
        assert hashlib.sha256(clip).hexdigest() == row["sha256"]
        told = json.loads(blob[row["json_offset"] : row["json_offset"] + row["json_size"]])
        assert told["key"] == row["key"]


def test_rows_of_audio_clips_say_where_they_lie_now(tmp_path):
    data = write(tmp_path / "data", shard_size=60_000)
    before = {row["key"]: row for split in splits(data, "audio") for row in read_audio_index(data, split).to_pylist()}
    beside = ((row, after) for row, after in pairwise(before.values()) if row["shard"] == after["shard"])
    first = next(row for row, after in beside if row["video"] != after["video"])
    takedown(data, [first["video"]])
    rows = [row for split in splits(data, "audio") for row in read_audio_index(data, split).to_pylist()]
    assert [row["key"] for row in rows] == [key for key, row in before.items() if row["video"] != first["video"]]
    for row in rows:
        blob = (data / row["shard"]).read_bytes()
        members = {name: blob[row[f"{name}_offset"] :][: row[f"{name}_size"]] for name in ("mp4", "flac", "json")}
        assert hashlib.sha256(members["flac"]).hexdigest() == row["sha256"]
        assert hashlib.sha256(members["mp4"]).hexdigest() == row["mp4_sha256"]
        assert json.loads(members["json"])["key"] == row["key"]
        same = {name for name in row if not name.endswith("_offset")}
        assert {name: row[name] for name in same} == {name: before[row["key"]][name] for name in same}
    assert any(row["flac_offset"] != before[row["key"]]["flac_offset"] for row in rows)
    assert not any(first["video"].encode() in path.read_bytes() for path in (data / "index").iterdir())


def test_a_dataset_without_an_index_of_audio_clips_is_changed_like_any_other(data):
    manifest = read_manifest(data)
    for split in splits(data, "audio"):
        (data / index_name("audio", split)).unlink()
        del manifest["files"][index_name("audio", split)]
    pack.write_manifest(data, manifest | {"schema_version": "1.1"}, manifest["files"])
    takedown(data, [VIDEOS[1]])
    assert not list((data / "index").glob("audio-*"))
    assert lint(data, decode=False).problems == []


def test_the_lines_that_stay_tell_who_and_nothing_of_what(data):
    before = {name: (data / name).read_bytes().splitlines() for name in ("films.jsonl", "rights.jsonl", "dropped.jsonl")}
    takedown(data, [VIDEOS[2]], reason="no consent")
    rights, film = (
        by_video(data / "rights.jsonl", RightsRecord)[VIDEOS[2]],
        by_video(data / "films.jsonl", FilmRecord)[VIDEOS[2]],
    )
    digest = hashlib.sha256(b"2").hexdigest()
    assert rights == RightsRecord(
        video=VIDEOS[2], source="https://films.example/watch/2", uploader="Studio 0", sha256=digest, state="withdrawn"
    )
    assert film == FilmRecord(
        video=VIDEOS[2], film=VIDEOS[2], state="withdrawn", stage="takedown", reason="no consent", sha256=digest
    )
    for name, lines in before.items():
        after = (data / name).read_bytes().splitlines()
        others = [line for line in lines if b"movie 2" not in line and VIDEOS[2].encode() not in line]
        assert [line for line in after if VIDEOS[2].encode() not in line] == others
        assert len(after) == len(others) + (name != "dropped.jsonl")


def test_the_numbers_of_manifest_and_card_are_of_what_is_left(data):
    before = read_manifest(data)
    takedown(data, [VIDEOS[3]])
    after = read_manifest(data)
    assert before["dropped"] == {"collect": 5, "script": 5}
    assert after["dropped"] == {"collect": 4, "script": 4}
    rejected = {name: number * 4 // 5 for name, number in before["rejected_by"].items()}
    assert rejected
    assert after["rejected_by"] == rejected
    same = before.keys() - {"files", "dropped", "rejected_by"}
    assert {name: after[name] for name in same} == {name: before[name] for name in same}
    card = (data / "README.md").read_text()
    assert "The title of 2" in card
    assert "The title of 3" not in card
    assert "makers of 3" not in card


def test_a_second_run_changes_no_byte(data):
    takedown(data, [VIDEOS[1]], reason="first")
    before = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in data.rglob("*")}
    report = takedown(data, [VIDEOS[1]], reason="second")
    assert {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in data.rglob("*")} == before
    assert report.already == (VIDEOS[1],)
    assert report.removed == ()
    assert report.text() == f"already withdrawn: {VIDEOS[1]}"


def test_removals_only_grow(data):
    takedown(data, [VIDEOS[1]])
    first = (data / "removals.jsonl").read_bytes()
    report = takedown(data, [VIDEOS[1], VIDEOS[2]])
    assert (data / "removals.jsonl").read_bytes().startswith(first)
    assert [line.video for line in report.removed] == [VIDEOS[2]]
    assert report.already == (VIDEOS[1],)


@pytest.mark.parametrize(
    ("wanted", "match", "numbers"),
    [
        ("aqz-KE-bpKQ", "id", [0]),
        ("yt:aqz-KE-bpKQ", "id", [0]),
        ("https://www.youtube.com/watch?v=aqz-KE-bpKQ&t=4", "url", [0]),
        (ADDRESS.format(2), "url", [2]),
        (hashlib.sha256(b"3").hexdigest().upper(), "hash", [3]),
        (f"sha256:{hashlib.sha256(b'3').hexdigest()}", "hash", [3]),
        (" STUDIO  1 ", "uploader", [1, 3]),
    ],
)
def test_films_are_found_by_what_a_rights_holder_knows(data, wanted, match, numbers):
    report = takedown(data, [wanted], match=match)
    assert {line.video for line in report.removed} == {VIDEOS[number] for number in numbers}
    assert {line.matched for line in report.removed} == {match}
    assert lint(data, decode=False).problems == []


@pytest.mark.parametrize(
    ("wanted", "match", "says"),
    [
        ([VIDEOS[1], "film-00000000", "nobody"], "id", "no video has the id film-00000000, nobody; nothing was removed"),
        (["ab" * 32], "hash", "no video has the sha256 abab"),
        (["https://films.example/watch/9"], "url", "no video has the address https://films.example/watch/9"),
        (["Studio"], "uploader", "no video has the uploader Studio"),
        (["https://films.example/watch/1"], "id", "not an id; write yt:ID"),
        (["abc"], "hash", "not a sha256"),
        (["films.example"], "url", "not an address"),
        ([], "id", "no film is named"),
    ],
)
def test_what_is_unknown_is_one_line_and_nothing_changes(data, wanted, match, says):
    before = state(data)
    with pytest.raises(DataError) as error:
        takedown(data, wanted, match=match)
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert state(data) == before


def test_a_list_takes_out_what_of_it_is_there(data, tmp_path):
    (tmp_path / "list.txt").write_text(f"# asked\nyt:aqz-KE-bpKQ\nnobody\nuploader:studio 1\nsha256:{'0' * 64}\n")
    report = takedown(data, OptOut.load([tmp_path / "list.txt"]))
    assert {(line.video, line.matched) for line in report.removed} == {
        (VIDEOS[0], "id"),
        (VIDEOS[1], "uploader"),
        (VIDEOS[3], "uploader"),
    }
    (tmp_path / "list.txt").write_text("nobody\n")
    report = takedown(data, OptOut.load([tmp_path / "list.txt"]))
    assert (report.removed, report.already) == ((), ())
    assert "holds no film of the list" in report.text()


def test_films_that_were_never_kept_are_withdrawn_too(data):
    lines = [
        RightsRecord(video="lost-0a0a0a0a", title="A title", sha256="0a" * 32, state="dropped"),
        RightsRecord(video="gone-0b0b0b0b", source="https://films.example/gone", state="unavailable"),
    ]
    film = FilmRecord(video="lost-0a0a0a0a", film="A title.mp4", state="dropped", stage="screen", reason="subtitles say: hello")
    gone = FilmRecord(video="gone-0b0b0b0b", film="https://films.example/gone", state="unavailable", reason="HTTP 404")
    append(data / "rights.jsonl", *lines)
    append(data / "films.jsonl", film, gone)
    append(data / "dropped.jsonl", DroppedRecord(film=gone.film, stage="collect", reason="gone: 'hello'"))
    report = takedown(data, ["lost-0a0a0a0a", "gone-0b0b0b0b"])
    assert [(line.stories, line.shots, line.audio) for line in report.removed] == [(0, 0, 0)] * 2
    assert "hello" not in "".join((data / f"{name}.jsonl").read_text() for name in ("films", "rights", "dropped", "removals"))
    assert {by_video(data / "rights.jsonl", RightsRecord)[line.video].state for line in lines} == {"withdrawn"}
    assert not any(name.startswith(("shots", "stories", "audio", "index")) for name in report.rewritten)


def append(path, *records):
    with path.open("ab") as file:
        file.writelines(dump(record) + b"\n" for record in records)


def test_availability_of_a_withdrawn_film_is_nobodys_business(data):
    checks = [
        AvailabilityRecord(video=video, source="https://films.example", state="available", checked="2026-11-01")
        for video in VIDEOS[:5]
    ]
    append(data / "availability.jsonl", *checks)
    manifest = read_manifest(data)
    manifest["files"]["availability.jsonl"] = pack.file_hash(data / "availability.jsonl")
    pack.write_manifest(data, manifest, manifest["files"])
    takedown(data, [VIDEOS[4]])
    assert by_video(data / "availability.jsonl", AvailabilityRecord).keys() == set(VIDEOS[:4])
    assert lint(data, decode=False).problems == []


def test_a_split_goes_with_its_last_film_and_films_keep_their_splits(tmp_path):
    data = write(tmp_path / "data", videos=20, stories=1, shots=2, shares=pack.DEFAULT_SHARES)
    manifest = read_manifest(data)
    manifest["settings"]["shares"] = None  # as a build that asks for none
    pack.write_manifest(data, manifest, manifest["files"])
    held = {split: {row["video"] for row in read_index(data, split).to_pylist()} for split in splits(data)}
    small = min(held, key=lambda split: len(held[split]))
    assert len(held) > 1
    takedown(data, sorted(held[small]))
    assert {split: {row["video"] for row in read_index(data, split).to_pylist()} for split in splits(data)} == {
        split: videos for split, videos in held.items() if split != small
    }
    assert not list(data.glob(f"*/{small}*"))
    assert lint(data, decode=False).problems == []
    from curation.filter import filter_dataset

    filter_dataset(data, load_rules(), tmp_path / "filtered")
    assert stored(tmp_path / "filtered") == stored(data)


def test_the_last_film_can_go_and_the_ledgers_stay(data):
    report = takedown(data, VIDEOS[:5])
    assert report.empty
    assert "nothing is left" in report.text()
    names = ["README.md", "dropped.jsonl", "films.jsonl", "manifest.json", "removals.jsonl", "rights.jsonl"]
    assert sorted(os.listdir(data)) == names
    manifest = read_manifest(data)
    assert {name: pack.file_hash(data / name) for name in manifest["files"]} == manifest["files"]
    assert (manifest["dropped"], manifest["rejected_by"]) == ({}, {})
    assert OptOut.load([], data).match(id=VIDEOS[3])
    assert takedown(data, [VIDEOS[0]]).already == (VIDEOS[0],)
    assert lint(data).problems == []


def test_a_sheet_that_shows_the_film_elsewhere_is_not_left_behind(data, monkeypatch):
    from curation import takedown as module

    true = module.records_of

    def tampered(tar):
        for start, end, told in true(tar):
            if told["key"] == f"{VIDEOS[0]}-000":
                told["references"] = [{"shot": f"{VIDEOS[1]}-000-001"}]
            yield start, end, told

    monkeypatch.setattr(module, "records_of", tampered)
    before = state(data)
    with pytest.raises(DataError, match=f"shows a picture of {VIDEOS[1]}-000-001, which is to go"):
        takedown(data, [VIDEOS[1]])
    assert state(data) == before
    takedown(data, VIDEOS[:2])


@pytest.mark.parametrize(
    "name", ["rights.jsonl", "films.jsonl", "dropped.jsonl", "index/train.parquet", "stories/train-00000.tar"]
)
def test_a_damaged_dataset_is_one_line_and_stays_as_it_is(data, name):
    blob = (data / name).read_bytes()
    (data / name).write_bytes(blob[: len(blob) - len(blob) // 3])
    before = state(data)
    with pytest.raises(DataError, match=Path(name).name) as error:
        takedown(data, [VIDEOS[1]])
    assert "\n" not in str(error.value)
    assert state(data) == before


@pytest.mark.parametrize(
    "writer", [(os, "link"), (pack.Hashed, "write"), (pq.ParquetWriter, "write_batch"), (Path, "write_text"), (os, "fsync")]
)
def test_a_full_disk_is_one_line_and_the_old_dataset(data, monkeypatch, writer):
    before = state(data)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(*writer, full)
    video = read_index(data, "validation")["video"][0].as_py()  # a split of several films
    with pytest.raises(DataError, match="No space left on device") as error:
        takedown(data, [video])
    assert "\n" not in str(error.value)
    assert state(data) == before
    assert os.listdir(data.parent) == ["data"]


def test_load_dataset_reads_what_is_left(data, tmp_path):
    takedown(data, [VIDEOS[1]])
    wanted = {name.partition(".")[0] for config, name in stored(data) if config == "shots"}
    for streaming in (False, True):
        shown = set()
        for split in splits(data):
            rows = datasets.load_dataset(
                str(data),
                "shots",
                split=split,
                streaming=streaming,
                cache_dir=str(tmp_path / "hf"),
                features=features("shots", decode=False),
            )
            shown |= {row["__key__"] for row in rows}
        assert shown == wanted


def answer(cache, name, **said):
    key = hashlib.sha256(name.encode()).hexdigest()
    path = cache / key[:2] / f"{key}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    usage = {"prompt_tokens": 1, "completion_tokens": 1}
    head = {"format": "animeshooter-answer", "key": key, "model": "m", "what": "script", "usage": usage, "doubts": []}
    path.write_text(json.dumps({**head, "answer": said}))
    return path


class Opinion(Form):
    reason: str


def test_cached_answers_about_the_film_go_and_others_stay(data, cache):
    mine = [
        answer(cache, "script", storyline="another", shots=[{"narrative_caption": f"Narrated {VIDEOS[1]}-000-001 1."}]),
        answer(cache, "sound", sound_description=f"Somebody speaks in {VIDEOS[1]}-000.", visual_context="new words"),
    ]
    others = [
        answer(cache, "other", storyline=f"What happens in {VIDEOS[2]}-000, and why."),
        answer(cache, "shot", style="2D", talking=False),
        answer(cache, "verdict", reason="it is whole"),
    ]
    (cache / "usage.json").write_text("{}")
    report = takedown(data, [VIDEOS[1]])
    assert not any(path.exists() for path in mine)
    assert all(path.exists() for path in (*others, cache / "usage.json"))
    assert set(report.outside) == set(mine)
    assert report.left == ()


def test_answers_that_share_no_words_go_by_the_list_of_the_film(data, cache):
    with ChatServer(*[completion({"reason": "it is whole"})] * 3) as server:
        asker = asker_on(server, cache, lambda _: None)
        for video, what in ((VIDEOS[1], "first"), (VIDEOS[1], "second"), (VIDEOS[2], "third")):
            ABOUT.set(video)
            asker.ask(Question("opinion", [what], Opinion))
    ABOUT.set(None)
    assert len(list(cache.glob("??/*.json"))) == 3
    report = takedown(data, [VIDEOS[1]])
    assert len(report.outside) == 3
    assert len(list(cache.glob("??/*.json"))) == 1
    assert [path.stem for path in (cache / "videos").iterdir()] == [VIDEOS[2]]
    (cache / "videos" / f"{VIDEOS[2]}.txt").write_text("../../data/rights\n../usage\n")  # not what anyone of ours writes
    takedown(data, [VIDEOS[2]])
    assert (data / "rights.jsonl").exists()
    assert (cache / "usage.json").exists()


def fetched(folder, name, address, blob, **more):
    folder.mkdir(exist_ok=True)
    (folder / f"{name}.mp4").write_bytes(blob)
    source = Source(address=address, extractor="generic", id="1", retrieved="2026-01-01", **more)
    (folder / f"{name}.source.json").write_text(source.model_dump_json())
    return [folder / f"{name}.mp4", folder / f"{name}.source.json"]


def test_downloads_of_the_film_go_and_films_of_the_user_stay(data, tmp_path):
    folder, own = tmp_path / "data.films", tmp_path / "own"
    mine = fetched(folder, "site-1-0123456789", "https://films.example/watch/1", b"other bytes than when it was built")
    mine += fetched(folder, "movie 1", "https://mirror.example/1", b"1")  # the same bytes from elsewhere
    mine += fetched(folder, "twin-1", "https://mirror.example/twin", b"1")
    others = fetched(folder, "site-2-0123456789", "https://films.example/watch/2", b"2")
    others += fetched(own, "film", "https://elsewhere.example/1", b"1")
    (folder / "movie 1.mkv").write_bytes(b"by hand")
    mine.append(folder / "movie 1.mkv")
    (own / "movie 1.mp4").write_bytes(b"1")
    (folder / "twin-1x.mp4").write_bytes(b"1")
    others += [own / "movie 1.mp4", folder / "twin-1x.mp4"]
    report = takedown(data, [VIDEOS[1]])
    assert not any(path.exists() for path in mine)
    assert all(path.exists() for path in others)
    assert set(report.outside) == set(mine)
    takedown(data, [VIDEOS[2]], downloads=own)
    assert all(path.exists() for path in others[2:])


def test_the_report_page_goes_and_one_that_was_made_since_stays(data, tmp_path):
    page = tmp_path / "data-report.html"
    page.write_text("frames of all films")
    assert page in takedown(data, [VIDEOS[1]]).outside
    assert not page.exists()
    page.write_text("frames of what is left")
    takedown(data, [VIDEOS[1]])
    assert page.exists()


def test_what_cannot_be_deleted_beside_it_is_told_and_the_dataset_is_clean(data, tmp_path, monkeypatch):
    staged = tmp_path / "data.work" / VIDEOS[1]
    staged.mkdir(parents=True)
    true = shutil.rmtree

    def refuse(path, *rest, **more):
        if Path(path) == staged:
            raise PermissionError(errno.EACCES, "Permission denied")
        true(path, *rest, **more)

    monkeypatch.setattr(shutil, "rmtree", refuse)
    report = takedown(data, [VIDEOS[1]])
    assert report.left == (f"{staged}: Permission denied; delete it by hand, or mend that and run again",)
    assert f"NOT deleted: {staged}" in report.text()
    assert [line.video for line in report.removed] == [VIDEOS[1]]
    monkeypatch.undo()
    report = takedown(data, [VIDEOS[1]])
    assert report.outside == (staged,)
    assert not staged.exists()


def test_a_kill_at_any_moment_leaves_the_old_or_the_new_dataset_and_the_next_run_completes_it(tmp_path):
    write(tmp_path / "whole", videos=3, stories=1, shots=2, shard_size=8000, shares={"train": 1.0})
    tests = Path(__file__).parent.parent
    paths = {"PYTHONPATH": os.pathsep.join(map(str, (tests, tests.parent)))}
    command = [sys.executable, str(tests / "killed_takedown.py"), str(tmp_path)]
    told = subprocess.run(command, capture_output=True, text=True, env=os.environ | paths)
    assert told.returncode == 0, told.stderr
    result = json.loads(told.stdout.splitlines()[-1])
    assert result["found"] == []
    assert result["moments"] > 40
    assert min(result["states"].values()) > 0


# A real dataset, with everything that a build leaves beside it


def mirrored(index, width, height):
    return built.picture(index, width, height)[:, ::-1, ::-1]


def write_swimmers(folder):
    frames = built.SHOT_FRAMES * len(built.SHOTS)
    film = films.write_film(
        folder / "swimmers.mp4",
        size=(built.WIDTH, built.HEIGHT),
        fps=built.FPS,
        frames=frames,
        picture=mirrored,
        sound=films.tone(frames / built.FPS, hertz=620.0),
    )
    text = json.dumps(built.script() | {"title": "Two swimmers"})
    for old, new in (("Walk number", "Swim number"), ("Ovals <b>walk</b>", "Ovals <b>swim</b>"), ("walk", "swim")):
        text = text.replace(old, new)
    film.with_name("swimmers.script.json").write_text(text.replace("flat place", "wet place").replace(" oval", " swimmer"))
    return film


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    """A dataset of two films with its staged results, and a report page beside it."""
    folder = tmp_path_factory.mktemp("real")
    sources = folder / "sources"
    sources.mkdir()
    named = [built.write_walkers(sources), write_swimmers(sources)]
    build(named, folder / "data", BuildConfig(), work=folder / "data.work")
    write_report(folder / "data")
    return folder


def test_a_built_dataset_and_all_that_lies_beside_it(real, tmp_path):
    folder = Path(shutil.copytree(real, tmp_path / "real"))
    data, own = folder / "data", set((folder / "sources").iterdir())
    video = next(line.video for line in read_lines(data / "rights.jsonl", RightsRecord) if line.video.startswith("swim"))
    sought = Sought(data, video)
    before = sought.found_in(folder, own)
    assert {path.relative_to(folder).parts[0] for path in before} == {"data", "data.work", "data-report.html"}
    report = takedown(data, [video], reason="asked")
    assert sought.found_in(folder, own) == []
    assert not (folder / "data-report.html").exists()
    assert not any("swim" in path.read_text() and "Two swimmers" in path.read_text() for path in data.glob("*.*"))
    assert stored(data) == sought.kept
    assert set((folder / "sources").iterdir()) == own  # what the user gave stays the user's
    assert folder / "data.work" / video in report.outside
    assert lint(data).problems == []
    assert {record.video for record, _ in read_records(data, "stories")} == {
        line.video for line in read_lines(data / "rights.jsonl", RightsRecord) if line.state == "kept"
    }
    rows = datasets.load_dataset(
        str(data), "audio", split="train", cache_dir=str(tmp_path / "hf"), features=features("audio", decode=False)
    )
    assert len(rows) == sum(1 for tar in shards(data, "audio", "train") for _ in read_samples(tar, ()))


def test_a_rebuild_does_not_bring_it_back(real, tmp_path):
    folder = Path(shutil.copytree(real, tmp_path / "real"))
    data = folder / "data"
    video = next(line.video for line in read_lines(data / "rights.jsonl", RightsRecord) if line.video.startswith("swim"))
    takedown(data, [video], reason="asked")
    (folder / "sources" / "swimmers.mp4").rename(folder / "sources" / "another name.mp4")
    build([folder / "sources"], data, BuildConfig(), work=folder / "data.work")
    assert by_video(data / "rights.jsonl", RightsRecord)[video].state == "withdrawn"
    assert not any("swim" in str(path) for path in (folder / "data.work").rglob("*"))
    assert {record.video.partition("-")[0] for record, _ in read_records(data, "stories")} == {"walkers"}
    assert [line.video for line in read_lines(data / "removals.jsonl", RemovalRecord)] == [video]
    assert lint(data, decode=False).problems == []


def test_a_cache_of_features_forgets_the_film(data):
    from streams.feature_files import Entry, finish, folders, write_shard

    directory = data.with_name(f"{data.name}.features") / "text" / "abcdef"
    directory.mkdir(parents=True)
    (directory / "identity.json").write_text("{}")
    secrets = {video: f"what only {video} shows".encode() for video in VIDEOS[:2]}
    write_shard(directory, "a", [Entry(f"{video}-000-000", video, 0, b"s" * 16, None, blob) for video, blob in secrets.items()])
    finish(directory)
    assert folders(directory.parents[1]) == [directory]
    report = takedown(data, [VIDEOS[0]])
    held = b"".join(path.read_bytes() for path in directory.iterdir())
    assert secrets[VIDEOS[0]] not in held
    assert secrets[VIDEOS[1]] in held
    assert directory / "a.tar" in report.outside
