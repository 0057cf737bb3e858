import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from animeshooter_dataset import DataError, RightsRecord, dump
from curation.optout import OptOut, withdrawn_records

HASH = "ab" * 32
LIST = f"""\ufeff# who does not want to be in it

yt:aqz-KE-bpKQ
https://films.example/Some%20Film.mp4   # a page
sha256:{HASH.upper()}
{"cd" * 32}
uploader:  Studio  # 7
elephants-dream-0f0f0f0f
"""


@pytest.fixture
def listed(tmp_path):
    path = tmp_path / "optout.txt"
    path.write_text(LIST)
    return OptOut.load([path])


def ledger(folder, *lines):
    folder.mkdir(exist_ok=True)
    (folder / "rights.jsonl").write_bytes(b"".join(dump(line) + b"\n" for line in lines))
    return folder


@pytest.mark.parametrize(
    ("known", "line"),
    [
        ({"id": "aqz-KE-bpKQ"}, 3),
        ({"id": "yt:aqz-KE-bpKQ"}, 3),
        ({"id": f"aqz-ke-bpkq-{hashlib.sha256(b'aqz-KE-bpKQ').hexdigest()[:8]}"}, 3),  # its video in an imported release
        ({"address": "yt:aqz-KE-bpKQ"}, 3),
        ({"address": "https://youtu.be/aqz-KE-bpKQ?t=3"}, 3),
        ({"address": "http://m.youtube.com/watch?list=x&v=aqz-KE-bpKQ"}, 3),
        ({"address": "https://films.example/Some%20Film.mp4"}, 4),
        ({"address": "https://user:secret@films.example/Some%20Film.mp4?token=1"}, 4),
        ({"sha256": HASH}, 5),
        ({"sha256": "CD" * 32}, 6),
        ({"uploader": "studio # 7"}, 7),
        ({"uploader": "STUDIO   # 7", "sha256": "00" * 32}, 7),
        ({"id": "elephants-dream-0f0f0f0f"}, 8),
    ],
)
def test_a_film_is_known_by_anything_that_is_listed(listed, known, line):
    assert listed.match(**known) == f"opted out (optout.txt, line {line})"


@pytest.mark.parametrize(
    "known",
    [
        {},
        {"id": "AQZ-ke-bpKQ"},
        {"address": "https://youtu.be/aqz-KE-bpKx"},
        {"address": "https://films.example/some%20film.mp4"},
        {"address": "a cupboard"},
        {"uploader": "Studio"},
        {"sha256": "ef" * 32, "id": "elephants-dream-0f0f0f0e"},
    ],
)
def test_other_films_are_not(listed, known):
    assert listed.match(**known) is None


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"sha256:abc", "not a sha256"),
        (b"yt:short", "not an id"),
        (b"ftp://films.example/a", "not an address"),
        (b"https://", "not an address"),
        (b"A Film With Spaces", "not an id"),
        (b"uploader:  ", "names nobody"),
        (b"uploader:Sm\xf8rebr\xf8d", "not UTF-8"),
    ],
)
def test_a_line_that_is_no_entry_is_named_with_its_mend(tmp_path, line, says):
    path = tmp_path / "optout.txt"
    path.write_bytes(b"# first\nyt:aqz-KE-bpKQ\n" + line + b"\n")
    with pytest.raises(DataError, match=r"optout\.txt, line 3: .*") as error:
        OptOut.load([path])
    assert says in str(error.value)
    assert "\n" not in str(error.value)
    assert "; " in str(error.value)


def test_a_list_that_is_not_there_is_no_empty_list(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        OptOut.load([tmp_path / "none.txt"])


def test_what_was_withdrawn_from_a_dataset_stays_away(tmp_path):
    _, gone = withdrawn_records("film-0a0a0a0a", None, sha256=HASH, source="https://films.example/1", uploader="Somebody")
    kept = RightsRecord(video="other", sha256="01" * 32, source="https://films.example/2", uploader="Somebody", state="kept")
    found = OptOut.load([], ledger(tmp_path / "data", gone, kept))
    assert found.match(id="film-0a0a0a0a") == found.match(sha256=HASH) == "withdrawn from this dataset"
    assert found.match(address="https://films.example/1#t=2") == "withdrawn from this dataset"
    assert found.match(uploader="Somebody") is None  # one film of theirs is not all of them
    assert found.match(id="other", sha256="01" * 32, address="https://films.example/2") is None


def test_an_address_that_other_films_name_too_does_not_stand_for_the_withdrawn_one(tmp_path):
    _, gone = withdrawn_records("film-0a0a0a0a", None, sha256=HASH, source="https://studio.example/")
    kept = RightsRecord(video="other", sha256="01" * 32, source="https://studio.example/", state="kept")
    found = OptOut.load([], ledger(tmp_path / "data", gone, kept))
    assert found.match(address="https://studio.example/") is None
    assert found.match(sha256=HASH)


def test_a_dataset_that_is_not_there_has_withdrawn_nothing_and_a_damaged_ledger_is_an_error(tmp_path):
    assert len(OptOut.load([], tmp_path / "none")) == 0
    (ledger(tmp_path / "data") / "rights.jsonl").write_text('{"video": "a"}\n')
    with pytest.raises(DataError, match=r"rights\.jsonl"):
        OptOut.load([], tmp_path / "data")


def test_the_fingerprint_is_of_what_is_listed_and_not_of_how(tmp_path):
    first, second, third = (tmp_path / name for name in ("1", "2", "3"))
    first.write_text(f"yt:aqz-KE-bpKQ\n{HASH}\n")
    second.write_text(f"# why\nsha256:{HASH}\naqz-KE-bpKQ # twice\naqz-KE-bpKQ\n")
    third.write_text(f"{HASH}\n")
    assert OptOut.load([first]).fingerprint == OptOut.load([second]).fingerprint
    assert OptOut.load([first]).fingerprint != OptOut.load([third]).fingerprint


@given(st.text(min_size=1).filter(lambda name: name.strip()))
def test_any_uploader_can_be_named(name):
    found = OptOut.of([name], "uploader")
    if not name.strip().startswith("uploader:"):
        assert found.match(uploader=name) is not None
        assert found.match(uploader=f"{name}x") is None
