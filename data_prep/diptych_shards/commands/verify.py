"""check every byte of shards against their index"""

from __future__ import annotations

import argparse
from pathlib import Path

from diptych_shards.refusals import shown


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="FOLDER")


def run(chosen: argparse.Namespace) -> None:
    """Read every byte."""
    from diptych_shards.verify import verify

    index = verify(Path(chosen.folder))
    print(f"{len(index.shards):,} shards, {len(index):,} samples, all as written: {shown(chosen.folder)}")
