"""What ends one rank of a run through no mistake in its configuration, on one line that this rank says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diptych.config.schema import RunConfig
from diptych.data.loader import killed_loaders_named
from diptych.data.shard_index_file import ShardError
from diptych.errors import OneRankError
from diptych.world import World, full_memory_named


@contextmanager
def faults_named(config: RunConfig, world: World) -> Iterator[None]:
    """A block of training in which a fault of this rank alone is told as such.

    Raises:
        OneRankError: a full memory, a killed loader process, a shard that this machine lacks or that changed.
    """
    try:
        with (
            killed_loaders_named(world.loader_workers(config.machine.loader_workers)),
            full_memory_named(world.device, _less(config, world)),
        ):
            yield
    except ShardError as error:
        raise OneRankError(str(error)) from error


def _less(config: RunConfig, world: World) -> str:
    """What takes less memory: the same run, in smaller parts or over more ranks."""
    share = world.rows_of_ranks(config.training.global_batch_size)[world.rank]
    at_once = min(config.machine.pairs_per_forward or share, share)
    ways = [f"machine.pairs_per_forward={at_once // 2}"] if at_once > 1 else []
    ways += [] if config.machine.checkpoint_blocks else ["machine.checkpoint_blocks=true"]
    return (
        f"{at_once} of its {share} pairs a batch go through the towers at once; set "
        f"{' or '.join([*ways, 'a smaller training.global_batch_size'])}, or start more ranks"
    )
