"""Open labelled or captioned pictures in shards."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from diptych.data.caption_files import CaptionError, captions_in, captions_of, check_caption, fields_of, text_lines
from diptych.data.captions import all_captions, caption_of
from diptych.data.picture_safety import PictureError, PictureReason
from diptych.data.shard_index_file import Sample
from diptych.data.shards import ShardIndex, open_index
from diptych.data.shards_ahead import all_samples
from diptych.errors import UserError
from diptych.evaluation.left_out import check_some_are_captioned
from diptych.evaluation.pictures import Pictures
from diptych.evaluation.similarity import Array
from diptych.evaluation.table_pictures import are_numbers, label_set
from diptych.files import cannot


def is_shards(location: str) -> bool:
    """Whether the location is a folder with tar files, a tar file or a brace pattern."""
    if os.path.isdir(location):
        return any(Path(location).glob("*.tar"))
    return location.endswith(".tar") or "{" in location


def keyed_shards(location: str, *, with_captions: bool = False) -> Pictures:
    """Open all pictures, named by the keys of their samples; with_captions: only those with captions."""
    if with_captions:
        captioned = captioned_shards(location, None)
        return replace(captioned, names=tuple(name.partition("/")[2] for name in captioned.names))
    index = _open(location)
    keys = [key for number in range(len(index.shards)) for key in index.keys(number)]
    return Pictures(location, tuple(keys), _picture_reader(index))


def pictures_at(index: ShardIndex, samples: Array) -> Pictures:
    """The pictures of some samples of an index in this order, named by the keys of the samples."""
    read = _picture_reader(index)
    keys = tuple(index.sample(*index.locate(sample)).key for sample in samples.tolist())
    return Pictures("the shards", keys, lambda place: read(int(samples[place])))


def labelled_shards(location: str, label_key: str) -> Pictures:
    """Open pictures with labels: `label_key` of the json member, or the number in the cls member.

    Numbers are used if the first sample has a cls member and no `label_key`.
    """
    index = _open(location)
    names, labels = [], []
    first = next(index.samples())
    is_numbered = "cls" in first.suffixes and label_key not in _json_fields(index, first)
    for sample in all_samples(index):
        names.append(sample.name)
        labels.append(_class_number(index, sample) if is_numbered else _json_label(index, sample, label_key))
    return Pictures(
        location, tuple(names), _picture_reader(index), labels=tuple(labels), labels_are_numbers=is_numbered
    )


def multi_labelled_shards(location: str, label_key: str) -> Pictures:
    """Open pictures with any number of labels: `label_key` of the json member, or the npy member of CLIP_benchmark.

    The json has a list, or a text with `|` between the labels. The npy member has for each class 1 if it is in the
    picture, else 0; it is used if the first sample has one and no `label_key`.
    """
    index = _open(location)
    names, labels, widths = [], [], set()
    first = next(index.samples())
    has_arrays = "npy" in first.suffixes and label_key not in _json_fields(index, first)
    for sample in all_samples(index):
        names.append(sample.name)
        if has_arrays:
            array = _label_array(index, sample)
            widths.add(len(array))
            labels.append(tuple(str(place) for place in np.flatnonzero(array)))
        else:
            labels.append(_json_label_set(index, sample, label_key))
    if len(widths) > 1:
        raise UserError(f"{location}: the npy members have arrays of {min(widths)} to {max(widths)} labels; "
                        "expected one length, the number of classes")  # fmt: skip
    return Pictures(
        location,
        tuple(names),
        _picture_reader(index),
        label_sets=tuple(labels),
        label_width=max(widths, default=0),
        labels_are_numbers=has_arrays or are_numbers(label for each in labels for label in each),
    )


def captioned_shards(location: str, caption_key: str | None) -> Pictures:
    """Open pictures with captions: the txt member, else `caption` in the json; or `caption_key` in the json."""
    index = _open(location)
    names, captions, rows, refused = [], [], [], {}
    for row, sample in enumerate(all_samples(index)):
        try:
            captions.append(_captions(index, sample, caption_key))
            names.append(sample.name)
            rows.append(row)
        except CaptionError as error:
            refused[sample.name] = error
    wanted = "a txt member, or caption in the json" if caption_key is None else f"{caption_key} in the json member"
    check_some_are_captioned(location, len(names), refused, wanted)
    read = _picture_reader(index)
    return Pictures(location, tuple(names), lambda place: read(rows[place]), captions=tuple(captions), refused=refused)


def shard_picture(location: str, name: str) -> bytes:
    """Read the picture of the sample with this name.

    Raises:
        UserError: there is no such sample, or it has no picture.
    """
    index = _reopened(location)
    shard, _, key = name.partition("/")
    for number in (number for number, each in enumerate(index.shards) if each.name == shard):
        for sample in index.samples(number):
            if sample.key == key and sample.picture_suffix is not None:
                return index.read(sample, sample.picture_suffix)[sample.picture_suffix]
    raise UserError(f"{location} has no picture {name} any more")


@lru_cache(maxsize=4)
def _reopened(location: str) -> ShardIndex:
    return _open(location)


def _open(location: str) -> ShardIndex:
    try:
        index = open_index(location)
    except OSError as error:
        raise cannot(error, location, "read", "make the folder and its shards readable") from error
    if index.total_samples == 0:
        raise UserError(f"{location}: the shards contain no samples; expected at least one picture")
    return index


def _picture_reader(index: ShardIndex) -> Callable[[int], bytes]:
    def read(place: int) -> bytes:
        sample = index.sample(*index.locate(place))
        suffix = sample.picture_suffix
        if suffix is None:
            has = ", ".join(sample.suffixes)
            raise PictureError(PictureReason.NOT_A_PICTURE, f"the sample has no picture; it has {has}")
        return index.read(sample, suffix)[suffix]

    return read


def _json_label(index: ShardIndex, sample: Sample, key: str) -> str:
    fields = _json_fields(index, sample)
    if key not in fields:
        has = f"its json member has {', '.join(fields)}" if fields else f"it has {', '.join(sample.suffixes)}"
        raise UserError(
            f"{sample.name} has no label: no {key!r} in a json member and no class number in a cls member; {has}. "
            "Name the json key with --label-key"
        )
    label = fields[key]
    if isinstance(label, (dict, list)) or label is None or not str(label).strip():
        raise UserError(
            f"{sample.name}: {key} is {label!r} in its json member; expected the name of a class. "
            "Name another json key with --label-key"
        )
    return str(label).strip()


def _json_label_set(index: ShardIndex, sample: Sample, key: str) -> tuple[str, ...]:
    fields = _json_fields(index, sample)
    if key not in fields:
        has = f"its json member has {', '.join(fields)}" if fields else f"it has {', '.join(sample.suffixes)}"
        raise UserError(
            f"{sample.name} has no labels: no {key!r} in a json member and no npy member; {has}. "
            "Name the json key with --label-key"
        )
    try:
        return label_set(fields[key])
    except CaptionError as error:
        raise UserError(
            f"{sample.name}: {key} is {fields[key]!r} in its json member ({error}); expected a list of classes, "
            'such as ["cat", "dog"]. Name another json key with --label-key'
        ) from error


def _label_array(index: ShardIndex, sample: Sample) -> Array:
    """bool[classes]: which classes the npy member says are in the picture."""
    expected = "expected an array with 0 or 1 for each class"
    if "npy" not in sample.suffixes:
        raise UserError(
            f"{sample.name} has no npy member, unlike the first sample; it has {', '.join(sample.suffixes)}"
        )
    try:
        array = np.lib.format.read_array(io.BytesIO(index.read(sample, "npy")["npy"]), allow_pickle=False)
    except (ValueError, MemoryError) as error:
        raise UserError(f"{sample.name}: its npy member cannot be read ({error}); {expected}") from error
    if array.ndim != 1 or array.dtype.kind not in "biuf":
        raise UserError(f"{sample.name}: its npy member is no array of numbers in one dimension; {expected}")
    if not np.isin(array, (0, 1)).all():
        raise UserError(f"{sample.name}: its npy member has {array[~np.isin(array, (0, 1))][0]}; {expected}")
    return array.astype(bool)


def _class_number(index: ShardIndex, sample: Sample) -> str:
    if "cls" not in sample.suffixes:
        raise UserError(
            f"{sample.name} has no cls member, unlike the first sample; it has {', '.join(sample.suffixes)}. "
            "To use labels in json members, name their key with --label-key"
        )
    text = index.read(sample, "cls")["cls"].strip()
    if not re.fullmatch(rb"[0-9]{1,9}", text):
        raise UserError(f"{sample.name}: its cls member is {text[:40]!r}; expected the number of a class, from 0")
    return str(int(text))


def _captions(index: ShardIndex, sample: Sample, key: str | None) -> tuple[str, ...]:
    texts = index.read(sample, "txt", "json")
    if key is not None:
        return captions_in(fields_of(texts["json"]) if "json" in texts else {}, key)
    # As in training, where bytes that are not UTF-8 are replaced.
    caption = caption_of(texts)
    if "json" not in texts:
        return captions_of(text_lines(caption) if "txt" in texts else None)
    return all_captions(caption, texts["json"]) or (check_caption(caption if caption or "txt" in texts else None),)


def _json_fields(index: ShardIndex, sample: Sample) -> dict[str, Any]:
    """The fields of the json member; empty if there is none."""
    documents = index.read(sample, "json")
    try:
        return fields_of(documents["json"]) if documents else {}
    except CaptionError as error:
        raise UserError(f"{sample.name}: its json member cannot be read: {error}") from error
