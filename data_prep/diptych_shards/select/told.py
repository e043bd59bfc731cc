"""What a verdict says, for a terminal."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from diptych.terminal import counted, is_or_are, shown
from diptych_shards.select.verdicts import select_folder


def verdict_table(shards: Path, name: str, counts: Mapping[str, int], passed_over: int = 0) -> str:
    """counts: samples by reason; the empty one is that of what is kept, and of those that were passed over."""
    total = sum(counts.values())
    kept = counts.get("", 0) - passed_over
    where = f"{shown(select_folder(shards) / name)}.parquet"
    lines = [f"{name}: {kept:,} of {counted(total, 'sample')} {is_or_are(total)} kept: {where}"]
    reasons = sorted(((number, reason) for reason, number in counts.items() if reason), key=lambda r: (-r[0], r[1]))
    return "\n".join([*lines, *(f"  {number:>12,}  {shown(reason)}" for number, reason in reasons)])
