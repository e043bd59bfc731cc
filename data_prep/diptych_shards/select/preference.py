"""Which of several samples is to be preferred: the one with the highest number."""

from __future__ import annotations

import numpy as np

from diptych.data.shards import ShardIndex
from diptych_shards.metadata import columns_of_shard
from diptych_shards.select.expression import parse


def preferences(index: ShardIndex, expression: str) -> np.ndarray:
    """f64 of each sample in the order of the shards, NaN where it is not known.

    Raises:
        UserError: the expression gives no numbers for these samples.
        ShardError: a shard is damaged.
    """
    wanted = parse(expression)
    found = [np.zeros(0)]
    for number, shard in enumerate(index.shards):
        columns = columns_of_shard(index, number, wanted.columns)
        numbers = wanted.numbers({name: columns[name] for name in wanted.columns}, shard.samples)
        found.append(numbers.to_numpy(zero_copy_only=False))
    return np.concatenate(found)
