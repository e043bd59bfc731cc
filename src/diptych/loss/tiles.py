"""Compute the similarities of this rank's images with the texts of all ranks, in tiles, so that memory stays small."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diptych.loss.gather import gathered, maximum_over_ranks, num_ranks, rank

TILES = {"cpu": (512, 512)}
"""Kind of device → rows and columns of a tile; on the CPU a tile fits into the cache of a core."""
LARGE_TILE = (4096, 8192)


class LossOutput(NamedTuple):
    """The loss, and statistics without gradient."""

    loss: Tensor
    """f32[]"""
    statistics: BatchStatistics


class BatchStatistics(NamedTuple):
    """f32[] each, scaled so that the mean over ranks is the mean over all pairs of the global batch."""

    i2t_accuracy: Tensor
    """The share of pictures that are closer to their caption than to any negative; a tie is a miss."""
    t2i_accuracy: Tensor
    positive_similarity: Tensor
    """The mean cosine of a picture and its caption."""
    hardest_negative_similarity: Tensor
    """The mean cosine of a picture and the closest caption among its negatives."""


class Gradients(NamedTuple):
    """Gradients of the loss; those of this rank's image and text rows count the losses of all ranks."""

    image: Tensor
    text: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None


class Block:
    """The logits of this rank's rows: `scale * image @ text.T` over the texts of all ranks.

    captions: i64[batch], equal if two pairs of any ranks have the same caption; such pairs are positives of one
        another. None: a pair's only positive is itself, as in the paper.
    rows_of_ranks: the number of rows of each rank; None if all have as many as this one.
    """

    def __init__(
        self,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        captions: Tensor | None,
        rows_of_ranks: Sequence[int] | None,
    ):
        self.scaled = image * scale
        self.texts = gathered(text, rows_of_ranks)
        self.mean_rows = len(self.texts) / num_ranks()
        """Divisor of sums over this rank's rows, with which their mean over ranks is the mean over the whole batch."""
        self.scale = scale
        self._tile = TILES.get(image.device.type, LARGE_TILE)
        self._first = rank() * len(image) if rows_of_ranks is None else sum(rows_of_ranks[: rank()])
        self._has_duplicates = captions is not None
        if captions is None:
            captions = self._first + torch.arange(len(image), device=image.device)
            everyone = torch.arange(len(self.texts), device=image.device)
        else:
            everyone = gathered(captions[:, None], rows_of_ranks)[:, 0]
        # A group is the place of a caption among this rank's sorted captions; all other texts get one extra group.
        ordered = captions.sort().values
        self._row_group = torch.searchsorted(ordered, captions)
        group = torch.searchsorted(ordered, everyone).clamp_(max=len(captions) - 1)
        self._column_group = torch.where(ordered[group] == everyone, group, len(captions))
        counts = torch.zeros(len(captions) + 1, device=image.device)
        counts.index_add_(0, self._column_group, torch.ones(len(everyone), device=image.device))
        self.num_positives = counts[self._row_group]
        """f32[batch]: for each row, how many texts of the global batch are its positives."""

    @property
    def own_columns(self) -> slice:
        return slice(self._first, self._first + len(self.scaled))

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """Yield (rows, columns, logits f32[rows columns]) of each tile; the next tile overwrites its memory."""
        height, width = (min(side, size) for side, size in zip(self._tile, self._shape, strict=True))
        memory = self.scaled.new_empty(height * width)
        for left in range(0, self._shape[1], width):
            columns = slice(left, min(left + width, self._shape[1]))
            for top in range(0, self._shape[0], height):
                rows = slice(top, min(top + height, self._shape[0]))
                shape = (rows.stop - rows.start, columns.stop - columns.start)
                logits = memory[: shape[0] * shape[1]].view(shape)
                torch.mm(self.scaled[rows], self.texts[columns].T, out=logits)
                yield rows, columns, logits

    def negatives(self, rows: slice, columns: slice, logits: Tensor) -> Tensor:
        """The tile with -inf in place of positives; the tile itself if it cannot contain any."""
        own = self.own_columns
        if not self._has_duplicates and (columns.stop <= own.start or own.stop <= columns.start):
            return logits
        return logits.masked_fill(self._row_group[rows, None] == self._column_group[columns], -torch.inf)

    def sum_of_positive_texts(self) -> Tensor:
        """f32[batch dim]: for each row, the sum of the texts that are its positives."""
        sums = self.texts.new_zeros((len(self.scaled) + 1, self.texts.shape[1]))
        return sums.index_add_(0, self._column_group, self.texts)[self._row_group]

    def add_to_positive_texts(self, gradient: Tensor, rows: Tensor) -> None:
        """Add each row, f32[batch dim], to the gradient, f32[N dim], of all texts that are its positives."""
        sums = rows.new_zeros((len(rows) + 1, rows.shape[1])).index_add_(0, self._row_group, rows)
        for left in range(0, len(gradient), self._tile[1]):
            columns = slice(left, left + self._tile[1])
            gradient[columns] += sums[self._column_group[columns]]

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.scaled), len(self.texts)


