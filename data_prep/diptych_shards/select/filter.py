"""Leave out samples of which an expression is not true."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.compute as compute

from diptych.data.shards import ShardIndex
from diptych_shards.progress import Progress
from diptych_shards.refusals import shown
from diptych_shards.select.evaluate import check, truths
from diptych_shards.select.expression import Condition, columns_of, parse_conditions
from diptych_shards.select.metadata import columns_of_shard
from diptych_shards.select.verdicts import MOST_REASON_CHARACTERS, VerdictWriter, locked, replaced, select_folder


def filter_samples(shards: Path, index: ShardIndex, where: str, name: str) -> Counter[str]:
    """Write the verdict `name` beside the shards; samples by reason (the empty one: kept).

    A sample's reason is the first of the conditions between `and`s that does not hold: `not width >= 256`, or
    `unknown width >= 256` where it cannot be told.

    Raises:
        SelectError: the expression does not fit these samples.
        ShardError: a shard is damaged.
    """
    replaced(shards, name, "filter")
    conditions = parse_conditions(where)
    for condition in conditions:
        check(condition.node)
    names = list(dict.fromkeys(name for condition in conditions for name in columns_of(condition.node)))
    counts: Counter[str] = Counter()
    facts = {"command": "filter", "options": {"where": where}, "meanings": {}}
    progress = Progress(len(index), "samples")
    try:
        with locked(select_folder(shards)), VerdictWriter(shards, name, index, facts) as verdict:
            for number, shard in enumerate(index.shards):
                columns = columns_of_shard(index, number, names)
                reasons = _reasons(conditions, columns, shard.samples)
                verdict.add(reasons, [None] * len(reasons))
                counts.update(reasons)
                progress.add(shard.samples, refused=sum(map(bool, reasons)))
                progress.shard_is_done(shown(shard.name))
    finally:
        progress.close()
    return counts


def _reasons(conditions: Sequence[Condition], columns: dict, num_rows: int) -> list[str]:
    reasons = np.full(num_rows, "", dtype=object)
    for condition in conditions:
        found = truths(condition.node, columns, num_rows)
        words = " ".join(condition.source.split())[:MOST_REASON_CHARACTERS]
        is_true = compute.fill_null(found, False).to_numpy(zero_copy_only=False)
        is_unknown = compute.is_null(found).to_numpy(zero_copy_only=False)
        is_open = reasons == ""
        reasons[is_open & ~is_true & ~is_unknown] = f"not {words}"
        reasons[is_open & is_unknown] = f"unknown {words}"
    return reasons.tolist()
