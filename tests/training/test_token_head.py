"""A token head next to the contrast, on real ranks, compared with one process in plain torch."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from diptych.checkpoint_folder import newest_valid
from diptych.config.schema import RunConfig, TokenHeadConfig
from diptych.learning_curves import curves
from diptych.loss.words import TokenClassification
from diptych.model.dual_encoder import DualEncoder
from diptych.tensor_files import read_tensors
from diptych.training.checkpoint import Progress, load_checkpoint
from diptych.training.engine import Engine
from diptych.training.save import Saves
from diptych.training.signals import StopRequest
from diptych.world import World
from tests.ranks import run_ranks
from tests.training.test_accumulate import relative_difference
from tests.training.test_engine import largest_difference
from tests.training.tiny import VOCABULARY, at_night, global_batches, rows_of, tiny_config, tiny_job

WEIGHT, STEPS, PAIRS = 0.7, 3, 11
NUM_CAPTIONS, WITH_TOKEN = 50, np.arange(VOCABULARY) % 37
BETA1 = 0.9


def config_of(stage: int, pairs_per_forward: int | None = None, **training: Any) -> RunConfig:
    config = tiny_config(stage=stage, **training)
    return replace(
        config,
        loss=replace(config.loss, token_head=TokenHeadConfig(weight=WEIGHT)),
        training=replace(config.training, global_batch_size=PAIRS),
        machine=replace(config.machine, pairs_per_forward=pairs_per_forward),
        optimizer=replace(config.optimizer, gradient_clip_norm=None),
    )


def model_of(seed: int = 0) -> DualEncoder:
    torch.manual_seed(seed)
    return DualEncoder(tiny_config().model, VOCABULARY, 2.6, token_head=True)


def engine_of(rank: int, size: int, config: RunConfig) -> Engine:
    # The other ranks start from other weights: rank 0's must win.
    pair_loss = TokenClassification(NUM_CAPTIONS, WITH_TOKEN)
    return Engine(model_of(rank), config, World(rank, rank, size), pair_loss)


How = tuple[int, int | None]
"""ZeRO stage, pairs at once."""


def train(rank: int, size: int, ways: list[How]) -> dict[How, Any]:
    """The gradient of the first step, and the losses and weights of all."""
    results = {}
    for stage, pairs_per_forward in ways:
        engine = engine_of(rank, size, config_of(stage, pairs_per_forward))
        stats = take_steps(engine, rank, size, 0, 1)
        moments = engine.optimizer_state().moments["exp_avg"]
        stats += take_steps(engine, rank, size, 1, STEPS)
        gradient = {name: moment / (1 - BETA1) for name, moment in moments.items()}
        results[stage, pairs_per_forward] = gradient, stats, engine.weights()
    return results


def take_steps(engine: Engine, rank: int, size: int, first: int, stop: int) -> list[Any]:
    rows = World(rank, rank, size).rows(PAIRS)
    batches = list(enumerate(global_batches(stop)))[first:]
    return [engine.step(rows_of(batch, rows), number * PAIRS).read() for number, batch in batches]


@lru_cache
def alone() -> tuple[dict[str, torch.Tensor], float, float]:
    """The gradient of the whole first batch by plain autograd, the loss and the part of the token head."""
    model = model_of()
    batch = rows_of(global_batches(1)[0], (0, PAIRS))
    image, text, token_logits = model(batch.images, batch.tokens, batch.lengths)
    logits = model.logit_scale.exp() * image @ text.T
    rows = torch.arange(PAIRS)
    cross_entropy = torch.nn.functional.cross_entropy
    contrast = (cross_entropy(logits, rows) + cross_entropy(logits.T, rows)) / 2
    losses = []
    for one, tokens, length in zip(token_logits.double(), batch.tokens, batch.lengths, strict=True):
        words = sorted(set(tokens[1 : length - 1].tolist()))
        shares = torch.tensor(np.log((1 + NUM_CAPTIONS) / (1 + WITH_TOKEN[words])))
        losses.append(-(shares / shares.sum() * one.log_softmax(0)[words]).sum())
    of_tokens = torch.stack(losses).mean()
    loss = contrast + WEIGHT * of_tokens
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters()}, loss.item(), of_tokens.item()


WAYS: dict[int, list[How]] = {
    1: [(0, None), (0, 4)],
    2: [(0, 3), (1, None), (2, 2), (3, 4), *at_night((0, None), (2, None), (3, None))],
    **dict.fromkeys(at_night(3), [(1, 2)]),
}


@pytest.mark.parametrize("size", WAYS)
def test_rank_mean_of_gradients_is_the_gradient_of_one_big_batch_at_every_stage_and_in_parts(size):
    expected, loss, of_tokens = alone()
    norm = torch.cat([each.flatten() for each in expected.values()]).norm()
    weights = run_ranks(1, train, 1, [(0, None)])[0][0, None][2]
    for how, (gradient, stats, trained) in run_ranks(size, train, size, WAYS[size])[0].items():
        assert stats[0].loss == pytest.approx(loss, rel=1e-6), how
        assert stats[0].similarities["token_loss"] == pytest.approx(of_tokens, rel=1e-6), how
        assert gradient.keys() == expected.keys()
        for name, exact in expected.items():
            assert float((gradient[name] - exact).norm() / norm) < 1e-6, (how, name)
        assert relative_difference(trained, weights) < 1e-5, how


def save(rank: int, size: int, folder: Path) -> dict[int, Any]:
    """ZeRO stage → what the engine had when it was saved, and the weights after another step; and again from there.

    Last the averages, as this rank measures them at the time of the save.
    """
    results = {}
    for stage in (0, 3, *at_night(2)):
        config = config_of(stage, ema_decay=0.9)
        engine, world = engine_of(rank, size, config), World(rank, rank, size)
        take_steps(engine, rank, size, 0, 1)
        with closing(Saves(tiny_job(folder / str(stage), config, world, engine), StopRequest())) as saves:
            saves.start(Progress(samples_seen=PAIRS))
            saves.finish()
        had, averages = engine.weights(), engine.room_for_copy()
        engine.copy_weights(averages, averaged=True)
        take_steps(engine, rank, size, 1, 2)
        saved = load_checkpoint(newest_valid(folder / str(stage) / "checkpoints")[0]) if rank == 0 else None
        again = engine_of(rank, size, config)
        again.restore_weights(saved.weights if saved else None)
        again.restore_optimizer(saved.optimizer if saved else None)
        again.restore_average(saved.averages if saved else None)
        take_steps(again, rank, size, 1, 2)
        results[stage] = had, saved, engine.weights(), again.weights(), averages
    return results


def test_a_checkpoint_has_the_head_in_a_folder_of_its_own_and_the_run_goes_on_from_it(tmp_path):
    ranks = run_ranks(2, save, 2, tmp_path)
    for stage, (had, saved, whole, again, _) in ranks[0].items():
        assert saved.weights.keys() == had.keys()
        assert all(torch.equal(saved.weights[name], tensor) for name, tensor in had.items()), stage
        assert "token_head.weight" in saved.weights and "token_head.weight" not in saved.averages
        assert largest_difference(whole, again) == 0, stage
        checkpoint = newest_valid(tmp_path / str(stage) / "checkpoints")[0]
        assert checkpoint is not None
        names = {
            each: set(read_tensors(checkpoint / each / "model.safetensors")) for each in ("model", "ema", "token_head")
        }
        assert names["token_head"] == {"token_head.weight", "token_head.bias"}
        assert names["model"] == names["ema"] == had.keys() - names["token_head"]
        for rank in ranks:
            measured = {name: tensor for name, tensor in rank[stage][4].items() if name not in names["token_head"]}
            assert largest_difference(measured, saved.averages) == 0, "every rank can measure the averages"


def test_the_report_draws_the_loss_of_the_head():
    steps = [{"samples_seen": seen, "loss": 6.0, "token_loss": loss} for seen, loss in ((12, 4.0), (24, 3.0))]
    (drawn,) = [chart for chart in curves(steps) if chart.title == "Loss of the token head"]
    assert len(drawn.lines) == 1
