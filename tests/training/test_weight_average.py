"""The average of the weights compared with its formula in float64, at every ZeRO stage and after a resume."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import pytest
import torch

from diptych.config.schema import ImageTowerConfig, RunConfig
from diptych.training.engine import Engine
from diptych.training.fragments import fragments_of
from diptych.training.weight_average import WeightAverage, decay_of
from diptych.world import World
from tests.ranks import run_ranks
from tests.training.test_engine import (
    HALF,
    STEPS,
    largest_difference,
    make_engine,
    new_model,
    start_weights,
    take_steps,
)
from tests.training.tiny import at_night, tiny_config

DECAY = 0.3
"""The decay, which is reached at the fourth step."""

STAGES_OF = {1: (0,), 2: (0, 2, 3, *at_night(1))}

Weights = dict[str, torch.Tensor]


def averages_of(engine: Engine) -> Weights:
    return engine.weights(averaged=True)


def train(rank: int, size: int) -> dict[int, dict[str, Any]]:
    """ZeRO stage → the weights after every step; the averages at half time, at the end, and after a resume."""
    result = {}
    for stage in STAGES_OF[size]:
        config = tiny_config(stage=stage, ema_decay=DECAY)
        engine = make_engine(rank, size, config)
        weights = []
        for number in range(STEPS):
            take_steps(engine, rank, size, number, number + 1)
            weights.append(engine.weights())
            if number + 1 == HALF:
                half = weights[-1], engine.optimizer_state(), averages_of(engine)
        again = go_on(rank, size, config, half)
        result[stage] = {"weights": weights, "half": half, "averages": averages_of(engine), "again": again}
    return result


def go_on(rank: int, size: int, config: RunConfig, half: Any) -> Weights:
    weights, state, averages = half
    engine = make_engine(rank, size, config, weights)
    engine.restore_optimizer(state if rank == 0 else None)
    engine.restore_average(averages if rank == 0 else None)
    take_steps(engine, rank, size, HALF, STEPS)
    return averages_of(engine)


@lru_cache
def trained(size: int) -> dict[int, dict[str, Any]]:
    return run_ranks(size, train, size)[0]


@pytest.mark.parametrize("size", [1, 2])
def test_the_average_is_that_of_the_weights_after_each_step(size):
    for stage, run in trained(size).items():
        expected = {name: tensor.double() for name, tensor in start_weights().items()}
        for step, weights in enumerate(run["weights"]):
            kept = min(DECAY, (1 + step) / (10 + step))
            expected = {name: kept * mean + (1 - kept) * weights[name].double() for name, mean in expected.items()}
        # Four roundings in fp32, of weights around 1.
        assert largest_difference(run["averages"], expected) < 5e-7, stage
        assert largest_difference(run["averages"], run["weights"][-1]) > 1e-5, "it is another model"


@pytest.mark.parametrize("size", [1, 2])
def test_resuming_gives_the_same_average_bit_for_bit(size):
    for stage, run in trained(size).items():
        assert largest_difference(run["averages"], run["again"]) == 0, stage


CHANGES = {1: [(3, 0), *at_night((0, 0), (1, 0), (2, 0))], 3: [(0, 3), (2, 1), (3, 0), *at_night((1, 2), (3, 3))]}
"""Number of ranks → stages before and now."""


def take_up(rank: int, size: int, halves: dict[int, Any]) -> dict[tuple[int, int], Weights]:
    """(ZeRO stage before, now) → the averages as another engine loaded them."""
    result = {}
    for old, now in CHANGES[size]:
        half = halves[old]
        engine = make_engine(rank, size, tiny_config(stage=now, ema_decay=DECAY), half[0])
        engine.restore_average(half[2] if rank == 0 else None)
        result[old, now] = averages_of(engine)
    return result


@pytest.mark.parametrize("size", [1, 3])
def test_averages_of_two_ranks_are_taken_up_by_any_number_at_any_stage(size):
    halves = {stage: run["half"] for stage, run in trained(2).items()}
    for (old, now), averages in run_ranks(size, take_up, size, halves)[0].items():
        assert largest_difference(averages, halves[old][2]) == 0, (old, now)


def test_running_statistics_are_averaged_and_counters_are_taken():
    config = tiny_config()
    model = new_model(RunConfig(
        run_dir="", data=config.data, training=config.training,
        model=config.model.__class__(
            embed_dim=16, text=config.model.text, image=ImageTowerConfig(name="resnet10t", image_size=32)
        ),
    ))  # fmt: skip
    world = World(0, 0, 1)
    average = WeightAverage(model, dict(fragments_of(model, None, 0, 0)), world, 0.9)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.image.train()(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8))
    average.update(0)
    after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    average.copy_into(after, is_shared=False)
    assert after.keys() == before.keys()
    means = [name for name in after if name.endswith("running_mean")]
    for name in means:
        expected = 0.1 * before[name] + 0.9 * model.state_dict()[name]
        assert torch.allclose(after[name], expected) and not torch.equal(after[name], before[name])
    assert means and int(after["image.trunk.bn1.num_batches_tracked"]) == 1


def test_the_first_steps_forget_the_random_start():
    assert decay_of(0, 0.9999) == 0.1
    assert decay_of(89_990, 0.9999) == pytest.approx(0.9999) and decay_of(10**6, 0.9999) == 0.9999
