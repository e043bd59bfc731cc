"""From a candidate to the members of a sample, or to the reason why not; runs in worker processes."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diptych.data.picture_safety import PictureError, check_picture
from diptych.data.shard_index_file import MAX_MEMBER_BYTES
from diptych_shards.candidates import Candidate
from diptych_shards.refusals import Reason, Refusal, shown

MAX_CAPTION_BYTES = 64 << 10
MAX_JSON_BYTES = 1 << 20
SUFFIX_OF_FORMAT = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}


@dataclass(frozen=True)
class Examiner:
    """What is asked of every picture."""

    folder: Path
    max_pixels: int
    min_side: int

    def __call__(self, candidate: Candidate) -> dict[str, bytes] | Refusal:
        """The sample's members by suffix: the picture unchanged, its caption, its metadata."""
        try:
            caption, extra = self._caption(candidate)
            picture = self._read(candidate.path, MAX_MEMBER_BYTES, Reason.TOO_MANY_BYTES)
            if len(picture) != candidate.num_bytes:
                raise _Refused(Reason.CHANGED_MEANWHILE)
            width, height, name = check_picture(picture, max_pixels=self.max_pixels, min_side=self.min_side)
        except PictureError as error:
            return Refusal(candidate.path, error.reason.value, str(error))
        except _Refused as refused:
            return Refusal(candidate.path, refused.reason.value, refused.detail)
        facts = {
            "caption": caption,
            "width": width,
            "height": height,
            "path": shown(candidate.path),
            "sha256": hashlib.sha256(picture).hexdigest(),
        }
        return {
            SUFFIX_OF_FORMAT[name]: picture,
            "txt": caption.encode(),
            "json": _json(facts | {_free_name(key, facts): value for key, value in extra.items()}),
        }

    def _caption(self, candidate: Candidate) -> tuple[str, Mapping[str, Any]]:
        """The caption without surrounding white space, and what else is known of the picture."""
        extra: dict[str, Any] = dict(candidate.extra)
        caption: Any = candidate.caption
        if candidate.json_path:
            extra = _object(self._read(candidate.json_path, MAX_JSON_BYTES, Reason.CAPTION_TOO_LONG))
            caption = extra.pop("caption", None)
        if candidate.text_path:  # beside a .json, which then holds metadata only
            caption = _text(self._read(candidate.text_path, MAX_CAPTION_BYTES, Reason.CAPTION_TOO_LONG))
        if caption is None:
            raise _Refused(Reason.NO_CAPTION)
        if not isinstance(caption, str):
            raise _Refused(Reason.CAPTION_NOT_TEXT, type(caption).__name__)
        caption = caption.strip()
        if not caption:
            raise _Refused(Reason.EMPTY_CAPTION)
        if any("\ud800" <= char <= "\udfff" for char in caption):
            raise _Refused(Reason.CAPTION_NOT_UTF8)
        if len(caption.encode()) > MAX_CAPTION_BYTES:
            raise _Refused(Reason.CAPTION_TOO_LONG)
        return caption, extra

    def _read(self, path: str, max_bytes: int, when_longer: Reason) -> bytes:
        try:
            with open(self.folder / path, "rb") as file:
                data = file.read(max_bytes + 1)
        except FileNotFoundError as error:
            raise _Refused(Reason.MISSING_FILE) from error
        except OSError as error:
            raise _Refused(Reason.UNREADABLE, os.strerror(error.errno or 0)) from error
        if len(data) > max_bytes:
            raise _Refused(when_longer, f"over {max_bytes} bytes")
        return data


class _Refused(Exception):
    def __init__(self, reason: Reason, detail: str = ""):
        super().__init__(reason.value)
        self.reason = reason
        self.detail = detail


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise _Refused(Reason.CAPTION_NOT_UTF8, f"at byte {error.start}") from error


def _object(data: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(_text(data), parse_constant=lambda name: None)  # NaN is no JSON
    except (ValueError, RecursionError) as error:
        raise _Refused(Reason.BAD_JSON) from error
    if not isinstance(fields, dict):
        raise _Refused(Reason.BAD_JSON, "not an object")
    return fields


def _free_name(key: str, facts: Mapping[str, Any]) -> str:
    """What is measured here keeps its name; what the input said under the same name stands beside it."""
    return f"given_{key}" if key in facts else key


def _json(fields: Mapping[str, Any]) -> bytes:
    try:
        return json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:  # lone surrogates, which only escapes can hold
        return json.dumps(fields).encode()
