"""leave out repeated pictures, and those of evaluation sets

Three ways to be the same: the same pixels; the same look (perceptual hashes a few bits apart,
and small copies in colour that agree: the same picture, recoded or resized); and, where somebody
computed embeddings, a cosine above a threshold. The first of them stays, or the one with the
highest --prefer; what is left out is always like one that stays. What is like a picture of
--against is left out altogether.

Filter first, dedup last: one is chosen among the samples that all other verdicts keep, so that
none is lost with a copy that a filter leaves out. A filter that is written later makes the verdict
stale; the same command renews it.

Nothing is deleted: the verdict goes to SHARDS/_index/select/NAME.parquet, with key, kept,
reason and what it is a duplicate of. `preview` shows it, `select` writes shards without what
verdicts leave out. Stopped at any moment, the same command resumes where it stopped: no picture is
hashed twice.
"""

from __future__ import annotations

import argparse

from diptych.command_line import path_argument
from diptych.terminal import count_lines, counted, shown
from diptych_shards.arguments import add_engine, engine_of
from diptych_shards.refusals import table_of_reasons


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("shards", type=path_argument, metavar="SHARDS", help="a folder of shards")
    add("--name", default="dedup", metavar="NAME", help="of the verdict (default %(default)s)")
    looks = parser.add_mutually_exclusive_group()
    looks.add_argument("--distance", type=int, default=4, metavar="BITS",
        help="at most so many of the 64 bits of two perceptual hashes differ (default %(default)s)")  # fmt: skip
    looks.add_argument(
        "--exact-only", action="store_true", help="only equal pixels are duplicates; no perceptual hashes"
    )
    add("--against", action="append", default=[], metavar="PATH",
        help="pictures a model will be evaluated on: a folder, or shards; may be given several times")  # fmt: skip
    add("--embeddings", metavar="PATH",
        help="a parquet file or a folder of them, with columns key and embedding, or the .npz of `diptych embed`; all "
             "pairs are compared")  # fmt: skip
    add("--against-embeddings", metavar="PATH",
        help="the same of the pictures of --against, by their paths; or the .npz of `diptych embed`")  # fmt: skip
    add("--embedding-column", metavar="NAME", help="default: the one named embedding, or the only one of lists")
    add("--cosine", type=float, metavar="X", help="above this, embeddings agree (default 0.95)")
    add("--approximate", action="store_true",
        help="search embeddings by faiss: misses some pairs, for many millions of samples")  # fmt: skip
    add("--prefer", metavar="EXPRESSION",
        help="which one of several stays: the highest, e.g. 'width * height' (default: the first)")  # fmt: skip
    add_engine(parser, "that decode the pictures")


def run(chosen: argparse.Namespace) -> None:
    """Write the verdict, print what it says."""
    from diptych_shards.select.dedup import dedup
    from diptych_shards.select.dedup_options import DedupOptions
    from diptych_shards.select.staleness import what_is_stale
    from diptych_shards.select.verdicts import open_shards, verdict_table

    options = DedupOptions(
        name=chosen.name,
        distance=chosen.distance,
        exact_only=chosen.exact_only,
        against=chosen.against,
        embeddings=chosen.embeddings,
        against_embeddings=chosen.against_embeddings,
        embedding_column=chosen.embedding_column,
        cosine=chosen.cosine,
        approximate=chosen.approximate,
        prefer=chosen.prefer,
    )
    shards, index = chosen.shards, open_shards(chosen.shards)
    report = dedup(shards, index, options, engine_of(chosen))
    print(verdict_table(shards, chosen.name, report.counts, report.left_out_by_others))
    remarks = [
        ("not judged: left out by other verdicts", report.left_out_by_others),
        ("the most that are left out for one sample", report.largest_group - 1),
        ("too flat for a perceptual hash: only equal pixels count", report.flat),
        ("not decoded, and kept; see diptych-shards verify", report.not_decoded),
        ("without an embedding", report.without_embedding),
    ]
    for line in count_lines(remarks):
        print(line)
    for location in chosen.against:
        print(f"compared with {shown(location)}")
    if report.not_compared:
        files = counted(len(report.not_compared), "file")
        print(f"not compared with {files} there:\n{table_of_reasons(report.not_compared)}")
    if line := what_is_stale(shards, index):
        print(line)
