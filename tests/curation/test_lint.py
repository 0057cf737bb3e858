import io
import json
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from animeshooter_dataset import DataError
from curation.lint import lint
from curation.pack import file_hashes


def members(tar):
    with tarfile.open(tar) as archive:
        return [(entry.name, archive.extractfile(entry).read()) for entry in archive]


def write(tar, entries):
    with tarfile.open(tar, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name, blob in entries:
            entry = tarfile.TarInfo(name)
            entry.size = len(blob)
            archive.addfile(entry, io.BytesIO(blob))


def rehash(directory):
    """Make the manifest agree again, so that only the check under test can find the fault."""
    manifest = json.loads((directory / "manifest.json").read_text())
    manifest["files"] = file_hashes(directory)
    (directory / "manifest.json").write_text(json.dumps(manifest))


def change_json(tar, number, change):
    entries = members(tar)
    places = [place for place, (name, _) in enumerate(entries) if name.endswith(".json")]
    name, blob = entries[places[number]]
    entries[places[number]] = (name, json.dumps(json.loads(blob) | change).encode())
    write(tar, entries)


def problems(directory):
    rehash(directory)
    return " | ".join(lint(directory).problems)


def test_a_changed_byte_is_found_by_its_hash(copy):
    tar = copy / "stories" / "train-00000.tar"
    blob = bytearray(tar.read_bytes())
    blob[-2000] ^= 1
    tar.write_bytes(blob)
    assert any("sha256" in problem for problem in lint(copy).problems)


def test_a_missing_and_a_strange_file_are_named(copy):
    (copy / "rights.jsonl").rename(copy / "notes.txt")
    found = " | ".join(lint(copy).problems)
    assert "rights.jsonl: named in manifest.json but not there" in found
    assert "notes.txt: not named" in found


def test_a_stale_card_is_found(copy):
    (copy / "README.md").write_text((copy / "README.md").read_text().replace("6 shots", "7 shots"))
    assert "README.md: stale" in problems(copy)


def test_members_that_are_not_adjacent_are_found(copy):
    tar = copy / "shots" / "train-00000.tar"
    entries = members(tar)
    write(tar, [entries[0], *entries[3:], *entries[1:3]])
    assert "not adjacent" in problems(copy)


def test_a_missing_member_is_found(copy):
    tar = copy / "shots" / "train-00000.tar"
    write(tar, members(tar)[1:])
    assert "has members ['json', 'png']" in problems(copy)


def test_a_truncated_shard_is_found(copy):
    tar = copy / "shots" / "train-00000.tar"
    tar.write_bytes(tar.read_bytes()[:20_000])
    assert "shots/train-00000.tar" in problems(copy)


def test_a_record_against_the_schema_is_found(copy):
    change_json(copy / "shots" / "train-00000.tar", 1, {"fps": -1})
    assert "fps" in problems(copy)


def test_a_shot_and_a_story_that_disagree_are_found(copy):
    change_json(copy / "shots" / "train-00000.tar", 1, {"narrative_caption": "Something else."})
    assert "say different things" in problems(copy)


def test_a_wrong_number_of_frames_is_found_by_decoding(copy):
    tar = copy / "shots" / "train-00000.tar"
    entries = members(tar)
    entries[0] = (entries[0][0], entries[3][1][:-100] + entries[3][1][-100:])
    change = {"frames": 29, "end_frame": 29, "clean_end_frame": 29}
    record = json.loads(entries[1][1]) | change
    entries[1] = (entries[1][0], json.dumps(record).encode())
    write(tar, entries)
    assert "decodes to 30 frames, the record says 29" in problems(copy)


def test_a_clip_that_does_not_decode_is_found(copy):
    tar = copy / "shots" / "train-00000.tar"
    entries = members(tar)
    entries[0] = (entries[0][0], b"\0" * len(entries[0][1]))
    write(tar, entries)
    assert "does not decode" in problems(copy)


def test_an_index_that_points_elsewhere_is_found(copy):
    path = copy / "index" / "train.parquet"
    table = pq.read_table(path)
    rows = table.to_pylist()
    rows[2]["mp4_offset"] += 512
    rows[3]["sha256"] = "0" * 64
    pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), path)
    found = problems(copy)
    assert "is wrong in mp4_offset" in found
    assert "is wrong in sha256" in found


