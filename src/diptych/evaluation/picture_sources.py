"""Labelled or captioned pictures from where users keep them: folders and tables; shards are passed on."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from diptych.evaluation.pictures import Pictures
from diptych.evaluation.shard_pictures import PICTURE_SUFFIXES, captioned_shards, is_shards, labelled_shards

TABLE_SUFFIXES = (".csv", ".parquet")


def open_labelled(location: str, label_key: str = "label") -> Pictures:
    """Pictures with one label each: a folder with one subfolder for each class, a table, or shards.

    A table (CSV or parquet) has the columns `path`, relative to the table, and `label_key`; a sample in a
    shard has `label_key` in its json member.

    Raises:
        ValueError: nothing there, or a picture without a label.
    """
    path = Path(location)
    if path.suffix in TABLE_SUFFIXES:
        paths, labels = _read_table(path, label_key)
        return Pictures(location, *_files(paths, path.parent), labels=tuple(labels))
    if is_shards(location):
        return labelled_shards(location, label_key)
    _check_folder(path, "a folder with one subfolder for each class, a .csv or .parquet table, or shards")
    found = {folder.name: list(_picture_files(folder)) for folder in sorted(path.iterdir()) if folder.is_dir()}
    pairs = [(file, name) for name, files in found.items() for file in files]
    if not pairs:
        loose = sum(1 for _ in _picture_files(path))
        raise ValueError(
            f"{location} has no pictures in subfolders"
            + (f", but {loose} beside one another" if loose else "")
            + "; expected CLASS/PICTURE.jpg (jpg, jpeg, png or webp), or give a table of path and label"
        )
    return Pictures(location, *_files([file for file, _ in pairs], path), labels=tuple(label for _, label in pairs))


def open_captioned(location: str, caption_key: str | None = None) -> Pictures:
    """Pictures with one or more captions each: a folder with a .txt beside each picture, a table, or shards.

    A table has the columns `path` and `caption`; a path in several rows has several captions. In a shard the
    caption is the txt member or, with `caption_key`, a text or a list of texts in the json member.

    Raises:
        ValueError: nothing there, or a picture without a caption.
    """
    path = Path(location)
    if path.suffix in TABLE_SUFFIXES:
        grouped: dict[Path, list[str]] = {}
        for file, caption in zip(*_read_table(path, caption_key or "caption"), strict=True):
            grouped.setdefault(file, []).append(caption)
        captions = tuple(tuple(each) for each in grouped.values())
        return Pictures(location, *_files(list(grouped), path.parent), captions=captions)
    if is_shards(location):
        return captioned_shards(location, caption_key)
    _check_folder(path, "a folder of pictures with a .txt beside each, a .csv or .parquet table, or shards")
    files = list(_picture_files(path))
    if not files:
        raise ValueError(f"{location} holds no pictures; expected PICTURE.jpg (jpg, jpeg, png or webp) and PICTURE.txt")
    if without := [file for file in files if not file.with_suffix(".txt").is_file()]:
        raise ValueError(f"{without[0]} has no caption; expected {without[0].with_suffix('.txt').name} beside it")
    captions = tuple((file.with_suffix(".txt").read_text(encoding="utf-8").strip(),) for file in files)
    return Pictures(location, *_files(files, path), captions=captions)


def open_pictures(locations: Sequence[str]) -> Pictures:
    """Pictures alone: files, and all that is in folders.

    Raises:
        ValueError: a location that does not exist, or no picture in any.
    """
    files: list[Path] = []
    for location in locations:
        path = Path(location)
        if not path.exists():
            raise ValueError(f"{path} does not exist; expected a picture or a folder of pictures")
        files += _picture_files(path) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{', '.join(locations)} holds no pictures (jpg, jpeg, png or webp)")
    return Pictures(", ".join(locations), tuple(map(str, files)), lambda place: files[place].read_bytes())


def _check_folder(path: Path, expected: str) -> None:
    if not path.exists():
        raise ValueError(f"{path} does not exist; expected {expected}")
    if not path.is_dir():
        raise ValueError(f"{path} is a file; expected {expected}")


def _picture_files(folder: Path) -> Iterator[Path]:
    for file in sorted(folder.rglob("*")):
        if file.suffix[1:].lower() in PICTURE_SUFFIXES and not file.name.startswith(".") and file.is_file():
            yield file


def _files(paths: list[Path], folder: Path) -> tuple[tuple[str, ...], Callable[[int], bytes]]:
    names = tuple(os.path.relpath(path, folder) for path in paths)
    return names, lambda place: paths[place].read_bytes()


def _read_table(path: Path, column: str) -> tuple[list[Path], list[str]]:
    if not path.is_file():
        raise ValueError(f"{path} does not exist; expected a table with the columns path and {column}")
    rows = _parquet_rows(path) if path.suffix == ".parquet" else _csv_rows(path)
    if not rows:
        raise ValueError(f"{path} has no rows; expected the columns path and {column}")
    for wanted in ("path", column):
        if wanted not in rows[0]:
            raise ValueError(f"{path} has no column {wanted!r}; it has {', '.join(map(str, rows[0]))}")
    paths = [path.parent / str(row["path"]) for row in rows]
    for number, (file, row) in enumerate(zip(paths, rows, strict=True), start=1):
        if row[column] is None or not str(row[column]).strip():
            raise ValueError(f"{path}, row {number}: {column} is empty; every picture needs one")
        if not file.is_file():
            raise ValueError(f"{path}, row {number}: {file} does not exist; paths are relative to the table's folder")
    return paths, [str(row[column]).strip() for row in rows]


def _csv_rows(path: Path) -> list[dict[str, Any]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path} cannot be read as CSV in UTF-8: {error}") from error


def _parquet_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow
    import pyarrow.parquet

    try:
        return pyarrow.parquet.read_table(path).to_pylist()
    except (pyarrow.ArrowException, OSError) as error:
        raise ValueError(f"{path} cannot be read as parquet: {error}") from error
