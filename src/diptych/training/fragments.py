"""Find the part of each parameter that this rank updates; gather whole tensors from the ranks' parts, and scatter them.

ZeRO divides parameters among ranks in flat fp32 tensors. What is kept for a parameter (its moments, its average) is
stored in flat tensors of the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from diptych.world import World

CompanionOf = Callable[[Tensor], Tensor]
"""Gives the tensor that is kept for a flat tensor, of its shape: for example `lambda flat: state[flat]["exp_avg"]`."""


@dataclass(frozen=True)
class Fragment:
    """The elements [start, stop) of a parameter that this rank updates; they are stored in `flat` from `offset` on."""

    shape: torch.Size
    start: int
    stop: int
    flat: Tensor
    offset: int

    @property
    def numel(self) -> int:
        return self.shape.numel()

    def divided(self, rank: int, size: int) -> Fragment:
        """The part of this fragment that this one of `size` ranks saves, if all of them have the same."""
        length = self.stop - self.start
        first, last = length * rank // size, length * (rank + 1) // size
        return Fragment(self.shape, self.start + first, self.start + last, self.flat, self.offset + first)

    def of(self, values: Tensor) -> Tensor:
        """The elements of this fragment in a tensor of the shape of `flat`."""
        return values.view(-1)[self.offset : self.offset + self.stop - self.start]


def fragments_of(model: nn.Module, optimizer: Any, stage: int, rank: int) -> Iterator[tuple[str, Fragment]]:
    """The name and fragment of every trained parameter.

    optimizer: DeepSpeed's, for a ZeRO stage above 0.
    """
    # Typed as Any: DeepSpeed stores its bookkeeping in attributes of the parameters.
    named: list[tuple[str, Any]] = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    if stage == 0:
        for name, parameter in named:
            yield name, Fragment(parameter.shape, 0, parameter.numel(), parameter, 0)
    elif stage == 3:
        for name, parameter in named:
            group, offset, size = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start = min(rank * size, parameter.ds_numel)
            stop = min(start + size, parameter.ds_numel)
            flat = optimizer.fp32_partitioned_groups_flat[group]
            yield name, Fragment(parameter.ds_shape, start, stop, flat, offset)
    else:
        group_of = {id(p): group for group, params in enumerate(optimizer.bit16_groups) for p in params}
        for name, parameter in named:
            flat = optimizer.single_partition_of_fp32_groups[group_of[id(parameter)]]
            mapping = parameter._hp_mapping
            if mapping is None:
                yield name, Fragment(parameter.shape, 0, 0, flat, 0)
                continue
            start = mapping.lp_fragment_address.start
            stop = start + mapping.lp_fragment_address.numel
            yield name, Fragment(parameter.shape, start, stop, flat, mapping.hp_fragment_address.start)


def frozen_fragments(model: nn.Module, rank: int) -> Iterator[tuple[str, Fragment]]:
    """The name and fragment of every parameter that is not trained, at ZeRO stage 3."""
    named: list[tuple[str, Any]] = [(n, p) for n, p in model.named_parameters() if not p.requires_grad]
    for name, parameter in named:
        size = parameter.ds_tensor.numel()
        start = min(rank * size, parameter.ds_numel)
        yield name, Fragment(parameter.ds_shape, start, min(start + size, parameter.ds_numel), parameter.ds_tensor, 0)


@torch.no_grad()
def gather_into(
    wholes: Mapping[str, Tensor], fragments: Mapping[str, Fragment], companion_of: CompanionOf, *, is_shared: bool
) -> None:
    """Fill whole tensors by name on every rank from the ranks' parts; every rank must call it.

    It needs no memory in addition, so no rank fails alone while the others wait for it.

    is_shared: whether each rank has a different part, rather than all of each tensor.
    """
    for name, fragment in fragments.items():
        whole = wholes[name].view(-1)
        if is_shared:
            whole.zero_()
        whole[fragment.start : fragment.stop] = fragment.of(companion_of(fragment.flat))
        if is_shared:
            dist.all_reduce(whole)  # exact: of each element all ranks but one have zero


def hand_out(
    fragments: Mapping[str, Fragment], companion_of: CompanionOf, wholes: Mapping[str, Tensor] | None, world: World
) -> None:
    """Copy each rank's parts from the whole tensors of rank 0; every rank must call it."""
    for name, fragment in fragments.items():
        if world.is_first:
            assert wholes is not None
            whole = wholes[name].to(world.device, torch.float32).contiguous().view(-1)
        else:
            whole = torch.empty(fragment.numel, dtype=torch.float32, device=world.device)
        dist.broadcast(whole, src=0)
        fragment.of(companion_of(fragment.flat)).copy_(whole[fragment.start : fragment.stop])
