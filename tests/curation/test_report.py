import base64
import io
import json
import re
import tarfile
from html.parser import HTMLParser

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from animeshooter_dataset import DataError, read_samples
from curation import report
from curation.report import evenly, histogram, write_report

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


def change_shots(directory, change):
    def changed(name, blob):
        if name.endswith(".json"):
            record = json.loads(blob)
            change(record)
            blob = json.dumps(record).encode()
        return [(name, blob)]

    rewrite(directory / "shots" / "train-00000.tar", changed)


def grow(directory, number):
    """Make the dataset ``number`` films large: the same film under other names."""
    for config in ("shots", "stories", "audio"):
        tar = directory / config / "train-00000.tar"
        with tarfile.open(tar) as archive:
            entries = [(entry.name, archive.extractfile(entry).read()) for entry in archive]
        with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
            for copy in range(number):
                for name, blob in entries:
                    film = f"film{copy:03d}"
                    blob = blob.replace(b'"walkers', f'"{film}'.encode()) if name.endswith(".json") else blob
                    entry = tarfile.TarInfo(name.replace("walkers", film))
                    entry.size = len(blob)
                    archive.addfile(entry, io.BytesIO(blob))
    index = directory / "index" / "train.parquet"
    pq.write_table(pa.concat_tables([pq.read_table(index)] * number), index)


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
    for number in range(6):
        assert f"Walk number {number}." in page.text
    assert "Two ovals walk." in page.text
    assert "2.50 here" in page.text
    assert "3.85 the paper's" in page.text
    assert "audio clip at N s is N s long, under N s" in page.text


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
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["dropped"] = [{"film": HOSTILE, "stage": "audio", "reason": HOSTILE}]
    (copy / "manifest.json").write_text(json.dumps(manifest))
    rights = json.loads((copy / "rights.jsonl").read_text())
    (copy / "rights.jsonl").write_text(json.dumps(rights | {"title": HOSTILE, "source": "javascript:alert(1)"}) + "\n")
    page = page_of(copy, tmp_path)
    assert page.text.count(HOSTILE) >= 6
    assert "Ovals <b>walk</b> for the 1th time." in page.text
    assert page.tags.count("img") <= plain.count("img")  # fewer suspicious shots: the caption has more words now
    assert "script" not in page.tags


def test_the_same_dataset_gives_the_same_bytes(walkers, copy, tmp_path):
    first, second = write_report(walkers, tmp_path / "first.html"), write_report(copy, tmp_path / "second.html")
    assert first.read_bytes() == second.read_bytes()


def test_the_worst_shot_stands_first_with_its_reasons(copy, tmp_path):
    def spoil(story, _):
        story["shots"][4] |= {"descriptive_caption": "  ", "annotated_start_time": 3.0, "characters": []}
        story["shots"][3]["descriptive_caption"] = story["shots"][2]["descriptive_caption"].upper()

    change_story(copy, spoil)
    page = page_of(copy, tmp_path)
    assert "-004, 2.50 s" in page.cards[0]
    assert "no caption: descriptive" in page.cards[0]
    assert "start annotated at 3.0 s, cut at 10.0 s" in page.cards[0]
    (repeated,) = [card for card in page.cards if "repeated caption" in card]
    assert "-003, 2.50 s" in repeated
    assert "descriptive, as shot 3" in repeated


def test_black_and_unchanged_pictures_are_found(copy, tmp_path):
    def spoil(story, board):
        width, height = story["storyboard"]["tile_width"], story["storyboard"]["tile_height"]
        board.paste((4, 4, 4), (width, 0, 2 * width, height))
        board.paste(board.crop((2 * width, 0, 3 * width, height)), (3 * width, 0))
        board.paste((200, 180, 40), (4 * width, 0, 5 * width, height))

    assert not any(" black: " in card or "same picture" in card for card in page_of(copy, tmp_path).cards)
    change_story(copy, spoil)
    found = {}
    for card in page_of(copy, tmp_path).cards:
        key = re.search(r"-(\d{3}), ", card).group(1)
        found[key] = {name for name in ("black", "same picture", "one colour") if f">{name}: " in card}
    assert {key: names for key, names in found.items() if names} == {
        "001": {"black"},
        "003": {"same picture"},
        "004": {"one colour"},
    }


