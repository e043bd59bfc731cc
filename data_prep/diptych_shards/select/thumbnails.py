"""Small copies of pictures, encoded anew in a process that may die of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from diptych.data.picture_safety import PictureError
from diptych.data.shard_index_file import ShardError
from diptych.pages.thumbnail import thumbnail_uri
from diptych_shards.pictures.perceptual_hash import STEADY, perceptual_hash
from diptych_shards.run.worker_pool import Crew
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
    with Crew(thumbnail, min(processes, max(len(distinct), 1)), give_up=_cannot_be_shown) as crew:
        found = list(crew.map(distinct[start : start + 8] for start in range(0, len(distinct), 8)))
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
