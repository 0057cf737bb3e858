import builtins
import io
import json
import logging
from datetime import date

import pytest
from packed import GOOD, write_packed
from PIL import Image

from animeshooter_dataset import INDEX_SCHEMA, DataError, read_index, read_manifest, read_samples, shards
from curation.croissant import croissant

mlc = pytest.importorskip("mlcroissant")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    shares = {"train": 0.5, "validation": 0.25, "test": 0.25}
    scores = {"film00001-000-001": {"motion": None, "style": "2D", "talking": True}}
    directory = tmp_path_factory.mktemp("croissant") / "data"
    return write_packed(directory, films=8, stories=2, shots=3, shares=shares, scores=scores, shard_size=40_000)


@pytest.fixture
def described(dataset, tmp_path, monkeypatch):
    """The dataset as the library opens it, its caches where they cannot meet those of another dataset."""
    from mlcroissant._src.core import constants
    from mlcroissant._src.operation_graph.operations import extract

    for module, name in ((constants, "DOWNLOAD_PATH"), (constants, "EXTRACT_PATH"), (extract, "EXTRACT_PATH")):
        monkeypatch.setattr(module, name, type(getattr(module, name))(tmp_path / name.lower()))
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in dataset.iterdir():
        (folder / path.name).symlink_to(path)
    (folder / "croissant.json").write_bytes(croissant(dataset))
    return mlc.Dataset(jsonld=folder / "croissant.json")


def plain(value):
    """A value as the library gives it, as the index holds it: text comes as bytes."""
    if isinstance(value, list):
        return [plain(item) for item in value]
    return value.decode() if isinstance(value, bytes) else value


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_the_library_reads_the_index_as_it_is(dataset, described, split):
    name = f"index-{split}"
    rows = [{key.removeprefix(f"{name}/"): plain(value) for key, value in record.items()} for record in described.records(name)]
    true = read_index(dataset, split).to_pylist()
    assert rows == true
    assert set(rows[0]) == set(INDEX_SCHEMA.names)
    if any(row["key"] == "film00001-000-001" for row in true):
        (changed,) = [row for row in rows if row["key"] == "film00001-000-001"]
        assert (changed["motion"], changed["style"], changed["talking"]) == (None, "2D", True)
        assert changed["brightness"] == GOOD["brightness"]


@pytest.mark.parametrize(("config", "member"), [("shots", "mp4"), ("shots", "json"), ("stories", "json")])
def test_the_library_reads_the_members_of_the_samples(dataset, described, config, member):
    name = f"{config}-{member}"
    found = {plain(record[f"{name}/key"]): record[f"{name}/{member}"] for record in described.records(name)}
    true = {
        key: members[member]
        for split in ("train", "validation", "test")
        for tar in shards(dataset, config, split)
        for key, members in read_samples(tar, (member,))
    }
    assert len(list((dataset / config).glob("*.tar"))) > 3
    assert found == true


def test_pictures_come_as_pictures(dataset, described):
    record = next(iter(described.records("stories-jpg")))
    tar = next(path for split in ("train", "validation", "test") for path in shards(dataset, "stories", split))
    assert isinstance(record["stories-jpg/jpg"], Image.Image)
    key = plain(record["stories-jpg/key"])
    members = {found: blobs["jpg"] for path in tar.parent.glob("*.tar") for found, blobs in read_samples(path, ("jpg",))}
    assert record["stories-jpg/jpg"].size == Image.open(io.BytesIO(members[key])).size


def test_every_file_is_named_with_its_hash_and_address(dataset):
    page = "https://huggingface.co/datasets/org/name"
    told = json.loads(croissant(dataset, f"{page}/", revision="v1.2.0", published=date(2026, 11, 20)))
    files = {node["@id"]: node for node in told["distribution"] if node["@type"] == "cr:FileObject"}
    manifest = read_manifest(dataset)["files"]
    assert set(files) == {name for name in manifest if name.endswith((".tar", ".parquet"))}
    for name, node in files.items():
        assert node["sha256"] == manifest[name]["sha256"]
        assert node["contentUrl"] == f"{page}/resolve/v1.2.0/{name}"
    assert told["conformsTo"] == "http://mlcommons.org/croissant/1.1"
    assert told["version"] == f"{read_manifest(dataset)['schema_version']}.0"
    assert told["datePublished"] == "2026-11-20"
    assert told["license"] == ["https://creativecommons.org/publicdomain/zero/1.0/", f"{page}#rights-and-removal"]
    assert "2506.03126" in told["citeAs"]


def test_nothing_is_logged_and_with_a_day_the_library_has_nothing_to_remark(dataset, caplog):
    with caplog.at_level(logging.WARNING):
        text = croissant(dataset, "https://huggingface.co/datasets/org/name", published=date(2026, 11, 20))
        croissant(dataset)
    assert not caplog.records
    checked = mlc.Dataset(jsonld=json.loads(text))
    assert not checked.metadata.ctx.issues.errors
    assert not checked.metadata.ctx.issues.warnings


def test_many_shards_are_named_and_not_described(dataset, monkeypatch):
    monkeypatch.setattr("curation.croissant.MOST_SHARDS", 3)
    told = json.loads(croissant(dataset))
    assert {node["@id"] for node in told["recordSet"]} == {"index-train", "index-validation", "index-test"}
    assert sum(node["@id"].endswith(".tar") for node in told["distribution"]) > 3


def test_the_same_arguments_give_the_same_bytes_and_nothing_is_written(dataset):
    before = sorted(path.name for path in dataset.rglob("*"))
    assert croissant(dataset) == croissant(dataset)
    assert sorted(path.name for path in dataset.rglob("*")) == before


def test_without_the_library_one_line_says_what_to_install(dataset, monkeypatch):
    real = builtins.__import__

    def lacking(name, *args, **options):
        if name == "mlcroissant":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(DataError, match="pip install mlcroissant"):
        croissant(dataset)
