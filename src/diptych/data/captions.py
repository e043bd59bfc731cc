"""Find a sample's caption in its members, and clean it for the tokenizer."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping

import ftfy

from diptych.data.draws import Draws

_CLEANING_IS_IDENTITY = re.compile(r"[\t\n\f\r -%'-~]*").fullmatch
"""Matches texts that cleaning leaves as they are: ASCII without `&` and without the control characters that ftfy drops
(NUL-BS, VT, SO-US with ESC, DEL).

ftfy changes ASCII only in entities, control characters, terminal escapes and line ends (CR becomes LF, and both become
a space in the end), and `html.unescape` acts only on `&`.
"""


def clean_caption(text: str) -> str:
    """Repair a caption with ftfy, unescape HTML twice, and replace every run of whitespace by one space.

    This is the cleaning of CLIP's tokenizer, without the lower-casing. Names of control tokens stay as they
    are: `diptych.data.tokenizer` reads them as ordinary text.
    """
    if not _CLEANING_IS_IDENTITY(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text)))
    return " ".join(text.split())


def all_captions(caption: str, document: bytes) -> tuple[str, ...]:
    """All captions of a sample that has several: the list `captions` in its `.json`, which starts with this caption.

    Empty if the sample has only one. A list that does not start with the caption was written by another tool for
    another purpose, and is ignored.
    """
    if b'"captions"' not in document:
        return ()
    try:
        captions = json.loads(document)["captions"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()
    if not isinstance(captions, list) or not all(isinstance(each, str) and each.strip() for each in captions):
        return ()
    stripped = tuple(each.strip() for each in captions)
    return stripped if len(stripped) > 1 and stripped[0] == caption else ()


def drawn_caption(members: Mapping[str, bytes], fields: Mapping[str, float], draws: Draws) -> str:
    """Draw one of a sample's captions; an empty text if it has none.

    fields: `txt`, or keys of its `.json`, each with its probability. Fields that are missing or empty are left out, so
        that the others share their probability. Of a list of captions each is drawn as often.
    """
    values = caption_fields(members)
    # Sorted, so that equal configs draw equal captions, in whatever order the fields are written.
    found = {field: texts for field in sorted(fields) if (texts := _texts(values.get(field)))}
    if not found:
        return ""
    point = draws.uniform(0, sum(fields[field] for field in found))
    for texts, probability in ((texts, fields[field]) for field, texts in found.items()):
        chosen = texts
        point -= probability
        if point < 0:
            break
    return chosen[draws.below(len(chosen))]


def fields_with_text(members: Mapping[str, bytes]) -> list[str]:
    """The fields that contain captions, or any other text."""
    return [field for field, value in caption_fields(members).items() if _texts(value)]


def caption_fields(members: Mapping[str, bytes]) -> dict[str, object]:
    """What may contain captions: the keys of a sample's `.json`, and `txt` for its `.txt`."""
    try:
        document = json.loads(members.get("json", b"{}"))
    except (ValueError, RecursionError):
        document = {}
    values = document if isinstance(document, dict) else {}
    return {**values, "txt": members["txt"].decode("utf-8", errors="replace")} if "txt" in members else values


def _texts(value: object) -> list[str]:
    """The captions in a value: itself, or those of a list; without surrounding white space, and empty ones."""
    texts = value if isinstance(value, list) else [value]
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]


def caption_of(members: Mapping[str, bytes]) -> str:
    """A sample's caption as stored: its `.txt` member, else `caption` in its `.json`, else an empty text."""
    if "txt" in members:
        return members["txt"].decode("utf-8", errors="replace").strip()
    try:
        document = json.loads(members.get("json", b"{}"))
    except (ValueError, RecursionError):
        return ""
    caption = document.get("caption") if isinstance(document, dict) else None
    return caption.strip() if isinstance(caption, str) else ""
