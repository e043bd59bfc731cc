"""What is evaluated on: pictures with labels or captions, read one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from diptych.data.picture_safety import PictureError
from diptych.evaluation.similarity import Array

PICTURES_AT_ONCE = 64


@dataclass(frozen=True)
class Pictures:
    """Names, labels or captions of pictures, and how to read one; nothing is decoded before it is needed."""

    location: str
    names: tuple[str, ...]
    read: Callable[[int], bytes]
    """The encoded picture at this place in `names`."""
    labels: tuple[str, ...] = ()
    """One for each picture; empty where they have none."""
    captions: tuple[tuple[str, ...], ...] = ()
    """At least one for each picture; empty where they have none."""

    def __len__(self) -> int:
        return len(self.names)


class PictureEncoder(Protocol):
    """Anything that makes rows of features of encoded pictures, an `Encoder` above all."""

    def embed_pictures(self, pictures: Sequence[bytes], /) -> Any: ...


@dataclass(frozen=True)
class Embedded:
    """f32[kept dim] as the encoder gives them, and the places of the pictures that they are of."""

    embeddings: Array
    kept: Array
    rejected: dict[str, str] = field(default_factory=dict)
    """Name and reason of every picture that could not be decoded."""


def subset(pictures: Pictures, places: Array) -> Pictures:
    """The pictures at these places, in this order."""
    chosen = [int(place) for place in places]
    return Pictures(
        pictures.location,
        tuple(pictures.names[place] for place in chosen),
        lambda number: pictures.read(chosen[number]),
        tuple(pictures.labels[place] for place in chosen) if pictures.labels else (),
        tuple(pictures.captions[place] for place in chosen) if pictures.captions else (),
    )


def embed(encoder: PictureEncoder, pictures: Pictures) -> Embedded:
    """Embeddings of all pictures that decode.

    Raises:
        ValueError: none of them does.
    """
    parts, kept, rejected = [], [], {}
    progress = tqdm(total=len(pictures), desc="embedding", unit="picture", disable=None, leave=False)
    with progress:
        for start in range(0, len(pictures), PICTURES_AT_ONCE):
            places = list(range(start, min(start + PICTURES_AT_ONCE, len(pictures))))
            for place, outcome in _embed_some(encoder, places, [pictures.read(place) for place in places]):
                if isinstance(outcome, PictureError):
                    rejected[pictures.names[place]] = str(outcome)
                else:
                    kept.append(place)
                    parts.append(outcome)
            progress.update(len(places))
    if not kept:
        name, reason = next(iter(rejected.items()))
        raise ValueError(
            f"none of the {len(pictures)} pictures of {pictures.location} can be decoded; {name}: {reason}"
        )
    return Embedded(np.stack(parts), np.array(kept), rejected)


def _embed_some(
    encoder: PictureEncoder, places: list[int], encoded: list[bytes]
) -> Iterator[tuple[int, Array | PictureError]]:
    try:
        yield from zip(places, np.asarray(encoder.embed_pictures(encoded)), strict=True)
    except PictureError as error:
        if len(places) == 1:
            yield places[0], error
            return
        # One of them is bad and the error does not say which: ask each.
        for place, data in zip(places, encoded, strict=True):
            yield from _embed_some(encoder, [place], [data])
