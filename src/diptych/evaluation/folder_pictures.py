"""Open labelled or captioned pictures from folders, and record which files are left out and why."""

from __future__ import annotations

import enum
import os
from collections.abc import Sequence
from pathlib import Path

from diptych.data.caption_files import (
    CAPTION_ENDINGS,
    CaptionError,
    CaptionFiles,
    CaptionReason,
    read_captions,
    sort_captions,
)
from diptych.data.picture_files import (
    FileReason,
    Folder,
    PictureFiles,
    Refusal,
    find_pictures,
    is_hidden,
    refusal_by_name,
    walk,
)
from diptych.data.picture_formats import PICTURE_ENDINGS
from diptych.errors import UserError
from diptych.evaluation.left_out import check_some_are_captioned, in_words, left_out_by_reason
from diptych.evaluation.pictures import UNREADABLE, Pictures, files_of
from diptych.evaluation.table_pictures import are_numbers
from diptych.files import cannot, read_file

PICTURE_NAMES = ", ".join(ending[1:] for ending in PICTURE_ENDINGS)
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "dev", "test", "testing"})


class ClassReason(enum.Enum):
    """Why a file or folder in a folder of classes gives no labelled picture."""

    NOT_IN_A_CLASS = "not_in_a_class_folder"
    EMPTY_CLASS = "class_folder_without_pictures"


def labelled_folder(location: str) -> Pictures:
    """Open a folder with a subfolder for each class, named after it; pictures may be at any depth below.

    Raises:
        UserError: there is no picture, or the subfolders are parts of a data set (train, val) and not classes.
    """
    root = Path(location)
    classes, left_out = _class_folders(root)
    files: list[Path] = []
    labels: list[str] = []
    for folder in classes:
        found = _found(folder)
        left_out += [Refusal(f"{folder.name}/{each.path}", each.reason, each.detail) for each in found.refusals]
        if not found.paths:
            left_out.append(Refusal(f"{folder.name}/", ClassReason.EMPTY_CLASS.value))
        files += [folder / path for path in found.paths]
        labels += [folder.name] * len(found.paths)
    if not files:
        raise UserError(
            f"{location} has no pictures in subfolders{_but_loose(left_out)}"
            f"; expected CLASS/PICTURE.jpg ({PICTURE_NAMES}), or give a table of path and label"
        )
    names, read = files_of(files, root)
    _refuse_splits(location, names, labels)
    return Pictures(
        location,
        names,
        read,
        labels=tuple(labels),
        labels_are_numbers=are_numbers(labels),
        left_out=tuple(left_out),
    )


def captioned_folder(location: str, caption_key: str | None) -> Pictures:
    """Open a folder of pictures with captions in .txt or .json files of the same name, as `diptych-shards pack` does.

    Raises:
        UserError: no picture has a usable caption.
    """
    root = Path(location)
    files: dict[str, CaptionFiles | None] = {}
    left_out: list[Refusal] = []
    for folder in _walked(root):
        left_out += folder.refusals
        pictures, others = _sorted_out(folder)
        files |= pictures
        left_out += others
    found, captions, refused = [], [], {}
    for path in sorted(files, key=os.fsencode):
        try:
            captions.append(_captions((root / path).parent, files[path], caption_key))
            found.append(root / path)
        except CaptionError as error:
            refused[path] = error
    if not found and not refused:
        raise UserError(
            f"{location} contains no pictures{_but_left_out(left_out)}"
            f"; expected PICTURE.jpg ({PICTURE_NAMES}) and PICTURE.txt or .json"
        )
    key = caption_key or "caption"
    check_some_are_captioned(location, len(found), refused, f'PICTURE.txt or PICTURE.json with "{key}" next to it')
    return Pictures(
        location, *files_of(found, root), captions=tuple(captions), refused=refused, left_out=tuple(left_out)
    )


