import itertools
from typing import Any

import numpy as np
import pytest
import torch

from diptych.loss import LOSSES, tiles
from tests.ranks import run_ranks

PAIRS, DIM = 12, 5
CAPTIONS = np.array([0, 1, 2, 3, 1, 5, 2, 2, 8, 9, 1, 11])
"""Equal numbers for pairs with the same caption; with any number of ranks some of these are on different ranks."""


def features() -> list[np.ndarray]:
    """Rows of unit norm, in fp32 as a loss gets them; two captions are the same."""
    image, text = np.random.default_rng(0).normal(size=(2, PAIRS, DIM))
    text[7] = text[2]
    return [np.float32(side / np.linalg.norm(side, axis=1, keepdims=True)) for side in (image, text)]


def naive(name: str, log_scale: float, captions: np.ndarray | None) -> list[Any]:
    """The formula in float64, by autograd over the whole batch and all its logits at once."""
    numbers = (*features(), np.float32([log_scale]), [-3.0])
    image, text, scale, bias = (torch.tensor(each, dtype=torch.float64, requires_grad=True) for each in numbers)
    same = np.eye(PAIRS) if captions is None else captions[:, None] == captions
    positives = torch.tensor(same, dtype=torch.float64)
    logits = image @ text.T * scale.exp()
    if name == "softmax":
        target = positives / positives.sum(1, keepdim=True)
        rows, columns = (-(target * logits.log_softmax(dim)).sum(1).mean() for dim in (1, 0))
        loss = (rows + columns) / 2
    else:
        loss = -torch.nn.functional.logsigmoid((2 * positives - 1) * (logits + bias)).sum() / PAIRS
    loss.backward()
    return [loss.item(), *(each.grad for each in (image, text, scale, bias))]


def naive_statistics(captions: np.ndarray | None) -> list[float]:
    image, text = (np.float64(side) for side in features())
    cosines = image @ text.T
    is_positive = np.eye(PAIRS, dtype=bool) if captions is None else captions[:, None] == captions
    negatives = np.where(is_positive, -np.inf, cosines)
    own = cosines.diagonal()
    return [
        (own > negatives.max(1)).mean(),
        (own > negatives.max(0)).mean(),
        own.mean(),
        negatives.max(1).mean(),
    ]


def by_rank(rank: int, size: int, name: str, log_scale: float, captions: np.ndarray | None) -> list[Any]:
    """A rank's results: loss, gradients, statistics; with tiles that do not divide the rows in height or width."""
    tiles.TILES["cpu"] = (5, 7)
    edges = [each * PAIRS // size for each in range(size + 1)]
    own, rows_of_ranks = slice(*edges[rank : rank + 2]), np.diff(edges).tolist()
    image, text = (torch.tensor(side[own], requires_grad=True) for side in features())
    scale, bias = (torch.tensor([value], requires_grad=True) for value in (log_scale, -3.0))
    captions = None if captions is None else torch.tensor(captions[own])
    loss, statistics = LOSSES[name](image, text, scale, bias, captions, rows_of_ranks if PAIRS % size else None)
    loss.backward()
    gradients = [None if each.grad is None else each.grad.numpy() for each in (image, text, scale, bias)]
    return [loss.item(), *gradients, [each.item() for each in statistics]]


CASES = list(itertools.product(LOSSES, (0.0, 2.0, float(np.log(100))), (None, CAPTIONS)))


def all_cases(rank: int, size: int) -> list[list[Any]]:
    return [by_rank(rank, size, *case) for case in CASES]


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, PAIRS])
def test_rank_mean_of_gradients_is_the_gradient_of_one_big_batch(size):
    for (name, log_scale, captions), *of_ranks in zip(CASES, *run_ranks(size, all_cases, size), strict=True):
        loss, image, text, scale, bias = naive(name, log_scale, captions)
        ranks = list(zip(*of_ranks, strict=True))
        # fp32 keeps 24 bits: 6e-8 of each number, times a few sums.
        assert np.mean(ranks[0]) == pytest.approx(loss, rel=1e-6)
        # A parameter's gradient is a sum over the rows of all ranks; the mean over ranks divides it by their number.
        assert relative_error(np.concatenate(ranks[1]) / size, image) < 1e-6
        assert relative_error(np.concatenate(ranks[2]) / size, text) < 1e-6
        assert relative_error(np.mean(ranks[3], axis=0), scale) < 1e-6
        if bias is not None:
            assert relative_error(np.mean(ranks[4], axis=0), bias) < 1e-6
        assert np.mean(ranks[5], axis=0) == pytest.approx(naive_statistics(captions), abs=1e-6)


def relative_error(ours: np.ndarray, exact: torch.Tensor) -> float:
    return float(np.abs(ours - exact.numpy()).max() / np.abs(exact.numpy()).max())


@pytest.mark.parametrize("name", LOSSES)
def test_loss_is_fp32_under_autocast(name):
    image, text = map(torch.tensor, features())
    numbers = image, text, torch.tensor([4.6]), torch.tensor([-3.0]), None
    expected = LOSSES[name](*numbers)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert LOSSES[name](*numbers) == expected


@pytest.mark.parametrize("name", LOSSES)
def test_memory_grows_with_the_batch_and_not_with_its_square(name):
    image, text = (torch.nn.functional.normalize(torch.randn(2048, 16)).requires_grad_() for _ in range(2))
    largest = LargestTensor()
    with largest:
        LOSSES[name](image, text, torch.tensor([2.0]), torch.tensor([-3.0]), None).loss.backward()
    assert largest.numel <= 512 * 512


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the number of elements of the largest tensor that any operation returned."""

    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(each, torch.Tensor):
                self.numel = max(self.numel, each.numel())
        return result


def test_a_tie_for_first_place_is_a_miss():
    image = torch.eye(3)
    text = torch.tensor([[1.0, 0, 0], [1.0, 0, 0], [0, 0, 1.0]])
    statistics = LOSSES["softmax"](image, text, torch.tensor([1.0]), None, None).statistics
    assert statistics.i2t_accuracy == pytest.approx(1 / 3)  # the first picture's two captions tie, the second has none
    assert statistics.t2i_accuracy == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("seed", range(4))
def test_towers_that_give_everything_one_embedding_are_never_right(name, seed):
    torch.manual_seed(seed)
    one = torch.nn.functional.normalize(torch.randn(1, 33)).expand(700, -1).contiguous()
    statistics = LOSSES[name](one, one.clone(), torch.tensor([2.66]), torch.tensor([-3.0]), None).statistics
    # Rounding may make a few differ, in a tile of another width.
    assert max(statistics.i2t_accuracy, statistics.t2i_accuracy) < 0.01
