"""CLIP's two towers and the learned temperature (paper, section 2.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diptych.config.schema import LossConfig, ModelConfig
from diptych.config.stages import Stage
from diptych.errors import UserError
from diptych.model.image_tower import ImageTower
from diptych.model.text_tower import TextTower
from diptych.model.trunk import blocks_of
from diptych.model.word_predictor import WordPredictor
from diptych.terminal import counted

FILLING = ("add_", "clamp_", "copy_", "erfinv_", "fill_", "mul_", "normal_", "uniform_", "zero_")
"""Methods of a tensor with which initial values are set."""


class DualEncoder(nn.Module):
    """Embeds pictures and captions in one space of unit vectors.

    `logit_scale` is the logarithm of the factor on cosine similarities; its shape is [1], because ZeRO cannot divide
    a 0-dimensional parameter. `logit_bias`, of shape [1], is added to the logits of the sigmoid loss; it is None for
    the softmax loss.

    `token_head`, for runs that train one, gives logits of the vocabulary's tokens from the picture's feature before the
    projection. Only training uses it: model folders do not have it.

    stages: those in which the model is trained; no parameter depends on them.
    """

    logit_bias: nn.Parameter | None

    def __init__(
        self,
        config: ModelConfig,
        vocab_size: int,
        initial_logit_scale: float,
        initial_logit_bias: float | None = None,
        *,
        token_head: bool = False,
        stages: Sequence[Stage] = (),
    ):
        super().__init__()
        self.image = ImageTower(config.image, config.embed_dim, stages)
        self.text = TextTower(config.text, vocab_size, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor([initial_logit_scale], dtype=torch.float32))
        bias = None if initial_logit_bias is None else nn.Parameter(torch.tensor([initial_logit_bias]))
        self.register_parameter("logit_bias", bias)
        # Last, so that the towers start from the same weights with and without it.
        self.token_head = nn.Linear(self.image.width, vocab_size) if token_head else None

    def forward(
        self, images: Tensor, tokens: Tensor, lengths: Tensor, row_keys: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Embed images u8[batch 3 H W] and tokens i[batch context] of lengths i[batch] as two f32[batch dim].

        With a token head, its logits f[batch vocabulary] follow.

        row_keys: i64[batch], for the masks of patch dropout.
        """
        if self.token_head is None:
            return self.encode_image(images, row_keys), self.encode_text(tokens, lengths)
        features, embeddings = self.image.before_and_after_projection(images, row_keys)
        return unit_norm(embeddings), self.encode_text(tokens, lengths), self.token_head(features)

    def encode_image(self, images: Tensor, row_keys: Tensor | None = None) -> Tensor:
        """Embed u8[batch 3 H W] as f32[batch dim] of unit norm."""
        return unit_norm(self.image(images, row_keys))

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """Embed tokens i[batch context] as f32[batch dim] of unit norm; lengths i[batch] count both control tokens."""
        return unit_norm(self.text(tokens, lengths))


TrainedModel = DualEncoder | WordPredictor


def blocks_of_towers(model: TrainedModel) -> list[nn.Module]:
    """The blocks of the image tower that are known by name, then those of the text tower, if there is one."""
    return [*blocks_of(model.image.trunk), *(model.text.transformer.resblocks if model.text is not None else ())]


def checkpoint_blocks(model: TrainedModel) -> None:
    """Make the towers keep only the input of each block; the backward computes the rest again.

    Raises:
        UserError: the image tower does not support it, or has running statistics that would count each batch twice.
    """
    name = type(model.image.trunk).__name__
    if has_batch_statistics(model.state_dict()):
        raise UserError(
            f"machine.checkpoint_blocks: the image tower ({name}) has batch normalisation, whose running statistics "
            f"would count each batch twice; leave the key out, or use an image tower without it"
        )
    try:
        model.image.trunk.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError):
        raise UserError(f"machine.checkpoint_blocks: timm's {name} does not support it; leave it out") from None
    if model.text is not None:
        model.text.transformer.checkpoint_blocks = True


def unit_norm(features: Tensor) -> Tensor:
    """Scale rows to length one, in fp32 even if autocast made the features bf16."""
    return F.normalize(features.float(), dim=-1)