def plain_folder(location: str) -> Pictures:
    """Open all pictures of a folder, named by their whole paths.

    Raises:
        UserError: the folder contains no picture.
    """
    found = _found(Path(location))
    if not found.paths:
        raise UserError(f"{location} contains no pictures ({PICTURE_NAMES}){_but_left_out(found.refusals)}")
    names = tuple(os.path.join(location, path) for path in found.paths)
    left_out = tuple(Refusal(os.path.join(location, each.path), each.reason, each.detail) for each in found.refusals)
    return Pictures(location, names, lambda place: read_file(names[place], UNREADABLE), left_out=left_out)


def _class_folders(root: Path) -> tuple[list[Path], list[Refusal]]:
    """The folders of classes, which may be links, and the other entries, which are left out."""
    try:
        entries = sorted(root.iterdir())
    except OSError as error:
        raise cannot(error, root, "read", UNREADABLE) from error
    classes, left_out = [], []
    for entry in entries:
        if is_hidden(entry.name):
            left_out.append(Refusal(entry.name, FileReason.HIDDEN.value))
        elif entry.is_dir():
            classes.append(entry)
        else:
            not_in_a_class = Refusal(entry.name, ClassReason.NOT_IN_A_CLASS.value)
            left_out.append(refusal_by_name(entry.name) or not_in_a_class)
    return classes, left_out


def _refuse_splits(location: str, names: Sequence[str], labels: Sequence[str]) -> None:
    splits = sorted(set(labels))
    if all(split.lower() in SPLITS for split in splits) and all(name.count(os.sep) > 1 for name in names):
        raise UserError(
            f"{location} has the folders {', '.join(splits)}, which contain folders of classes and so are parts of a "
            f"data set, not classes; give one of them: {os.path.join(location, splits[-1])}"
        )


def _found(folder: Path) -> PictureFiles:
    try:
        found = find_pictures(folder)
    except OSError as error:
        raise cannot(error, folder, "read", UNREADABLE) from error
    _refuse_unreadable(folder, found.refusals)
    return found


def _sorted_out(folder: Folder) -> tuple[dict[str, CaptionFiles | None], list[Refusal]]:
    """The paths of a folder's pictures, each with its caption files, and the files that are neither."""
    beside = sort_captions(folder.files)[0]
    pictures: dict[str, CaptionFiles | None] = {}
    others = []
    for name in folder.files:
        refusal = refusal_by_name(folder.path + name)
        if refusal is None:
            pictures[folder.path + name] = beside.get(os.path.splitext(name)[0])
        elif not name.lower().endswith(CAPTION_ENDINGS):
            others.append(refusal)
    taken = {os.path.splitext(name)[0] for name in folder.files if not name.lower().endswith(CAPTION_ENDINGS)}
    for stem, files in beside.items():
        if stem not in taken:
            name = files.text or files.json
            others.append(Refusal(folder.path + name, CaptionReason.ORPHAN_CAPTION.value))
    return pictures, others


def _walked(root: Path) -> list[Folder]:
    try:
        folders = list(walk(root))
    except OSError as error:
        raise cannot(error, root, "read", UNREADABLE) from error
    for folder in folders:
        _refuse_unreadable(root, folder.refusals)
    return folders


def _refuse_unreadable(root: Path, refusals: Sequence[Refusal]) -> None:
    """Raise UserError for a folder that cannot be read: without it the data set would be another one."""
    for refusal in refusals:
        if refusal.reason == FileReason.UNREADABLE.value:
            raise UserError(f"{(root / refusal.path)} cannot be read: {refusal.detail}; {UNREADABLE}")


def _captions(folder: Path, files: CaptionFiles | None, key: str | None) -> tuple[str, ...]:
    if files is None:
        raise CaptionError(CaptionReason.NO_CAPTION)
    return read_captions(folder, files, key)[0]


def _but_loose(refusals: Sequence[Refusal]) -> str:
    loose = [each for each in refusals if each.reason == ClassReason.NOT_IN_A_CLASS.value]
    return f", but {len(loose)} outside of subfolders" if loose else _but_left_out(refusals)


def _but_left_out(refusals: Sequence[Refusal]) -> str:
    return f", but {in_words(left_out_by_reason(refusals))}" if refusals else ""
