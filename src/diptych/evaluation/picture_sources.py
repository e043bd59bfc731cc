"""Labelled or captioned pictures from where users keep them: folders and tables; shards are passed on."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from diptych.data.caption_files import (
    CAPTION_ENDINGS,
    CaptionError,
    CaptionFiles,
    CaptionReason,
    read_captions,
    sort_captions,
)
from diptych.data.picture_formats import PICTURE_ENDINGS
from diptych.errors import UserError
from diptych.evaluation.pictures import UNREADABLE, Pictures, check_some_are_captioned, files_of, joined
from diptych.evaluation.shard_pictures import captioned_shards, is_shards, keyed_shards, labelled_shards
from diptych.evaluation.table_pictures import are_numbers, captioned_table, labelled_table
from diptych.files import cannot, local_path, read_file
from diptych_shards.tables.locations import is_picture_table

PICTURE_NAMES = ", ".join(ending[1:] for ending in PICTURE_ENDINGS)


def open_labelled(location: str, label_key: str = "label") -> Pictures:
    """Pictures with one label each: a folder with one subfolder for each class, a table, or shards.

    A table (any that `diptych-shards build` reads) has a path in each row, relative to the table's folder, and
    `label_key`; a sample in a shard has `label_key` in its json member, or the number of its class as its cls member.

    Raises:
        ValueError: nothing there, or a picture without a label.
    """
    path = local_path(location)
    location = os.fspath(path)
    if is_picture_table(location):
        return labelled_table(location, label_key)
    if is_shards(location):
        return labelled_shards(location, label_key)
    _check_folder(path, "a folder with one subfolder for each class, a table, or shards")
    pairs = [(file, folder.name) for folder in _class_folders(path) for file in _picture_files(folder)]
    if not pairs:
        loose = len(_picture_files(path))
        raise UserError(
            f"{location} has no pictures in subfolders"
            + (f", but {loose} beside one another" if loose else "")
            + "; expected CLASS/PICTURE.jpg (jpg, jpeg, png or webp), or give a table of path and label"
        )
    labels = tuple(label for _, label in pairs)
    files = files_of([file for file, _ in pairs], path)
    return Pictures(location, *files, labels=labels, labels_are_numbers=are_numbers(labels))


def open_captioned(location: str, caption_key: str | None = None) -> Pictures:
    """Pictures with one or more captions each: a folder, a table, or shards.

    In a folder and in a table captions are where `diptych-shards pack` reads them: a picture has several in the
    lines of its .txt, in a list, or in several rows. In a shard it is the txt member, else `caption` in the json
    member; several are in `captions` there, or the lines of a txt without a json. With `caption_key` it is a text or
    a list of texts in the json.

    A picture or row without a usable caption is left out, with its reason in `refused`.

    Raises:
        ValueError: nothing there, or no picture with a usable caption.
    """
    path = local_path(location)
    location = os.fspath(path)
    if is_picture_table(location):
        return captioned_table(location, caption_key)
    if is_shards(location):
        return captioned_shards(location, caption_key)
    _check_folder(path, "a folder of pictures with a .txt or .json beside each, a table, or shards")
    return _captioned_folder(location, caption_key)


def open_pictures(locations: Sequence[str], *, with_captions: bool = False) -> Pictures:
    """Pictures by their paths: files, and all that is in folders; those of shards by their keys.

    with_captions: those of them that have one, as `open_captioned` finds it.

    Raises:
        ValueError: a location that does not exist, or no picture in any.
    """
    return joined([_opened(os.fspath(local_path(location)), with_captions) for location in locations])


def _opened(location: str, with_captions: bool) -> Pictures:
    is_there = os.path.exists(location)
    if is_shards(location) and not (is_there and "{" in location):
        return keyed_shards(location, with_captions=with_captions)
    if not is_there:
        raise UserError(f"{location} does not exist; expected a picture, a folder of pictures or shards")
    if with_captions:
        captioned = open_captioned(location)
        return replace(captioned, names=tuple(os.path.join(location, name) for name in captioned.names))
    files = _picture_files(Path(location)) if os.path.isdir(location) else [Path(location)]
    if not files:
        raise UserError(f"{location} holds no pictures ({PICTURE_NAMES})")
    return Pictures(location, tuple(map(str, files)), lambda place: read_file(files[place], UNREADABLE))


def _captioned_folder(location: str, caption_key: str | None) -> Pictures:
    path = Path(location)
    beside = {folder: _caption_files(folder, names) for folder, names in _folders(path)}
    found, captions, refused = [], [], {}
    for file in _picture_files(path):
        try:
            own = beside[file.parent].get(os.path.splitext(file.name)[0])
            captions.append(_captions(file.parent, own, caption_key))
            found.append(file)
        except CaptionError as error:
            refused[os.path.relpath(file, path)] = error
    if not found and not refused:
        raise UserError(
            f"{location} holds no pictures; expected PICTURE.jpg (jpg, jpeg, png or webp) and PICTURE.txt or .json"
        )
    key = caption_key or "caption"
    check_some_are_captioned(location, len(found), refused, f'PICTURE.txt or PICTURE.json with "{key}" beside it')
    return Pictures(location, *files_of(found, path), captions=tuple(captions), refused=refused)


def _caption_files(folder: Path, names: list[str]) -> dict[str, CaptionFiles]:
    plain = [name for name in names if name.lower().endswith(CAPTION_ENDINGS) and os.path.isfile(folder / name)]
    return sort_captions(plain)[0]


def _captions(folder: Path, files: CaptionFiles | None, key: str | None) -> tuple[str, ...]:
    if files is None:
        raise CaptionError(CaptionReason.NO_CAPTION)
    return read_captions(folder, files, key)[0]


def _check_folder(path: Path, expected: str) -> None:
    if not os.path.exists(path):
        raise UserError(f"{path} does not exist; expected {expected}")
    if not os.path.isdir(path):
        raise UserError(f"{path} is a file; expected {expected}")


def _class_folders(path: Path) -> list[Path]:
    try:
        return sorted(each for each in path.iterdir() if os.path.isdir(each))
    except OSError as error:
        raise cannot(error, path, "read", UNREADABLE) from error


def _folders(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """The folder and all below it with the names of the files in each; linked folders are not followed."""

    def refuse(error: OSError) -> None:
        raise cannot(error, folder, "read", UNREADABLE) from error

    for where, _, names in os.walk(folder, onerror=refuse):
        yield Path(where), names


def _picture_files(folder: Path) -> list[Path]:
    return sorted(
        where / name
        for where, names in _folders(folder)
        for name in names
        if name.lower().endswith(PICTURE_ENDINGS) and not name.startswith(".") and os.path.isfile(where / name)
    )
