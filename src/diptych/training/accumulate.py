"""Compute one exact step over more pairs than fit into memory at once (GradCache, arXiv 2101.06983, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diptych.data.batch import Batch
from diptych.loss.tiles import LossOutput

Forward = Callable[[int, Batch], tuple[Tensor, ...]]
"""(number of the part, part) → image and text features, f32[rows dim]; logit_scale and perhaps logit_bias, f32[1]."""


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
    loss: Callable[..., LossOutput],
    backward: Callable[[Tensor, bool], None],
) -> tuple[LossOutput, Tensor]:
    """Compute the loss over all parts together and its gradients in the parameters; return the loss and logit_scale.

    First the features of all parts are computed without a graph. Then the loss and the gradients of the features are
    computed once, over the whole global batch. Last, each part goes through the towers again, and the gradients of its
    features are propagated to the parameters. This needs memory for one part and for the features of the whole global
    batch, and costs a second forward.

    forward: must return the same features for the same part both times.
    backward: takes a scalar and whether it is the last one; accumulates gradients in the parameters.
    """
    with torch.no_grad():
        features = [forward(number, part) for number, part in enumerate(parts)]
    image, text = (torch.cat([each[side] for each in features]).requires_grad_() for side in (0, 1))
    scalars = [scalar.detach().clone().requires_grad_() for scalar in features[0][2:]]
    output = loss(image, text, *scalars)
    output.loss.backward()
    assert image.grad is not None and text.grad is not None
    start = 0
    for number, part in enumerate(parts):
        rows = slice(start, start + len(part))
        start = rows.stop
        is_last = start == len(image)
        image_again, text_again, *scalars_again = forward(number, part)
        again = (image_again * image.grad[rows]).sum() + (text_again * text.grad[rows]).sum()
        # DeepSpeed expects every backward to reach every parameter; the gradients of scale and bias must count once.
        for scalar_again, scalar in zip(scalars_again, scalars, strict=True):
            assert scalar.grad is not None
            again = again + (scalar_again * scalar.grad).sum() * is_last
        backward(again, is_last)
    return output, scalars[0].detach()


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
