"""Small copies of stored pictures, as data: URIs."""

from __future__ import annotations

import base64
import io
import os

from PIL import Image

from diptych.data.picture_safety import PictureError, PictureFile
from diptych.data.shard_index_file import PICTURE_SUFFIXES, ShardError
from diptych.data.shards import open_index, read_member
from diptych_shards.report.gather import Example
from diptych_shards.report.rows import Source

LONGER_SIDE = 300
"""Pixels; the page shows half of them on a usual screen, all on a fine one."""
_QUALITY = 78


def thumbnail(source: Source, example: Example) -> str | None:
    """Encoded anew, so that nothing of the stored file gets into the page; None if the picture cannot be read."""
    try:
        picture = _decoded(_stored(source, example))
    except (ShardError, PictureError, OSError):
        return None
    picture.thumbnail((LONGER_SIDE, LONGER_SIDE), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=_QUALITY, method=4)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode("ascii")


def _stored(source: Source, example: Example) -> bytes:
    tar = source.tar(example.shard)
    index = open_index(tar)
    if example.sample >= len(index):
        raise ShardError(f"{tar.name} has no sample {example.sample}")
    _, members = index.sample(0, example.sample)
    descriptor = os.open(tar, os.O_RDONLY)
    try:
        return read_member(descriptor, next(m for m in members if m.suffix in PICTURE_SUFFIXES))
    except StopIteration as error:
        raise ShardError(f"sample {example.sample} of {tar.name} has no picture") from error
    finally:
        os.close(descriptor)


def _decoded(data: bytes) -> Image.Image:
    picture, _ = PictureFile(data).decode()
    # A copy without the metadata that Pillow would carry into the new file.
    return Image.frombytes("RGB", picture.size, picture.tobytes())
