"""The losses that a config can name: contrasts, and losses of single pairs that predict words.

Contract: the mean over ranks of the gradients is the gradient of a single process on the concatenated batch.
"""

from collections.abc import Sequence
from typing import Protocol

from torch import Tensor

from diptych.loss.sigmoid import sigmoid_loss
from diptych.loss.softmax import softmax_loss
from diptych.loss.tiles import LossOutput
from diptych.loss.visual_ngrams import VisualNgrams
from diptych.loss.words import BagOfWords


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
WordLoss = BagOfWords | VisualNgrams
WORD_LOSSES: dict[str, type[WordLoss]] = {each.name: each for each in (BagOfWords, VisualNgrams)}
