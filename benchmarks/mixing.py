"""Measure how near the order of samples comes to a uniform shuffle, and how few shards a rank reads for it.

Prints one JSON line. For each number of shards: how many times as often as in a uniform shuffle two rows of a batch
come from one shard, of this order, of this order with 256 streams, and of the order of version 1; then the shards that
one of 256 ranks reads during a hundred batches, and during a tenth of an epoch.
"""

from __future__ import annotations

import json

import numpy as np

from diptych.data.earlier_order import EarlierSampleOrder
from diptych.data.order import Order, SampleOrder

SAMPLES_PER_SHARD = 10_000
BATCH = 32_768
RANKS = 256
NUM_BATCHES = 20
"""Batches, spread over an epoch, from which the probability is computed."""


def times_as_often(order: Order, num_shards: int) -> float:
    """How often two rows of a batch come from one shard, divided by how often they do in a uniform shuffle."""
    last = order.total // BATCH - 1
    pairs = 0
    for batch in np.linspace(0, last, NUM_BATCHES).astype(int).tolist():
        _, rows = np.unique(order.rows(batch).samples // SAMPLES_PER_SHARD, return_counts=True)
        pairs += int((rows * (rows - 1)).sum())
    uniform = (SAMPLES_PER_SHARD - 1) / (num_shards * SAMPLES_PER_SHARD - 1)
    return float(pairs / (NUM_BATCHES * BATCH * (BATCH - 1)) / uniform)


def shards_of_a_rank(order: Order, num_batches: int) -> int:
    """The shards that the first rank reads during the first `num_batches`; of many batches 200 are looked at."""
    batches = np.unique(np.linspace(0, num_batches - 1, 200).astype(int)).tolist()
    samples = np.concatenate([order.rows(batch, 0, BATCH // RANKS).samples for batch in batches])
    return len(np.unique(samples // SAMPLES_PER_SHARD))


def measure(num_shards: int) -> dict[str, dict[str, float]]:
    counts = np.full(num_shards, SAMPLES_PER_SHARD)
    settings = {"seed": 0, "global_batch_size": BATCH, "shuffle_window": 10_000}
    orders: dict[str, Order] = {
        "ours": SampleOrder(counts, **settings),
        "ours_256_streams": SampleOrder(counts, **settings, streams=256),
        "version_1": EarlierSampleOrder(counts, **settings),
    }
    tenth = num_shards * SAMPLES_PER_SHARD // BATCH // 10
    return {
        name: {
            "times_as_often_as_uniform": round(times_as_often(order, num_shards), 2),
            "shards_of_a_rank_in_100_batches": shards_of_a_rank(order, 100),
            "shards_of_a_rank_in_a_tenth_of_an_epoch": shards_of_a_rank(order, tenth),
        }
        for name, order in orders.items()
    }


if __name__ == "__main__":
    print(json.dumps({f"{num_shards}_shards": measure(num_shards) for num_shards in (10_000, 200_000)}))
