"""Rearrange the samples of neighbouring batches so that no batch has a caption twice.

Two pairs with one caption are negatives of one another although either picture fits either caption (paper, section 2.3:
the loss knows one positive for each). Crawls repeat captions, and small data sets have few.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from diptych.daemon_threads import in_threads
from diptych.data.draws import hashes
from diptych.data.order import Order, Piece
from diptych.data.shard_list import METADATA_THREADS
from diptych.data.shards import ShardIndex
from diptych.data.source_order import Rows
from diptych.errors import UserError
from diptych.files import committed

BLOCK_BATCHES = 16
"""Batches that exchange samples. A caption that this many batches contain together stays once in each, and what is left
of it stays where it is."""
DRAWS = 64
"""Partners that are tried at random for a sample before the whole block is searched."""


class UniqueCaptions:
    """An order in which a batch has no caption twice, if the batches of its block allow it.

    Blocks of BLOCK_BATCHES batches are arranged each by itself, so that everything is still a function of the batch's
    number. Samples only change places with others of their source and their epoch: each batch keeps its proportions,
    and each epoch attempts every sample as often as before.

    order: the order to rearrange.
    captions: u64, for each sample a hash of its caption.
    source_numbers: samples → the number of the source of each.
    """

    def __init__(
        self,
        order: Order,
        global_batch_size: int,
        captions: np.ndarray,
        source_numbers: Callable[[np.ndarray], np.ndarray],
    ):
        self.total = order.total
        self.fills_from_shard = order.fills_from_shard
        self._order = order
        self._size = global_batch_size
        self._captions = captions
        self._source_numbers = source_numbers
        self._block = lru_cache(maxsize=2)(self._make_block)
        self._again = partial(UniqueCaptions, order, global_batch_size, captions, source_numbers)

    def __reduce__(self) -> tuple[object, ...]:
        """Loader processes that are not forked get a fresh one, without caches."""
        return self._again, ()

    def rows(self, batch_number: int, start: int = 0, stop: int | None = None) -> Rows:
        """Rows [start, stop) of a global batch."""
        block, place = divmod(batch_number, BLOCK_BATCHES)
        rows = self._block(block)
        chosen = slice(place * self._size + start, place * self._size + (self._size if stop is None else stop))
        return Rows(rows.epochs[chosen], rows.samples[chosen])

    def plan(self, pieces: Sequence[Piece]) -> list[Rows]:
        return [self.rows(*piece) for piece in pieces]

    def source_of(self, sample: int) -> tuple[int, int]:
        return self._order.source_of(sample)

    def _make_block(self, number: int) -> Rows:
        first = number * BLOCK_BATCHES
        parts = self._order.plan([(batch, 0, self._size) for batch in range(first, first + BLOCK_BATCHES)])
        epochs = np.concatenate([part.epochs for part in parts])
        samples = np.concatenate([part.samples for part in parts])
        _, captions = np.unique(self._captions[samples], return_inverse=True)
        kinds = self._source_numbers(samples) * (epochs.max() + 1) + epochs
        chosen = arranged(captions, kinds, self._size, number)
        return Rows(epochs[chosen], samples[chosen])


def arranged(captions: np.ndarray, kinds: np.ndarray, batch_size: int, key: int) -> np.ndarray:
    """i64[rows]: which row of a block comes to each place, so that its batches have few captions twice.

    captions: i64[rows], numbers from 0, equal for equal captions.
    kinds: i64[rows]; only rows of one kind change places.
    """
    total = len(captions)
    order, captions = np.arange(total), captions.copy()
    batches = order // batch_size
    in_batches = batches * (captions.max() + 1) + captions
    times = np.bincount(in_batches, minlength=(batches[-1] + 1) * (captions.max() + 1)).reshape(batches[-1] + 1, -1)
    in_order = np.argsort(in_batches, kind="stable")
    is_repeated = np.r_[False, np.diff(in_batches[in_order]) == 0]
    for row in np.sort(in_order[is_repeated]).tolist():
        batch, caption = batches[row], captions[row]
        if times[batch, caption] == 1 or times[:, caption].all():
            continue
        for partners in _partners(row, total, key):
            fits = kinds[partners] == kinds[row]
            fits &= (times[batches[partners], caption] == 0) & (times[batch, captions[partners]] == 0)
            if fits.any():
                other = int(partners[fits.argmax()])
                for place, change in ((row, -1), (other, -1)):
                    times[batches[place], captions[place]] += change
                order[[row, other]], captions[[row, other]] = order[[other, row]], captions[[other, row]]
                for place in (row, other):
                    times[batches[place], captions[place]] += 1
                break
    return order


def _partners(row: int, total: int, key: int) -> Iterator[np.ndarray]:
    """i64: some rows at random, then all, from the row on."""
    yield (hashes(np.arange(DRAWS), key, row) % np.uint64(total)).astype(np.int64)
    yield np.roll(np.arange(total), -row)


def caption_hashes(index: ShardIndex, folder: Path) -> np.ndarray:
    """u64[samples]: the hash of each sample's `.txt`; where there is none, a number of its own.

    It is read from the index files once, about a millisecond for 10,000 samples, and kept in the folder, which all
    ranks share: 8 bytes a sample, which each process maps into its memory. Index files of remote shards are fetched
    several at a time.

    Raises:
        UserError: no sample has a `.txt`.
    """
    path = folder / f"caption_hashes.{index.fingerprint[:16]}.npy"
    if not path.exists():
        of_shard = partial(index.sample_hashes, suffix="txt")
        found = np.concatenate([*in_threads(of_shard, range(len(index.shards)), METADATA_THREADS, "caption-hashes")])
        missing = np.flatnonzero(found == 0)
        if len(missing) == len(found):
            suffixes = next(index.samples()).suffixes
            raise UserError(
                f"data.unique_captions_in_batch compares the .txt of samples, and those of data.train have only "
                f"{', '.join(suffixes)}; write captions as .txt, or leave it out"
            )
        found[missing] = hashes(missing)
        with committed(path) as partial_path, partial_path.open("wb") as file:
            np.save(file, found)
    hashes_of_all: np.ndarray = np.load(path, mmap_mode="r")
    return hashes_of_all
