import base64
import io
import json
import re
import tarfile
from html.parser import HTMLParser

import av
import numpy as np
import pytest
from packed import repack, write_packed
from PIL import Image

from animeshooter_dataset import DataError, ShotRecord, read_samples
from curation import report
from curation.report import Evenly, write_report

HOSTILE = "</style></p><script>alert(1)</script><img src=http://evil.example/x.png> walk"


def rewrite(tar, change):
    """Pass every (name, blob) of a tar through ``change``, which gives the pairs to store instead."""
    with tarfile.open(tar) as archive:
        entries = [(entry.name, archive.extractfile(entry).read()) for entry in archive]
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, blob in (pair for entry in entries for pair in change(*entry)):
            entry = tarfile.TarInfo(name)
            entry.size = len(blob)
            archive.addfile(entry, io.BytesIO(blob))


def change_story(directory, change):
    """Change the story's record and storyboard: ``change(record, board)`` works in place."""
    tar = directory / "stories" / "train-00000.tar"
    ((_, members),) = read_samples(tar)
    record, board = json.loads(members["json"]), Image.open(io.BytesIO(members["jpg"])).convert("RGB")
    change(record, board)
    picture = io.BytesIO()
    board.save(picture, "JPEG", quality=95)
    new = {"json": json.dumps(record).encode(), "jpg": picture.getvalue()}
    rewrite(tar, lambda name, blob: [(name, new.get(name.rpartition(".")[2], blob))])


