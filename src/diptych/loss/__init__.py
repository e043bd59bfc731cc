"""The losses a config can name: (image, text, logit_scale, logit_bias) → scalar.

Contract: the mean over ranks of the gradients is the gradient of one process on the concatenated batch.
"""

from collections.abc import Callable

from torch import Tensor

from diptych.loss.softmax import softmax_loss

Loss = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]

LOSSES: dict[str, Loss] = {"softmax": softmax_loss}
