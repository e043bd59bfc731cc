"""Open labelled or captioned pictures wherever users keep them: in folders, tables or shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.data.shards import open_index
from diptych.errors import UserError
from diptych.evaluation.folder_pictures import captioned_folder, labelled_folder, plain_folder
from diptych.evaluation.matched_pictures import cue_table, matched_table
from diptych.evaluation.pictures import UNREADABLE, Pictures, joined
from diptych.evaluation.shard_pictures import (
    captioned_shards,
    is_shards,
    keyed_shards,
    labelled_shards,
    multi_labelled_shards,
    shard_picture,
)
from diptych.evaluation.table_pictures import captioned_table, labelled_table, multi_labelled_table
from diptych.files import local_path, read_file
from diptych.remote_files import is_elsewhere
from diptych.terminal import counted
from diptych_shards.tables.locations import is_picture_table


def open_labelled(location: str, label_key: str = "label") -> Pictures:
    """Open pictures with one label each: a folder with a subfolder for each class, a table, or shards.

    A table (in any format that `diptych-shards build` reads) has in each row a path, relative to the table's folder,
    and a label in the column `label_key`. A sample in a shard has `label_key` in its json member, or the number of its
    class in its cls member.

    Raises:
        ValueError: the location is missing or empty, or a picture has no label.
    """
    return _open(
        location,
        shards=lambda place: labelled_shards(place, label_key),
        table=lambda place: labelled_table(place, label_key),
        folder=labelled_folder,
        expected="a folder with one subfolder for each class, a table, or shards",
    )


def open_multi_labelled(location: str, label_key: str = "label") -> Pictures:
    """Open pictures with any number of labels each: a table or shards.

    In a table and in json members, `label_key` is a list, or a text such as `cat|dog`; in a table a picture may also
    have several rows. In a shard the labels may be an npy member instead, an array with 0 or 1 for each class.

    Raises:
        ValueError: the location is missing or empty, or a picture has no labels, not even none.
    """

    def folder(place: str) -> Pictures:
        raise UserError(
            f"{place} is a folder, which gives each picture one label; expected a table with the columns path and "
            f"{label_key} (labels such as cat|dog), or shards"
        )

    return _open(
        location,
        shards=lambda place: multi_labelled_shards(place, label_key),
        table=lambda place: multi_labelled_table(place, label_key),
        folder=folder,
        expected="a table of paths and labels, or shards",
    )


def open_matched(location: str) -> Pictures:
    """Open examples of two pictures and two captions, as `matched_table` does.

    Raises:
        ValueError: the table is missing, has other columns, or no row can be used.
    """
    if is_elsewhere(location):
        raise UserError(f"{location}: a table and its pictures must be on this machine; download both")
    location = os.fspath(local_path(location))
    if os.path.isdir(location):
        raise UserError(f"{location} is a folder; expected a table in it, such as Winoground's examples.jsonl")
    return matched_table(location)


def open_cues(location: str) -> Pictures:
    """Open pictures with cues that belong to some of them, as `cue_table` does; in a folder, its only table.

    Raises:
        ValueError: there is no such table, it has other columns, or no row can be used.
    """
    folder = local_path(location)
    if folder.is_dir():
        tables = sorted(str(path) for path in folder.iterdir() if is_picture_table(str(path)))
        if len(tables) != 1:
            raise UserError(f"{location} has {counted(len(tables), 'table')}; expected one, with a cue in each row")
        location = tables[0]
    return cue_table(location)


def open_captioned(location: str, caption_key: str | None = None) -> Pictures:
    """Open pictures with one or more captions each: a folder, a table, or shards.

    In folders and tables, captions are where `diptych-shards pack` reads them; a picture may have several, in the lines
    of its .txt, in a list, or in several rows. In a shard the caption is the txt member, else `caption` in the json
    member; several are in `captions` there, or in the lines of a txt without a json. With `caption_key` it is a text or
    a list of texts in the json.

    A picture or row without a usable caption is left out, with its reason in `refused`.

    Raises:
        ValueError: the location is missing or empty, or no picture has a usable caption.
    """
    return _open(
        location,
        shards=lambda place: captioned_shards(place, caption_key),
        table=lambda place: captioned_table(place, caption_key),
        folder=lambda place: captioned_folder(place, caption_key),
        expected="a folder of pictures with a .txt or .json for each, a table, or shards",
    )


def open_pictures(locations: Sequence[str], *, with_captions: bool = False) -> Pictures:
    """Open pictures in files and folders, named by their paths, and in shards, named by their keys.

    with_captions: open only pictures with captions, as `open_captioned` does.

    Raises:
        ValueError: a location does not exist or contains no picture.
    """
    return joined([_opened(location, with_captions) for location in locations])


def absolute(location: str) -> str:
    """The location as it can be opened from any working directory."""
    return location if is_elsewhere(location) else os.path.abspath(location)


def picture_named(location: str, name: str) -> bytes:
    """Read one picture of a data set again, by the name that it had there.

    Raises:
        UserError: it is not there any more, or on another machine.
    """
    if is_elsewhere(location):
        raise UserError(f"{location} is not on this machine")
    if is_shards(location):
        return shard_picture(location, name)
    return read_file(os.path.join(_folder_of(location), name), "put the data back where they were")


def state_of(pictures: Pictures) -> Any:
    """Identify what a data set's files contain, without reading pictures: it changes if a picture is replaced.

    That is the hash of shards; of picture files the sizes and the times of the last change, in nanoseconds. A file
    whose name is not UTF-8 is not found again, and has none.
    """
    if is_elsewhere(pictures.location) or is_shards(pictures.location):
        return open_index(pictures.location).fingerprint
    files = [Path(_folder_of(pictures.location), name) for name in pictures.names]
    states = [file.stat() if file.is_file() else None for file in files]
    return [state and (state.st_size, state.st_mtime_ns) for state in states]


def _folder_of(location: str) -> str:
    """The folder that the names of the pictures in a folder or table are relative to."""
    return os.path.dirname(location) if is_picture_table(location) else location


def _opened(location: str, with_captions: bool) -> Pictures:
    if is_elsewhere(location):
        return keyed_shards(location, with_captions=with_captions)
    location = os.fspath(local_path(location))
    is_there = os.path.exists(location)
    if is_shards(location) and not (is_there and "{" in location):
        return keyed_shards(location, with_captions=with_captions)
    if not is_there:
        raise UserError(f"{location} does not exist; expected a picture, a folder of pictures or shards")
    if with_captions:
        captioned = open_captioned(location)
        return replace(captioned, names=tuple(os.path.join(location, name) for name in captioned.names))
    if os.path.isdir(location):
        return plain_folder(location)
    return Pictures(location, (location,), lambda place: read_file(location, UNREADABLE))


def _open(
    location: str,
    *,
    shards: Callable[[str], Pictures],
    table: Callable[[str], Pictures],
    folder: Callable[[str], Pictures],
    expected: str,
) -> Pictures:
    """Open what is at the location by the function for its kind; what is elsewhere is shards.

    Raises:
        UserError: there is nothing, or a file of another kind.
    """
    if is_elsewhere(location):
        return shards(location)
    location = os.fspath(local_path(location))
    if is_picture_table(location):
        return table(location)
    if is_shards(location):
        return shards(location)
    if not os.path.exists(location):
        raise UserError(f"{location} does not exist; expected {expected}")
    if not os.path.isdir(location):
        raise UserError(f"{location} is a file; expected {expected}")
    return folder(location)
