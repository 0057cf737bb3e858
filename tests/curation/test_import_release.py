import io
import json
import shutil

import built
import numpy as np
import pytest
import releases
from media_server import MediaServer, Served
from PIL import Image

from animeshooter_dataset import (
    DataError,
    DroppedRecord,
    FilmRecord,
    RightsRecord,
    dump,
    read_lines,
    read_manifest,
    read_records,
)
from curation.config import BuildConfig
from curation.import_release import import_release
from curation.lint import lint
from curation.pack import file_hashes
from curation.ytdlp import DownloadConfig

ID, LOST = "LvJRvwIDh0E", "aaaaaaaaaaa"
TOLD = [(0, 2), (2, 5), (5, 8), (8, 10), (10, 12), (12, 15)]
"""Whole seconds as a model tells them; the film cuts every 2.5 s."""
MASKED = 12
"""Frame, in the film's own rate, of the mask of Red; it lies in the first shot."""


def red_at(frame):
    """The true mask of Red in a frame of the walkers."""
    y, x = np.mgrid[0 : built.HEIGHT, 0 : built.WIDTH]
    row = built.SHOTS[frame // built.SHOT_FRAMES].index("Red")
    return ((x - 30 - 95 * row - 1.4 * (frame % built.SHOT_FRAMES)) / 22) ** 2 + ((y - built.HEIGHT * 0.55) / 34) ** 2 < 1


def story(number, first, rate=1, **change):
    """Three of the walkers' shots; the first one is told to be in no scene."""
    shots = [
        releases.make_shot(
            start - TOLD[first][0],
            end - TOLD[first][0],
            characters=built.SHOTS[first + place],
            scene=f"place {first + place}" if place else None,
            narrative=f"They go on for the {first + place}th time.",
        )
        for place, (start, end) in enumerate(TOLD[first : first + 3])
    ]
    edges = [built.SHOT_FRAMES * number for number in (first, first + 3)]
    return releases.make_segment(edges[0] * rate, edges[1] * rate, shots, number=number, **change)


def walkers(id=ID, rate=1, compressed=True, **change):
    sound = releases.make_sound(0, 5, characters=["Red"], scene="place 1")
    masks = {"Red": {MASKED * rate: red_at(MASKED), 63 * rate: red_at(63)}}
    stories = [story(1, 0, rate, sounds=[sound], masks=masks, compressed=compressed), story(2, 3, rate)]
    return releases.make_video(id, stories, fps=built.FPS * rate, **change)


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    path = built.write_walkers(tmp_path_factory.mktemp("film"), "film")
    path.with_name("film.script.json").unlink()
    return path


@pytest.fixture(scope="module")
def imported(tmp_path_factory, film):
    """A release of two videos, of which one can be had, as a dataset; and the folder it was made in."""
    folder = tmp_path_factory.mktemp("release")
    videos = [walkers(), walkers(LOST)]
    releases.write_release(folder / "main.zip", videos, audio=folder / "audio.zip", inside="dataset_anime_shooter/")
    (folder / "videos").mkdir()
    shutil.copy(film, folder / "videos" / f"Two walkers [{ID}].mp4")
    report = import_release(folder / "main.zip", folder / "out", audio=folder / "audio.zip", videos=folder / "videos")
    assert (report.films, report.stories, report.shots, report.audio) == (1, 2, 6, 1)
    return folder / "out"


def test_what_is_imported_passes_lint_and_is_marked_as_the_releases(imported):
    assert lint(imported).problems == []
    told = read_manifest(imported)["release"]
    assert told == {
        "name": "main.zip",
        "audio": "audio.zip",
        "videos": 2,
        "stories": 4,
        "shots": 12,
        "annotation_licence": "CC BY-NC 4.0",
    }
    for config in ("shots", "stories", "audio"):
        for record, _ in read_records(imported, config, ("json",)):
            assert (record.annotator.kind, record.annotation_licence, record.licence) == ("release", "CC BY-NC 4.0", None)


def test_shots_are_cut_where_the_film_cuts_and_keep_the_time_that_was_told(imported):
    shots = [record for record, _ in read_records(imported, "shots", ("json",))]
    assert [shot.start_frame for shot in shots] == [built.SHOT_FRAMES * number for number in range(6)]
    assert [(shot.annotated_start_time, shot.annotated_end_time) for shot in shots[:3]] == TOLD[:3]
    assert [shot.start_time for shot in shots] == pytest.approx([2.5 * number for number in range(6)])
    assert [shot.scores.cuts_inside for shot in shots] == [0] * 6
    assert [shot.scene for shot in shots[:3]] == [None, "place 1", "place 2"]
    assert [shot.characters for shot in shots] == [list(names) for names in built.SHOTS]


def test_reference_images_are_the_masks_to_the_pixel_and_never_of_the_shot_itself(imported):
    for record, members in read_records(imported, "stories", ("json", "png")):
        sheet = np.asarray(Image.open(io.BytesIO(members["png"])))
        for reference in record.references:
            x0, y0, x1, y1 = reference.box
            mask = red_at(reference.frame)
            rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
            true = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            drawn = sheet[y0:y1, x0:x1]
            assert np.array_equal(drawn[..., 3] > 0, true)
            assert np.abs(drawn[true][:, :3].mean(0) - built.WHO["Red"]).max() < 12
    sources = {shot.key: {image.shot for image in shot.references} for shot, _ in read_records(imported, "shots", ("json",))}
    assert all(key not in shown for key, shown in sources.items())
    assert sum(map(len, sources.values())) > 0


def test_a_video_that_is_missing_costs_its_own_rows_only(imported):
    films = {film.video: film for film in read_lines(imported / "films.jsonl", FilmRecord)}
    rights = {line.video: line for line in read_lines(imported / "rights.jsonl", RightsRecord)}
    lost = next(video for video in films if video.startswith("aaaaaaaaaaa-"))
    assert films[lost].state == rights[lost].state == "unavailable"
    assert rights[lost].source == f"https://www.youtube.com/watch?v={LOST}"
    assert "run again with --download" in films[lost].reason
    kept = next(film for film in films.values() if film.state == "kept")
    assert {item.check for item in kept.evidence} >= {"released cuts", "released length"}


def test_what_was_odd_is_told(imported):
    reasons = [line.reason for line in read_lines(imported / "dropped.jsonl", DroppedRecord) if line.stage == "release"]
    assert any("story 1" in reason and "no scene" in reason for reason in reasons)


@pytest.mark.parametrize(("rate", "compressed"), [(2, False), (3, True)])
def test_frames_of_another_rate_are_mapped_by_time(tmp_path, film, imported, rate, compressed):
    releases.write_release(tmp_path / "release", [walkers(rate=rate, compressed=compressed)], spelling=releases.DOCUMENTED)
    shutil.copy(film, tmp_path / f"{ID}.mp4")
    import_release(tmp_path / "release", tmp_path / "out", videos=tmp_path)
    same = ("start_frame", "end_frame", "annotated_start_time", "narrative_caption")
    shots = [[getattr(shot, name) for name in same] for shot, _ in read_records(tmp_path / "out", "shots", ("json",))]
    assert shots == [[getattr(shot, name) for name in same] for shot, _ in read_records(imported, "shots", ("json",))]
    frames = [image.frame for record, _ in read_records(tmp_path / "out", "stories", ("json",)) for image in record.references]
    assert sorted(frames) == [MASKED, 63]


def test_workers_and_a_second_run_change_no_byte(tmp_path, film):
    (tmp_path / "videos").mkdir()
    for id in ("bbbbbbbbbbb", "ccccccccccc"):
        target = tmp_path / "videos" / f"{id}.mp4"
        target.write_bytes(film.read_bytes() + b"\0" * (id == "ccccccccccc"))
    releases.write_release(tmp_path / "release", [walkers("bbbbbbbbbbb"), walkers("ccccccccccc")])
    one = import_release(tmp_path / "release", tmp_path / "one", videos=tmp_path / "videos", work=tmp_path / "work")
    import_release(tmp_path / "release", tmp_path / "two", videos=tmp_path / "videos", workers=2)
    assert one.films == 2
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "two")
    import_release(tmp_path / "release", tmp_path / "one", videos=tmp_path / "videos", work=tmp_path / "work")
    assert file_hashes(tmp_path / "one") == file_hashes(tmp_path / "two")


