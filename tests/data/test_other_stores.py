"""Shards in Google's store and on the Hugging Face Hub give the batches of the folder, through the real clients."""

import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import fsspec
import pytest

from diptych.data import shard_download
from diptych.data.shard_cache import ShardCache
from diptych.data.shard_download import RemoteShardError
from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import open_index
from tests.data import test_loader

PART_BYTES = 4000


class Store(BaseHTTPRequestHandler):
    """Answers from the files of a folder that are below `shards/`, in ranges."""

    protocol_version = "HTTP/1.1"

    def do_GET(self):
        url = urlsplit(self.path)
        if self.server.status != 200:
            self.answer({"error": {"code": self.server.status, "message": "not for you"}}, self.server.status)
        else:
            self.find(unquote(url.path), {name: values[0] for name, values in parse_qs(url.query).items()})

    def file(self, name):
        path = self.server.folder / name.removeprefix("shards/")
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        if not path.is_file():
            self.answer({}, 404)
            return
        data = path.read_bytes()[int(first) : int(last) + 1 if last else None]
        if path.suffix == ".tar":
            self.server.read.append((path.name, len(data)))
        self.answer(data, 206 if "Range" in self.headers else 200)

    def listed(self, prefix):
        folder = self.server.folder / prefix.removeprefix("shards").strip("/")
        return {f"{prefix.rstrip('/')}/{path.name}": path.stat().st_size for path in folder.glob("*.*")}

    def answer(self, said, status=200):
        data = said if isinstance(said, bytes) else json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


class GoogleStore(Store):
    def find(self, path, query):
        if path.startswith("/download/"):
            self.file(path.partition("/o/")[2])
        else:
            files = self.listed(query["prefix"])
            self.answer({"items": [{"name": name, "bucket": "b", "size": str(size)} for name, size in files.items()]})


class Hub(Store):
    def find(self, path, query):
        if "/resolve/main/" in path:
            self.file(path.partition("/resolve/main/")[2])
        elif "/tree/main/" in path:
            files = self.listed(path.partition("/tree/main/")[2])
            self.answer([{"type": "file", "path": name, "size": size, "oid": "0"} for name, size in files.items()])
        else:
            self.answer({"id": "me/pairs", "private": False, "tags": [], "downloads": 0, "likes": 0})


@contextmanager
def served(kind, folder):
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    server.daemon_threads = True
    server.folder, server.status, server.read = folder, 200, []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    for shard in range(2):
        with ShardWriter(folder, shard) as writer:
            for number in range(10 * shard, 10 * shard + 10):
                writer.add(f"{number:04d}", {"png": test_loader.picture(number), "txt": f"picture {number}".encode()})
    return folder


@pytest.fixture(params=["gs", "hf"])
def store(request, shards, monkeypatch):
    kind, address = {
        "gs": (GoogleStore, "gs://bucket/shards"),
        "hf": (Hub, "hf://datasets/me/pairs/shards"),
    }[request.param]
    monkeypatch.setattr(shard_download, "PART_BYTES", PART_BYTES)
    monkeypatch.setattr(shard_download, "LEAST_PART_BYTES", PART_BYTES)
    with served(kind, shards) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        settings = {"gs": {"endpoint_url": url, "token": "anon"}, "hf": {"endpoint": url}}
        for scheme, values in settings.items():
            monkeypatch.setitem(fsspec.config.conf, scheme, values)
        server.address = address
        yield server


def test_batches_of_loader_processes_are_those_of_the_folder(shards, store, tmp_path, monkeypatch):
    from_files = [test_loader.content(batch) for batch in test_loader.load(shards)]
    monkeypatch.setattr(test_loader, "open_index", lambda shards: open_index(shards, ShardCache(tmp_path / "cache")))
    from_store = [test_loader.content(batch) for batch in test_loader.load(store.address, workers=2)]
    assert from_store == from_files
    read = {name: sum(size for one, size in store.read if one == name) for name, _ in store.read}
    assert read == {path.name: path.stat().st_size for path in shards.glob("*.tar")}
    assert max(size for _, size in store.read) == PART_BYTES


@pytest.mark.parametrize("status", [401, 403])
def test_what_may_not_be_read_is_said_at_once(store, status):
    store.status = status
    with pytest.raises(
        RemoteShardError, match=rf"^{store.address} cannot be read: .*(not for you|authenticated)"
    ) as caught:
        open_index(store.address)
    assert "\n" not in str(caught.value) and " tries in " not in str(caught.value)
