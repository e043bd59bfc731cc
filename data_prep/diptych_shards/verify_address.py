"""Check shards of a store byte for byte against their index, without keeping them."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from diptych.data.shard_cache import ShardCache
from diptych.data.shard_download import parts_of
from diptych.data.shard_index_file import Shard, ShardError
from diptych.data.shard_table import Table
from diptych.data.shards import ShardIndex, open_index
from diptych.terminal import shown
from diptych_shards.run.progress import Progress

SHARDS_AT_ONCE = 4
"""Each takes up to 80 MB of memory: a part of the shard, and a member that starts in an earlier part."""


def verify_address(location: str) -> ShardIndex:
    """Read every byte of every shard of a folder, a tar or a brace pattern at an address; the result is their index.

    Raises:
        ShardError: at the first shard that is missing, incomplete or changed; with its first broken member.
        RemoteShardError: a file cannot be read, whatever was tried.
    """
    with tempfile.TemporaryDirectory(prefix="diptych-index-") as folder:
        index = open_index(location, ShardCache(Path(folder)))
        progress = Progress(len(index), "sample")
        pool = ThreadPoolExecutor(SHARDS_AT_ONCE, thread_name_prefix="verify")
        is_over = threading.Event()
        try:
            for shard in pool.map(lambda shard: _verify_shard(shard, is_over), index.shards):
                progress.add(shard.samples)
                progress.shard_is_done(shown(shard.name))
        finally:
            is_over.set()
            pool.shutdown(cancel_futures=True)
            progress.close()
    return index


def _verify_shard(shard: Shard, is_over: threading.Event) -> Shard:
    samples = Table(shard).samples(range(shard.samples))
    members = [(m.offset, m.size, m.xxh3, f"{sample.key}.{m.suffix}") for sample in samples for m in sample.members]
    members.sort(reverse=True)
    shutil.rmtree(shard.path.parent)  # its index file, which takes a megabyte
    whole = hashlib.sha256()
    start, held = 0, b""  # bytes of the shard from `start` on: of the member that goes on in the next part
    for part in parts_of(shard.location, shard.num_bytes):
        if is_over.is_set():
            break
        whole.update(part)
        held += part
        stop = start + len(held)
        while members and sum(members[-1][:2]) <= stop:
            offset, size, xxh3, name = members.pop()
            if xxhash.xxh3_64_intdigest(held[offset - start : offset - start + size]) != xxh3:
                raise ShardError(
                    f"{shown(shard.location)}: {shown(name)}: at byte {offset}: the {size} bytes are not those that "
                    f"were indexed"
                )
        next_start = min(stop, members[-1][0]) if members else stop
        start, held = next_start, held[next_start - start :]
    if whole.hexdigest() != shard.sha256 and not is_over.is_set():
        raise ShardError(f"{shown(shard.location)}: the members are whole, but bytes between them are not")
    return shard
