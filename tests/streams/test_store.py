"""Stores: folders, web servers that misbehave, the Hub, S3; the cache, the watchdog, and the budget for bad samples."""

import errno
import hashlib
import importlib.util
import json
import multiprocessing
import os
import pickle
import shutil
import subprocess
import sys
import time
import warnings
from email.utils import formatdate
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import tiny_dataset
from folder_server import FolderServer
from hub_server import HubServer
from media_server import MediaServer, Served

from animeshooter_dataset import DataError, read_index, read_manifest
from streams import http
from streams.cache import CHUNK
from streams.store import Store, StoreOptions, Watchdog, store_index, store_manifest

BODY = bytes(range(256)) * 4096  # 1 MiB in which every place can be told
SHARD = "shots/train-00000.tar"
QUICK = StoreOptions(timeout=0.4, tries=4, wait=0.01, longest_wait=1.0)


@pytest.fixture(autouse=True)
def guard():
    """Every test here ends, whatever the servers do."""
    with Watchdog(60, more=5, what="the test"):
        yield


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A dataset whose manifest lists its files."""
    folder = tmp_path_factory.mktemp("store") / "animeshooter"
    tiny_dataset.write_dataset(folder, per_shard=4)
    list_files(folder)
    return folder


def list_files(folder):
    names = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    files = {
        str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in names
    }
    (folder / "manifest.json").write_text(json.dumps({"schema_version": "1.2", "files": files}))


@pytest.fixture
def web():
    with MediaServer() as server:
        yield server


def served(web, *replies, options=QUICK, size=None):
    """A store of one shard on the misbehaving server; ``size`` and hash go into its manifest if given."""
    files = {SHARD: {"bytes": size, "sha256": hashlib.sha256(BODY).hexdigest()}} if size is not None else {}
    web.serve("/data/manifest.json", Served(json.dumps({"schema_version": "1.2", "files": files}).encode()))
    web.serve(f"/data/{SHARD}", *replies)
    return Store.open(f"{web.url}/data", options)


def asked(web):
    return [each.range for each in web.asked if each.path.endswith(".tar")]


# ---- every kind of store gives the same ----


def same_everywhere(store, dataset):
    assert store_manifest(store) == read_manifest(dataset)
    index = store_index(store, "train")
    assert index.equals(read_index(dataset, "train"))
    rows = index.to_pylist()
    store.prefetch(
        [(row["shard"], row[f"{member}_offset"], row[f"{member}_size"]) for row in rows for member in ("mp4", "json")]
    )
    for row in rows:
        whole = (dataset / row["shard"]).read_bytes()
        for member in ("mp4", "json", "png"):
            begin, size = row[f"{member}_offset"], row[f"{member}_size"]
            assert store.range(row["shard"], begin, size) == whole[begin : begin + size]
    store.close()


@pytest.mark.parametrize("cached", [False, True])
def test_a_folder_and_a_web_server_give_the_same(dataset, tmp_path, cached):
    options = StoreOptions(cache=tmp_path / "cache" if cached else None, verify=True)
    with FolderServer(dataset) as server:
        for address in (dataset, str(dataset), f"file://{dataset}", server.url, f"{server.url}/"):
            same_everywhere(Store.open(address, options), dataset)


def test_any_address_that_fsspec_knows_will_do(dataset):
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(dataset), "/bucket/animeshooter", recursive=True)
    same_everywhere(Store.open("memory://bucket/animeshooter"), dataset)
    with pytest.raises(DataError, match=r"memory://bucket/animeshooter/shots/none\.tar: not there"):
        Store.open("memory://bucket/animeshooter").range("shots/none.tar", 0, 5)
    with pytest.raises(DataError, match="nosuch://x: cannot be opened"):
        Store.open("nosuch://x").range(SHARD, 0, 5)


def in_another_process(store, name, told):
    told.put(store.range(name, 512, 100))


def test_a_store_opened_here_works_in_a_spawned_process(dataset):
    context = multiprocessing.get_context("spawn")
    with FolderServer(dataset) as server:
        for address in (dataset, server.url):
            store, told = Store.open(address), context.SimpleQueue()
            here = store.range(SHARD, 512, 100)
            process = context.Process(target=in_another_process, args=(store, SHARD, told))
            process.start()
            assert told.get() == here == (dataset / SHARD).read_bytes()[512:612]
            process.join()


def test_a_forked_process_does_not_share_connections(dataset):
    with FolderServer(dataset) as server:
        store = Store.open(server.url)
        here = store.range(SHARD, 0, 100)
        reader, writer = os.pipe()
        if os.fork() == 0:  # the server's connections of the parent must not be talked over
            os.write(writer, store.range(SHARD, 0, 100))
            os._exit(0)
        assert os.read(reader, 100) == here
        assert server.asked.count("connection") == 2
        os.wait()


# ---- what is asked of a server ----


def test_neighbouring_ranges_are_one_request_over_one_connection(dataset):
    rows = read_index(dataset).to_pylist()
    with FolderServer(dataset) as server:
        store = Store.open(server.url, StoreOptions(threads=1))
        ranges = [(row["shard"], row[f"{m}_offset"], row[f"{m}_size"]) for row in rows for m in ("mp4", "json", "png")]
        store.prefetch(ranges)
        for each in ranges:
            store.range(*each)
        assert len([path for path, _ in server.requests if path.endswith(".tar")]) == 2  # two shards, 24 ranges
        assert server.asked.count("connection") <= 2
        store.close()


def test_no_name_leads_out_of_the_directory(dataset):
    for name in ("../secret", "/etc/passwd", "shots/../../x"):
        with pytest.raises(DataError, match="leads out of the dataset directory"):
            Store.open(dataset).range(name, 0, 5)


# ---- faults of servers ----


@pytest.mark.parametrize(
    "fault",
    [
        Served(BODY, drop_at=0),
        Served(BODY, drop_at=3000),
        Served(BODY, stall_at=4096),
        Served(status=503, body=b"busy"),
        Served(status=500),
        Served(status=429, headers={"Retry-After": "0"}),
    ],
    ids=["reset at once", "short body", "stall", "503", "500", "429"],
)
def test_what_may_go_away_is_tried_again(web, fault):
    store = served(web, fault, fault, Served(BODY))
    assert store.range(SHARD, 1000, 9000) == BODY[1000:10000]
    assert len(asked(web)) == 3


def test_after_a_break_only_what_is_missing_is_asked_for(web):
    store = served(web, Served(BODY, drop_at=4096), Served(BODY))
    assert store.range(SHARD, 1000, 9000) == BODY[1000:10000]
    assert asked(web) == ["bytes=1000-9999", f"bytes={1000 + 4096}-9999"]


@pytest.mark.parametrize(
    ("status", "said"), [(401, "who asks"), (403, "does not allow"), (404, "not there"), (410, "no longer")]
)
def test_what_is_refused_is_asked_once_and_said_in_one_line(web, status, said):
    store = served(web, Served(b"no", status=status))
    with pytest.raises(DataError, match=said) as error:
        store.range(SHARD, 0, 10)
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(f"{web.url}/data/{SHARD}: ")
    assert len(asked(web)) == 1


def test_patience_ends(web):
    store = served(web, Served(status=503))
    with pytest.raises(DataError, match=r"the server answers 503, tried 4 times at byte 5; .* run again to go on"):
        store.range(SHARD, 5, 10)
    assert len(asked(web)) == 4


def test_the_pause_a_server_asks_for_is_kept_and_a_long_one_ends_the_run(web):
    store = served(web, Served(status=429, headers={"Retry-After": "1"}), Served(BODY))
    start = time.monotonic()
    assert store.range(SHARD, 0, 10) == BODY[:10]
    assert time.monotonic() - start >= 1
    date = formatdate(time.time() + 3600, usegmt=True)
    store = served(web, Served(status=503, headers={"Retry-After": date}))
    with pytest.raises(DataError, match=r"it asks to wait 3[56]\d\d s, tried 1 times"):
        store.range(SHARD, 0, 10)


def test_a_server_that_ignores_range_is_said_once_and_borne_only_while_files_are_small(web, monkeypatch):
    store = served(web, Served(BODY, ranges=False))
    with pytest.warns(UserWarning, match="the server ignores Range") as said:
        got = [store.range(SHARD, at, 100) for at in (70_000, 5)]
    assert got == [BODY[70_000:70_100], BODY[5:105]]
    assert len([each for each in said if "ignores Range" in str(each.message)]) == 1
    monkeypatch.setattr(http, "DISCARD", 50_000)
    with pytest.raises(DataError, match="the server ignores Range, and 70100 bytes"):
        store.range(SHARD, 70_000, 100)


def test_a_file_that_changes_under_the_reader_is_refused(web):
    store = served(web, Served(BODY, etag='"one"'), Served(BODY[::-1], etag='"two"'))
    assert store.range(SHARD, 0, 10) == BODY[:10]
    with pytest.raises(DataError, match=r'changed under the reader \(its ETag was "one", is "two"'):
        store.range(SHARD, 0, 10)


def test_a_file_of_another_size_than_the_manifest_says_is_refused(web, dataset, tmp_path):
    store = served(web, Served(BODY), size=len(BODY) + 7)
    with pytest.raises(DataError, match=f"it has {len(BODY)} bytes, the manifest says {len(BODY) + 7}"):
        store.range(SHARD, 0, 10)
    copy = shutil.copytree(dataset, tmp_path / "copy")
    os.truncate(copy / SHARD, 5000)
    with pytest.raises(DataError, match="it has 5000 bytes, the manifest says"):
        Store.open(copy).range(SHARD, 0, 10)


def test_a_range_beyond_the_end_is_a_truncated_shard(web, dataset, tmp_path):
    with pytest.raises(DataError, match="ends 90 bytes early"):
        served(web, Served(BODY)).range(SHARD, len(BODY) - 10, 100)
    with pytest.raises(DataError, match="changed under the reader"):
        served(web, Served(BODY)).range(SHARD, len(BODY) + 10, 100)
    copy = shutil.copytree(dataset, tmp_path / "copy")
    size = (copy / SHARD).stat().st_size
    with pytest.raises(DataError, match="ends 90 bytes early"):
        Store.open(copy).range(SHARD, size - 10, 100)
    (copy / SHARD).unlink()
    with pytest.raises(DataError, match=rf"{SHARD}: cannot be read \(No such file or directory\)"):
        Store.open(copy).range(SHARD, 0, 100)


def test_a_flipped_byte_is_found_where_asked_for(dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    row = read_index(copy).to_pylist()[1]
    with (copy / SHARD).open("r+b") as file:
        file.seek(row["mp4_offset"] + row["mp4_size"] // 2)
        byte = file.read(1)
        file.seek(-1, 1)
        file.write(bytes([byte[0] ^ 1]))
    what = (row["shard"], row["mp4_offset"], row["mp4_size"])
    Store.open(copy).range(*what, sha256=row["sha256"])
    with pytest.raises(DataError, match="SHA-256 differs"):
        Store.open(copy, StoreOptions(verify=True)).range(*what, sha256=row["sha256"])
    assert Store.open(dataset, StoreOptions(verify=True)).range(*what, sha256=row["sha256"])


def test_no_secret_of_an_address_is_shown(web):
    store = served(web, Served(BODY))
    address = f"http://user:word@{web.host}/data?sig=SECRET"
    hidden = Store.open(address, QUICK)
    assert hidden.range(SHARD, 0, 5) == BODY[:5]
    assert any(each.path.endswith("?sig=SECRET") for each in web.asked)
    web.serve(f"/data/{SHARD}", Served(BODY, drop_at=0))
    with pytest.raises(DataError) as error:
        hidden.range(SHARD, 0, 5)
    assert "SECRET" not in str(error.value) + hidden.name
    assert "word" not in str(error.value) + hidden.name
    assert hidden.name == store.name


def test_nobody_there_is_one_line():
    with pytest.raises(DataError, match=r"http://127\.0\.0\.1:9/x/manifest\.json: the connection failed .* tried 4 times"):
        store_manifest(Store.open("http://127.0.0.1:9/x", QUICK))


# ---- the cache on disk ----


def test_what_was_read_once_is_read_from_disk_also_by_others(web, tmp_path):
    body = BODY * 3
    options = StoreOptions(cache=tmp_path, timeout=0.4, tries=2, wait=0.01)
    store = served(web, Served(body), options=options, size=len(body))
    assert store.range(SHARD, CHUNK - 5, 10) == body[CHUNK - 5 : CHUNK + 5]
    assert asked(web) == [f"bytes=0-{2 * CHUNK - 1}"]
    store.close()
    assert pickle.loads(pickle.dumps(store)).range(SHARD, 3, 2 * CHUNK - 3) == body[3 : 2 * CHUNK]
    assert len(asked(web)) == 1
    assert store.range(SHARD, 2 * CHUNK, CHUNK) == body[2 * CHUNK :]
    assert len(asked(web)) == 2


def test_a_damaged_chunk_is_fetched_again(web, tmp_path):
    store = served(web, Served(BODY), options=StoreOptions(cache=tmp_path), size=len(BODY))
    store.range(SHARD, 0, 10)
    (chunk,) = tmp_path.glob("??/*-0")
    for damage in (chunk.read_bytes()[:-900], b"\1" + chunk.read_bytes()[1:], b""):
        chunk.write_bytes(damage)
        assert store.range(SHARD, 0, 10) == BODY[:10]
    assert len(asked(web)) == 4


def test_a_full_disk_means_going_on_without_a_cache_and_one_warning(web, tmp_path, monkeypatch):
    store = served(web, Served(BODY), options=StoreOptions(cache=tmp_path), size=len(BODY))

    def full(path, body):
        path.touch()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert [store.range(SHARD, at, 9) for at in (0, 100)] == [BODY[:9], BODY[100:109]]
    assert [str(each.message) for each in said] == [
        f"{tmp_path}: cannot write (No space left on device); going on without caching"
    ]
    assert not list(tmp_path.glob("??/*"))


# ---- manifest and index ----


def test_the_index_is_mapped_from_the_cache_and_fetched_once(dataset, tmp_path):
    with FolderServer(dataset) as server:
        for _ in range(2):
            table = store_index(Store.open(server.url, StoreOptions(cache=tmp_path)), "train", ["key", "mp4_size"])
            assert table.column_names == ["key", "mp4_size"]
            assert table.equals(read_index(dataset).select(["key", "mp4_size"]))
        assert len([path for path, _ in server.requests if path.endswith("train.parquet")]) == 2  # its size, its bytes
    assert len(list(tmp_path.glob("??/*-index.arrow"))) == 1


def test_an_index_of_another_dataset_is_refused(dataset, tmp_path):
    copy = shutil.copytree(dataset, tmp_path / "copy")
    path = copy / "index" / "train.parquet"
    pq.write_table(read_index(dataset).slice(1), path)
    for cache in (None, tmp_path / "cache"):
        with pytest.raises(DataError, match="not the index that the manifest lists"):
            store_index(Store.open(copy, StoreOptions(cache=cache)))
    path.write_bytes(b"no parquet")
    list_files(copy)
    with pytest.raises(DataError, match="not readable as a shard index"):
        store_index(Store.open(copy))


def test_no_dataset_and_no_split_are_told_apart(dataset, web, tmp_path):
    with pytest.raises(DataError, match="no split 'test' of shots; it has train"):
        store_index(Store.open(dataset), "test")
    with pytest.raises(DataError, match="not a dataset directory"):
        store_index(Store.open(tmp_path), "train")
    with pytest.raises(DataError, match=r"not a dataset directory \(no manifest.json\); check the address"):
        store_manifest(Store.open(f"{web.url}/nothing", QUICK))
    web.serve("/old/manifest.json", Served(b'{"schema_version": "9.0"}'))
    with pytest.raises(DataError, match=r"schema 9\.0, this version reads"):
        store_manifest(Store.open(f"{web.url}/old", QUICK))


# ---- the Hub and S3 ----


@pytest.fixture
def hub(dataset, monkeypatch):
    from huggingface_hub import CommitOperationAdd, HfApi, constants

    with HubServer() as server:
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_HOME"):
            monkeypatch.setattr(constants, name, server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
        monkeypatch.setenv("HF_TOKEN", server.token)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)
        monkeypatch.setattr("huggingface_hub.HfApi", lambda: HfApi(endpoint=server.url))
        server.add_repo("dataset", "org/toons")
        server.publish = lambda folder: HfApi(endpoint=server.url, token=server.token).create_commit(
            "org/toons",
            [CommitOperationAdd(str(p.relative_to(folder)), p.read_bytes()) for p in sorted(folder.rglob("*")) if p.is_file()],
            commit_message="publish",
            repo_type="dataset",
        )
        server.publish(dataset)
        yield server


def test_the_hub_is_read_at_one_commit_also_after_the_next(hub, dataset, tmp_path):
    store = Store.open("hf://datasets/org/toons", QUICK)
    same_everywhere(store, dataset)
    other = tmp_path / "other"
    tiny_dataset.write_dataset(other, videos=1, per_shard=4)
    list_files(other)
    hub.publish(other)
    same_everywhere(pickle.loads(pickle.dumps(store)), dataset)
    newer = Store.open("hf://datasets/org/toons@main", QUICK)
    same_everywhere(newer, other)
    assert store.revision != newer.revision
    same_everywhere(Store.open(f"hf://datasets/org/toons@{store.revision}", QUICK), dataset)


def test_what_the_hub_refuses_is_one_line(hub):
    for address, said in {
        "hf://datasets/org/none": "no such dataset",
        "hf://datasets/org/toons@nope": "no revision 'nope'",
        "hf://org/toons": "write hf://datasets/ORG/NAME",
    }.items():
        with pytest.raises(DataError, match=said) as error:
            Store.open(address, QUICK)
        assert "\n" not in str(error.value)


def test_a_busy_hub_is_waited_for(hub, dataset):
    store = Store.open("hf://datasets/org/toons", QUICK)
    hub.fault("resolve", status=429, times=2, headers={"Retry-After": "0"})
    assert store.range(SHARD, 512, 50) == (dataset / SHARD).read_bytes()[512:562]


def test_the_address_of_the_storage_is_kept_until_it_expires_and_never_sees_the_token(dataset, monkeypatch):
    from huggingface_hub import constants

    with MediaServer() as hub, MediaServer() as storage:
        body = (dataset / SHARD).read_bytes()
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setenv("HF_TOKEN", "hf_secretSecret123")
        place = f"/datasets/org/toons/resolve/{'a' * 40}"
        hub.serve(f"{place}/{SHARD}", Served(status=302, headers={"Location": f"{storage.url}/blob?signed=1"}))
        storage.serve("/blob", Served(body), Served(body), Served(b"expired", status=403), Served(body))
        store = Store(f"hf://datasets/org/toons@{'a' * 40}", QUICK, None, "a" * 40)
        store._files = {}
        assert [store.range(SHARD, at, 20) for at in (0, 100, 200)] == [body[at : at + 20] for at in (0, 100, 200)]
        assert [each.headers.get("authorization") for each in hub.asked] == ["Bearer hf_secretSecret123"] * 2
        assert len(storage.asked) == 4
        assert "hf_secretSecret123" not in str(storage.asked)


MOTO = os.environ.get("ANIMESHOOTER_MOTO") or (sys.executable if importlib.util.find_spec("moto") else None)
"""A Python that has ``moto[server]``: this one, or the one that the environment variable names."""


@pytest.fixture(scope="module")
def s3():
    if MOTO is None:
        pytest.skip("moto is not installed; ANIMESHOOTER_MOTO may name a Python that has it")
    from pyarrow import fs

    code = (
        "from moto.server import ThreadedMotoServer as S; import sys; s = S(port=0); s.start(); "
        "print('at', *s.get_host_and_port(), flush=True); sys.stdin.read()"
    )
    process = subprocess.Popen(
        [MOTO, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    port = next(line for line in process.stdout if line.startswith("at ")).split()[2]
    os.environ |= {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing", "AWS_EC2_METADATA_DISABLED": "true"}
    yield fs.S3FileSystem(endpoint_override=f"127.0.0.1:{port}", scheme="http", allow_bucket_creation=True), f"127.0.0.1:{port}"
    process.stdin.close()
    process.wait()


def test_a_real_s3_server_gives_the_same(s3, dataset, tmp_path):
    from pyarrow import fs

    system, endpoint = s3
    system.create_dir("toons")
    fs.copy_files(str(dataset), "toons/v1", destination_filesystem=system)
    options = f"endpoint_override={endpoint}&scheme=http"
    store = Store.open(f"s3://toons/v1?{options}", StoreOptions(cache=tmp_path, tries=2, wait=0.01))
    assert store.name == "s3://toons/v1"
    same_everywhere(store, dataset)
    same_everywhere(pickle.loads(pickle.dumps(store)), dataset)
    for address, said in {"toons/none": "s3://toons/none: not a dataset directory", "nobucket/x": "not"}.items():
        with pytest.raises(DataError, match=said) as error:
            store_manifest(Store.open(f"s3://{address}?{options}", QUICK))
        assert "\n" not in str(error.value)
    with system.open_output_stream(f"toons/v1/{SHARD}") as file:
        file.write(BODY)
    with pytest.raises(DataError, match=f"changed under the reader .it has {len(BODY)} bytes"):
        Store.open(f"s3://toons/v1?{options}", QUICK).range(SHARD, 0, 10)
