"""Muon: momentum whose matrices are orthogonalised before each update (Jordan et al. 2024, kellerjordan.github.io).

It updates the hidden matrices, and AdamW the rest. ZeRO divides a flat tensor of many parameters among ranks, so a
matrix may begin on one rank and end on the next. Momentum needs only a rank's own elements. To orthogonalise such a
matrix, the ranks first exchange their parts of it.

It computes what `torch.optim.Muon` does with `adjust_lr_fn="match_rms_adamw"` (arXiv 2502.16982, section 2.2), and in
addition works on parts of matrices, on kernels of convolutions, and leaves out a step on the device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import accumulate
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from diptych.training.fragments import Fragment

MUON_MOMENTS = ("momentum_buffer",)
MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the polynomial a x + b x^3 + c x^5, which takes singular values between 0 and 1 to about 1 in a few iterations."""
ITERATIONS = 5
RMS_OF_ADAMW = 0.2
"""The root mean square of AdamW's updates divided by its learning rate; Muon's are scaled to it."""
ELEMENTS_AT_ONCE = 2**24
"""Elements that ranks exchange at once."""


class Muon(torch.optim.Optimizer):
    """Updates the groups with `is_muon` by Muon and the others by another optimizer, which shares its state.

    `grad_scale` and `found_inf` have the same meaning as in torch's AdamW.
    """

    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(self, groups: Iterable[dict[str, Any]], others: torch.optim.Optimizer, precision: torch.dtype):
        super().__init__(groups, others.defaults)
        self._others = others
        self._others.state = self.state
        self._precision = precision
        self._fragments: dict[int, list[Fragment]] = {}
        self._split: set[int] = set()
        """The fragments, by id, of matrices that no rank has whole."""

    def place(self, fragments: Iterable[Fragment]) -> None:
        """Set which matrices the ranks have; every rank must call it with fragments of the same matrices in order."""
        fragments = list(fragments)
        if not fragments:
            return
        is_whole = torch.tensor([float(each.stop - each.start == each.numel) for each in fragments])
        is_whole = is_whole.to(fragments[0].flat.device)
        dist.all_reduce(is_whole)
        self._fragments = {}
        for fragment in fragments:
            self._fragments.setdefault(id(fragment.flat), []).append(fragment)
        self._split = {id(each) for each, num in zip(fragments, is_whole.tolist(), strict=True) if not num}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        assert closure is None
        # DeepSpeed exchanges groups and their parameters between steps.
        others: Any = self._others
        others.param_groups = [group for group in self.param_groups if not group["is_muon"]]
        others.grad_scale, others.found_inf = self.grad_scale, self.found_inf
        others.step()
        for group in self.param_groups:
            if group["is_muon"]:
                for flat in group["params"]:
                    if flat.grad is not None:
                        self._update(flat, group)

    def _update(self, flat: Tensor, group: Mapping[str, Any]) -> None:
        split = []
        for fragment in self._fragments[id(flat)]:
            if id(fragment) in self._split:
                split.append(fragment)
            elif fragment.stop > fragment.start:
                self._apply(fragment, self._direction(fragment), group)
        for fragment, whole in self._exchanged(split):
            if fragment.stop > fragment.start:
                self._apply(fragment, whole, group)
        self.state[flat]["step"] += 1 if self.found_inf is None else 1 - self.found_inf

    def _exchanged(self, split: list[Fragment]) -> Iterator[tuple[Fragment, Tensor]]:
        """Each fragment with the direction of its whole matrix, flat, of which each rank has a part."""
        while split:
            ends = list(accumulate(fragment.numel for fragment in split))
            num_now = max(1, sum(end <= ELEMENTS_AT_ONCE for end in ends))
            now, split = split[:num_now], split[num_now:]
            buffer = now[0].flat.new_zeros(ends[num_now - 1])
            wholes = buffer.split([fragment.numel for fragment in now])
            for fragment, whole in zip(now, wholes, strict=True):
                whole[fragment.start : fragment.stop] = self._direction(fragment)
            dist.all_reduce(buffer)  # exact: of each element all ranks but one have zero
            yield from zip(now, wholes, strict=True)

    def _direction(self, fragment: Fragment) -> Tensor:
        """Add the gradient to the momentum; f32[elements of the fragment]: the direction before orthogonalisation."""
        kept = fragment.of(self.state[fragment.flat][MUON_MOMENTS[0]])
        assert fragment.flat.grad is not None
        gradient = fragment.of(fragment.flat.grad)
        if self.grad_scale is not None:
            gradient = gradient / self.grad_scale
        if self.found_inf is not None:
            gradient = torch.where(self.found_inf > 0, 0.0, gradient)
        momentum = torch.lerp(kept.float(), gradient, 1 - MOMENTUM)
        direction = torch.lerp(gradient, momentum, MOMENTUM)  # as Nesterov's
        if self.found_inf is not None:
            momentum = torch.where(self.found_inf > 0, kept.float(), momentum)
        kept.copy_(momentum)
        return direction

    def _apply(self, fragment: Fragment, whole: Tensor, group: Mapping[str, Any]) -> None:
        """Decay and update the elements of the fragment; `whole` is the direction of the whole matrix, flat."""
        matrix = whole.view(fragment.shape[0], -1)
        update = orthogonalised(matrix, self._precision).reshape(-1)[fragment.start : fragment.stop].float()
        rate = group["lr"] * RMS_OF_ADAMW * max(matrix.shape) ** 0.5
        decay = group["lr"] * group["weight_decay"]
        values = fragment.of(fragment.flat)
        if self.found_inf is None:
            values.mul_(1 - decay).sub_(update * rate)
        else:
            acts = 1 - self.found_inf
            values.mul_(1 - decay * acts).sub_(update * (rate * acts))


def orthogonalisation_flops(shapes: Iterable[torch.Size]) -> int:
    """Floating point operations to orthogonalise parameters of these shapes once; a multiply-add counts as two."""
    total = 0
    for shape in shapes:
        low, high = sorted((shape[0], shape[1:].numel()))
        total += ITERATIONS * (4 * low * low * high + 2 * low**3)
    return total


def orthogonalised(matrix: Tensor, precision: torch.dtype) -> Tensor:
    """Move the singular values of a matrix to about 1, between 0.7 and 1.2, by Newton and Schulz's iteration."""
    a, b, c = COEFFICIENTS
    is_high = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if is_high else matrix).to(precision)
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        square = x @ x.T
        x = torch.addmm(x, torch.addmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.T if is_high else x