def change_rows(path, change):
    table = pq.read_table(path)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), schema=table.schema), path)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        *[
            ("flac_offset", 512),
            ("mp4_size", 1),
            ("shard", "audio/train-00001.tar"),
            ("sha256", "0" * 64),
            ("mp4_sha256", None),
        ],
        *[("samples", 7), ("shots", []), ("speech", 0.123), ("type", "music")],
    ],
)
def test_an_index_of_audio_clips_that_says_something_else_is_found(copy, column, value):
    change_rows(copy / "index" / "audio-train.parquet", lambda rows: [row | {column: value} for row in rows])
    found = problems(copy)
    assert "index/audio-train.parquet: walkers-" in found
    assert f"-a000 is wrong in {column}" in found


def test_a_missing_index_of_audio_clips_is_found_and_older_datasets_have_none(copy):
    (copy / "index" / "audio-train.parquet").unlink()
    assert "index/audio-train.parquet: the split has no index; `animeshooter filter DIR --out NEW` writes" in problems(copy)
    manifest = json.loads((copy / "manifest.json").read_text()) | {"schema_version": "1.1"}
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert "audio" not in problems(copy)


def test_rows_of_no_sample_twice_or_in_another_order_are_found(copy):
    path = copy / "index" / "train.parquet"
    rows = pq.read_table(path).to_pylist()
    twice = "index/train.parquet: rows stand twice, or in another order than their samples in the shards"
    change_rows(path, lambda rows: [rows[1], rows[0], *rows[2:]])
    assert twice in problems(copy)
    change_rows(path, lambda _: [*rows, rows[2]])
    assert twice in problems(copy)
    change_rows(path, lambda _: [*rows[:-1], rows[-1] | {"key": "stranger"}])
    found = problems(copy)
    assert "index/train.parquet: stranger is in no shard" in found
    assert f"{rows[-1]['key']}: in no index" in found


def test_a_video_without_rights_is_found(copy):
    (copy / "rights.jsonl").write_text("")
    assert "rights.jsonl: no line for" in problems(copy)


def test_a_withdrawn_video_that_still_has_rows_is_found(copy):
    path = copy / "rights.jsonl"
    path.write_text(path.read_text().replace('"kept"', '"withdrawn"'))
    assert "is withdrawn but still has rows" in problems(copy)


def test_a_box_outside_its_sheet_is_found(copy):
    tar = copy / "stories" / "train-00000.tar"
    record = json.loads(members(tar)[0][1])
    record["references"][0]["box"] = [0, 0, 9000, 9000]
    change_json(tar, 0, {"references": record["references"]})
    assert "lies outside the reference sheet" in problems(copy)


def test_a_folder_that_is_no_dataset_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"manifest\.json"):
        lint(tmp_path)


def test_a_reference_from_another_film_is_found(copy):
    tar = copy / "shots" / "train-00000.tar"
    shots = [json.loads(blob) for name, blob in members(tar) if name.endswith(".json")]
    place, shot = next((place, shot) for place, shot in enumerate(shots) if shot["references"])
    source = next(number for number, each in enumerate(shots) if each["key"] == shot["references"][0]["shot"])
    change_json(tar, source, {"video": "another"})
    assert f"{shots[place]['key']}: a reference comes from {shots[source]['key']}, which is of another video" in problems(copy)


def test_a_removed_video_that_has_rows_and_a_ledger_of_strangers_are_found(copy):
    video = json.loads((copy / "rights.jsonl").read_text().splitlines()[0])["video"]
    line = {"video": video, "removed": "2026-01-02", "matched": "id", "stories": 1, "shots": 1, "audio": 0}
    (copy / "removals.jsonl").write_text(json.dumps(line) + "\n" + json.dumps(line | {"video": "stranger"}) + "\n")
    (copy / "availability.jsonl").write_text('{"video": "x", "source": "y", "state": "lost", "checked": "2026-01-02"}\n')
    found = problems(copy)
    assert f"removals.jsonl: {video} was removed but still has rows" in found
    assert "removals.jsonl: rights.jsonl has no line for stranger" in found
    assert "availability.jsonl" in found


def test_what_git_and_the_hubs_client_put_into_a_copy_is_passed_over(copy):
    (copy / ".gitattributes").write_text("*.tar filter=lfs\n")
    (copy / ".cache" / "huggingface").mkdir(parents=True)
    (copy / ".cache" / "huggingface" / "x.metadata").write_text("x")
    assert lint(copy, decode=False).problems == []
