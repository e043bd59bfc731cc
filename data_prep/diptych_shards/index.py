"""Index shards that other tools wrote, several at once."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Sequence
from pathlib import Path

from diptych.data.foreign_shards import index_silently
from diptych.data.shard_index_file import ShardError, folder_list_path, index_path
from diptych.data.shard_list import write_folder_list
from diptych.data.shard_locations import tars_at
from diptych.data.shards import ShardIndex, open_index
from diptych.files import local_path
from diptych.terminal import counted, shown
from diptych_shards.run.progress import Progress
from diptych_shards.run.worker_pool import WorkerPool, for_each, results_in_order

logger = logging.getLogger(__name__)


def index(location: str, processes: int) -> ShardIndex:
    """Index the tars of a folder, a file name or a brace pattern that have no index yet; return the index of all.

    Also writes the list of all shards of their folders (`all.index`). Each index is committed by itself:
    after a stop, the same command continues with the tars that are left.

    Raises:
        UserError: the location is on another machine.
        ShardError: a tar is missing or damaged; all others have been indexed.
    """
    tars = tars_at(os.fspath(local_path(location)))  # an index is written next to its tar
    pending = [tar for tar in tars if not index_path(tar).exists()]
    if pending:
        _index_all(pending, processes)
    for folder in dict.fromkeys(tar.parent for tar in tars):
        try:
            write_folder_list(folder)
        except OSError as error:  # shards on a disk that cannot be written are good to use without it
            logger.warning("%s is not written: %s", folder_list_path(folder), error.strerror)
    return open_index(tars)


def _index_all(tars: Sequence[Path], processes: int) -> None:
    mistakes = []
    progress = Progress(len(tars), "shard")
    # A large tar on a slow disk is silent for as long as it takes.
    pool = WorkerPool(for_each(_index_one), min(processes, len(tars)), silence_seconds=math.inf)
    try:
        with pool:
            for outcome in results_in_order(pool, ([tar] for tar in tars), give_up=_process_died):
                if isinstance(outcome, ShardError):
                    mistakes.append(outcome)
                    if len(tars) > 1:  # else it is the last line
                        progress.note(shown(outcome))
                elif outcome:
                    progress.note(shown(outcome))
                progress.add(1)
    finally:
        progress.close()
    if len(mistakes) > 1:
        raise ShardError(
            f"{len(mistakes)} of {counted(len(tars), 'tar')} without an index cannot be indexed; {mistakes[0]}"
        )
    if mistakes:
        raise mistakes[0]


def _index_one(tar: Path) -> str | ShardError:
    """Index a tar; return what was skipped, or the error as a value: one broken tar does not stop the others."""
    try:
        return index_silently(tar)[1]
    except ShardError as error:
        return error
    except OSError as error:
        way_out = "correct that, then start the same command again"
        return ShardError(f"{shown(tar)} cannot be indexed: {error.strerror}; {way_out}")


def _process_died(tar: Path) -> ShardError:
    return ShardError(f"{shown(tar)}: the process that read it died, twice; see the system's log")