def test_short_long_silent_and_unreferenced_shots_are_found(copy, tmp_path):
    def times(story, _):
        for shot, (start, end) in zip(story["shots"], [(0, 0.4), (0.4, 30), (30, 32), (32, 34), (34, 36), (36, 38)]):
            shot |= {"start_time": start, "end_time": end, "annotated_start_time": None, "annotated_end_time": None}

    def lose(shot):
        if shot["position"] == 2:
            shot |= {"has_audio": False, "characters_without_reference": ["Red"]}

    change_story(copy, times)
    change_shots(copy, lose)
    cards = page_of(copy, tmp_path).cards
    by_key = {re.search(r"-(\d{3}), ", card).group(1): card for card in cards}
    assert "very short: 0.40 s" in by_key["000"]
    assert "very long: 29.6 s" in by_key["001"]
    assert "no sound" in by_key["002"]
    assert "no reference: Red" in by_key["002"]
    assert not any("no sound" in by_key[key] for key in by_key.keys() - {"002"})


def test_a_silent_film_is_not_suspicious(copy, tmp_path):
    change_shots(copy, lambda shot: shot.update(has_audio=False))
    assert not any("no sound" in card for card in page_of(copy, tmp_path).cards)


def test_the_sound_on_the_page_plays(walkers, tmp_path):
    (sound,) = [address for tag, address in page_of(walkers, tmp_path).addresses if tag == "audio"]
    with av.open(io.BytesIO(base64.b64decode(sound.partition("base64,")[2]))) as container:
        samples = np.concatenate([frame.to_ndarray().reshape(-1) for frame in container.decode(audio=0)])
        rate = container.streams.audio[0].rate
    assert len(samples) / rate == pytest.approx(4.0, abs=0.2)
    assert np.abs(samples).max() > 0.05


def test_a_large_dataset_is_capped_and_the_page_says_so(copy, tmp_path, monkeypatch):
    grow(copy, 9)
    for name, most in {"STORIES_SHOWN": 3, "CLIPS_SHOWN": 2, "WORST_SHOWN": 12, "ALIKE_SHOWN": 4}.items():
        monkeypatch.setattr(report, name, most)
    page = page_of(copy, tmp_path)
    assert "3 of 9 stories" in page.text
    assert "2 of 9 clips" in page.text
    assert page.tags.count("audio") == 2
    assert page.tags.count("section") == 3
    assert re.search(r"(\d+) of 54 suspicious shots, the worst first, at most 4 with the same reasons", page.text)
    assert 4 <= len(page.cards) <= 12
    shown = page.source.partition('id="stories"')[2]
    assert [film in shown for film in ("film000-", "film001-", "film003-", "film006-")] == [True, False, True, True]


def test_a_large_storyboard_is_made_smaller(walkers, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "BOARD_BYTES", 9000)
    board = re.search(r'background-image: url\("data:image/jpeg;base64,([^"]+)"', page_of(walkers, tmp_path).source).group(1)
    assert len(base64.b64decode(board)) <= 9000


def test_choice_is_even_and_of_the_wanted_number():
    keys = [str(number) for number in range(100)]
    assert evenly(keys, 4) == ["0", "25", "50", "75"]
    assert evenly(keys[:4], 4) == keys[:4]
    assert evenly([], 4) == []


@pytest.mark.parametrize("values", [[3.0], [0.0, 0.0], [1.5, 900.0, 2.5], list(range(1000))])
@pytest.mark.parametrize("paper", [None, 14.82])
def test_every_value_is_in_the_histogram(values, paper):
    svg = str(histogram(values, paper, "<what>"))
    assert sum(int(count) for count in re.findall(r"<title>(\d+)</title>", svg)) == len(values)
    assert svg.count("stroke-dasharray") == (paper is not None)
    assert "<what>" not in svg
    assert "nan" not in svg


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
