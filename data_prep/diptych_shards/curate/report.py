"""Report what was dropped and why, and how balancing changed the queries: report.json, report.html, queries.parquet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from diptych.files import commit_file
from diptych.pages.charts import LineChart, line_chart
from diptych.pages.histograms import length_histogram
from diptych.pages.template import day, template
from diptych.terminal import counted
from diptych_shards.curate.balance import query_probabilities
from diptych_shards.curate.decide import Decided
from diptych_shards.curate.options import CurateOptions
from diptych_shards.curate.parts import KeptFacts
from diptych_shards.curate.rules import KEPT, MEANINGS, REASONS
from diptych_shards.curate.state import Output, committed_in_its_folder

MOST_QUERIES = 200
"""The most frequent queries are in report.json and on the page; queries.parquet has all."""
MOST_EXAMPLES = 5
MOST_LANGUAGES = 40
MOST_DOMAINS = 20
MOST_POINTS = 120


def write_report(
    output: Output,
    options: CurateOptions,
    decided: Decided,
    queries: Sequence[str] | None,
    counts: np.ndarray,
    examples: Iterable[Mapping[str, Any]],
    facts: KeptFacts,
    changed: float,
) -> None:
    """Write the three files, report.json last.

    counts: captions that contain each query, before balancing. changed: when the newest table was written, in seconds
    since 1970; the page shows this time, not that of the run, so that a stopped run ends with the same bytes.
    """
    captions = _examples(examples)
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
        "examples": {reason: list(found) for reason, found in captions.items()},
    }
    curves = None
    if queries is not None:
        report["queries"] = _of_queries(queries, counts, decided.query_kept, options.pairs_per_query)
        curves = head_and_tail(counts, decided.query_kept, options.pairs_per_query)
        _write_queries(output, queries, counts, decided.query_kept, options.pairs_per_query)
    commit_file(output.page, _page(report, captions, curves, facts, options, changed).encode("utf-8", "replace"))
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


def _examples(parts: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, int]]:
    """The captions of each reason with their counts, the most frequent first."""
    examples: dict[str, Counter[str]] = {}
    for part in parts:
        for reason, captions in part.items():
            examples.setdefault(reason, Counter()).update(captions)
    return {reason: dict(examples[reason].most_common(MOST_EXAMPLES)) for reason in REASONS if reason in examples}


def _page(
    report: Mapping[str, Any],
    examples: Mapping[str, Mapping[str, int]],
    curves: LineChart | None,
    facts: KeptFacts,
    options: CurateOptions,
    changed: float,
) -> str:
    left = report["pairs"]
    dropping = []
    for reason, number in report["rules"].items():
        left -= number
        if number:
            step = {"reason": reason, "meaning": MEANINGS[reason], "dropped": number, "left": left}
            dropping.append({**step, "examples": examples.get(reason, {})})
    return template(
        "diptych_shards", "curate/report.html.jinja"
    ).render(
        title="Pairs",  # not OUT's name, so that equal inputs give equal pages
        report=report,
        kept_examples=dict.fromkeys(examples.get(KEPT, {}), 1),  # these are the first few, whose counts mean nothing
        lengths=[
            length_histogram(title, title.lower(), tally)
            for title, tally in (("Characters", facts.characters), ("Words", facts.words))
            if tally.num_different > 1
        ],
        domains=facts.domains.most_common(MOST_DOMAINS) if len(facts.domains) > 1 else [],
        changed=day(changed),
        options=[(name, value) for name, value in options.record().items() if value not in (None, [], False)],
        dropping=dropping,
        languages=list(report["languages"].items())[:MOST_LANGUAGES],
        queries=report.get("queries"),
        curves=curves,
    )


def head_and_tail(counts: np.ndarray, kept: np.ndarray, pairs_per_query: int) -> LineChart | None:
    """Plot pairs over queries, from the most frequent query on: means over queries of neighbouring ranks.

    None if fewer than two queries have pairs. Both axes are logarithmic; less than one pair on average is drawn as one.
    """
    order = np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]
    if len(order) < 2:
        return None
    edges = np.unique(np.geomspace(1, len(order) + 1, MOST_POINTS).astype(np.int64))
    ranks = np.sqrt(edges[:-1] * (edges[1:] - 1.0))

    def points(pairs: np.ndarray) -> list[tuple[float, float]]:
        means = np.add.reduceat(pairs[order].astype(np.float64), edges[:-1] - 1) / np.diff(edges)
        return list(zip(ranks.tolist(), np.maximum(means, 1.0).tolist(), strict=True))

    return line_chart(
        "Pairs of a query",
        {"before balancing": points(counts), "after": points(kept)},
        x_label="rank of the query",
        about="",
        logarithmic_x=True,
        logarithmic_y=True,
        width=640,
        height=300,
        level=(pairs_per_query, f"{counted(pairs_per_query, 'pair')} per query"),
    )
