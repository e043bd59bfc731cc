"""Start the loader processes of a rank before it has threads, and give them their samples when these are known.

A forked process has a copy of all locks of its parent, locked as they are, and no thread that would unlock them. CUDA,
NCCL and gloo have many. So a rank starts its loader processes before it meets the other ranks or touches its GPU.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from multiprocessing.connection import Connection, wait
from types import TracebackType
from typing import Any

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from diptych.data.shard_cache import OPEN_FILES
from diptych.errors import OneRankError
from diptych.machine import allow_open_files

PREFETCHED_PIECES = 2
"""Finished pieces that a worker holds ready."""
STACKS_SECONDS = 0.3
"""How long loader processes have for writing their stacks."""


class _Later(IterableDataset[Any]):
    """What the pipeline yields that this worker receives; the worker ends if its rank does before it sends one."""

    def __init__(self, receivers: list[Connection]):
        self._receivers = receivers

    def __iter__(self) -> Iterator[Any]:
        worker, rank = get_worker_info(), multiprocessing.parent_process()
        assert worker is not None and rank is not None
        receiver = self._receivers[worker.id]
        # If the rank is killed, its end of the pipe stays open in the other workers.
        if receiver not in wait([receiver, rank.sentinel]):
            os._exit(1)  # torch would look for the rank each five seconds, in one process after another
        yield from receiver.recv()


class LoaderProcesses:
    """Processes that build pieces of batches: they start now, and wait until `run` gives them a pipeline.

    number: 0 lets `run` work in this process.
    """

    def __init__(self, number: int):
        allow_open_files(OPEN_FILES)  # which processes inherit
        self.number = number
        self._processes: set[Any] = set()
        if not number:
            return
        self._stacks = tempfile.TemporaryFile()
        receivers, senders = zip(*(multiprocessing.Pipe(duplex=False) for _ in range(number)), strict=True)
        self._senders: tuple[Connection, ...] = senders
        others = set(multiprocessing.active_children())
        # wds.WebLoader, which is this DataLoader in a pipeline, would start its processes with the first batch.
        self._built = iter(
            DataLoader(
                _Later(list(receivers)),
                batch_size=None,
                num_workers=number,
                prefetch_factor=PREFETCHED_PIECES,
                worker_init_fn=partial(_prepare_process, self._stacks.fileno()),
            )
        )
        self._processes = set(multiprocessing.active_children()) - others

    def run(self, pipeline: Iterable[Any]) -> Iterator[Any]:
        """What the pipeline yields, in turn from each process, where `get_worker_info` says which it is.

        Raises:
            RuntimeError: the processes were given a pipeline before.
        """
        if not self.number:
            return iter(pipeline)
        if not self._senders:
            raise RuntimeError("loader processes take one pipeline; start others for another")
        for sender in self._senders:
            sender.send(pipeline)
        self._senders = ()
        return self._built

    def stacks(self) -> str:
        """What the processes are doing now, for a person to read; those that are stopped have nothing to say."""
        if not self._processes:
            return ""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGUSR2)
        time.sleep(STACKS_SECONDS)
        self._stacks.seek(0)
        return f"Loader processes:\n{self._stacks.read().decode(errors='replace')}"

    def kill(self) -> None:
        """Kill the processes, for a rank that ends at once; one that is stopped would outlive it."""
        for process in self._processes:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)

    def close(self) -> None:
        """End the processes, whatever they do. They ignore SIGTERM, so that they live until a stop has saved."""
        with _expect_process_ends():
            for process in self._processes:
                process.kill()
                process.join()
        if self._processes:
            self._stacks.close()
        self._processes = set()

    def __enter__(self) -> LoaderProcesses:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def explain_killed_loaders(workers: int) -> Iterator[None]:
    """Turn the error of torch's SIGCHLD handler, which may be raised anywhere in the block, into one line.

    Raises:
        OneRankError: a loader process was killed or died.
    """
    try:
        yield
    except RuntimeError as error:
        killed = re.search(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\)", str(error))
        if killed is None:
            raise
        raise killed_loader(f"loader process {killed.group(1)}", workers) from error


def killed_loader(who: str, workers: int) -> OneRankError:
    return OneRankError(
        f"{who} was killed or died, as happens when memory or /dev/shm is full; give the machine more, or set "
        f"machine.loader_workers below {workers}; the same command goes on from the last checkpoint"
    )


@contextmanager
def _expect_process_ends() -> Iterator[None]:
    """Switch off torch's SIGCHLD handler during the block, since it treats the end of a loader process as a failure."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        if handler is not None:
            signal.signal(signal.SIGCHLD, handler)


def _prepare_process(stacks: int, worker: int) -> None:
    """Ignore what asks a run to stop and may reach the whole process group: the rank decides when its workers end.

    stacks: the open file to which the process writes its stacks on SIGUSR2.
    """
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.register(signal.SIGUSR2, file=stacks)
    sys.excepthook = _except_lost_rank


def _except_lost_rank(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print no traceback if the rank died while it took a batch: its own end is reported, and this process ends too.

    The thread of multiprocessing that hands batches over reports its errors here.
    """
    if not isinstance(error, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, trace)
