"""The pictures of an evaluation, with labels or captions, before any is read."""

from __future__ import annotations

import bisect
import itertools
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import xxhash

from diptych.data.caption_files import CaptionError
from diptych.data.picture_files import Refusal
from diptych.data.picture_formats import ENDINGS
from diptych.evaluation.similarity import Array
from diptych.files import read_file

FINGERPRINTED = 64
UNREADABLE = "make it readable, or take it out of the data"


@dataclass(frozen=True)
class Cue:
    """A text that belongs to some of several pictures."""

    text: str
    candidates: tuple[int, ...]
    """The places of the pictures."""
    is_right: tuple[bool, ...]
    """Whether it belongs to each of them."""


@dataclass(frozen=True)
class Pictures:
    """Names, labels or captions of pictures, and a function that reads one; nothing is decoded before it is needed."""

    location: str
    names: tuple[str, ...]
    read: Callable[[int], bytes]
    """Place in `names` → the encoded picture."""
    labels: tuple[str, ...] = ()
    """One for each picture; empty if the pictures have no labels."""
    captions: tuple[tuple[str, ...], ...] = ()
    """One or more for each picture; empty if the pictures have no captions."""
    label_sets: tuple[tuple[str, ...], ...] = ()
    """Any number of labels for each picture; empty if the pictures have one label each or none."""
    cues: tuple[Cue, ...] = ()
    """Texts that belong to some of the pictures; empty if there are none."""
    label_width: int = 0
    """Number of classes that the label sets are chosen from, where the data say it; else 0."""
    labels_are_numbers: bool = False
    """Whether each label is a place in the list of classes, from 0; `named` replaces these by names."""
    refused: Mapping[str, CaptionError] = field(default_factory=dict)
    """Name of a picture that was left out because it has no usable caption → the reason."""
    left_out: tuple[Refusal, ...] = ()
    """Other files that were left out: they are not pictures, or cannot be read."""

    def __len__(self) -> int:
        return len(self.names)


def files_of(paths: Sequence[Path], folder: Path) -> tuple[tuple[str, ...], Callable[[int], bytes]]:
    """The names of picture files relative to a folder, and a function that reads one."""
    names = tuple(os.path.relpath(path, folder) for path in paths)
    return names, lambda place: read_file(paths[place], UNREADABLE)


def subset(pictures: Pictures, places: Array) -> Pictures:
    """The pictures at the given places, in that order."""
    chosen = [int(place) for place in places]
    return Pictures(
        pictures.location,
        tuple(pictures.names[place] for place in chosen),
        lambda number: pictures.read(chosen[number]),
        tuple(pictures.labels[place] for place in chosen) if pictures.labels else (),
        tuple(pictures.captions[place] for place in chosen) if pictures.captions else (),
    )


def joined(parts: Sequence[Pictures]) -> Pictures:
    """The pictures of all parts, one part after the other."""
    starts = list(itertools.accumulate(map(len, parts), initial=0))

    def read(place: int) -> bytes:
        part = bisect.bisect_right(starts, place) - 1
        return parts[part].read(place - starts[part])

    return Pictures(
        ", ".join(part.location for part in parts),
        tuple(name for part in parts for name in part.names),
        read,
        captions=tuple(each for part in parts for each in part.captions),
        refused={name: error for part in parts for name, error in part.refused.items()},
        left_out=tuple(each for part in parts for each in part.left_out),
    )


def in_utf8(pictures: Pictures) -> Pictures:
    """Replace bytes that are not UTF-8 in all names and texts by escapes, so that they can be written anywhere."""
    return replace(
        pictures,
        location=writable(pictures.location),
        names=tuple(map(writable, pictures.names)),
        labels=tuple(map(writable, pictures.labels)),
        captions=tuple(tuple(map(writable, each)) for each in pictures.captions),
        label_sets=tuple(tuple(map(writable, each)) for each in pictures.label_sets),
        cues=tuple(replace(cue, text=writable(cue.text)) for cue in pictures.cues),
        refused={writable(name): error for name, error in pictures.refused.items()},
        left_out=tuple(Refusal(writable(each.path), each.reason, each.detail) for each in pictures.left_out),
    )


def writable(text: str) -> str:
    """Replace each lone surrogate, which UTF-8 cannot encode, by an escape such as `\\udcff`."""
    return text.encode("utf-8", "backslashreplace").decode()


def formats_by_name(pictures: Pictures) -> dict[str, int]:
    """How many pictures have each format by the ending of their name, most frequent first.

    Names without an ending, as in shards, are not counted.
    """
    format_of_ending = {ending: name for name, endings in ENDINGS.items() for ending in endings}
    endings = (os.path.splitext(name)[1].lower() for name in pictures.names)
    return dict(Counter(format_of_ending[each] for each in endings if each in format_of_ending).most_common())


def fingerprint(pictures: Pictures, places: Array) -> str:
    """Identify pictures at these places by their number and the contents of up to 64 of them, evenly spaced.

    The same data set has the same fingerprint in another folder.
    """
    known = xxhash.xxh3_128(f"{len(places)}:".encode())
    for number in sorted({len(places) * each // FINGERPRINTED for each in range(FINGERPRINTED)}):
        known.update(xxhash.xxh3_128_digest(pictures.read(int(places[number]))))
    return known.hexdigest()
