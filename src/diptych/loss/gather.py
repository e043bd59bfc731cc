"""Gather and reduce tensors over ranks; the only file in `loss` that knows about ranks.

Every rank must call each function, with the same `rows_of_ranks`: the number of rows of each rank, or None if all have
as many as this one. On a single rank each function returns its argument.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor

# torch 2.14 gave these collectives shorter names.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gathered(rows: Tensor, rows_of_ranks: Sequence[int] | None = None) -> Tensor:
    """Gather [batch, dim] of each rank as [all rows, dim], in the order of the ranks."""
    if num_ranks() == 1:
        return rows
    sizes = rows_of_ranks or [len(rows)] * num_ranks()
    largest = max(sizes)
    everyone = rows.new_empty((num_ranks() * largest, rows.shape[1]))
    _all_gather(everyone, _padded(rows, [len(rows)], largest))
    return _unpadded(everyone, sizes, largest)


def reduce_scatter(rows: Tensor, rows_of_ranks: Sequence[int] | None = None) -> Tensor:
    """Sum [all rows, dim] over ranks and return this rank's part, [batch, dim]."""
    if num_ranks() == 1:
        return rows
    sizes = rows_of_ranks or [len(rows) // num_ranks()] * num_ranks()
    largest = max(sizes)
    ours = rows.new_empty((largest, rows.shape[1]))
    _reduce_scatter(ours, _padded(rows, sizes, largest))
    return ours[: sizes[rank()]]


def _padded(rows: Tensor, sizes: Sequence[int], largest: int) -> Tensor:
    """Pad each rank's rows with zeros to the largest number, since collectives need equal sizes."""
    if min(sizes) == largest:
        return rows.contiguous()
    padded = rows.new_zeros((len(sizes), largest, rows.shape[1]))
    for ranks, size, part in _runs(sizes):
        padded[ranks, :size] = rows[part].unflatten(0, (-1, size))
    return padded.flatten(0, 1)


def _unpadded(padded: Tensor, sizes: Sequence[int], largest: int) -> Tensor:
    if min(sizes) == largest:
        return padded
    by_rank = padded.unflatten(0, (-1, largest))
    return torch.cat([by_rank[ranks, :size].flatten(0, 1) for ranks, size, _ in _runs(sizes)])


def _runs(sizes: Sequence[int]) -> Iterator[tuple[slice, int, slice]]:
    """(ranks, rows of each, all their rows) for each run of ranks with equally many rows.

    Usually there are at most two runs, so that a thousand ranks do not need a thousand copies.
    """
    first_rank = first_row = 0
    for size, run in groupby(sizes):
        count = len(list(run))
        yield slice(first_rank, first_rank + count), size, slice(first_row, first_row + count * size)
        first_rank, first_row = first_rank + count, first_row + count * size


def sum_over_ranks(numbers: Tensor) -> Tensor:
    return _reduced(numbers, dist.ReduceOp.SUM)


def maximum_over_ranks(numbers: Tensor) -> Tensor:
    return _reduced(numbers, dist.ReduceOp.MAX)


def _reduced(numbers: Tensor, operation: dist.ReduceOp.RedOpType) -> Tensor:
    if num_ranks() == 1:
        return numbers
    result = numbers.clone()
    dist.all_reduce(result, op=operation)
    return result
