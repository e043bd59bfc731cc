"""Read a table of picture paths and captions, in any format that `build` reads."""

from __future__ import annotations

import hashlib
import os
import stat
from dataclasses import replace
from pathlib import Path

from diptych.data.caption_files import CaptionError, captions_of
from diptych.files import sha256_of
from diptych_shards.pack.candidates import Candidate, PackInput
from diptych_shards.refusals import Reason, Refusal
from diptych_shards.tables.json_text import plain
from diptych_shards.tables.picture_table import BadRow, Wanted, read_picture_table


def read_table(table: Path, folder: Path, wanted: Wanted) -> PackInput:
    """Read each picture with the captions of all its rows, and each row that is refused.

    A relative path is looked for in the table's folder, then in `folder`; either way the picture is below `folder`.
    """
    rows = read_picture_table(str(table), wanted)
    refusals: list[Refusal] = []
    fingerprint = hashlib.sha256(sha256_of(table).encode())
    sizes: dict[str, int] = {}
    candidates: dict[str, Candidate] = {}
    for row in rows:
        if isinstance(row, BadRow):
            refusals.append(Refusal(f"{table.name}, {row.place}", Reason.MALFORMED_ROW.value, row.why))
            continue
        path, found = _find(row.path, table.parent, folder)
        if isinstance(found, Reason):
            refusals.append(Refusal(path, found.value, row.place))
            continue
        if path not in sizes:
            sizes[path] = found.st_size
            fingerprint.update(os.fsencode(f"{path}\0{found.st_size}\0{found.st_mtime_ns}\n"))
        try:
            captions = captions_of(row.value)
        except CaptionError as error:
            detail = ", ".join(filter(None, (row.place, error.detail)))
            refusals.append(Refusal(path, error.reason.value, detail))
            continue
        known = candidates.get(path)
        if known is None:
            extra = {name: plain(value) for name, value in row.extra.items()}
            candidates[path] = Candidate(path, sizes[path], captions=captions, extra=extra)
        elif added := [caption for caption in captions if caption not in known.captions]:
            candidates[path] = replace(known, captions=(*known.captions, *added))
        else:
            refusals.append(Refusal(path, Reason.DUPLICATE_PATH.value, f"{row.place}: with no other caption"))
    ordered = sorted(candidates.values(), key=lambda candidate: os.fsencode(candidate.path))
    return PackInput(ordered, refusals, fingerprint.hexdigest())


def _find(path: str, *folders: Path) -> tuple[str, os.stat_result | Reason]:
    """Look for the picture in each folder in turn; it must be below the last one.

    Returns its path relative to the last folder, and what the file system says of it, or why it is refused.
    """
    within = folders[-1]
    is_outside = False
    for folder in folders:
        try:
            found = os.stat(folder / path)  # an absolute path stays as it is
        except (OSError, ValueError):  # ValueError: a zero byte in the path
            continue
        relative = _relative(folder / path, within)
        if relative is not None:
            return relative, found if stat.S_ISREG(found.st_mode) else Reason.NOT_A_FILE
        is_outside = True
    relative = _relative(within / path, within)
    if is_outside or relative is None:
        return path, Reason.OUTSIDE_FOLDER
    return relative, Reason.MISSING_FILE


def _relative(path: Path, folder: Path) -> str | None:
    """The path relative to the folder, without `.` and `..`; None if it leads elsewhere."""
    for whole in (os.path.abspath, os.path.realpath):  # a folder may be named by a link
        relative = os.path.relpath(whole(path), whole(folder))
        if relative != os.pardir and not relative.startswith(os.pardir + os.sep):
            return relative
    return None
