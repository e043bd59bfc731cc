"""Load batches from shards with a webdataset pipeline; `batches` shows the whole of it.

Members are read by offset in the order that `order.py` plans, so there is no shuffle buffer and no worker state: worker
w of n builds the pieces p ≡ w (mod n), and any number of ranks and workers gives the same batches. A piece is a whole
batch, or a part of a large one that is small enough for shared memory.
"""

from __future__ import annotations

import multiprocessing
import re
import signal
import sys
import threading
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from itertools import islice, takewhile
from types import TracebackType
from typing import Any

import numpy as np
import torch
import webdataset as wds
from torch.utils.data import DataLoader
from webdataset.tariterators import group_by_keys

from diptych.data.batch import Batch, Reject
from diptych.data.decoder import Decoder, Picked, Row
from diptych.data.order import Order
from diptych.data.sample_reader import MAX_FILLERS, SampleReader, members_of, pieces_of
from diptych.data.shard_cache import OPEN_FILES
from diptych.data.shard_index_file import ShardError
from diptych.data.shards import ShardIndex
from diptych.data.tokenizer import Tokenizer
from diptych.errors import OneRankError
from diptych.machine import allow_open_files

PREFETCHED_PIECES = 2
"""Finished pieces that a worker holds ready."""
LAST_PIECE_SECONDS = 5
"""How long the loader waits when it is closed for the unused piece that is being built."""


def read_sample(index: ShardIndex, picked: Picked) -> dict[str, Any]:
    """All members of one sample, as a Decoder takes them."""
    members: dict[str, Any] = next(group_by_keys(members_of(index, picked)))
    return members


class RowsIntoPieces:
    """Collects rows into pieces of batches; replaces rejected samples, and records them as the piece's rejects."""

    def __init__(self, source: SampleReader, decode: Decoder, tokenizer: Tokenizer, context_length: int):
        self._source = source
        self._decode = decode
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._image_size = decode.image_size

    def __call__(self, rows: Iterator[Row]) -> Iterator[Batch]:
        for _, start, stop in self._source.pieces():
            yield self._piece(islice(rows, stop - start), stop - start)

    def _piece(self, rows: Iterator[Row], num_rows: int) -> Batch:
        rejects: list[Reject] = []
        captions: list[str] = []
        samples = np.empty(num_rows, dtype=np.int64)
        images = np.empty((num_rows, 3, self._image_size, self._image_size), dtype=np.uint8)
        for place, row in enumerate(rows):
            filled = self._filled(row, rejects)
            assert filled.image is not None
            images[place] = filled.image
            captions.append(filled.caption)
            samples[place] = filled.picked.sample
        tokens, lengths = self._tokenizer(captions, self._context_length)
        as_tensor = torch.from_numpy
        reads = self._source.take_counts()
        return Batch(as_tensor(images), as_tensor(tokens), as_tensor(lengths), samples, tuple(rejects), reads)

    def _filled(self, row: Row, rejects: list[Reject]) -> Row:
        planned = row.picked
        reasons: Counter[str] = Counter()
        for attempt in range(MAX_FILLERS):
            if row.reason is None:
                return row
            if attempt == 0:
                rejects.append(Reject(planned.sample, row.shard, row.key, row.reason))
            reasons[row.reason] += 1
            row = self._decode(read_sample(self._source.index, self._source.filler(planned, attempt)))
        table = ", ".join(f"{reason} {number}" for reason, number in reasons.most_common())
        raise ShardError(
            f"{row.shard}: sample {row.key} was rejected ({row.reason}), and so were {MAX_FILLERS - 1} others that "
            f"were drawn in its place ({table}); the shards contain next to nothing that can be trained on"
        )


