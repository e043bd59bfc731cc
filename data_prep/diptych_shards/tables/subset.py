"""Choose rows by their uid, as DataComp publishes its subsets: a sorted .npy of pairs of 64-bit halves."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from diptych.terminal import shown
from diptych_shards.tables.columns import TableError
from diptych_shards.tables.locations import TableFile

if TYPE_CHECKING:
    import pyarrow

_HEX_DIGITS = 32
_SAMPLES = 1_000_000
_NIBBLES = np.full(256, 255, np.uint8)
for _value, _digit in enumerate(b"0123456789abcdef"):
    _NIBBLES[_digit] = _NIBBLES[ord(chr(_digit).upper())] = _value


class Subset:
    """The uids of a subset file, which is mapped, not read: that of DataComp-1B has 22 GB."""

    def __init__(self, path: Path):
        """
        Raises:
            TableError: the file is not a sorted array of pairs of 64-bit numbers.
        """
        try:
            uids = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError) as error:
            raise TableError(f"{shown(path)} is not a readable .npy file ({shown(error)})") from error
        kinds = [uids.dtype[name] for name in uids.dtype.names or ()]
        if uids.ndim != 1 or [(kind.kind, kind.itemsize) for kind in kinds] != [("u", 8)] * 2:
            raise TableError(f"{shown(path)} holds {uids.dtype}; a subset is an array of dtype u8,u8: "
                             f"the halves of each uid")  # fmt: skip
        self._high, self._low = (uids[name] for name in uids.dtype.names or ())
        places = np.unique(np.linspace(0, max(len(uids) - 2, 0), min(len(uids), _SAMPLES)).astype(np.int64))
        if len(uids) > 1 and self._is_less(places + 1, self._high[places], self._low[places]).any():
            raise TableError(f"{shown(path)} is not sorted; sort it with numpy.sort")
        self.identity = TableFile(str(path), "npy", None).identity

    def __len__(self) -> int:
        return len(self._high)

    def contains(self, uids: pyarrow.Array) -> np.ndarray:
        """Whether each uid of 32 hexadecimal digits is in the subset; any other text is not."""
        high, low, is_uid = _halves(uids)
        found = np.zeros(len(uids), bool)
        if not len(self):
            return found
        start = np.zeros(len(high), np.int64)
        end = np.full(len(high), len(self), np.int64)
        # A binary search for all at once: that of numpy would copy the array, which may not fit in memory.
        for _ in range(len(self).bit_length()):
            is_open = start < end
            middle = np.minimum((start + end) // 2, len(self) - 1)
            goes_right = is_open & self._is_less(middle, high, low)
            start = np.where(goes_right, middle + 1, start)
            end = np.where(is_open & ~goes_right, middle, end)
        place = np.minimum(start, len(self) - 1)
        found[is_uid] = (self._high[place] == high) & (self._low[place] == low)
        return found

    def _is_less(self, places: np.ndarray, high: np.ndarray, low: np.ndarray) -> np.ndarray:
        """Whether the uid at each place is less than (high, low)."""
        at = self._high[places]
        is_less: np.ndarray = (at < high) | ((at == high) & (self._low[places] < low))
        return is_less


def _halves(uids: pyarrow.Array) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Both halves of the well-formed uids, and which uids these are."""
    import pyarrow
    import pyarrow.compute as compute

    text = uids.cast(pyarrow.string())
    is_uid = compute.fill_null(compute.equal(compute.binary_length(text), _HEX_DIGITS), False)
    is_uid = is_uid.to_numpy(zero_copy_only=False)
    kept = text.filter(pyarrow.array(is_uid)).cast(pyarrow.binary())
    nibbles = _NIBBLES[np.frombuffer(b"".join(kept.to_pylist()), np.uint8).reshape(-1, _HEX_DIGITS)]
    is_hex = (nibbles < 16).all(axis=1)
    is_uid[np.flatnonzero(is_uid)[~is_hex]] = False
    nibbles = nibbles[is_hex]
    halves = (nibbles[:, 0::2] << 4 | nibbles[:, 1::2]).copy().view(">u8").astype(np.uint64)
    return halves[:, 0], halves[:, 1], is_uid
