"""Compute which sample is in which row of which global batch, from the index, the seed and the number of samples seen.

The position in the data is one integer. Nothing depends on ranks or workers: a rank takes a contiguous slice of the
rows, in which each source has a contiguous slice of its own rows, so it reads only the shards of a few streams (see
`source_order`), and any number of ranks and workers sees the same batches. Resuming costs nothing.

A batch may contain the end of one epoch and the start of the next, so that each epoch of a source attempts every sample
exactly once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Protocol

import numpy as np

from diptych.data.proportions import shares
from diptych.data.source_order import Rows, SourceOrder

ORDER_VERSION = 3
"""Recorded in the checkpoints of a run, which goes on in the order that it was started with. 1: `earlier_order`; 2: as
3, but a rejected sample was replaced by any of its source."""

Piece = tuple[int, int, int]
"""(batch number, start, stop): the rows [start, stop) of a global batch."""


class Order(Protocol):
    """Which sample is in which row of which batch."""

    total: int
    """The number of samples."""
    fills_from_shard: bool
    """Whether a rejected sample is replaced by one of its shard, not by any of its source: a remote shard that is not
    planned would be fetched for one sample."""

    def rows(self, batch_number: int, start: int = 0, stop: int | None = None) -> Rows:
        """Rows [start, stop) of the global batch that follows batch_number * global_batch_size samples."""

    def plan(self, pieces: Sequence[Piece]) -> list[Rows]:
        """The rows of several pieces; of many small ones this takes a fraction of the time of planning each alone."""

    def source_of(self, sample: int) -> tuple[int, int]:
        """The samples [first, stop) of the source that a sample belongs to."""


class SampleOrder:
    """The order of samples in all global batches.

    counts: the number of samples in each shard, in the order of the index.
    shuffle_window: about how many consecutive samples of a stream are permuted together.
    streams: the largest number of streams of a source; None: as many as it has rows in a batch.
    sources: the number of shards of each source, in the order of the index, and its weight. By default all shards are
        one source.
    fills_from_shard: as `Order` has it; False for a run that was started with version 2.
    """

    def __init__(
        self,
        counts: np.ndarray,
        *,
        seed: int,
        global_batch_size: int,
        shuffle_window: int,
        streams: int | None = None,
        sources: Sequence[tuple[int, float]] = (),
        fills_from_shard: bool = True,
    ):
        counts = np.asarray(counts, dtype=np.int64)
        self.total = int(counts.sum())
        if self.total == 0:
            raise ValueError("the shards contain no samples; an order needs at least one")
        self.global_batch_size = global_batch_size
        self.fills_from_shard = fills_from_shard
        sources = sources or [(len(counts), 1)]
        self._shares = shares([weight for _, weight in sources], global_batch_size)
        of_source = np.split(counts, np.cumsum([num_shards for num_shards, _ in sources])[:-1])
        self._ends = np.cumsum([part.sum() for part in of_source])
        self._sources = [
            SourceOrder(part, share, (seed, number), shuffle_window=shuffle_window, streams=streams)
            for number, (part, share) in enumerate(zip(of_source, self._shares, strict=True))
        ]
        self._again = partial(
            SampleOrder,
            counts,
            seed=seed,
            global_batch_size=global_batch_size,
            shuffle_window=shuffle_window,
            streams=streams,
            sources=sources,
            fills_from_shard=fills_from_shard,
        )

    def __reduce__(self) -> tuple[object, ...]:
        """Loader processes that are not forked get a fresh one, without caches."""
        return self._again, ()

    @property
    def num_streams(self) -> int:
        return sum(source.num_streams for source in self._sources)

    def rows(self, batch_number: int, start: int = 0, stop: int | None = None) -> Rows:
        [rows] = self.plan([(batch_number, start, self.global_batch_size if stop is None else stop)])
        return rows

    def plan(self, pieces: Sequence[Piece]) -> list[Rows]:
        batch_numbers = np.array([batch_number for batch_number, _, _ in pieces])
        num_rows = np.stack([share.rows_in(batch_numbers) for share in self._shares], axis=1)
        layouts = [_layout(each, start, stop) for each, (_, start, stop) in zip(num_rows, pieces, strict=True)]
        sources, places = (np.concatenate(part) for part in zip(*layouts, strict=True))
        lengths = [stop - start for _, start, stop in pieces]
        batch_numbers = np.repeat(batch_numbers, lengths)
        epochs, samples = np.empty((2, len(places)), dtype=np.int64)
        for number in np.unique(sources).tolist():
            chosen = sources == number
            rows = self._sources[number].rows(batch_numbers[chosen], places[chosen])
            epochs[chosen] = rows.epochs
            samples[chosen] = rows.samples + (self._ends[number] - self._sources[number].total)
        ends = np.cumsum(lengths)[:-1]
        return list(map(Rows, np.split(epochs, ends), np.split(samples, ends)))

    def source_of(self, sample: int) -> tuple[int, int]:
        """The samples [first, stop) of the source that a sample belongs to."""
        number = int(np.searchsorted(self._ends, sample, side="right"))
        return int(self._ends[number]) - self._sources[number].total, int(self._ends[number])


def _layout(num_rows: np.ndarray, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """The source of each of the rows [start, stop) of a batch, and which of the source's rows it is.

    Each source is spread evenly over the batch: its row p of n comes in order of (p + 0.5) / n.

    num_rows: i64[sources], of each source in the batch.
    """
    # Before a row with (p + 0.5) / n = x come x times the rows of each source, give or take a half. So it is row x * N
    # of the batch's N, give or take half a row for each source, and only rows with x between (start - margin) / N and
    # (stop + margin) / N can be among those asked for. - 1 and + 2 make up for the 0.5 and for rounding down.
    margin = len(num_rows)
    firsts = np.maximum(0, num_rows * (start - margin) // num_rows.sum() - 1)
    lasts = np.minimum(num_rows, num_rows * (stop + margin) // num_rows.sum() + 2)
    places = np.concatenate([np.arange(first, last) for first, last in zip(firsts, lasts, strict=True)])
    sources = np.repeat(np.arange(len(num_rows)), lasts - firsts)
    order = np.argsort((places + 0.5) / num_rows[sources], kind="stable")[start - firsts.sum() : stop - firsts.sum()]
    return sources[order], places[order]
