"""What a training step takes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Reject:
    """A sample that could not be used, and why; another stands in its row."""

    sample: int
    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """A rank's rows of one global batch; row i of all is one pair."""

    images: Tensor
    """u8[rows, 3, height, width]"""
    tokens: Tensor
    """i32[rows, context_length], zero padded"""
    lengths: Tensor
    """i32[rows], control tokens included"""
    samples: np.ndarray
    """i64[rows], numbers in the index: of the sample that is really in the row"""
    rejects: tuple[Reject, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def parts(self, num_rows: int | None) -> list[Batch]:
        """The rows in pieces of `num_rows`, the last one perhaps smaller; None: all in one. Rejects stay behind."""
        if num_rows is None or num_rows >= len(self):
            return [self]
        parts = [slice(start, start + num_rows) for start in range(0, len(self), num_rows)]
        return [Batch(self.images[p], self.tokens[p], self.lengths[p], self.samples[p]) for p in parts]

    def pin_memory(self) -> Batch:
        return Batch(
            self.images.pin_memory(),
            self.tokens.pin_memory(),
            self.lengths.pin_memory(),
            self.samples,
            self.rejects,
        )