def batches(
    index: ShardIndex,
    order: Order,
    decode: Decoder,
    tokenizer: Tokenizer,
    *,
    context_length: int,
    rows: tuple[int, int],
    first: int,
    stop: int,
    workers: int,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """Yield the rows [start, stop) given by `rows` of each of the global batches [first, stop).

    workers: the number of loader processes; 0 loads in this process. They start now, not with the first batch. Closing
        the generator ends them.
    """
    allow_open_files(OPEN_FILES)
    source = SampleReader(index, order, rows, first, stop)
    pipeline = wds.DataPipeline(
        source,
        group_by_keys,
        wds.map(decode),
        RowsIntoPieces(source, decode, tokenizer, context_length),
        _errors_as_items,
    )
    others = set(multiprocessing.active_children())
    loader: DataLoader[Batch] = DataLoader(  # wds.WebLoader starts its processes with the first batch
        pipeline,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=PREFETCHED_PIECES if workers else None,
        worker_init_fn=_prepare_process if workers else None,
        pin_memory=pin_memory and len(pieces_of(rows)) == 1,
    )
    started = _whole_batches(loader, others, workers, rows, pin_memory)
    next(started)  # starts the processes
    return started


def _whole_batches(
    loader: DataLoader[Batch], others: set[Any], workers: int, rows: tuple[int, int], pin_memory: bool
) -> Generator[Any, None, None]:
    """Start the loader processes and yield None, then yield the batches.

    others: the processes of this one that were started before.
    """
    pieces = _raise_errors(iter(loader))
    thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
    try:
        yield None
        yield from pieces if len(pieces_of(rows)) == 1 else _joined(pieces, rows, pin_memory, thread)
    except (ConnectionError, EOFError) as error:  # a loader process died while it sent a batch
        raise _killed("a loader process", workers) from error
    finally:
        # Loader processes ignore SIGTERM, so that they live until a stop has saved; they must be killed here.
        with _expect_process_ends():
            for process in set(multiprocessing.active_children()) - others:
                process.kill()
                process.join()
            thread.shutdown()
            pieces.close()


def _joined(
    pieces: Iterator[Batch], rows: tuple[int, int], pin_memory: bool, thread: ThreadPoolExecutor
) -> Iterator[Batch]:
    """Join pieces into whole batches; while one is used, the thread joins the next, so few pieces wait in memory."""
    sizes = [stop - start for start, stop in pieces_of(rows)]
    is_over = threading.Event()

    def join() -> Batch | None:
        wanted = takewhile(lambda _: not is_over.is_set(), islice(pieces, len(sizes)))
        return Batch.joined(wanted, sum(sizes), pin_memory=pin_memory)

    coming = thread.submit(join)
    try:
        while (batch := coming.result()) is not None:
            coming = thread.submit(join)
            yield batch
    finally:
        # If the loader processes were killed while the thread waits for a piece, it would wait five seconds.
        is_over.set()
        wait([coming], LAST_PIECE_SECONDS)


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
        raise _killed(f"loader process {killed.group(1)}", workers) from error


def _killed(who: str, workers: int) -> OneRankError:
    return OneRankError(
        f"{who} was killed or died, as happens when memory or /dev/shm is full; give the machine more, or set "
        f"machine.loader_workers below {workers}; the same command goes on from the last checkpoint"
    )


def _errors_as_items(batches: Iterator[Batch]) -> Iterator[Batch | ShardError]:
    """Yield a ShardError as the last item: raised in a loader process, its message would be buried in a traceback."""
    try:
        yield from batches
    except ShardError as error:
        yield error


def _raise_errors(batches: Iterator[Batch | ShardError]) -> Generator[Batch, None, None]:
    for batch in batches:
        if isinstance(batch, ShardError):
            raise ShardError(str(batch))
        yield batch


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


def _prepare_process(worker: int) -> None:
    """Ignore Ctrl-C and SIGTERM, which reach the whole process group: the rank decides when its workers end."""
    torch.set_num_threads(1)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    sys.excepthook = _except_lost_rank


def _except_lost_rank(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print no traceback if the rank died while it took a batch: its own end is reported, and this process ends too.

    The thread of multiprocessing that hands batches over reports its errors here.
    """
    if not isinstance(error, ConnectionError):
        sys.__excepthook__(kind, error, trace)
