"""The model as DeepSpeed trains it: what goes in and comes out of a forward are tensors alone."""

from __future__ import annotations

import deepspeed
import torch
from torch import Tensor, nn

from diptych.loss.objective import Outputs
from diptych.model.dual_encoder import TrainedModel


class Towers(nn.Module):
    """The model with autocast inside its forward, since DeepSpeed switches off autocast that is set outside."""

    def __init__(self, model: TrainedModel, precision: str, pair_loss: nn.Module | None):
        super().__init__()
        self.model = model
        self._pair_loss = pair_loss
        self._bf16 = precision == "bf16"
        for scalar in self._scalars():
            if hasattr(scalar, "ds_id"):
                deepspeed.zero.register_external_parameter(self, scalar)

    def forward(self, images: Tensor, tokens: Tensor, lengths: Tensor, row_keys: Tensor) -> tuple[Tensor, ...]:
        """The rows of `Outputs`, then its scalars.

        The scalars are copies in the graph, since ZeRO-3 frees the parameters themselves after the forward. Logits of
        words stay inside: they are larger than anything else.
        """
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            rows = self.model(images, tokens, lengths, row_keys)
        if self._pair_loss is not None:
            rows = *rows[:-1], self._pair_loss(rows[-1], tokens, lengths)
        return *rows, *(scalar.clone() for scalar in self._scalars())

    def unpacked(self, outputs: tuple[Tensor, ...]) -> Outputs:
        """What `forward` returned, in its two kinds."""
        num_rows = len(outputs) - len(self._scalars())
        return Outputs(outputs[:num_rows], outputs[num_rows:])

    def _scalars(self) -> list[nn.Parameter]:
        """Read the scalars as attributes each time: that is how ZeRO-3 notices that one is needed."""
        return [each for each in (self.model.logit_scale, self.model.logit_bias) if each is not None]
