"""The command `diptych VERB …`; a verb is a module of `diptych.verbs`, imported when it is called."""

from __future__ import annotations

import argparse
import ast
import importlib
import importlib.util
import os
import pkgutil
import sys
import textwrap
import time
from collections.abc import Sequence

from diptych import verbs
from diptych.terminal import OneLineParser, ends_with_its_reader, printable, unknown_word

VERBS = tuple(module.name for module in pkgutil.iter_modules(verbs.__path__))
PATIENCE_SECONDS = 30.0
"""How long another rank lets the first speak."""


@ends_with_its_reader()
def main(arguments: Sequence[str] | None = None) -> None:
    """Run a verb; a user's mistake is one line (or one per mistake) on stderr and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    # The deepspeed launcher puts --local_rank before our words; `World` reads the environment instead.
    words = [word for word in words if not word.startswith("--local_rank")]
    parser = argparse.ArgumentParser(
        prog="diptych",
        description="Pretrain a CLIP-style dual encoder and use it.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="verbs:\n" + "\n".join(map(_help, VERBS)),
    )
    parser.add_argument("verb", metavar="VERB", help="what to do; diptych VERB -h tells more")
    verb = parser.parse_args(words[:1]).verb
    if verb not in VERBS:
        print(f"diptych: {unknown_word('verb', verb, VERBS)}", file=sys.stderr)
        sys.exit(2)
    try:
        _run(verb, words[1:])
    except KeyboardInterrupt:
        sys.exit(130)


def _run(verb: str, words: list[str]) -> None:
    module = importlib.import_module(f"diptych.verbs.{verb}")
    parser = OneLineParser(prog=f"diptych {verb}", description=module.__doc__)
    module.add_arguments(parser)
    try:
        # Intermixed: overrides may follow an option (`train my.yaml --dry-run training.seed=1`).
        module.run(parser.parse_intermixed_args(words))
    except (ValueError, OSError) as error:
        if not _is_ours(error):
            raise
        _let_the_first_speak()
        _tell(verb, error)
        sys.exit(2)
    except SystemExit:
        _let_the_first_speak()
        raise


def _let_the_first_speak() -> None:
    """Where this is another rank than the first, wait to be ended by the launcher when the first has ended.

    A launcher ends all ranks as soon as one of them has; the first may still be about to say what is wrong.
    """
    if _rank() != "0":
        time.sleep(PATIENCE_SECONDS)


def _tell(verb: str, error: Exception) -> None:
    # Another rank that nobody has ended is alone with its mistake, such as a disk that its machine lacks.
    who = "" if _rank() == "0" else f"rank {_rank()}: "
    for line in str(error).splitlines():
        print(f"diptych {verb}: {who}{printable(line)}", file=sys.stderr)


def _rank() -> str:
    """As the launcher set it, right or wrong: `diptych.world` checks it, and takes seconds to import."""
    return os.environ.get("RANK") or "0"


def _help(verb: str) -> str:
    """The verb and the first line of its docstring, which is read without importing it."""
    spec = importlib.util.find_spec(f"{verbs.__name__}.{verb}")
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as source:
        first_line = (ast.get_docstring(ast.parse(source.read())) or "").split("\n")[0]
    return textwrap.fill(first_line, 79, initial_indent=f"  {verb:<10} ", subsequent_indent=" " * 13)


def _is_ours(error: Exception) -> bool:
    """Whether the error was raised by our own code, as user mistakes are; a library's is a bug and keeps its trace."""
    if isinstance(error, BrokenPipeError):
        return False
    if isinstance(error, OSError):
        return error.filename is not None or error.errno is not None
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace is not None and trace.tb_frame.f_globals.get("__name__", "").split(".")[0] == "diptych"
