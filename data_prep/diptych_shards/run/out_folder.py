"""Whether a command may go on in its OUT: what is there, and what it was begun with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.data.shard_index_file import INDEX_FOLDER
from diptych.errors import UserError
from diptych.files import LOCK_FILE
from diptych.terminal import printable, shown

_LONGEST_VALUE = 80


def holds_something_else(out: Path) -> bool:
    """Anything but what a process leaves that ended before it wrote down what it does."""
    ours = out / INDEX_FOLDER
    found = [*out.iterdir()] if out.is_dir() else []
    inside = [*ours.iterdir()] if ours.is_dir() else []
    return any(path != ours for path in found) or any(
        path.suffix != ".partial" and path.name != LOCK_FILE for path in inside
    )


def read_state(file: Path, *parts: str) -> dict[str, Any]:
    """What a command wrote down of itself.

    parts: names under which there are objects in it.

    Raises:
        ValueError: it is damaged; one line with the way out.
        OSError: it is not there, or may not be read.
    """
    try:
        state = json.loads(file.read_bytes())
    except ValueError as error:
        raise damaged(file, error) from error
    if not isinstance(state, dict):
        raise damaged(file, "no JSON object")
    for part in parts:
        if not isinstance(state.get(part), dict):
            raise damaged(file, f"no object {part!r} in it")
    return state


def damaged(file: Path, why: object) -> UserError:
    way_out = "restore it from a copy, or begin anew in another folder"
    return UserError(f"{shown(file)} is damaged ({shown(why)}); {way_out}")


def begun_otherwise(out: Path, was: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """A line that names the options that differ, with both values; None if none does.

    was: as JSON gave them back. now: as it would.
    """
    names = [name for name in dict.fromkeys((*now, *was)) if was.get(name) != now.get(name)]
    differing = "; ".join(f"{name} {_short(was.get(name))}, now {_short(now.get(name))}" for name in names)
    if not differing:
        return None
    return f"{shown(out)} was begun with other options ({differing}); use the same ones, or name another folder"


def _short(value: object) -> str:
    return printable(str(value), _LONGEST_VALUE)
