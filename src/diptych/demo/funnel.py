"""Count what each stage from the crawl to the shards kept, and why it left out the rest."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_funnel(pairs: Path, curated: Path, shards: Path) -> list[dict[str, Any]]:
    """The stages in order, each {`stage`, `kept`, `dropped`: reason → number}.

    All stages count pairs of a picture and a caption. A picture with both an alt text and a figcaption counts as two
    from the first stage on; a picture without a caption, or one that `extract` leaves out, counts as one. The folders
    are those that `diptych-shards` extract, curate and build wrote.
    """
    extracted: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for path in sorted((pairs / "_index").glob("*.json")):
        counts = _read(path)
        extracted.update(counts["pairs"])
        left_out.update(counts["dropped"])
    curation = _read(curated / "_index" / "report.json")
    outcomes = Counter(_read(shards / "_index" / "build.json")["outcomes"])
    stored = outcomes.pop("success", 0)
    return [
        _stage("pictures on the pages, once for each caption", extracted.total() + left_out.total(), {}),
        _stage("pairs with a caption (extract)", extracted.total(), left_out),
        _stage("pairs worth fetching (curate)", curation["kept"], curation["rules"]),
        _stage("pairs fetched and sound (build)", stored, outcomes),
    ]


def _stage(name: str, kept: int, dropped: Mapping[str, int]) -> dict[str, Any]:
    reasons = sorted(((reason, number) for reason, number in dropped.items() if number), key=lambda item: -item[1])
    return {"stage": name, "kept": kept, "dropped": dict(reasons)}


def _read(path: Path) -> dict[str, Any]:
    counts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return counts
