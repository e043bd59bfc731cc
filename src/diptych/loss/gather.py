"""Tensors of all ranks on every rank; the only place in `loss` that asks who we are.

Every rank must call each of these, and say the same of `rows_of_ranks`: how many rows each rank has; None: all as many
as this one. Alone, a rank gets back what it gave.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

import torch
import torch.distributed as dist
from torch import Tensor

# The names of torch 2.14 and later; before, the same collectives had longer ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gathered(rows: Tensor, rows_of_ranks: Sequence[int] | None = None) -> Tensor:
    """[all rows, dim] from [batch, dim], in the order of the ranks."""
    if num_ranks() == 1:
        return rows
    sizes = rows_of_ranks or [len(rows)] * num_ranks()
    largest = max(sizes)
    everyone = rows.new_empty((num_ranks() * largest, rows.shape[1]))
    _all_gather(everyone, _padded(rows, [len(rows)], largest))
    return _unpadded(everyone, sizes, largest)


def reduce_scatter(rows: Tensor, rows_of_ranks: Sequence[int] | None = None) -> Tensor:
    """[batch, dim] from [all rows, dim]: our part of the sum over ranks."""
    if num_ranks() == 1:
        return rows
    sizes = rows_of_ranks or [len(rows) // num_ranks()] * num_ranks()
    largest = max(sizes)
    ours = rows.new_empty((largest, rows.shape[1]))
    _reduce_scatter(ours, _padded(rows, sizes, largest))
    return ours[: sizes[rank()]]


def _padded(rows: Tensor, sizes: Sequence[int], largest: int) -> Tensor:
    """Each rank's rows followed by zeros up to the largest number: collectives want the same of all."""
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
    """(ranks, rows of each, all their rows) of each run of ranks with as many rows: two runs, not a thousand ranks."""
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
