from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from diptych.config.load import ConfigError
from diptych.config.schema import ImageTowerConfig, RunConfig
from diptych.config.values import dump_config
from diptych.errors import UserError
from diptych.model.dual_encoder import DualEncoder, without_memory
from diptych.model.image_tower import ImageTower
from diptych.run_dir import RunDir
from diptych.training.accumulate import random_layer
from diptych.training.checks import refuse_parts_with_batch_statistics
from diptych.training.engine import Engine
from diptych.training.job import _refuse_other_masks
from tests.ranks import run_ranks
from tests.training.test_engine import largest_difference, make_engine, take_steps
from tests.training.tiny import VOCABULARY, at_night, tiny_config

STEPS = 3


def engine_in_parts(rank: int, size: int, pairs_per_forward: int | None, **options: Any) -> Engine:
    config = tiny_config(**options)
    machine = replace(config.machine, pairs_per_forward=pairs_per_forward)
    return make_engine(rank, size, replace(config, machine=machine))


How = tuple[int, int | None]
"""ZeRO stage, pairs at once."""


def train(rank: int, size: int, ways: list[How]) -> dict[How, Any]:
    """Every step, and the weights after the last."""
    results = {}
    for stage, pairs in ways:
        engine = engine_in_parts(rank, size, pairs, stage=stage)
        results[stage, pairs] = take_steps(engine, rank, size, 0, STEPS), engine.weights()
    return results


def relative_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    """The difference of all numbers together, relative to their norm."""
    difference, whole = (
        torch.cat([each.flatten() for each in side])
        for side in ([one[name] - other[name] for name in one], [*other.values()])
    )
    return float(difference.norm() / whole.norm())


WAYS: dict[int, list[How]] = {
    # Parts of unequal and of equal size. One rank alone is at stage 0.
    1: [(0, 5), *at_night((0, 12), (0, 6), (0, 4))],
    2: [(0, 3), (1, 4), (2, 2), (3, 4), *at_night((0, 4), (1, 2), (2, 4), (3, 2))],
}


@pytest.mark.parametrize("size", WAYS)
def test_pairs_in_parts_give_the_step_of_all_at_once(size):
    stages = dict.fromkeys(stage for stage, _ in WAYS[size])
    ranks = run_ranks(size, train, size, [*((stage, None) for stage in stages), *WAYS[size]])
    for stage, pairs in WAYS[size]:
        whole, weights = ranks[0][stage, None]
        stats, in_parts = ranks[0][stage, pairs]
        assert [s.loss for s in stats] == pytest.approx([s.loss for s in whole], rel=1e-6), (stage, pairs)
        assert stats[0].gradient_norm == pytest.approx(whole[0].gradient_norm, rel=1e-6), (stage, pairs)
        assert relative_difference(in_parts, weights) < 1e-6, (stage, pairs)
        # fp32 sums in another order differ a little, and Adam enlarges the difference if a gradient is near epsilon.
        assert largest_difference(in_parts, weights) < 1e-5, (stage, pairs)


def train_with_patch_dropout(rank: int, size: int, ways: list[How]) -> dict[How, Any]:
    """The losses and the weights after all steps of towers that see half of the patches."""
    config, results = tiny_config(), {}
    overrides = {**config.model.image.overrides, "patch_drop_rate": 0.5}
    model = replace(config.model, image=replace(config.model.image, overrides=overrides))
    for stage, pairs in ways:
        machine = replace(config.machine, zero_stage=stage, pairs_per_forward=pairs)
        engine = make_engine(rank, size, replace(config, model=model, machine=machine))
        stats = take_steps(engine, rank, size, 0, STEPS)
        results[stage, pairs] = [s.loss for s in stats], engine.weights()
    return results


