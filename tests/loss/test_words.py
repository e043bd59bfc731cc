"""Losses of single pairs, compared with their formulas in float64, written out one caption at a time."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from diptych.loss import WORD_LOSSES
from diptych.loss.visual_ngrams import VisualNgrams
from diptych.loss.words import BagOfWords, TokenClassification, distinct_tokens

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


def naive_bag_of_words(logits: torch.Tensor, caption: list[int]) -> torch.Tensor:
    signs = torch.tensor([1.0 if token in caption else -1.0 for token in range(VOCABULARY)])
    return -torch.nn.functional.logsigmoid(signs * logits).sum()


NGRAMS = [(3, 7), (3, 5), (7, 3), (1, 2), (2, 3), (1, 2, 3), (7, 3, 5), (1, 2, 3, 4)]
"""`4` never follows `3` by itself here, and nothing follows `5`."""
SMOOTHING = 0.3


def stored(ngrams: list[tuple[int, ...]]) -> list[list[int]]:
    """The n-grams as the module takes them, each after its beginning."""
    outputs = {(token,): token for token in range(VOCABULARY)}
    rows: list[list[int]] = []
    for length in range(2, 6):
        of_length = sorted((outputs[each[:-1]], each[-1], each) for each in ngrams if len(each) == length)
        for beginning, token, ngram in of_length:
            outputs[ngram] = VOCABULARY + len(rows)
            rows.append([beginning, token])
    return rows


def naive_visual_ngrams(logits: torch.Tensor, caption: list[int]) -> torch.Tensor:
    rows = stored(NGRAMS)
    outputs = {(token,): token for token in range(VOCABULARY)}
    for number, (beginning, token) in enumerate(rows):
        ngram = next(each for each, output in outputs.items() if output == beginning)
        outputs[(*ngram, token)] = VOCABULARY + number

    def probability(word: int, before: tuple[int, ...]) -> torch.Tensor:
        if not before:
            return logits[:VOCABULARY].softmax(0)[word]
        shorter = probability(word, before[1:])
        following = [each for each in outputs if each[:-1] == before]
        if not following:
            return shorter
        shares = logits[[outputs[each] for each in following]].softmax(0)
        own = shares[following.index((*before, word))] if (*before, word) in following else 0.0
        return SMOOTHING * own + (1 - SMOOTHING) * shorter

    losses = [-probability(word, tuple(caption[max(0, at - 3) : at])).log() for at, word in enumerate(caption)]
    return sum(losses, 0 * logits.sum())


LOSSES: dict[str, tuple[torch.nn.Module, int, Naive]] = {
    "token_head": (TokenClassification(NUM_CAPTIONS, WITH_TOKEN), VOCABULARY, naive_token_classification),
    "bag_of_words": (BagOfWords(VOCABULARY), VOCABULARY, naive_bag_of_words),
    "visual_ngrams": (
        VisualNgrams(VOCABULARY, stored(NGRAMS), 4, SMOOTHING),
        VOCABULARY + len(NGRAMS),
        naive_visual_ngrams,
    ),
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


def test_every_loss_that_predicts_words_is_compared_with_its_formula():
    assert LOSSES.keys() == {"token_head", *WORD_LOSSES}


def test_scores_are_the_log_probabilities_of_texts_for_every_picture():
    tokens, lengths = captions()
    logits = torch.randn(3, VOCABULARY + len(NGRAMS), generator=torch.Generator().manual_seed(0))
    ngrams, bag = LOSSES["visual_ngrams"][0], LOSSES["bag_of_words"][0]
    scores = ngrams.scores(logits, tokens, lengths)
    for picture, one in enumerate(logits):
        expected = [-float(naive_visual_ngrams(one.double(), caption)) for caption in CAPTIONS]
        assert scores[picture].tolist() == pytest.approx(expected, rel=1e-5, abs=1e-6)
    logits = logits[:, :VOCABULARY]
    means = [torch.nn.functional.logsigmoid(logits)[:, sorted(set(each))].mean(1) for each in CAPTIONS if each]
    found = bag.scores(logits, tokens, lengths)
    assert torch.allclose(found[:, [0, 1, 3, 4]], torch.stack(means, 1), atol=1e-6)
    assert not found[:, 2].any()


def test_the_probabilities_of_all_words_after_any_words_are_one():
    module = LOSSES["visual_ngrams"][0]
    logits = 3 * torch.randn(1, module.num_outputs, generator=torch.Generator().manual_seed(0))
    rows = [[START, 7, 3, word, END] for word in range(VOCABULARY)]
    length = torch.full((VOCABULARY,), 5, dtype=torch.int32)
    tokens, before = torch.tensor(rows), torch.tensor([[*rows[0][:3], END]])
    whole = module.scores(logits, tokens, length) - module.scores(logits, before, length[:1] - 1)
    assert float(whole.exp().sum()) == pytest.approx(1, rel=1e-5)


def test_a_dictionary_without_ngrams_leaves_the_tokens():
    module = VisualNgrams(VOCABULARY, [], 5, 0.2)
    logits = torch.randn(len(CAPTIONS), VOCABULARY, generator=torch.Generator().manual_seed(0))
    expected = [
        -sum(one.log_softmax(0)[each] for each in caption) for one, caption in zip(logits, CAPTIONS, strict=True)
    ]
    assert module(logits, *captions()).tolist() == pytest.approx([float(each) for each in expected], rel=1e-5)


def test_neither_control_tokens_nor_padding_count_as_words():
    tokens, is_word = distinct_tokens(*captions())
    found = [sorted(row[new].tolist()) for row, new in zip(tokens, is_word, strict=True)]
    assert found == [sorted(set(caption)) for caption in CAPTIONS]
