"""Make the members of a sample from a candidate, or give the reason why not; runs in worker processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.data.caption_files import CaptionError, CaptionFiles, captions_of, read_captions
from diptych.data.picture_formats import STORED_FORMATS, SUFFIXES
from diptych.data.picture_safety import PictureError, check_picture
from diptych.data.shard_index_file import MAX_MEMBER_BYTES
from diptych.terminal import shown
from diptych_shards.pack.candidates import Candidate
from diptych_shards.pictures.picture import PictureOptions, for_training, process_picture
from diptych_shards.refusals import Reason, Refusal


@dataclass(frozen=True)
class Examiner:
    """Examines pictures, with the same limits for all."""

    folder: Path
    max_pixels: int
    min_side: int
    for_training: int | None = None
    """Resize so that the shorter side has so many pixels."""

    def __call__(self, candidate: Candidate) -> dict[str, bytes] | Refusal:
        """Make the sample's members by suffix: the picture, its caption, its metadata."""
        try:
            captions, extra = self._captions(candidate)
            picture = self._read(candidate.path)
            if len(picture) != candidate.num_bytes:
                raise _Refused(Reason.CHANGED_MEANWHILE)
            suffix, stored, sizes = self._stored(picture)
        except PictureError as error:
            return Refusal(candidate.path, error.reason.value, str(error))
        except (CaptionError, _Refused) as refused:
            return Refusal(candidate.path, refused.reason.value, refused.detail)
        facts = {
            "caption": captions[0],
            **({"captions": captions} if len(captions) > 1 else {}),
            **sizes,
            "path": shown(candidate.path),
            "sha256": hashlib.sha256(picture).hexdigest(),
        }
        return {
            suffix: stored,
            "txt": captions[0].encode(),
            "json": _json(facts | {_free_name(key, facts): value for key, value in extra.items()}),
        }

    def _captions(self, candidate: Candidate) -> tuple[tuple[str, ...], Mapping[str, Any]]:
        """Read the captions, without surrounding white space, and the other fields of the picture."""
        if candidate.captions:
            return captions_of([*candidate.captions]), candidate.extra
        return read_captions(self.folder, CaptionFiles(candidate.text_path, candidate.json_path))

    def _stored(self, picture: bytes) -> tuple[str, bytes, dict[str, int]]:
        """Suffix and bytes of the picture to store, and its sizes; the bytes are its own if no change is needed.

        Raises:
            PictureError: it is refused, with the reason.
        """
        if self.for_training is None:
            width, height, name = check_picture(picture, max_pixels=self.max_pixels, min_side=self.min_side)
            if name in STORED_FORMATS:
                return SUFFIXES[name], picture, {"width": width, "height": height}
            options = PictureOptions(resize_mode="no")
        else:
            options = for_training(self.for_training)
        options = replace(options, max_pixels=self.max_pixels, min_image_size=self.min_side, read_exif=False)
        made = process_picture(picture, options)
        sizes = {"width": made.width, "height": made.height}
        sizes |= {"original_width": made.original_width, "original_height": made.original_height}
        return made.suffix, made.data, sizes

    def _read(self, path: str) -> bytes:
        try:
            with open(self.folder / path, "rb") as file:
                data = file.read(MAX_MEMBER_BYTES + 1)
        except FileNotFoundError as error:
            raise _Refused(Reason.MISSING_FILE) from error
        except OSError as error:
            raise _Refused(Reason.UNREADABLE, os.strerror(error.errno or 0)) from error
        if len(data) > MAX_MEMBER_BYTES:
            raise _Refused(Reason.TOO_MANY_BYTES, f"over {MAX_MEMBER_BYTES} bytes")
        return data


class _Refused(Exception):
    def __init__(self, reason: Reason, detail: str = ""):
        super().__init__(reason.value)
        self.reason = reason
        self.detail = detail


def _free_name(key: str, facts: Mapping[str, Any]) -> str:
    """The name of a field of the input; with `given_` before it if one of our own fields has that name."""
    return f"given_{key}" if key in facts else key


def _json(fields: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # lone surrogates, which only escapes can hold
        return json.dumps(fields).encode()
