"""The command `diptych-shards COMMAND …`; a command is a module of `diptych_shards.commands`, imported when called."""

from __future__ import annotations

import argparse
import ast
import errno
import importlib
import importlib.util
import logging
import pkgutil
import re
import shutil
import sys
import textwrap
from collections.abc import Sequence

from diptych.terminal import OneLineParser, ends_with_its_reader, unknown_word
from diptych_shards import commands
from diptych_shards.refusals import shown

_PARTIAL = re.compile(r"(\.[0-9a-f]{8})?\.partial$")
"""What the names of files end in until they are whole."""

COMMANDS = tuple(module.name for module in pkgutil.iter_modules(commands.__path__))


@ends_with_its_reader()
def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 after one line that says what is wrong."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words and not words[0].startswith("-") and words[0] not in COMMANDS:
        print(f"diptych-shards: {unknown_word('command', words[0], COMMANDS)}", file=sys.stderr)
        return 2
    parser = argparse.ArgumentParser(
        prog="diptych-shards",
        description="From a crawl, a table of URLs or a folder to image-text shards.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="commands:\n" + "\n".join(f"  {name:<8} {_help(name)}" for name in COMMANDS),
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below; each has its own -h")
    command = parser.parse_args(words[:1]).command
    module = importlib.import_module(f"{commands.__name__}.{command}")

    parser = OneLineParser(
        prog=f"diptych-shards {command}",
        description=_wrapped(module.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    try:
        # Intermixed: `extract A B --first 2 OUT` has an option among its files.
        module.run(parser.parse_intermixed_args([_with_dashes(word) for word in words[1:]]))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:
        raise
    except (ValueError, OSError) as error:
        print(f"diptych-shards: {shown(_one_line(error))}", file=sys.stderr)
        return 2
    return 0


def _with_dashes(word: str) -> str:
    """`--image_size=256` as `--image-size=256`: options as other shard builders spell them."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _wrapped(text: str) -> str:
    """Its paragraphs, as wide as the terminal is."""
    width = shutil.get_terminal_size().columns - 2
    return "\n\n".join(textwrap.fill(paragraph, width) for paragraph in text.strip().split("\n\n"))


def _help(command: str) -> str:
    """The first line of the command's docstring, read without importing it."""
    spec = importlib.util.find_spec(f"{commands.__name__}.{command}")
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as source:
        return (ast.get_docstring(ast.parse(source.read())) or "").split("\n")[0]


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f" at {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}: make room, start the same command again; finished shards are kept"
    if isinstance(error, OSError) and error.filename:
        return f"{_PARTIAL.sub('', str(error.filename))}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
