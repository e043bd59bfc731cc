"""write new shards of the samples that all verdicts keep

The verdicts are those of `dedup` and `filter` in SHARDS/_index/select/. One of `dedup` that a later
filter made stale is refused: filter first, dedup last. SHARDS is not changed.
Stopped at any moment, the same command resumes where it stopped, and the bytes come out the same.
"""

from __future__ import annotations

import argparse

from diptych.command_line import path_argument
from diptych.terminal import counted, is_or_are, shown
from diptych_shards.arguments import add_engine, engine_of, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    add("shards", type=path_argument, metavar="SHARDS", help="a folder of shards")
    add("out", type=path_argument, metavar="OUT", help="a folder that is new, empty, or started by the same command")
    add("--verdict", action="append", metavar="NAME", help="only this one; may be given several times (default: all)")
    add("--samples-per-shard", type=positive, metavar="N",
        help="cut again, by N samples (default: shards of the same names, each with fewer samples)")  # fmt: skip
    add_engine(parser, "one shard each at a time")


def run(chosen: argparse.Namespace) -> None:
    """Write the shards, print how many."""
    from diptych.errors import UserError
    from diptych_shards.select.rewrite import rewrite
    from diptych_shards.select.staleness import verdicts_that_hold
    from diptych_shards.select.verdicts import open_shards

    shards, out = chosen.shards, chosen.out
    index = open_shards(chosen.shards)
    if out.resolve().is_relative_to(shards.resolve()):
        raise UserError(f"{shown(out)} lies inside {shown(shards)}; name a folder outside")
    verdicts = verdicts_that_hold(shards, index, chosen.verdict)
    written = rewrite(index, verdicts, out, chosen.samples_per_shard, engine_of(chosen))
    names = ", ".join(verdict.name for verdict in verdicts)
    print(f"{written.samples:,} of {counted(len(index), 'sample')} {is_or_are(len(index))} kept by {names}; "
          f"{counted(written.shards, 'shard')}, {counted(written.num_bytes, 'byte')}: {shown(out)}")  # fmt: skip
