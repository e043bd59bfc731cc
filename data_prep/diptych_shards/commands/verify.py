"""check every byte of shards against their index"""

from __future__ import annotations

import argparse
from pathlib import Path

from diptych.command_line import path_argument
from diptych.remote_files import is_elsewhere
from diptych.terminal import counted, shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        type=_path_or_address,
        metavar="FOLDER",
        help="a folder of shards; or an address, such as s3://bucket/shards, of one, of a tar or of a brace pattern, "
        "where shards are compared with their index, and not with what build or pack recorded",
    )


def run(chosen: argparse.Namespace) -> None:
    """Read every byte."""
    if isinstance(chosen.folder, str):
        from diptych_shards.verify_address import verify_address

        index, state = verify_address(chosen.folder), "all as indexed"
    else:
        from diptych_shards.verify import verify

        index, state = verify(chosen.folder), "all as written"
    found = f"{counted(len(index.shards), 'shard')}, {counted(len(index), 'sample')}"
    print(f"{found}, {state}: {shown(chosen.folder)}")


def _path_or_address(text: str) -> Path | str:
    return text if is_elsewhere(text) else path_argument(text)
