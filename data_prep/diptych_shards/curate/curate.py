"""Choose the pairs worth fetching, out of more than fit in memory.

Each unit of pairs (131,072, or a larger row group) is examined by itself; duplicates are found among hashes that are
sorted on disk; the pairs of each query are counted; each unit's pairs are kept or dropped; the kept ones are written.
Every pass is a map over units, groups of units or shares of the hashes, on any engine. Finished work stays: a stopped
run resumes from there, and ends with the same bytes.

The cost of N pairs in U units, with M matches of queries a pair:
- the tables are read twice; 29 + 4 M bytes a pair are written once and read three times;
- a record of 36 bytes a pair is written and read once, and once more for each division of U by 128 until 128 or fewer
  are left; a pair that repeats another one costs 9 bytes in the same way;
- files are opened about 25 times a unit, and 128 times for each million pairs: 320,000 times for a billion pairs;
- each process holds the queries, a unit and a million records in memory; the parent holds the queries.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow

from diptych_shards.curate.decide import decide
from diptych_shards.curate.examine import UNDETERMINED, LanguageIdentifier, Setup, examine
from diptych_shards.curate.options import CurateError, CurateOptions, read_queries
from diptych_shards.curate.pairs import Pairs, open_pairs
from diptych_shards.curate.parts import plan_parts, read_kept_facts, write_part
from diptych_shards.curate.report import write_report
from diptych_shards.curate.state import Output
from diptych_shards.run.engine import Engine
from diptych_shards.run.out_folder import OutFolder, read_state
from diptych_shards.run.progress import Progress, map_with_progress

FORMAT = "diptych-curate-4"


def curate(tables: Sequence[Path], out: Path, options: CurateOptions, engine: Engine) -> dict[str, Any]:
    """Write the pairs worth keeping to OUT, and return the content of OUT/_index/report.json.

    Raises:
        UserError: the tables or the options cannot be used, or OUT holds something else.
    """
    if any(table.resolve() == out.resolve() for table in tables):
        raise CurateError(f"{out} is where the pairs are; name another folder for the result")
    pairs = open_pairs(tables, options.url_column, options.caption_column)
    queries = read_queries(options.queries) if options.queries else None
    unknown = sorted(set(options.languages) - LanguageIdentifier().known()) if options.languages else []
    if unknown:
        raise CurateError(f"no language {unknown[0]!r}; give codes such as en, de, zh, or {UNDETERMINED}: not sure")
    output = Output(out)
    inputs = {"files": pairs.files, "pyarrow": pyarrow.__version__}
    with OutFolder(out, "curate", format=FORMAT, options=options.record(), inputs=inputs).opened():
        if not output.report.exists():
            output.work.mkdir(exist_ok=True)
            _carry_out(pairs, options, queries, output, engine)
        shutil.rmtree(output.work, ignore_errors=True)
    return read_state(output.report, "rules")


def _carry_out(pairs: Pairs, options: CurateOptions, queries: list[str] | None, output: Output, engine: Engine) -> None:
    setup = Setup(output.out.resolve(), options, pairs.url, pairs.caption, pairs.sides)
    progress = Progress(pairs.num_rows, "pair examined")
    for num_rows in engine.map(partial(examine, setup), pairs.units):
        progress.add(num_rows)
    progress.close()
    counts, decided = decide(setup, pairs.units, len(queries or ()), engine)
    parts = plan_parts(pairs.units, decided.kept_by_unit, options.pairs_per_part)
    for _ in map_with_progress(engine, partial(write_part, setup, pairs.schema), parts, "part written"):
        pass
    examples = (json.loads(output.examples(part.number).read_text(encoding="utf-8")) for part in parts)
    facts = read_kept_facts(output.kept_facts(part.number) for part in parts)
    changed = max(file[2] for file in pairs.files) / 1e9
    write_report(output, options, decided, queries, counts, examples, facts, changed)
