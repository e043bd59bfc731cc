"""The output folder of a command: what it was started with, and whether another start may continue there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diptych.data.shard_index_file import INDEX_FOLDER
from diptych.errors import UserError
from diptych.files import commit_file
from diptych.locks import LOCK_FILE, locked
from diptych.terminal import printable, shown

_LONGEST_VALUE = 80


class OutFolder:
    """The folder OUT of a command, for one process at a time; each resumes where the last one stopped.

    OUT/_index/COMMAND.json records what decides the bytes of the result. A folder that was started with other options
    or another input, or that contains other files, is refused and not changed.
    """

    def __init__(
        self,
        path: Path,
        command: str,
        *,
        options: Mapping[str, Any],
        format: str | None = None,
        inputs: Mapping[str, Any] | None = None,
        if_input_differs: str = "",
        state_name: str | None = None,
    ):
        """Describe the folder; nothing is read or written yet.

        options: by name; if some of them differ from those of the first start, the error names them.
        format: of the result; if None, the file records nothing but the options, at its top level.
        inputs: what identifies the input, under names that the user understands.
        if_input_differs: the error if one of them differs; if "", the error gives its name.
        state_name: the name of the file, if it is not COMMAND.json.
        """
        self.path = path
        self.index = path / INDEX_FOLDER
        self._command = command
        self._state = self.index / (state_name or f"{command}.json")
        identity = options if format is None else {"format": format, **(inputs or {}), "options": options}
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._inputs = tuple(inputs or ())
        self._if_input_differs = if_input_differs

    @contextmanager
    def opened(self, **progress: Any) -> Iterator[None]:
        """Lock OUT until the end of the `with` block, and remove partial files that a killed process left.

        progress: what to `record` if OUT is new.

        Raises:
            LockedError: another process is at work there.
            UserError: OUT is not a folder, contains other files, or was started with another input or other options.
        """
        if not self._state.exists():
            if self.path.exists() and not self.path.is_dir():
                raise UserError(f"{shown(self.path)} is not a folder; name another one")
            if _holds_something_else(self.path):
                raise UserError(f"{shown(self.path)} holds files of something else; name a new or empty folder")
        with locked(self.index, self._command):
            if self._state.exists():
                self._compare(read_state(self._state, *(["options"] if "options" in self._identity else [])))
            else:
                self.record(**progress)
            for partial in [*self.path.glob("*.partial"), *self.index.rglob("*.partial")]:
                partial.unlink(missing_ok=True)
            yield

    def record(self, **progress: Any) -> None:
        """Record how far the result is, such as `finished=True`, with its options and inputs."""
        commit_file(self._state, json.dumps({**self._identity, **progress}, indent=1).encode() + b"\n")

    def _compare(self, before: Mapping[str, Any]) -> None:
        now = self._identity
        if before.get("format") != now.get("format"):
            raise UserError(f"{shown(self.path)} was started by another version; name another folder")
        was, is_now = (state.get("options", state) for state in (before, now))
        if differing := _differences(was, is_now):
            raise UserError(
                f"{shown(self.path)} was started with other options ({differing}); use the same ones, "
                f"or name another folder"
            )
        if others := [name for name in self._inputs if before.get(name) != now[name]]:
            raise UserError(
                self._if_input_differs
                or f"{shown(self.path)} was started with other {' and '.join(others)}; give those again, "
                f"or name another folder"
            )


def read_state(file: Path, *parts: str) -> dict[str, Any]:
    """Read what a command has recorded in its output folder.

    parts: the names of objects that must be in the file.

    Raises:
        UserError: the file is damaged.
        OSError: the file does not exist or cannot be read.
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
    """The error for a damaged file in the index folder."""
    way_out = "restore it from a copy, or start again in another folder"
    return UserError(f"{shown(file)} is damaged ({shown(why)}); {way_out}")


def _differences(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Describe the options that differ, each with both values."""
    names = [name for name in dict.fromkeys((*now, *was)) if was.get(name) != now.get(name)]
    return "; ".join(f"{name} {_short(was.get(name))}, now {_short(now.get(name))}" for name in names)


def _short(value: object) -> str:
    return printable(str(value), _LONGEST_VALUE)


def _holds_something_else(out: Path) -> bool:
    """Whether the folder contains more than a process leaves that ended before it recorded anything."""
    ours = out / INDEX_FOLDER
    found = [*out.iterdir()] if out.is_dir() else []
    inside = [*ours.iterdir()] if ours.is_dir() else []
    return any(path != ours for path in found) or any(
        path.suffix != ".partial" and path.name != LOCK_FILE for path in inside
    )
