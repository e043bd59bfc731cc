"""What options of several commands have in common."""

from __future__ import annotations

import argparse
import os


def positive(text: str) -> int:
    """An argparse type."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def add_processes(add: argparse._ActionsContainer, what: str) -> None:
    """`--processes N`, by default one for each CPU that we may use."""
    add.add_argument("--processes", type=positive, default=len(os.sched_getaffinity(0)), metavar="N",
                     help=f"{what} (default: the CPUs, %(default)s)")  # fmt: skip
