"""CLIP's two towers and the learned temperature between them (paper, section 2.3)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diptych.config.schema import ModelConfig
from diptych.errors import UserError
from diptych.model.image_tower import ImageTower
from diptych.model.text_tower import TextTower
from diptych.terminal import counted


class DualEncoder(nn.Module):
    """Pictures and captions in one space of unit vectors.

    `logit_scale` is the logarithm of what cosine similarities are multiplied by, of shape [1] because ZeRO
    partitions no 0-dimensional parameter. `logit_bias`, of shape [1], is what the sigmoid loss adds; None for the
    softmax loss, which has none.
    """

    logit_bias: nn.Parameter | None

    def __init__(
        self, config: ModelConfig, vocab_size: int, initial_logit_scale: float, initial_logit_bias: float | None = None
    ):
        super().__init__()
        self.image = ImageTower(config.image, config.embed_dim)
        self.text = TextTower(config.text, vocab_size, config.embed_dim)
        self.logit_scale = nn.Parameter(torch.tensor([initial_logit_scale], dtype=torch.float32))
        bias = None if initial_logit_bias is None else nn.Parameter(torch.tensor([initial_logit_bias]))
        self.register_parameter("logit_bias", bias)

    def forward(
        self, images: Tensor, tokens: Tensor, lengths: Tensor, row_keys: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """images u8[batch 3 H W], tokens i[batch context], lengths i[batch] → two f32[batch dim].

        row_keys: i64[batch], for the masks of patch dropout.
        """
        return self.encode_image(images, row_keys), self.encode_text(tokens, lengths)

    def encode_image(self, images: Tensor, row_keys: Tensor | None = None) -> Tensor:
        """u8[batch 3 H W] → f32[batch dim] of unit norm."""
        return unit_norm(self.image(images, row_keys))

    def encode_text(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        """tokens i[batch context], lengths i[batch] with both control tokens → f32[batch dim] of unit norm."""
        return unit_norm(self.text(tokens, lengths))


def checkpoint_blocks(model: DualEncoder) -> None:
    """Have the towers keep only what goes into each of their blocks, for the backward to compute the rest again.

    Raises:
        UserError: the image tower cannot, or has statistics that would be taken twice.
    """
    name = type(model.image.trunk).__name__
    if has_batch_statistics(model.state_dict()):
        raise UserError(
            f"machine.checkpoint_blocks: the image tower ({name}) has batch normalisation, whose running statistics "
            f"would count each batch twice; leave it out, or take an image tower without"
        )
    try:
        model.image.trunk.set_grad_checkpointing(True)
    except (AttributeError, AssertionError, NotImplementedError):
        raise UserError(f"machine.checkpoint_blocks: timm's {name} does not offer it; leave it out") from None
    model.text.transformer.checkpoint_blocks = True


def unit_norm(features: Tensor) -> Tensor:
    """Rows of length one, in fp32 also where autocast made the features bf16."""
    return F.normalize(features.float(), dim=-1)


def load_weights(model: DualEncoder, state: Mapping[str, Tensor]) -> None:
    """Fill every tensor of the model.

    Raises:
        ValueError: a tensor is missing, unknown or of another shape.
    """
    check_tensors(state, shapes_of(model))
    model.load_state_dict(state)


def expected_shapes(
    config: ModelConfig, vocab_size: int, *, has_logit_bias: bool = False
) -> dict[str, tuple[int, ...]]:
    """The name and shape of every tensor of this model, found without the memory to hold it."""
    bias = {"logit_bias": (1,)} if has_logit_bias else {}
    return {**shapes_of(without_memory(config, vocab_size)), **bias}


def without_memory(config: ModelConfig, vocab_size: int) -> DualEncoder:
    """The model with tensors that have shapes and nothing else."""
    with torch.device("meta"):
        return DualEncoder(config, vocab_size, 0.0)


def shapes_of(model: DualEncoder) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def rank_dependence(names: Iterable[str], num_ranks: int) -> str | None:
    """What to tell whoever trains these tensors on several ranks; None where the ranks' number changes nothing.

    Batch normalisation takes its statistics over a rank's own rows (as PyTorch's DistributedDataParallel does by
    default), so such a tower computes something else on another number of ranks.
    """
    if num_ranks == 1 or not has_batch_statistics(names):
        return None
    return (
        f"the image tower has batch normalisation, whose statistics are over each of the {num_ranks} ranks' own rows: "
        f"results will differ from those on another number of ranks"
    )


def has_batch_statistics(names: Iterable[str]) -> bool:
    """Whether a model with these tensors computes each row by all rows that go through it together."""
    return any(name.endswith("running_mean") for name in names)


def check_tensors(state: Mapping[str, Tensor], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a state that does not hold exactly the expected tensors (name → shape)."""
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
            raise UserError(f"tensor {name} holds {state[name].dtype}, expected floating point numbers")
