"""Features of all ranks on every rank, with exact gradients; the only place in `loss` that asks who we are."""

from __future__ import annotations

from typing import Any

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


def gather(features: Tensor) -> Tensor:
    """f32[ranks * batch, dim] from f32[batch, dim]: rank r's rows stand at r * batch.

    Backward sums over ranks what each rank's loss says of our rows (reduce-scatter); this is the half of the exact
    gradient that a plain all-gather drops. Every rank must call it, with the same shape.
    """
    if num_ranks() == 1:
        return features
    return _Gather.apply(features)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        gathered = features.new_empty((num_ranks() * features.shape[0], features.shape[1]))
        _all_gather(gathered, features.contiguous())
        return gathered

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        ours = gradient.new_empty((gradient.shape[0] // num_ranks(), gradient.shape[1]))
        _reduce_scatter(ours, gradient.contiguous())
        return ours
