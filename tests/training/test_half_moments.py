from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch

from diptych.config.rules import impossible
from diptych.config.schema import OptimizerConfig, RunConfig
from diptych.training import half_moments
from diptych.training.half_moments import HalfMomentsAdamW
from tests.ranks import run_ranks
from tests.training.test_engine import HALF, STEPS, alone, assert_equal, go_on, largest_difference, make_engine
from tests.training.test_engine import take_steps as steps_of
from tests.training.tiny import at_night, tiny_config


def of_reference(values: torch.Tensor, gradients: list[torch.Tensor], config: OptimizerConfig) -> torch.Tensor:
    """AdamW as in its paper, each moment rounded to bf16 after every step."""
    first, second = torch.zeros_like(values), torch.zeros_like(values)
    for step, gradient in enumerate(gradients, start=1):
        first = (config.beta1 * first + (1 - config.beta1) * gradient).bfloat16().double()
        second = (config.beta2 * second + (1 - config.beta2) * gradient**2).bfloat16().double()
        values = values * (1 - config.learning_rate * config.weight_decay)
        denominator = (second / (1 - config.beta2**step)).sqrt() + config.epsilon
        values = values - config.learning_rate * first / (1 - config.beta1**step) / denominator
    return values


@pytest.mark.parametrize("at_once", [2**24, 5])
def test_each_step_is_adamws_with_rounded_moments(monkeypatch, at_once):
    monkeypatch.setattr(half_moments, "ELEMENTS_AT_ONCE", at_once)
    torch.manual_seed(0)
    starts = [torch.randn(shape, dtype=torch.float64) for shape in ((7,), (3, 4), ())]
    gradients = [[torch.randn_like(start) for _ in range(9)] for start in starts]
    config = OptimizerConfig(learning_rate=1e-2)
    parameters = [torch.nn.Parameter(start.float()) for start in starts]
    optimizer = HalfMomentsAdamW(parameters, lr=1e-2, betas=(0.9, 0.98), eps=1e-6, weight_decay=0.2, fused=True)
    for step in range(9):
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient[step].float()
        optimizer.step()
    for parameter, start, gradient in zip(parameters, starts, gradients, strict=True):
        # If fp32 rounds a moment to the other side of a midpoint between bf16 numbers, that is 2^-8 of a step of 0.01.
        assert torch.allclose(parameter.double(), of_reference(start, gradient, config), atol=2e-4)
        state = optimizer.state[parameter]
        assert state["exp_avg"].dtype == state["exp_avg_sq"].dtype == torch.bfloat16 and int(state["step"]) == 9


def test_a_step_that_is_skipped_changes_nothing_and_a_scaled_gradient_counts_unscaled():
    parameters = [torch.nn.Parameter(torch.ones(4)) for _ in range(2)]
    optimizers: list[Any] = [HalfMomentsAdamW([parameter], lr=0.1, fused=True) for parameter in parameters]
    for optimizer, parameter, scale in zip(optimizers, parameters, (1.0, 8.0), strict=True):
        parameter.grad = torch.full((4,), 0.3 * scale)
        optimizer.grad_scale, optimizer.found_inf = torch.tensor(scale), torch.tensor(0.0)
        optimizer.step()
        before = [parameter.detach().clone(), *(each.clone() for each in optimizer.state[parameter].values())]
        parameter.grad = torch.full((4,), torch.nan)
        optimizer.found_inf = torch.tensor(1.0)
        optimizer.step()
        after = [parameter.detach(), *optimizer.state[parameter].values()]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.allclose(*parameters)


def test_a_second_moment_falls_as_far_as_in_fp32_up_to_the_largest_beta_that_is_allowed():
    for beta, falls in ((0.98, True), (0.99, True), (0.999, False)):
        moment = torch.tensor(1.0, dtype=torch.bfloat16)
        for _ in range(2000):
            moment = (beta * moment.float()).bfloat16()
        assert (float(moment) < 1e-6) == falls
        config = tiny_config()
        optimizer = replace(config.optimizer, moments="bf16", beta2=beta)
        problems = [
            said for keys, said in impossible(replace(config, optimizer=optimizer)) if "optimizer.moments" in keys
        ]
        assert len(problems) == (not falls)
        assert not list(impossible(replace(config, optimizer=replace(optimizer, moments="fp32"))))


STAGES_OF = {1: (0,), 2: (1, 3, *at_night(0, 2))}


def half(stage: int) -> RunConfig:
    """A config with dropout in checkpointed blocks."""
    config = tiny_config(stage=stage, dropout=0.2)
    machine = replace(config.machine, checkpoint_blocks=True)
    return replace(config, machine=machine, optimizer=replace(config.optimizer, moments="bf16"))


def train(rank: int, size: int) -> dict[int, Any]:
    """ZeRO stage → all steps, and the second half after a resume; and the bytes of this rank's moments."""
    result: dict[int, Any] = {}
    for stage in STAGES_OF[size]:
        engine = make_engine(rank, size, half(stage))
        stats = steps_of(engine, rank, size, 0, HALF)
        taken = engine.weights(), engine.optimizer_state()
        stats += steps_of(engine, rank, size, HALF, STEPS)
        again = go_on(rank, size, half(stage), *taken)
        result[stage] = (stats, engine.weights(), engine.optimizer_state()), again, taken, moment_bytes(engine)
        result[stage, "fp32"] = moment_bytes(make_engine(rank, size, tiny_config(stage=stage)))
    return result


def moment_bytes(engine: Any) -> int:
    states = engine._torch_optimizer().state.values()
    return sum(state[kind].nbytes for state in states for kind in ("exp_avg", "exp_avg_sq"))


@lru_cache
def trained(size: int) -> dict[int, Any]:
    return run_ranks(size, train, size)[0]


@pytest.mark.parametrize("size", [1, 2])
def test_runs_resume_bit_identical_with_moments_of_half_the_size(size):
    for stage in STAGES_OF[size]:
        (stats, weights, state), again, _, num_bytes = trained(size)[stage]
        assert again.stats == stats[HALF:], stage
        assert largest_difference(again.weights, weights) == 0, stage
        assert_equal(again.optimizer, state)
        assert stats[0].loss != pytest.approx(alone()["losses"][0], abs=1e-4), "dropout was on"
        assert {moment.dtype for named in state.moments.values() for moment in named.values()} == {torch.bfloat16}
        assert 2 * num_bytes == trained(size)[stage, "fp32"], stage


def take_up(rank: int, halves: dict[int, Any]) -> dict[tuple[int, int], Any]:
    return {
        (old, now): go_on(rank, 1, half(now), *taken).first_moments
        for (old, taken), now in itertools.product(halves.items(), (0, *at_night(3)))
    }


def test_moments_in_bf16_are_taken_up_by_another_number_of_ranks_at_another_stage():
    halves = {stage: trained(2)[stage][2] for stage in (1, 3)}
    for (old, _), state in run_ranks(1, take_up, halves)[0].items():
        assert_equal(state, halves[old][1])
