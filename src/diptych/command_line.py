"""Run a command made of verbs: find the verb, parse its arguments, run it, and report mistakes on one line.

A verb is a module with a docstring, `add_arguments(parser)` and `run(arguments)`, which may return an exit status. It
may also have `explain_option(option)`, which says what the user may have meant by an unknown option. A package is a
verb with verbs of its own, such as `diptych data preview`. A verb is imported only when it is called; the list of verbs
is made from their source, so that help appears at once.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import importlib.util
import os
import pkgutil
import shutil
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from diptych import __version__, extras
from diptych.errors import LostRankError, NoMeetingError, OneRankError, TransientError, UserError
from diptych.files import NO_ROOM, PARTIAL, local_path
from diptych.terminal import exit_on_broken_pipe, printable, replace_unencodable_letters, unknown_word

PATIENCE_SECONDS = 30.0
"""How long other ranks wait for rank 0 to print its error before they exit."""
LAST_WORDS_SECONDS = 2.0
"""How long a rank that lost another waits for that one to print why, before the launcher ends them all."""
STATUS_FILE = "DIPTYCH_STATUS_FILE"
"""The variable that names the file into which a rank of `diptych.torchrun` writes the exit status of all."""


@dataclass(frozen=True)
class Program:
    """What distinguishes one command from another.

    noun: what the command calls its verbs.
    if_interrupted: what is printed after Ctrl-C.
    prefix: the beginning of each line about a mistake.
    has_ranks: a launcher may start many processes of it at once; then only rank 0 prints mistakes that all share.
    """

    name: str
    description: str
    verbs: ModuleType
    noun: str = "verb"
    if_interrupted: str = ""
    prefix: str = "{name} {verb}: "
    has_ranks: bool = False

    @property
    def verb_names(self) -> tuple[str, ...]:
        return tuple(module.name for module in pkgutil.iter_modules(self.verbs.__path__))


@exit_on_broken_pipe()
def run(program: Program, words: Sequence[str]) -> int:
    """Run the verb that the words name, and return the exit status.

    The status is 0 on success, or what the verb returns; 2 after a user's mistake, 1 after a fault that may pass, such
    as the end of another rank, and 130 after Ctrl-C. Any other exception is a bug and is raised.

    Raises:
        SystemExit: help or the version was printed, as argparse does.
    """
    replace_unencodable_letters()
    verb, *words = words or ["help"]
    if verb == "help" and words:
        verb, words = words[0], [*words[1:], "--help"]
    if verb in ("help", "-h", "--help"):
        print(_help(program), end="")
        sys.exit(0)
    if verb == "--version":
        print(f"{program.name} {__version__}")
        sys.exit(0)
    if verb not in program.verb_names:
        noun = "option" if verb.startswith("-") else program.noun
        known = ("--help", "--version") if verb.startswith("-") or verb == "version" else program.verb_names
        print(f"{program.name}: {unknown_word(noun, verb, known)}", file=sys.stderr)
        return 2
    try:
        if (inner := _program_of(program, verb)) is not None:
            return run(inner, words)
        return _run_verb(program, verb, words)
    except KeyboardInterrupt:
        print(program.if_interrupted, end="\n" * bool(program.if_interrupted), file=sys.stderr)
        return 130
    except SystemExit as error:
        if program.has_ranks and isinstance(error.code, int) and error.code:
            if os.environ.get("GROUP_RANK", "0") != "0":  # rank 0 prints the error on another machine
                leave_status(error.code)
            _wait_for_rank_0(PATIENCE_SECONDS)
        raise
    except Exception as error:
        message = user_message(error)
        if message is None:
            raise
        if program.has_ranks and not isinstance(error, OneRankError):
            _wait_for_rank_0(LAST_WORDS_SECONDS if isinstance(error, LostRankError) else PATIENCE_SECONDS)
        if isinstance(error, LostRankError | NoMeetingError) and not _is_one_of_few():
            return exit_status(error)
        # A rank that is still running now is the only one with this mistake, such as a disk missing on its machine.
        rank = f"rank {_rank()}: " if program.has_ranks and _rank() else ""
        prefix = program.prefix.format(name=program.name, verb=verb)
        for line in message.splitlines():
            print(f"{prefix}{rank}{printable(line)}", file=sys.stderr, flush=True)
        if isinstance(error, LostRankError):
            time.sleep(0 if _rank() else LAST_WORDS_SECONDS)
        elif not isinstance(error, OneRankError | TransientError) and leave_status(exit_status(error)):
            time.sleep(LAST_WORDS_SECONDS)  # the launcher ends this process sooner, since a restart would be no use
        return exit_status(error)


def exit_status(error: Exception) -> int:
    """The exit status after this error: 2 for a user's mistake, 1 for a bug or a fault that may pass."""
    return 1 if isinstance(error, TransientError) or user_message(error) is None else 2


def leave_status(status: int) -> bool:
    """Let `diptych.torchrun` end with this status; False if it has not started this process."""
    if STATUS_FILE not in os.environ:
        return False
    Path(os.environ[STATUS_FILE]).write_text(str(status))
    return True


class OneLineParser(argparse.ArgumentParser):
    """A parser that raises UserError with one line, where argparse would print all options first.

    explain: what to suggest for an unknown option; it returns None if it has no suggestion.
    """

    def __init__(self, *, explain: Callable[[str], str | None] = lambda option: None, **named: Any):
        super().__init__(**named)
        self._explain = explain

    def error(self, message: str) -> NoReturn:
        way_out = f"{self.prog} -h lists the options"
        name, _, unknown = message.partition("unrecognized arguments: ")
        if unknown.startswith("-") and not name:
            option = unknown.split()[0].partition("=")[0]
            known = [name for action in self._actions for name in action.option_strings]
            near = difflib.get_close_matches(option, known, n=1)
            way_out = f"did you mean {near[0]}?" if near else way_out
            raise UserError(f"no option {option}; {self._explain(option) or way_out}")
        raise UserError(message if "; " in message else f"{message}; {way_out}")


