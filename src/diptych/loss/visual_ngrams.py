"""Predict the n-grams of a caption from its picture, with smoothing (Li et al. 2017, arXiv 1612.09161, section 3)."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

Take = Callable[[Tensor, Tensor], Tensor]
"""(values f32[rows outputs], outputs i64[rows or texts, places]) → the values of these outputs, at each place."""


class VisualNgrams(nn.Module):
    """The probability of each word of a caption, given the picture and the words before it.

    There is an output for each token of the vocabulary, then one for each n-gram of two to `longest` tokens in the
    dictionary. An n-gram is stored as the output of its beginning (all but the last token) and its last token.
    `ngrams`: i64[number 2], in ascending order, with each beginning before the n-grams that continue it.

    The picture's probability of a word after other words is the softmax over the n-grams that continue these words.
    Jelinek and Mercer's smoothing mixes it with the probability after one word less, down to the softmax over all
    tokens: p(word | words) = s * picture's + (1 - s) * p(word | one word less). Words with which no n-gram begins are
    passed over. The loss of a pair is the negative log-probability of its caption, the sum over its words.
    """

    name = "visual_ngrams"
    beginnings: Tensor
    keys: Tensor
    has_next: Tensor

    def __init__(self, vocab_size: int, ngrams: Tensor | Sequence[Sequence[int]], longest: int, smoothing: float):
        super().__init__()
        self.vocab_size, self.longest, self.smoothing = vocab_size, longest, smoothing
        self.ngrams = torch.as_tensor(ngrams, dtype=torch.int64).reshape(-1, 2)
        self.num_outputs = vocab_size + len(self.ngrams)
        has_next = torch.zeros(self.num_outputs, dtype=torch.bool)
        has_next[self.ngrams[:, 0]] = True
        for name, values in {
            "beginnings": self.ngrams[:, 0],
            "keys": self.ngrams[:, 0] * vocab_size + self.ngrams[:, 1],
            "has_next": has_next,
        }.items():
            self.register_buffer(name, values, persistent=False)

    def forward(self, logits: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        with torch.autocast(logits.device.type, enabled=False):
            return -self._log_probability(logits.float(), tokens, lengths, lambda each, of: each.gather(1, of))

    def scores(self, logits: Tensor, tokens: Tensor, lengths: Tensor) -> Tensor:
        """f32[pictures texts]: the log-probability of each text, for each picture."""
        return self._log_probability(logits.float(), tokens, lengths, lambda each, of: each[:, of])

    def _log_probability(self, logits: Tensor, tokens: Tensor, lengths: Tensor, take: Take) -> Tensor:
        own = logits.log_softmax(1) if not len(self.ngrams) else self._log_shares(logits)
        words = tokens.long()[:, 1:]
        places = torch.arange(words.shape[1], device=tokens.device)
        is_word = places < lengths.to(tokens.device, non_blocking=True)[:, None] - 2
        words = words.masked_fill(~is_word, 0)
        found = take(own, words)
        keep, give = math.log1p(-self.smoothing), math.log(self.smoothing)
        for level in self._levels(words):
            after = found[..., level.first_place :]
            smoothed = torch.logaddexp(take(own, level.outputs) + give, after + keep)
            mixed = torch.where(level.is_known, smoothed, torch.where(level.has_next, after + keep, after))
            found = torch.cat([found[..., : level.first_place], mixed], dim=-1)
        return (found * is_word).sum(-1)

    def _log_shares(self, logits: Tensor) -> Tensor:
        """For each output the logarithm of its share among those with the same beginning, f32[rows outputs]."""
        of_tokens, of_ngrams = logits[:, : self.vocab_size], logits[:, self.vocab_size :]
        group = self.beginnings.expand_as(of_ngrams)
        none = torch.full_like(logits, -torch.inf)
        largest = none.scatter_reduce(1, group, of_ngrams.detach(), "amax").gather(1, group)
        sums = torch.zeros_like(logits).scatter_add(1, group, (of_ngrams - largest).exp()).gather(1, group)
        return torch.cat([of_tokens.log_softmax(1), of_ngrams - largest - sums.log()], dim=1)

    def _levels(self, words: Tensor) -> Iterator[_Level]:
        """The n-grams in the captions i64[rows places], of two tokens, then of three and so on."""
        begun, is_begun = words, torch.ones_like(words, dtype=torch.bool)
        for length in range(2, min(self.longest, words.shape[1]) + 1):
            begun, is_begun = begun[:, :-1], is_begun[:, :-1]
            has_next = is_begun & self.has_next[begun]
            keys = begun * self.vocab_size + words[:, length - 1 :]
            found = torch.searchsorted(self.keys, keys).clamp(max=max(len(self.keys) - 1, 0))
            is_known = has_next & (self.keys[found] == keys) if len(self.keys) else torch.zeros_like(has_next)
            begun, is_begun = torch.where(is_known, found + self.vocab_size, 0), is_known
            yield _Level(length - 1, begun, is_known, has_next)


class _Level(NamedTuple):
    """The n-grams of one length that end at each place."""

    first_place: int
    """The first place at which one can end."""
    outputs: Tensor
    """i64[rows places]; any output where there is none."""
    is_known: Tensor
    has_next: Tensor
    """Whether the dictionary has an n-gram that begins with the words before this place."""
