"""`diptych-shards pack | index | verify`."""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import pkgutil
import sys
from collections.abc import Sequence
from pathlib import Path

from diptych.terminal import unknown_word
from diptych_shards import commands as commands_folder
from diptych_shards.pack import PackOptions
from diptych_shards.refusals import shown, table_of_reasons


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit status: 0, or 2 after one line that says what is wrong."""
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser, commands = _parser()
    if words and not words[0].startswith("-") and words[0] not in commands:
        print(f"diptych-shards: {unknown_word('command', words[0], commands)}", file=sys.stderr)
        return 2
    chosen = parser.parse_args(words)
    try:
        chosen.run(chosen)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one stopped", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        print(f"diptych-shards: {shown(_one_line(error))}", file=sys.stderr)
        return 2
    return 0


def run_pack(chosen: argparse.Namespace) -> None:
    """Check the folders, read the input, pack it, print the report."""
    from diptych_shards.candidates import PackError
    from diptych_shards.folder_input import read_folder
    from diptych_shards.pack import pack
    from diptych_shards.table_input import read_table

    folder, out = Path(chosen.folder), Path(chosen.out)
    if not folder.is_dir():
        raise PackError(f"{folder} is not a folder" if folder.exists() else f"{folder} does not exist")
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)):
        raise PackError(f"{out} lies inside {folder}: the shards would become input; name a folder outside")
    options = PackOptions(
        samples_per_shard=chosen.samples_per_shard,
        shard_bytes=chosen.shard_bytes,
        seed=None if chosen.keep_order else chosen.seed,
        max_pixels=chosen.max_pixels,
        min_side=chosen.min_side,
    )
    if chosen.table is None:
        found = read_folder(folder)
    else:
        found = read_table(Path(chosen.table), folder, chosen.path_column, chosen.caption_column)
    if not found.candidates:
        if found.refusals:
            print(table_of_reasons(found.refusals))
        raise PackError(f"{chosen.table or folder} holds no picture with a caption")
    report = pack(found, folder, out, options, chosen.processes)
    shards = "1 shard" if report.shards == 1 else f"{report.shards:,} shards"
    print(f"packed {report.packed:,} samples into {shards}, {report.num_bytes:,} bytes: {shown(out)}")
    if report.refusals:
        print(f"refused {len(report.refusals):,}, each named in {shown(out / '_index' / 'rejected.jsonl')}:")
        print(table_of_reasons(report.refusals))
    if not report.packed:
        raise PackError("no picture could be packed; the reasons are above")


def run_index(chosen: argparse.Namespace) -> None:
    """Index what has no index yet."""
    from diptych_shards.index import index

    for folder in chosen.folder:
        indexed = index(folder, chosen.processes)
        print(f"{len(indexed.shards):,} shards, {len(indexed):,} samples: {shown(folder)}")


def run_verify(chosen: argparse.Namespace) -> None:
    """Read every byte."""
    from diptych_shards.verify import verify

    index = verify(Path(chosen.folder))
    print(f"{len(index.shards):,} shards, {len(index):,} samples, all as written: {shown(chosen.folder)}")


def _parser() -> tuple[argparse.ArgumentParser, Sequence[str]]:
    """The parser, and its commands."""
    parser = argparse.ArgumentParser("diptych-shards", description="Make, index, verify image-text shards.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_pack(commands.add_parser("pack", help="pictures with captions -> shards"))
    index = commands.add_parser("index", help="index shards that something else wrote")
    index.add_argument("folder", nargs="+", metavar="FOLDER", help="or a .tar, or a brace pattern")
    index.add_argument("--processes", type=_positive, default=len(os.sched_getaffinity(0)), metavar="N",
                       help="that read a tar each (default: the CPUs, %(default)s)")  # fmt: skip
    index.set_defaults(run=run_index)
    verify = commands.add_parser("verify", help="check every byte of shards against their index")
    verify.add_argument("folder", metavar="FOLDER")
    verify.set_defaults(run=run_verify)
    for module in pkgutil.iter_modules(commands_folder.__path__):
        command = importlib.import_module(f"{commands_folder.__name__}.{module.name}")
        first_line = (command.__doc__ or "").split("\n")[0]
        added = commands.add_parser(module.name, help=first_line, description=command.__doc__)
        command.add_arguments(added)
        added.set_defaults(run=command.run)
    return parser, tuple(commands.choices)


def _add_pack(parser: argparse.ArgumentParser) -> None:
    usual = PackOptions()
    parser.description = (
        "Pack a folder tree of pictures, each with its caption in a .txt or .json of the same name beside "
        "it, or those named by a table. Stopped at any moment, the same command goes on where it was."
    )
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="the pictures")
    add("out", metavar="OUT", help="a folder that is new, empty, or begun by the same command")
    add("--table", metavar="FILE", help=(
        ".csv, .tsv or .parquet with the path of a picture (relative to FOLDER) and a caption in each row; "
        "other columns become metadata"
    ))  # fmt: skip
    add("--path-column", metavar="NAME", help="default: the one named path, file_name, image ...")
    add("--caption-column", metavar="NAME", help="default: the one named caption, text ...")
    add("--keep-order", action="store_true", help="order the samples by path instead of shuffling them")
    for name, default, meaning in (
        ("--seed", usual.seed, "of the shuffled order of the samples"),
        ("--samples-per-shard", usual.samples_per_shard, "pictures that a shard is planned for"),
        ("--shard-bytes", usual.shard_bytes, "bytes of pictures that a shard is planned for at most"),
        ("--max-pixels", usual.max_pixels, "refuse larger pictures"),
        ("--min-side", usual.min_side, "refuse pictures with a shorter side"),
    ):
        add(name, type=int, default=default, metavar="N", help=f"{meaning} (default {default})")
    add("--processes", type=_positive, default=len(os.sched_getaffinity(0)), metavar="N",
        help="that decode the pictures to check them (default: the CPUs, %(default)s)")  # fmt: skip
    parser.set_defaults(run=run_pack)


def _positive(text: str) -> int:
    if int(text) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return int(text)


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        where = f" at {error.filename}" if error.filename else ""
        return f"{error.strerror}{where}: make room, start the same command again; finished shards are kept"
    if isinstance(error, OSError) and error.filename:
        return f"{error.filename}: {error.strerror}"
    return str(error)


if __name__ == "__main__":
    sys.exit(main())
