"""Load batches from shards with a webdataset pipeline; `batches` shows the whole of it.

Members are read by offset in the order that `order.py` plans, so there is no shuffle buffer and no worker state: worker
w of n builds the pieces p ≡ w (mod n), and any number of ranks and workers gives the same batches. A piece is a whole
batch, or a part of a large one that is small enough for shared memory.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Generator, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from itertools import islice, takewhile
from typing import Any

import numpy as np
import torch
import webdataset as wds
from webdataset.tariterators import group_by_keys

from diptych.data.batch import Batch, Reject
from diptych.data.decoder import Decoder, Picked, Row
from diptych.data.loader_processes import LoaderProcesses, killed_loader
from diptych.data.order import Order
from diptych.data.sample_reader import MAX_FILLERS, SampleReader, members_of, pieces_of
from diptych.data.shard_index_file import ShardError
from diptych.data.shards import ShardIndex
from diptych.data.tokenizer import Tokenizer

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

    def __call__(self, rows: Iterator[Row]) -> Iterator[Batch]:
        for batch_number, start, stop in self._source.pieces():
            yield self._piece(islice(rows, stop - start), stop - start, batch_number)

    def _piece(self, rows: Iterator[Row], num_rows: int, batch_number: int) -> Batch:
        size = self._decode.image_of(batch_number).image_size
        length = self._decode.context_length_of(batch_number) or self._context_length
        rejects: list[Reject] = []
        captions: list[str] = []
        samples = np.empty(num_rows, dtype=np.int64)
        images = np.empty((num_rows, size, size, 3), dtype=np.uint8).transpose(0, 3, 1, 2)
        for place, row in enumerate(rows):
            filled = self._filled(row, rejects)
            assert filled.image is not None
            images[place] = filled.image
            captions.append(filled.caption)
            samples[place] = filled.picked.sample
        tokens, lengths = self._tokenizer(captions, length)
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
    processes: LoaderProcesses,
    pin_memory: bool = False,
) -> Generator[Batch, None, None]:
    """Yield the rows [start, stop) given by `rows` of each of the global batches [first, stop).

    The processes begin now, not with the first batch. Closing the generator ends them.
    """
    source = SampleReader(index, order, rows, first, stop)
    pipeline = wds.DataPipeline(
        source,
        group_by_keys,
        wds.map(decode),
        RowsIntoPieces(source, decode, tokenizer, context_length),
        _errors_as_items,
    )
    return _whole_batches(processes, _raise_errors(processes.run(pipeline)), rows, pin_memory)


def _whole_batches(
    processes: LoaderProcesses, pieces: Generator[Batch, None, None], rows: tuple[int, int], pin_memory: bool
) -> Generator[Batch, None, None]:
    thread = ThreadPoolExecutor(1, thread_name_prefix="batches")
    is_ready = len(pieces_of(rows)) == 1 and not pin_memory
    try:
        yield from pieces if is_ready else _joined(pieces, rows, pin_memory, thread)
    except (ConnectionError, EOFError) as error:  # a loader process died while it sent a batch
        raise killed_loader("a loader process", processes.number) from error
    finally:
        processes.close()
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
