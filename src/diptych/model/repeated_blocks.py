"""Measure a tower by one of each kind of its blocks: 24 equal blocks cost 24 times what one of them costs."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

Cost = TypeVar("Cost")


@contextmanager
def each_kind_once(
    blocks: Iterable[nn.Module],
    measured: Callable[[nn.Module, Callable[[], Tensor], tuple[Any, ...]], tuple[Tensor, Cost]],
    repeated: Callable[[nn.Module, Cost, tuple[Any, ...], Tensor], None],
) -> Iterator[None]:
    """During the context, compute the first block of a kind, and give the others an output without data.

    Blocks are of one kind if their modules have the same settings and shapes, and so do their inputs.

    measured: called as `measured(block, compute, inputs)`; gives the output of `compute()` and what it cost.
    repeated: called as `repeated(block, cost, inputs, output)` for each other block of that kind.
    """
    known: dict[Hashable, tuple[Tensor, Cost]] = {}

    def stand_in(block: nn.Module) -> Callable[..., Tensor]:
        structure, forward = _structure(block), block.forward

        def compute_or_repeat(*inputs: Any, **keywords: Any) -> Tensor:
            kind = (structure, *map(_shape, inputs), *((name, _shape(value)) for name, value in keywords.items()))
            every_input = (*inputs, *keywords.values())
            if kind in known:
                first, cost = known[kind]
                output = _like(first)
                repeated(block, cost, every_input, output)
                return output
            output, cost = measured(block, lambda: forward(*inputs, **keywords), every_input)
            if isinstance(output, Tensor) and _fills_a_storage_of_its_own(output, every_input):
                known[kind] = output, cost
            return output

        return compute_or_repeat

    stood_in = list(blocks)
    for block in stood_in:
        block.forward = stand_in(block)
    try:
        yield
    finally:
        for block in stood_in:
            del block.forward


def tensors_in(inputs: Iterable[Any]) -> list[Tensor]:
    """The tensors among inputs, and those that are attributes of an input, such as of packed captions."""
    found: list[Tensor] = []
    for each in inputs:
        parts = [each] if isinstance(each, Tensor) else getattr(each, "__dict__", {}).values()
        found += [part for part in parts if isinstance(part, Tensor)]
    return found


def _structure(block: nn.Module) -> Hashable:
    """All that decides what a block computes from its inputs, but for the values of its tensors."""
    return tuple(
        (
            name,
            type(module),
            module.training,
            tuple((key, _shape(each)) for key, each in (*module._parameters.items(), *module._buffers.items())),
            tuple((key, _shape(value)) for key, value in vars(module).items() if key not in _OF_EVERY_MODULE),
        )
        for name, module in block.named_modules()
    )


_OF_EVERY_MODULE = vars(nn.Module()).keys()


def _shape(value: Any) -> Hashable:
    """A tensor without its values; anything else as it is written, which names an object that is no plain value."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.stride(), value.dtype, value.requires_grad
    return repr(value) if isinstance(value, _PLAIN) else id(value)


_PLAIN = (bool, int, float, str, tuple, list, dict, type(None), torch.dtype)


def _like(output: Tensor) -> Tensor:
    """A tensor without data that may be changed in place, as a result of an operation may."""
    empty = torch.empty_strided(output.shape, output.stride(), dtype=output.dtype, device=output.device)
    return empty.requires_grad_(output.requires_grad).clone()


def _fills_a_storage_of_its_own(output: Tensor, inputs: Iterable[Any]) -> bool:
    storage = output.untyped_storage()
    is_new = storage._cdata not in {tensor.untyped_storage()._cdata for tensor in tensors_in(inputs)}
    return is_new and storage.nbytes() == output.nbytes
