"""pairs of a crawl -> the pairs worth fetching

Drop what no model learns from, and balance the rest over a list of queries as CLIP's data was built. Stopped at any
moment, the same command resumes where it stopped.
"""

from __future__ import annotations

import argparse
from typing import Any

from diptych.command_line import path_argument
from diptych.terminal import count_lines, counted, shown
from diptych_shards.arguments import add_engine, engine_of


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from diptych_shards.curate.rules import RULES

    add = parser.add_argument
    add("pairs", nargs="+", type=path_argument, metavar="PAIRS", help=".parquet files, or folders of them")
    add("out", type=path_argument, metavar="OUT", help="a folder that is new, empty, or started by the same command")
    add(
        "--queries",
        type=path_argument,
        metavar="FILE",
        help="one query a line, or a .json list; without it, nothing is balanced",
    )
    add("--pairs-per-query", type=int, metavar="T", help="t of the paper's balancing (default 20,000)")
    add("--seed", type=int, metavar="N", help="of the choice among a query's pairs (default 0)")
    add(
        "--languages",
        type=_names,
        metavar="LIST",
        help="to keep: en,de ... (und: not sure); default: all, and no caption is identified",
    )
    add("--min-characters", type=int, metavar="N", help="of a caption (default 3); a Chinese letter counts as 3")
    add("--max-characters", type=int, metavar="N", help="of a caption (default 1,000)")
    add("--min-words", type=int, metavar="N", help="of a caption (default 1); estimated where no spaces are between")
    add("--block-phrases", dest="blocked_phrases", type=path_argument, action="append", metavar="FILE",
        help="drop captions that hold one of its lines")  # fmt: skip
    add("--block-hosts", dest="blocked_hosts", type=path_argument, action="append", metavar="FILE",
        help="drop addresses at one of its lines, or below")  # fmt: skip
    add("--skip", action="append", metavar="RULE",
        help=f"do not apply this caption rule, one of {', '.join(RULES)}; may be given several times")  # fmt: skip
    add("--duplicates", metavar="WHICH", help="to drop: near (default; the largest stays), exact, or keep all: keep")
    add("--dropped", dest="writes_dropped", action="store_true", default=None,
        help="also write the dropped pairs, with their reasons, to OUT/_index/dropped")  # fmt: skip
    add("--url-column", metavar="NAME", help="default: the one named url ...")
    add("--caption-column", metavar="NAME", help="default: the one named caption, text, alt ...")
    add_engine(parser, "worker processes")


def run(chosen: argparse.Namespace) -> None:
    """Curate, and print what became of the pairs."""
    from diptych_shards.curate.curate import curate
    from diptych_shards.curate.options import CurateError, CurateOptions

    names = set(CurateOptions.__dataclass_fields__)
    given: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(chosen).items()
        if name in names and value is not None
    }
    options = CurateOptions(**given)
    if chosen.pairs_per_query is not None and chosen.queries is None:
        raise CurateError("--pairs-per-query balances over --queries FILE; name one, or leave it out")
    report = curate(chosen.pairs, chosen.out, options, engine_of(chosen))
    print(f"kept {report['kept']:,} of {counted(report['pairs'], 'pair')}: {shown(chosen.out)}")
    for line in count_lines(report["rules"].items()):
        print(line)
    print(f"more in {shown(chosen.out / '_index' / 'report.html')}")
    if not report["kept"]:
        raise CurateError("no pair is left; the reasons are above")


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())
