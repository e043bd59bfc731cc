"""AdamW with moments in bf16, which halves their memory ("half-precision Adam statistics", paper, section 2.5).

A step computes in fp32 and rounds the moments to the nearest bf16. A moment can always shrink if the share that it
loses in a step, 1 - beta, is larger than what rounding may add back (`LARGEST_BF16_BETA`). With beta2 = 0.98 it is five
times as large; with beta2 = 0.999 a second moment would never shrink again.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

ELEMENTS_AT_ONCE = 2**24
"""Elements that are updated at once; their two moments take another 128 MB in fp32 meanwhile."""

ADAMW_MOMENTS = ("exp_avg", "exp_avg_sq")

Piece = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]
"""Part of a parameter: its values, gradients and two moments, and the parameter's count of steps."""


class HalfMomentsAdamW(torch.optim.AdamW):
    """AdamW with bf16 moments that steps with torch's fused kernel.

    That kernel accepts bf16 moments itself only on CUDA and from torch 2.14 on. `grad_scale` and `found_inf` have the
    same meaning as in torch's AdamW.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        for group in self.param_groups:
            for pieces in _in_batches(self._pieces(group)):
                values, gradients, first, second, counts = (list(column) for column in zip(*pieces, strict=True))
                whole_first, whole_second = ([each.float() for each in moments] for moments in (first, second))
                adamw(
                    values,
                    gradients,
                    whole_first,
                    whole_second,
                    [],
                    [count.clone() for count in counts],
                    fused=True,
                    grad_scale=getattr(self, "grad_scale", None),
                    found_inf=getattr(self, "found_inf", None),
                    amsgrad=False,
                    beta1=group["betas"][0],
                    beta2=group["betas"][1],
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=group["eps"],
                    maximize=False,
                )
                torch._foreach_copy_(first, whole_first)
                torch._foreach_copy_(second, whole_second)
            self._count(group)

    def _pieces(self, group: dict[str, Any]) -> Iterator[Piece]:
        for parameter in group["params"]:
            if parameter.grad is None:
                continue
            if not self.state[parameter]:
                self.state[parameter] = zero_state(parameter, torch.bfloat16)
            state = self.state[parameter]
            columns = [parameter, parameter.grad, state["exp_avg"], state["exp_avg_sq"]]
            if parameter.numel() <= ELEMENTS_AT_ONCE:
                yield *columns, state["step"]
                continue
            for piece in zip(*(column.view(-1).split(ELEMENTS_AT_ONCE) for column in columns), strict=True):
                yield *piece, state["step"]

    def _count(self, group: dict[str, Any]) -> None:
        counts = [self.state[parameter]["step"] for parameter in group["params"] if parameter.grad is not None]
        if not counts:
            return
        torch._foreach_add_(counts, 1)
        if (found_inf := getattr(self, "found_inf", None)) is not None:
            torch._foreach_sub_(counts, [found_inf.to(counts[0].device)] * len(counts))


def zero_state(parameter: Tensor, dtype: torch.dtype, moments: tuple[str, ...] = ADAMW_MOMENTS) -> dict[str, Tensor]:
    """An optimizer's state for a parameter before its first step."""
    return {
        "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
        **{moment: torch.zeros_like(parameter, dtype=dtype) for moment in moments},
    }


def _in_batches(pieces: Iterator[Piece]) -> Iterator[list[Piece]]:
    """Group pieces into batches of up to ELEMENTS_AT_ONCE elements: few kernels to start, little memory."""
    batch: list[Piece] = []
    size = 0
    for piece in pieces:
        if batch and size + piece[0].numel() > ELEMENTS_AT_ONCE:
            yield batch
            batch, size = [], 0
        batch.append(piece)
        size += piece[0].numel()
    if batch:
        yield batch
