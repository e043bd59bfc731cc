"""Read a folder tree of pictures, each with its caption in a .txt or .json next to it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

from diptych.data.caption_files import CAPTION_ENDINGS, CaptionReason, sort_captions
from diptych.data.picture_files import Folder, Refusal, refusal_by_name, walk
from diptych.errors import UserError
from diptych_shards.pack.candidates import Candidate, PackInput
from diptych_shards.refusals import Reason


def read_folder(folder: Path, caption_template: str | None = None) -> PackInput:
    """Read every file below the folder as a candidate or a refusal.

    caption_template: the caption of a picture without one, with {} for the name of its folder.
    """
    candidates: list[Candidate] = []
    refusals: list[Refusal] = []
    fingerprint = hashlib.sha256()
    bare: set[str] = set()
    above: set[str] = set()
    try:
        for each in walk(folder):
            above.add(os.path.dirname(each.path.rstrip("/")) + "/")
            if each.path and not each.files and not each.refusals:
                bare.add(each.path)
            for name, found in each.files.items():
                fingerprint.update(os.fsencode(f"{each.path}{name}\0{found.st_size}\0{found.st_mtime_ns}\n"))
            refusals += each.refusals
            _sort_out(each, candidates, refusals, caption_template)
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}") from error
    refusals += [Refusal(path, Reason.EMPTY_FOLDER.value) for path in bare - above]
    candidates.sort(key=lambda candidate: os.fsencode(candidate.path))
    refusals.sort(key=lambda refusal: (os.fsencode(refusal.path), refusal.reason))
    return PackInput(candidates, refusals, fingerprint.hexdigest())


def _sort_out(
    folder: Folder, candidates: list[Candidate], refusals: list[Refusal], caption_template: str | None
) -> None:
    """Add the candidates and refusals of one folder to the lists."""
    where, files = folder.path, folder.files
    captions, second = sort_captions(files)
    refusals += [Refusal(where + name, CaptionReason.SECOND_CAPTION.value) for name in second]
    stems: set[str] = set()
    for name in files:
        stem, ending = os.path.splitext(name)
        if ending.lower() in CAPTION_ENDINGS:
            continue
        stems.add(stem)
        if refusal := refusal_by_name(where + name):
            refusals.append(refusal)
        elif own := captions.get(stem):
            size = files[name].st_size
            text, json = own.text and where + own.text, own.json and where + own.json
            candidates.append(Candidate(where + name, size, text, json))
        elif caption_template is not None and where:
            label = where.rstrip("/").rpartition("/")[2]
            caption = caption_template.replace("{}", label)
            candidates.append(Candidate(where + name, files[name].st_size, captions=(caption,), extra={"label": label}))
        else:
            refusals.append(Refusal(where + name, CaptionReason.NO_CAPTION.value))
    for orphan in captions.keys() - stems:
        names = captions[orphan].text, captions[orphan].json
        refusals += [Refusal(where + name, CaptionReason.ORPHAN_CAPTION.value) for name in names if name]
