"""Losses of single pairs, compared with their formulas in float64, written out one caption at a time."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from diptych.loss.words import TokenClassification, distinct_tokens

VOCABULARY, CONTEXT = 40, 8
START, END = 38, 39
CAPTIONS = [[3, 7, 3, 5], [7], [], [1, 2, 3, 4, 5, 6], [0, 0, 9]]
"""Tokens without start and end: one that repeats, one alone, none, as many as there is room for, and number 0, which
padding has too."""
NUM_CAPTIONS = 100
WITH_TOKEN = np.arange(VOCABULARY) * 2
WITH_TOKEN[7] = NUM_CAPTIONS

Naive = Callable[[torch.Tensor, list[int]], torch.Tensor]


def naive_token_classification(logits: torch.Tensor, caption: list[int]) -> torch.Tensor:
    shares = {token: math.log((1 + NUM_CAPTIONS) / (1 + WITH_TOKEN[token])) for token in set(caption)}
    whole = sum(shares.values())
    if not whole:
        return 0 * logits.sum()
    return -sum(share / whole * logits.log_softmax(0)[token] for token, share in shares.items())


LOSSES: dict[str, tuple[torch.nn.Module, int, Naive]] = {
    "token_head": (TokenClassification(NUM_CAPTIONS, WITH_TOKEN), VOCABULARY, naive_token_classification),
}
"""Name → the module, the number of its outputs, and its formula for one caption."""


def captions() -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens and lengths as the tokenizer gives them."""
    rows = [[START, *caption, END] for caption in CAPTIONS]
    padded = [row + [0] * (CONTEXT - len(row)) for row in rows]
    return torch.tensor(padded, dtype=torch.int32), torch.tensor([len(row) for row in rows], dtype=torch.int32)


@pytest.mark.parametrize("name", LOSSES)
def test_losses_and_gradients_are_those_of_the_formula(name):
    module, outputs, naive = LOSSES[name]
    numbers = 3 * np.random.default_rng(0).normal(size=(len(CAPTIONS), outputs))
    exact = torch.tensor(numbers, requires_grad=True)
    expected = torch.stack([naive(logits, caption) for logits, caption in zip(exact, CAPTIONS, strict=True)])
    expected.sum().backward()
    logits = torch.tensor(numbers, dtype=torch.float32, requires_grad=True)
    losses = module(logits, *captions())
    losses.sum().backward()
    # fp32 keeps 24 bits: 6e-8 of each number, times a few sums.
    assert losses.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-6)
    assert torch.allclose(logits.grad.double(), exact.grad, atol=1e-6)
    assert losses[0] > 0


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_fp32_under_autocast_and_of_each_pair_alone(name):
    module, outputs, _ = LOSSES[name]
    logits = torch.randn(len(CAPTIONS), outputs, generator=torch.Generator().manual_seed(0))
    tokens, lengths = captions()
    whole = module(logits, tokens, lengths)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(logits, tokens, lengths), whole)
    assert torch.equal(module(logits[2:], tokens[2:], lengths[2:]), whole[2:])


def test_neither_control_tokens_nor_padding_count_as_words():
    tokens, is_word = distinct_tokens(*captions())
    found = [sorted(row[new].tolist()) for row, new in zip(tokens, is_word, strict=True)]
    assert found == [sorted(set(caption)) for caption in CAPTIONS]
