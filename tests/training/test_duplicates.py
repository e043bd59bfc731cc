"""Pairs with the same caption are positives of one another, from the tokens of a batch to Adam.

Equal captions have equal embeddings. The softmax loss then has the same gradient either way: the copies share the
probability that a single one would have. Its statistics differ, and the sigmoid loss has other labels.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from diptych.config.schema import RunConfig
from diptych.data.batch import Batch
from diptych.training.step_stats import StepStats
from diptych.world import World
from tests.ranks import run_ranks
from tests.training.test_engine import SIGMOID, largest_difference, make_engine, new_model, start_weights
from tests.training.tiny import PAIRS, at_night, global_batches, rows_of, tiny_config

CAPTIONS = [0, 1, 2, 3, 1, 11, 2, 2, 0, 3, 1, 11]
"""For each row, the row whose caption it has; every group of equal captions is on several ranks."""
LOSSES = {"softmax": {}, "sigmoid": SIGMOID}
BETA1 = 0.9


def batch_with_duplicates() -> Batch:
    batch = global_batches(1)[0]
    return replace(batch, tokens=batch.tokens[CAPTIONS], lengths=batch.lengths[CAPTIONS])


def config(loss: str, duplicates: str = "positives", **options: Any) -> RunConfig:
    config = tiny_config(**{**options, **LOSSES[loss]})
    unclipped = replace(config.optimizer, gradient_clip_norm=None)
    return replace(config, loss=replace(config.loss, duplicates=duplicates), optimizer=unclipped)


WAYS = {1: [(0, 4)], 2: [(1, 4), (2, None), *at_night((1, None), (2, 4))]}
"""Number of ranks → ZeRO stage, pairs at once."""


def first_steps(rank: int, size: int) -> dict[Any, tuple[StepStats, dict[str, torch.Tensor]]]:
    """(loss, ZeRO stage, pairs at once) → the first step and the gradient that reached Adam."""
    result = {}
    for loss, (stage, pairs) in itertools.product(LOSSES, WAYS[size]):
        settings = config(loss, stage=stage)
        machine = replace(settings.machine, pairs_per_forward=pairs)
        engine = make_engine(rank, size, replace(settings, machine=machine))
        rows = World(rank, rank, size).rows(PAIRS)
        stats = engine.step(rows_of(batch_with_duplicates(), rows), 0).read()
        moments = engine.optimizer_state().moments["exp_avg"]
        result[loss, stage, pairs] = stats, {name: each / (1 - BETA1) for name, each in moments.items()}
    return result


@dataclass
class Expected:
    loss: float
    similarities: dict[str, float]
    gradient: dict[str, torch.Tensor]


def in_one_process(loss: str, captions: Sequence[int]) -> Expected:
    """The same for the whole batch at once: all logits and the formula, in float64 after the towers."""
    settings, batch = config(loss), batch_with_duplicates()
    model = new_model(settings)
    scalars = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("logit_")}
    model.load_state_dict({**start_weights(), **scalars})
    image, text = (side.double() for side in model(batch.images, batch.tokens, batch.lengths))
    is_positive = torch.tensor(captions)[:, None] == torch.tensor(captions)
    positives, cosines = is_positive.double(), image @ text.T
    logits = model.logit_scale.double().exp() * cosines
    if loss == "softmax":
        target = positives / positives.sum(1, keepdim=True)
        rows, columns = (-(target * logits.log_softmax(dim)).sum(1).mean() for dim in (1, 0))
        value = (rows + columns) / 2
    else:
        assert model.logit_bias is not None
        logits = logits + model.logit_bias.double()
        value = -torch.nn.functional.logsigmoid((2 * positives - 1) * logits).sum() / PAIRS
    value.backward()
    own, negatives = cosines.diagonal(), cosines.masked_fill(is_positive, -torch.inf)
    similarities = {
        "i2t_accuracy": (own > negatives.amax(1)).double().mean().item(),
        "t2i_accuracy": (own > negatives.amax(0)).double().mean().item(),
        "positive_similarity": own.mean().item(),
        "hardest_negative_similarity": negatives.amax(1).mean().item(),
    }
    gradient = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return Expected(value.item(), similarities, gradient)


@pytest.mark.parametrize("size", [1, 2])
def test_duplicates_are_positives_over_all_ranks_and_parts(size):
    expected = {loss: in_one_process(loss, CAPTIONS) for loss in LOSSES}
    for (loss, *how), (stats, gradient) in run_ranks(size, first_steps, size)[0].items():
        assert stats.loss == pytest.approx(expected[loss].loss, rel=1e-6), (loss, *how)
        assert stats.similarities == pytest.approx(expected[loss].similarities, abs=1e-6), (loss, *how)
        norm = torch.nn.utils.get_total_norm(expected[loss].gradient.values())
        assert largest_difference(gradient, expected[loss].gradient) < 1e-6 * norm, (loss, *how)


@pytest.mark.parametrize("loss", LOSSES)
def test_duplicates_as_positives_make_a_difference(loss):
    positives, negatives = (in_one_process(loss, captions) for captions in (CAPTIONS, range(PAIRS)))
    assert positives.similarities != negatives.similarities
    norm = torch.nn.utils.get_total_norm(negatives.gradient.values())
    is_other = largest_difference(positives.gradient, negatives.gradient) > 1e-6 * norm
    assert is_other == (abs(positives.loss - negatives.loss) > 0.01) == (loss == "sigmoid")