def test_splits_are_those_of_the_release_whatever_is_missing(tmp_path, film):
    ids = [f"video{number:06d}" for number in range(24)]
    releases.write_release(tmp_path / "release.zip", [walkers(id) for id in ids])
    (tmp_path / "videos").mkdir()
    for id in ids[:2]:
        (tmp_path / "videos" / f"{id}.mp4").write_bytes(film.read_bytes() + id.encode())
    few = BuildConfig(shares={"train": 0.5, "test": 0.5})
    import_release(tmp_path / "release.zip", tmp_path / "out", few, videos=tmp_path / "videos", work=tmp_path / "work")
    splits = {record.video: record.split for record, _ in read_records(tmp_path / "out", "stories", ("json",))}
    (tmp_path / "videos" / f"{ids[0]}.mp4").unlink()
    import_release(tmp_path / "release.zip", tmp_path / "out", few, videos=tmp_path / "videos", work=tmp_path / "work")
    left = {record.video: record.split for record, _ in read_records(tmp_path / "out", "stories", ("json",))}
    assert left.items() <= splits.items()
    assert (len(splits), len(left)) == (2, 1)
    states = [film.state for film in read_lines(tmp_path / "out" / "films.jsonl", FilmRecord)]
    assert (states.count("unavailable"), states.count("kept")) == (23, 1)


