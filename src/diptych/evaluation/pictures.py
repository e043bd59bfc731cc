"""What is evaluated on: pictures with labels or captions, read one at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
from tqdm import tqdm

from diptych.data.caption_files import CaptionError
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
    labels_are_numbers: bool = False
    """Each label is a place in the list of classes, from 0; `named` makes names of them."""
    refused: Mapping[str, CaptionError] = field(default_factory=dict)
    """By name, what is left out here for want of a usable caption."""

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


def named(pictures: Pictures, class_names: Sequence[str]) -> Pictures:
    """The pictures with class names for labels, also where the labels were numbers.

    Raises:
        ValueError: a number beyond the last class.
    """
    if not pictures.labels_are_numbers:
        return pictures
    highest = max(map(int, pictures.labels))
    if highest >= len(class_names):
        raise ValueError(
            f"{pictures.location} has class number {highest}, and there are {len(class_names)} classes, numbered from "
            "0; give --classes with all of them, in the order of the numbers"
        )
    labels = tuple(class_names[int(label)] for label in pictures.labels)
    return replace(pictures, labels=labels, labels_are_numbers=False)


def by_reason(refused: Mapping[str, CaptionError]) -> dict[str, dict[str, Any]]:
    """How many are refused for each reason, most first, with one example."""
    counts = Counter(error.reason.value for error in refused.values())
    examples: dict[str, str] = {}
    for name, error in refused.items():
        examples.setdefault(error.reason.value, f"{name}: {error.detail}" if error.detail else name)
    return {reason: {"pictures": number, "example": examples[reason]} for reason, number in counts.most_common()}


def in_words(reasons: Mapping[str, Mapping[str, Any]]) -> str:
    """The same on one line."""
    return ", ".join(
        f"{each['pictures']:,} {reason} (for example {each['example']})" for reason, each in reasons.items()
    )


def check_some_are_captioned(location: str, kept: int, refused: Mapping[str, CaptionError], expected: str) -> None:
    if not kept:
        raise ValueError(
            f"none of the {len(refused):,} pictures of {location} has a caption that can be used: "
            f"{in_words(by_reason(refused))}; expected {expected}"
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
