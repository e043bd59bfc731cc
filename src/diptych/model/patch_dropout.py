"""Leave out some of each picture's patches in training (FLIP, arXiv 2212.00794)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diptych.tensor_hashes import hashes


class PatchDropout(nn.Module):
    """Keeps a random part of the patches among tokens f[batch tokens width], and all prefix tokens, in their order.

    The choice depends only on the picture's key, not on the other pictures or on the state of a random generator.

    gives_indices: whether to return the numbers of the kept patches too, i64[batch kept] or None.
    """

    def __init__(self, rate: float, num_prefix_tokens: int, *, gives_indices: bool):
        super().__init__()
        self.rate = rate
        self.num_prefix_tokens = num_prefix_tokens
        self.row_keys: Tensor | None = None
        """i64[batch]; must be set before each forward in training."""
        self._gives_indices = gives_indices

    def forward(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor | None]:
        kept = None
        if self.training and self.rate:
            patches = tokens[:, self.num_prefix_tokens :]
            kept = self._kept(patches.shape[1])
            chosen = patches.gather(1, kept[..., None].expand(-1, -1, patches.shape[2]))
            tokens = torch.cat([tokens[:, : self.num_prefix_tokens], chosen], dim=1)
        return (tokens, kept) if self._gives_indices else tokens

    def _kept(self, num_patches: int) -> Tensor:
        """i64[batch kept], ascending: in each row the patches with the smallest hashes, keyed by the row."""
        assert self.row_keys is not None
        number = max(1, int(num_patches * (1 - self.rate)))
        scores = hashes(torch.arange(num_patches, device=self.row_keys.device), self.row_keys[:, None])
        return scores.argsort(1)[:, :number].sort(1).values
