"""Embed the pictures of an evaluation: read, decode, prepare, and pass through the encoder in groups."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import xxhash
from PIL import Image
from tqdm import tqdm

from diptych.daemon_threads import in_threads
from diptych.data.picture_safety import PictureError, open_picture
from diptych.errors import UserError
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.similarity import Array
from diptych.machine import usable_cpus
from diptych.terminal import counted

PICTURES_AT_ONCE = 64
MOST_THREADS = 4
"""Largest number of threads that decode and prepare pictures, at most one picture more than there are threads ahead."""


class PictureEncoder(Protocol):
    """Anything that turns decoded RGB pictures into rows of features, such as an `Encoder`."""

    def prepare(self, picture: Image.Image, /) -> Any:
        """What the encoder needs of a picture, such as its pixels at the model's size; several threads call it."""

    def embed_prepared(self, prepared: Sequence[Any], /) -> Any:
        """The features of pictures that were prepared, a row for each."""


@dataclass(frozen=True)
class Embedded:
    """Embeddings f32[kept dim], and the places of their pictures."""

    embeddings: Array
    kept: Array
    rejected: dict[str, str] = field(default_factory=dict)
    """Name of each picture that could not be decoded → the reason."""
    digests: Array = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    """u64[kept], a digest of each picture's file; empty if unknown. Equal files have equal digests."""


def embed(encoder: PictureEncoder, pictures: Pictures) -> Embedded:
    """Embed all pictures that can be decoded.

    Raises:
        ValueError: none can be decoded, or a file cannot be read.
    """
    return joined_parts(pictures, [embed_part(encoder, pictures, range(len(pictures)))])


def embed_part(encoder: PictureEncoder, pictures: Pictures, places: range) -> Embedded:
    """Embed the pictures at these places, of which the first is a multiple of PICTURES_AT_ONCE; none may be kept.

    Pictures go through the encoder in groups that depend on their places alone: matrix products round differently with
    other numbers of rows, and the embeddings must not depend on how pictures are divided among ranks. They wait for
    their group as the encoder prepares them: 64 decoded photographs of a camera would take 4 GB.
    """
    parts: list[Array] = []
    kept: list[int] = []
    digests: list[int] = []
    rejected: dict[str, str] = {}
    group: list[Any] = []
    with (
        closing(_prepared(encoder, pictures, places)) as prepared,
        tqdm(total=len(places), desc="embedding", unit="picture", disable=None, leave=False) as progress,
    ):
        for place, outcome in zip(places, prepared, strict=True):
            if isinstance(outcome, PictureError):
                rejected[pictures.names[place]] = str(outcome)
            else:
                kept.append(place)
                digests.append(outcome[0])
                group.append(outcome[1])
            ends_group = (place + 1) % PICTURES_AT_ONCE == 0 or place == places[-1]
            if group and ends_group:
                parts.append(np.asarray(encoder.embed_prepared(group)))
                group = []
            progress.update()
    return Embedded(
        np.concatenate(parts) if parts else np.empty((0, 0)),
        np.array(kept, dtype=np.int64),
        rejected,
        np.array(digests, dtype=np.uint64),
    )


def joined_parts(pictures: Pictures, parts: Sequence[Embedded]) -> Embedded:
    """The embeddings of all pictures, from those of consecutive parts.

    Raises:
        ValueError: no picture could be decoded.
    """
    rejected = {name: reason for part in parts for name, reason in part.rejected.items()}
    full = [part for part in parts if len(part.kept)]
    if not full:
        name, reason = next(iter(rejected.items()))
        raise UserError(
            f"none of the {counted(len(pictures), 'picture')} of {pictures.location} can be decoded; {name}: {reason}"
        )
    return Embedded(
        np.concatenate([part.embeddings for part in full]),
        np.concatenate([part.kept for part in full]),
        rejected,
        np.concatenate([part.digests for part in full]),
    )


def _prepared(encoder: PictureEncoder, pictures: Pictures, places: range) -> Generator[Any, None, None]:
    """Give in order a digest of each picture's file and what the encoder needs of it, or why it cannot be decoded.

    Threads read, decode and prepare a few pictures ahead.
    """

    def prepare(place: int) -> Any:
        try:
            encoded = pictures.read(place)
            picture = open_picture(encoded)
        except PictureError as error:
            return error
        return xxhash.xxh3_64_intdigest(encoded), encoder.prepare(picture)

    return in_threads(prepare, places, max(1, min(MOST_THREADS, usable_cpus())), "prepare")


def identity(pictures: Pictures, embedded: Embedded, texts: Sequence[str] = ()) -> str:
    """Identify the pictures that were embedded by the names, labels and files of all, and texts about them."""
    known = xxhash.xxh3_128(embedded.digests.tobytes())
    of_pictures = (
        text for place in embedded.kept for text in (pictures.names[place], *pictures.labels[place : place + 1])
    )
    for text in (*of_pictures, *texts):
        known.update(xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass")))
    return known.hexdigest()
