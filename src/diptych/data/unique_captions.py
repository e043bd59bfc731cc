"""Rearrange the samples of neighbouring batches so that no batch has a caption twice.

Two pairs with one caption are negatives of one another although either picture fits either caption (paper, section 2.3:
the loss knows one positive for each). Crawls repeat captions, and small data sets have few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from diptych.daemon_threads import in_threads
from diptych.data.caption_exchange import arranged
from diptych.data.draws import hashes
from diptych.data.order import Order, Piece
from diptych.data.shard_list import METADATA_THREADS
from diptych.data.shards import ShardIndex
from diptych.data.source_order import Rows
from diptych.errors import UserError
from diptych.files import committed

BLOCK_BATCHES = 16
"""Batches that exchange samples. If a caption has more copies in a block than that, each batch has it once, and the
copies that are left are in any of them."""


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

    def __reduce__(self) -> tuple[object, ...]:
        """Loader processes get a fresh one, without caches; hashes that are mapped from a file are mapped again."""
        captions = getattr(self._captions, "filename", None) or self._captions
        return _opened, (self._order, self._size, captions, self._source_numbers)

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


def _opened(
    order: Order, size: int, captions: np.ndarray | Path, source_numbers: Callable[[np.ndarray], np.ndarray]
) -> UniqueCaptions:
    hashes = captions if isinstance(captions, np.ndarray) else np.load(captions, mmap_mode="r")
    return UniqueCaptions(order, size, hashes, source_numbers)


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