def path_argument(text: str) -> Path:
    """`local_path` as an argparse type, for paths that are read or written without fsspec."""
    try:
        return local_path(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def add_model_argument(parser: argparse.ArgumentParser) -> None:
    """Add RUN, of the commands that read one model."""
    parser.add_argument(
        "model", type=path_argument, metavar="RUN", help="run directory (its newest checkpoint) or model folder"
    )


def add_device_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--device`, of the commands that compute with a model."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (the GPU where there is one)")


def add_ema_argument(parser: argparse.ArgumentParser) -> None:
    """Add `--ema`, which every command that reads a model has."""
    parser.add_argument(
        "--ema", action="store_true", help="use the averaged weights of RUN, if it was trained with training.ema_decay"
    )


def decode_argument(text: str) -> str:
    """Decode a command-line argument that a model will read as text.

    Python represents bytes that the locale cannot decode, such as UTF-8 in the C locale, as lone surrogates, which a
    tokenizer would drop.

    Raises:
        UserError: it is not UTF-8.
    """
    if not any("\udc80" <= letter <= "\udcff" for letter in text):
        return text
    try:
        return os.fsencode(text).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{text!r} is not UTF-8; type it in UTF-8, or name a UTF-8 file that contains it") from error


def _program_of(program: Program, verb: str) -> Program | None:
    """The verb as a program, if it is a package of verbs."""
    name = f"{program.verbs.__name__}.{verb}"
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        return None
    verbs = importlib.import_module(name)
    return replace(program, name=f"{program.name} {verb}", description=(verbs.__doc__ or "").strip(), verbs=verbs)


def _run_verb(program: Program, verb: str, words: Sequence[str]) -> int:
    module = importlib.import_module(f"{program.verbs.__name__}.{verb}")
    parser = OneLineParser(
        prog=f"{program.name} {verb}",
        explain=getattr(module, "explain_option", lambda option: None),
        description=_wrapped(module.__doc__ or ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    # Intermixed, so that options may come between files: `extract A B --first 2 OUT`, `train my.yaml --dry-run seed=1`.
    return module.run(parser.parse_intermixed_args([_with_dashes(word) for word in words])) or 0


def user_message(error: Exception) -> str | None:
    """The text to print for a user's mistake, one line for each; None for a bug."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, ModuleNotFoundError):
        return extras.way_out(error)
    if not isinstance(error, OSError) or isinstance(error, BrokenPipeError):
        return None
    path = PARTIAL.sub("", os.fsdecode(error.filename)) if isinstance(error.filename, str | bytes | Path) else ""
    if error.errno in NO_ROOM:
        where = f" at {path}" if path else ""
        return f"{error.strerror}{where}: make room, then start the same command again; finished work is kept"
    return f"{path}: {error.strerror}" if path else None


def _rank() -> int:
    """This process's rank, as launchers set it; read here, since `diptych.world` would load torch."""
    rank = os.environ.get("RANK", "")
    return int(rank) if rank.isdecimal() else 0


def _is_one_of_few() -> bool:
    """Whether this is rank 0, 1, 2, 4, 8, 16 and so on: ten of 512.

    All ranks learn that one is lost or does not come, and if each reported it, the reason would drown. Whichever
    machine is lost, some of these are on others.
    """
    return _rank() & (_rank() - 1) == 0


def _wait_for_rank_0(seconds: float) -> None:
    """On any rank but 0, sleep until the launcher ends this process because rank 0 has exited.

    A launcher ends all ranks as soon as one exits, and rank 0 may not have printed its error yet.
    """
    if _rank():
        time.sleep(seconds)


def _with_dashes(word: str) -> str:
    """`--image_size=256` becomes `--image-size=256`: other shard builders spell options with underscores."""
    if not word.startswith("--"):
        return word
    name, equals, value = word.partition("=")
    return name.replace("_", "-") + equals + value


def _wrapped(text: str) -> str:
    """The text with each paragraph wrapped to the terminal's width; examples and lists, which are indented, stay."""
    width = shutil.get_terminal_size().columns - 2
    paragraphs = text.strip().split("\n\n")
    return "\n\n".join(each if each.startswith("    ") else textwrap.fill(each, width) for each in paragraphs)


def _help(program: Program) -> str:
    metavar = program.noun.upper()
    parser = argparse.ArgumentParser(
        prog=program.name,
        usage=f"{program.name} {metavar} ...",
        description=_wrapped(program.description),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=f"{program.noun}s:\n"
        + "\n".join(_summary(program, name) for name in program.verb_names)
        + f"\n\n{program.name} help {metavar} (or {program.name} {metavar} -h) explains one.",
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    return parser.format_help()


def _summary(program: Program, verb: str) -> str:
    """The verb and the first line of its docstring, read without importing the module."""
    spec = importlib.util.find_spec(f"{program.verbs.__name__}.{verb}")
    assert spec is not None and spec.origin is not None
    with open(spec.origin, encoding="utf-8") as source:
        first_line = (ast.get_docstring(ast.parse(source.read())) or "").split("\n")[0]
    return textwrap.fill(first_line, 79, initial_indent=f"  {verb:<10} ", subsequent_indent=" " * 13)
