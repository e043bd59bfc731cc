"""Write a page of samples as the model sees them, next to the originals.

Below each sample: its caption, the tokens that it becomes with the place where it is cut, its key and its shard. Then
the samples that training rejects, with the reason, and histograms. Samples are drawn evenly; the seed decides which.
The page is one file without scripts that loads nothing, so that it can be sent around.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from diptych.command_line import path_argument
from diptych.files import check_writable, commit_file, writing
from diptych.inspection import arguments as shared
from diptych.terminal import shown

WAY_OUT = "name another place with --output PAGE.html"
LOOKED_AT = 2_000
"""Samples that are decoded for the histograms, and to find some that are rejected."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    shared.add_arguments(parser)
    parser.add_argument(
        "--samples", type=shared.positive, default=48, metavar="N", help="samples to show (default: %(default)s)"
    )
    parser.add_argument(
        "--output",
        type=path_argument,
        default=Path("preview.html"),
        metavar="PAGE.html",
        help="where the page goes (default: %(default)s)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the page, print its path."""
    from diptych.inspection.look import look
    from diptych.inspection.page import render_preview

    check_writable(arguments.output, WAY_OUT)
    config = shared.read_config(arguments)
    found = look(config, num_samples=LOOKED_AT, num_shown=arguments.samples)
    page = render_preview(found, config)
    with writing(arguments.output, WAY_OUT):
        commit_file(arguments.output, page)
    print(shown(arguments.output))
