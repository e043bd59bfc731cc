"""The batch that a training step processes."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Reject:
    """A sample that could not be used, and why; another sample takes its row."""

    sample: int
    shard: str
    key: str
    reason: str


@dataclass(frozen=True)
class Batch:
    """A rank's rows of one global batch; row i of each array belongs to the same pair."""

    images: Tensor
    """u8[rows, 3, height, width]; in memory as pictures are decoded and the tower takes them (`torch.channels_last`)"""
    tokens: Tensor
    """i32[rows, context_length], zero padded"""
    lengths: Tensor
    """i32[rows], control tokens included"""
    samples: np.ndarray
    """i64[rows]: the number in the index of the sample in each row, after rejected ones were replaced"""
    rejects: tuple[Reject, ...] = ()
    reads: Counter[str] = field(default_factory=Counter)
    """What was read for these rows, those of rejected samples included: numbers by the names of `shards.COUNTS`."""

    def __len__(self) -> int:
        return len(self.samples)

    @staticmethod
    def joined(parts: Iterable[Batch], num_rows: int, *, pin_memory: bool) -> Batch | None:
        """Copy the rows of all parts into one batch, freeing each part once copied; None if there are no parts."""
        sides: tuple[Tensor, ...] = ()
        samples = np.empty(num_rows, dtype=np.int64)
        rejects: list[Reject] = []
        reads: Counter[str] = Counter()
        start = 0
        for part in parts:
            given = part.images, part.tokens, part.lengths
            sides = sides or tuple(_empty_as(side, num_rows, pin_memory) for side in given)
            rows = slice(start, start + len(part))
            for side, of_part in zip(sides, given, strict=True):
                side[rows] = of_part
            samples[rows] = part.samples
            rejects += part.rejects
            reads += part.reads
            start = rows.stop
        if not sides:
            return None
        images, tokens, lengths = sides
        return Batch(images, tokens, lengths, samples, tuple(rejects), reads)

    def parts(self, number: int) -> list[Batch]:
        """Split the rows into `number` parts, of sizes that differ by at most one, without rejects and reads."""
        if number == 1:
            return [self]
        edges = [-(-part * len(self) // number) for part in range(number + 1)]
        parts = [slice(*pair) for pair in itertools.pairwise(edges)]
        return [Batch(self.images[p], self.tokens[p], self.lengths[p], self.samples[p]) for p in parts]


def _empty_as(side: Tensor, num_rows: int, pin_memory: bool) -> Tensor:
    layout = torch.channels_last if side.dim() == 4 else torch.contiguous_format
    shape = (num_rows, *side.shape[1:])
    return torch.empty(shape, dtype=side.dtype, pin_memory=pin_memory, memory_format=layout)
