"""Tensors of all ranks on every rank; the only place in `loss` that asks who we are.

Every rank must call each of these, with the same shape. Alone, a rank gets back what it gave.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor

# The names of torch 2.14 and later; before, the same collectives had longer ones.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def num_ranks() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def gathered(rows: Tensor) -> Tensor:
    """[ranks * batch, dim] from [batch, dim]: rank r's rows stand at r * batch."""
    if num_ranks() == 1:
        return rows
    everyone = rows.new_empty((num_ranks() * rows.shape[0], rows.shape[1]))
    _all_gather(everyone, rows.contiguous())
    return everyone


def reduce_scatter(rows: Tensor) -> Tensor:
    """[batch, dim] from [ranks * batch, dim]: our part of the sum over ranks."""
    if num_ranks() == 1:
        return rows
    ours = rows.new_empty((rows.shape[0] // num_ranks(), rows.shape[1]))
    _reduce_scatter(ours, rows.contiguous())
    return ours


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
