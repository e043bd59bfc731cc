"""a corpus of text -> a list of queries for curate

Words that occur often, pairs of words that belong together, titles: as CLIP's list was made. Stopped at any moment, the
same command resumes where it stopped: the counts of finished files stay in OUT.counts until OUT is written.
"""

from __future__ import annotations

import argparse

from diptych.command_line import path_argument
from diptych.terminal import count_lines, counted, shown
from diptych_shards.arguments import add_engine, engine_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("text", nargs="+", type=path_argument, metavar="TEXT", help=".txt or .gz, a text each line, or .parquet")
    add("out", type=path_argument, metavar="OUT", help="a new file, one query a line")
    add("--min-count", type=int, default=100, metavar="N", help="of a word (default 100)")
    add("--min-pmi", type=float, default=30.0, metavar="X",
        help="of a pair of words, in bits: log2(n_xy N / (n_x n_y)) (default 30, MetaCLIP's, for all of English "
             "Wikipedia: no pair has it in fewer than 2**31 words)")  # fmt: skip
    add("--min-pair-count", type=int, default=2, metavar="N", help="of a pair of words (default 2)")
    add("--most", type=int, default=500_000, metavar="N", help="queries (default 500,000)")
    add(
        "--first",
        type=path_argument,
        action="append",
        metavar="FILE",
        help="queries that go before all others, a line each",
    )
    add("--titles", type=path_argument, action="append", metavar="FILE", help="titles that come last, a line each")
    add("--text-column", metavar="NAME", help="of parquet files; default: the one named text ...")
    add_engine(parser, "files counted at a time")


def run(chosen: argparse.Namespace) -> None:
    """Count, choose, and print where the queries come from."""
    from diptych.files import commit_file
    from diptych_shards.curate.blocking import read_lines
    from diptych_shards.curate.corpus import corpus_counts
    from diptych_shards.curate.options import CurateError
    from diptych_shards.curate.queries import QueryOptions, build_queries, highest_pmi

    if chosen.out.exists():
        raise CurateError(f"{shown(chosen.out)} exists; name a new file for the queries")
    if not chosen.out.parent.is_dir():
        raise CurateError(f"{shown(chosen.out)} cannot be written: {shown(chosen.out.parent)} is not a folder")
    options = QueryOptions(
        min_count=chosen.min_count,
        min_pmi=chosen.min_pmi,
        min_pair_count=chosen.min_pair_count,
        most=chosen.most,
    )
    first = [line for path in chosen.first or () for line in read_lines(path)]
    titles = [line for path in chosen.titles or () for line in read_lines(path)]
    with corpus_counts(chosen.text, chosen.text_column, chosen.out, engine_of(chosen)) as counts:
        found = build_queries(counts, options, first=first, titles=titles)
        if not found.queries:
            raise CurateError(f"no word occurs {options.min_count} times among {counts.num_words:,}; lower --min-count "
                              f"({shown(chosen.out)}.counts has what was counted)")  # fmt: skip
        commit_file(chosen.out, "".join(f"{query}\n" for query in found.queries).encode())
    print(f"wrote {counted(len(found.queries), 'query')} from {counted(found.num_words, 'word')}: {shown(chosen.out)}")
    sources = ("given", found.given), ("words", found.words), ("pairs of words", found.pairs), ("titles", found.titles)
    for line in count_lines(sources):
        print(line)
    reachable = highest_pmi(found.num_words, options)
    if reachable < options.min_pmi:
        print(f"no pair of words can reach --min-pmi {options.min_pmi:g} in {counted(found.num_words, 'word')}; "
              f"{reachable:.1f} is the highest that one could have")  # fmt: skip
