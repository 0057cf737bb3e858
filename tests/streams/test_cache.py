"""Merging of ranges, reading ahead within bounds, and the cache on disk that processes share."""

import multiprocessing
import os
import threading
import time

from streams import cache
from streams.cache import CHUNK, Ahead, DiskCache, merged


def until(true, seconds=20):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_merging_keeps_gaps_sizes_and_the_order_of_reading():
    blocks = merged([("b", 0, 10), ("a", 100, 10), ("a", 0, 10), ("a", 20, 10), ("b", 15, 10)], gap=10, most=1000)
    assert [(block.name, block.start, block.end) for block in blocks] == [("b", 0, 25), ("a", 100, 110), ("a", 0, 30)]
    assert [block.size for block in merged([("a", at, 10) for at in range(0, 100, 10)], gap=0, most=40)] == [40, 40, 20]
    assert [block.size for block in merged([("a", 0, 500)], gap=0, most=40)] == [500]


def test_reading_ahead_stays_within_its_bytes_and_forgets_what_was_passed_over(monkeypatch):
    monkeypatch.setattr(cache, "BEHIND", 2)
    fetched, lock = [], threading.Lock()

    def fetch(name, offset, size):
        with lock:
            fetched.append(offset)
        return bytes([offset // 10]) * size

    ahead = Ahead(fetch, limit=30, threads=2, gap=-1, most=10)
    ahead.hint([("a", at, 10) for at in range(0, 200, 10)])
    until(lambda: len(fetched) == 3)
    assert ahead._held == 30
    assert ahead.take("a", 100, 10) == bytes([10]) * 10  # read by the one who asks, out of turn
    until(lambda: len(fetched) > 6)  # 0, 10 and 20 made room
    assert ahead._held <= 30
    assert ahead.take("a", 110, 10) == bytes([11]) * 10
    assert ahead.take("b", 0, 10) is None
    ahead.close()


def test_the_cache_keeps_its_size_drops_what_is_oldest_and_clears_leftovers(tmp_path):
    limit = 12 * CHUNK
    cache = DiskCache(tmp_path, limit)
    cache.put("x", 0, b"0" * CHUNK)
    leftover = cache.path("x", 99).with_name("dead.1-2.part")
    leftover.write_bytes(b"half")
    os.utime(leftover, (1, 1))
    for part in range(1, 40):
        now = time.time() - 1000 + part
        assert cache.get("x", 0, CHUNK)  # used all the time
        cache.put("x", part, bytes([part]) * CHUNK)
        os.utime(cache.path("x", part), (now, now))
        assert sum(path.stat().st_size for path in tmp_path.glob("??/*")) <= limit + 2 * CHUNK
    assert not leftover.exists()
    assert cache.get("x", 39, CHUNK) == bytes([39]) * CHUNK
    assert cache.get("x", 1, CHUNK) is None


def fill(folder, seed):
    cache = DiskCache(folder, 6 * CHUNK)
    for number in range(60):
        part = (number * seed) % 11
        body = cache.get("y", part, CHUNK // 8)
        assert body in (None, bytes([part]) * (CHUNK // 8))
        cache.put("y", part, bytes([part]) * (CHUNK // 8))


def test_processes_share_a_cache_without_harm(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=fill, args=(tmp_path, seed)) for seed in (1, 3, 7)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert not list(tmp_path.glob("??/*.part"))
