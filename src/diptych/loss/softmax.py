"""The paper's loss: symmetric cross-entropy over cosine similarities of all pairs of the global batch (section 2.3)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from diptych.loss.gather import maximum_over_ranks, reduce_scatter, sum_over_ranks
from diptych.loss.tiles import BatchStatistics, Block, Gradients, LossOutput, Ranking, with_gradients_computed_forward


def softmax_loss(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None = None,
    captions: Tensor | None = None,
    rows_of_ranks: Sequence[int] | None = None,
) -> LossOutput:
    """InfoNCE of this rank's pairs against the global batch, in fp32.

    image, text: f32[batch, dim] of unit norm; row i of both is one pair.
    logit_scale: f32[1], the logarithm of the factor on the cosines.
    logit_bias: not used, since it would cancel in the softmax.
    captions: i64[batch], if pairs with equal captions are positives of one another: the target is then uniform over a
        row's positives (UniCL, arXiv 2204.03610, equations 2 and 3).
    rows_of_ranks: the number of rows of each rank, if not all have as many as this one.

    The mean over ranks of the value, and of its gradients, is that of a single process on the concatenated batch, so
    data parallelism is exact at any number of ranks. Every rank must call it.
    """
    return with_gradients_computed_forward(_softmax, image, text, logit_scale, None, captions, rows_of_ranks)


def _softmax(
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    bias: None,
    captions: Tensor | None,
    rows_of_ranks: Sequence[int] | None,
    with_gradients: bool,
) -> tuple[Tensor, BatchStatistics, Gradients | None]:
    scale = logit_scale.exp()
    block = Block(image, text, scale, captions, rows_of_ranks)
    row_sums, column_sums, statistics = _log_sums(block)
    positives = block.sum_of_positive_texts() / block.num_positives[:, None]
    losses = (row_sums + column_sums[block.own_columns]) / 2 - (block.scaled * positives).sum(1)
    loss = losses.sum() / block.mean_rows
    if not with_gradients:
        return loss, statistics, None

    of_image, of_texts = torch.zeros_like(image), torch.zeros_like(block.texts)
    for rows, columns, logits in block.tiles():
        gradient = (logits - row_sums[rows, None]).exp_()
        gradient.add_(logits.sub_(column_sums[columns]).exp_())
        of_image[rows].addmm_(gradient, block.texts[columns])
        of_texts[columns].addmm_(gradient.T, block.scaled[rows])
    of_image.sub_(positives, alpha=2).mul_(scale / (2 * block.mean_rows))
    del positives  # the next lines need most memory
    block.add_to_positive_texts(of_texts, block.scaled * (-2 / block.num_positives[:, None]))
    of_text = reduce_scatter(of_texts, rows_of_ranks).div_(2 * block.mean_rows)
    return loss, statistics, Gradients(of_image, of_text, (of_image * image).sum()[None], None)


def _log_sums(block: Block) -> tuple[Tensor, Tensor, BatchStatistics]:
    """The logarithm of the sum of exponentials of each row, f32[batch], and of each column over all ranks, f32[N]."""
    rows_, columns_, ranking = _RunningSum(block.scaled[:, 0]), _RunningSum(block.texts[:, 0]), Ranking(block)
    for rows, columns, logits in block.tiles():
        ranking.add(rows, columns, logits)
        rows_.add(rows, logits, 1)
        columns_.add(columns, logits, 0)
    largest = maximum_over_ranks(columns_.largest)
    sums = sum_over_ranks(columns_.sums * (columns_.largest - largest).exp())
    return rows_.largest + rows_.sums.log(), largest + sums.log(), ranking.statistics()


class _RunningSum:
    """Sums of exponentials, stored relative to the largest exponent so far, so that they never overflow."""

    def __init__(self, like: Tensor):
        self.largest = torch.full_like(like, -torch.inf)
        self.sums = torch.zeros_like(like)

    def add(self, part: slice, logits: Tensor, dim: int) -> None:
        largest = torch.maximum(self.largest[part], logits.amax(dim))
        self.sums[part] *= (self.largest[part] - largest).exp()
        self.sums[part] += (logits - largest.unsqueeze(dim)).exp_().sum(dim)
        self.largest[part] = largest
