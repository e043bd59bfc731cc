"""one page that shows what verdicts keep and leave out, side by side

Examples of each reason are drawn at random; a duplicate is shown next to what it repeats. The page
is one file without scripts that loads nothing, so that it can be sent around. Captions are shown
as plain text, whatever they contain.
"""

from __future__ import annotations

import argparse

from diptych.command_line import path_argument
from diptych.terminal import shown
from diptych_shards.arguments import add_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("shards", type=path_argument, metavar="SHARDS", help="a folder of shards with verdicts of dedup and filter")
    add(
        "--to",
        type=path_argument,
        metavar="FILE",
        help="where the page goes (default: SHARDS/_index/select/preview.html)",
    )
    add("--verdict", action="append", metavar="NAME", help="only this one; may be given several times (default: all)")
    add("--examples", type=_count, default=8, metavar="N", help="of each reason (default %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of the draw (default %(default)s)")
    add_processes(parser, "that decode the pictures")


def run(chosen: argparse.Namespace) -> None:
    """Write the page, print its path."""
    from diptych.files import cannot, check_writable, commit_file
    from diptych_shards.select.preview import PREVIEW_FILE, render_preview
    from diptych_shards.select.select_folder import select_folder
    from diptych_shards.select.staleness import verdicts_that_hold
    from diptych_shards.select.verdicts import open_shards

    shards = chosen.shards
    index = open_shards(shards)
    path = select_folder(shards) / PREVIEW_FILE if chosen.to is None else chosen.to
    if path.parent.is_dir():
        check_writable(path, "name another place with --to FILE")
    page = render_preview(
        shards.resolve().name,
        index,
        verdicts_that_hold(shards, index, chosen.verdict),
        examples=chosen.examples,
        seed=chosen.seed,
        processes=chosen.processes,
    )
    try:
        commit_file(path, page)
    except OSError as error:
        raise cannot(error, path, "written", "name another place with --to FILE") from error
    print(shown(path))


def _count(text: str) -> int:
    if not 1 <= int(text) <= 100:
        raise argparse.ArgumentTypeError("1 to 100")
    return int(text)
