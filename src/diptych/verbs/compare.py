"""Put runs side by side on one page: curves, settings, results with paired tests, examples.

The first run is the one that the others are compared with. Results are those of `diptych evaluate`; two runs are
tested on a data set if both were evaluated on the same pictures and classes under the same name.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from diptych.command_line import path_argument
from diptych.files import check_writable, commit_file, writing
from diptych.terminal import shown

PAGE = "comparison.html"
WAY_OUT = "name another file with --page"
WAY_OUT_JSON = "name another file with --json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=path_argument, nargs="+", metavar="RUN", help="run directories, two or more")
    parser.add_argument(
        "--page",
        type=path_argument,
        metavar="FILE.html",
        help="where the page goes (default: comparison.html next to the first run)",
    )
    parser.add_argument("--json", type=path_argument, metavar="FILE", help="write the numbers as JSON too")


def run(arguments: argparse.Namespace) -> None:
    """Write the page, print a short table and the page's path."""
    from diptych.side_by_side.differences import differences
    from diptych.side_by_side.page import render
    from diptych.side_by_side.runs import read_runs
    from diptych.side_by_side.text import as_document, describe

    runs = read_runs(arguments.runs)
    page = arguments.page or Path(os.path.normpath(runs[0].path / ".." / PAGE))
    check_writable(page, WAY_OUT)
    if arguments.json is not None:
        check_writable(arguments.json, WAY_OUT_JSON)
    rows = differences(runs)
    print(describe(runs, rows))
    content = render(runs, rows)
    with writing(page, WAY_OUT):
        commit_file(page, content)
    print()
    if arguments.json is not None:
        document = json.dumps(as_document(runs, rows), indent=1, default=str)
        with writing(arguments.json, WAY_OUT_JSON):
            commit_file(arguments.json, document.encode())
        print(f"json: {shown(arguments.json)}")
    print(f"page: {shown(page)}")
