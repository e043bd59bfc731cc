"""Find picture files in a folder and below it, and say what is left out and why."""

from __future__ import annotations

import enum
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from diptych.data.caption_files import CAPTION_ENDINGS
from diptych.data.picture_formats import PICTURE_ENDINGS, UNREAD_ENDINGS

SYSTEM_FOLDERS = ("@eaDir", "__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found")
"""Folders that systems hide without a dot in their names; they contain copies and thumbnails of the other pictures."""


@dataclass(frozen=True)
class Refusal:
    """A file, folder or row that was refused."""

    path: str
    reason: str
    detail: str = ""


class FileReason(enum.Enum):
    """Why something in a folder is left out before it is opened."""

    HIDDEN = "hidden"
    LINKED_FOLDER = "linked_folder"
    NOT_A_FILE = "not_a_file"
    MISSING_FILE = "missing_file"
    UNREADABLE = "unreadable"
    FORMAT_NOT_ALLOWED = "format_not_allowed"
    NOT_A_PICTURE = "not_a_picture"


@dataclass
class Folder:
    """The plain files of one folder, including links to files."""

    path: str
    """Relative to the root of the walk: empty, or with a `/` at its end."""
    files: dict[str, os.stat_result] = field(default_factory=dict)
    """By name, in the order of the names' bytes."""
    refusals: list[Refusal] = field(default_factory=list)
    """Hidden names, links to folders, pipes, links to nowhere."""


@dataclass(frozen=True)
class PictureFiles:
    """The picture files of a folder and of those below it."""

    paths: list[str]
    """Relative to the folder, with `/`, in the order of their bytes."""
    refusals: list[Refusal]
    """Everything else except captions, in the same order."""


def is_hidden(name: str) -> bool:
    """Whether systems or tools use this name for files of their own: thumbnails, copies, settings."""
    return name.startswith(".") or name in SYSTEM_FOLDERS


def walk(root: Path) -> Iterator[Folder]:
    """Visit the folder and all folders below it, except hidden ones and links.

    Raises:
        OSError: if the folder itself cannot be read; an unreadable one below it becomes a refusal.
    """
    pending = [""]
    while pending:
        folder = Folder(pending.pop())
        try:
            entries = sorted(os.scandir(root / folder.path), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            if not folder.path:
                raise
            entries = []
            folder.refusals.append(Refusal(folder.path, FileReason.UNREADABLE.value, error.strerror or ""))
        for entry in entries:
            path = folder.path + entry.name
            if is_hidden(entry.name):
                folder.refusals.append(Refusal(path, FileReason.HIDDEN.value))
            elif entry.is_dir(follow_symlinks=False):
                pending.append(path + "/")
            elif entry.is_dir():
                folder.refusals.append(Refusal(path, FileReason.LINKED_FOLDER.value))
            else:
                _add_file(folder, entry)
        yield folder


def find_pictures(root: Path) -> PictureFiles:
    """Find all files below the folder whose names end like a picture's.

    Raises:
        OSError: as `walk`.
    """
    paths: list[str] = []
    refusals: list[Refusal] = []
    for folder in walk(root):
        refusals += folder.refusals
        for name in folder.files:
            refusal = refusal_by_name(folder.path + name)
            if refusal is None:
                paths.append(folder.path + name)
            elif not name.lower().endswith(CAPTION_ENDINGS):
                refusals.append(refusal)
    paths.sort(key=os.fsencode)
    refusals.sort(key=lambda refusal: (os.fsencode(refusal.path), refusal.reason))
    return PictureFiles(paths, refusals)


def refusal_by_name(path: str) -> Refusal | None:
    """Why a file with this name is not opened as a picture; None if it is opened."""
    ending = os.path.splitext(path)[1].lower()
    if ending in PICTURE_ENDINGS:
        return None
    reason = FileReason.FORMAT_NOT_ALLOWED if ending in UNREAD_ENDINGS else FileReason.NOT_A_PICTURE
    return Refusal(path, reason.value, f"its name ends in {ending or 'nothing'}")


def _add_file(folder: Folder, entry: os.DirEntry[str]) -> None:
    try:
        found = entry.stat()
    except OSError as error:
        path = folder.path + entry.name
        folder.refusals.append(Refusal(path, FileReason.MISSING_FILE.value, error.strerror or ""))
        return
    if stat.S_ISREG(found.st_mode):
        folder.files[entry.name] = found
    else:
        folder.refusals.append(Refusal(folder.path + entry.name, FileReason.NOT_A_FILE.value))
