"""The order of runs that were started before batches were drawn from as many streams as they have rows.

Such a run goes on in this order: its checkpoints have no `order`, or `order` 1. An epoch lists the shards one after
another in a shuffled order and cuts that list into at most 64 *streams*. Stream s fills a fixed, contiguous range of
every batch's rows, and permutes its samples within windows of consecutive ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial

import numpy as np

from diptych.data.draws import permutation
from diptych.data.order import Piece
from diptych.data.source_order import Rows

MAX_STREAMS = 64


class EarlierSampleOrder:
    """The samples of all global batches, in the order of version 1.

    counts: the number of samples in each shard, in the order of the index.
    shuffle_window: how many consecutive samples of a stream are permuted together.
    """

    fills_from_shard = False

    def __init__(self, counts: np.ndarray, *, seed: int, global_batch_size: int, shuffle_window: int):
        self.total = int(np.sum(counts))
        if self.total == 0:
            raise ValueError("the shards contain no samples; an order needs at least one")
        self.global_batch_size = global_batch_size
        # A stream shorter than a window would shuffle less than the window promises.
        self.num_streams = max(1, min(MAX_STREAMS, global_batch_size, self.total // shuffle_window))
        # Stream widths differ by at most one row, so that any batch size is mixed from all streams.
        edges = -(-np.arange(self.num_streams + 1) * global_batch_size // self.num_streams)
        self._first_rows, self._widths = edges[:-1].tolist(), np.diff(edges).tolist()
        self._counts = np.asarray(counts, dtype=np.int64)
        self._firsts: np.ndarray = np.concatenate([[0], np.cumsum(self._counts)[:-1]])
        self._seed = seed
        self._window = shuffle_window
        # Each batch needs the current window of every stream, and sometimes the next one.
        self._permutation = lru_cache(maxsize=4 * MAX_STREAMS)(self._make_permutation)
        self._shards_of_epoch = lru_cache(maxsize=4)(self._make_shards_of_epoch)

    def __reduce__(self) -> tuple[object, ...]:
        """Loader processes that are not forked get a fresh one, without caches."""
        again = partial(
            EarlierSampleOrder, seed=self._seed, global_batch_size=self.global_batch_size, shuffle_window=self._window
        )
        return again, (self._counts,)

    def rows(self, batch_number: int, start: int = 0, stop: int | None = None) -> Rows:
        """Rows [start, stop) of the global batch that follows batch_number * global_batch_size samples."""
        stop = self.global_batch_size if stop is None else stop
        attempts = batch_number * self.global_batch_size + np.arange(start, stop, dtype=np.int64)
        epochs = attempts // self.total
        samples = np.empty(len(attempts), dtype=np.int64)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            samples[chosen] = self._samples_of(int(epoch), attempts[chosen])
        return Rows(epochs, samples)

    def plan(self, pieces: Sequence[Piece]) -> list[Rows]:
        return [self.rows(*piece) for piece in pieces]

    def source_of(self, sample: int) -> tuple[int, int]:
        """All samples: there are no sources in this order."""
        return 0, self.total

    def _samples_of(self, epoch: int, attempts: np.ndarray) -> np.ndarray:
        """The samples of attempts, all in `epoch`; an attempt is a row's number counted from the start of the run."""
        streams = attempts % self.global_batch_size * self.num_streams // self.global_batch_size
        samples = np.empty(len(attempts), dtype=np.int64)
        for stream in np.unique(streams):
            chosen = streams == stream
            start = self._attempts_before(epoch * self.total, int(stream))
            stop = self._attempts_before((epoch + 1) * self.total, int(stream))
            turns = self._turns(attempts[chosen], int(stream)) - start
            positions = self._stream_first(epoch, int(stream)) + self._permute(epoch, int(stream), turns, stop - start)
            samples[chosen] = self._sample_at(epoch, positions)
        return samples

    def _attempts_before(self, attempt: int, stream: int) -> int:
        """How many of the run's first `attempt` attempts belong to the stream."""
        width = self._widths[stream]
        batches, row = divmod(attempt, self.global_batch_size)
        return int(batches * width + min(max(row - self._first_rows[stream], 0), width))

    def _turns(self, attempts: np.ndarray, stream: int) -> np.ndarray:
        """For each attempt of the stream, how many attempts of the stream come before it."""
        batches, rows = np.divmod(attempts, self.global_batch_size)
        turns: np.ndarray = batches * self._widths[stream] + rows - self._first_rows[stream]
        return turns

    def _stream_first(self, epoch: int, stream: int) -> int:
        """The position in the epoch's list of samples where the stream starts."""
        begin, end = epoch * self.total, (epoch + 1) * self.total
        return sum(self._attempts_before(end, s) - self._attempts_before(begin, s) for s in range(stream))

    def _permute(self, epoch: int, stream: int, turns: np.ndarray, length: int) -> np.ndarray:
        windows, places = np.divmod(turns, self._window)
        permuted = np.empty_like(turns)
        for window in np.unique(windows):
            chosen = windows == window
            size = min(self._window, length - int(window) * self._window)
            permutation = self._permutation(epoch, stream, int(window), size)
            permuted[chosen] = window * self._window + permutation[places[chosen]]
        return permuted

    def _make_permutation(self, epoch: int, stream: int, window: int, size: int) -> np.ndarray:
        return permutation(size, self._seed, epoch, stream, window)

    def _make_shards_of_epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The shards in this epoch's order, and where each ends in the epoch's list."""
        shards = permutation(len(self._counts), self._seed, epoch)
        return shards, np.cumsum(self._counts[shards])

    def _sample_at(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        shards, ends = self._shards_of_epoch(epoch)
        turn = np.searchsorted(ends, positions, side="right")
        samples: np.ndarray = self._firsts[shards[turn]] + positions - (ends[turn] - self._counts[shards[turn]])
        return samples
