"""What a training step takes."""

from __future__ import annotations

import itertools
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

    def parts(self, number: int) -> list[Batch]:
        """The rows in so many parts, whose sizes differ by one at most. Rejects stay behind."""
        if number == 1:
            return [self]
        edges = [-(-part * len(self) // number) for part in range(number + 1)]
        parts = [slice(*pair) for pair in itertools.pairwise(edges)]
        return [Batch(self.images[p], self.tokens[p], self.lengths[p], self.samples[p]) for p in parts]

    def pin_memory(self) -> Batch:
        return Batch(
            self.images.pin_memory(),
            self.tokens.pin_memory(),
            self.lengths.pin_memory(),
            self.samples,
            self.rejects,
        )
