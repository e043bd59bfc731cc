"""The command `diptych-shards COMMAND …`; a command is a module of `diptych_shards.commands`."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from diptych import command_line
from diptych_shards import commands

PROGRAM = command_line.Program(
    "diptych-shards",
    "From a crawl, a table of URLs or a folder to image-text shards.",
    commands,
    noun="command",
    if_interrupted="interrupted; the same command resumes where this one stopped",
    prefix="{name}: ",
)
COMMANDS = PROGRAM.verb_names


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return the exit status: 0, or 2 after one line that says what is wrong."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    return command_line.run(PROGRAM, sys.argv[1:] if arguments is None else arguments)


if __name__ == "__main__":
    sys.exit(main())
