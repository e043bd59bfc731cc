"""Count the files and pictures that an evaluation leaves out, by reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from diptych.data.caption_files import CaptionError
from diptych.data.picture_files import Refusal
from diptych.errors import UserError
from diptych.terminal import counted


def by_reason(refused: Mapping[str, CaptionError]) -> dict[str, dict[str, Any]]:
    """How many pictures were refused for each reason, most frequent first, with one example each."""
    return _by_reason("pictures", ((error.reason.value, name, error.detail) for name, error in refused.items()))


def left_out_by_reason(refusals: Iterable[Refusal]) -> dict[str, dict[str, Any]]:
    """How many files were left out for each reason, most frequent first, with one example each."""
    return _by_reason("files", ((each.reason, each.path, each.detail) for each in refusals))


def in_words(reasons: Mapping[str, Mapping[str, Any]]) -> str:
    """The counts of `by_reason` or `left_out_by_reason` on one line."""
    return ", ".join(
        f"{each.get('pictures') or each['files']:,} {reason} (for example {each['example']})"
        for reason, each in reasons.items()
    )


def check_some_are_captioned(location: str, kept: int, refused: Mapping[str, CaptionError], expected: str) -> None:
    if not kept:
        raise UserError(
            f"none of the {counted(len(refused), 'picture')} of {location} has a caption that can be used: "
            f"{in_words(by_reason(refused))}; expected {expected}"
        )


def _by_reason(unit: str, refusals: Iterable[tuple[str, str, str]]) -> dict[str, dict[str, Any]]:
    counts: Counter[str] = Counter()
    examples: dict[str, str] = {}
    for reason, name, detail in refusals:
        counts[reason] += 1
        examples.setdefault(reason, f"{name}: {detail}" if detail else name)
    return {reason: {unit: number, "example": examples[reason]} for reason, number in counts.most_common()}
