"""WARC or WAT files of a crawl -> tables of picture addresses with captions

Reads local files and folders, http(s)://, s3://, and lists of paths as Common Crawl publishes them (`warc.paths.gz`,
`wat.paths.gz`). Writes one parquet file for each, and counts of all that was left out, by reason, under OUT/_index.
Stopped at any moment, the same command resumes where it stopped.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from diptych.command_line import path_argument
from diptych.errors import UserError
from diptych.terminal import count_lines, counted, is_or_are, shown
from diptych_shards.arguments import add_engine, engine_of, positive
from diptych_shards.fetch.options import OPT_OUT_DIRECTIVES
from diptych_shards.run.progress import Progress

if TYPE_CHECKING:
    from diptych_shards.extract.extract import Failure
    from diptych_shards.extract.results import FileReport

_COMMON_CRAWL = "https://data.commoncrawl.org/"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "inputs",
        nargs="+",
        metavar="WARC",
        help="files, folders, addresses, .paths[.gz] lists; WARC or WAT, gzip or not",
    )
    add("out", type=path_argument, metavar="OUT", help="a folder that is new or started by the same command")
    add("--prefix", default=_COMMON_CRAWL, metavar="URL",
        help="put before each line of a .paths list; s3://commoncrawl/ inside AWS (default %(default)s)")  # fmt: skip
    add("--first", type=positive, metavar="N", help="only the first N files")
    add(
        "--surrounding-text",
        action="store_true",
        help="use the text around a picture as its caption if it has no other",
    )
    add("--icon-side", type=int, default=32, metavar="N",
        help="drop pictures whose page says they are no larger than N by N pixels (default %(default)s)")  # fmt: skip
    add("--opt-out", type=_names, default=OPT_OUT_DIRECTIVES, metavar="A,B",
        help="drop pages that say one of these in a robots meta or an X-Robots-Tag header, or by their reservation of "
             f"text and data mining (default {','.join(OPT_OUT_DIRECTIVES)}; '' for none)")  # fmt: skip
    add_engine(parser, "one file each at a time")


def run(chosen: argparse.Namespace) -> None:
    """Extract, print the counts.

    Raises:
        UserError: there is nothing to read, or files could not be read; the others are extracted.
    """
    from diptych_shards.extract.crawl_files import expand
    from diptych_shards.extract.extract import extract
    from diptych_shards.extract.options import ExtractOptions
    from diptych_shards.extract.records import BROKEN

    options = ExtractOptions(
        surrounding_text=chosen.surrounding_text,
        icon_side=chosen.icon_side,
        opt_outs=chosen.opt_out,
    )
    locations = expand(chosen.inputs, chosen.prefix)[: chosen.first]
    progress = Progress(len(locations), "file")
    without_record: list[str] = []
    cut: list[str] = []

    def is_finished(location: str, report: FileReport) -> None:
        progress.add(1)
        if not report.records:
            without_record.append(location)
        if report.files_cut:
            pages = counted(report.pages_with_pairs, "page")
            num_kept = sum(report.pairs.values())
            cut.append(f"{location}: its {counted(num_kept, 'pair')} of {pages} {is_or_are(num_kept)} kept")

    try:
        total, failures = extract(locations, chosen.out, options, engine_of(chosen), is_finished)
    finally:
        progress.close()
    num_pairs = sum(total.pairs.values())
    pages, files = counted(total.pages_with_pairs, "page"), counted(total.files, "file")
    print(f"extracted {counted(num_pairs, 'pair')} of {pages} from {files}: {shown(chosen.out)}")
    for title, counts in (
        ("pairs by source", total.pairs),
        ("pictures left out", total.dropped),
        ("records", total.records),
    ):
        if counts:
            lines = count_lines(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
            print("\n".join([f"{title}:", *lines]))
    if without_record:
        empty = counted(len(without_record), "file")
        print(f"{empty} without a record, the first is {shown(without_record[0])}")
    if cut:
        print(f"{counted(len(cut), 'file')} that ended early, within a record, the first is {shown(cut[0])}")
    if failures:
        raise UserError(_unread(list(failures.values()), len(locations)))
    if not num_pairs:
        if not set(total.records) - {BROKEN}:
            raise UserError("no pair was found: the files contain no record; name WARC or WAT files")
        print("no pair was found; the counts say why")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip().lower() for name in text.split(",") if name.strip())


def _unread(failures: Sequence[Failure], num_files: int) -> str:
    """Describe how many could not be read, and what to do about it."""
    missing = [failure.why for failure in failures if failure.is_missing]
    others = [failure.why for failure in failures if not failure.is_missing]
    return "; ".join(
        f"{len(why):,} of {counted(num_files, 'file')} {what}, the first is {why[0]}; {way_out}"
        for why, what, way_out in (
            (missing, "do not exist", "leave them out, or correct their addresses"),
            (others, "could not be read", "start the same command again to try them once more"),
        )
        if why
    )
