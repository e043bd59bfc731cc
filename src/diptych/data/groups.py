"""Groups of samples that are alike, and the order of samples that they give.

A file of groups gives each sample of the training data the number of its group; groups with neighbouring numbers are
alike. `diptych cluster` writes one from a model's embeddings:

    groups   i32[samples]   the group of each sample, from 0, in the order of the index
    data     str            the fingerprint of the shards
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from diptych.data.draws import hash_of, hashes, permuted
from diptych.data.order import Piece
from diptych.data.shards import ShardIndex
from diptych.data.source_order import Rows
from diptych.errors import UserError
from diptych.files import committed
from diptych.terminal import counted

WAY_OUT = "write it with `diptych cluster`, or leave data.groups.file out"


def write_groups(path: Path, groups: np.ndarray, fingerprint: str) -> None:
    """Write a file of groups. i32[samples], the fingerprint of their shards."""
    with committed(path) as partial_path, partial_path.open("wb") as file:
        np.savez(file, groups=groups.astype(np.int32), data=np.array(fingerprint))


def read_groups(path: str, index: ShardIndex) -> np.ndarray:
    """i32[samples]: the group of each sample of the index.

    Raises:
        UserError: the file is missing or damaged, or its groups are those of other shards.
    """
    try:
        with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
            groups, data = np.asarray(file["groups"]), str(file["data"])
    except FileNotFoundError:
        raise UserError(f"data.groups.file {path} does not exist; {WAY_OUT}") from None
    except (OSError, ValueError, KeyError, EOFError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"data.groups.file {path} is no file of groups ({error}); {WAY_OUT}") from error
    if data != index.fingerprint or len(groups) != index.total_samples:
        raise UserError(
            f"data.groups.file {path} has groups of other shards than data.train ({counted(len(groups), 'sample')} "
            f"there, {index.total_samples:,} here); {WAY_OUT}"
        )
    if groups.ndim != 1 or groups.dtype.kind not in "iu" or groups.min() < 0:
        raise UserError(f"data.groups.file {path}: expected one number from 0 for each sample; {WAY_OUT}")
    return groups


def fingerprint_with(groups: np.ndarray, fingerprint: str) -> str:
    """The fingerprint of shards whose samples have these groups."""
    return hashlib.sha256(fingerprint.encode() + groups.astype("<i4").tobytes()).hexdigest()


class GroupedOrder:
    """An order in which groups take part as often as `power` says, and neighbours may stand together.

    An epoch has as many rows as there are samples. A group of n samples has a share of them in proportion to
    n ** power: with 1 each sample comes exactly once an epoch, with 0 all groups come equally often. A group goes
    through its samples in a random order, all of them before any again. `Rows.epochs` counts these passes.

    The rows of an epoch, listed group by group, are cut into stretches of `neighbours` rows, and the stretches are
    permuted. With 1 that is a uniform shuffle; with more, so many samples of one group or of groups that are alike
    stand together in a batch.

    groups: i32[samples], the group of each sample.
    """

    fills_from_shard = False

    def __init__(self, groups: np.ndarray, *, seed: int, global_batch_size: int, power: float, neighbours: int):
        groups = numbered(groups)
        self.total = len(groups)
        self._size = global_batch_size
        self._seed = seed
        self._stretch = min(neighbours, self.total)
        self._members = np.argsort(groups, kind="stable").astype(np.uint32 if self.total < 2**32 else np.int64)
        self._sizes = np.bincount(groups)
        self._firsts = np.cumsum(self._sizes) - self._sizes
        self._shares = shares_of_groups(self._sizes, power)
        self._ends = np.cumsum(self._shares)

    def rows(self, batch_number: int, start: int = 0, stop: int | None = None) -> Rows:
        """Rows [start, stop) of the global batch that follows batch_number * global_batch_size samples."""
        [rows] = self.plan([(batch_number, start, self._size if stop is None else stop)])
        return rows

    def plan(self, pieces: Sequence[Piece]) -> list[Rows]:
        rows = np.concatenate([np.arange(start, stop) + batch * self._size for batch, start, stop in pieces])
        epochs, places = np.divmod(rows, self.total)
        listed = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            listed[chosen] = self._listed(places[chosen], epoch)
        groups = np.searchsorted(self._ends, listed, side="right")
        turns = listed - (self._ends - self._shares)[groups] + epochs * self._shares[groups]
        passes, turns = np.divmod(turns, self._sizes[groups])
        keys = hashes(passes * len(self._sizes) + groups, self._seed, 4)
        samples = self._members[self._firsts[groups] + permuted(turns, self._sizes[groups], keys)].astype(np.int64)
        ends = np.cumsum([stop - start for _, start, stop in pieces])[:-1]
        return list(map(Rows, np.split(passes, ends), np.split(samples, ends)))

    def source_of(self, sample: int) -> tuple[int, int]:
        return 0, self.total

    def _listed(self, places: np.ndarray, epoch: int) -> np.ndarray:
        """Which row of an epoch's list comes at each place of the epoch."""
        key = hash_of(epoch, self._seed, 5)
        stretches = self.total // self._stretch
        numbers, within = np.divmod(places, self._stretch)
        whole = numbers < stretches  # what is left of the list after the last whole stretch stays at the end
        sizes, keys = np.full(whole.sum(), stretches), np.full(whole.sum(), key, dtype=np.uint64)
        numbers[whole] = permuted(numbers[whole], sizes, keys)
        # Each epoch begins its list elsewhere, so that other samples are at the edges of stretches, and at the end.
        listed: np.ndarray = (numbers * self._stretch + within + key % self.total) % self.total
        return listed


def numbered(groups: np.ndarray) -> np.ndarray:
    """i32[samples]: the groups numbered from 0 without gaps, in their order; the array itself if it has none.

    groups: integers from 0.
    """
    if groups.max() >= len(groups):  # so many gaps that counting would take more memory than sorting
        _, groups = np.unique(groups, return_inverse=True)
    groups = groups.astype(np.int32, copy=False)
    exists = np.bincount(groups) > 0
    return groups if exists.all() else (np.cumsum(exists, dtype=np.int32) - np.int32(1))[groups]


def shares_of_groups(sizes: np.ndarray, power: float) -> np.ndarray:
    """i64[groups]: how many rows of an epoch each group has; their sum is that of the sizes, and each has one or more.

    sizes: i64[groups], above 0.
    power: from 0 to 1.
    """
    exact = sizes.astype(np.float64) ** power
    exact *= sizes.sum() / exact.sum()
    # Largest remainders. The smallest group has at least its size, since no larger group has more than its proportion.
    shares: np.ndarray = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(shares - exact, kind="stable")
    shares[order[: sizes.sum() - shares.sum()]] += 1
    return shares
