"""The paper's loss: symmetric cross-entropy over cosine similarities of all pairs of the global batch (section 2.3)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from diptych.loss.gather import gather, rank


def softmax_loss(image: Tensor, text: Tensor, logit_scale: Tensor, logit_bias: Tensor | None = None) -> Tensor:
    """InfoNCE of this rank's pairs against the global batch, in fp32; scalar.

    image, text: f32[batch, dim] of unit norm; row i of both is one pair. logit_scale: f32[1], the logarithm of what
    multiplies the cosines. A bias would cancel in the softmax and is not used.

    The mean over ranks of the value, and of its gradients, is that of one process on the concatenated batch: what
    data parallelism averages is therefore exact, at every number of ranks. Every rank must call it.
    """
    with torch.autocast(image.device.type, enabled=False):
        image, text = image.float(), text.float()
        # One collective for both sides.
        all_image, all_text = gather(torch.cat([image, text], dim=1)).split(image.shape[1], dim=1)
        scale = logit_scale.float().exp()
        pairs = own_rows(len(image), image.device)
        image_to_text = cross_entropy(scale * image @ all_text.T, pairs)
        text_to_image = cross_entropy(scale * text @ all_image.T, pairs)
        return (image_to_text + text_to_image) / 2


@torch.no_grad()
def in_batch_accuracy(image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
    """How many of this rank's pictures find their caption first among the global batch, and captions their picture.

    f32[] each, fractions; a tie for first place is a miss. Every rank must call it.
    """
    image, text = image.float(), text.float()
    all_image, all_text = gather(torch.cat([image, text], dim=1)).split(image.shape[1], dim=1)
    return _found_first(image @ all_text.T), _found_first(text @ all_image.T)


def own_rows(batch: int, device: torch.device) -> Tensor:
    """i64[batch]: where this rank's rows stand in the gathered batch."""
    return rank() * batch + torch.arange(batch, device=device)


def _found_first(similarity: Tensor) -> Tensor:
    pairs = own_rows(len(similarity), similarity.device)
    own = similarity.gather(1, pairs[:, None])
    return (similarity >= own).sum(1).eq(1).float().mean()
