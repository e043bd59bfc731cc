"""What each reason for a refusal means, and the stages of a row on its way from the table to a shard."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from diptych.data.caption_files import CAPTION_REASONS

MEANINGS: Mapping[str, str] = {
    "bad_url": "not a URL that can be requested",
    "scheme_not_allowed": "neither http nor https",
    "port_not_allowed": "a port that web servers do not use",
    "blocked_domain": "on the block list of domains",
    "address_not_public": "leads to an address that is not on the public internet",
    "robots_txt": "the site's robots.txt asks not to",
    "opt_out": "the answer carries a directive against use in training",
    "host_given_up": "not requested, or without success: its host answered nobody, or asked for too long a pause",
    "dns_failed": "the host has no address",
    "connect_failed": "nothing listens there",
    "connect_timeout": "no connection in time",
    "tls_failed": "the certificate is not valid for the host",
    "connection_reset": "the host broke the connection",
    "no_answer": "connected, but did not answer",
    "bad_answer": "the answer is not HTTP",
    "headers_too_large": "headers that are too long",
    "headers_too_slow": "headers that come too slowly",
    "too_slow": "under the minimum speed",
    "timeout": "over the time for one URL",
    "too_many_redirects": "redirected again and again",
    "too_many_bytes": "larger than a picture may be",
    "too_many_bytes_unpacked": "larger than a picture may be, once unpacked",
    "bad_encoding": "cannot be unpacked",
    "truncated_body": "fewer bytes than announced",
    "empty_body": "an answer without content",
    "hash_mismatch": "not the file that the table describes",
    "blocked_picture": "on the block list of pictures",
    "not_a_picture": "something else, often a page of HTML",
    "format_not_allowed": "a format that is not read",
    "too_many_pixels": "more pixels than are decoded",
    "too_small": "under the smallest size",
    "area_too_large": "over the largest area",
    "aspect_ratio_too_large": "too long for its width",
    "truncated": "ends early",
    "decode_error": "does not decode",
    "decoder_crashed": "crashed or hung its decoder",
    "encode_error": "could not be stored in the chosen format",
    "bad_box": "its boxes to blur cannot be read",
    "no_caption": "no caption next to it or in its row",
    "empty_caption": "empty, or white space only",
    "caption_too_long": "a caption over 64 KiB",
    "caption_not_utf8": "a caption in another encoding",
    "caption_not_text": "a caption that is not text",
    "bad_json": "not a JSON object",
    "orphan_caption": "a caption without a picture",
    "second_caption": "two captions for one picture",
    "missing_file": "does not exist",
    "unreadable": "the system refuses to read it",
    "changed_meanwhile": "changed during the run",
    "not_a_file": "a pipe or a device",
    "linked_folder": "a link to a folder",
    "empty_folder": "a folder with nothing in it",
    "hidden": "a name that starts with a dot",
    "duplicate_path": "listed before",
    "outside_folder": "outside the folder",
    "malformed_row": "no path, or too many fields",
    "unknown": "no reason was recorded",
}

_NOT_ASKED = ("bad_url", "scheme_not_allowed", "port_not_allowed", "blocked_domain", "address_not_public", "robots_txt")
_NOT_ANSWERED = (
    "host_given_up", "dns_failed", "connect_failed", "connect_timeout", "tls_failed", "connection_reset", "no_answer",
    "bad_answer", "headers_too_large", "headers_too_slow", "too_slow", "timeout",
)  # fmt: skip
_NO_FILE = ("opt_out", "too_many_redirects", "too_many_bytes", "too_many_bytes_unpacked", "bad_encoding",
            "truncated_body", "empty_body")  # fmt: skip
_NOT_THE_ONE = ("hash_mismatch", "blocked_picture")
_NO_PICTURE = ("not_a_picture", "format_not_allowed", "too_many_pixels", "truncated", "decode_error",
               "decoder_crashed")  # fmt: skip
_STAGES = (
    ("with a caption", CAPTION_REASONS),
    ("allowed to be requested", _NOT_ASKED),
    ("answered", _NOT_ANSWERED),
    ("gave a file", _NO_FILE),
    ("the expected file", _NOT_THE_ONE),
    ("a picture that decodes", _NO_PICTURE),
)
_LAST = "kept"


@dataclass(frozen=True)
class Stage:
    """How many rows reached a stage, and why others did not."""

    title: str
    rows: int
    lost: Sequence[tuple[str, int]]
    """(reason, rows) lost since the stage before, most frequent first."""


def meaning(reason: str) -> str:
    """The reason in words; empty for one that is not known."""
    if reason.startswith("http_") and reason[5:].isdecimal():
        try:
            return f"the server says: {HTTPStatus(int(reason[5:])).phrase}"
        except ValueError:
            return "a status that is not in the standard"
    return MEANINGS.get(reason, "")


def funnel(kind: str, kept: int, refused: Counter[str]) -> list[Stage]:
    """The stages from all rows to those that were kept; a stage where nothing was lost is left out."""
    rows = kept + refused.total()
    if kind == "pack":
        return [Stage("files and captions found", rows, ()), Stage("packed", kept, _frequent(refused))]
    lost: dict[str, Counter[str]] = {title: Counter() for title in (*(title for title, _ in _STAGES), _LAST)}
    for reason, times in refused.items():
        lost[_stage_of(reason)][reason] = times
    stages = [Stage("rows of the table", rows, ())]
    for title, losses in lost.items():
        rows -= losses.total()
        if losses or title == _LAST:
            stages.append(Stage(title, rows, _frequent(losses)))
    return stages


def _stage_of(reason: str) -> str:
    """The title of the stage that a row with this reason did not reach."""
    if reason.startswith("http_"):
        return "gave a file"
    return next((title for title, reasons in _STAGES if reason in reasons), _LAST)


def _frequent(losses: Counter[str]) -> list[tuple[str, int]]:
    return sorted(losses.items(), key=lambda item: (-item[1], item[0]))