class Ranking:
    """Collects from the tiles the logit of each pair and those of its nearest negatives.

    All logits must come from the tiles. Computed in another way, a pair's logit could differ by rounding from that of
    an equal caption, and towers that give everything the same embedding could be right every time.
    """

    def __init__(self, block: Block):
        self._block = block
        self._own = torch.zeros_like(block.scaled[:, 0])
        self._row_negatives = torch.full_like(self._own, -torch.inf)
        self._column_negatives = torch.full_like(block.texts[:, 0], -torch.inf)

    def add(self, rows: slice, columns: slice, logits: Tensor) -> None:
        offset = self._block.own_columns.start + rows.start - columns.start
        if -logits.shape[0] < offset < logits.shape[1]:
            own = logits.diagonal(offset)
            first = rows.start + max(0, -offset)
            self._own[first : first + len(own)] = own
        negatives = self._block.negatives(rows, columns, logits)
        torch.maximum(self._row_negatives[rows], negatives.amax(1), out=self._row_negatives[rows])
        torch.maximum(self._column_negatives[columns], negatives.amax(0), out=self._column_negatives[columns])

    def statistics(self) -> BatchStatistics:
        """The statistics after all tiles were added; every rank must call it."""
        block = self._block
        column_negatives = maximum_over_ranks(self._column_negatives)[block.own_columns]
        values = [
            (self._own > self._row_negatives).float(),
            (self._own > column_negatives).float(),
            self._own / block.scale,
            self._row_negatives / block.scale,
        ]
        return BatchStatistics(*(each.sum() / block.mean_rows for each in values))


Compute = Callable[..., tuple[Tensor, BatchStatistics, Gradients | None]]
"""(image, text, logit_scale, logit_bias, captions, rows_of_ranks, with_gradients) → loss, statistics, gradients."""


def with_gradients_computed_forward(
    compute: Compute,
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    captions: Tensor | None,
    rows_of_ranks: Sequence[int] | None,
) -> LossOutput:
    """Compute a loss and its gradients in one pass over the tiles, as a node of autograd's graph; in fp32 always.

    Only the gradients, which have the shape of the features, are kept for the backward.
    """
    with torch.autocast(image.device.type, enabled=False):
        bias = None if logit_bias is None else logit_bias.float()
        inputs = image.float(), text.float(), logit_scale.float(), bias, captions
        loss, *statistics = _Loss.apply(compute, *inputs, rows_of_ranks)
        return LossOutput(loss, BatchStatistics(*statistics))


class _Loss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, compute: Compute, *inputs: Any) -> tuple[Tensor, ...]:
        loss, statistics, gradients = compute(*inputs, any(ctx.needs_input_grad))
        ctx.mark_non_differentiable(*statistics)
        if gradients is not None:
            ctx.save_for_backward(*gradients)
        return loss, *statistics

    @staticmethod
    def backward(ctx: Any, *of_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradients = [None if each is None else each * of_outputs[0] for each in ctx.saved_tensors]
        return None, *gradients, None, None
