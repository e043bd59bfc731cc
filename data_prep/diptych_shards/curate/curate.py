"""Pairs worth fetching, out of more than fit in memory.

Each unit of the pairs is examined by itself; then duplicates are found, each query's pairs are counted, and it is
decided pair by pair; at last the kept ones are written. What is finished stays: a stopped run goes on from there, and
ends with the same bytes. Memory is that of a unit, a share of the duplicates, and the queries, for each process.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow

from diptych_shards.curate.decide import Decided, Decider
from diptych_shards.curate.examine import Setup, examine
from diptych_shards.curate.options import CurateError, CurateOptions, read_queries
from diptych_shards.curate.pairs import Pairs, open_pairs
from diptych_shards.curate.parts import plan_parts, write_part
from diptych_shards.curate.report import write_report
from diptych_shards.curate.state import Output, commit_array
from diptych_shards.engines import Engine
from diptych_shards.progress import Progress

FORMAT = "diptych-curate-2"


def curate(tables: Sequence[Path], out: Path, options: CurateOptions, engine: Engine) -> dict[str, Any]:
    """Write the pairs worth keeping to OUT, and give what OUT/_index/report.json holds.

    Raises:
        ValueError: the tables or the options do not do, or OUT holds something else.
    """
    if any(table.resolve() == out.resolve() for table in tables):
        raise CurateError(f"{out} is where the pairs are; name another folder for the result")
    pairs = open_pairs(tables, options.url_column, options.caption_column)
    queries = read_queries(options.queries) if options.queries else None
    request = _request(pairs, options)
    output = Output(out)
    output.check(request)
    with output.kept_to_ourselves():
        output.prepare(request)
        if not output.report.exists():
            _carry_out(pairs, options, queries, output, engine)
        output.finish()
    report: dict[str, Any] = json.loads(output.report.read_text(encoding="utf-8"))
    return report


def _carry_out(pairs: Pairs, options: CurateOptions, queries: list[str] | None, output: Output, engine: Engine) -> None:
    setup = Setup(output.out.resolve(), options, pairs.url, pairs.caption, pairs.sides)
    progress = Progress(pairs.num_rows, "pairs examined")
    for num_rows in engine.map(partial(examine, setup), pairs.units):
        progress.add(num_rows)
    progress.close()

    decided = _decide(pairs, options, queries, output)
    parts = plan_parts(pairs.units, decided.kept_by_unit, options.pairs_per_part)
    progress = Progress(len(parts), "parts written")
    for _ in engine.map(partial(write_part, setup, pairs.schema), parts):
        progress.add(1)
    progress.close()
    examples = [json.loads(output.examples(part.number).read_text(encoding="utf-8")) for part in parts]
    write_report(output, options, decided, queries, examples)


def _decide(pairs: Pairs, options: CurateOptions, queries: list[str] | None, output: Output) -> Decided:
    decider = Decider(output, options, pairs.units, None if queries is None else len(queries))
    _last(decider.find_duplicates())
    if not output.counts().exists():
        commit_array(output.counts(), _last(decider.count()))
    decided: Decided = _last(decider.decide(np.load(output.counts())))
    return decided


def _last(steps: Iterable[Any]) -> Any:
    return deque(steps, maxlen=1).pop()


def _request(pairs: Pairs, options: CurateOptions) -> dict[str, Any]:
    """What decides the bytes of the result."""
    return {"format": FORMAT, "files": [list(file) for file in pairs.files], "pyarrow": pyarrow.__version__} | {
        f"option {name}": value for name, value in options.record().items()
    }
