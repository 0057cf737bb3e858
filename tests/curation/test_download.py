import errno
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import av
import films
import numpy as np
import pytest
from filelock import FileLock
from media_server import MediaServer, Served

from animeshooter_dataset import DataError
from curation.collect import collect, expand, read_film
from curation.download import FAILED, PARTIAL, Address, fetch
from curation.origin import Source, public_address
from curation.video import read_frames
from curation.ytdlp import DownloadConfig, Gate, LeftAlone

ROOT = Path(__file__).parents[2]
QUICK = DownloadConfig(interval=0.0, backoff=0.01, retries=2)
PAGE = b"<!doctype html><html><body>Please log in to see this film</body></html>"


@pytest.fixture(scope="module")
def film(tmp_path_factory):
    """The bytes of a film of about half a megabyte, which does not come in one piece."""
    noise = np.random.default_rng(0).integers(0, 255, (30, 96, 160, 3), dtype=np.uint8)
    return films.write_film(tmp_path_factory.mktemp("film") / "film.mp4", frames=list(noise)).read_bytes()


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with MediaServer() as running:
        yield running


def get(server, folder, *paths, config=QUICK, **how):
    found, failed = fetch([Address.parse(server.url + path) for path in paths], folder, config, **how)
    return list(found.values()), list(failed.values())


def failed_lines(folder):
    return [json.loads(line) for line in (folder / FAILED).read_text().splitlines()]


def test_a_film_comes_with_a_record_of_its_origin_and_is_never_asked_for_again(server, film, tmp_path):
    server.serve("/films/The Film.mp4", Served(film))
    address = f"{server.url}/films/The%20Film.mp4"
    paths, dropped = expand([address], tmp_path, QUICK)
    assert dropped == []
    assert paths[0].read_bytes() == film
    assert paths[0].name.startswith("generic-the-film-")
    source = read_film(paths[0]).source
    assert (source.address, source.extractor, source.title) == (address, "Generic", "The Film")
    asked = len(server.asked)
    assert expand([address], tmp_path, QUICK) == (paths, [])
    assert len(server.asked) == asked
    assert not list(tmp_path.glob("*.part"))
    assert [path.name for path in (tmp_path / PARTIAL).iterdir()] == ["lock"]


def test_a_broken_connection_is_taken_up_where_it_broke(server, film, tmp_path):
    server.serve("/a.mp4", Served(film), Served(film, drop_at=200_000), Served(film))
    paths, _ = get(server, tmp_path, "/a.mp4")
    assert paths[0].read_bytes() == film
    assert 0 < int(server.asked[-1].range.removeprefix("bytes=").removesuffix("-")) <= 200_000


def test_a_server_without_ranges_begins_anew(server, film, tmp_path):
    server.serve("/a.mp4", Served(film), Served(film, drop_at=200_000), Served(film, ranges=False))
    paths, _ = get(server, tmp_path, "/a.mp4")
    assert paths[0].read_bytes() == film


def test_a_killed_download_goes_on_where_it_was(server, film, tmp_path):
    server.serve("/a.mp4", Served(film, etag='"1"'), Served(film, stall_at=300_000, etag='"1"'), Served(film, etag='"1"'))
    code = "import sys, pathlib, curation.collect as c; c.expand([sys.argv[1]], pathlib.Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, f"{server.url}/a.mp4", str(tmp_path)]
    process = subprocess.Popen(command, cwd=ROOT)
    assert server.stalled.wait(60)
    while not (parts := list((tmp_path / PARTIAL).glob("*.part"))) or parts[0].stat().st_size < 100_000:
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not list(tmp_path.glob("*.mp4"))
    paths, failed = get(server, tmp_path, "/a.mp4")
    assert failed == []
    assert int(server.asked[-1].range.removeprefix("bytes=").removesuffix("-")) >= 100_000
    assert paths[0].read_bytes() == film


def test_a_download_killed_after_its_last_byte_is_not_fetched_again(server, film, tmp_path):
    server.serve("/a.mp4", Served(film, etag='"1"'))
    (tmp_path / PARTIAL).mkdir()
    key = Address.parse(f"{server.url}/a.mp4").key
    (tmp_path / PARTIAL / f"{key}.0.mp4.part").write_bytes(film)
    paths, failed = get(server, tmp_path, "/a.mp4")
    assert failed == []
    assert paths[0].read_bytes() == film
    assert [asked.range for asked in server.asked] == [None, f"bytes={len(film)}-", None]


