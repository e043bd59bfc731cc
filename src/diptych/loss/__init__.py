"""The losses that a config can name.

Contract: the mean over ranks of the gradients is the gradient of a single process on the concatenated batch.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from diptych.loss.sigmoid import sigmoid_loss
from diptych.loss.softmax import softmax_loss
from diptych.loss.tiles import LossOutput


class Loss(Protocol):
    def __call__(
        self,
        image: Tensor,
        text: Tensor,
        logit_scale: Tensor,
        logit_bias: Tensor | None,
        captions: Tensor | None,
        rows_of_ranks: Sequence[int] | None = None,
        /,
    ) -> LossOutput: ...


LOSSES: dict[str, Loss] = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}