def test_patch_dropout_gives_the_same_weights_on_any_ranks_and_in_any_parts():
    alone = run_ranks(1, train_with_patch_dropout, 1, [(0, None), (0, 4)])[0]
    shared = run_ranks(2, train_with_patch_dropout, 2, [(0, None), (3, 4), *at_night((0, 3), (3, None))])[0]
    losses, weights = alone[0, None]
    for how, (others, other_weights) in [*alone.items(), *shared.items()]:
        assert others == pytest.approx(losses, rel=1e-5), how
        assert largest_difference(other_weights, weights) < 1e-5, how
    plain, _ = run_ranks(1, train, 1, [(0, None)])[0][0, None]
    assert abs(plain[0].loss - losses[0]) > 1e-3, "there were masks"


def features_of_both_passes(rank: int) -> dict[tuple[int, float], list[torch.Tensor]]:
    """(ZeRO stage, dropout) → the picture features of each part of a step, in the first pass and then in the second."""
    seen: dict[tuple[int, float], list[torch.Tensor]] = {}
    for stage, dropout in ((1, 0.3), (3, 0.3), (3, 0.0)):
        engine = engine_in_parts(rank, 2, 2, stage=stage, dropout=dropout)
        features: list[torch.Tensor] = []
        engine._engine.register_forward_hook(lambda _, __, out, kept=features: kept.append(out[0].detach().clone()))
        take_steps(engine, rank, 2, 0, 1)
        seen[stage, dropout] = features
    return seen


def test_both_passes_see_the_same_masks():
    for rank in run_ranks(2, features_of_both_passes):
        for how, features in rank.items():
            assert torch.equal(torch.cat(features[:3]), torch.cat(features[3:])), how
        assert not torch.equal(rank[3, 0.3][0], rank[3, 0.0][0]), "there were masks"


def test_a_layer_that_draws_masks_is_found_by_its_name():
    plain = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.0), nn.LayerNorm(2))
    assert random_layer(plain) is None
    assert random_layer(nn.Sequential(plain, nn.Dropout(0.1))) == "1"


@pytest.mark.parametrize(
    ("name", "image_size", "overrides", "found"),
    [
        ("vit_base_patch32_clip_224", 32, {"patch_drop_rate": 0.5, "patch_size": 8, "depth": 1}, None),
        (
            "vit_base_patch32_clip_224",
            32,
            {"drop_path_rate": 0.5, "patch_size": 8, "depth": 2},
            "trunk.blocks.1.drop_p",
        ),
        ("hiera_tiny_224", 224, {"patch_drop_rate": 0.5}, "trunk"),
    ],
)
def test_masks_that_are_keyed_by_row_are_not_random(name, image_size, overrides, found):
    with torch.device("meta"):
        tower = ImageTower(ImageTowerConfig(name=name, image_size=image_size, overrides=overrides), 8)
    said = random_layer(tower)
    assert said == found or (found and said and said.startswith(found))


def test_another_number_of_pairs_at_once_is_another_run_if_layers_draw_masks(tmp_path):
    for dropout in (0.0, 0.1):
        config = tiny_config(dropout=dropout)
        model = DualEncoder(config.model, VOCABULARY, 2.6)
        run = RunDir(tmp_path / str(dropout))
        run.path.mkdir()
        run.config_file.write_text(dump_config(config), encoding="utf-8")
        _refuse_other_masks(config, run.read_config(), run.path, model)
        in_parts = replace(config, machine=replace(config.machine, pairs_per_forward=4))
        with pytest.raises(ConfigError, match="image.trunk") if dropout else nullcontext():
            _refuse_other_masks(in_parts, run.read_config(), run.path, model)


def test_batch_statistics_over_a_part_are_refused():
    def check(config: RunConfig) -> None:
        refuse_parts_with_batch_statistics(config, partial(without_memory, config.model, 100))

    config = tiny_config()
    machine = replace(config.machine, pairs_per_forward=4)
    check(replace(config, machine=machine))
    resnet = replace(config.model, image=ImageTowerConfig(name="resnet18", image_size=64))
    with pytest.raises(UserError, match="machine.pairs_per_forward 4: resnet18 has batch normalisation"):
        check(replace(config, machine=machine, model=resnet))
    check(replace(config, model=resnet))
