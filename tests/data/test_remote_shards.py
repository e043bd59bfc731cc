"""Shards at addresses give the same samples as those on a disk, whatever the store and the network do."""

import os
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest
from s3fs import S3FileSystem

from diptych.config.schema import CacheConfig, DataConfig
from diptych.data import remote_shards, shard_download
from diptych.data.mixture import open_mixture
from diptych.data.shard_cache import FullCacheError, ShardCache
from diptych.data.shard_download import RemoteShardError
from diptych.data.shard_index_file import index_path
from diptych.data.shard_list import write_folder_list
from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import ShardError, open_index
from diptych.data.shards_ahead import each_ahead, shards_ahead
from diptych.data.unique_captions import caption_hashes
from diptych.errors import UserError
from diptych.evaluation.picture_sources import open_captioned
from diptych_shards.cli import main as shards_main
from tests.commands import PATIENCE_SECONDS
from tests.data import test_loader
from tests.data.remote_store import (
    STORE_SETTINGS,
    Proxy,
    answer,
    busy,
    drip,
    other_bytes,
    put,
    reset,
    s3_server,
    truncate,
    upload,
)

NUM_SHARDS = 4


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(NUM_SHARDS):
        with ShardWriter(folder, shard) as writer:
            for number in range(5):
                writer.add(f"{shard}-{number}", {"jpg": os.urandom(1500), "txt": f"caption {shard} {number}".encode()})
    return folder


@pytest.fixture(scope="module")
def proxy(shards):
    with s3_server() as port, pytest.MonkeyPatch.context() as patch:
        upload(port, shards, "shards")
        for name in ("bare/00000.tar", "moved/_index/00000.tar.index"):
            put(port, name, b"bytes")
        proxy = Proxy(port)
        for name, value in STORE_SETTINGS.items():
            patch.setenv(name, value)
        # fsspec keeps its file systems, so all tests of this process use the same address.
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        yield proxy
        proxy.close()


@pytest.fixture
def store(proxy, monkeypatch):
    # A test that ended at one shard may leave others being fetched.
    wait_until(lambda: all(thread.name != "shards-ahead" for thread in threading.enumerate()))
    proxy.forget()
    monkeypatch.setattr(shard_download, "FIRST_PAUSE_SECONDS", 0.01)
    return proxy


@pytest.fixture
def cache(tmp_path):
    return ShardCache(tmp_path / "cache")


def content(index):
    return [(sample.key, index.read(sample)) for sample in index.samples()]


def test_shards_of_a_store_are_those_of_the_folder(shards, store, cache):
    local, remote = open_index(shards), open_index("s3://bucket/shards", cache)
    assert remote.fingerprint == local.fingerprint and remote.counts.tolist() == local.counts.tolist()
    assert store.tars == []
    assert content(remote) == content(local)
    assert content(open_index("s3://bucket/shards/{00000..00003}.tar", cache)) == content(local)
    assert [name for name, _ in store.tars] == [shard.name for shard in local.shards]


def test_shards_of_a_disk_and_of_a_store_are_one_index_in_the_order_of_the_locations(shards, store, cache):
    locations = ["s3://bucket/shards/00002.tar", shards / "00000.tar", "s3://bucket/shards/00001.tar"]
    index = open_index(locations, cache)
    assert [shard.name for shard in index.shards] == ["00002.tar", "00000.tar", "00001.tar"]
    assert content(index)[5:10] == content(open_index(shards / "00000.tar"))
    with pytest.raises(ShardError, match="00002.tar' is given more than once"):
        open_index([*locations, "s3://bucket/shards/00002.tar"], cache)


def test_a_list_of_the_folder_saves_a_request_for_each_shard(shards, store, cache, tmp_path):
    for file in shards.rglob("*.*"):
        (tmp_path / "listed" / file.relative_to(shards)).parent.mkdir(parents=True, exist_ok=True)
        os.link(file, tmp_path / "listed" / file.relative_to(shards))
    write_folder_list(tmp_path / "listed")
    upload(store.behind, tmp_path / "listed", "listed")
    index = open_index("s3://bucket/listed", cache)
    assert index.fingerprint == open_index(shards).fingerprint
    assert [path for path in store.others if path.endswith(".tar.index")] == []
    assert content(index) == content(open_index(shards))


