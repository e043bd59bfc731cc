"""Read the members of the samples that a loader process builds its batches from, in the order that is planned."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from copy import copy
from itertools import islice, pairwise
from typing import Any

import numpy as np
from torch.utils.data import IterableDataset, get_worker_info

from diptych.data.decoder import Picked
from diptych.data.draws import hashes
from diptych.data.order import Order, Piece
from diptych.data.shard_index_file import ShardError, UnreachableShardError
from diptych.data.shards import ShardIndex
from diptych.data.shards_ahead import SAMPLES_AHEAD, shards_ahead
from diptych.data.source_order import Rows

MAX_PIECE_ROWS = 512
"""512 pictures of 224 pixels take 77 MB. If a batch of 32,768 pairs were one piece, the pieces that a worker holds
ready would take 10 GB of /dev/shm."""
PLANNED_ROWS = 4096
"""Rows that are planned together: a row takes less than a microsecond then, and 7 if it is one of 128."""
MAX_FILLERS = 100
"""How many samples are tried in place of a rejected one before the shards are considered unusable."""
SHARD_FILLERS = 10
"""How many of them are of the same shard, which is at hand; if they are rejected too, the shard may be damaged."""


class SampleReader(IterableDataset[dict[str, Any]]):
    """The planned members of this worker's batches, read by offset, checked against the index."""

    def __init__(self, index: ShardIndex, order: Order, rows: tuple[int, int], first: int, stop: int):
        self.index = index
        self._order = order
        self._rows = rows
        self._first = first
        self._stop = stop
        self._last_batch: tuple[int, frozenset[int]] = (-1, frozenset())

    def pieces(self) -> Iterator[Piece]:
        """The pieces that this worker builds."""
        worker = get_worker_info()
        offset, stride = (worker.id, worker.num_workers) if worker else (0, 1)
        of_a_batch = pieces_of(self._rows)
        for piece in range(self._first * len(of_a_batch) + offset, self._stop * len(of_a_batch), stride):
            batch_number, place = divmod(piece, len(of_a_batch))
            yield batch_number, *of_a_batch[place]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """Yield members as webdataset's tar expander would; `{}` ends a sample, since two samples may have one key."""
        first, last = self._rows
        pieces_ahead = SAMPLES_AHEAD // max(1, min(last - first, MAX_PIECE_ROWS))
        worker = get_worker_info()
        processes = worker.num_workers if worker else 1
        with shards_ahead(self.index, self._shards_of_pieces(), pieces_ahead, processes) as begin_piece:
            for batch_number, planned in self._announced():
                begin_piece()
                for sample, epoch in zip(planned.samples.tolist(), planned.epochs.tolist(), strict=True):
                    yield from members_of(self.index, Picked(sample, epoch, batch_number))
                    yield {}

    def _shards_of_pieces(self) -> Iterator[list[int]]:
        """The shards that each piece of this worker needs, in the order in which it reads them."""
        for _, planned in self._planned(copy(self._order)):  # whose caches serve another part of the plan
            shards, _ = self.index.locate_many(planned.samples)
            yield list(dict.fromkeys(shards.tolist()))

    def _announced(self) -> Iterator[tuple[int, Rows]]:
        """Batch number and rows of each piece; the disk fetches the next piece's samples while this one is decoded."""
        ahead: list[tuple[int, Rows]] = []
        for batch_number, planned in self._planned(self._order):
            ahead.append((batch_number, planned))
            self.index.announce(planned.samples)
            if len(ahead) == 2:
                yield ahead.pop(0)
        yield from ahead

    def _planned(self, order: Order) -> Iterator[tuple[int, Rows]]:
        """Batch number and rows of each piece."""
        start, stop = self._rows
        together = PLANNED_ROWS // max(1, min(stop - start, MAX_PIECE_ROWS))
        pieces = self.pieces()
        while some := list(islice(pieces, together)):
            for (batch_number, _, _), planned in zip(some, order.plan(some), strict=True):
                yield batch_number, planned

    def take_counts(self) -> Counter[str]:
        """What was read since the last call."""
        taken = Counter(self.index.counts_of_reads)
        self.index.counts_of_reads.clear()
        return taken

    def filler(self, picked: Picked, attempt: int) -> Picked:
        """Choose a sample to replace a rejected one: the same on all ranks, outside the batch if possible.

        It is one of the same shard, then of the same source.
        """
        batch = self._samples_of(picked.batch_number)
        keys = np.arange(attempt * MAX_FILLERS, (attempt + 1) * MAX_FILLERS)
        drawn = hashes(keys, picked.sample, picked.batch_number, 2)
        ranges = [self._order.source_of(picked.sample)]
        if self._order.fills_from_shard and attempt < SHARD_FILLERS:
            shard, row = self.index.locate(picked.sample)
            ranges.insert(0, (picked.sample - row, picked.sample - row + int(self.index.counts[shard])))
        for first, stop in ranges:
            samples = (drawn % np.uint64(stop - first) + np.uint64(first)).tolist()
            chosen = next((sample for sample in samples if sample not in batch), None)
            if chosen is not None:
                break
        return Picked(samples[0] if chosen is None else chosen, picked.epoch, picked.batch_number)

    def _samples_of(self, batch_number: int) -> frozenset[int]:
        """The samples of a global batch; those of the last one asked for are kept, since rejects come together."""
        if self._last_batch[0] != batch_number:
            self._last_batch = batch_number, frozenset(self._order.rows(batch_number).samples.tolist())
        return self._last_batch[1]


def members_of(index: ShardIndex, picked: Picked) -> Iterator[dict[str, Any]]:
    """Yield the members of one sample, after an extra member `picked` with its place in the run."""
    shard_number, row = index.locate(picked.sample)
    key = f"row-{row}"  # used if even the key cannot be read
    try:
        sample = index.sample(shard_number, row)
        key = sample.key
        parts: dict[str, Any] = dict(index.read(sample))
    except UnreachableShardError:
        raise
    except (ShardError, OSError) as error:
        parts = {"damaged": str(error)}
    shard = os.path.basename(index.shards.paths[shard_number])
    for suffix, data in {"picked": picked, **parts}.items():
        yield {"fname": f"{key}.{suffix}", "data": data, "__url__": shard}


def pieces_of(rows: tuple[int, int]) -> list[tuple[int, int]]:
    """Split the rows of a batch into the fewest pieces of at most MAX_PIECE_ROWS, of nearly equal size."""
    start, stop = rows
    number = -(-(stop - start) // MAX_PIECE_ROWS)
    return list(pairwise(start + piece * (stop - start) // number for piece in range(number + 1)))
