"""Captions in files next to their pictures: which belongs to which, what they say, and why one is refused."""

from __future__ import annotations

import enum
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from diptych.documents import parse_json
from diptych.errors import UserError

CAPTION_ENDINGS = (".txt", ".json")

MAX_CAPTION_BYTES = 64 << 10
MAX_JSON_BYTES = 1 << 20


_LINE_END = re.compile(r"\r\n?|\n")


class CaptionReason(enum.Enum):
    """Why a picture has no caption that can be used, or a caption file no picture."""

    NO_CAPTION = "no_caption"
    EMPTY_CAPTION = "empty_caption"
    CAPTION_NOT_UTF8 = "caption_not_utf8"
    CAPTION_NOT_TEXT = "caption_not_text"
    CAPTION_TOO_LONG = "caption_too_long"
    BAD_JSON = "bad_json"
    ORPHAN_CAPTION = "orphan_caption"
    SECOND_CAPTION = "second_caption"
    MALFORMED_ROW = "malformed_row"
    MISSING_FILE = "missing_file"
    UNREADABLE = "unreadable"


CAPTION_REASONS = tuple(
    reason.value
    for reason in (
        CaptionReason.NO_CAPTION,
        CaptionReason.EMPTY_CAPTION,
        CaptionReason.CAPTION_TOO_LONG,
        CaptionReason.CAPTION_NOT_UTF8,
        CaptionReason.CAPTION_NOT_TEXT,
    )
)
"""Why `check_caption` refuses one."""


class CaptionError(UserError):
    """A caption that cannot be used; `reason` is what is counted, `detail` what is shown with it."""

    def __init__(self, reason: CaptionReason, detail: str = ""):
        super().__init__(f"{reason.value} ({detail})" if detail else reason.value)
        self.reason = reason
        self.detail = detail


@dataclass(frozen=True)
class CaptionFiles:
    """The files that hold the caption of a picture; empty for a file that does not exist."""

    text: str = ""
    json: str = ""


def sort_captions(names: Iterable[str]) -> tuple[dict[str, CaptionFiles], list[str]]:
    """The caption files among the names of one folder by stem, and those that are the second of their kind."""
    found: dict[str, CaptionFiles] = {}
    second = []
    for name in sorted(names):
        stem, ending = os.path.splitext(name)
        if ending.lower() not in CAPTION_ENDINGS:
            continue
        kind = "text" if ending.lower() == ".txt" else "json"
        known = found.setdefault(stem, CaptionFiles())
        if getattr(known, kind):
            second.append(name)
        else:
            found[stem] = replace(known, **{kind: name})
    return found, second


def read_captions(folder: Path, files: CaptionFiles, key: str | None = None) -> tuple[tuple[str, ...], dict[str, Any]]:
    """The captions of a picture, each checked, and what else its .json says.

    Each line of a .txt that is not blank is a caption. Without a .txt, `caption` of the .json is one or a list of
    them, or where there is none `captions`. With `key` it is that field of the .json, whatever the .txt holds.

    Raises:
        CaptionError: there is none that can be used.
    """
    fields = read_fields(folder / files.json) if files.json else {}
    if key is not None:
        return captions_in(fields, key), fields
    given = fields.pop("caption", None)
    if files.text:
        return captions_of(text_lines(_text(_read(folder / files.text, MAX_CAPTION_BYTES)))), fields
    if given is None and "captions" in fields:
        given = fields.pop("captions")
    return captions_of(given), fields


def text_lines(text: str) -> list[str]:
    """The lines of a .txt that are not blank; one blank line where all are."""
    return [line for line in _LINE_END.split(text) if line.strip()] or [""]


def captions_in(fields: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The text or list of texts that the fields have under the key, each checked.

    Raises:
        CaptionError: there is nothing that can be used.
    """
    if key not in fields:
        raise CaptionError(CaptionReason.NO_CAPTION, f"there are {', '.join(fields)}" if fields else "")
    return captions_of(fields[key])


def captions_of(value: Any) -> tuple[str, ...]:
    """The one caption or the list of captions that a value of a table or of a json is, each checked.

    Of a list, what is nothing or blank is passed over while there are others, as blank lines of a .txt are.

    Raises:
        CaptionError: the value or one of the list is nothing that can be used.
    """
    if not isinstance(value, list):
        return (check_caption(value),)
    captions = [caption for caption in value if not _is_blank(caption)] or value[:1]
    if not captions:
        raise CaptionError(CaptionReason.NO_CAPTION)
    return tuple(check_caption(caption) for caption in captions)


def _is_blank(caption: Any) -> bool:
    return caption is None or caption != caption or (isinstance(caption, str) and not caption.strip())


def read_fields(path: Path) -> dict[str, Any]:
    """The object that a .json file holds.

    Raises:
        CaptionError: it holds something else, or cannot be read.
    """
    return _object(_read(path, MAX_JSON_BYTES), parse_json)


def fields_of(data: bytes) -> dict[str, Any]:
    """The JSON object that a sample's json member is.

    Of a key that appears twice the last holds, as in every other reader of shards: no person wrote it, and what is
    trained on must not change.

    Raises:
        CaptionError: it is something else.
    """
    return _object(data, json.loads)


def _object(data: bytes, parse: Callable[..., Any]) -> dict[str, Any]:
    text = _text(data)
    try:
        fields = parse(text, parse_constant=lambda name: None)  # NaN is not JSON
    except json.JSONDecodeError as error:
        raise CaptionError(CaptionReason.BAD_JSON, str(error)) from error
    except (ValueError, RecursionError) as error:
        raise CaptionError(CaptionReason.BAD_JSON) from error
    if not isinstance(fields, dict):
        raise CaptionError(CaptionReason.BAD_JSON, "not an object")
    return fields


def check_caption(caption: Any) -> str:
    """The caption without surrounding white space.

    Raises:
        CaptionError: it is not text, empty, too long or not to be written as UTF-8.
    """
    if caption is None or caption != caption:  # NaN: what tables have where there is none
        raise CaptionError(CaptionReason.NO_CAPTION)
    if not isinstance(caption, str):
        raise CaptionError(CaptionReason.CAPTION_NOT_TEXT, type(caption).__name__)
    text = caption.strip()
    if not text:
        raise CaptionError(CaptionReason.EMPTY_CAPTION)
    if any("\ud800" <= char <= "\udfff" for char in text):
        raise CaptionError(CaptionReason.CAPTION_NOT_UTF8)
    if len(text.encode()) > MAX_CAPTION_BYTES:
        raise CaptionError(CaptionReason.CAPTION_TOO_LONG)
    return text


def _read(path: Path, max_bytes: int) -> bytes:
    try:
        with open(path, "rb") as file:
            data = file.read(max_bytes + 1)
    except FileNotFoundError as error:
        raise CaptionError(CaptionReason.MISSING_FILE) from error
    except OSError as error:
        raise CaptionError(CaptionReason.UNREADABLE, os.strerror(error.errno or 0)) from error
    if len(data) > max_bytes:
        raise CaptionError(CaptionReason.CAPTION_TOO_LONG, f"over {max_bytes} bytes")
    return data


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise CaptionError(CaptionReason.CAPTION_NOT_UTF8, f"at byte {error.start}") from error
