"""Measure how much memory the towers keep for the backward, by a forward of tensors that have shapes but no data."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from diptych.config.schema import LossConfig, ModelConfig
from diptych.model.dual_encoder import TrainedModel, blocks_of_towers, trained_without_memory
from diptych.model.freezing import freeze
from diptych.model.packed_captions import PackedCaptions
from diptych.model.repeated_blocks import each_kind_once, tensors_in
from diptych.model.word_predictor import WordPredictor


@dataclass(frozen=True)
class Activations:
    """Bytes kept for the backward; a pair is a picture and a caption as long as the context."""

    of_pair: int
    of_pair_checkpointed: int
    """Bytes of a pair if blocks are checkpointed, so that only the input of each block is kept."""
    of_pair_in_largest_block: int
    """Bytes that the largest block keeps inside; with checkpointed blocks they exist for one block at a time."""
    of_weights: int
    """Bytes that do not depend on the number of pairs: autocast's copies of the weights."""


def activations(
    config: ModelConfig, vocab_size: int, device_type: str, precision: str, loss: LossConfig | None = None
) -> Activations:
    """Measure the activations with the operations of a kind of device, which this machine need not have.

    Raises:
        RuntimeError and others: the image tower's computation depends on the data of its tensors.
    """
    model = trained_without_memory(config, vocab_size, loss or LossConfig())
    freeze(model, config.freeze)
    context_length = config.text.context_length
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings about a device that this machine does not have
        # Not `to_empty`, which first makes a fake tensor of each tensor without data: that takes seven times as long.
        model._apply(  # type: ignore[no-untyped-call]
            lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype, device=device_type)
        )
        # Not one pair: batch normalisation refuses a single value of a channel, which small pictures may come to.
        two, three = (_Kept(model, pairs, context_length, device_type, precision) for pairs in (2, 3))
    return Activations(
        of_pair=three.all - two.all,
        of_pair_checkpointed=three.outside - two.outside,
        of_pair_in_largest_block=three.largest_block - two.largest_block,
        of_weights=3 * two.all - 2 * three.all,
    )


class _Kept:
    """The storages that are kept for the backward of a number of pairs."""

    def __init__(self, model: TrainedModel, pairs: int, length: int, device_type: str, precision: str):
        self._parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
        self._by_block: dict[nn.Module | None, dict[Hashable, Any]] = {None: {}}
        self._block: nn.Module | None = None
        size = model.image.image_size
        images = torch.zeros(pairs, 3, size, size, dtype=torch.uint8, device=device_type)
        tokens = torch.zeros(pairs, length, dtype=torch.int32, device=device_type)
        row_keys = torch.zeros(pairs, dtype=torch.long, device=device_type)
        captions = _equal_captions(pairs, length, device_type)
        blocks = each_kind_once(blocks_of_towers(model), self._compute, self._repeat)
        with blocks, _autocast(device_type, precision), _AttentionOf(device_type):
            with torch.autograd.graph.saved_tensors_hooks(self._keep, lambda kept: kept):
                # The loss keeps logits of words in fp32, and their exponentials.
                if isinstance(model, WordPredictor):
                    features = [model.words(model.encode_image(images, row_keys)).float().logsumexp(1)]
                elif model.token_head is None:
                    features = [model.encode_image(images, row_keys)]
                else:
                    before, embeddings = model.image.before_and_after_projection(images, row_keys)
                    features = [embeddings, model.token_head(before).float().logsumexp(1)]
                if model.text is not None:
                    features.append(model.text.embed_packed(tokens, captions))
        self.all = _bytes({key: each for kept in self._by_block.values() for key, each in kept.items()})
        self.outside = _bytes(self._by_block[None])
        self.largest_block = max((_bytes(kept) for block, kept in self._by_block.items() if block), default=0)
        del features  # its graph kept the storages alive until here

    def _keep(self, tensor: Tensor) -> Tensor:
        self._add(tensor, self._block)
        return tensor

    def _add(self, tensor: Tensor, block: nn.Module | None) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._parameters:
            self._by_block.setdefault(block, {})[storage._cdata] = storage

    def _compute(
        self, block: nn.Module, compute: Callable[[], Tensor], inputs: tuple[Any, ...]
    ) -> tuple[Tensor, list[tuple[int | None, Any]]]:
        """Compute a block, whose first input counts as outside of it, since a checkpointed block keeps that too.

        With the output comes each storage that is kept in the block, and its place among those passed in and out.
        """
        self._add(inputs[0], None)
        self._block = block
        output = compute()
        self._block = None
        places = {each.untyped_storage()._cdata: n for n, each in enumerate(tensors_in([*inputs, output]))}
        kept = self._by_block.get(block, {})
        return output, [(places.get(address), storage) for address, storage in kept.items()]

    def _repeat(
        self, block: nn.Module, kept: list[tuple[int | None, Any]], inputs: tuple[Any, ...], output: Tensor
    ) -> None:
        """Count for a block what one of its kind kept."""
        self._add(inputs[0], None)
        passed = tensors_in([*inputs, output])
        for place, storage in kept:
            if place is not None:
                self._add(passed[place], block)
            else:
                self._by_block.setdefault(block, {})[id(block), id(storage)] = storage


class _AttentionOf(TorchFunctionMode):
    """Uses CUDA's attention kernel for the type of number; torch would choose it by asking the device."""

    def __init__(self, device_type: str):
        super().__init__()
        self._is_cuda = device_type == "cuda"

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._is_cuda or function is not F.scaled_dot_product_attention or len(args) > 3:
            return function(*args, **kwargs)
        is_causal = kwargs.get("is_causal", False)
        if kwargs.get("attn_mask") is None and torch.is_autocast_enabled("cuda"):
            halves = (each.to(torch.bfloat16) for each in args)
            return torch.ops.aten._scaled_dot_product_flash_attention(*halves, 0.0, is_causal)[0]
        mask = kwargs.get("attn_mask")
        return torch.ops.aten._scaled_dot_product_efficient_attention(*args, mask, True, 0.0, is_causal)[0]


@contextmanager
def _autocast(device_type: str, precision: str) -> Iterator[None]:
    """Autocast to bf16 if that is the precision; `torch.autocast` refuses a device that this machine does not have."""
    before = torch.is_autocast_enabled(device_type), torch.get_autocast_dtype(device_type)
    torch.set_autocast_enabled(device_type, precision == "bf16")
    torch.set_autocast_dtype(device_type, torch.bfloat16)
    try:
        yield
    finally:
        torch.set_autocast_enabled(device_type, before[0])
        torch.set_autocast_dtype(device_type, before[1])
        torch.clear_autocast_cache()


def _equal_captions(number: int, length: int, device_type: str) -> PackedCaptions:
    def indices(size: int) -> Tensor:
        return torch.zeros(size, dtype=torch.long, device=device_type)

    return PackedCaptions(
        places=indices(number * length),
        positions=indices(number * length),
        ends=indices(number),
        bounds=indices(number + 1).int(),
        groups=((number, length),),
        has_varlen_kernel=False,
    )


def _bytes(storages: dict[Hashable, Any]) -> int:
    return sum(storage.nbytes() for storage in storages.values())
