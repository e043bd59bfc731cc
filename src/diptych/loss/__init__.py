"""The losses a config can name: (image, text, logit_scale, logit_bias, captions) → `LossOutput`.

Contract: the mean over ranks of the gradients is the gradient of one process on the concatenated batch.
"""

from collections.abc import Callable

from torch import Tensor

from diptych.loss.sigmoid import sigmoid_loss
from diptych.loss.softmax import softmax_loss
from diptych.loss.tiles import LossOutput

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None, Tensor | None], LossOutput]

LOSSES: dict[str, Loss] = {"softmax": softmax_loss, "sigmoid": sigmoid_loss}
