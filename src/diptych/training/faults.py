"""Turn faults of a single rank, such as full memory or a missing shard, into one line that this rank prints."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diptych.config.schema import RunConfig
from diptych.data.shard_index_file import ShardError
from diptych.errors import OneRankError
from diptych.world import World, explain_full_memory


@contextmanager
def explain_faults(config: RunConfig, world: World) -> Iterator[None]:
    """Turn a fault of this rank during the block into a OneRankError.

    Raises:
        OneRankError: the memory is full, or a shard is missing or has changed.
    """
    try:
        with explain_full_memory(world.device, _way_out(config, world)):
            yield
    except ShardError as error:
        raise OneRankError(str(error)) from error


def _way_out(config: RunConfig, world: World) -> str:
    """How to run the same training with less memory: in smaller parts, or on more ranks."""
    share = world.rows_of_ranks(config.training.global_batch_size)[world.rank]
    at_once = min(config.machine.pairs_per_forward or share, share)
    ways = [f"machine.pairs_per_forward={at_once // 2}"] if at_once > 1 else []
    ways += [] if config.machine.checkpoint_blocks else ["machine.checkpoint_blocks=true"]
    return (
        f"{at_once} of its {share} pairs a batch go through the towers at once; set "
        f"{' or '.join([*ways, 'a smaller training.global_batch_size'])}, or start more ranks"
    )
