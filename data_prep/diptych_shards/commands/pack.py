"""pictures with captions, in a folder or named by a table -> shards

A folder tree of pictures, each with its caption in a .txt or .json of the same name next to it, or those named by a
table. Stopped at any moment, the same command resumes where it stopped. Pictures are stored as they are, unless
--for-training resizes them; GIF, BMP, TIFF and HEIC become JPEGs.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from diptych.command_line import path_argument
from diptych.errors import UserError
from diptych.files import check_folder
from diptych.terminal import counted, shown
from diptych_shards.arguments import add_processes
from diptych_shards.pack.pack import PackOptions, PackReport
from diptych_shards.refusals import table_of_reasons
from diptych_shards.tables.locations import is_picture_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    usual = PackOptions()
    add = parser.add_argument
    add("folder", type=path_argument, metavar="FOLDER", help="the pictures")
    add("out", type=path_argument, metavar="OUT", help="a folder that is new, empty, or started by the same command")
    add("--table", type=path_argument, metavar="FILE", help=(
        "with the path of a picture and a caption in each row, in any format that build reads (.csv, .tsv, .parquet, "
        ".json, .jsonl, also .gz, .zst); a relative path is looked for in the table's folder, then in FOLDER; several "
        "rows of a picture, or a list, are several captions; other columns become metadata"
    ))  # fmt: skip
    add("--path-column", metavar="NAME", help="default: the one named path, file_name, image ...")
    add("--caption-column", metavar="NAME", help="default: the one named caption, text ...")
    add("--caption-template", metavar="TEXT", help=(
        "caption of pictures without one, {} for the name of their folder, such as 'a photo of a {}.'; the name is "
        "also stored as label"
    ))  # fmt: skip
    add("--for-training", type=int, metavar="N", help=(
        "resize so that the shorter side is N pixels, as build does: photographs take a tenth of the space and of the "
        "time"
    ))  # fmt: skip
    add("--hold-out", type=float, metavar="SHARE", help=(
        "pack this share of the pictures, such as 0.05, into OUT/held_out to measure on, the others into OUT/train; "
        "copies of a picture are on one side, and stay there when the folder grows"
    ))  # fmt: skip
    add("--keep-order", action="store_true", help="order the samples by path instead of shuffling them")
    for name, default, meaning in (
        ("--samples-per-shard", usual.samples_per_shard, "pictures that a shard is planned for"),
        ("--min-side", usual.min_side, "refuse pictures whose shorter side is below N pixels"),
    ):
        add(name, type=int, default=default, metavar="N", help=f"{meaning} (default {default})")
    add_processes(parser, "that decode the pictures to check them")


def run(chosen: argparse.Namespace) -> None:
    """Check the folders, read the input, pack it, print the report."""
    from diptych_shards.pack.candidates import hold_out
    from diptych_shards.pack.folder_input import read_folder
    from diptych_shards.pack.pack import pack
    from diptych_shards.pack.table_input import read_table
    from diptych_shards.tables.picture_table import Wanted

    folder, out = chosen.folder, chosen.out
    check_folder(folder, "pictures")
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(folder)):
        raise UserError(f"{out} lies inside {folder}: the shards would become input; name a folder outside")
    if chosen.table is not None and chosen.caption_template is not None:
        raise UserError("--caption-template is for a folder of pictures, --table has captions; leave one of them out")
    options = PackOptions(
        samples_per_shard=chosen.samples_per_shard,
        shuffle=not chosen.keep_order,
        min_side=chosen.min_side,
        for_training=chosen.for_training,
        caption_template=chosen.caption_template,
        hold_out=chosen.hold_out,
    )
    if chosen.table is None:
        found = read_folder(folder, options.caption_template)
    else:
        wanted = Wanted(path=chosen.path_column, caption=chosen.caption_column)
        found = read_table(chosen.table, folder, wanted)
    if not found.candidates:
        if found.refusals:
            print(table_of_reasons(found.refusals))
        raise UserError(f"{chosen.table or folder} holds no picture with a caption; {_way_to_captions(chosen)}")
    if options.hold_out is None:
        parts = {out: found}
    else:
        if out.is_dir() and {path.name for path in out.iterdir()} - {"train", "held_out"}:
            raise UserError(f"{out} holds something else, perhaps shards without --hold-out; name an empty folder")
        train, held_out = hold_out(found, folder, options.hold_out)
        parts = {out / "train": train, out / "held_out": held_out}
    for part, pictures in parts.items():
        _print(pack(pictures, folder, part, options, chosen.processes), part)


def _print(report: PackReport, out: Path) -> None:
    """Print what was packed, and what was refused.

    Raises:
        UserError: nothing was packed.
    """
    into = counted(report.shards, "shard")
    print(f"packed {counted(report.packed, 'sample')} into {into}, {report.num_bytes:,} bytes: {shown(out)}")
    if report.refusals:
        print(f"refused {len(report.refusals):,}, each named in {shown(out / '_index' / 'rejected.jsonl')}:")
        print(table_of_reasons(report.refusals))
    if not report.packed:
        raise UserError("no picture could be packed; the reasons are above")


def _way_to_captions(chosen: argparse.Namespace) -> str:
    """Describe what to do where no picture has a caption."""
    if chosen.table is not None:
        return "each row names a picture and its caption"
    for path in sorted(chosen.folder.iterdir()):
        if path.suffix.lower() != ".json" and is_picture_table(str(path)):  # a .json is more often a caption
            return f"if the captions are in {shown(path.name)}, add --table {shown(path)}"
    return ("write each caption into a .txt of the same name, or all into a --table; where folders are classes, "
            "--caption-template 'a photo of a {}.' makes captions of their names")  # fmt: skip
