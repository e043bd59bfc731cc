"""The order of the samples of one source of the training data, from its shards, a key and the batch's number.

An epoch lists the shards one after another in a shuffled order and cuts that list into *streams*, as many as the source
has rows in a batch, if the epoch is long enough. Stream s fills a fixed, contiguous range of the source's rows, and
permutes its samples within windows of consecutive ones. The windows of neighbouring streams end at different times, so
that a rank goes on to new shards one by one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from diptych.data.draws import SPLITMIX64_STEP, hashes, permutation, permuted
from diptych.data.proportions import Share


@dataclass(frozen=True)
class Rows:
    """Some rows of one global batch."""

    epochs: np.ndarray  # i64[rows], of the source of each sample
    samples: np.ndarray  # i64[rows], numbers in the index: 0 <= sample < total


@dataclass(frozen=True)
class _Epoch:
    """How an epoch's list of shards is cut into streams."""

    starts: np.ndarray  # i64[streams], how many turns each stream had in earlier epochs
    lengths: np.ndarray  # i64[streams], turns in this epoch
    firsts: np.ndarray  # i64[streams], the position in the list where each stream starts
    shards: np.ndarray  # i64[shards], in the order of the list
    ends: np.ndarray  # i64[shards], the position where each shard of the list ends


class SourceOrder:
    """The order of samples within one source.

    counts: the number of samples in each of its shards.
    share: which rows of each batch it fills.
    key: the seed, and what else tells this order from others.
    shuffle_window: about how many consecutive samples of a stream are permuted together.
    streams: the largest number of streams; None: as many as it has rows in a batch.
    """

    def __init__(
        self, counts: np.ndarray, share: Share, key: tuple[int, ...], *, shuffle_window: int, streams: int | None
    ):
        self.total = int(counts.sum())
        # A stream shorter than a window would shuffle less than the window promises.
        most = max(1, min(share.fewest, self.total // shuffle_window))
        self.num_streams = most if streams is None else min(most, streams)
        self._counts = counts
        self._firsts = np.cumsum(counts) - counts
        self._share = share
        self._key = key
        self._window = shuffle_window
        self._epoch = lru_cache(maxsize=4)(self._make_epoch)

    def rows(self, batch_numbers: np.ndarray, places: np.ndarray) -> Rows:
        """The samples in some of the source's rows of some batches.

        batch_numbers: i64[rows], the batch of each row.
        places: i64[rows], counted among the rows that the source has in that batch.
        """
        firsts, num_rows = self._share.before(batch_numbers), self._share.rows_in(batch_numbers)
        streams = places * self.num_streams // num_rows
        turns = self._turns_before(firsts, streams) + places - self._stretches(streams, num_rows)[0]
        epochs = (firsts + places) // self.total
        samples = np.empty(len(places), dtype=np.int64)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            samples[chosen] = self._samples(epoch, streams[chosen], turns[chosen])
        return Rows(epochs, samples)

    def _stretches(self, streams: np.ndarray, num_rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """i64: where the rows of each stream begin among the `num_rows` of the source in a batch, and their number."""
        firsts = -(-streams * num_rows // self.num_streams)
        return firsts, -(-(streams + 1) * num_rows // self.num_streams) - firsts

    def _turns_before(self, rows: np.ndarray, streams: np.ndarray) -> np.ndarray:
        """i64: how many of the source's rows before each of these belong to the stream."""
        share = self._share
        batches = share.batches_of(rows)
        before = share.before(batches)
        large = before - batches * share.fewest  # batches with one row more than the fewest
        firsts, counts = self._stretches(streams, share.rows_in(batches))
        _, of_small = self._stretches(streams, np.array(share.fewest))
        _, of_large = self._stretches(streams, np.array(share.fewest + 1))
        turns: np.ndarray = of_small * (batches - large) + of_large * large + np.clip(rows - before - firsts, 0, counts)
        return turns

    def _make_epoch(self, epoch: int) -> _Epoch:
        streams = np.arange(self.num_streams)
        starts = self._turns_before(np.array(epoch * self.total), streams)
        lengths = self._turns_before(np.array((epoch + 1) * self.total), streams) - starts
        shards = permutation(len(self._counts), *self._key, epoch)
        return _Epoch(starts, lengths, np.cumsum(lengths) - lengths, shards, np.cumsum(self._counts[shards]))

    def _samples(self, epoch: int, streams: np.ndarray, turns: np.ndarray) -> np.ndarray:
        """The samples of some turns of streams, all in `epoch`."""
        plan = self._epoch(epoch)
        turns, lengths = turns - plan.starts[streams], plan.lengths[streams]
        windows = np.maximum(1, lengths // self._window)
        sizes = lengths // windows
        # Parts of a window by which the windows of each stream are shifted; multiples of the golden ratio spread them.
        parts = streams.astype(np.uint64) * SPLITMIX64_STEP >> np.uint64(40)
        shifts = (parts.astype(np.int64) * sizes) >> 24
        window = np.minimum((turns + shifts) // np.maximum(1, sizes), windows - 1)
        starts = np.where(window == 0, 0, window * sizes - shifts)
        stops = np.where(window == windows - 1, lengths, (window + 1) * sizes - shifts)
        keys = hashes((streams << 40) + window, *self._key, epoch)
        positions = plan.firsts[streams] + starts + permuted(turns - starts, stops - starts, keys)
        place = np.searchsorted(plan.ends, positions, side="right")
        shards = plan.shards[place]
        samples: np.ndarray = self._firsts[shards] + positions - (plan.ends[place] - self._counts[shards])
        return samples
