"""Batches that the number of ranks does not divide, compared with one process."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch

from diptych.training.accumulate import num_parts
from diptych.training.deepspeed_config import deepspeed_config
from diptych.training.step_stats import StepStats
from diptych.world import World
from tests.ranks import run_ranks
from tests.training.test_engine import largest_difference, make_engine
from tests.training.tiny import PAIRS, at_night, global_batches, rows_of, tiny_config

STEPS = 5
BETA1 = 0.9


@dataclass
class Trained:
    gradient: dict[str, torch.Tensor]
    """The gradient that reached Adam in the first step, clipped."""
    stats: list[StepStats]
    weights: dict[str, torch.Tensor]


How = tuple[int, int, int | None]
"""(pairs of the global batch, ZeRO stage, pairs at once)."""


def train(rank: int, size: int, ways: list[How]) -> dict[How, Trained]:
    return {way: train_in_one_way(rank, size, *way) for way in ways}


def train_in_one_way(rank: int, size: int, pairs: int, stage: int, pairs_per_forward: int | None) -> Trained:
    config = tiny_config(stage=stage)
    training = replace(config.training, global_batch_size=pairs)
    machine = replace(config.machine, pairs_per_forward=pairs_per_forward)
    engine = make_engine(rank, size, replace(config, training=training, machine=machine))
    stats, gradient = [], {}
    for number, batch in enumerate(global_batches(STEPS)):
        rows = World(rank, rank, size).rows(pairs)
        stats.append(engine.step(rows_of(batch, rows), number * pairs, tallies=(rows[1] - rows[0],)).read())
        if number == 0:
            moments = engine.optimizer_state().moments["exp_avg"]
            gradient = {name: moment / (1 - BETA1) for name, moment in moments.items()}
    return Trained(gradient, stats, engine.weights())


@lru_cache
def alone(pairs: int) -> Trained:
    return run_ranks(1, train_in_one_way, 1, pairs, 0, None)[0]


WAYS: dict[int, list[How]] = {
    2: [(11, 0, None), (11, 2, 3), (11, 3, None), (5, 1, None), *at_night((11, 1, None), (11, 2, None))],
    3: [(10, 0, None), (10, 1, 2), (10, 3, 1), *at_night((5, 1, None))],
}


@pytest.mark.parametrize(("size", "ways"), WAYS.items())
def test_ranks_with_unequal_shares_take_the_step_of_one_process(size, ways):
    for (pairs, *how), ours in run_ranks(size, train, size, ways)[0].items():
        exact = alone(pairs)
        norm = torch.nn.utils.get_total_norm(exact.gradient.values())
        assert largest_difference(ours.gradient, exact.gradient) < 1e-6 * norm, (pairs, *how)
        # Clipping would hide a factor common to all gradients; the norm before it shows it.
        assert ours.stats[0].gradient_norm == pytest.approx(exact.stats[0].gradient_norm, rel=1e-6), (pairs, *how)
        # fp32 sums in another order, whose difference Adam enlarges if a gradient is near epsilon.
        assert largest_difference(ours.weights, exact.weights) < 1e-5, (pairs, *how)
        for step, expected in zip(ours.stats, exact.stats, strict=True):
            assert step.loss == pytest.approx(expected.loss, rel=1e-5), (pairs, *how)
            assert step.similarities == pytest.approx(expected.similarities, abs=1e-5), (pairs, *how)
            assert step.tallies == (pairs,)


def test_deepspeed_does_not_object_to_a_batch_that_ranks_do_not_divide():
    assert deepspeed_config(tiny_config(), 5)["train_micro_batch_size_per_gpu"] == 3
    deepspeed_config(tiny_config(), PAIRS + 1)  # `World.rows` refuses this one


def test_every_rank_has_as_many_parts_and_none_is_empty():
    for rows, pairs, parts in [([6, 6], None, 1), ([6, 6], 4, 2), ([4, 3, 3], 3, 2), ([4, 3], 2, 2), ([3, 2], 1, 2)]:
        assert num_parts(rows, pairs) == parts
        for number in rows:
            batch = rows_of(global_batches(1)[0], (0, number))
            sizes = [len(part) for part in batch.parts(parts)]
            assert sum(sizes) == number and min(sizes) > 0
            assert max(sizes) <= max(pairs or number, 2)
