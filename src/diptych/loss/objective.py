"""What a training step minimises: the contrast over the global batch, and a loss of each pair by itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from diptych.config.schema import LossConfig
from diptych.loss import LOSSES
from diptych.loss.gather import num_ranks


class Outputs(NamedTuple):
    """What the model computes of a rank's pairs."""

    rows: tuple[Tensor, ...]
    """With a contrast the image and text features f32[rows dim]; then, if words are predicted, the loss of each pair,
    f32[rows]."""
    scalars: tuple[Tensor, ...]
    """With a contrast logit_scale, and perhaps logit_bias, f32[1]."""


class Objective:
    """The loss of a step, as its config describes it.

    The mean over ranks of the value, and of its gradients, is that of a single process on the concatenated batch.
    """

    def __init__(self, config: LossConfig, rows_of_ranks: Sequence[int]):
        self._contrast = None if config.predicts_words else LOSSES[config.name]
        self._weight = config.token_head.weight
        self._rows_of_ranks = rows_of_ranks
        self._mean_rows = sum(rows_of_ranks) / num_ranks()

    def __call__(self, outputs: Outputs, captions: Tensor | None) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss f32[], and numbers about it without gradient, whose means over ranks are those of the whole batch.

        captions: as for the losses in LOSSES. Every rank must call it.
        """
        if self._contrast is None:
            return outputs.rows[0].sum() / self._mean_rows, {}
        image, text, *losses = outputs.rows
        scale, *biases = outputs.scalars
        bias = biases[0] if biases else None
        loss, statistics = self._contrast(image, text, scale, bias, captions, self._rows_of_ranks)
        numbers = statistics._asdict()
        if losses:
            # Not the mean over this rank's rows, of which another rank may have more.
            of_tokens = losses[0].sum() / self._mean_rows
            numbers["token_loss"] = of_tokens.detach()
            loss = loss + self._weight * of_tokens
        return loss, numbers