class Page(HTMLParser):
    """What a browser would see of a page: tags, addresses, and the text of every suspicious shot in order."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.addresses, self.text, self.inside, self.cards = [], [], "", [], []
        self.source = path.read_text(encoding="utf-8")
        worst = self.source.partition('id="worst"')[2].partition('id="stories"')[0]
        self.cards = worst.split("<article")[1:]
        self.feed(self.source)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [(tag, value) for name, value in attrs if name in ("src", "href", "srcset", "poster", "data")]

    def handle_data(self, data):
        self.text += data


def page_of(directory, tmp_path):
    return Page(write_report(directory, tmp_path / "page.html"))


def test_the_page_lies_beside_the_dataset_and_leaves_it_alone(copy):
    before = sorted(path for path in copy.rglob("*"))
    page = write_report(copy)
    assert page == copy.parent.resolve() / "animeshooter-report.html"
    assert sorted(path for path in copy.rglob("*")) == before
    assert sorted(path.name for path in copy.parent.iterdir()) == ["animeshooter", "animeshooter-report.html"]


def test_captions_and_numbers_are_on_the_page(walkers, tmp_path):
    page = page_of(walkers, tmp_path)
    ((_, members),) = read_samples(walkers / "stories" / "train-00000.tar", ("json",))
    shots = json.loads(members["json"])["shots"]
    assert len(shots) > 3
    for shot in shots:
        assert shot["narrative_caption"] in page.text
        assert shot["descriptive_caption"] in page.text
    assert "Two ovals walk." in page.text
    assert "15.00 here" in page.text
    assert "3.85 the paper's" in page.text
    assert "audio clip at N s is N s long" in page.text


def test_the_page_loads_nothing_from_elsewhere(copy, tmp_path):
    change_story(copy, lambda story, _: story.update(storyline=HOSTILE))
    page = page_of(copy, tmp_path)
    assert len(page.addresses) > 6
    for tag, address in page.addresses:
        assert address.startswith("#" if tag == "a" else "data:"), address[:80]
    styles = re.findall(r"url\((.{12})", page.source)
    assert styles
    assert all(style.startswith('"data:image') for style in styles)
    assert not {"link", "script", "iframe", "object", "embed"} & set(page.tags)
    assert "default-src 'none'" in page.source


def test_hostile_text_of_a_film_is_shown_as_text(copy, tmp_path):
    plain = page_of(copy, tmp_path).tags

    def hostile(story, _):
        story["title"] = story["licence"] = story["characters"][0]["appearance"] = HOSTILE
        story["shots"][0]["narrative_caption"] = story["shots"][0]["descriptive_caption"] = HOSTILE

    change_story(copy, hostile)
    (copy / "dropped.jsonl").write_text(json.dumps({"film": HOSTILE, "stage": "audio", "reason": HOSTILE}) + "\n")
    film = json.loads((copy / "films.jsonl").read_text())
    evidence = [{"check": HOSTILE, "passed": False, "detail": HOSTILE}]
    (copy / "films.jsonl").write_text(json.dumps(film | {"film": HOSTILE, "reason": HOSTILE, "evidence": evidence}) + "\n")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["rules"][0] |= {"why": HOSTILE}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    rights = json.loads((copy / "rights.jsonl").read_text())
    (copy / "rights.jsonl").write_text(json.dumps(rights | {"title": HOSTILE, "source": "javascript:alert(1)"}) + "\n")
    page = page_of(copy, tmp_path)
    assert page.text.count(HOSTILE) >= 12
    assert re.search(r"Ovals <b>walk</b> for the \dth time\.", page.text)
    assert page.tags.count("img") <= plain.count("img")  # fewer suspicious shots: the caption has more words now
    assert "script" not in page.tags


def test_the_same_dataset_gives_the_same_bytes(walkers, copy, tmp_path):
    first, second = write_report(walkers, tmp_path / "first.html"), write_report(copy, tmp_path / "second.html")
    assert first.read_bytes() == second.read_bytes()


def test_the_worst_shot_stands_first_with_its_reasons(copy, tmp_path):
    def spoil(story, _):
        last = story["shots"][-1]
        last |= {"descriptive_caption": "  ", "annotated_start_time": last["start_time"] - 2, "characters": []}
        last["possible_cuts"] = [last["start_frame"] + 3]
        story["shots"][2]["descriptive_caption"] = story["shots"][1]["descriptive_caption"].upper()

    change_story(copy, spoil)
    page = page_of(copy, tmp_path)
    assert "no caption: descriptive" in page.cards[0]
    assert re.search(r"start annotated at [\d.]+ s, cut at [\d.]+ s", page.cards[0])
    assert "possible cut: at frame " in page.cards[0]
    (repeated,) = [card for card in page.cards if "repeated caption" in card]
    assert re.search(r"-002, [\d.]+ s<", repeated)
    assert "descriptive, as shot 2" in repeated


def reasons(directory, tmp_path):
    """The reasons on the page of each suspicious shot, by the end of its key."""
    cards = page_of(directory, tmp_path).cards
    return {re.search(r"(\d{3}-\d{3}), ", card).group(1): card for card in cards}


def test_shots_with_odd_scores_are_found(tmp_path):
    odd = {
        "film00000-000-001": {"black_frames": 0.97, "contrast": 0.2, "motion": None},
        "film00000-000-002": {"cut_confidence": 0.31},
        "film00000-001-000": {"motion": 2.25},
        "film00000-001-003": {"text_cover": 0.123},
    }
    found = reasons(write_packed(tmp_path / "animeshooter", films=1, scores=odd), tmp_path)
    expected = {
        "000-001": ("black: 0.97", "one colour: 0.2", "rejected: black (0.97)", "rejected: flat (0.2)"),
        "000-002": ("weak cut: 0.31",),
        "001-000": ("very fast: 2.25",),
        "001-003": ("rejected: text (0.123)",),
    }
    for key, texts in expected.items():
        for text in texts:
            assert f">{text}<" in found[key]
    names = ("black", "one colour", "weak cut", "very fast", "rejected", "clipped sound")
    for key in found.keys() - expected.keys():
        assert not any(f">{name}: " in found[key] for name in names)


def test_short_long_silent_and_unreferenced_shots_are_found(tmp_path):
    def change(record):
        if isinstance(record, ShotRecord):
            return record.model_copy(update={"has_audio": record.position != 2})
        times = [(0, 0.4), (0.4, 30), (30, 32), (32, 34)]
        shots = [
            shot.model_copy(update={"start_time": float(start), "end_time": float(end)})
            for shot, (start, end) in zip(record.shots, times)
        ]
        return record.model_copy(update={"shots": shots, "end_time": 34.0})

    packed = write_packed(tmp_path / "packed", films=1, stories=1)
    found = reasons(repack(packed, tmp_path / "changed", change), tmp_path)
    assert "very short: 0.40 s" in found["000-000"]
    assert "very long: 29.6 s" in found["000-001"]
    assert "no sound" in found["000-002"]
    assert all("no reference: Fox" in card for card in found.values())
    assert not any("no sound" in found[key] for key in found.keys() - {"000-002"})


def test_a_silent_film_is_not_suspicious(tmp_path):
    def silent(record):
        return record.model_copy(update={"has_audio": False}) if isinstance(record, ShotRecord) else record

    packed = write_packed(tmp_path / "packed", films=1)
    assert not any("no sound" in card for card in reasons(repack(packed, tmp_path / "silent", silent), tmp_path).values())


def test_the_picture_of_a_suspicious_shot_is_its_own(tmp_path):
    odd = {"film00001-001-002": {"black_frames": 1.0}}
    packed = write_packed(tmp_path / "animeshooter", scores=odd)
    card = page_of(packed, tmp_path).cards[0]
    assert "film00001-001-002, " in card
    shown = Image.open(io.BytesIO(base64.b64decode(re.search(r"base64,([^\"]+)", card).group(1))))
    ((_, members),) = read_samples(packed / "stories" / "train-00000.tar", ("jpg",), {"film00001-001"})
    tile = Image.open(io.BytesIO(members["jpg"])).crop((128, 0, 192, 36))
    assert np.abs(np.asarray(shown, int) - np.asarray(tile, int)).mean() < 3


def test_rules_and_films_are_on_the_page(tmp_path):
    odd = {"film00000-000-001": {"text_cover": 0.3}, "film00001-000-000": {"text_cover": 0.3, "black_frames": 1.0}}
    page = page_of(write_packed(tmp_path / "animeshooter", scores=odd), tmp_path)
    rules = page.source.partition('id="rules"')[2].partition("</table>")[0]
    row = re.search(r"<b>text</b>.*?</tr>", rules).group(0)
    assert re.findall(r'class="n">([\d.]+)<', row) == ["2", "4.0", "2", "1", "2.0"]
    assert "text_cover at most 0.01" in row
    assert "Together: text and black 1." in page.text
    for text in ("unavailable: 1", "twice: 1", "unreadable: 1", "subtitles: 1", "length: 1", "text (alone 1): 2"):
        assert text in page.text
    films = page.source.partition('id="films"')[2]
    assert films.index("subs.mp4") < films.index("film00000.mp4")
    assert "0.41 (limit 0.2), at the bottom, &lt;b&gt;for 41 %&lt;/b&gt;" in films
    assert page.text.count("rejected: text") >= 2


def test_scores_are_drawn_with_the_limits_of_rules(tmp_path):
    page = page_of(write_packed(tmp_path / "animeshooter"), tmp_path)
    scores = page.source.partition('id="scores"')[2].partition('id="worst"')[0]
    charts = {re.search(r"<h3>([^<]+)", card).group(1): card for card in scores.split('class="card pad"')[1:]}
    assert "text: at most 0.01" in charts["share under text"]
    assert "a rule&#39;s limit 0.01" in charts["share under text"]
    assert 'stroke-dasharray="1.5' in charts["share under text"]
    assert "stroke-dasharray" not in charts["brightness, of 255"]
    assert "aesthetic score" not in charts


def test_the_page_can_be_used_without_seeing_it(walkers, tmp_path):
    page = page_of(walkers, tmp_path)
    for tag in re.findall(r"<(?:img|audio|svg)[^>]*>", page.source):
        assert "alt=" in tag or "aria-label=" in tag
    for role in re.findall(r'<[^>]*role="(?:img|region)"[^>]*>', page.source):
        assert "aria-label=" in role
    targets = [address for tag, address in page.addresses if tag == "a"]
    assert len(targets) > 6
    assert all(f'id="{address[1:]}"' in page.source for address in targets)
    assert '<html lang="en">' in page.source


def test_the_sound_on_the_page_plays(walkers, tmp_path):
    (sound,) = [address for tag, address in page_of(walkers, tmp_path).addresses if tag == "audio"]
    with av.open(io.BytesIO(base64.b64decode(sound.partition("base64,")[2]))) as container:
        samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
        rate = container.streams.audio[0].rate
    assert len(samples) / rate == pytest.approx(4.0, abs=0.2)
    assert np.abs(samples).max() > 0.05


def test_a_large_dataset_is_capped_and_the_page_says_so(tmp_path, monkeypatch):
    odd = {f"film{film:05d}-000-001": {"text_cover": 0.5} for film in range(9)}
    packed = write_packed(tmp_path / "animeshooter", films=9, stories=1, scores=odd)
    for name, most in {"STORIES_SHOWN": 3, "WORST_SHOWN": 7, "ALIKE_SHOWN": 4}.items():
        monkeypatch.setattr(report, name, most)
    page = page_of(packed, tmp_path)
    assert "3 of 9 stories" in page.text
    assert page.tags.count("section") == 3
    assert "7 of 36 suspicious shots, the worst first, at most 4 with the same reasons" in page.text
    assert len(page.cards) == 7
    assert ["rejected: text" in card for card in page.cards] == [True] * 4 + [False] * 3


def test_a_large_storyboard_is_made_smaller(walkers, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "BOARD_BYTES", 9000)
    board = re.search(r'background-image: url\("data:image/jpeg;base64,([^"]+)"', page_of(walkers, tmp_path).source).group(1)
    assert len(base64.b64decode(board)) <= 9000


@pytest.mark.parametrize("number", [0, 1, 4, 5, 8, 9, 10, 100, 1000])
def test_choice_is_even_and_of_bounded_memory(number):
    evenly = Evenly(4)
    for item in range(number):
        evenly.add(item)
        assert len(evenly.kept) <= 9
    chosen = evenly.chosen()
    assert len(chosen) == min(4, number)
    assert chosen == sorted(set(chosen))
    if number > 4:
        assert chosen[0] == 0
        assert max(np.diff([*chosen, number])) <= number / 2


def test_a_page_inside_the_dataset_is_refused(copy):
    with pytest.raises(DataError, match="inside the dataset"):
        write_report(copy, copy / "report.html")


def spoil_tar(directory):
    tar = directory / "stories" / "train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:3000])


def spoil_board(directory):
    rewrite(
        directory / "stories" / "train-00000.tar",
        lambda name, blob: [(name, blob[:300] if name.endswith("jpg") else blob)],
    )


def spoil_layout(directory):
    change_story(directory, lambda story, _: story["storyboard"].update(tile_width=10**9))


def spoil_sound(directory):
    rewrite(
        directory / "audio" / "train-00000.tar",
        lambda name, blob: [(name, b"not a sound" if name.endswith("flac") else blob)],
    )


def spoil_members(directory):
    rewrite(directory / "stories" / "train-00000.tar", lambda name, blob: [] if name.endswith("png") else [(name, blob)])


@pytest.mark.parametrize("spoil", [spoil_tar, spoil_board, spoil_layout, spoil_sound, spoil_members])
def test_damage_is_one_line_that_names_the_shard(copy, tmp_path, spoil):
    spoil(copy)
    with pytest.raises(DataError, match=r"train-00000\.tar") as error:
        write_report(copy, tmp_path / "page.html")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "page.html").exists()


def test_what_is_no_dataset_or_no_place_for_a_page_is_one_line(walkers, tmp_path):
    with pytest.raises(DataError, match="not a dataset directory"):
        write_report(tmp_path, tmp_path.parent / "page.html")
    with pytest.raises(DataError, match="cannot be written"):
        write_report(walkers, tmp_path / "missing" / "page.html")
