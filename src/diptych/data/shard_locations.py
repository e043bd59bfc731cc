"""Find the tars that a folder, a file name or a brace pattern names; say what to do where there are none."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
from contextlib import suppress
from pathlib import Path

from braceexpand import braceexpand

from diptych.data.picture_formats import PICTURE_ENDINGS
from diptych.data.shard_index_file import INDEX_FOLDER, ShardError
from diptych.files import local_path
from diptych.terminal import shown

_TABLE_ENDINGS = (".csv", ".tsv", ".parquet", ".json", ".jsonl")
_MAX_SHARDS = 1_000_000

logger = logging.getLogger(__name__)


def tars_at(location: str) -> list[Path]:
    """The tars of one folder, tar file or brace pattern, by name.

    Raises:
        ShardError: if there is none, or one is missing.
    """
    if re.match(r"(?!file:/)[a-z0-9+.-]{2,}:", location, re.IGNORECASE):
        raise ShardError(f"{location!r}: shards are read from paths, and from addresses such as s3://bucket/shards")
    location = os.fspath(local_path(location))
    if os.path.isdir(location):
        return _tars_in(Path(location))
    if os.path.exists(location) or "{" not in location:
        if "*" in location and not os.path.exists(location):
            raise ShardError(
                f"{shown(location)} does not exist; * is not a pattern here: name the folder, or a range in braces, "
                f"shards/{{00000..00099}}.tar"
            )
        return [_existing_tar(location)]
    return sorted((_existing_tar(path) for path in expanded(location)), key=lambda path: path.name)


def expanded(pattern: str) -> list[str]:
    """The names that a brace pattern stands for.

    Raises:
        ShardError: its braces do not fit, or there are too many.
    """
    too_many = ShardError(f"{pattern!r} names more than {_MAX_SHARDS} shards")
    for first, last in re.findall(r"\{(-?\d+)\.\.(-?\d+)", pattern):
        if abs(int(last) - int(first)) >= _MAX_SHARDS:  # braceexpand would hold the whole range in memory
            raise too_many
    try:
        expanded = list(itertools.islice(braceexpand(pattern), _MAX_SHARDS + 1))
    except ValueError as error:  # braceexpand.UnbalancedBracesError
        raise ShardError(f"{pattern!r}: unbalanced braces") from error
    if len(expanded) > _MAX_SHARDS:
        raise too_many
    return expanded


def _existing_tar(path: str) -> Path:
    if not os.path.exists(path):
        raise ShardError(f"{shown(path)} does not exist")
    if not path.endswith(".tar") or not os.path.isfile(path):
        raise ShardError(f"{path!r} is neither a folder of shards nor a .tar file{_way_from_file(path)}")
    return Path(path)


def _tars_in(folder: Path) -> list[Path]:
    names = sorted(name for name in os.listdir(folder) if name.endswith(".tar") and not name.startswith("."))
    if missing := sorted(indexed_tars(folder) - set(names)):
        raise ShardError(f"{shown(folder)}: {missing[0]!r} is indexed but not there ({len(missing)} such). "
                         f"Bring it back, or delete {INDEX_FOLDER}/{missing[0]}.index")  # fmt: skip
    if not names:
        raise ShardError(f"{shown(folder)} holds no .tar file{_way_from_folder(folder)}")
    _warn_if_unfinished(folder / INDEX_FOLDER)
    return [folder / name for name in names]


def indexed_tars(folder: Path) -> set[str]:
    """The names of the tars of a folder that have an index."""
    try:
        names = os.listdir(folder / INDEX_FOLDER)
    except (FileNotFoundError, NotADirectoryError):
        return set()
    return {name.removesuffix(".index") for name in names if name.endswith(".tar.index")}


def _way_from_folder(folder: Path) -> str:
    """What to do with a folder that holds something else, or nothing."""
    with suppress(OSError):
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith((".", "_")))
        if with_tars := [path for path in inner if any(path.glob("*.tar"))]:
            return f", but {' and '.join(map(shown, with_tars[:2]))} do; name one of them"
        for place in (folder, *inner):
            if any(path.name.lower().endswith(PICTURE_ENDINGS) for path in place.iterdir()):
                return f", but pictures; `diptych-shards pack {shown(folder)} SHARDS` makes shards of them: name those"
    return "; `diptych-shards pack` or `diptych-shards build` makes shards"


def _way_from_file(path: str) -> str:
    ending = os.path.splitext(path)[1].lower()
    if ending in PICTURE_ENDINGS:
        return "; make shards of the pictures of its folder with `diptych-shards pack FOLDER SHARDS`"
    if ending in _TABLE_ENDINGS:
        return ("; make shards of what it names: `diptych-shards build` fetches URLs, "
                "`diptych-shards pack FOLDER SHARDS --table FILE` takes files")  # fmt: skip
    return ""


def _warn_if_unfinished(index_folder: Path) -> None:
    """`diptych-shards pack` keeps its state there; shards that are complete are good to use meanwhile."""
    try:
        state = json.loads((index_folder / "pack.json").read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return
    if isinstance(state, dict) and state.get("finished") is False:
        logger.warning("%s: its packing has not finished; these are the shards so far", index_folder.parent)
