"""The cache of shards takes no more than it may, however many fetch at once."""

import fcntl
import hashlib
import os
import random
import shutil
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor

import pytest

from diptych.data.cache_room import CacheRoom
from diptych.locks import locked

BOUND = 10_000
THREADS, ROUNDS = 8, 5


def tar_of(room, name):
    return room.folder / hashlib.sha256(name.encode()).hexdigest() / f"{name}.tar"


def fetch(room, name, num_bytes):
    """Fetch a shard as the cache does; whether there was room."""
    tar = tar_of(room, name)
    with locked(tar.parent, "download"):
        partial = room.take(tar, num_bytes)
        if partial is not None:
            write(partial, tar, num_bytes)
    return partial is not None


def write(partial, tar, num_bytes):
    partial.write_bytes(bytes(num_bytes))
    os.replace(partial, tar)


def names_of(room):
    return sorted(path.stem for path in room.folder.rglob("*.tar"))


@pytest.mark.parametrize("seed", range(3))
def test_shards_that_are_there_or_under_way_never_take_more_than_the_bound(tmp_path, seed):
    room = CacheRoom(tmp_path, BOUND)
    begin, all_took, go_on = (threading.Barrier(THREADS + 1, timeout=60) for _ in range(3))

    def work(thread):
        sizes = random.Random(f"{seed} {thread}")
        for number in range(ROUNDS):
            tar, num_bytes = tar_of(room, f"{thread}-{number}"), sizes.randrange(500, 4000)
            with locked(tar.parent, "download"):
                begin.wait()
                partial = room.take(tar, num_bytes)
                all_took.wait()
                go_on.wait()
                if partial is not None:
                    write(partial, tar, num_bytes)

    def taken():
        partial = [int(path.name.split(".")[-2]) for path in tmp_path.rglob("*.partial")]
        return sum(partial) + sum(path.stat().st_size for path in tmp_path.rglob("*.tar"))

    sums = []
    with ThreadPoolExecutor(THREADS) as pool:
        works = [pool.submit(work, thread) for thread in range(THREADS)]
        for _ in range(ROUNDS):
            begin.wait()
            all_took.wait()
            sums.append(taken())
            go_on.wait()
        for one in works:
            one.result()
    assert BOUND / 2 < max(sums) <= BOUND


def test_bytes_under_way_are_not_counted_as_free_space_of_the_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: namedtuple("Usage", "free")(1000))
    room = CacheRoom(tmp_path, None)
    with locked(tar_of(room, "a").parent, "download"):
        assert room.take(tar_of(room, "a"), 300) is not None
        assert not fetch(room, "b", 300)
        assert fetch(room, "c", 200)


def test_the_folder_is_looked_through_only_when_it_may_be_full(tmp_path, monkeypatch):
    looked = []
    entries = CacheRoom._entries
    monkeypatch.setattr(CacheRoom, "_entries", lambda room: looked.append(room) or entries(room))
    room = CacheRoom(tmp_path, BOUND)
    assert all(fetch(room, f"{number:02}", 100) for number in range(100))
    assert len(looked) == 1
    assert all(fetch(room, f"{number:02}", 10) for number in range(100, 110))
    assert len(looked) == 2 and names_of(room)[:2] == ["02", "03"]


def test_room_that_was_made_by_hand_is_found(tmp_path):
    room = CacheRoom(tmp_path, BOUND)
    assert fetch(room, "a", BOUND)
    with open(tar_of(room, "a")) as tar:
        fcntl.flock(tar, fcntl.LOCK_SH)
        assert not fetch(room, "b", BOUND)
        shutil.rmtree(tar_of(room, "a").parent)
        assert fetch(room, "b", BOUND)
    assert names_of(room) == ["b"]
