"""Losses of each pair by itself: predict the words of a picture's caption from the logits of a linear layer.

Each is a module that takes logits f[rows outputs] of the pictures, and tokens i[rows context] and lengths i[rows] of
their captions as the tokenizer gives them. It returns f32[rows]: the loss of each pair, which does not depend on the
other pairs, so that their mean is the same on any number of ranks and in any parts. The start token, the end token and
padding are no words, and a token that occurs several times counts once.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus


class TokenClassification(nn.Module):
    """SuperCLIP's cross-entropy (arXiv 2512.14480): the target is distributed over the caption's tokens.

    Each token has a share of it by its inverse document frequency, log((1 + captions) / (1 + captions with it)). A
    caption without tokens, or whose tokens are in every caption, has a loss of 0.
    """

    weights: Tensor

    def __init__(self, num_captions: int, with_token: Sequence[int] | np.ndarray):
        """with_token: for each token of the vocabulary, how many of the captions contain it."""
        super().__init__()
        found = torch.as_tensor(with_token, dtype=torch.float64)
        self.register_buffer("weights", (math.log1p(num_captions) - found.log1p()).float(), persistent=False)

    def forward(self, logits: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            words, is_word = distinct_tokens(tokens, lengths)
            shares = self.weights[words] * is_word
            whole = shares.sum(1)
            own = (shares * logits.gather(1, words)).sum(1) / whole.clamp(min=torch.finfo().tiny)
            return torch.where(whole > 0, logits.logsumexp(1) - own, 0.0)


class BagOfWords(nn.Module):
    """Whether each token of the vocabulary is in the caption, a yes-or-no question each (CLIP's section 2.3, figure 2).

    The loss of a pair is the sum of the binary cross-entropies over the vocabulary.
    """

    name = "bag_of_words"

    def __init__(self, vocab_size: int):
        super().__init__()
        self.num_outputs = vocab_size

    def forward(self, logits: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits.float()
            words, is_word = distinct_tokens(tokens, lengths)
            return softplus(logits).sum(1) - (logits.gather(1, words) * is_word).sum(1)

    def scores(self, logits: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """f32[pictures texts]: the mean log-probability of the distinct tokens of each text, for each picture."""
        words, is_word = distinct_tokens(tokens, lengths)
        own = logsigmoid(logits.float())[:, words] * is_word
        return own.sum(2) / is_word.sum(1).clamp(min=1)


def distinct_tokens(tokens: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The tokens of each caption in ascending order, i64[rows context], and whether each is a word that counts."""
    places = torch.arange(tokens.shape[1], device=tokens.device)
    ends = lengths.to(tokens.device, non_blocking=True)[:, None] - 1
    inside = tokens.long().masked_fill((places < 1) | (places >= ends), -1)
    ordered = inside.sort(1).values
    is_new = ordered != ordered.roll(1, 1)
    is_new[:, 0] = True
    return ordered.clamp(min=0), is_new & (ordered >= 0)