def test_a_film_that_changes_on_the_server_is_not_pieced_together(server, film, tmp_path):
    other = bytes(film[:-40]) + bytes(40)
    server.serve("/a.mp4", Served(film), Served(film, drop_at=200_000, etag='"1"'), Served(other, etag='"2"'))
    paths, _ = get(server, tmp_path, "/a.mp4")
    assert paths[0].read_bytes() == other


@pytest.mark.parametrize(
    ("served", "says"),
    [
        (Served(b"gone", "text/plain", 404), "HTTP 404"),
        (Served(PAGE, "text/html", 403), "HTTP 403"),
        (Served(PAGE, "text/html"), "no film was found"),
        (Served(PAGE * 200, "video/mp4"), "no film: not a film that can be read"),
        (Served(b"", status=302, headers={"Location": "file:///etc/passwd"}), "may not be fetched"),
        (Served(b'<html><video src="file:///etc/passwd"></video></html>', "text/html"), "may not be fetched|no film"),
        (Served(bytes(3_000_000)), "larger than the limit"),
    ],
)
def test_what_fails_for_good_is_noted_and_left_alone_until_asked_for(server, tmp_path, served, says):
    server.serve("/a.mp4", served)
    config = DownloadConfig(interval=0.0, backoff=0.01, retries=1, max_bytes=2_000_000)
    paths, dropped = expand([f"{server.url}/a.mp4"], tmp_path, config)
    assert paths == []
    assert "\n" not in dropped[0].reason
    assert dropped[0].public()["film"] == f"{server.url}/a.mp4"
    assert [(line["kind"], line["attempts"]) for line in failed_lines(tmp_path)] == [("permanent", 1)]
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".mp4", ".part")]
    asked = len(server.asked)
    _, failures = get(server, tmp_path, "/a.mp4", config=config)
    assert failures[0].reason in dropped[0].reason
    assert len(server.asked) == asked
    _, failures = get(server, tmp_path, "/a.mp4", config=config, retry_failed=True)
    assert failures[0].attempts == 2
    assert len(server.asked) > asked
    assert re.search(says, failures[0].reason)


def test_what_may_pass_is_tried_again_in_this_run_and_in_the_next(server, film, tmp_path):
    server.serve("/soon.mp4", Served(PAGE, "text/html", 503), Served(PAGE, "text/html", 429), Served(film))
    server.serve("/later.mp4", Served(PAGE, "text/html", 503))
    paths, failed = get(server, tmp_path, "/soon.mp4", "/later.mp4")
    assert [path.read_bytes() for path in paths] == [film]
    assert [(line["kind"], line["attempts"]) for line in failed_lines(tmp_path)] == [("transient", 3)]
    server.serve("/later.mp4", Served(film))
    paths, failed = get(server, tmp_path, "/later.mp4")
    assert (len(paths), failed, failed_lines(tmp_path)) == (1, [], [])


def test_a_host_that_asks_for_a_long_pause_is_left_alone(server, tmp_path):
    server.serve("/a.mp4", Served(PAGE, "text/html", 429, {"Retry-After": "86400"}))
    paths, failed = get(server, tmp_path, "/a.mp4", "/b.mp4", "/c.mp4")
    assert paths == []
    assert all(failure.kind == "transient" and "left alone for 86" in failure.reason for failure in failed)
    assert [asked.path for asked in server.asked] == ["/a.mp4"]


def test_a_host_that_is_down_is_not_asked_for_every_film(server, tmp_path):
    for number in range(6):
        server.serve(f"/{number}.mp4", Served(PAGE, "text/html", 500))
    config = DownloadConfig(interval=0.0, backoff=0.0, retries=0, give_up_after=2)
    _, failed = get(server, tmp_path, *(f"/{number}.mp4" for number in range(6)), config=config)
    assert [asked.path for asked in server.asked] == ["/0.mp4", "/1.mp4"]
    assert [failure.attempts for failure in failed] == [1, 1, 0, 0, 0, 0]
    assert "2 films of 127.0.0.1" in failed[-1].reason


