"""leave out samples for which an expression on their metadata is not true

    diptych-shards filter SHARDS --where "width >= 256 and length(caption) > 5"

EXPRESSION is SQL about one sample, as DuckDB reads it: and or not, = <> < <= > >=, between, in, is
null, like, ilike, + - * / %, case, casts, and these functions (no others, so that none reads files,
waits, or depends on the day):

    abs ceil exp floor greatest if least ln log10 log2 mod nullif number pow
    round sign sqrt coalesce contains ends_with left length lower ltrim matches
    md5 position regexp_extract reverse right rtrim split_part starts_with
    strip_accents strlen substring trim upper words day hour minute month
    second year date_part date_diff strptime list_contains json_extract_string

matches(text, 'regular expression'), words(text) and number(text) are our own. Columns are those of
the parquet next to each tar, or what the json members hold, with key and caption. Texts are in
'single quotes', odd column names in "double" ones. What is not known is not true: such samples are
left out.

Nothing is deleted: the verdict goes to SHARDS/_index/select/NAME.parquet, with key, kept and
reason. `preview` shows it, `select` writes shards without what verdicts leave out. Filter first,
dedup last: `dedup` chooses among the samples that filters keep. Stopped at any moment, the same
command resumes where it stopped.
"""

from __future__ import annotations

import argparse

from diptych.command_line import path_argument
from diptych.terminal import shown
from diptych_shards.arguments import add_engine, engine_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("shards", type=path_argument, metavar="SHARDS", help="a folder of shards")
    parser.add_argument("--where", required=True, metavar="EXPRESSION", help="true of the samples that are kept")
    parser.add_argument("--name", default="filter", metavar="NAME", help="of the verdict (default %(default)s)")
    add_engine(parser, "one shard each at a time")


def run(chosen: argparse.Namespace) -> None:
    """Write the verdict, print what it says."""
    from diptych_shards.select.filter import filter_samples
    from diptych_shards.select.staleness import what_is_stale
    from diptych_shards.select.verdicts import open_shards, verdict_table, verdict_to_replace

    shards, index = chosen.shards, open_shards(chosen.shards)
    before = verdict_to_replace(shards, chosen.name, "filter")
    counts = filter_samples(shards, index, chosen.where, chosen.name, engine_of(chosen))
    print(verdict_table(shards, chosen.name, counts))
    if before and before.facts["options"]["where"] != chosen.where:
        print(f"it replaces {shown(before.facts['options']['where'])}; under another --name, both would count")
    if line := what_is_stale(shards, index):
        print(line)
