"""Why something of the input does not become a sample, and how that is printed."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable

from diptych.data.picture_files import Refusal
from diptych.terminal import shown

__all__ = ["Reason", "Refusal", "table_of_reasons"]


class Reason(enum.Enum):
    """Reasons in addition to `PictureReason`, `CaptionReason` and `FileReason` of `diptych.data`."""

    MISSING_FILE = "missing_file"
    UNREADABLE = "unreadable"
    NOT_A_FILE = "not_a_file"
    EMPTY_FOLDER = "empty_folder"
    OUTSIDE_FOLDER = "outside_folder"
    DUPLICATE_PATH = "duplicate_path"
    MALFORMED_ROW = "malformed_row"
    TOO_MANY_BYTES = "too_many_bytes"
    CHANGED_MEANWHILE = "changed_meanwhile"
    DECODER_CRASHED = "decoder_crashed"


def table_of_reasons(refusals: Iterable[Refusal]) -> str:
    """One line a reason, most frequent first, with one example each."""
    refusals = list(refusals)
    counts = Counter(refusal.reason for refusal in refusals)
    example = {refusal.reason: refusal for refusal in reversed(refusals)}
    lines = []
    for reason, times in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        detail = f" ({shown(example[reason].detail)})" if example[reason].detail else ""
        lines.append(f"  {times:>9,}  {reason:<18}  for example {shown(example[reason].path)}{detail}")
    return "\n".join(lines)
