"""The paper's text tower: a causal pre-norm transformer; its feature is that of the end-of-text token (section 2.4)."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from diptych.config.schema import TextTowerConfig
from diptych.errors import UserError
from diptych.model.packed_captions import PackedCaptions
from diptych.model.precision import full_precision


def quick_gelu(inputs: Tensor) -> Tensor:
    """The sigmoid approximation of GELU with which OpenAI's weights were trained."""
    return inputs * torch.sigmoid(1.702 * inputs)


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "quick_gelu": quick_gelu}


class TextTower(nn.Module):
    """Embeds tokens i[batch length] of lengths i[batch] as f[batch embed_dim], not normalised.

    Parameters have the names of open_clip's text transformer. `length` is at most the context length. Only the first
    lengths[i] tokens of row i are computed; if the lengths are on the CPU, nothing waits for the device.
    """

    def __init__(self, config: TextTowerConfig, vocab_size: int, embed_dim: int):
        super().__init__()
        if config.width % config.heads:
            raise UserError(
                f"model.text.width {config.width} cannot be split over model.text.heads {config.heads}; "
                f"make the width a multiple of the heads (the paper's heads are 64 wide)"
            )
        self.context_length = config.context_length
        self.token_embedding = nn.Embedding(vocab_size, config.width)
        self.positional_embedding = nn.Parameter(torch.empty(config.context_length, config.width))
        self.transformer = Transformer(config)
        self.ln_final = nn.LayerNorm(config.width)
        self.text_projection = nn.Parameter(torch.empty(config.width, embed_dim))
        self.initialise()

    def forward(self, tokens: Tensor, lengths: Tensor) -> Tensor:
        return self.embed_packed(tokens, PackedCaptions.of(lengths, tokens.shape[1], tokens.device))

    def embed_packed(self, tokens: Tensor, captions: PackedCaptions) -> Tensor:
        """Embed tokens whose packed layout is known."""
        packed = tokens.reshape(-1)[captions.places]
        hidden = self.token_embedding(packed) + F.embedding(captions.positions, self.positional_embedding)
        hidden = self.transformer(hidden, captions)
        # Find the end token by length, not by argmax as OpenAI does: in other vocabularies its id may not be largest.
        with full_precision(tokens.device):
            embeddings: Tensor = self.ln_final(hidden[captions.ends].float()) @ self.text_projection
            return embeddings

    @torch.no_grad()
    def initialise(self) -> None:
        """Initialise with the standard deviations of OpenAI's code; biases and gains stay as torch sets them."""
        width, layers = self.text_projection.shape[0], len(self.transformer.resblocks)
        residual_std = width**-0.5 * (2 * layers) ** -0.5
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        for module in self.modules():
            if isinstance(module, CausalAttention):
                nn.init.normal_(module.in_proj_weight, std=width**-0.5)
                nn.init.zeros_(module.in_proj_bias)
                nn.init.normal_(module.out_proj.weight, std=residual_std)
                nn.init.zeros_(module.out_proj.bias)
            elif isinstance(module, Mlp):
                nn.init.normal_(module.c_fc.weight, std=(2 * width) ** -0.5)
                nn.init.normal_(module.c_proj.weight, std=residual_std)
        nn.init.normal_(self.text_projection, std=width**-0.5)


class Transformer(nn.Module):
    def __init__(self, config: TextTowerConfig):
        super().__init__()
        self.resblocks = nn.ModuleList(ResidualBlock(config) for _ in range(config.layers))
        self.checkpoint_blocks = False
        """Whether to keep only the input of each block for the backward."""

    def forward(self, hidden: Tensor, captions: PackedCaptions) -> Tensor:
        for block in self.resblocks:
            if self.checkpoint_blocks and torch.is_grad_enabled():
                hidden = checkpoint(block, hidden, captions, use_reentrant=False)
            else:
                hidden = block(hidden, captions)
        return hidden


class ResidualBlock(nn.Module):
    def __init__(self, config: TextTowerConfig):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.width)
        self.attn = CausalAttention(config.width, config.heads)
        self.ln_2 = nn.LayerNorm(config.width)
        self.mlp = Mlp(config.width, config.activation)

    def forward(self, hidden: Tensor, captions: PackedCaptions) -> Tensor:
        hidden = hidden + self.attn(self.ln_1(hidden), captions)
        hidden = hidden + self.mlp(self.ln_2(hidden))
        return hidden


class CausalAttention(nn.Module):
    """Multi-head self-attention in which a token sees only itself and the tokens before it."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.attend = PackedCaptions.attend
        """The attention function; replaced when blocks are compiled."""

    def forward(self, hidden: Tensor, captions: PackedCaptions) -> Tensor:
        fused = F.linear(hidden, self.in_proj_weight, self.in_proj_bias)
        query, key, value = fused.unflatten(1, (3, self.heads, -1)).unbind(1)
        attended: Tensor = self.out_proj(self.attend(captions, query, key, value).flatten(1))
        return attended


class Mlp(nn.Module):
    def __init__(self, width: int, activation: str):
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.activation = ACTIVATIONS[activation]
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.c_proj(self.activation(self.c_fc(hidden)))
        return hidden
