"""Let rows of some batches change places until no batch has a caption twice, as far as their captions allow that."""

from __future__ import annotations

import numpy as np

from diptych.data.draws import hashes

REACH = 128
"""How far a row looks for a partner at first, in rows of its kind before and after it; each turn doubles that."""
TRIES, TRIES_OF_ALL = 2, 2**16
"""How many partners a row tries in a turn, at least, and how many all rows together."""
TURNS = 64
"""No block takes more, so its time is in proportion to its rows. Captions at random take up to 31."""


def arranged(captions: np.ndarray, kinds: np.ndarray, batch_size: int, key: int) -> np.ndarray:
    """i64[rows]: which row comes to each place, so that batches have few captions twice.

    In each turn, every row whose caption its batch has already tries some partners at random, and changes places with
    one whose batch lacks that caption. It tries partners near its own place in other batches first: a rank has the
    same places of all batches, so it goes on reading the shards that it would read anyway. A caption with more copies
    than there are batches comes to each batch; the copies that are left are in any of them.

    captions: i64[rows], of one batch after another; numbers from 0, equal for equal captions.
    kinds: i64[rows]; only rows of one kind change places.
    """
    block, neighbours = _Block(captions, batch_size), _Neighbours(kinds, batch_size)
    for turn in range(TURNS):
        rows, reach = block.movable(), min(REACH << turn, len(captions))
        if not len(rows):
            break
        tries = max(TRIES, TRIES_OF_ALL // len(rows))
        draws = hashes(np.arange(tries * len(rows)), key, turn).reshape(tries, len(rows))
        if not block.exchange(rows, neighbours.drawn(rows, draws, reach)) and reach == len(captions):
            break
    return block.order


class _Neighbours:
    """The rows of each kind, listed by their places in their batches."""

    def __init__(self, kinds: np.ndarray, batch_size: int):
        by_place = np.arange(len(kinds)).reshape(-1, batch_size).T.ravel()
        self._listed = by_place[np.argsort(kinds[by_place], kind="stable")]
        self._position = np.empty_like(self._listed)
        self._position[self._listed] = np.arange(len(kinds))
        _, numbers, sizes = np.unique(kinds, return_inverse=True, return_counts=True)
        self._size, self._first = sizes[numbers], (np.cumsum(sizes) - sizes)[numbers]

    def drawn(self, rows: np.ndarray, draws: np.ndarray, reach: int) -> np.ndarray:
        """i64[tries, rows]: rows that are listed at most `reach` before or after each of `rows`, one for each draw.

        rows: i64[rows].
        draws: u64[tries, rows].
        """
        first, size = self._first[rows], self._size[rows]
        steps = (draws % np.uint64(2 * reach)).astype(np.int64) - reach
        drawn: np.ndarray = self._listed[first + (self._position[rows] - first + steps) % size]
        return drawn


class _Block:
    """Some batches whose rows change places, so that the batches have more different captions.

    Of the rows of a batch with one caption, one keeps it there; the others are spare. No batch ever has fewer captions
    than before, and no caption is in fewer batches.
    """

    def __init__(self, captions: np.ndarray, batch_size: int):
        self.order = np.arange(len(captions))
        self._captions = captions.copy()
        self._num_captions = int(captions.max()) + 1
        self._batch = self.order // batch_size * self._num_captions
        """i64[rows]: where the counts of the row's batch begin."""
        self._counts = np.zeros(len(captions) // batch_size * self._num_captions, dtype=np.int32)
        """How often each batch has each caption."""
        self._claims = np.empty(len(self._counts) + len(captions), dtype=np.int32)
        """Which pair has each count and each place, in `_go_together`."""
        of_rows = self._batch + captions
        np.add.at(self._counts, of_rows, 1)
        several = np.flatnonzero(self._counts[of_rows] > 1)
        self._spare = np.delete(several, np.unique(of_rows[several], return_index=True)[1])
        self._is_spare = np.zeros(len(captions), dtype=bool)
        self._is_spare[self._spare] = True

    def movable(self) -> np.ndarray:
        """i64: the spare rows whose caption some batch lacks."""
        self._spare = self._spare[self._is_spare[self._spare]]
        counts = self._counts.reshape(-1, self._num_captions)[:, self._captions[self._spare]]
        self._spare = self._spare[(counts == 0).any(axis=0)]
        return self._spare

    def exchange(self, rows: np.ndarray, partners: np.ndarray) -> bool:
        """Let spare rows change places with the first of their partners that fits; False if none fits.

        rows: i64[rows], spare.
        partners: i64[tries, rows], of the same kinds.
        """
        theirs = self._captions[partners]
        fits = self._counts[self._batch[partners] + self._captions[rows]] == 0
        fits &= self._is_spare[partners] | (
            (self._counts[self._batch[partners] + theirs] == 1) & (self._counts[self._batch[rows] + theirs] == 0)
        )
        first = fits.argmax(axis=0)
        found = np.flatnonzero(fits[first, np.arange(len(rows))])
        self._exchange(rows[found], partners[first[found], found])
        return len(found) > 0

    def _exchange(self, rows: np.ndarray, partners: np.ndarray) -> None:
        """Let the pairs that fit change places, except those that do not fit together with another."""
        goes = self._go_together(rows, partners)
        rows, partners = rows[goes], partners[goes]
        both = np.concatenate([rows, partners])
        np.subtract.at(self._counts, self._batch[both] + self._captions[both], 1)
        for values in (self.order, self._captions):
            values[rows], values[partners] = values[partners], values[rows]
        come = self._batch[both] + self._captions[both]
        is_new = self._counts[come] == 0
        np.add.at(self._counts, come, 1)
        self._claims[come] = both  # the last of several rows keeps a new caption
        self._is_spare[both] = ~is_new | (self._claims[come] != both)

    def _go_together(self, rows: np.ndarray, partners: np.ndarray) -> np.ndarray:
        """bool[rows]: whether a pair has its places for itself, and is the only one to bring what it must bring.

        Of several pairs the last has all that it claims, so at least one goes.
        """
        brings = self._batch[partners] + self._captions[rows]
        returns = self._batch[rows] + self._captions[partners]
        must = np.where(self._is_spare[partners], brings, returns)
        places = len(self._counts) + rows, len(self._counts) + partners
        claimed, pairs = np.stack([*places, brings, must], axis=1), np.arange(len(rows))
        self._claims[claimed.ravel()] = np.repeat(pairs, 4)
        goes: np.ndarray = (self._claims[claimed] == pairs[:, None]).all(axis=1)
        return goes
