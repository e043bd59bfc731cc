"""Measure how long training waits for shards of a store at a limited rate; prints one line of JSON.

The store is an HTTP server on this machine that sends at most `--megabytes` a second in all, each answer after 30 ms.
One loader process decodes. The consumer takes a batch every `--step-milliseconds`, as a GPU would; what it waits beyond
that is the wait for data, as a share of the time. The first three batches are left out, since they wait for the first
shards of all streams; `first_seconds` is the time to the first one. Run in turn: shards of the disk, of the store
fetched ahead, and of the store fetched when they are read.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from unittest import mock

import sklearn
from benchmarks.loader.shards import KINDS, write_shard

from diptych.config.schema import DataConfig, ImageTowerConfig
from diptych.data import sample_reader
from diptych.data.decoder import Decoder
from diptych.data.loader import batches
from diptych.data.loader_processes import LoaderProcesses
from diptych.data.order import SampleOrder
from diptych.data.shard_cache import ShardCache
from diptych.data.shard_list import write_folder_list
from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import open_index
from diptych.data.tokenizer import load_tokenizer

PHOTOGRAPHS = Path(sklearn.__file__).parent / "datasets" / "images"
SHARDS, SAMPLES, PICTURES = 12, 320, 64
BATCH, STREAMS, LEFT_OUT = 128, 4, 3
CHUNK_BYTES = 1 << 18


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--megabytes", type=float, default=40.0)
    parser.add_argument("--step-milliseconds", type=float, default=250.0)
    chosen = parser.parse_args()
    step_seconds = chosen.step_milliseconds / 1000
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_shards(folder)
        with store(folder / "shards", chosen.megabytes * 1e6) as url:
            result = {
                "of_the_disk": waits(str(folder / "shards"), folder / "none", step_seconds),
                "fetched_ahead": waits(url, folder / "ahead", step_seconds),
            }
            with mock.patch.object(sample_reader, "shards_ahead", lambda *_: nullcontext(lambda: None)):
                result["fetched_when_read"] = waits(url, folder / "when_read", step_seconds)
        num_bytes = sum(path.stat().st_size for path in (folder / "shards").glob("*.tar"))
    used = num_bytes / SHARDS / SAMPLES * BATCH / step_seconds / 1e6
    print(json.dumps({"benchmark": "remote", **vars(chosen), "megabytes_used": round(used, 1), **result}))


def make_shards(folder: Path) -> None:
    """Write SHARDS different shards of the same pictures."""
    write_shard(folder / "pictures", KINDS[0], PICTURES, sorted(PHOTOGRAPHS.glob("*.jpg")))
    index = open_index(folder / "pictures")
    pictures = [index.read(sample) for sample in index.samples()]
    (folder / "shards").mkdir()
    for shard in range(SHARDS):
        with ShardWriter(folder / "shards", shard) as writer:
            for number in range(SAMPLES):
                writer.add(f"{shard:03}{number:06}", pictures[number % PICTURES])
    write_folder_list(folder / "shards")


@contextmanager
def store(folder: Path, bytes_per_second: float) -> Iterator[str]:
    """Serve the files of a folder during the block, in ranges; the value is its address."""
    lock = threading.Lock()
    free_at = 0.0

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            nonlocal free_at
            path = folder / self.path.lstrip("/")
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            data = path.read_bytes()[int(first) : int(last) + 1 if last else None] if path.is_file() else b""
            self.send_response(404 if not path.is_file() else 206 if "Range" in self.headers else 200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            time.sleep(0.03)
            for start in range(0, len(data), CHUNK_BYTES):
                chunk = data[start : start + CHUNK_BYTES]
                with lock:
                    free_at = max(free_at, time.monotonic()) + len(chunk) / bytes_per_second
                    pause = free_at - time.monotonic()
                time.sleep(max(0.0, pause))
                self.wfile.write(chunk)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def waits(location: str, cache: Path, step_seconds: float) -> dict[str, Any]:
    """Take all batches of an epoch at the pace of a step; return the share of the time that was waited for data."""
    index = open_index(location, ShardCache(cache))
    order = SampleOrder(index.counts, seed=0, global_batch_size=BATCH, shuffle_window=SAMPLES, streams=STREAMS)
    decode = Decoder(DataConfig(train=location), ImageTowerConfig(image_size=224), 0)
    number = index.total_samples // BATCH
    waited = []
    with LoaderProcesses(1) as processes:
        loading = batches(
            index,
            order,
            decode,
            load_tokenizer("clip"),
            context_length=77,
            rows=(0, BATCH),
            first=0,
            stop=number,
            processes=processes,
        )
        with closing(loading):
            for _ in range(number):
                started = time.monotonic()
                next(loading)
                waited.append(time.monotonic() - started)
                time.sleep(step_seconds)
    later = waited[LEFT_OUT:]
    share = sum(later) / (sum(later) + len(later) * step_seconds)
    longest = max(later)
    return {"wait": round(share, 4), "longest_seconds": round(longest, 2), "first_seconds": round(waited[0], 2)}


if __name__ == "__main__":
    main()
