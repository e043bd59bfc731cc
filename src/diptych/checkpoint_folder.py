"""Find, verify and remove the checkpoints of a run.

A folder is a checkpoint once it has a manifest, which is written last and lists every file with its size and hash. If
a file is missing or differs, the checkpoint is damaged and an older one may be used instead. A file that the system
cannot read may still be intact, so its OSError is raised to the caller.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diptych.errors import UserError
from diptych.files import flush, sha256_of

FORMAT = 2
"""Version of the layout that is written; README describes it."""
READABLE = (1, 2)
"""Version 1 kept the optimizer's state in one file, `optimizer.safetensors`."""
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
PARTS = "parts"
"""Folder in which ranks leave parts of tensors that rank 0 puts together; removed once the checkpoint is complete."""
EVALUATION = "evaluation.json"
"""In checkpoints that were measured during training: `values`, and the `score` by which the best one is kept."""
MODEL = "model"
EMA = "ema"
"""Subfolders of a checkpoint, each a model folder: the weights, and their moving averages if the run keeps them."""
TOKEN_HEAD = "token_head"
"""Subfolder of a checkpoint with the weights of the layer of this name, if the run trains it; no part of the model."""


class CheckpointError(UserError):
    """A checkpoint that is incomplete or cannot be written; the message names the file and what is wrong with it."""


def name_of(step: int) -> str:
    return f"step_{step:08d}"


def step_folders(folder: Path) -> list[Path]:
    """Every checkpoint folder under its final name, newest first, complete or not.

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
    """The checkpoints that have a manifest, newest first; their files are not verified."""
    return [path for path in step_folders(folder) if has_manifest(path)]


def has_manifest(checkpoint: Path) -> bool:
    try:
        os.stat(checkpoint / MANIFEST)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def read_manifest(checkpoint: Path) -> dict[str, dict[str, Any]]:
    """Size and hash of each file of a checkpoint, by its path in it.

    Raises:
        CheckpointError: there is no manifest of a format that this version reads.
        OSError: the manifest cannot be read.
    """
    try:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        version, files = manifest.get("format"), manifest.get("files")
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise CheckpointError(f"{checkpoint}: {MANIFEST} cannot be read ({error.strerror})") from None
    except OSError as error:
        raise _unreadable(error, checkpoint / MANIFEST) from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{checkpoint}: {MANIFEST} cannot be read ({error})") from None
    if version not in READABLE:
        readable = " and ".join(map(str, READABLE))
        raise CheckpointError(f"{checkpoint}: has format {version}; this version reads {readable}")
    if not isinstance(files, dict):
        raise CheckpointError(f"{checkpoint}: {MANIFEST} cannot be read (it lists no files)")
    return files


def verify(checkpoint: Path, within: str = "") -> None:
    """Compare every file with the manifest; with `within`, only the files whose path starts with it.

    Raises:
        CheckpointError: a file is missing, has another size, or has changed.
        OSError: a file cannot be read.
    """
    for name, expected in read_manifest(checkpoint).items():
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
    """The newest checkpoint that verifies, and what is wrong with each newer one.

    Raises:
        OSError: a checkpoint that may be intact cannot be read.
    """
    faults: list[str] = []
    for path in step_folders(folder):
        try:
            verify(path, within)
            return path, faults
        except CheckpointError as error:
            faults.append(str(error))
    return None, faults


def is_whole(folder: Path, step: int) -> bool:
    """Whether there is a valid checkpoint of this step under `folder`.

    Raises:
        OSError: it cannot be read.
    """
    try:
        verify(folder / name_of(step))
    except CheckpointError:
        return False
    return True


def keep_newest(folder: Path, keep: int, known_valid: set[Path]) -> int:
    """Remove all but the best and the newest `keep` checkpoints, and what is left of removed ones; return how many.

    Only valid checkpoints that were saved while the run was well count towards `keep`, so that others never push out
    the last good one. Checkpoints in `known_valid` are not hashed again; those that are found valid are added to it.
    """
    removed = 0
    valid = 0
    best = best_of(folder)
    for path in checkpoints(folder):
        if valid >= keep:
            if path == best:
                continue
            remove_checkpoint(path)
            known_valid.discard(path)
            removed += 1
            continue
        try:
            if path not in known_valid:
                verify(path)
                known_valid.add(path)
            valid += was_well(path)
        except (CheckpointError, OSError):
            pass
    for path in step_folders(folder):
        if not has_manifest(path):
            shutil.rmtree(path, ignore_errors=True)
    return removed


def best_of(folder: Path) -> Path | None:
    """The checkpoint with the highest score among those measured by the same number as the newest; None if none was.

    Of equal ones it is the newest. Its files are not verified.
    """
    scores = {path: score for path in checkpoints(folder) if (score := _score(path)) is not None}
    by = next(iter(scores.values()), ("", 0.0))[0]
    return max((path for path in scores if scores[path][0] == by), key=lambda path: scores[path][1], default=None)


def _score(checkpoint: Path) -> tuple[str, float] | None:
    """The name of the number that decides which checkpoint is best, and its score; None if it was not measured."""
    try:
        evaluation = json.loads((checkpoint / EVALUATION).read_bytes())
        return str(evaluation["best"]), float(evaluation["score"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def was_well(checkpoint: Path) -> bool:
    """Whether the run was well when this valid checkpoint was saved: its last step was finite, without a loss spike."""
    progress = json.loads((checkpoint / PROGRESS).read_bytes())
    return not progress.get("skipped_in_a_row") and not progress.get("spikes_in_a_row")


def remove_unfinished(folder: Path) -> None:
    """Remove what saves have left that were interrupted or given up."""
    for pattern in ("step_*.partial", f"step_*/{PARTS}"):
        for path in folder.glob(pattern):
            shutil.rmtree(path, ignore_errors=True)


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, its manifest first, so that a kill in between leaves nothing that looks complete."""
    (path / MANIFEST).unlink(missing_ok=True)
    flush(path)
    shutil.rmtree(path)


def describe(path: Path) -> dict[str, Any]:
    """Size and sha256 of a file, as recorded in the manifest."""
    return {"bytes": path.stat().st_size, "sha256": sha256_of(path)}


def _difference(found: Mapping[str, Any], expected: Any) -> str:
    """The first value that differs, with hashes shortened to fit on a line."""
    if isinstance(expected, Mapping) and expected.keys() == found.keys():
        what = next(key for key in found if found[key] != expected[key])
        return f"{what} {str(found[what])[:12]}, expected {str(expected[what])[:12]}"
    return f"{found}, expected {expected}"


def _unreadable(error: OSError, file: Path) -> OSError:
    """The same error with the file's name, which the error of a failed read lacks."""
    why = f"{error.strerror}; this checkpoint may be intact, so no older one is used instead: make the file readable"
    return OSError(error.errno, why, str(file))
