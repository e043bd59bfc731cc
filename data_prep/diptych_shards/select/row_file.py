"""A small file beside the shards: one JSON line that says what it is of, then bytes. It is whole, or does not count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import xxhash

from diptych.files import commit_file


def write_rows(path: Path, of: dict[str, Any], body: bytes) -> None:
    """of: what JSON can hold."""
    path.parent.mkdir(parents=True, exist_ok=True)
    commit_file(path, json.dumps(of | {"xxh3": xxhash.xxh3_64_hexdigest(body)}).encode() + b"\n" + body)


def read_rows(path: Path, of: dict[str, Any]) -> bytes | None:
    """The body; None if it is not there as it was written, or is of something else."""
    try:
        line, _, body = path.read_bytes().partition(b"\n")
        is_whole = json.loads(line) == of | {"xxh3": xxhash.xxh3_64_hexdigest(body)}
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return body if is_whole else None
