"""Models that predict words, on real ranks, compared with one process in plain torch."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diptych.checkpoint_folder import newest_valid
from diptych.config.load import ConfigError, load_config
from diptych.config.schema import RunConfig
from diptych.loss import WORD_LOSSES, WordLoss
from diptych.loss.visual_ngrams import VisualNgrams
from diptych.loss.words import BagOfWords
from diptych.model.word_predictor import WordPredictor
from diptych.training.checkpoint import Progress, load_checkpoint
from diptych.training.engine import Engine
from diptych.training.loop import Training
from diptych.training.save import Saves
from diptych.training.signals import StopRequest
from diptych.world import World
from tests.ranks import run_ranks
from tests.training.test_accumulate import relative_difference
from tests.training.test_token_head import BETA1, PAIRS, take_steps
from tests.training.tiny import VOCABULARY, at_night, global_batches, rows_of, tiny_config, tiny_job

STEPS = 3


def words_of(name: str) -> WordLoss:
    if name == "bag_of_words":
        return BagOfWords(VOCABULARY)
    batch = global_batches(1)[0].tokens.tolist()
    pairs = sorted({(row[1], row[2]) for row in batch})
    return VisualNgrams(VOCABULARY, [list(pair) for pair in pairs], 5, 0.2)


def config_of(name: str, stage: int, pairs_per_forward: int | None = None) -> RunConfig:
    config = tiny_config(stage=stage, loss=name)
    return replace(
        config,
        training=replace(config.training, global_batch_size=PAIRS),
        machine=replace(config.machine, pairs_per_forward=pairs_per_forward),
        optimizer=replace(config.optimizer, gradient_clip_norm=None),
    )


def model_of(name: str, seed: int = 0) -> WordPredictor:
    torch.manual_seed(seed)
    return WordPredictor(tiny_config().model, words_of(name).num_outputs)


How = tuple[str, int, int | None]
"""Loss, ZeRO stage, pairs at once."""


def train(rank: int, size: int, ways: list[How], folder: Path | None = None) -> dict[How, Any]:
    """The gradient of the first step, and the losses and weights of all; with a folder a checkpoint is saved."""
    results = {}
    for name, stage, pairs_per_forward in ways:
        config, world = config_of(name, stage, pairs_per_forward), World(rank, rank, size)
        engine = Engine(model_of(name, rank), config, world, words_of(name))
        stats = take_steps(engine, rank, size, 0, 1)
        gradient = {each: moment / (1 - BETA1) for each, moment in engine.optimizer_state().moments["exp_avg"].items()}
        stats += take_steps(engine, rank, size, 1, STEPS)
        results[name, stage, pairs_per_forward] = gradient, stats, engine.weights()
        if folder is not None:
            job = tiny_job(folder / f"{name}_{stage}", config, world, engine)
            with closing(Saves(job, StopRequest())) as saves:
                saves.start(Progress())
                saves.finish()
    return results


@lru_cache
def alone(name: str) -> tuple[dict[str, torch.Tensor], float]:
    """The gradient of the whole first batch by plain autograd, and the loss."""
    model, batch = model_of(name), rows_of(global_batches(1)[0], (0, PAIRS))
    (logits,) = model(batch.images, batch.tokens, batch.lengths)
    loss = words_of(name)(logits, batch.tokens, batch.lengths).mean()
    loss.backward()
    return {each: p.grad for each, p in model.named_parameters() if p.grad is not None}, loss.item()


@pytest.mark.parametrize("name", WORD_LOSSES)
def test_rank_mean_of_gradients_is_the_gradient_of_one_big_batch_at_every_stage_and_in_parts(name):
    expected, loss = alone(name)
    assert expected.keys() == dict(model_of(name).named_parameters()).keys(), "no parameter is without a gradient"
    norm = torch.cat([each.flatten() for each in expected.values()]).norm()
    weights = run_ranks(1, train, 1, [(name, 0, None)])[0][name, 0, None][2]
    ways = [(name, 0, None), (name, 2, 4), *at_night((name, 1, 3)), (name, 3, None)]
    for how, (gradient, stats, trained) in run_ranks(2, train, 2, ways)[0].items():
        assert stats[0].loss == pytest.approx(loss, rel=1e-6), how
        assert stats[-1].loss < stats[0].loss and not stats[0].is_skipped
        for parameter, exact in expected.items():
            assert float((gradient[parameter] - exact).norm() / norm) < 1e-6, (how, parameter)
        assert relative_difference(trained, weights) < 1e-5, how


def test_a_checkpoint_is_a_model_that_can_be_measured_by_itself(tmp_path):
    ways = [("bag_of_words", 1, None), ("visual_ngrams", 3, None)]
    for (name, stage, _), (_, _, weights) in run_ranks(2, train, 2, ways, tmp_path)[0].items():
        path, faults = newest_valid(tmp_path / f"{name}_{stage}" / "checkpoints")
        assert path is not None and not faults
        saved = load_checkpoint(path)
        assert saved.weights.keys() == weights.keys()
        assert all(torch.equal(saved.weights[each], tensor) for each, tensor in weights.items())
        described = json.loads((path / "model" / "config.json").read_text())["words"]
        assert described["loss"] == name
        if name == "visual_ngrams":
            ngrams = json.loads((path / "model" / "ngrams.json").read_text())
            assert ngrams == words_of(name).ngrams.tolist()


@pytest.mark.parametrize(
    ("setting", "complaint"),
    [
        ("loss.token_head.weight=1", "loss.token_head.weight is 1: it adds to a contrast"),
        ("loss.duplicates=positives", "loss.duplicates has no effect"),
        ("model.initial_weights=there", "model.initial_weights is a dual encoder"),
        ("evaluation.validation=there", "evaluation.validation needs embeddings of texts"),
        ("training.initial_logit_bias=-5", "the bag_of_words loss has no bias"),
        ("loss.ngrams.smoothing=1", "loss.ngrams.smoothing is 1.0; it must be above 0 and below 1"),
        ("loss.ngrams.longest=0", "loss.ngrams.longest is 0; it must be above 0"),
    ],
)
def test_what_cannot_go_with_predicted_words_is_one_line(setting, complaint):
    base = ["run_dir=x", "data.train=y", "training.total_samples=100", "training.global_batch_size=10"]
    with pytest.raises(ConfigError) as error:
        load_config([], [*base, "loss.name=bag_of_words", setting])
    assert complaint in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(("loss", "embeds"), [("softmax", True), ("bag_of_words", False)])
def test_a_run_that_ends_names_only_commands_that_take_its_model(loss, embeds, tmp_path):
    job, lines = tiny_job(tmp_path, tiny_config(loss=loss), World(rank=1), None), []  # type: ignore[arg-type]
    Training(job, None, None, None, SimpleNamespace(say=lines.append), None)._end(10)  # type: ignore[arg-type]
    said = lines[-1]
    assert f"diptych evaluate {tmp_path} --zero-shot" in said
    assert ("classify" in said, "embed" in said) == (embeds, embeds)