def test_one_film_at_a_time_from_a_host_and_several_hosts_at_a_time(server, film, tmp_path):
    for name in "ab":
        server.serve(f"/{name}.mp4", Served(film))
    server.serve("/slow.mp4", Served(film), Served(film, stall_at=1000), Served(film))
    with MediaServer() as other:
        for name in "cd":
            other.serve(f"/{name}.mp4", Served(film))
        addresses = [f"{server.url}/slow.mp4", *(f"{server.url}/{name}.mp4" for name in "ab")]
        addresses += [f"{other.url}/{name}.mp4" for name in "cd"]
        order = []

        def progress(done, total, label):
            order.append(label[-5])
            if done == 2:  # the other host is through while this one keeps us waiting
                server.closing.set()

        found, _ = fetch([Address.parse(address) for address in addresses], tmp_path, QUICK, progress=progress)
        assert len(found) == 5
        assert order == ["c", "d", "w", "a", "b"]
        assert {asked.together for asked in server.asked + other.asked} == {1}


def test_requests_to_a_host_keep_their_distance(monkeypatch):
    gate, waits = Gate(DownloadConfig(interval=100.0, patience=1000)), []
    monkeypatch.setattr(gate, "sleep", waits.append)
    for url in ("http://a/1", "http://a/2", "http://b/1", "http://a/3"):
        gate.wait(url)
    assert waits[0] == waits[2] == 0
    assert 99 < waits[1] <= 125
    assert 199 < waits[3] <= 250
    gate.hold("http://b/9", 2000)
    with pytest.raises(LeftAlone, match="left alone"):
        gate.wait("http://b/2")


def test_no_name_and_no_key_of_the_network_reaches_the_disk(server, film, tmp_path):
    evil = {"Content-Disposition": 'attachment; filename="../../evil.sh"', "Set-Cookie": "sid=COOKIE"}
    server.serve("/get", Served(film, headers=evil))
    server.serve("/no", Served(b"", status=401))
    folder = tmp_path / "downloads"
    with_keys = [f"http://me:WORD@{server.host}/{path}?film=1&token=TOKEN" for path in ("get", "no")]
    paths, dropped = expand(with_keys, folder, QUICK)
    assert [path.name[:12] for path in paths] == ["generic-get-"]
    assert [path.name for path in tmp_path.iterdir()] == ["downloads"]
    written = "".join(path.read_text(errors="replace") for path in folder.rglob("*json*")) + repr(dropped)
    assert f"{server.url}/get?film=1" in written
    assert [secret for secret in ("TOKEN", "WORD", "COOKIE") if secret in written] == []


def test_a_page_that_shows_a_film_gives_it_and_its_title_as_one_line(server, film, tmp_path):
    page = f"<html><title>A\x1b[31m film\n\u2028here\u202e</title><video src='{server.url}/in.mp4'></video></html>"
    server.serve("/page", Served(page.encode(), "text/html; charset=utf-8"))
    server.serve("/in.mp4", Served(film))
    paths, _ = get(server, tmp_path, "/page")
    title = read_film(paths[0]).source.title
    assert title.startswith("A")
    assert title.isprintable()


def one_stream(path, kind, **film):
    """The bytes of a file with the picture or the sound of a film alone."""
    whole = films.write_film(path.with_suffix(".both.mp4"), frames=24, sound=films.clicks(1, [0.5]), **film)
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        stream = source.streams.best(kind)
        place = target.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = place
                target.mux(packet)
    return path.read_bytes()


