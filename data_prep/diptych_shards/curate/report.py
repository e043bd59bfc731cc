"""What was dropped and why, and what balancing did to the queries: report.json, report.html, queries.parquet."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from diptych.files import commit_file
from diptych.pages.template import template
from diptych_shards.curate.balance import query_probabilities
from diptych_shards.curate.curves import Curves, head_and_tail
from diptych_shards.curate.decide import Decided
from diptych_shards.curate.options import CurateOptions
from diptych_shards.curate.reasons import MEANINGS, REASONS
from diptych_shards.curate.state import Output, committed_in_its_folder

MOST_QUERIES = 200
"""In report.json and on the page; queries.parquet has all."""
MOST_EXAMPLES = 5
MOST_LANGUAGES = 40


def write_report(
    output: Output,
    options: CurateOptions,
    decided: Decided,
    queries: Sequence[str] | None,
    counts: np.ndarray,
    examples: Iterable[Mapping[str, Sequence[str]]],
) -> None:
    """Write all of it, report.json last. counts: captions that hold each query, before balancing."""
    report: dict[str, Any] = {
        "pairs": int(decided.reasons.sum()),
        "kept": int(decided.reasons[0]),
        "rules": {
            reason: int(number) for reason, number in zip(REASONS, decided.reasons, strict=True) if reason != "kept"
        },
        "languages": {
            language: number
            for language, number in sorted(decided.languages.items(), key=lambda item: (-item[1], item[0]))
            if language
        },
        "examples": _examples(examples),
    }
    curves = None
    if queries is not None:
        report["queries"] = _of_queries(queries, counts, decided.query_kept, options.pairs_per_query)
        curves = head_and_tail(counts, decided.query_kept, options.pairs_per_query)
        _write_queries(output, queries, counts, decided.query_kept, options.pairs_per_query)
    commit_file(output.page, _page(report, curves).encode("utf-8", "replace"))
    commit_file(output.report, json.dumps(report, indent=1).encode())


def _of_queries(queries: Sequence[str], counts: np.ndarray, kept: np.ndarray, pairs_per_query: int) -> dict[str, Any]:
    is_head = counts > pairs_per_query
    order = np.argsort(-counts, kind="stable")[:MOST_QUERIES]
    return {
        "queries": len(queries),
        "without_a_pair": int(np.count_nonzero(counts == 0)),
        "pairs_per_query": pairs_per_query,
        "over_pairs_per_query": int(np.count_nonzero(is_head)),
        "matches": int(counts.sum()),
        "matches_kept": int(kept.sum()),
        "head_share_of_matches": float(counts[is_head].sum() / max(counts.sum(), 1)),
        "head_share_of_matches_kept": float(kept[is_head].sum() / max(kept.sum(), 1)),
        "largest": [
            {"query": queries[query], "pairs": int(counts[query]), "kept": int(kept[query])}
            for query in order
            if counts[query]
        ],
    }


def _write_queries(
    output: Output, queries: Sequence[str], counts: np.ndarray, kept: np.ndarray, pairs_per_query: int
) -> None:
    table = {
        "query": pyarrow.array(queries, pyarrow.string()),
        "pairs": counts,
        "probability": query_probabilities(counts, pairs_per_query),
        "kept": kept,
    }
    with committed_in_its_folder(output.queries) as path:
        parquet.write_table(pyarrow.table(table), path, compression="zstd")


def _examples(parts: Iterable[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """The first captions of each reason, over all parts."""
    examples: dict[str, list[str]] = {}
    for part in parts:
        for reason, captions in part.items():
            found = examples.setdefault(reason, [])
            found += captions[: MOST_EXAMPLES - len(found)]
    return {reason: examples[reason] for reason in REASONS if reason in examples}


def _page(report: Mapping[str, Any], curves: Curves | None) -> str:
    left = report["pairs"]
    dropping = []
    for reason, number in report["rules"].items():
        left -= number
        if number:
            examples = report["examples"].get(reason, [])
            step = {"reason": reason, "meaning": MEANINGS[reason], "dropped": number, "left": left}
            dropping.append({**step, "examples": examples})
    return template(
        "diptych_shards", "curate/report.html.jinja"
    ).render(
        title="Pairs",  # not OUT's name, so that equal inputs give equal pages
        report={**report, "examples": {"kept": [], **report["examples"]}},
        dropping=dropping,
        languages=list(report["languages"].items())[:MOST_LANGUAGES],
        queries=report.get("queries"),
        curves=curves,
    )
