"""A folder tree of pictures, each with its caption in a .txt or .json beside it."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from diptych.data.caption_files import CAPTION_ENDINGS, PICTURE_ENDINGS, CaptionReason, sort_captions
from diptych.data.picture_safety import PictureReason
from diptych_shards.pack.candidates import Candidate, PackError, PackInput
from diptych_shards.refusals import Reason, Refusal

_OTHER_PICTURE_ENDINGS = (
    *(".gif", ".bmp", ".tif", ".tiff", ".svg", ".avif", ".heic", ".heif", ".jp2", ".jxl", ".psd", ".ico"),
)

Files = dict[str, os.stat_result]
"""By name, within one folder."""


def read_folder(folder: Path) -> PackInput:
    """Every file below the folder, as a candidate or a refusal."""
    candidates: list[Candidate] = []
    refusals: list[Refusal] = []
    fingerprint = hashlib.sha256()
    for where, files in _folders(folder, refusals):
        for name, found in sorted(files.items()):
            fingerprint.update(os.fsencode(f"{where}{name}\0{found.st_size}\0{found.st_mtime_ns}\n"))
        _sort_out(where, files, candidates, refusals)
    candidates.sort(key=lambda candidate: os.fsencode(candidate.path))
    refusals.sort(key=lambda refusal: (os.fsencode(refusal.path), refusal.reason))
    return PackInput(candidates, refusals, fingerprint.hexdigest())


def _folders(folder: Path, refusals: list[Refusal]) -> Iterator[tuple[str, Files]]:
    """Each folder's path (ending in `/`, empty for the first) and its plain files."""
    pending = [""]
    while pending:
        where = pending.pop()
        try:
            entries = sorted(os.scandir(folder / where), key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            if not where:
                raise PackError(f"{folder}: {error.strerror}") from error
            refusals.append(Refusal(where, Reason.UNREADABLE.value, error.strerror or ""))
            continue
        files: Files = {}
        for entry in entries:
            path = where + entry.name
            if entry.name.startswith("."):
                refusals.append(Refusal(path, Reason.HIDDEN.value))
            elif entry.is_dir(follow_symlinks=False):
                pending.append(path + "/")
            elif entry.is_dir():
                refusals.append(Refusal(path, Reason.LINKED_FOLDER.value))
            else:
                _add_file(path, entry, files, refusals)
        yield where, files


def _add_file(path: str, entry: os.DirEntry[str], files: Files, refusals: list[Refusal]) -> None:
    try:
        found = entry.stat()
    except OSError as error:
        refusals.append(Refusal(path, Reason.MISSING_FILE.value, error.strerror or ""))
        return
    if stat.S_ISREG(found.st_mode):
        files[entry.name] = found
    else:
        refusals.append(Refusal(path, Reason.NOT_A_FILE.value))


def _sort_out(where: str, files: Files, candidates: list[Candidate], refusals: list[Refusal]) -> None:
    """The candidates and refusals of one folder."""
    captions, second = sort_captions(files)
    refusals += [Refusal(where + name, CaptionReason.SECOND_CAPTION.value) for name in second]
    stems: set[str] = set()
    for name in sorted(files):
        stem, ending = os.path.splitext(name)
        ending = ending.lower()
        if ending in CAPTION_ENDINGS:
            continue
        stems.add(stem)
        if ending not in PICTURE_ENDINGS:
            is_picture = ending in _OTHER_PICTURE_ENDINGS
            reason = PictureReason.FORMAT_NOT_ALLOWED if is_picture else PictureReason.NOT_A_PICTURE
            refusals.append(Refusal(where + name, reason.value, f"its name ends in {ending or 'nothing'}"))
        elif own := captions.get(stem):
            size = files[name].st_size
            text, json = own.text and where + own.text, own.json and where + own.json
            candidates.append(Candidate(where + name, size, text, json))
        else:
            refusals.append(Refusal(where + name, CaptionReason.NO_CAPTION.value))
    for orphan in captions.keys() - stems:
        names = captions[orphan].text, captions[orphan].json
        refusals += [Refusal(where + name, CaptionReason.ORPHAN_CAPTION.value) for name in names if name]
