"""one page about what `build` or `pack` made: the funnel, reasons, domains, sizes, captions, pictures

The page is one file without scripts that loads nothing, so that it can be sent around; OUT is only read. Captions and
URLs of strangers are shown as text, whatever they hold.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diptych_shards.refusals import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("out", metavar="OUT", help="the folder that build or pack wrote to")
    parser.add_argument("--to", metavar="FILE", help="where the page goes (default: OUT/_index/report.html)")
    parser.add_argument("--pictures", type=_count, default=36, metavar="N", help="drawn at random (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draw (default %(default)s)")


def run(chosen: argparse.Namespace) -> None:
    """Write the page, print its path."""
    from diptych.data.shard_index_file import INDEX_FOLDER
    from diptych.files import cannot, commit_file
    from diptych_shards.report.page import REPORT_FILE, render_report

    out = Path(chosen.out)
    page = render_report(out, pictures=chosen.pictures, seed=chosen.seed)
    path = out / INDEX_FOLDER / REPORT_FILE if chosen.to is None else Path(chosen.to)
    try:
        commit_file(path, page)
    except OSError as error:
        raise cannot(error, path, "written", "name another place with --to FILE") from error
    print(shown(path))


def _count(text: str) -> int:
    if not 0 <= int(text) <= 1000:
        raise argparse.ArgumentTypeError("0 to 1000")
    return int(text)
