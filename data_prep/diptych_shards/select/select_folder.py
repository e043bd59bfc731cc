"""SHARDS/_index/select: the folder of verdicts, its lock, and the small files that a stopped command resumes from."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import xxhash

from diptych.data.shard_index_file import INDEX_FOLDER
from diptych.errors import UserError
from diptych.files import commit_file
from diptych.locks import locked


def select_folder(shards: Path) -> Path:
    return shards / INDEX_FOLDER / "select"


def checked_name(name: str) -> str:
    """Check the name of a verdict, and return it.

    Raises:
        UserError: it is not a plain name of a file.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise UserError(f"the name {name!r} of a verdict must be letters, digits, - and _, 64 at most")
    return name


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Lock the folder, and remove what a killed process was writing there."""
    with locked(folder, "command"):
        for path in folder.rglob("*.partial"):
            path.unlink(missing_ok=True)
        yield


def write_rows(path: Path, of: dict[str, Any], body: bytes) -> None:
    """Write a small file: one JSON line that describes the body, then the body. It is there whole or not at all.

    of: the description, which `read_rows` compares.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    commit_file(path, json.dumps(of | {"xxh3": xxhash.xxh3_64_hexdigest(body)}).encode() + b"\n" + body)


def read_rows(path: Path, of: dict[str, Any]) -> bytes | None:
    """Read the body; None if the file is missing or damaged, or its description differs."""
    try:
        line, _, body = path.read_bytes().partition(b"\n")
        is_whole = json.loads(line) == of | {"xxh3": xxhash.xxh3_64_hexdigest(body)}
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return body if is_whole else None
