"""check every byte of shards against their index"""

from __future__ import annotations

import argparse

from diptych.command_line import path_argument
from diptych.terminal import counted, shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=path_argument, metavar="FOLDER")


def run(chosen: argparse.Namespace) -> None:
    """Read every byte."""
    from diptych_shards.verify import verify

    index = verify(chosen.folder)
    found = f"{counted(len(index.shards), 'shard')}, {counted(len(index), 'sample')}"
    print(f"{found}, all as written: {shown(chosen.folder)}")
