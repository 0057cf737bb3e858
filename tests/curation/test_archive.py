"""Archives that nobody vouches for: what is odd costs itself and one line; nothing is written anywhere."""

import io
import os
import stat
import struct
import zipfile

import pytest
from releases import write_members

from animeshooter_dataset import DataError
from curation.archive import Limits, open_archive, shown

SMALL = Limits(member=1 << 20, ratio=50, total=3 << 20)


def zipped(path, members, method=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members:
            archive.writestr(name, content)
    return path


def listed(path, limits=SMALL):
    names, refused = open_archive(path, limits).names()
    assert all("\n" not in each.reason for each in refused)
    return names, {each.member: each.reason for each in refused}


def one_line_error(call):
    with pytest.raises(DataError) as error:
        call()
    assert str(error.value).isprintable()
    return str(error.value)


@pytest.mark.parametrize("kind", ["release.zip", "folder"])
def test_files_are_listed_in_order_and_read_whole(tmp_path, kind):
    members = {"set/b.json": b"{}", "set/a.json": b"[1]", "video_ids.txt": b"x\n", "README.md": b"hello", "set/.c.json": b"{}"}
    path = write_members(tmp_path / kind, members)
    assert listed(path) == (["set/a.json", "set/b.json", "video_ids.txt"], {})
    assert open_archive(path).read("set/a.json") == b"[1]"


def test_a_json_file_stands_for_itself(tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(b"\xef\xbb\xbf{}")
    assert listed(path) == (["x.json"], {})
    assert open_archive(path).read("x.json") == b"\xef\xbb\xbf{}"


def test_hidden_files_of_other_systems_are_no_matter(tmp_path):
    path = zipped(tmp_path / "r.zip", [("__MACOSX/._a.json", b"?"), (".DS_Store", b"?"), ("a.json", b"{}")])
    assert listed(path) == (["a.json"], {})


@pytest.mark.parametrize(
    "name",
    ["../a.json", "x/../../a.json", "/etc/a.json", "C:/a.json", "..\\a.json", "\\\\host\\a.json", "a\x1b[2J.json", "a\n.json"],
)
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    path = zipped(tmp_path / "r.zip", [(name, b"{}"), ("good.json", b"{}")])
    names, refused = listed(path)
    assert names == ["good.json"]
    assert list(refused) == [name]
    assert shown(name).isprintable()
    one_line_error(lambda: open_archive(path, SMALL).read(name))


def test_a_zip_bomb_is_refused_by_ratio_size_and_total(tmp_path):
    bomb, large = b" " * (1 << 20), os.urandom(1 << 20)
    members = [("ratio.json", bomb + b" "), ("size.json", large + b"1"), *((f"{n}.json", large) for n in range(5))]
    path = tmp_path / "r.zip"
    names, refused = listed(zipped(path, members), Limits(member=(1 << 20), ratio=50, total=3 << 20))
    assert names == ["0.json", "1.json", "2.json"]
    assert "larger than 1 MiB" in refused["size.json"]
    assert "2 files beyond" in refused[""]
    names, refused = listed(path, Limits(member=2 << 20, ratio=50))
    assert "zip bomb" in refused["ratio.json"]
    assert len(names) == 6


def test_a_file_larger_than_it_says_is_not_read_to_its_end(tmp_path):
    path = zipped(tmp_path / "r.zip", [("a.json", b" " * 5000)])
    data = bytearray(path.read_bytes())
    for signature, place in ((b"PK\3\4", 22), (b"PK\1\2", 24)):
        struct.pack_into("<L", data, data.index(signature) + place, 10)
    path.write_bytes(data)
    assert "is damaged" in one_line_error(lambda: open_archive(path, SMALL).read("a.json"))


def test_files_that_share_their_bytes_are_refused(tmp_path):
    path = zipped(tmp_path / "r.zip", [("a.json", b"{}"), ("b.json", b"{}")])
    data = bytearray(path.read_bytes())
    second = data.index(b"PK\1\2", data.index(b"PK\1\2") + 4)
    struct.pack_into("<L", data, second + 42, 0)
    path.write_bytes(data)
    names, refused = listed(path)
    assert len(names) == 1
    assert "shares its bytes" in next(iter(refused.values()))


def test_links_encryption_nesting_and_rare_packing_are_told(tmp_path):
    path = tmp_path / "r.zip"
    link = zipfile.ZipInfo("link.json")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w") as inner:
        inner.writestr("a.json", "{}")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(link, "/etc/passwd")
        archive.writestr("more.zip", nested.getvalue())
        archive.writestr("rare.json", "{}", compress_type=zipfile.ZIP_LZMA)
        archive.writestr("locked.json", "{}")
        archive.writestr("good.json", "{}")
    data = bytearray(path.read_bytes())
    place = data.rindex(b"locked.json")
    data[place - 46 + 8] |= 1
    path.write_bytes(data)
    names, refused = listed(path)
    assert names == ["good.json"]
    expected = {"link.json": "is a link", "more.zip": "archive inside", "rare.json": "deflation", "locked.json": "encrypted"}
    assert refused.keys() == expected.keys()
    assert all(word in refused[name] for name, word in expected.items())


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_two_files_with_one_name_the_first_is_read(tmp_path):
    path = zipped(tmp_path / "r.zip", [("a.json", b"[1]"), ("a.json", b"[2]")])
    names, refused = listed(path)
    assert names == ["a.json"]
    assert "is there twice" in refused["a.json"]
    assert open_archive(path, SMALL).read("a.json") == b"[1]"


def test_a_broken_zip_is_one_line(tmp_path):
    whole = zipped(tmp_path / "whole.zip", [("a.json", os.urandom(5000)), ("b.json", b"{}")]).read_bytes()
    path = tmp_path / "r.zip"
    path.write_bytes(whole[:-60])
    assert "cut short" in one_line_error(lambda: open_archive(path))
    path.write_bytes(b"")
    assert "is no zip" in one_line_error(lambda: open_archive(path))
    path.write_bytes(b"not a zip at all" * 9)
    assert "is no zip" in one_line_error(lambda: open_archive(path))
    path.write_bytes(whole[:200] + bytes(100) + whole[300:])
    assert "is damaged" in one_line_error(lambda: open_archive(path).read("a.json"))
    assert open_archive(path).read("b.json") == b"{}"


def test_a_table_of_contents_too_large_for_memory_is_not_read(tmp_path):
    path = zipped(tmp_path / "r.zip", [(f"{n}.json", b"{}") for n in range(50)])
    assert "table of contents" in one_line_error(lambda: open_archive(path, Limits(directory=1000)))


def test_a_zip_with_any_byte_wrong_gives_right_contents_or_one_line(tmp_path):
    whole = zipped(tmp_path / "whole.zip", [("a.json", b'{"a": 1}'), ("b.json", b"{}" * 40)]).read_bytes()
    lines, read = [], []
    for number in range(len(whole)):
        path = tmp_path / "r.zip"
        path.write_bytes(whole[:number] + bytes([whole[number] ^ 0xFF]) + whole[number + 1 :])
        try:
            archive = open_archive(
                path, Limits(member=1 << 20, directory=1000 + number)
            )  # limits of its own, so that it is new
            contents = {name: archive.read(name) for name in archive.names()[0]}
        except DataError as error:
            lines.append(str(error))
        else:
            read.append(contents)
    assert all(line.isprintable() for line in lines)
    assert {content for contents in read for content in contents.values()} == {b'{"a": 1}', b"{}" * 40}


def test_what_is_not_there_or_no_archive_is_one_line(tmp_path):
    assert "cannot be read" in one_line_error(lambda: open_archive(tmp_path / "none.zip"))
    (tmp_path / "a.tar").write_bytes(b"ustar" * 100)
    assert "unpack it" in one_line_error(lambda: open_archive(tmp_path / "a.tar"))
    os.mkfifo(tmp_path / "pipe.json")
    assert "no file" in one_line_error(lambda: open_archive(tmp_path / "pipe.json"))


def test_a_folder_does_not_lead_out_of_itself(tmp_path):
    outside = tmp_path / "outside"
    write_members(outside, {"secret.json": b"{}", "deep/more.json": b"{}"})
    folder = write_members(tmp_path / "release", {"a.json": b"{}", "old.zip": b"PK"})
    (folder / "out.json").symlink_to(outside / "secret.json")
    (folder / "in.json").symlink_to(folder / "a.json")
    (folder / "linked").symlink_to(outside, target_is_directory=True)
    os.mkfifo(folder / "pipe.json")
    names, refused = listed(folder)
    assert names == ["a.json", "in.json"]
    assert refused.keys() == {"out.json", "linked", "old.zip", "pipe.json"}
    archive = open_archive(folder)
    for name in ("out.json", "../outside/secret.json", str(outside / "secret.json"), "pipe.json", "none.json"):
        one_line_error(lambda name=name: archive.read(name))


def test_a_file_of_a_folder_is_read_up_to_the_limit(tmp_path):
    folder = write_members(tmp_path / "release", {"a.json": b" " * 2000})
    assert "larger than" in one_line_error(lambda: open_archive(folder, Limits(member=1999)).read("a.json"))
    assert len(open_archive(folder, Limits(member=2000)).read("a.json")) == 2000


def test_a_zip_that_was_replaced_is_opened_anew(tmp_path):
    path = zipped(tmp_path / "r.zip", [("a.json", b"[1]")])
    assert open_archive(path).read("a.json") == b"[1]"
    zipped(tmp_path / "new.zip", [("b.json", b"[22]")]).replace(path)
    assert open_archive(path).names()[0] == ["b.json"]
