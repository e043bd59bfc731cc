"""one page about what build or pack made: what was kept, what was not, and why

The funnel, reasons with examples, domains, sizes, aspect ratios, caption lengths, pictures. For other shards, such as
those of select, all but the first two. The page is one file without scripts that loads nothing, so that it can be sent
around; nothing else in OUT is changed. Captions and URLs are shown as plain text, whatever they contain.
"""

from __future__ import annotations

import argparse
import sys

from diptych.command_line import path_argument
from diptych.errors import UserError
from diptych.terminal import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument(
        "out", type=path_argument, metavar="OUT", help="the folder that build, pack or select wrote to, or other shards"
    )
    parser.add_argument(
        "--to", type=path_argument, metavar="FILE", help="where the page goes (default: OUT/_index/report.html)"
    )
    parser.add_argument(
        "--pictures", type=_count, default=36, metavar="N", help="drawn at random (default %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default %(default)s)")


def run(chosen: argparse.Namespace) -> None:
    """Write the page, print its path, and on stderr which shards it leaves out."""
    from diptych.data.shard_index_file import INDEX_FOLDER
    from diptych.files import check_writable, commit_file
    from diptych_shards.report.page import REPORT_FILE, render_report
    from diptych_shards.report.rows import describe_not_whole, open_results

    out = chosen.out
    path = out / INDEX_FOLDER / REPORT_FILE if chosen.to is None else chosen.to
    if chosen.to is not None and (path.is_dir() or not path.parent.is_dir()):
        what = "is a folder" if path.is_dir() else f"cannot be written: there is no folder {path.parent}"
        raise UserError(f"{path} {what}; name a file with --to")
    if path.parent.is_dir():
        check_writable(path, "name another place with --to FILE")
    source = open_results(out)
    page = render_report(source, pictures=chosen.pictures, seed=chosen.seed)
    commit_file(path, page)
    if source.not_whole:
        print(describe_not_whole([str(out / name) for name in source.not_whole]), file=sys.stderr)
    print(shown(path))


def _count(text: str) -> int:
    if not 0 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError("0 to 1000")
    return int(text)
