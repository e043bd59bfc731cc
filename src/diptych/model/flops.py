"""Count the floating point operations of a training step."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from diptych.config.schema import LossConfig, ModelConfig
from diptych.model.dual_encoder import blocks_of_towers, trained_without_memory
from diptych.model.patch_dropout import PatchDropout
from diptych.model.repeated_blocks import each_kind_once
from diptych.model.word_predictor import WordPredictor

BACKWARD_AND_FORWARD = 3
"""Forward and backward together take three times the forward: the backward multiplies once for each of two gradients,
those of the weights and those of the inputs."""


class TrainingFlops:
    """Counts the floating point operations of the model in one forward and backward; a multiply-add counts as two.

    A tower that `model.freeze` freezes whole has no backward; one that is frozen in part has it down to the first
    parameter that is trained.

    Operations repeated to save memory are not counted, as usual for model FLOPs utilisation (PaLM, arXiv 2204.02311,
    appendix B); nor are those of the loss.
    """

    def __init__(self, config: ModelConfig, vocab_size: int, loss: LossConfig | None = None):
        self._config = config
        self._model = trained_without_memory(config, vocab_size, loss or LossConfig()).eval()
        for name, parameter in self._model.named_parameters():
            parameter.requires_grad_(not any(fnmatchcase(name, pattern) for pattern in config.freeze))
        for module in self._model.modules():
            if isinstance(module, PatchDropout):
                module.train()  # so that patches that are left out in training are not counted
        size = config.image.image_size
        picture = torch.empty(1, 3, size, size, dtype=torch.uint8, device="meta")
        keys = torch.empty(1, dtype=torch.int64, device="meta")
        self._of_picture = self._in_training(self._model.image, picture, keys)
        head = self._model.words if isinstance(self._model, WordPredictor) else self._model.token_head
        if head is not None:
            of_head = self._of_forward(head, torch.empty(1, self._model.image.width, device="meta"))
            self._of_picture += BACKWARD_AND_FORWARD * of_head
        self._of_caption: dict[int, int] = {}
        """Length of a caption in tokens → its operations."""

    def of_pair(self, num_tokens: float) -> int:
        """Operations for a pair whose caption has `num_tokens` tokens; padding is not computed."""
        if self._model.text is None:
            return self._of_picture
        length = max(2, min(round(num_tokens), self._config.text.context_length))
        if length not in self._of_caption:
            tokens = torch.empty(1, length, dtype=torch.int32, device="meta")
            self._of_caption[length] = self._in_training(self._model.text, tokens, torch.tensor([length]))
        return self._of_picture + self._of_caption[length]

    def _in_training(self, tower: nn.Module, *inputs: Tensor) -> int:
        """The operations of a forward of a tower, and of its backward as far as anything in it is trained."""
        is_trained = [parameter.requires_grad for parameter in tower.parameters()]
        if any(is_trained) and not all(is_trained):
            with FlopCounterMode(display=False) as counter:
                tower(*inputs).sum().backward()
            return int(counter.get_total_flops())
        return self._of_forward(tower, *inputs) * (BACKWARD_AND_FORWARD if all(is_trained) else 1)

    def _of_forward(self, part: nn.Module, *inputs: Tensor) -> int:
        """The operations of a forward of a part of the model."""
        of_repeated = 0

        def measured(_: nn.Module, compute: Callable[[], Tensor], inputs: tuple[Any, ...]) -> tuple[Tensor, int]:
            before = counter.get_total_flops()
            output = compute()
            return output, counter.get_total_flops() - before

        def repeated(_: nn.Module, flops: int, inputs: tuple[Any, ...], output: Tensor) -> None:
            nonlocal of_repeated
            of_repeated += flops

        blocks = each_kind_once(blocks_of_towers(self._model), measured, repeated)
        with FlopCounterMode(display=False) as counter, torch.no_grad(), blocks:
            part(*inputs)
        return int(counter.get_total_flops()) + of_repeated
