"""The folders of a run's checkpoints: which are there, and whether each is what was written.

The manifest makes a checkpoint: it is written last and lists every file with its size and hash. A file that is missing
or differs is damage, and the checkpoint before it may serve. A file that the system cannot read is not: it may be
whole, so its OSError goes to the caller.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.errors import UserError
from diptych.files import sha256_of

FORMAT = 1
MANIFEST = "manifest.json"
MODEL = "model"
EMA = "ema"
"""Folders of a checkpoint, each a model folder: the weights; and their averages, where the run keeps them."""


class CheckpointError(UserError):
    """A checkpoint that is not whole, or cannot be written; the message names file and fault."""


def name_of(step: int) -> str:
    return f"step_{step:08d}"


def step_folders(folder: Path) -> list[Path]:
    """Every checkpoint under its final name, newest first; whole or not.

    Raises:
        OSError: the folder cannot be listed.
    """
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return []
    steps = {int(found.group(1)): folder / name for name in names if (found := re.fullmatch(r"step_(\d+)", name))}
    return [steps[step] for step in sorted(steps, reverse=True)]


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints, newest first; valid or not."""
    return [path for path in step_folders(folder) if has_manifest(path)]


def has_manifest(checkpoint: Path) -> bool:
    try:
        os.stat(checkpoint / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def verify(checkpoint: Path, within: str = "") -> None:
    """Compare every file, or those below the folder `within`, with the manifest.

    Raises:
        CheckpointError: the first file that is missing, of another size, or changed.
        OSError: a file cannot be read.
    """
    for name, expected in _read_manifest(checkpoint).items():
        if not name.startswith(within):
            continue
        try:
            found = describe(checkpoint / name)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
            raise CheckpointError(f"{checkpoint / name}: {error.strerror}") from None
        except OSError as error:
            raise _unreadable(error, checkpoint / name) from error
        if found != expected:
            raise CheckpointError(
                f"{checkpoint / name}: has changed since it was written ({_difference(found, expected)})"
            )


def newest_valid(folder: Path, within: str = "") -> tuple[Path | None, list[str]]:
    """The newest checkpoint that verifies, and what was wrong with the newer ones.

    Raises:
        OSError: one that may be whole cannot be read.
    """
    faults: list[str] = []
    for path in step_folders(folder):
        try:
            verify(path, within)
            return path, faults
        except CheckpointError as error:
            faults.append(str(error))
    return None, faults


def describe(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, as the manifest holds them."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _difference(found: Mapping[str, Any], expected: Any) -> str:
    """The first that differs, short enough for a line: the beginning of a hash tells as much as all of it."""
    if isinstance(expected, Mapping) and expected.keys() == found.keys():
        what = next(key for key in found if found[key] != expected[key])
        return f"{what} {str(found[what])[:12]}, expected {str(expected[what])[:12]}"
    return f"{found}, expected {expected}"


def _read_manifest(checkpoint: Path) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        version, files = manifest.get("format"), manifest.get("files")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CheckpointError(f"{checkpoint}: {MANIFEST} cannot be read ({error.strerror})") from None
    except OSError as error:
        raise _unreadable(error, checkpoint / MANIFEST) from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{checkpoint}: {MANIFEST} cannot be read ({error})") from None
    if version != FORMAT:
        raise CheckpointError(f"{checkpoint}: is of format {version}; this version reads {FORMAT}")
    if not isinstance(files, dict):
        raise CheckpointError(f"{checkpoint}: {MANIFEST} cannot be read (it lists no files)")
    return files


def _unreadable(error: OSError, file: Path) -> OSError:
    """The system's error with the file's name, which a failed read lacks."""
    why = f"{error.strerror}; this checkpoint may be whole, so none before it is taken: make the file readable"
    return OSError(error.errno, why, str(file))
