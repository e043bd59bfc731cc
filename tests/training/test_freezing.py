"""Frozen tensors on real ranks: bit-equal after training, and without optimizer memory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import pytest
import torch

from diptych.config.schema import RunConfig
from diptych.training.engine import OptimizerState
from diptych.training.parameter_groups import hidden_matrices
from tests.ranks import run_ranks
from tests.training.test_engine import (
    HALF,
    STEPS,
    largest_difference,
    make_engine,
    new_model,
    take_steps,
    with_batch_statistics,
)
from tests.training.tiny import at_night, tiny_config

STAGES_OF = {1: (0,), 2: (0, 2, 3, *at_night(1))}

LOCKED = ("image.*", "text.token_embedding.*", "logit_scale")
"""A tower, a parameter of the other one, and the parameter of a group of its own."""


def locked_config(stage: int) -> RunConfig:
    config = tiny_config(stage=stage, ema_decay=0.5)
    optimizer = replace(config.optimizer, name="muon", weight_decay=0.5)
    return replace(config, model=replace(config.model, freeze=LOCKED), optimizer=optimizer)


def is_locked(name: str) -> bool:
    return name.startswith(("image.", "text.token_embedding.")) or name == "logit_scale"


@dataclass
class Trained:
    start: dict[str, torch.Tensor]
    weights: dict[str, torch.Tensor]
    averages: dict[str, torch.Tensor] | None
    state: OptimizerState
    resumed: dict[str, torch.Tensor]
    """The weights of an engine that took the second half again."""
    saved: dict[str, tuple[int, torch.Tensor]]
    """Of each tensor the first element that this rank saves, and what it saves."""


def train(rank: int, size: int) -> dict[int, Trained]:
    result = {}
    for stage in STAGES_OF[size]:
        engine = make_engine(rank, size, locked_config(stage))
        start = engine.weights()
        take_steps(engine, rank, size, 0, HALF)
        half = engine.weights(), engine.optimizer_state()
        take_steps(engine, rank, size, HALF, STEPS)
        again = make_engine(rank, size, locked_config(stage), half[0])
        again.restore_optimizer(half[1] if rank == 0 else None)
        take_steps(again, rank, size, HALF, STEPS)
        weights, share = engine.weights(), engine.share()
        saved = {name: (0, tensor.detach().clone()) for name, tensor in share.whole.get("model", {}).items()}
        parts = share.divided.get("model", {})
        saved |= {name: (part.start, part.values.detach().clone()) for name, part in parts.items()}
        averages, state = engine.weights(averaged=True), engine.optimizer_state()
        result[stage] = Trained(start, weights, averages, state, again.weights(), saved)
    return result


@lru_cache
def trained(size: int) -> list[dict[int, Trained]]:
    return run_ranks(size, train, size)


SETTINGS = [(size, stage) for size in (1, 2) for stage in STAGES_OF[size]]


@pytest.mark.parametrize(("size", "stage"), SETTINGS)
def test_frozen_tensors_are_bit_equal_after_training_and_the_others_are_not(size, stage):
    ended = trained(size)[0][stage]
    for name, tensor in ended.start.items():
        for after in (ended.weights, ended.averages):
            assert torch.equal(tensor, after[name]) == is_locked(name), name
    assert largest_difference(ended.weights, ended.resumed) == 0, "a resumed run ends alike"


@pytest.mark.parametrize(("size", "stage"), SETTINGS)
def test_frozen_tensors_have_no_moments_and_are_saved(size, stage):
    start, state = trained(size)[0][stage].start, trained(size)[0][stage].state
    assert {name for named in state.moments.values() for name in named} == {n for n in start if not is_locked(n)}
    saved = {name: torch.full((tensor.numel(),), torch.nan) for name, tensor in start.items()}
    for rank in trained(size):
        for name, (first, values) in rank[stage].saved.items():
            saved[name][first : first + values.numel()] = values.flatten()
    whole = {name: saved[name].view(tensor.shape) for name, tensor in start.items()}
    assert largest_difference(whole, trained(size)[0][stage].weights) == 0


def train_with_frozen_statistics(rank: int) -> dict[int, list[dict[str, torch.Tensor]]]:
    """ZeRO stage → weights before and after two steps of a tower with batch normalisation."""
    result = {}
    for stage in (0, 3):
        config = with_batch_statistics(stage)
        config = replace(config, model=replace(config.model, freeze=("image.*",)))
        engine = make_engine(rank, 2, config, new_model(config).state_dict())
        start = engine.weights()
        take_steps(engine, rank, 2, 0, HALF)
        weights = engine.weights()
        result[stage] = [start, weights, engine.weights(averaged=True)]
    return result


def test_running_statistics_that_match_are_frozen_too():
    for stage, (start, *others) in run_ranks(2, train_with_frozen_statistics)[0].items():
        for after in others:
            changed = {name for name in start if not torch.equal(start[name], after[name])}
            assert changed and not [name for name in changed if name.startswith("image.")], stage


def train_in_parts(rank: int) -> dict[int, dict[str, torch.Tensor]]:
    result = {}
    for stage in (0, 2, 3):
        config = locked_config(stage)
        engine = make_engine(rank, 2, replace(config, machine=replace(config.machine, pairs_per_forward=3)))
        take_steps(engine, rank, 2, 0, STEPS)
        result[stage] = engine.weights()
    return result


def test_a_frozen_tower_goes_through_in_parts_too():
    for stage, weights in run_ranks(2, train_in_parts)[0].items():
        # fp32 sums in another order.
        assert largest_difference(weights, trained(2)[0][stage].weights) < 1e-5, stage


def train_matrices_alone(rank: int) -> dict[int, set[str]]:
    """ZeRO stage → the names of what two steps changed, where all but Muon's matrices is frozen."""
    result = {}
    for stage in STAGES_OF[2]:
        config = locked_config(stage)
        matrices = set(hidden_matrices(new_model(config)))
        others = tuple(name for name in new_model(config).state_dict() if name not in matrices)
        engine = make_engine(rank, 2, replace(config, model=replace(config.model, freeze=others)))
        start = engine.weights()
        take_steps(engine, rank, 2, 0, 2)
        again = make_engine(rank, 2, replace(config, model=replace(config.model, freeze=others)))
        state = engine.optimizer_state()
        again.restore_optimizer(state if rank == 0 else None)
        weights = engine.weights()
        result[stage] = {name for name, tensor in start.items() if not torch.equal(tensor, weights[name])}
        assert result[stage] == (matrices if rank == 0 else set()), stage
    return result


def test_muons_matrices_can_be_all_that_is_trained():
    assert all(run_ranks(2, train_matrices_alone)[0].values())
