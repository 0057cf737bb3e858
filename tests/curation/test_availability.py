"""Asking sources over real HTTP on the loopback, with the real yt-dlp. No real site was asked, here or while this was written:
what sites answer is taken from the installed yt-dlp's source and from messages that its users have quoted."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given
from hypothesis import strategies as st
from media_server import Served
from packed import write_packed
from source_server import Fault, SourceServer

from animeshooter_dataset import AvailabilityRecord, DataError, RightsRecord, dump, read_lines, read_manifest
from curation.availability import STATES, availability_summary, gone_sources, read_availability, summarize
from curation.lint import lint
from curation.origin import Address
from curation.pack import file_hash, write_manifest
from curation.probe_source import SourceProbe, SourcesConfig, judge_words
from curation.source_list import key_of
from curation.verify_sources import verify_sources
from curation.ytdlp import Gate

ROOT = Path(__file__).parents[2]
QUICK = SourcesConfig(interval=0.0, backoff=0.0, timeout=5.0)
FILM = Served(b"film" * 1000)
GONE = Served(b"gone", "text/plain", 404)
PAGE = b"<!doctype html><html><body>Please enjoy our other offers</body></html>"
DAY = "2026-11-20"


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with SourceServer() as running:
        yield running


def ask(url, config=QUICK):
    with SourceProbe(config, Gate(config)) as probe:
        return probe.ask(Address.parse(url))


def listed(folder, addresses, name="sources.txt"):
    path = folder / name
    path.write_text("\n".join(addresses) + "\n")
    return path


def verify(where, **how):
    return verify_sources(where, config=how.pop("config", QUICK), today=how.pop("today", DAY), **how)


def states(report):
    """The states in a report by address."""
    return {record.source: record.state for record in read_availability(report.report).values()}


@pytest.mark.parametrize(
    ("served", "state", "reason"),
    [
        (FILM, "available", ""),
        (GONE, "gone", "HTTP 404 Not Found"),
        (Served(b"", "text/plain", 410), "gone", "HTTP 410 Gone"),
        (Served(b"", "text/plain", 401), "private", "HTTP 401 Unauthorized"),
        (Served(b"", "text/plain", 403), "private", "HTTP 403 Forbidden"),
        (Served(b"", "text/html", 403, {"cf-mitigated": "challenge"}), "unknown", "HTTP 403 Forbidden"),
        (Served(b"", "text/plain", 451), "blocked", "HTTP 451 Unavailable For Legal Reasons"),
        (Served(b"", "text/plain", 500), "unknown", "HTTP 500 Internal Server Error"),
        (Served(b"", "text/plain", 429), "unknown", "HTTP 429 Too Many Requests"),
        (Served(b""), "unknown", "the file is empty"),
        (Served(PAGE, "text/html"), "unknown", "a page came, and no film was found in it"),
        (Served(status=302, headers={"Location": "/a.mp4"}), "unknown", "HTTP 302"),
        (Served(status=302, headers={"Location": "file:///etc/passwd"}), "unknown", "may not be fetched"),
        (Fault(kind="reset"), "unknown", "reset|aborted|closed"),
        (Fault(kind="stall"), "unknown", "timed out"),
    ],
)
def test_what_a_server_answers_is_told_apart(server, served, state, reason):
    server.serve("/a.mp4", served)
    found = ask(f"{server.url}/a.mp4", SourcesConfig(interval=0.0, backoff=0.0, timeout=0.3, retries=1))
    assert found.state == state
    assert re.search(reason, found.reason) if reason else not found.reason
    assert found.answered != isinstance(served, Fault)


def test_a_film_is_asked_for_by_its_headers_alone(server):
    server.serve("/a.mp4", FILM)
    assert ask(f"{server.url}/a.mp4").state == "available"
    assert server.methods == [("HEAD", "/a.mp4")]


@pytest.mark.parametrize("refusal", [403, 405, 501])
def test_one_byte_is_asked_for_where_head_is_refused(server, refusal):
    server.head = refusal
    server.serve("/a.mp4", FILM)
    server.serve("/b.mp4", Served(b"", "text/plain", 403))
    assert ask(f"{server.url}/a.mp4").state == "available"
    assert [method for method, _ in server.methods] == ["HEAD", "GET"]
    assert server.asked[-1].range == "bytes=0-0"
    assert ask(f"{server.url}/b.mp4").state == "private"


def test_redirects_are_followed_and_a_busy_server_is_asked_again(server):
    server.serve("/moved.mp4", Served(status=301, headers={"Location": "/a.mp4"}))
    server.serve("/a.mp4", FILM)
    server.serve("/busy.mp4", Served(status=503), Served(status=503), FILM)
    assert ask(f"{server.url}/moved.mp4").state == "available"
    assert ask(f"{server.url}/busy.mp4").state == "available"


def test_a_page_is_read_for_the_film_it_shows(server):
    server.serve("/a.mp4", FILM)
    server.serve(
        "/page", Served(f"<html><title>A film</title><video src='{server.url}/a.mp4'></video></html>".encode(), "text/html")
    )
    server.serve("/page.mp4", *server.replies["/page"])
    server.serve("/typed", FILM)
    for path in ("/page", "/page.mp4", "/typed"):
        assert ask(server.url + path).state == "available", path
    assert ask(f"{server.url}/nothing").state == "gone"


def test_a_wait_that_a_server_asks_for_is_kept(server, monkeypatch):
    server.serve("/a.mp4", Served(status=429, headers={"Retry-After": "120"}), FILM)
    gate, waits = Gate(QUICK), []
    monkeypatch.setattr(gate, "sleep", waits.append)
    with SourceProbe(QUICK, gate) as probe:
        assert probe.ask(Address.parse(f"{server.url}/a.mp4")).state == "available"
    assert 110 < max(waits) <= 120


# What yt-dlp 2026.10.26 raises for YouTube (extractor/youtube/_video.py puts ``reason`` and ``subreason`` of the player's
# answer together) and, in the last lines, for other sites (extractor/common.py, tiktok.py, bilibili.py, twitter.py, vimeo.py).
WORDS = {
    "gone": [
        "Video unavailable",
        "Video unavailable. This video is unavailable",
        "Video unavailable. This video has been removed by the uploader",
        "Video unavailable. This video is no longer available because the uploader has closed their YouTube account.",
        "Video unavailable. This video is no longer available because the YouTube account associated with this video has been "
        "terminated.",
        "Video unavailable. This video is no longer available due to a copyright claim by Somebody",
        "Video unavailable. This video contains content from Somebody, who has blocked it on copyright grounds",
        "This video has been removed for violating YouTube's policy on hate speech.",
        "This video isn't available anymore",
        "Broadcast no longer exists",
    ],
    "private": [
        "Private video. Sign in if you've been granted access to this video.",
        "Video unavailable. This video is private",
        "This video is private. If the owner of this video has granted you access, please sign in.",
        "Join this channel to get access to members-only content like this video, and other exclusive perks.",
        "This video is available to this channel's members on level: Fan (or any higher level).",
        "Sign in to confirm your age. This video may be inappropriate for some users.",
        "This video is age-restricted and only available on YouTube.",
        "This video requires payment to watch.",
        "This video is DRM protected",
        "This video is only available for registered users",
        "This video is for premium members only",
        "You are not authorized to view this protected tweet",
    ],
    "blocked": [
        "Video unavailable. The uploader has not made this video available in your country",
        "Video unavailable. This video contains content from Somebody, who has blocked it in your country on copyright grounds",
        "This video is not available from your location due to geo restriction",
    ],
    "unknown": [
        "Sign in to confirm you’re not a bot.",
        "Sign in to confirm you're not a bot.",
        "Video unavailable. This content isn't available, try again later. The current session has been rate-limited by "
        "YouTube for up to an hour.",
        "All player responses are invalid. Your IP is likely being blocked by Youtube",
        "Video unavailable. YouTube is requiring a captcha challenge before playback",
        "Your IP address is blocked from accessing this post",
        "Request is rejected by server (352)",
        "You have exceeded the rate limit. Try again later",
        "Video unavailable. This video is not available",
        "Video unavailable. This content isn’t available.",
        "Playback on other websites has been disabled by the video owner",
        "This live event will begin in 2 hours.",
        "Premieres in 3 hours",
        "We're processing this video. Check back later.",
        "Failed to extract any player response",
    ],
}
TURNED_AWAY = WORDS["unknown"][:8]


@pytest.mark.parametrize(("state", "words"), [(state, words) for state in WORDS for words in WORDS[state]])
def test_what_sites_say_is_told_apart(state, words):
    found = judge_words(words)
    assert (found.state, found.reason, found.turned_away) == (state, words, words in TURNED_AWAY)


def watch_page(status, reason=None, more=None, **answer):
    shown = {"playerErrorMessageRenderer": {"reason": {"simpleText": reason}, "subreason": {"simpleText": more}}}
    player = {"playabilityStatus": {"status": status, "reason": reason, "errorScreen": shown if more else {}}, **answer}
    return Served(f"<html><script>var ytInitialPlayerResponse = {json.dumps(player)};</script></html>".encode(), "text/html")


DETAILS = {"videoDetails": {"videoId": "LvJRvwIDh0E", "title": "A film", "lengthSeconds": "286"}}


@pytest.mark.parametrize(
    ("page", "state", "reason"),
    [
        (watch_page("OK", **DETAILS), "available", ""),
        (watch_page("OK", **DETAILS, streamingData={"licenseInfos": [{"drmFamily": "WIDEVINE"}]}), "private", "DRM"),
        (watch_page("ERROR", "Video unavailable", "This video has been removed by the uploader"), "gone", "removed by the up"),
        (watch_page("LOGIN_REQUIRED", "Private video", "Sign in if you've been granted access"), "private", "^Private video"),
        (watch_page("UNPLAYABLE", "Video unavailable", "The uploader has not made this video available in your country"),
         "blocked", "in your country$"),
        (watch_page("LOGIN_REQUIRED", "Sign in to confirm you’re not a bot"), "unknown", "not a bot.$"),
    ],
)  # fmt: skip
def test_the_youtube_extractor_reads_the_watch_page_and_nothing_else(server, monkeypatch, page, state, reason):
    import yt_dlp

    send = yt_dlp.YoutubeDL.urlopen

    def to_loopback(self, request):
        request.url = request.url.replace("https://www.youtube.com", server.url)
        return send(self, request)

    monkeypatch.setattr(yt_dlp.YoutubeDL, "urlopen", to_loopback)
    server.serve("/watch", page)
    found = ask("yt:LvJRvwIDh0E")
    assert found.state == state
    assert re.search(reason, found.reason)
    assert [method for method, path in server.methods] == ["GET"]
    server.serve("/watch", Served(b"", "text/html", 429))
    server.serve("/youtubei/v1/player", Served(b"{}", "application/json", 429))
    refused = ask("yt:LvJRvwIDh0E")
    assert (refused.state, refused.reason, refused.turned_away) == ("unknown", "HTTP 429", True)
    server.serve("/watch", Fault())
    server.serve("/youtubei/v1/player", Fault())
    silent = ask("yt:LvJRvwIDh0E")
    assert (silent.state, silent.answered) == ("unknown", False)
    assert re.search("reset|aborted|closed", silent.reason)


def test_a_list_gives_a_dated_report_with_a_line_a_source(server, tmp_path):
    films = server.films(4, FILM)
    server.serve("/1.mp4", GONE)
    with SourceServer() as other:
        where = listed(tmp_path, ["# films", *films, films[0], *other.films(2, FILM), "C:/films/a.mp4", ""])
        seen = []
        report = verify(where, progress=lambda done, total, label: seen.append((done, total)))
        assert (server.most, other.most) == (1, 1)
    assert len(server.methods) == 4
    assert seen == [(number, 6) for number in range(1, 7)]
    assert report.report == tmp_path / "sources.availability.jsonl"
    records = list(read_availability(report.report).values())
    assert records == sorted(records, key=lambda record: record.video)
    assert {record.checked for record in records} == {DAY}
    assert states(report)[films[1]] == "gone"
    assert report.hosts[server.host] == {"available": 3, "gone": 1, "private": 0, "blocked": 0, "unknown": 0}
    assert (report.asked, report.left, report.complete) == (6, 0, True)
    assert report.text().startswith(f"{where}: 5 of 6 sources available (83.3 %) on {DAY}; 1 gone\n")
    assert "line 9: neither a YouTube id nor an address" in report.text()
    assert json.loads(json.dumps(report.as_dict()))["states"]["gone"] == 1
    assert (tmp_path / "sources.availability.summary.txt").read_text() == report.text() + "\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "sources.availability.jsonl",
        "sources.availability.summary.txt",
        "sources.txt",
    ]
    assert list(gone_sources(report.report)) == [Address.parse(films[1]).key]


def test_only_what_is_missing_unknown_or_old_is_asked_again(server, tmp_path):
    where = listed(tmp_path, server.films(3, FILM))
    server.serve("/2.mp4", Served(status=500))
    assert verify(where, limit=1).left == 2
    assert [path for _, path in server.methods] == ["/0.mp4"]
    verify(where)
    assert states(verify(where))[f"{server.url}/2.mp4"] == "unknown"
    assert [path for _, path in server.methods].count("/0.mp4") == 1
    server.serve("/2.mp4", FILM)
    server.methods.clear()
    assert verify(where, today="2026-12-20").summary.when == "between 2026-11-20 and 2026-12-20"
    assert [path for _, path in server.methods] == ["/2.mp4"]
    report = verify(where, today="2026-12-21")
    assert [path for _, path in server.methods] == ["/2.mp4", "/0.mp4", "/1.mp4"]
    assert report.summary.counts["available"] == 3


def test_an_answer_that_says_nothing_does_not_replace_one_that_did(server, tmp_path):
    where = listed(tmp_path, server.films(1, FILM))
    verify(where)
    server.serve("/0.mp4", Served(status=503))
    report = verify(where, today="2027-11-20")
    assert (report.summary.counts["available"], report.summary.last) == (1, DAY)


def test_a_killed_run_asks_only_for_the_rest(server, tmp_path):
    where = listed(tmp_path, server.films(6, FILM))
    order = [Address.parse(f"{server.url}/{number}.mp4") for number in range(6)]
    order = [address.url.removeprefix(server.url) for address in sorted(order, key=key_of)]
    server.serve(order[3], Fault(kind="stall"), FILM)
    code = (
        "import sys, pathlib; from curation.verify_sources import *; "
        "verify_sources(pathlib.Path(sys.argv[1]), config=SourcesConfig(interval=0.0), today=sys.argv[2])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(where), DAY], cwd=ROOT)
    results = tmp_path / "sources.availability.work" / "results.jsonl"
    assert server.stalled.wait(60)
    while results.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
    process.kill()
    process.wait()
    assert not (tmp_path / "sources.availability.jsonl").exists()
    with results.open("ab") as file:
        file.write(b'{"video":"half')
    server.closing.set()
    server.methods.clear()
    report = verify(where)
    assert [path for _, path in server.methods] == order[3:]
    assert (report.asked, report.summary.counts["available"]) == (3, 6)
    assert not results.parent.exists()


def test_a_host_that_refuses_in_a_row_is_left_alone_and_others_are_not(server, tmp_path):
    films = server.films(20, Served(status=429))
    with SourceServer() as other:
        report = verify(listed(tmp_path, films + other.films(8, FILM)), config=SourcesConfig(0.0, retries=0, backoff=0.0))
    assert len(server.methods) == 5
    assert dict(report.summary.counts) == {"available": 8, "gone": 0, "private": 0, "blocked": 0, "unknown": 5}
    assert (report.left, report.summary.unchecked, report.complete) == (15, 15, False)
    (line,) = report.stopped
    assert line.startswith(f"{server.host}: 5 sources in a row gave no answer about the film, the last with: HTTP 429")
    assert "15 left: the same command again" in report.text()


def test_a_host_that_asks_for_a_long_pause_is_asked_once(server, tmp_path):
    report = verify(listed(tmp_path, server.films(4, Served(status=429, headers={"Retry-After": "86400"}))))
    assert len(server.methods) == 1
    assert (report.left, report.summary.checked) == (4, 0)
    assert "asks to be left alone for 86" in report.stopped[0]
    assert "none of 4 sources was asked yet" in report.text()


def test_a_network_that_is_down_is_said_in_one_line_and_nothing_is_written(server, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    down = [f"http://127.0.0.1:{port}/{film}.mp4" for port in (1, 2, 3) for film in range(3)]
    where = listed(tmp_path, [*down, *server.films(1, FILM)])
    before = listed(tmp_path, server.films(1, FILM), "before.txt")
    verify(before)
    kept = (tmp_path / "before.availability.jsonl").read_bytes()
    with pytest.raises(DataError, match="the network seems to be down") as error:
        verify(listed(tmp_path, down, "down.txt"))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "down.availability.jsonl").exists()
    assert not (tmp_path / "down.availability.work").exists()
    server.serve("/0.mp4", Fault())
    with pytest.raises(DataError, match="network"):
        verify(listed(tmp_path, [*server.films(3, Fault())], "reset.txt"))
    assert (tmp_path / "before.availability.jsonl").read_bytes() == kept
    server.films(1, FILM)
    assert verify(where).summary.counts["unknown"] == 9  # hosts that are down while others answer


def test_the_last_few_of_many_may_be_down(server, tmp_path):
    where = listed(tmp_path, [*server.films(2, FILM), "http://127.0.0.1:1/a.mp4"])
    assert verify(where).summary.counts["unknown"] == 1
    assert verify(where).summary.counts["unknown"] == 1


def test_no_key_of_an_address_is_written_or_said(server, tmp_path):
    server.phrase = "Nothing \x1b[31mfor TOKEN\x08"
    server.serve("/a.mp4", Served(b"", "text/plain", 404))
    server.serve(
        "/page", Served(f"<html><video src='http://u:WORD@{server.host}/x?token=TOKEN'></html>".encode(), "text/html", 500)
    )
    addresses = [f"http://me:WORD@{server.host}/{path}?film=1&token=TOKEN" for path in ("a.mp4", "page")]
    seen = []
    report = verify(listed(tmp_path, addresses), progress=lambda done, total, label: seen.append(label), limit=1)
    assert report.left == 1
    report = verify(tmp_path / "sources.txt", progress=lambda done, total, label: seen.append(label))
    assert "token=TOKEN" in server.asked[0].path
    written = "".join(path.read_text() for path in tmp_path.rglob("*avail*")) + repr(report) + report.text() + repr(seen)
    assert f"{server.url}/a.mp4?film=1&token=…" in written
    assert [secret for secret in ("TOKEN", "WORD", "\x1b", "\\u001b") if secret in written] == []
    assert "HTTP 404 Nothing for …\\\\x08" in written


def test_an_address_whose_key_was_not_written_down_is_not_asked(server):
    assert ask(f"{server.url}/a.mp4?token=…").state == "unknown"
    assert server.asked == []


@pytest.fixture
def dataset(server, tmp_path):
    """Six videos: four of this server, one without an address, one withdrawn."""
    directory = write_packed(tmp_path / "data", films=6, stories=1, shots=2)
    films = server.films(6, FILM)
    server.serve("/1.mp4", GONE)
    lines = list(read_lines(directory / "rights.jsonl", RightsRecord))
    changes = [{"source": films[number]} for number in range(6)]
    changes[3] |= {"state": "unavailable", "sha256": None}
    changes[4] |= {"source": "our own studio"}
    changes[5] |= {"state": "withdrawn"}
    rights = directory / "rights.jsonl"
    rights.write_bytes(b"".join(dump(line.model_copy(update=change)) + b"\n" for line, change in zip(lines, changes)))
    manifest = read_manifest(directory)
    write_manifest(directory, manifest, {**manifest["files"], "rights.jsonl": file_hash(rights)})
    return directory


def contents(directory):
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def test_a_dataset_holds_its_report_and_its_card_and_manifest_know(dataset, server):
    before, problems = contents(dataset), lint(dataset, decode=False).problems
    report = verify(dataset)
    assert report.report == dataset / "availability.jsonl"
    assert sorted(path for _, path in server.methods) == ["/0.mp4", "/1.mp4", "/2.mp4", "/3.mp4"]
    after = contents(dataset)
    changed = {name for name in after if after[name] != before.get(name)}
    assert {"availability.jsonl", "manifest.json"} <= changed <= {"availability.jsonl", "manifest.json", "README.md"}
    assert before.keys() < after.keys()
    assert read_manifest(dataset)["files"]["availability.jsonl"] == file_hash(dataset / "availability.jsonl")
    assert read_manifest(dataset)["files"]["README.md"] == file_hash(dataset / "README.md")
    assert lint(dataset, decode=False).problems == problems
    summary = availability_summary(dataset)
    assert summary == report.summary
    assert summary.says() == f"3 of 4 sources available (75.0 %) on {DAY}; 1 gone; 1 video names no address"
    inode = os.stat(dataset).st_ino
    assert verify(dataset).asked == 0
    assert os.stat(dataset).st_ino == inode  # nothing new: nothing was written
    assert [path.name for path in dataset.parent.iterdir()] == ["data"]


def test_a_dataset_can_be_asked_about_without_being_changed(dataset, tmp_path):
    before = contents(dataset)
    verify(dataset, out=tmp_path / "report.jsonl")
    assert contents(dataset) == before
    assert len(read_availability(tmp_path / "report.jsonl")) == 4
    assert availability_summary(dataset).checked == 0
    for out in (dataset / "mine.jsonl", tmp_path):
        with pytest.raises(DataError, match="outside the dataset"):
            verify(dataset, out=out)


def test_a_dataset_that_somebody_else_writes_keeps_the_answers_for_later(dataset, server):
    work = dataset.with_name("data.work")
    work.mkdir()
    before = contents(dataset)
    with FileLock(work / "lock"), pytest.raises(DataError, match="another run"):
        verify(dataset)
    assert contents(dataset) == before
    assert verify(dataset).asked == 0
    assert len(server.methods) == 4
    assert len(read_availability(dataset)) == 4


def test_two_runs_do_not_ask_the_same(server, tmp_path):
    where = listed(tmp_path, server.films(1, FILM))
    (tmp_path / "sources.availability.work").mkdir()
    with FileLock(tmp_path / "sources.availability.work" / "lock"), pytest.raises(DataError, match="another run is asking"):
        verify(where)
    assert server.asked == []


def test_the_official_release_is_asked_by_the_keys_it_is_imported_under(server, tmp_path):
    ids = ["LvJRvwIDh0E", "1ioFskl2Xpg", "a film of ours"]
    story = {"start frame index": 0, "end frame index": 60, "story script": {"storyline": "x", "shots": []}}
    folder = tmp_path / "release"
    folder.mkdir()
    for number, name in enumerate(ids):
        told = {"video ID": name, "url": f"{server.url}/{number}.mp4", "fps": 30.0, "segments": [story]}
        (folder / f"{number}.json").write_text(json.dumps(told))
    (folder / "broken.json").write_text("{")
    server.films(3, FILM)
    report = verify(folder)
    assert report.report == tmp_path / "release.availability.jsonl"
    assert report.summary.counts["available"] == 3
    assert "broken.json" in report.text()
    keys = {key_of(Address.parse(f"yt:{name}")) for name in ids[:2]}
    assert keys < read_availability(report.report).keys()


@pytest.mark.parametrize(
    ("content", "says"),
    [(b"", "no source in it"), (b"a\0b" * 9, "not a text file"), (b"films/a.mp4\n", "no source"), (None, "cannot be read")],
)
def test_what_is_no_list_is_said_so_in_one_line(tmp_path, content, says):
    where = tmp_path / "list.txt"
    if content is not None:
        where.write_bytes(content)
    with pytest.raises(DataError, match=says) as error:
        verify(where)
    assert str(where) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("setting", [{"interval": -1.0}, {"interval": float("nan")}, {"hosts": 0}])
def test_a_setting_that_cannot_be_used_is_named(setting):
    with pytest.raises(DataError, match=f"^{next(iter(setting))} .* must be at least"):
        SourcesConfig(**setting)


def test_the_report_never_takes_the_place_of_another_file(server, tmp_path):
    where = listed(tmp_path, server.films(1, FILM))
    with pytest.raises(DataError, match="a file of its own"):
        verify(where, out=where)
    notes = tmp_path / "notes.txt"
    notes.write_text("my notes\n")
    with pytest.raises(DataError, match=r"notes\.txt: line 1: .*no report of verify-sources"):
        verify(where, out=notes)
    assert notes.read_text() == "my notes\n"
    assert server.asked == []
    with pytest.raises(DataError, match="not readable"):
        read_availability(tmp_path / "none.jsonl")


RECORDS = st.builds(
    AvailabilityRecord,
    video=st.from_regex(r"^[a-z0-9][a-z0-9_-]{0,20}$", fullmatch=True),
    source=st.text(max_size=20),
    state=st.sampled_from(list(STATES)),
    reason=st.text(max_size=20),
    checked=st.dates().map(str),
)


@given(st.lists(RECORDS, max_size=8))
def test_a_summary_counts_every_record_once(records):
    summary = summarize(records, unchecked=2)
    assert summary.checked == len(records)
    assert summary.counts["gone"] == sum(record.state == "gone" for record in records)
    assert not records or summary.first == min(record.checked for record in records)
    assert "\n" not in summary.says()
    share = summary.share
    assert ("(100.0 %)" in summary.says()) == (share == 1)


@given(st.text(max_size=60), st.text(max_size=30))
def test_every_address_has_a_key_that_a_record_takes(path, query):
    try:
        address = Address.parse(f"https://films.example/{path}?{query}")
    except DataError:
        return
    AvailabilityRecord(video=key_of(address), source=address.public, state="gone", checked=DAY)