def load_weights(model: TrainedModel, state: Mapping[str, Tensor]) -> None:
    """Copy a state dict into the model.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    check_tensors(state, shapes_of(model))
    model.load_state_dict(state)


def model_of(config: ModelConfig, vocab_size: int, state: Mapping[str, Tensor]) -> DualEncoder:
    """The model with these tensors, on their device. They become its own: a copy would take memory twice.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    with _NoInitialValues():
        model = DualEncoder(config, vocab_size, 0.0, 0.0 if "logit_bias" in state else None)
    check_tensors(state, shapes_of(model))
    types = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor.to(types[name]) for name, tensor in state.items()}, assign=True)
    return model


def expected_shapes(
    config: ModelConfig, vocab_size: int, *, has_logit_bias: bool = False
) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of this model, found without allocating memory for it."""
    return shapes_of(without_memory(config, vocab_size, has_logit_bias=has_logit_bias))


def without_memory(
    config: ModelConfig,
    vocab_size: int,
    *,
    has_logit_bias: bool = False,
    stages: Sequence[Stage] = (),
) -> DualEncoder:
    """The model on torch's meta device: its tensors have shapes but no data."""
    bias = 0.0 if has_logit_bias else None
    with torch.device("meta"), _NoInitialValues():
        return DualEncoder(config, vocab_size, 0.0, bias, stages=stages)


def word_predictor_shapes(config: ModelConfig, num_outputs: int) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of a model that predicts words."""
    with torch.device("meta"), _NoInitialValues():
        return shapes_of(WordPredictor(config, num_outputs))


def trained_without_memory(config: ModelConfig, vocab_size: int, loss: LossConfig) -> TrainedModel:
    """What a run with this loss trains, on torch's meta device; the outputs for n-grams are not known yet."""
    with torch.device("meta"), _NoInitialValues():
        if loss.predicts_words:
            return WordPredictor(config, vocab_size)
        bias = 0.0 if loss.name == "sigmoid" else None
        return DualEncoder(config, vocab_size, 0.0, bias, token_head=loss.has_token_head)


class _NoInitialValues(TorchFunctionMode):
    """Skips methods that fill parameters, and all tensors on the meta device, with initial values nobody reads."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name, module = (getattr(function, key, "") for key in ("__name__", "__module__"))
        if name in FILLING or (module == nn.init.__name__ and name.endswith("_")):
            filled = args[0] if args else kwargs.get("tensor")
            if isinstance(filled, nn.Parameter) or (isinstance(filled, Tensor) and filled.is_meta):
                return filled
        return function(*args, **kwargs)


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def rank_dependence(names: Iterable[str], num_ranks: int) -> str | None:
    """A note that results depend on the number of ranks; None if they do not.

    Batch normalisation computes its statistics over a rank's own rows (as in PyTorch's DistributedDataParallel by
    default), so a tower with it gives different results on another number of ranks.
    """
    if num_ranks == 1 or not has_batch_statistics(names):
        return None
    return (
        f"the image tower has batch normalisation, whose statistics are computed over the rows of each of the "
        f"{num_ranks} ranks: results will differ from those on another number of ranks"
    )


def has_batch_statistics(names: Iterable[str]) -> bool:
    """Whether a model with these tensors has batch normalisation, so that each row depends on the rows next to it."""
    return any(name.endswith("running_mean") for name in names)


def check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raise UserError unless a state contains exactly the expected tensors (name → shape)."""
    if missing := sorted(expected.keys() - state.keys()):
        raise UserError(
            f"tensor {missing[0]} is missing{f', and {len(missing) - 1} more' if missing[1:] else ''}: "
            f"got {counted(len(state), 'tensor')}, expected {len(expected)}"
        )
    if unknown := sorted(state.keys() - expected.keys()):
        more = f", nor are {len(unknown) - 1} more" if unknown[1:] else ""
        raise UserError(f"tensor {unknown[0]} is not part of this model{more}")
    for name, shape in expected.items():
        if tuple(state[name].shape) != shape:
            raise UserError(f"tensor {name} has shape {list(state[name].shape)}, expected {list(shape)}")
        if not state[name].is_floating_point() and not name.endswith("num_batches_tracked"):
            raise UserError(f"tensor {name} contains {state[name].dtype}, expected floating point numbers")
