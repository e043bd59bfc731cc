"""The optimizer in host memory, moved there by DeepSpeed, as far as that can run without a GPU."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch

from diptych.config.schema import RunConfig
from diptych.loss import LOSSES
from diptych.training.deepspeed_config import deepspeed_config
from tests.ranks import run_ranks
from tests.training.test_engine import (
    HALF,
    STEPS,
    assert_equal,
    go_on,
    largest_difference,
    make_engine,
    poisoned_gradient,
    push_scale,
    take_steps,
)
from tests.training.tiny import at_night, tiny_config

OFFLOADED_STAGES = (1, 3, *at_night(2))
WAYS = {1: ((2, 2), *at_night((1, None), (3, None))), 2: ((1, 2), (3, None), *at_night((2, None), (3, 2)))}
"""Number of ranks → stages, and pairs at once."""


def config_of(
    stage: int, offload: bool = True, pairs: int | None = None, moments: Any = "fp32", **more: Any
) -> RunConfig:
    config = tiny_config(stage=stage, **more)
    machine = replace(config.machine, offload_optimizer=offload, pairs_per_forward=pairs)
    return replace(config, machine=machine, optimizer=replace(config.optimizer, moments=moments))


def train(rank: int, size: int) -> dict[tuple[int, int | None], Any]:
    """(ZeRO stage, pairs at once) → all steps, not offloaded and offloaded, and the latter's second half resumed.

    Those that are not offloaded are taken once, since any stage and any number of pairs at once give the same.
    """
    plain = whole_and_half(rank, size, config_of(WAYS[size][0][0], False, ema_decay=0.5))[0]
    result = {}
    for stage, pairs in WAYS[size]:
        config = config_of(stage, True, pairs, ema_decay=0.5)
        offloaded, half = whole_and_half(rank, size, config)
        result[stage, pairs] = plain, offloaded, go_on(rank, size, config, *half)
    return result


def whole_and_half(rank: int, size: int, config: RunConfig) -> tuple[Any, Any]:
    engine = make_engine(rank, size, config)
    is_shared = size > 1 or config.machine.offload_optimizer
    assert engine._stage == (config.machine.zero_stage if is_shared else 0)
    stats = take_steps(engine, rank, size, 0, HALF)
    half = engine.weights(), engine.optimizer_state()
    stats += take_steps(engine, rank, size, HALF, STEPS)
    return (stats, engine.weights(), engine.optimizer_state(), engine.weights(averaged=True)), half


@lru_cache
def trained(size: int) -> dict[tuple[int, int | None], Any]:
    return run_ranks(size, train, size)[0]


@pytest.mark.parametrize("size", [1, 2])
def test_an_offloaded_optimizer_takes_the_same_steps(size):
    for how, (plain, offloaded, _) in trained(size).items():
        for one, other in zip(plain[0], offloaded[0], strict=True):
            assert one.loss == pytest.approx(other.loss, abs=1e-5), how
            assert one.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-5), how
        # fp32 sums in another order, whose difference Adam enlarges if a gradient is near epsilon.
        assert largest_difference(plain[1], offloaded[1]) < 1e-5, how
        assert largest_difference(plain[3], offloaded[3]) < 1e-5, how


@pytest.mark.parametrize("size", [1, 2])
def test_an_offloaded_optimizer_resumes_bit_identical(size):
    for how, (_, (stats, weights, state, _), again) in trained(size).items():
        assert again.stats == stats[HALF:], how
        assert largest_difference(again.weights, weights) == 0, how
        assert_equal(again.optimizer, state)


def in_bf16(rank: int) -> dict[int, Any]:
    result = {}
    for stage in OFFLOADED_STAGES:
        runs = []
        for offload in (False, True):
            engine = make_engine(rank, 2, config_of(stage, offload, moments="bf16", precision="bf16"))
            stats = take_steps(engine, rank, 2, 0, STEPS)
            runs.append(([each.loss for each in stats], engine.optimizer_state()))
        result[stage] = runs
    return result


def test_moments_in_bf16_can_be_offloaded_too():
    for stage, ((plain, _), (offloaded, state)) in run_ranks(2, in_bf16)[0].items():
        assert state.moments["exp_avg"]["logit_scale"].dtype == torch.bfloat16
        # bf16 sums in another order, whose difference later steps enlarge.
        assert plain[:3] == pytest.approx(offloaded[:3], abs=1e-2), stage
        assert plain == pytest.approx(offloaded, abs=5e-2), stage


def pushed_and_poisoned(rank: int) -> dict[int, Any]:
    LOSSES["pushing"], LOSSES["nan_gradient"] = push_scale, poisoned_gradient(rank)
    result = {}
    for stage in OFFLOADED_STAGES:
        engine = make_engine(rank, 2, config_of(stage, loss="pushing", rate=0.1, initial_logit_scale=4.6))
        used = [stats.logit_scale for stats in take_steps(engine, rank, 2, 0, 4)]
        engine = make_engine(rank, 2, config_of(stage, loss="nan_gradient"))
        before = engine.weights(), engine.optimizer_state()
        (stats,) = take_steps(engine, rank, 2, 0, 1)
        result[stage] = used, stats.is_skipped, before, (engine.weights(), engine.optimizer_state())
    return result


def test_the_temperature_keeps_its_limit_and_what_is_not_finite_is_skipped():
    for stage, (used, is_skipped, before, after) in run_ranks(2, pushed_and_poisoned)[0].items():
        assert 99 < max(used) <= 100.0001, stage
        assert is_skipped, stage
        assert largest_difference(before[0], after[0]) == 0, stage
        for kind, moments in before[1].moments.items():
            assert largest_difference(moments, after[1].moments[kind]) == 0, stage


def test_offloading_needs_a_stage_that_shares_the_optimizer_out():
    with pytest.raises(ValueError, match="machine.offload_optimizer needs ZeRO.*set machine.zero_stage to 1, 2 or 3"):
        deepspeed_config(config_of(0), 2)
    for size in (1, 2):
        zero = deepspeed_config(config_of(1), size)["zero_optimization"]
        assert (zero["stage"], zero["offload_optimizer"]["device"]) == (1, "cpu")
