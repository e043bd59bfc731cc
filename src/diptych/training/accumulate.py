"""Compute one exact step over more pairs than fit into memory at once (GradCache, arXiv 2101.06983, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diptych.data.batch import Batch
from diptych.loss.objective import Outputs

Forward = Callable[[int, Batch], Outputs]
"""(number of the part, part) → what the model computes of its pairs."""
Loss = Callable[[Outputs], tuple[Tensor, dict[str, Tensor]]]
"""Outputs of all parts → the loss, and numbers about it."""


def num_parts(rows_of_ranks: Sequence[int], pairs_per_forward: int | None) -> int:
    """The number of parts into which every rank splits its rows.

    It is the same on all ranks, since they communicate in every forward, and never more than the rows of the rank with
    the fewest. So with one pair a part, a rank that has one row more takes two in one of its parts.
    """
    if pairs_per_forward is None:
        return 1
    return min(-(-max(rows_of_ranks) // pairs_per_forward), min(rows_of_ranks))


def backward_in_parts(
    parts: Sequence[Batch],
    forward: Forward,
    loss: Loss,
    backward: Callable[[Tensor, bool], None],
) -> tuple[Tensor, dict[str, Tensor], tuple[Tensor, ...]]:
    """Compute the loss over all parts together and its gradients in the parameters.

    Returns the loss, the numbers about it, and the scalars of the outputs.

    First the rows of all parts (features, and losses of single pairs) are computed without a graph. Then the loss and
    the gradients of the rows are computed once, over the whole global batch. Last, each part goes through the towers
    again, and the gradients of its rows are propagated to the parameters. This needs memory for one part and for the
    features of the whole global batch, and costs a second forward.

    forward: must return the same rows for the same part both times.
    backward: takes a scalar and whether it is the last one; accumulates gradients in the parameters.
    """
    with torch.no_grad():
        outputs = [forward(number, part) for number, part in enumerate(parts)]
    rows = [torch.cat(each).requires_grad_() for each in zip(*(each.rows for each in outputs), strict=True)]
    scalars = [scalar.detach().clone().requires_grad_() for scalar in outputs[0].scalars]
    total, numbers = loss(Outputs(tuple(rows), tuple(scalars)))
    total.backward()
    start = 0
    for number, part in enumerate(parts):
        own = slice(start, start + len(part))
        start = own.stop
        is_last = number == len(parts) - 1
        rows_again, scalars_again = forward(number, part)
        again = torch.stack([_propagated(new, old, own) for new, old in zip(rows_again, rows, strict=True)]).sum()
        # DeepSpeed expects every backward to reach every parameter; the gradients of scale and bias must count once.
        for new, old in zip(scalars_again, scalars, strict=True):
            again = again + _propagated(new, old) * is_last
        backward(again, is_last)
    return total, numbers, tuple(scalar.detach() for scalar in scalars)


def _propagated(again: Tensor, before: Tensor, own: slice = slice(None)) -> Tensor:
    """A scalar whose gradient in `again` is that of the loss in these rows of `before`."""
    assert before.grad is not None
    return (again * before.grad[own]).sum()


def random_layer(model: nn.Module) -> str | None:
    """The name of a layer that draws random numbers in training, such as dropout; None if there is none.

    Patch dropout does not count: ours, which replaces timm's, computes its masks from each row's place in the run.
    """
    for name, module in model.named_modules():
        is_dropout = "drop" in type(module).__name__.lower()
        keys = ("p", "drop_prob", "prob", "drop") if is_dropout else ("drop_rate", "patch_drop_rate")
        chances = [getattr(module, key, None) for key in keys]
        if any(isinstance(chance, float) and chance > 0 for chance in chances):
            return str(name)
    return None
