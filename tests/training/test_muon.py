"""Muon on real ranks under DeepSpeed, compared with one process and with torch's own."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from diptych.config.schema import RunConfig
from diptych.errors import UserError
from diptych.training import muon
from diptych.training.deepspeed_config import deepspeed_config
from diptych.training.fragments import Fragment
from diptych.training.half_moments import zero_state
from diptych.training.muon import MUON_MOMENTS, Muon, orthogonalisation_flops, orthogonalised
from tests.ranks import run_ranks
from tests.training.test_engine import (
    HALF,
    STEPS,
    Trained,
    assert_equal,
    go_on,
    largest_difference,
    make_engine,
    poisoned_gradient,
    take_steps,
)
from tests.training.tiny import at_night, tiny_config

STAGES_OF = {1: (0,), 2: (0, 1, 3, *at_night(2)), **dict.fromkeys(at_night(4), (2,))}
SETTINGS = [(size, stage) for size, stages in STAGES_OF.items() for stage in stages]


def muon_config(stage: int, **optimizer: Any) -> RunConfig:
    config = tiny_config(stage=stage)
    return replace(config, optimizer=replace(config.optimizer, name="muon", **optimizer))


def half_config(stage: int) -> RunConfig:
    """With moments in bf16 and averages, and matrices orthogonalised in bf16."""
    config = muon_config(stage, moments="bf16")
    return replace(config, training=replace(config.training, ema_decay=0.5, precision="bf16"))


def train(rank: int, size: int) -> dict[int, tuple[Trained, Trained]]:
    """ZeRO stage → all steps, and the second half again in another engine that loaded the state after the first."""
    muon.ELEMENTS_AT_ONCE = 3000  # so that the ranks exchange matrices one at a time or two
    result = {}
    for stage in STAGES_OF[size]:
        config = muon_config(stage)
        engine = make_engine(rank, size, config)
        stats = take_steps(engine, rank, size, 0, HALF)
        half = engine.weights(), engine.optimizer_state()
        stats += take_steps(engine, rank, size, HALF, STEPS)
        state = engine.optimizer_state()
        result[stage] = Trained(stats, engine.weights(), state, state, half), go_on(rank, size, config, *half)
    return result


@lru_cache
def trained(size: int) -> dict[int, tuple[Trained, Trained]]:
    return run_ranks(size, train, size)[0]


@pytest.mark.parametrize(("size", "stage"), SETTINGS)
def test_training_on_ranks_gives_the_weights_of_one_process(size, stage):
    alone, _ = trained(1)[0]
    once, _ = trained(size)[stage]
    # fp32 sums in another order, which the iteration enlarges where singular values are small: 1.1e-6 was seen.
    assert largest_difference(once.weights, alone.weights) < 1e-5
    assert [s.loss for s in once.stats] == pytest.approx([s.loss for s in alone.stats], abs=1e-5)


@pytest.mark.parametrize(("size", "stage"), [setting for setting in SETTINGS if setting[0] < 4])
def test_resuming_from_collected_state_is_bit_identical_to_never_stopping(size, stage):
    once, again = trained(size)[stage]
    assert once.stats[HALF:] == again.stats
    assert largest_difference(once.weights, again.weights) == 0
    assert_equal(once.optimizer, again.optimizer)
    assert once.optimizer.step == STEPS


def go_on_alone(rank: int, halves: dict[int, Any]) -> dict[tuple[int, int], Trained]:
    ways = itertools.product(halves.items(), (0, *at_night(3)))
    return {(old, now): go_on(rank, 1, muon_config(now), *half) for (old, half), now in ways}


def test_state_of_two_ranks_is_taken_up_by_one_at_any_stage():
    once = {stage: trained(2)[stage][0] for stage in (1, 3)}
    halves = {stage: whole.half for stage, whole in once.items()}
    for (old, now), again in run_ranks(1, go_on_alone, halves)[0].items():
        assert_equal(again.first_moments, halves[old][1])
        assert largest_difference(again.weights, once[old].weights) < 1e-5, (old, now)


def test_each_parameter_has_either_the_momentum_of_muon_or_the_moments_of_adamw():
    state = trained(2)[1][0].optimizer
    ours, first, second = (state.moments[kind].keys() for kind in ("momentum_buffer", "exp_avg", "exp_avg_sq"))
    assert first == second and not first & ours and first | ours == trained(2)[1][0].weights.keys()
    block = "text.transformer.resblocks.0"
    assert {name for name in ours if name.startswith("text.")} == {
        f"{block}.attn.in_proj_weight",
        f"{block}.attn.out_proj.weight",
        f"{block}.mlp.c_fc.weight",
        f"{block}.mlp.c_proj.weight",
    }


def steps_of(optimizer: torch.optim.Optimizer, parameter: torch.nn.Parameter, gradients: list[torch.Tensor]) -> None:
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()


def against_torch(rank: int, shape: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """The parameter after five of torch's steps and of ours, and our parameter and state around a skipped step."""
    torch.manual_seed(0)
    start, gradients = torch.randn(shape), [torch.randn(shape) for _ in range(5)]
    theirs, ours = (torch.nn.Parameter(each) for each in (start.flatten(1), start.clone()))
    options = {"lr": 1e-2, "weight_decay": 0.2}
    steps_of(
        torch.optim.Muon([theirs], momentum=0.95, adjust_lr_fn="match_rms_adamw", **options),
        theirs,
        [gradient.flatten(1) for gradient in gradients],
    )
    optimizer = Muon(
        [{"params": [ours], "is_muon": True, **options}], torch.optim.AdamW([torch.zeros(1)]), torch.bfloat16
    )
    optimizer.state[ours] = zero_state(ours, torch.float32, MUON_MOMENTS)
    optimizer.place([Fragment(ours.shape, 0, ours.numel(), ours, 0)])
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(4.0), torch.tensor(0.0)
    steps_of(optimizer, ours, [4 * gradient for gradient in gradients])
    before = [ours.detach().clone(), *(each.clone() for each in optimizer.state[ours].values())]
    optimizer.found_inf = torch.tensor(1.0)
    steps_of(optimizer, ours, [torch.full(shape, torch.nan)])
    return theirs.detach().view(shape), before, [ours.detach(), *optimizer.state[ours].values()]