def test_index_files_are_fetched_several_at_a_time_for_the_hashes_of_captions(
    shards, store, cache, monkeypatch, tmp_path
):
    together, fetch_index = threading.Barrier(NUM_SHARDS, timeout=PATIENCE_SECONDS), ShardCache.fetch_index
    monkeypatch.setattr(
        ShardCache, "fetch_index", lambda cache, shard: together.wait() >= 0 and fetch_index(cache, shard)
    )
    (tmp_path / "local").mkdir()
    found = caption_hashes(open_index("s3://bucket/shards", cache), tmp_path)
    assert found.tolist() == caption_hashes(open_index(shards), tmp_path / "local").tolist()
    assert store.tars == []


@contextmanager
def plain_web_server(folder):
    """Serve a folder without ranges during the block; the value is its address, and the paths asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    web = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder)))
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{web.server_port}/", asked
    finally:
        web.shutdown()
        web.server_close()
        thread.join()


def test_a_web_server_that_knows_no_ranges_is_read(shards, cache, monkeypatch):
    monkeypatch.setattr(shard_download, "PART_BYTES", 5000)
    with plain_web_server(shards) as (url, _):
        assert content(open_index(url, cache)) == content(open_index(shards))


@pytest.mark.parametrize("part_bytes", [5000, 16 << 20])
@pytest.mark.parametrize("kept", [0.3, 0.7])
def test_a_truncated_shard_of_a_server_without_ranges_is_not_waited_for(
    shards, store, cache, monkeypatch, tmp_path, kept, part_bytes
):
    monkeypatch.setattr(shard_download, "PART_BYTES", part_bytes)
    monkeypatch.setattr(shard_download, "PATIENCE_SECONDS", 0.5)
    shutil.copytree(shards, tmp_path / "shards")
    size = (shards / "00000.tar").stat().st_size
    os.truncate(tmp_path / "shards" / "00000.tar", int(size * kept))
    with plain_web_server(tmp_path / "shards") as (url, asked):
        expected = f"^{url}00000.tar has {int(size * kept)} bytes, its index says {size}; copy both there again$"
        with pytest.raises(RemoteShardError, match=expected):
            content(open_index(url, cache))
        assert asked.count("/00000.tar") == 2


def test_a_damaged_index_file_of_a_store_is_not_waited_for(shards, store, cache, monkeypatch, tmp_path):
    monkeypatch.setattr(shard_download, "PATIENCE_SECONDS", 0.5)
    shutil.copytree(shards, tmp_path / "shards")
    data = bytearray(index_path(tmp_path / "shards" / "00000.tar").read_bytes())
    data[-3] ^= 1
    index_path(tmp_path / "shards" / "00000.tar").write_bytes(data)
    upload(store.behind, tmp_path / "shards", "damaged_index")
    index = open_index("s3://bucket/damaged_index", cache)
    with pytest.raises(RemoteShardError, match=r"^s3://.*/_index/00000.tar.index is damaged; copy it there again$"):
        index.sample(0, 0)


@pytest.mark.parametrize("fault", [busy, reset, truncate, drip, other_bytes])
def test_a_fault_of_the_network_changes_nothing(shards, store, cache, monkeypatch, fault):
    monkeypatch.setattr(shard_download, "ANSWER_SECONDS", 0.4)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    index = open_index("s3://bucket/shards", cache)
    store.faults += [fault, fault] if fault is not other_bytes else [fault]
    assert content(index) == content(open_index(shards))
    assert store.faults == [] and len(store.tars) > NUM_SHARDS


def test_bytes_that_are_not_those_of_the_index_are_refused_in_one_line(store, cache):
    store.faults += [other_bytes, other_bytes]
    with pytest.raises(RemoteShardError, match=r"^s3://bucket/shards/00000.tar: its [\d,]+ bytes are not those .*copy"):
        content(open_index("s3://bucket/shards", cache))
    assert not list(cache.folder.rglob("*.tar"))


def test_a_store_that_stays_broken_is_one_line(store, cache, monkeypatch):
    monkeypatch.setattr(shard_download, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    store.faults += [busy] * 100
    with pytest.raises(RemoteShardError) as caught:
        content(open_index("s3://bucket/shards", cache))
    line = str(caught.value)
    assert line.startswith("s3://bucket/shards/00000.tar cannot be read: ") and " tries in " in line
    assert "\n" not in line and line.endswith("start the same command again")


def test_who_waits_for_a_download_that_fails_does_not_try_again(store, cache, monkeypatch):
    monkeypatch.setattr(shard_download, "PATIENCE_SECONDS", 0.05)
    monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
    shard = open_index("s3://bucket/shards", cache).shards[0]
    may_answer = threading.Event()

    def busy_later(handler, body):
        may_answer.wait(PATIENCE_SECONDS)
        busy(handler, body)

    store.faults += [busy_later, *[busy] * 100]
    with ThreadPoolExecutor(3) as threads:
        first = threads.submit(cache.reserve(shard))
        readers = [threads.submit(cache.open, shard) for _ in range(2)]
        time.sleep(0.1)
        assert not any(reader.done() for reader in readers)
        may_answer.set()
        lines = {str(one.exception()) for one in (first, *readers)}
    assert len(lines) == 1 and lines.pop().endswith("start the same command again")
    asked = len(store.tars)
    with pytest.raises(RemoteShardError):
        cache.reserve(shard)()
    assert len(store.tars) == asked
    store.forget()
    assert os.fstat(cache.open(shard).descriptor).st_size == shard.num_bytes


READ = """
import sys
from pathlib import Path
from diptych.data import shard_download
from diptych.data.shard_cache import FullCacheError, ShardCache
from diptych.data.shards import open_index
shard_download.PART_BYTES = int(sys.argv[2])
index = open_index("s3://bucket/shards", ShardCache(Path(sys.argv[1])))
print(sum(len(index.read(sample)["jpg"]) for sample in index.samples()))
"""


def reader(cache, part_bytes=16 << 20):
    command = [sys.executable, "-c", READ, cache.folder, str(part_bytes)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_fetch_each_shard_once(store, cache):
    store.delay_seconds = 0.2
    two = [reader(cache), reader(cache)]
    assert [process.communicate()[0] for process in two] == ["30000\n", "30000\n"]
    assert sorted(store.tars) == [(f"{shard:05d}.tar", 0) for shard in range(NUM_SHARDS)]


def test_a_killed_download_goes_on_where_it_was(shards, store, cache):
    is_asked, may_end = threading.Event(), threading.Event()

    def hang(*_):
        is_asked.set()
        may_end.wait(60)

    store.faults += [None, None, None, hang]
    killed = reader(cache, 2000)
    assert is_asked.wait(60)
    killed.kill()
    killed.communicate()
    may_end.set()
    store.tars.clear()
    assert content(open_index("s3://bucket/shards", cache)) == content(open_index(shards))
    assert store.tars[0] == ("00000.tar", 6000)


@pytest.mark.parametrize("is_cut", [False, True])
def test_a_cached_shard_that_is_damaged_is_fetched_again(shards, store, cache, caplog, is_cut):
    index = open_index("s3://bucket/shards", cache)
    content(index)
    shard = index.shards[1]
    with open(shard.path, "r+b") as file:
        file.seek(index.sample(1, 2).members[0].offset)
        file.truncate() if is_cut else file.write(b"other")
    index_path(index.shards[2].path).write_bytes(b"other")
    store.tars.clear()
    again = open_index("s3://bucket/shards", cache)
    assert content(again) == content(open_index(shards))
    assert store.tars == [("00001.tar", 0)]
    assert "s3://bucket/shards/00001.tar was damaged in the cache" in caplog.text


def test_a_cache_smaller_than_the_data_keeps_the_shards_used_last(shards, store, cache):
    local = open_index(shards)
    small = ShardCache(cache.folder, 2 * local.shards[0].num_bytes + 3000)
    index = open_index("s3://bucket/shards", small)
    for number in (0, 1, 0, 2, 0, 3):
        assert index.read(index.sample(number, 0)) == local.read(local.sample(number, 0))
        index = open_index("s3://bucket/shards", small)  # with no tar open
    assert [name for name, _ in store.tars] == ["00000.tar", "00001.tar", "00002.tar", "00003.tar"]
    assert sorted(path.name for path in cache.folder.rglob("*.tar")) == ["00000.tar", "00003.tar"]


def test_a_reader_does_not_keep_deleted_shards_on_the_disk(store, cache):
    index = open_index("s3://bucket/shards", ShardCache(cache.folder, 1))
    for number in range(NUM_SHARDS):
        index.read(index.sample(number, 0))
    files = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert len([file for file in files if str(cache.folder) in file and file.endswith(".tar (deleted)")]) <= 1


def test_a_held_shard_is_not_deleted_for_another(store, cache, caplog):
    small = ShardCache(cache.folder, 1)
    index = open_index("s3://bucket/shards", small)
    index.read(index.sample(0, 0))
    hold = small.reserve(index.shards[0])
    assert small.reserve(index.shards[0]) is None
    held = hold()
    with pytest.raises(FullCacheError):
        small.reserve(index.shards[1])
    index.read(index.sample(1, 0))
    assert index.shards[0].path.exists() and "set data.cache.bytes to more" in caplog.text
    del held, hold
    index.read(index.sample(2, 0))
    assert [path.name for path in cache.folder.rglob("*.tar")] == ["00002.tar"]


def test_a_cache_that_cannot_be_written_is_no_fault_of_the_samples(store, cache):
    cache.folder.touch()
    with pytest.raises(RemoteShardError, match="cannot be made: Not a directory; .* set data.cache.folder"):
        content(open_index("s3://bucket/shards", cache))


@pytest.mark.parametrize("is_member", [True, False])
def test_shards_of_a_store_are_verified_byte_for_byte(shards, store, monkeypatch, capsys, tmp_path, is_member):
    monkeypatch.setattr(shard_download, "PART_BYTES", 2000)
    assert shards_main(["verify", "s3://bucket/shards"]) == 0
    assert capsys.readouterr().out == "4 shards, 20 samples, all as indexed: s3://bucket/shards\n"
    offset = open_index(shards).sample(2, 3).members[0].offset
    shutil.copytree(shards, tmp_path / "spoiled")
    data = bytearray((shards / "00002.tar").read_bytes())
    data[offset + 10 if is_member else offset - 512] ^= 1
    (tmp_path / "spoiled" / "00002.tar").write_bytes(data)
    upload(store.behind, tmp_path / "spoiled", f"spoiled_{is_member}")
    assert shards_main(["verify", f"s3://bucket/spoiled_{is_member}"]) == 2
    what = f"2-3.jpg: at byte {offset}: the 1500 bytes are not" if is_member else "the members are whole, but bytes"
    last_line = capsys.readouterr().err.splitlines()[-1]
    assert last_line.startswith(f"diptych-shards: s3://bucket/spoiled_{is_member}/00002.tar: {what}")


def test_a_cache_with_less_room_than_the_shards_of_a_batch_is_doubtful(store, tmp_path):
    folder = str(tmp_path / "not made yet")
    config = DataConfig(train="s3://bucket/shards", cache=CacheConfig(folder=folder))
    mixture = open_mixture(config)
    assert list(mixture.doubtful(config, 8)) == []
    (doubt,) = mixture.doubtful(replace(config, cache=CacheConfig(folder=folder, bytes=50_000)), 8)
    assert doubt.startswith("batches are read from 4 shards at a time, about 8.19e-05 GB, and the cache may take 5e-05")
    assert not os.path.exists(folder)


def test_other_files_in_the_folder_of_the_cache_are_left_alone(store, cache):
    (cache.folder / "mine").mkdir(parents=True)
    (cache.folder / "mine" / "thesis.tar").write_bytes(bytes(5000))
    content(open_index("s3://bucket/shards", ShardCache(cache.folder, 1)))
    assert (cache.folder / "mine" / "thesis.tar").stat().st_size == 5000


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("s3://bucket/nothing", "s3://bucket/nothing holds no .tar file, or does not list"),
        ("s3://bucket/shards/{00000..00009}.tar", "s3://bucket/shards/00004.tar does not exist"),
        ("s3://bucket/bare", "s3://bucket/bare/00000.tar has no index; run `diptych-shards index` where"),
        ("s3://bucket/bare/00000.tar", "s3://bucket/bare/00000.tar has no index; run `diptych-shards index` where"),
        ("s3://bucket/moved", "s3://bucket/moved: '00000.tar' is indexed but not there"),
        ("store://bucket/shards", "store:// cannot be read; name a path, or an address at"),
        ("http://127.0.0.1:9/shards", "http://127.0.0.1:9/shards cannot be read: Connect call failed"),
    ],
)
def test_an_address_without_shards_is_one_line(store, cache, monkeypatch, location, said):
    monkeypatch.setattr(remote_shards, "OPENING_SECONDS", 0.05)
    with pytest.raises(UserError) as caught:
        open_index(location, cache)
    assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, proxy):
    folder = tmp_path_factory.mktemp("pictures")
    numbers = iter(range(100))
    for shard in range(6):
        with ShardWriter(folder, shard) as writer:
            for number in islice(numbers, 3 + shard % 2):
                writer.add(f"{number:04d}", {"png": test_loader.picture(number), "txt": f"picture {number}".encode()})
    upload(proxy.behind, folder, "pictures")
    return folder


def answered_together(number):
    """So many answers of which each waits until all have been asked for."""
    all_are_asked_for = threading.Barrier(number, timeout=PATIENCE_SECONDS)

    def answer_together(handler, body):
        all_are_asked_for.wait()
        answer(handler, body)

    return [answer_together] * number


def test_shards_are_fetched_several_at_a_time_in_the_order_of_need(store, cache, pictures, monkeypatch):
    begun, reserve = [], ShardCache.reserve
    monkeypatch.setattr(ShardCache, "reserve", lambda cache, shard: begun.append(shard.name) or reserve(cache, shard))
    store.faults += answered_together(3)
    index = open_index("s3://bucket/pictures", cache)
    plan = [[4], [4, 1], [0], [5], [2]]
    with shards_ahead(index, iter(plan), 2) as begin_piece:
        wait_until(lambda: all(index.shards[number].path.exists() for number in (4, 1, 0)))
        assert begun == ["00004.tar", "00001.tar", "00000.tar"]
        begin_piece()
        begin_piece()
        wait_until(lambda: all(index.shards[number].path.exists() for number in (5, 2)))
    assert begun[3:] == ["00005.tar", "00002.tar"] and len(store.tars) == 5
    store.forget()
    keys = [index.sample(shard, 0).key for shard in (4, 1, 0, 5, 2)]
    assert len(set(keys)) == 5 and store.others == []


def test_of_shards_that_cannot_be_fetched_the_one_that_is_read_first_is_reported(store, cache, pictures, tmp_path):
    batch = test_loader.load(pictures)[0]
    index = open_index(pictures)
    read = [index.shards[index.locate(sample)[0]].name for sample in batch.samples.tolist()]
    first, *_, last = dict.fromkeys(read)
    shutil.copytree(pictures, tmp_path / "spoiled")
    for name in (first, last):
        (tmp_path / "spoiled" / name).write_bytes(bytes((pictures / name).stat().st_size))
    upload(store.behind, tmp_path / "spoiled", "two_spoiled")
    with pytest.raises(ShardError, match=f"^s3://bucket/two_spoiled/{first}: its [0-9,]+ bytes are not those"):
        test_loader.load("s3://bucket/two_spoiled")


def test_a_full_cache_keeps_what_is_needed_next_until_it_was_read(store, cache, pictures, monkeypatch):
    monkeypatch.setattr("diptych.data.shards_ahead.FULL_SECONDS", 0.02)
    two_shards = 2 * int(open_index(pictures).shards.num_bytes.max()) + 2000  # with their index files
    index = open_index("s3://bucket/pictures", ShardCache(cache.folder, two_shards))
    with shards_ahead(index, iter([[0], [1], [2], [3]]), 4) as begin_piece:
        wait_until(lambda: index.shards[1].path.exists())
        for number in range(4):
            begin_piece()
            wait_until(lambda number=number: index.shards[number].path.exists())
            if number < 3:
                wait_until(lambda number=number: index.shards[number + 1].path.exists())
            assert len(list(cache.folder.rglob("*.tar"))) <= 2
    assert sorted(name for name, _ in store.tars) == ["00000.tar", "00001.tar", "00002.tar", "00003.tar"]


def test_pictures_of_a_store_are_evaluated_as_those_of_the_folder(pictures, store, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    store.faults += answered_together(3)
    local, remote = (open_captioned(location) for location in (str(pictures), "s3://bucket/pictures"))
    assert (remote.names, remote.captions) == (local.names, local.captions)
    assert len(store.tars) == 6
    assert [remote.read(place) for place in range(5)] == [local.read(place) for place in range(5)]


def test_some_samples_are_read_while_the_shards_of_the_next_are_fetched(store, cache, pictures):
    local, index = open_index(pictures), open_index("s3://bucket/pictures", cache)
    samples = [20, 19, 0, 1, 4, 12]
    store.faults += answered_together(3)
    read = {sample: index.read(index.sample(*index.locate(sample))) for sample in each_ahead(index, samples)}
    assert list(read) == samples and len(store.tars) == 4
    assert read == {sample: local.read(local.sample(*local.locate(sample))) for sample in samples}
    assert list(each_ahead(index, [])) == []


@pytest.mark.parametrize("max_bytes", [None, 1])
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_of_the_folder_with_any_cache(pictures, store, cache, monkeypatch, workers, max_bytes):
    # After a fork, open connections may not notice an answer for 15 seconds. Training has none when it forks.
    S3FileSystem.clear_instance_cache()
    monkeypatch.setattr(
        test_loader, "open_index", lambda shards: open_index(shards, ShardCache(cache.folder, max_bytes))
    )
    from_files = [test_loader.content(batch) for batch in test_loader.load(pictures)]
    from_store = [test_loader.content(batch) for batch in test_loader.load("s3://bucket/pictures", workers=workers)]
    assert from_store == from_files
    if max_bytes is None:
        assert sorted(name for name, _ in store.tars) == sorted(path.name for path in pictures.glob("*.tar"))


def wait_until(happened):
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)
