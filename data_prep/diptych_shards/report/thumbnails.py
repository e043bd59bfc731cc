"""Small copies of stored pictures, as data: URIs."""

from __future__ import annotations

import os

from diptych.data.picture_safety import PictureError, PictureFile
from diptych.data.shard_index_file import PICTURE_SUFFIXES, ShardError
from diptych.data.shards import open_index, read_member
from diptych.pages.thumbnail import thumbnail_uri
from diptych_shards.report.rows import Source

LONGER_SIDE = 300
"""Pixels; the page shows half of them on a usual screen, all on a fine one."""


def thumbnail(source: Source, shard: int, sample: int) -> str | None:
    """The picture of a sample as a data: URI; None if it cannot be read."""
    try:
        picture, _ = PictureFile(_stored(source, shard, sample)).decode()
    except (ShardError, PictureError, OSError):
        return None
    return thumbnail_uri(picture, LONGER_SIDE)


def _stored(source: Source, shard: int, sample: int) -> bytes:
    tar = source.tar(shard)
    index = open_index(tar)
    if sample >= len(index):
        raise ShardError(f"{tar.name} has no sample {sample}")
    _, members = index.sample(0, sample)
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        return read_member(descriptor, next(m for m in members if m.suffix in PICTURE_SUFFIXES))
    except StopIteration as error:
        raise ShardError(f"sample {sample} of {tar.name} has no picture") from error
    finally:
        os.close(descriptor)
