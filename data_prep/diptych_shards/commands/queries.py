"""a corpus of text -> a list of queries for curate

Words that occur often, pairs of words that belong together, titles: as CLIP's list was made.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diptych_shards.refusals import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("text", nargs="+", type=Path, metavar="TEXT", help=".txt or .gz, a text each line, or .parquet")
    add("out", type=Path, metavar="OUT", help="a new file, one query a line")
    add("--min-count", type=int, default=100, metavar="N", help="of a word (default 100)")
    add("--min-pmi", type=float, default=30.0, metavar="X",
        help="of a pair of words: log2(n_xy N / (n_x n_y)); no pair exceeds log2(N / n_xy) (default 30)")  # fmt: skip
    add("--min-pair-count", type=int, default=2, metavar="N", help="of a pair of words (default 2)")
    add("--most", type=int, default=500_000, metavar="N", help="queries (default 500,000)")
    add("--first", type=Path, action="append", metavar="FILE", help="queries that go before all others, a line each")
    add("--titles", type=Path, action="append", metavar="FILE", help="titles that come last, a line each")
    add("--text-column", metavar="NAME", help="of parquet files; default: the one named text ...")


def run(chosen: argparse.Namespace) -> None:
    """Count, choose, and print where the queries come from."""
    from diptych.files import commit_file
    from diptych_shards.curate.blocking import read_lines
    from diptych_shards.curate.corpus import read_corpus
    from diptych_shards.curate.options import CurateError
    from diptych_shards.curate.queries import QueryOptions, build_queries

    if chosen.out.exists():
        raise CurateError(f"{shown(chosen.out)} exists; name a new file for the queries")
    options = QueryOptions(
        min_count=chosen.min_count,
        min_pmi=chosen.min_pmi,
        min_pair_count=chosen.min_pair_count,
        most=chosen.most,
    )
    found = build_queries(
        read_corpus(chosen.text, chosen.text_column),
        options,
        chosen.out.parent,
        first=[line for path in chosen.first or () for line in read_lines(path)],
        titles=[line for path in chosen.titles or () for line in read_lines(path)],
    )
    if not found.queries:
        raise CurateError(f"no word occurs {options.min_count} times among {found.num_words:,}; lower --min-count")
    commit_file(chosen.out, "".join(f"{query}\n" for query in found.queries).encode())
    print(f"wrote {len(found.queries):,} queries from {found.num_words:,} words: {shown(chosen.out)}")
    for number, source in ((found.given, "given"), (found.words, "words"), (found.pairs, "pairs of words"),
                           (found.titles, "titles")):  # fmt: skip
        if number:
            print(f"  {number:>9,}  {source}")
