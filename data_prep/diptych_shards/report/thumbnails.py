"""Small copies of stored pictures, as data: URIs."""

from __future__ import annotations

from diptych.data.picture_safety import PictureError, PictureFile
from diptych.data.shard_index_file import ShardError
from diptych.data.shards import open_index
from diptych.pages.thumbnail import thumbnail_uri
from diptych_shards.report.rows import ResultsReader

LONGER_SIDE = 300
"""Pixels; the page shows half of them on a usual screen, all on a fine one."""


def thumbnail(source: ResultsReader, shard: int, sample: int) -> str | None:
    """The picture of a sample as a data: URI; None if it cannot be read."""
    try:
        picture, _ = PictureFile(_stored(source, shard, sample)).decode()
    except (ShardError, PictureError, OSError):
        return None
    return thumbnail_uri(picture, LONGER_SIDE)


def _stored(source: ResultsReader, shard: int, number: int) -> bytes:
    index = open_index(source.tar(shard))
    name = index.shards[0].name
    if number >= len(index):
        raise ShardError(f"{name} has no sample {number}")
    sample = index.sample(0, number)
    if sample.picture_suffix is None:
        raise ShardError(f"sample {number} of {name} has no picture")
    return index.read(sample, sample.picture_suffix)[sample.picture_suffix]
