"""SigLIP's loss: each picture with each text of the global batch is a yes-or-no decision (arXiv 2303.15343, alg. 1)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import softplus

from diptych.loss.gather import reduce_scatter
from diptych.loss.tiles import BatchStatistics, Block, Gradients, LossOutput, Ranking, with_gradients_computed_forward


def sigmoid_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    captions: Tensor | None = None,
    rows_of_ranks: Sequence[int] | None = None,
) -> LossOutput:
    """The mean over this rank's pictures of -log sigmoid(±(scale * cosine + bias)), summed over all texts, in fp32.

    Shapes, `captions`, `rows_of_ranks` and the promise about ranks are those of `softmax_loss`. logit_bias: f32[1].
    """
    return with_gradients_computed_forward(_sigmoid, image, text, logit_scale, logit_bias, captions, rows_of_ranks)


def _sigmoid(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    bias: Tensor,
    captions: Tensor | None,
    rows_of_ranks: Sequence[int] | None,
    with_gradients: bool,
) -> tuple[Tensor, BatchStatistics, Gradients | None]:
    scale = logit_scale.exp()
    block = Block(image, text, scale, captions, rows_of_ranks)
    of_image, of_texts = torch.zeros_like(image), torch.zeros_like(block.texts)
    row_sums, row_gradients, ranking = torch.zeros_like(image[:, 0]), torch.zeros_like(image[:, 0]), Ranking(block)
    for rows, columns, logits in block.tiles():
        ranking.add(rows, columns, logits)
        logits.add_(bias)
        row_sums[rows] += softplus(logits).sum(1)
        if with_gradients:
            gradient = logits.sigmoid_()
            row_gradients[rows] += gradient.sum(1)
            of_image[rows].addmm_(gradient, block.texts[columns])
            of_texts[columns].addmm_(gradient.T, block.scaled[rows])

    # softplus(-x) = softplus(x) - x: the sums count every pair as a negative, so subtract the logits of the positives.
    positives = block.sum_of_positive_texts()
    positive_logits = (block.scaled * positives).sum(1) + bias * block.num_positives
    loss = (row_sums - positive_logits).sum() / block.mean_rows
    statistics = ranking.statistics()
    if not with_gradients:
        return loss, statistics, None
    of_image.sub_(positives).mul_(scale / block.mean_rows)
    block.add_to_positive_texts(of_texts, -block.scaled)
    of_text = reduce_scatter(of_texts, rows_of_ranks).div_(block.mean_rows)
    of_bias = (row_gradients - block.num_positives).sum()[None] / block.mean_rows
    return loss, statistics, Gradients(of_image, of_text, (of_image * image).sum()[None], of_bias)
