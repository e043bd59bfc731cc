"""This rank's images against the texts of all ranks: b × N similarities, of which only a tile exists at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from diptych.loss.gather import gathered, maximum_over_ranks, num_ranks, rank

TILES = {"cpu": (512, 512)}
"""Rows and columns by kind of device: on the CPU a tile stays in the cache of its core."""
LARGE_TILE = (4096, 8192)


class LossOutput(NamedTuple):
    """What a loss gives; every number but the first is for looking at and has no gradient."""

    loss: Tensor
    """f32[]"""
    statistics: BatchStatistics


class BatchStatistics(NamedTuple):
    """f32[] each, of which the mean over ranks is that over all pairs of the global batch."""

    i2t_accuracy: Tensor
    """The share of pictures that are closer to their caption than to any negative; a tie is a miss."""
    t2i_accuracy: Tensor
    positive_similarity: Tensor
    """Cosine of a pair."""
    hardest_negative_similarity: Tensor
    """Cosine of a picture and the closest caption that is not one of its own."""


class Gradients(NamedTuple):
    """Of the loss; those of image and text have the shape of this rank's rows and count the loss of every rank."""

    image: Tensor
    text: Tensor
    logit_scale: Tensor
    logit_bias: Tensor | None


class Block:
    """The logits of this rank's rows: `scale * image @ text.T` over the texts of all ranks.

    captions: i64[batch], equal where two pairs have the same caption, whatever their rank; then each is a positive
    of the other. None: a pair's only positive is itself, as in the paper.
    rows_of_ranks: how many rows each rank has; None: all as many as this one.
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
        """What sums over this rank's rows are divided by, so that their mean over ranks is that of the whole batch."""
        self.scale = scale
        self._tile = TILES.get(image.device.type, LARGE_TILE)
        self._first = rank() * len(image) if rows_of_ranks is None else sum(rows_of_ranks[: rank()])
        self._has_duplicates = captions is not None
        if captions is None:
            captions = self._first + torch.arange(len(image), device=image.device)
            everyone = torch.arange(len(self.texts), device=image.device)
        else:
            everyone = gathered(captions[:, None], rows_of_ranks)[:, 0]
        # A group is the place of a caption in the sorted captions of this rank; texts of no group here get one more.
        ordered = captions.sort().values
        self._row_group = torch.searchsorted(ordered, captions)
        group = torch.searchsorted(ordered, everyone).clamp_(max=len(captions) - 1)
        self._column_group = torch.where(ordered[group] == everyone, group, len(captions))
        counts = torch.zeros(len(captions) + 1, device=image.device)
        counts.index_add_(0, self._column_group, torch.ones(len(everyone), device=image.device))
        self.num_positives = counts[self._row_group]
        """f32[batch]: how many texts of the global batch are positives of each row."""

    @property
    def own_columns(self) -> slice:
        return slice(self._first, self._first + len(self.scaled))

    def tiles(self) -> Iterator[tuple[slice, slice, Tensor]]:
        """(rows, columns, f32[rows columns]) of every tile; the memory of a tile is used again for the next."""
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
        """The tile with -inf in place of positives; the tile itself where it cannot hold any."""
        own = self.own_columns
        if not self._has_duplicates and (columns.stop <= own.start or own.stop <= columns.start):
            return logits
        return logits.masked_fill(self._row_group[rows, None] == self._column_group[columns], -torch.inf)

    def sum_of_positive_texts(self) -> Tensor:
        """f32[batch dim]: for each row the sum of the texts that are its positives."""
        sums = self.texts.new_zeros((len(self.scaled) + 1, self.texts.shape[1]))
        return sums.index_add_(0, self._column_group, self.texts)[self._row_group]

    def add_to_positive_texts(self, gradient: Tensor, rows: Tensor) -> None:
        """Add each row of f32[batch dim] to the gradient, f32[N dim], of all texts that are its positives."""
        sums = rows.new_zeros((len(rows) + 1, rows.shape[1])).index_add_(0, self._row_group, rows)
        for left in range(0, len(gradient), self._tile[1]):
            columns = slice(left, left + self._tile[1])
            gradient[columns] += sums[self._column_group[columns]]

    @property
    def _shape(self) -> tuple[int, int]:
        return len(self.scaled), len(self.texts)


class Ranking:
    """How near each pair is, and its nearest negatives, as the tiles pass.

    All are read from the tiles: a pair's own logit computed in another way would be, by rounding, above or below that
    of the same caption elsewhere, and towers that give everything one embedding could be right every time.
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
        """Once all tiles have passed; every rank must call it."""
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
"""(image, text, logit_scale, logit_bias, captions, rows_of_ranks, with_gradients) → the loss and what follows."""


def with_gradients_computed_forward(
    compute: Compute,
    image: Tensor,
    text: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor | None,
    captions: Tensor | None,
    rows_of_ranks: Sequence[int] | None,
) -> LossOutput:
    """The loss as a node of autograd's graph, in fp32 whatever autocast says.

    Its gradients are computed together with it, since they come from the same tiles: what is kept for the backward
    pass has the shape of the features.
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
