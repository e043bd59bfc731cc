"""The command `diptych VERB …`; a verb is a module of `diptych.verbs`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from diptych import command_line, verbs

PROGRAM = command_line.Program("diptych", "Pretrain a CLIP-style dual encoder and use it.", verbs, has_ranks=True)
VERBS = PROGRAM.verb_names


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; a user's mistake is one line (or one per mistake) on stderr and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # The deepspeed launcher puts --local_rank before our words; `World` reads the environment instead.
    status = command_line.run(PROGRAM, [word for word in words if not word.startswith("--local_rank")])
    if status:
        sys.exit(status)