@pytest.mark.parametrize("shape", [(7, 12), (12, 7), (8, 3, 2, 2)])
def test_a_step_is_that_of_torchs_muon_and_a_skipped_one_changes_nothing(shape):
    theirs, before, after = run_ranks(1, against_torch, shape)[0]
    # The same operations; only the product of rate and update is rounded once more, in fp32.
    assert torch.allclose(before[0], theirs, atol=1e-6)
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def in_bf16(rank: int) -> dict[int, tuple[list[Any], Trained]]:
    result: dict[int, tuple[list[Any], Trained]] = {}
    for stage in (1, 3, *at_night(0, 2)):
        engine = make_engine(rank, 2, half_config(stage))
        take_steps(engine, rank, 2, 0, HALF)
        half = engine.weights(), engine.optimizer_state()
        stats = take_steps(engine, rank, 2, HALF, STEPS)
        result[stage] = [stats, engine.weights(), engine.optimizer_state()], go_on(rank, 2, half_config(stage), *half)
    return result


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (6, 4, 3, 3)])
def test_the_operations_of_an_orthogonalisation_are_those_that_torch_counts(shape):
    with FlopCounterMode(display=False) as counter:
        orthogonalised(torch.empty(shape, device="meta").flatten(1), torch.float32)
    assert orthogonalisation_flops([torch.Size(shape)]) == counter.get_total_flops()


def test_runs_resume_bit_identical_with_a_momentum_in_bf16():
    for stage, ((stats, weights, state), again) in run_ranks(2, in_bf16)[0].items():
        assert again.stats == stats, stage
        assert largest_difference(again.weights, weights) == 0, stage
        assert_equal(again.optimizer, state)
        assert {each.dtype for each in state.moments["momentum_buffer"].values()} == {torch.bfloat16}


def train_without_matrices(rank: int) -> float:
    config = muon_config(0)
    frozen = ("image.trunk.blocks.*", "text.transformer.resblocks.*")
    engine = make_engine(rank, 1, replace(config, model=replace(config.model, freeze=frozen)))
    return take_steps(engine, rank, 1, 0, 1)[0].loss


def test_a_model_whose_blocks_are_frozen_is_trained_by_adamw_alone():
    assert run_ranks(1, train_without_matrices)[0] == trained(1)[0][0].stats[0].loss


def test_an_offloaded_optimizer_is_refused():
    config = muon_config(1)
    machine = replace(config.machine, offload_optimizer=True)
    with pytest.raises(UserError, match="offload_optimizer: optimizer.name muon .* set optimizer.name to adamw"):
        deepspeed_config(replace(config, machine=machine), 2)


def poisoned(rank: int) -> dict[int, tuple[bool, list[Any]]]:
    """ZeRO stage → whether a step with a gradient that is not finite on rank 1 was skipped, and the state around it."""
    result = {}
    for stage in (0, 2, *at_night(1, 3)):
        engine = make_engine(rank, 2, muon_config(stage))
        take_steps(engine, rank, 2, 0, 1)
        before = engine.weights(), engine.optimizer_state()
        engine._objective._contrast = poisoned_gradient(rank)
        [stats] = take_steps(engine, rank, 2, 1, 2)
        result[stage] = stats.is_skipped, [before, (engine.weights(), engine.optimizer_state())]
    return result


def test_what_is_not_finite_on_one_rank_changes_nothing_on_any():
    for stage, (is_skipped, (before, after)) in run_ranks(2, poisoned)[0].items():
        assert is_skipped, stage
        assert largest_difference(before[0], after[0]) == 0, stage
        assert_equal(before[1], after[1])