@pytest.mark.parametrize("name", [f"{ID}.mp4", f"Some title [{ID}].mkv", f"Some-title-{ID}.mp4", "sub/whatever.mp4"])
def test_a_file_is_found_by_any_usual_name(tmp_path, film, name):
    target = tmp_path / "videos" / name
    target.parent.mkdir(parents=True)
    shutil.copy(film, target)
    if "whatever" in name:
        source = {"address": f"https://youtu.be/{ID}", "extractor": "youtube", "id": "x", "retrieved": "2026-01-02"}
        target.with_name("whatever.source.json").write_text(json.dumps(source))
    releases.write_release(tmp_path / "release", [walkers()])
    assert import_release(tmp_path / "release", tmp_path / "out", videos=tmp_path / "videos").films == 1


def test_a_damaged_video_and_a_second_file_are_one_line_each(tmp_path, film):
    (tmp_path / "videos").mkdir()
    shutil.copy(film, tmp_path / "videos" / f"{ID}.mp4")
    shutil.copy(film, tmp_path / "videos" / f"{ID}.mkv")
    (tmp_path / "videos" / f"{LOST}.mp4").write_bytes(film.read_bytes()[:500])
    releases.write_release(tmp_path / "release", [walkers(), walkers(LOST)])
    report = import_release(tmp_path / "release", tmp_path / "out", videos=tmp_path / "videos")
    assert (report.films, report.stories) == (1, 2)
    reasons = [line.reason for line in read_lines(tmp_path / "out" / "dropped.jsonl", DroppedRecord)]
    assert sum("also named as video" in reason for reason in reasons) == 1
    assert sum(reason.startswith(f"{LOST}.mp4") for reason in reasons) == 1
    states = {film.film: film.state for film in read_lines(tmp_path / "out" / "films.jsonl", FilmRecord)}
    assert states[f"{LOST}.mp4"] == "unavailable"


def test_nothing_is_asked_for_that_is_opted_out_or_known_to_be_gone(tmp_path, film, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with MediaServer() as server:
        for name in ("one", "out", "gone"):
            server.serve(f"/{name}.mp4", Served(film.read_bytes() + name.encode()))
        videos = [walkers(name, url=f"{server.url}/{name}.mp4") for name in ("one", "out", "gone")]
        releases.write_release(tmp_path / "release", videos)
        (tmp_path / "list").write_text(f"{server.url}/out.mp4\n")
        key = next(entry.key for entry in releases_entries(tmp_path / "release") if entry.id == "gone")
        report = {"video": key, "source": f"{server.url}/gone.mp4", "state": "gone", "reason": "404", "checked": "2026-11-01"}
        (tmp_path / "seen.jsonl").write_text(json.dumps(report) + "\n")
        config = BuildConfig(download=DownloadConfig(interval=0.0, backoff=0.01, retries=1))
        told = import_release(
            tmp_path / "release",
            tmp_path / "data",
            config,
            download=True,
            opt_out=[tmp_path / "list"],
            availability=tmp_path / "seen.jsonl",
        )
        assert {asked.path for asked in server.asked} == {"/one.mp4"}
    assert told.films == 1
    rights = {line.video.rpartition("-")[0]: line for line in read_lines(tmp_path / "data" / "rights.jsonl", RightsRecord)}
    assert {name: line.state for name, line in rights.items()} == {"one": "kept", "out": "withdrawn", "gone": "unavailable"}
    assert rights["one"].source.endswith("/one.mp4")
    assert lint(tmp_path / "data", decode=False).problems == []


def releases_entries(path):
    from curation.release import open_release

    return open_release(path).entries


def test_what_was_withdrawn_does_not_come_back(tmp_path, film, imported):
    shutil.copytree(imported, tmp_path / "out")
    rights = list(read_lines(tmp_path / "out" / "rights.jsonl", RightsRecord))
    changed = [line.model_copy(update={"state": "withdrawn"}) if line.state == "kept" else line for line in rights]
    (tmp_path / "out" / "rights.jsonl").write_bytes(b"".join(dump(line) + b"\n" for line in changed))
    releases.write_release(tmp_path / "release", [walkers(), walkers("another")])
    (tmp_path / "videos").mkdir()
    shutil.copy(film, tmp_path / "videos" / f"{ID}.mp4")
    (tmp_path / "videos" / "another.mp4").write_bytes(film.read_bytes() + b"\0")
    assert import_release(tmp_path / "release", tmp_path / "out", videos=tmp_path / "videos").films == 1
    states = {line.video: line.state for line in read_lines(tmp_path / "out" / "rights.jsonl", RightsRecord)}
    assert sorted(states.values()) == ["kept", "withdrawn"]
    assert lint(tmp_path / "out", decode=False).problems == []


@pytest.mark.parametrize(
    ("how", "says"),
    [({}, "holds no videos; name --videos DIR"), ({"videos": "nowhere"}, "no folder"), ({"videos": "."}, "nothing was built")],
)
def test_what_cannot_work_is_one_line(tmp_path, how, says):
    releases.write_release(tmp_path / "release", [walkers()])
    how = {name: tmp_path / path for name, path in how.items()}
    with pytest.raises(DataError, match=says):
        import_release(tmp_path / "release", tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()
