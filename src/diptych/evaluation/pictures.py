"""The pictures of an evaluation, with labels or captions, and their embeddings."""

from __future__ import annotations

import bisect
import itertools
import os
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import xxhash
from PIL import Image
from tqdm import tqdm

from diptych.data.caption_files import CaptionError
from diptych.data.picture_files import Refusal
from diptych.data.picture_formats import ENDINGS
from diptych.data.picture_safety import PictureError, open_picture
from diptych.errors import UserError
from diptych.evaluation.similarity import Array
from diptych.files import read_file
from diptych.machine import usable_cpus
from diptych.terminal import counted

PICTURES_AT_ONCE = 64
FINGERPRINTED = 64
UNREADABLE = "make it readable, or take it out of the data"
MOST_THREADS = 4
"""Largest number of threads that decode and prepare pictures, at most one picture more than there are threads ahead."""


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


def named(pictures: Pictures, class_names: Sequence[str]) -> Pictures:
    """Replace labels that are numbers of classes by class names.

    Raises:
        ValueError: a number is larger than that of the last class.
    """
    if not pictures.labels_are_numbers:
        return pictures
    labels = labels_in(pictures)
    if pictures.label_width not in (0, len(class_names)):
        raise UserError(
            f"{pictures.location} has arrays of {pictures.label_width} labels, and there are "
            f"{counted(len(class_names), 'class')}; give --classes with all of them, in the order of the arrays"
        )
    if labels <= set(class_names):  # the classes are called by numbers, as in MNIST
        return replace(pictures, labels_are_numbers=False)
    highest = max(map(int, labels))
    if highest >= len(class_names):
        raise UserError(
            f"{pictures.location} has class number {highest}, beyond the {counted(len(class_names), 'class')}, "
            "numbered from 0; give --classes with all of them, in the order of the numbers"
        )
    return replace(
        pictures,
        labels=tuple(class_names[int(label)] for label in pictures.labels),
        label_sets=tuple(tuple(class_names[int(label)] for label in each) for each in pictures.label_sets),
        labels_are_numbers=False,
    )


def labels_in(pictures: Pictures) -> set[str]:
    """The different labels of all pictures, of which each has one or any number."""
    return {*pictures.labels, *(label for each in pictures.label_sets for label in each)}


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


def identity(pictures: Pictures, embedded: Embedded) -> str:
    """Identify the pictures that were embedded by the names, labels and files of all."""
    known = xxhash.xxh3_128(embedded.digests.tobytes())
    for place in embedded.kept:
        for text in (pictures.names[place], *pictures.labels[place : place + 1]):
            known.update(xxhash.xxh3_128_digest(text.encode("utf-8", "surrogatepass")))
    return known.hexdigest()


def by_reason(refused: Mapping[str, CaptionError]) -> dict[str, dict[str, Any]]:
    """How many pictures were refused for each reason, most frequent first, with one example each."""
    return _by_reason("pictures", ((error.reason.value, name, error.detail) for name, error in refused.items()))


def left_out_by_reason(refusals: Iterable[Refusal]) -> dict[str, dict[str, Any]]:
    """How many files were left out for each reason, most frequent first, with one example each."""
    return _by_reason("files", ((each.reason, each.path, each.detail) for each in refusals))


def in_words(reasons: Mapping[str, Mapping[str, Any]]) -> str:
    """The counts of `by_reason` or `left_out_by_reason` on one line."""
    return ", ".join(
        f"{each.get('pictures') or each['files']:,} {reason} (for example {each['example']})"
        for reason, each in reasons.items()
    )


def _by_reason(unit: str, refusals: Iterable[tuple[str, str, str]]) -> dict[str, dict[str, Any]]:
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for reason, name, detail in refusals:
        counts[reason] += 1
        examples.setdefault(reason, f"{name}: {detail}" if detail else name)
    return {reason: {unit: number, "example": examples[reason]} for reason, number in counts.most_common()}


def check_some_are_captioned(location: str, kept: int, refused: Mapping[str, CaptionError], expected: str) -> None:
    if not kept:
        raise UserError(
            f"none of the {counted(len(refused), 'picture')} of {location} has a caption that can be used: "
            f"{in_words(by_reason(refused))}; expected {expected}"
        )


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
    """Yield in order a digest of each picture's file and what the encoder needs of it, or why it cannot be decoded.

    Threads read, decode and prepare a few pictures ahead.
    """

    def prepare(place: int) -> Any:
        try:
            encoded = pictures.read(place)
            picture = open_picture(encoded)
        except PictureError as error:
            return error
        return xxhash.xxh3_64_intdigest(encoded), encoder.prepare(picture)

    threads = max(1, min(MOST_THREADS, usable_cpus()))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="prepare")
    ahead: deque[Future[Any]] = deque()
    try:
        for place in places:
            ahead.append(pool.submit(prepare, place))
            if len(ahead) > threads:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
