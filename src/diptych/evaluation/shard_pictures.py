"""Labelled or captioned pictures from shards."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from diptych.data.shard_index_file import Member
from diptych.data.shards import ShardIndex, open_index, read_member
from diptych.evaluation.pictures import Pictures

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")

Read = Callable[..., bytes]


def is_shards(location: str) -> bool:
    """Whether this is a folder with tar files in it, a tar file or a brace pattern."""
    path = Path(location)
    if path.is_dir():
        return any(path.glob("*.tar"))
    return location.endswith(".tar") or "{" in location


def labelled_shards(location: str, label_key: str) -> Pictures:
    """Each sample's label is `label_key` of its json member."""
    index = open_index(location)
    names, labels = [], []
    for name, member in _samples(index):
        label = _json_value(name, member("json"), label_key)
        if isinstance(label, (dict, list)) or label is None or not str(label).strip():
            raise ValueError(f"{name}: {label_key} is {label!r} in its json member; expected the name of a class")
        names.append(name)
        labels.append(str(label).strip())
    return Pictures(location, tuple(names), _picture_reader(index), labels=tuple(labels))


def captioned_shards(location: str, caption_key: str | None) -> Pictures:
    """A sample's caption is its txt member, or what its json has at `caption_key`: a text or a list."""
    index = open_index(location)
    names, captions = [], []
    for name, member in _samples(index):
        if caption_key is None:
            value = member("txt").decode("utf-8", errors="replace")
        else:
            value = _json_value(name, member("json"), caption_key)
        texts = tuple(str(text).strip() for text in (value if isinstance(value, list) else [value]))
        if not texts or not all(texts):
            raise ValueError(f"{name} has an empty caption; retrieval needs one for every picture")
        names.append(name)
        captions.append(texts)
    return Pictures(location, tuple(names), _picture_reader(index), captions=tuple(captions))


def _samples(index: ShardIndex) -> Iterator[tuple[str, Read]]:
    """Name of each sample, with a function from suffixes to the bytes of the member that has one of them."""
    if index.total_samples == 0:
        raise ValueError("the shards hold no samples; expected at least one picture")
    for number, shard in enumerate(index.shards):
        for row in range(shard.samples):
            yield _sample(index, number, row)


def _sample(index: ShardIndex, number: int, row: int) -> tuple[str, Read]:
    path = index.shards[number].path
    key, members = index.sample(number, row)
    name = f"{path.name}/{key}"

    def read(*suffixes: str) -> bytes:
        for member in members:
            if member.suffix in suffixes:
                return _member_bytes(path, member)
        has = ", ".join(member.suffix for member in members)
        raise ValueError(f"{name} has no {' or '.join(suffixes)} member; it has {has}")

    return name, read


def _picture_reader(index: ShardIndex) -> Callable[[int], bytes]:
    def read(place: int) -> bytes:
        _, member = _sample(index, *index.locate(place))
        return member(*PICTURE_SUFFIXES)

    return read


def _member_bytes(path: Path, member: Member) -> bytes:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        return read_member(descriptor, member)
    finally:
        os.close(descriptor)


def _json_value(name: str, encoded: bytes, key: str) -> Any:
    try:
        document = json.loads(encoded)
    except ValueError as error:
        raise ValueError(f"{name}: its json member cannot be read: {error}") from error
    if not isinstance(document, dict) or key not in document:
        has = ", ".join(document) if isinstance(document, dict) else type(document).__name__
        raise ValueError(f"{name}: its json member has no {key!r}; it has {has}")
    return document[key]
