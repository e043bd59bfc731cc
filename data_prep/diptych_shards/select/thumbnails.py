"""Small copies of pictures, encoded anew in a process that may die of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from diptych.data.picture_safety import PictureError
from diptych.data.shard_index_file import ShardError
from diptych.pages.thumbnail import thumbnail_uri
from diptych_shards.pictures.perceptual_hash import STEADY, perceptual_hash
from diptych_shards.run.worker_pool import PICTURE_SILENCE_SECONDS, WorkerPool, for_each, results_in_order
from diptych_shards.select.pictures import Place, decoded

LONGER_SIDE = 240


@dataclass(frozen=True)
class Thumbnail:
    """A data: URI, and of the picture that it shows the size and the perceptual hash, which flat pictures lack."""

    uri: str
    width: int
    height: int
    look: int | None


def thumbnails(places: Sequence[Place], processes: int) -> dict[Place, Thumbnail | None]:
    """None for a picture that cannot be shown."""
    distinct = list(dict.fromkeys(places))
    batches = (distinct[start : start + 8] for start in range(0, len(distinct), 8))
    size = min(processes, max(len(distinct), 1))
    with WorkerPool(for_each(thumbnail), size, silence_seconds=PICTURE_SILENCE_SECONDS) as pool:
        found = list(results_in_order(pool, batches, give_up=_cannot_be_shown))
    return dict(zip(distinct, found, strict=True))


def thumbnail(place: Place) -> Thumbnail | None:
    try:
        pixels = decoded(place.read())
    except (PictureError, ShardError, OSError):
        return None
    picture = Image.fromarray(pixels)
    return Thumbnail(thumbnail_uri(picture, LONGER_SIDE), *picture.size, perceptual_hash(pixels, margin=STEADY))


def _cannot_be_shown(place: Place) -> None:
    return None