def test_picture_and_sound_kept_apart_become_one_film_of_the_wanted_height(server, tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")  # no ffmpeg program
    kinds = ""
    for height in (96, 192, 384):
        server.serve(f"/{height}.mp4", Served(one_stream(tmp_path / f"{height}.mp4", "video", size=(640, height))))
        kinds += f'<Representation id="{height}" bandwidth="{height}" width="640" height="{height}" codecs="avc1.42c00a">'
        kinds += f"<BaseURL>{height}.mp4</BaseURL></Representation>"
    server.serve("/sound.m4a", Served(one_stream(tmp_path / "sound.m4a", "audio"), "audio/mp4"))
    manifest = (
        '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" mediaPresentationDuration="PT1S">'
        f'<Period><AdaptationSet mimeType="video/mp4">{kinds}</AdaptationSet><AdaptationSet mimeType="audio/mp4">'
        '<Representation id="a" bandwidth="9" codecs="mp4a.40.2"><BaseURL>sound.m4a</BaseURL></Representation>'
        "</AdaptationSet></Period></MPD>"
    )
    server.serve("/film.mpd", Served(manifest.encode(), "application/dash+xml"))
    config = DownloadConfig(interval=0.0, max_height=200)
    (path,), _ = get(server, tmp_path / "downloads", "/film.mpd", config=config)
    info = read_film(path).info
    assert (info.height, info.has_audio, info.n_frames) == (192, True, 24)
    assert [films.read_number(frame.image) for frame in read_frames(path)] == list(range(24))
    assert [asked.path for asked in server.asked] == ["/film.mpd", "/192.mp4", "/sound.m4a"]
    _, failed = get(server, tmp_path / "short", "/film.mpd", config=DownloadConfig(interval=0.0, max_seconds=0.5))
    assert "lasts 1 s, longer than the limit of 0.5 s" in failed[0].reason


def test_a_half_written_line_of_the_failed_list_counts_as_not_written(server, film, tmp_path):
    server.serve("/a.mp4", Served(film))
    (tmp_path / FAILED).write_text('{"key":"0123456789","address":"http://x/y","reason":"z","ki')
    paths, _ = get(server, tmp_path, "/a.mp4")
    assert len(paths) == 1
    assert failed_lines(tmp_path) == []


def test_two_processes_do_not_fetch_into_one_folder(tmp_path):
    (tmp_path / PARTIAL).mkdir()
    with FileLock(tmp_path / PARTIAL / "lock"), pytest.raises(DataError, match="another process is downloading"):
        fetch([Address.parse("http://127.0.0.1:9/a.mp4")], tmp_path, QUICK)


def test_a_full_disk_ends_the_run_in_one_line(server, film, tmp_path, monkeypatch):
    server.serve("/a.mp4", Served(film))

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("curation.ytdlp.os.replace", full)
    with pytest.raises(DataError, match=r"cannot write \(No space left on device\); make room") as error:
        get(server, tmp_path, "/a.mp4")
    assert "\n" not in str(error.value)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("download")]


def test_addresses_need_a_folder_and_their_absence_needs_no_network(tmp_path):
    with pytest.raises(DataError, match="no folder for downloads"):
        expand(["http://127.0.0.1:9/a.mp4"])
    assert fetch([], tmp_path / "never made", QUICK) == ({}, {})
    assert not (tmp_path / "never made").exists()


@pytest.mark.parametrize(
    "text",
    [
        "https://www.youtube.com/watch?v=LvJRvwIDh0E",
        "https://youtu.be/LvJRvwIDh0E?t=12",
        "http://m.youtube.com/watch?list=PL1&v=LvJRvwIDh0E",
        "https://www.youtube.com/shorts/LvJRvwIDh0E",
    ],
)
def test_a_youtube_film_is_one_film_however_it_is_written(text):
    assert Address.parse(text) == Address.parse("yt:LvJRvwIDh0E")
    assert Address.parse(text).key != Address.parse("yt:lvjrvwidh0e").key


@pytest.mark.parametrize("text", ["yt:short", "ftp://host/film.mp4", "file:///etc/passwd", "http://", "https://[bad/x"])
def test_what_is_no_address_is_said_so_in_one_line(text, tmp_path):
    paths, dropped = expand([text], tmp_path)
    assert paths == []
    assert dropped[0].reason.startswith(text)


def test_signed_addresses_name_the_same_film_whatever_their_signature():
    one, two = (Address.parse(f"https://host/a.mp4?X-Amz-Signature={sign}&X-Amz-Date=1&v=3") for sign in ("abc", "def"))
    assert one.key == two.key
    assert one.public == "https://host/a.mp4?X-Amz-Signature=…&X-Amz-Date=1&v=3"
    assert Address.parse("https://host/a.mp4?v=4").key != one.key
    assert public_address("https://u:p@host/a\nb?api_key=1#part") == "https://host/ab?api_key=…"


def test_a_record_of_origin_that_cannot_be_read_is_named(server, film, tmp_path):
    server.serve("/a.mp4", Served(film))
    (path,), _ = get(server, tmp_path, "/a.mp4")
    record = path.with_suffix(".source.json")
    assert Source.model_validate_json(record.read_bytes()).id == "a"
    record.write_text('{"address": 3}')
    _, dropped = collect([path])
    assert record.name in dropped[0].reason
    assert "mend the record" in dropped[0].reason
