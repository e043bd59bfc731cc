"""index shards that something else wrote"""

from __future__ import annotations

import argparse

from diptych.terminal import counted, shown
from diptych_shards.arguments import add_processes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="+", metavar="FOLDER", help="or a .tar, or a brace pattern")
    add_processes(parser, "that read a tar each")


def run(chosen: argparse.Namespace) -> None:
    """Index what has no index yet."""
    from diptych_shards.index import index

    for folder in chosen.folder:
        indexed = index(folder, chosen.processes)
        print(f"{counted(len(indexed.shards), 'shard')}, {counted(len(indexed), 'sample')}: {shown(folder)}")
        if not len(indexed):
            print("a sample is a picture, such as KEY.jpg, and its caption, KEY.txt or KEY.json, one after the other")
