"""One exact step over more pairs than fit through the towers at once (GradCache, arXiv 2101.06983, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from diptych.data.batch import Batch
from diptych.loss.tiles import LossOutput

Forward = Callable[[int, Batch], tuple[Tensor, ...]]
"""(number of the part, part) → image and text features, f32[rows dim]; logit_scale and perhaps logit_bias, f32[1]."""


def num_parts(rows_of_ranks: Sequence[int], pairs_per_forward: int | None) -> int:
    """In how many parts each rank takes its rows; in as many as the others, since ranks meet in every forward.

    One pair at a time is more parts than a rank with a pair fewer has; then those with more take two at first.
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
    """The loss over all parts together, its gradients in the parameters; and logit_scale.

    The features of all parts come first, without a graph. The loss and the gradients of the features are computed
    once, over the whole global batch. Then each part goes through the towers again and hands its features' gradients
    on. Memory is that of one part and of everybody's features; the price is a second forward.

    forward: must give the same features for the same part both times. backward: takes a scalar, and whether it is the
    last; accumulates in the parameters.
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
        # Each part touches every parameter, as DeepSpeed expects; the gradients of scale and bias count once.
        for scalar_again, scalar in zip(scalars_again, scalars, strict=True):
            assert scalar.grad is not None
            again = again + (scalar_again * scalar.grad).sum() * is_last
        backward(again, is_last)
    return output, scalars[0].detach()


def random_layer(model: nn.Module) -> str | None:
    """The name of a layer that draws random numbers in training, such as dropout; None if there is none.

    Patch dropout, of which timm's is replaced by ours, draws nothing: its masks are keyed by the rows.
    """
    for name, module in model.named_modules():
        is_dropout = "drop" in type(module).__name__.lower()
        keys = ("p", "drop_prob", "prob", "drop") if is_dropout else ("drop_rate", "patch_drop_rate")
        chances = [getattr(module, key, None) for key in keys]
        if any(isinstance(chance, float) and chance > 0 for chance in chances):
            return str(name)
    return None
