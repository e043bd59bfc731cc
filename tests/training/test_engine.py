"""Real gloo ranks under DeepSpeed, compared with one process in plain torch."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import pytest
import torch

from diptych.config.schema import MachineConfig, RunConfig
from diptych.loss import LOSSES, LossOutput
from diptych.loss.softmax import softmax_loss
from diptych.model.dual_encoder import DualEncoder
from diptych.training.deepspeed_config import OWNED_DEEPSPEED_KEYS, deepspeed_config, zero_stage
from diptych.training.engine import Engine, OptimizerState
from diptych.training.optimizer import learning_rate_at
from diptych.training.step_stats import StepStats
from diptych.world import World
from tests.ranks import run_ranks
from tests.training.tiny import PAIRS, VOCABULARY, at_night, global_batches, rows_of, tiny_config

STAGES = (0, 1, 2, 3)
STEPS, HALF = 4, 2
STAGES_OF = {1: (0, *at_night(3)), 2: STAGES, **dict.fromkeys(at_night(4), (2,))}
"""By the number of ranks. One alone shares nothing, whatever its stage."""


@dataclass
class Trained:
    """What one rank has after some steps."""

    stats: list[StepStats]
    weights: dict[str, torch.Tensor]
    optimizer: OptimizerState
    first_moments: OptimizerState
    """After the first step, or as loaded."""
    half: tuple[dict[str, torch.Tensor], OptimizerState] | None = None
    """Weights and state after half of the steps, which are two."""
    first_weights: dict[str, torch.Tensor] = field(default_factory=dict)
    """After the first step."""
    after_roll_back: dict[str, torch.Tensor] = field(default_factory=dict)
    """Weights after the second half was taken again, by the engine that had taken all steps."""


def start_weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return new_model(tiny_config()).state_dict()


def new_model(config: RunConfig) -> DualEncoder:
    training = config.training
    return DualEncoder(config.model, VOCABULARY, training.initial_logit_scale, training.initial_logit_bias)


def make_engine(rank: int, size: int, config: RunConfig, weights: dict[str, torch.Tensor] | None = None) -> Engine:
    # The other ranks start from other weights: rank 0's must win.
    torch.manual_seed(rank)
    model = new_model(config)
    if rank == 0:
        scalars = {name: tensor for name, tensor in model.state_dict().items() if name.startswith("logit_")}
        model.load_state_dict(weights or {**start_weights(), **scalars})
    return Engine(model, config, World(rank, rank, size))


def take_steps(engine: Engine, rank: int, size: int, first: int, stop: int) -> list[StepStats]:
    rows = World(rank, rank, size).rows(PAIRS)
    return [
        engine.step(
            rows_of(batch, rows),
            number * PAIRS,
            tallies=(rank + 1,),
            waited_seconds=rank + 0.5,
            measures_update=number == 1,
        ).read()
        for number, batch in enumerate(global_batches(stop))
        if number >= first
    ]


def train(rank: int, size: int, stages: tuple[int, ...]) -> dict[int, tuple[Trained, Trained]]:
    """ZeRO stage → all steps, and the second half again in another engine that loaded the state after the first."""
    return {stage: train_at_stage(rank, size, stage) for stage in stages}


def train_at_stage(rank: int, size: int, stage: int) -> tuple[Trained, Trained]:
    config = tiny_config(stage=stage)
    engine = make_engine(rank, size, config)
    stats = take_steps(engine, rank, size, 0, 1)
    first_moments, first_weights = engine.optimizer_state(), engine.weights()
    stats += take_steps(engine, rank, size, 1, HALF)
    half = engine.weights(), engine.optimizer_state()
    stats += take_steps(engine, rank, size, HALF, STEPS)
    whole = Trained(stats, engine.weights(), engine.optimizer_state(), first_moments, half, first_weights)
    engine.restore_weights(half[0] if rank == 0 else None)
    engine.restore_optimizer(half[1] if rank == 0 else None)
    take_steps(engine, rank, size, HALF, STEPS)
    whole.after_roll_back = engine.weights()
    return whole, go_on(rank, size, config, *half)


def go_on(rank: int, size: int, config: RunConfig, weights: dict[str, torch.Tensor], state: OptimizerState) -> Trained:
    engine = make_engine(rank, size, config, weights)
    engine.restore_optimizer(state if rank == 0 else None)
    taken_up = engine.optimizer_state()
    stats = take_steps(engine, rank, size, HALF, STEPS)
    return Trained(stats, engine.weights(), engine.optimizer_state(), taken_up)


@lru_cache
def ranks_of(size: int) -> list[dict[int, tuple[Trained, Trained]]]:
    return run_ranks(size, train, size, STAGES_OF[size])


@lru_cache
def alone() -> dict[str, Any]:
    """Whole batches in plain torch: the loss as in the paper's figure 3, AdamW, clipping by norm."""
    config = tiny_config()
    model = DualEncoder(config.model, VOCABULARY, config.training.initial_logit_scale)
    model.load_state_dict(start_weights())
    decayed = [p for p in model.parameters() if sum(size > 1 for size in p.shape) > 1]
    others = [p for p in model.parameters() if sum(size > 1 for size in p.shape) <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.2}, {"params": others, "weight_decay": 0.0}],
        betas=(0.9, 0.98),
        eps=1e-6,
    )
    losses, norms, first_gradient = [], [], {}
    for number, batch in enumerate(global_batches(STEPS)):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(number * PAIRS, PAIRS, 20 * PAIRS, config.optimizer)
        image, text = model(batch.images, batch.tokens, batch.lengths)
        logits = model.logit_scale.exp() * image @ text.T
        rows = torch.logsumexp(logits, 1) - logits.diagonal()
        columns = torch.logsumexp(logits, 0) - logits.diagonal()
        loss = (rows.mean() + columns.mean()) / 2
        optimizer.zero_grad()
        loss.backward()
        norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        if number == 0:
            first_gradient = {name: p.grad.clone() for name, p in model.named_parameters()}
        optimizer.step()
        losses.append(loss.item())
    return {
        "losses": losses,
        "norms": norms,
        "first_gradient": first_gradient,
        "weights": {name: p.detach() for name, p in model.state_dict().items()},
    }


def largest_difference(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    assert one.keys() == other.keys()
    return max((float((one[name] - other[name]).abs().max()) for name in one), default=0.0)


def assert_equal(one: OptimizerState, other: OptimizerState) -> None:
    assert one.step == other.step
    for kind, moments in one.moments.items():
        assert largest_difference(moments, other.moments[kind]) == 0, kind


SETTINGS = [(size, stage) for size, stages in STAGES_OF.items() for stage in stages]


@pytest.mark.parametrize(("size", "stage"), SETTINGS)
def test_gradient_that_reaches_adam_is_that_of_one_process_on_the_whole_batch(size, stage):
    first, _ = ranks_of(size)[0][stage]
    # Adam's first moment after one step is (1 - beta1) times the clipped, averaged gradient.
    gradient = {name: moment / 0.1 for name, moment in first.first_moments.moments["exp_avg"].items()}
    assert alone()["norms"][0] > 0.5, "the clipping must act"
    # Clipping would hide a factor common to all gradients; the norm before it shows it.
    assert first.stats[0].gradient_norm == pytest.approx(alone()["norms"][0], rel=1e-5)
    # fp32 sums in another order: 5e-8 of a gradient of norm 0.5.
    assert largest_difference(gradient, alone()["first_gradient"]) < 5e-7


@pytest.mark.parametrize(("size", "stage"), SETTINGS)
def test_training_on_ranks_gives_the_weights_of_one_process(size, stage):
    ranks = [rank[stage][0] for rank in ranks_of(size)]
    # fp32 sums in another order, whose difference Adam enlarges if a gradient is near epsilon: 2e-6 was seen.
    assert largest_difference(ranks[0].weights, alone()["weights"]) < 1e-5
    assert [s.loss for s in ranks[0].stats] == pytest.approx(alone()["losses"], abs=1e-5)
    assert [s.gradient_norm for s in ranks[0].stats] == pytest.approx(alone()["norms"], rel=1e-4)
    assert {s.tallies for s in ranks[0].stats} == {(size * (size + 1) // 2,)}
    assert {s.waits for s in ranks[0].stats} == {tuple(rank + 0.5 for rank in range(size))}
    assert all(rank.stats == ranks[0].stats for rank in ranks), "every rank knows the same"
    assert all(not rank.weights for rank in ranks[1:])


@pytest.mark.parametrize(("size", "stage"), [setting for setting in SETTINGS if setting[0] < 4])
def test_resuming_from_collected_state_is_bit_identical_to_never_stopping(size, stage):
    once, again = ranks_of(size)[0][stage]
    assert once.stats[HALF:] == again.stats
    assert largest_difference(once.weights, again.weights) == 0
    assert_equal(once.optimizer, again.optimizer)
    assert once.optimizer.step == STEPS


@pytest.mark.parametrize(("size", "stage"), SETTINGS)
def test_an_engine_that_goes_back_to_earlier_weights_repeats_its_steps_bit_by_bit(size, stage):
    whole = ranks_of(size)[0][stage][0]
    assert largest_difference(whole.weights, whole.after_roll_back) == 0


@pytest.mark.parametrize(("size", "stage"), SETTINGS)
def test_each_towers_gradient_and_update_are_measured_over_all_ranks(size, stage):
    whole = ranks_of(size)[0][stage][0]
    assert whole.half is not None
    check_measured(whole.stats[1], whole.first_weights, whole.half[0])


def check_measured(stats: StepStats, before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    """Check the norms of the second step, by the weights before and after it."""
    squares = [norm**2 for norm in stats.tower_gradient_norms.values()]
    # The rest is logit_scale, which is in neither tower.
    assert 0.9 < sum(squares) / stats.gradient_norm**2 < 1
    assert stats.gradient_norm == pytest.approx(alone()["norms"][1], rel=1e-4)
    for tower, ratio in stats.update_ratios.items():
        names = [name for name in before if name.startswith(f"{tower}.") and before[name].is_floating_point()]
        flat = [torch.cat([weights[name].flatten() for name in names]) for weights in (before, after)]
        assert ratio == pytest.approx(float((flat[1] - flat[0]).norm() / flat[0].norm()), rel=1e-3), tower
    assert len(stats.update_ratios) == len(stats.tower_gradient_norms) == 2


def fill_padding(engine: Engine, number: float) -> int:
    """Write what memory may hold between the parameters in the flat tensors of ZeRO 3; how many elements that are."""
    num_filled = 0
    for flat in engine._masters():
        is_padding = torch.ones(flat.shape, dtype=torch.bool)
        for each in engine._fragments.values():
            if each.flat is flat:
                each.of(is_padding)[:] = False
        flat.data[is_padding] = number
        num_filled += int(is_padding.sum())
    return num_filled


def pad_with_garbage(rank: int) -> tuple[int, list[bool], StepStats, list[dict[str, torch.Tensor]]]:
    """Of three ranks: the number of elements of padding, the second step with garbage there and the weights around it.

    And whether weights are finite, with an infinite number in the padding and then with a bad weight.
    """
    engine = make_engine(rank, 3, tiny_config(stage=3))
    take_steps(engine, rank, 3, 0, 1)
    num_filled = fill_padding(engine, torch.inf)
    finite = [engine.has_finite_weights()]
    fill_padding(engine, 1e3)
    weights = [engine.weights()]
    [stats] = take_steps(engine, rank, 3, 1, 2)
    weights.append(engine.weights())
    next(each.of(each.flat.detach()) for each in engine._fragments.values() if each.stop > each.start)[0] = torch.nan
    return num_filled, [*finite, engine.has_finite_weights()], stats, weights


def test_what_pads_the_shares_of_ranks_is_not_taken_for_weights():
    padding, finite, (stats, *_), (weights, *_) = zip(*run_ranks(3, pad_with_garbage), strict=True)
    assert sum(padding) > 0
    assert finite == ([True, False],) * 3
    check_measured(stats, *weights)


def go_on_alone(rank: int, halves: dict) -> dict[tuple[int, int], Trained]:
    ways = itertools.product(halves.items(), (0, *at_night(3)))
    return {(old, now): go_on(rank, 1, tiny_config(stage=now), *half) for (old, half), now in ways}


def test_state_of_two_ranks_is_taken_up_by_one_at_any_stage():
    whole = {stage: ranks_of(2)[0][stage][0] for stage in (1, 3)}
    halves = {stage: trained.half for stage, trained in whole.items()}
    for (old, now), trained in run_ranks(1, go_on_alone, halves)[0].items():
        assert_equal(trained.first_moments, halves[old][1])
        # Three more steps with sums in another order; see above.
        assert largest_difference(trained.weights, whole[old].weights) < 1e-5, (old, now)


def push_scale(image: Any, text: Any, logit_scale: torch.Tensor, *others: Any) -> LossOutput:
    loss, statistics = softmax_loss(image, text, logit_scale)
    return LossOutput(loss - 1000 * logit_scale.sum(), statistics)


def pushed(rank: int, stages: tuple[int, ...]) -> dict[int, tuple[list[float], list[float], float]]:
    """ZeRO stage → logit_scale as the steps used it, as DeepSpeed's fp32 master has it, and its average."""
    LOSSES["pushing"] = push_scale
    result = {}
    for stage in stages:
        start = {"initial_logit_scale": 4.6, "ema_decay": 0.3}
        engine = make_engine(rank, 2, tiny_config(stage=stage, loss="pushing", rate=0.1, **start))
        used, masters = [], []
        for number in range(4):
            used += [stats.logit_scale for stats in take_steps(engine, rank, 2, number, number + 1)]
            scale = engine._fragments["logit_scale"]
            masters += scale.of(scale.flat.detach()).tolist()  # empty where the other rank has it
        used.append(float(engine.weights().get("logit_scale", torch.zeros(())).exp()))
        result[stage] = used, masters, float(engine.weights(averaged=True).get("logit_scale", 4.605))
    return result


def test_logit_scale_never_passes_100_nor_do_the_master_behind_it_and_its_average():
    for rank in run_ranks(2, pushed, (0, 3, *at_night(1, 2))):
        for stage, (used, masters, average) in rank.items():
            # 100 in fp32, as the exponential of the nearest logarithm.
            assert max(used) <= 100.0001, stage
            assert used[1:4] == pytest.approx([100] * 3, abs=1e-3), "it was pushed there"
            assert max(masters, default=0.0) <= 4.605171, stage
            assert 4.6 < average <= math.log(100) + 1e-6, stage


def in_bf16(rank: int, stages: tuple[int, ...]) -> dict[int, tuple[list[StepStats], dict[str, torch.Tensor]]]:
    result = {}
    for stage in stages:
        engine = make_engine(rank, 2, tiny_config(stage=stage, precision="bf16"))
        result[stage] = (take_steps(engine, rank, 2, 0, STEPS), engine.weights())
    return result


def test_bf16_follows_fp32_and_keeps_fp32_parameters():
    for stage, (stats, weights) in run_ranks(2, in_bf16, (0, 3, *at_night(1, 2)))[0].items():
        losses = [s.loss for s in stats]
        # bf16 has eight bits of mantissa: 1e-2 in the first steps, which later ones enlarge.
        assert losses[:3] == pytest.approx(alone()["losses"][:3], abs=2e-2)
        assert losses == pytest.approx(alone()["losses"], abs=5e-2)
        assert max(abs(a - b) for a, b in zip(losses, alone()["losses"], strict=True)) > 1e-5, "bf16 was on"
        assert {tensor.dtype for tensor in weights.values()} == {torch.float32}, stage


def poisoned_loss(rank: int) -> Any:
    def loss(image: Any, text: Any, logit_scale: torch.Tensor, *others: Any) -> LossOutput:
        loss, statistics = softmax_loss(image, text, logit_scale)
        return LossOutput(loss * (float("nan") if rank == 1 else 1.0), statistics)

    return loss


def poisoned_gradient(rank: int) -> Any:
    def loss(image: torch.Tensor, text: Any, logit_scale: torch.Tensor, *others: Any) -> LossOutput:
        if rank == 1:
            image.register_hook(lambda gradient: gradient * float("nan"))
        return softmax_loss(image, text, logit_scale)

    return loss


def skipped(rank: int, ways: list[tuple[str, int]]) -> dict[tuple[str, int], dict[str, Any]]:
    """(poison, ZeRO stage) → a good step, a step with poison only on rank 1 and what changed in it, then a good one."""
    result = {}
    poisons = {"nan_loss": poisoned_loss(rank), "nan_gradient": poisoned_gradient(rank)}
    for poison, stage in ways:
        engine = make_engine(rank, 2, tiny_config(stage=stage))
        take_steps(engine, rank, 2, 0, 1)
        before = engine.weights(), engine.optimizer_state()
        healthy, engine._objective._contrast = engine._objective._contrast, poisons[poison]
        [bad] = take_steps(engine, rank, 2, 1, 2)
        after = engine.weights(), engine.optimizer_state()
        engine._objective._contrast = healthy
        [good] = take_steps(engine, rank, 2, 1, 2)
        result[poison, stage] = {"before": before, "after": after, "bad": bad, "good": good}
    return result


def test_what_is_not_finite_on_one_rank_changes_nothing_on_any():
    ways = [("nan_loss", 0), ("nan_gradient", 2), ("nan_loss", 3)]
    ways += at_night(*itertools.product(("nan_loss", "nan_gradient"), STAGES))
    for rank in run_ranks(2, skipped, ways):
        for (poison, stage), seen in rank.items():
            assert seen["bad"].is_skipped and not seen["good"].is_skipped, (poison, stage)
            assert math.isnan(seen["bad"].loss) == (poison == "nan_loss")
            (weights, optimizer), (weights_after, optimizer_after) = seen["before"], seen["after"]
            assert all(torch.equal(weights[name], weights_after[name]) for name in weights), (poison, stage)
            assert_equal(optimizer, optimizer_after)
            assert seen["good"].loss == pytest.approx(alone()["losses"][1], abs=1e-5)
            assert seen["bad"].bad_ranks == seen["good"].bad_ranks == ()  # all embeddings are finite


def with_batch_statistics(stage: int) -> RunConfig:
    config = tiny_config(stage=stage, ema_decay=0.5)
    small = {"layers": [1, 1, 1, 1], "channels": [8, 8, 16, 16]}
    image = replace(config.model.image, name="resnet18", overrides=small)
    return replace(config, model=replace(config.model, image=image))


def skipped_with_batch_statistics(rank: int) -> dict[int, list[tuple[Any, Any]]]:
    """ZeRO stage → weights and averages after a good step, one whose activations on rank 1 are NaN, and a good one."""
    result = {}
    for stage in (0, 3, *at_night(1, 2)):
        config = with_batch_statistics(stage)
        engine = make_engine(rank, 2, config, new_model(config).state_dict())
        result[stage] = []
        for number in range(3):
            first_layer = engine.model.image.trunk.conv1
            poison = None
            if rank == number == 1:
                poison = first_layer.register_forward_hook(lambda *others: others[-1] * math.nan)
            [stats] = take_steps(engine, rank, 2, number, number + 1)
            assert stats.is_skipped == (number == 1)
            assert stats.bad_ranks == ((1,) if number == 1 else ())
            if poison:
                poison.remove()
            result[stage].append((engine.weights(), engine.weights(averaged=True)))
    return result


def test_a_skipped_step_does_not_change_running_statistics():
    for stage, (first, second, third) in run_ranks(2, skipped_with_batch_statistics)[0].items():
        assert largest_difference(first[0], second[0]) == 0, stage
        assert all(tensor.isfinite().all() for weights in third for tensor in weights.values()), stage
        name = "image.trunk.bn1.running_mean"
        assert not torch.equal(second[0][name], third[0][name]), "statistics are kept"


@pytest.mark.parametrize("key", OWNED_DEEPSPEED_KEYS)
def test_deepspeed_key_that_follows_from_the_config_is_refused(key):
    config = replace(tiny_config(), machine=MachineConfig(deepspeed={key: 1}))
    with pytest.raises(ValueError, match=rf"machine\.deepspeed sets {key}, which follows from .+; set that instead"):
        deepspeed_config(config, 1)


@pytest.mark.parametrize(
    ("expert", "complaint"),
    [
        ({"gradient_cliping": 1}, r"gradient_cliping is not a key of DeepSpeed's; did you mean gradient_clipping\?"),
        ({"flops_profilr": {}}, r"flops_profilr is not a key of DeepSpeed's; did you mean flops_profiler\?"),
        ({"offload_optimizer": {}}, "offload_optimizer is not a key of DeepSpeed's; see its documentation"),
        ({"zero_optimization": {"offlod": 3}}, "offlod = 3: is not known to DeepSpeed"),
        ({"zero_optimization": {"reduce_bucket_size": "many"}}, "reduce_bucket_size = 'many': Input should be a valid"),
        ({"zero_optimization": 3}, "zero_optimization is 3; expected a mapping"),
    ],
)
def test_what_deepspeed_does_not_know_is_refused(expert, complaint):
    with pytest.raises(ValueError, match=rf"^machine\.deepspeed.*{complaint}"):
        deepspeed_config(replace(tiny_config(), machine=MachineConfig(deepspeed=expert)), 1)


@pytest.mark.parametrize("key", ["flops_profiler", "activation_checkpointing", "tensorboard", "data_types", "compile"])
def test_every_section_that_deepspeed_reads_is_let_through(key):
    assert key in deepspeed_config(replace(tiny_config(), machine=MachineConfig(deepspeed={key: {}})), 1)


def test_zero_stage_is_refused_in_the_experts_section_and_the_rest_is_merged():
    config = tiny_config(stage=2)
    expert = replace(config, machine=MachineConfig(zero_stage=2, deepspeed={"zero_optimization": {"stage": 1}}))
    with pytest.raises(ValueError, match=r"set machine\.zero_stage instead"):
        deepspeed_config(expert, 1)
    tuned = replace(
        config, machine=MachineConfig(zero_stage=2, deepspeed={"zero_optimization": {"overlap_comm": True}})
    )
    assert deepspeed_config(config, 2, spans_machines=True)["zero_optimization"]["overlap_comm"]
    assert not deepspeed_config(config, 2)["zero_optimization"]["overlap_comm"]
    merged = deepspeed_config(tuned, 3)
    assert merged["zero_optimization"].items() >= {"stage": 2, "overlap_comm": True}.items()
    assert merged["train_micro_batch_size_per_gpu"] == PAIRS // 3


def test_a_single_rank_uses_no_zero_unless_an_expert_configures_it():
    config = tiny_config(stage=2)
    offload = MachineConfig(zero_stage=2, deepspeed={"zero_optimization": {"offload_optimizer": {"device": "cpu"}}})
    assert zero_stage(config, 2) == 2
    assert zero_stage(config, 1) == 0
    assert zero_stage(replace(config, machine=offload), 1) == 2


def with_and_without_checkpointed_blocks(rank: int) -> dict[int, list[dict[str, torch.Tensor]]]:
    """Stage → the weights after three steps, once with whole activations and once with those of one block at a time."""
    result = {}
    for stage in (0, 3, *at_night(1, 2)):
        config = tiny_config(stage=stage, dropout=0.2)
        machines = (replace(config.machine, checkpoint_blocks=on) for on in (False, True))
        engines = [make_engine(rank, 2, replace(config, machine=machine)) for machine in machines]
        for engine in engines:
            take_steps(engine, rank, 2, 0, HALF)
        result[stage] = [engine.weights() for engine in engines]
    return result


def test_blocks_that_are_computed_again_change_no_bit():
    for stage, (whole, again) in run_ranks(2, with_and_without_checkpointed_blocks)[0].items():
        assert largest_difference(whole, again) == 0, stage


SIGMOID = {"loss": "sigmoid", "initial_logit_scale": math.log(10), "initial_logit_bias": -10.0}


def train_by_the_sigmoid_loss(
    rank: int, size: int, ways: list[tuple[int, int | None]]
) -> dict[tuple[int, int | None], Trained]:
    """(ZeRO stage, pairs at once) → all steps."""
    result = {}
    for stage, pairs in ways:
        config = tiny_config(stage=stage, **SIGMOID)
        engine = make_engine(rank, size, replace(config, machine=replace(config.machine, pairs_per_forward=pairs)))
        stats = take_steps(engine, rank, size, 0, STEPS)
        state = engine.optimizer_state()
        result[stage, pairs] = Trained(stats, engine.weights(), state, state)
    return result


def test_the_sigmoid_loss_learns_its_bias_alike_on_any_number_of_ranks_and_at_any_stage():
    expected = run_ranks(1, train_by_the_sigmoid_loss, 1, [(0, None)])[0][0, None]
    bias = expected.weights["logit_bias"]
    assert bias.shape == (1,) and bias != -10 and expected.optimizer.moments["exp_avg"]["logit_bias"] != 0
    ways = [(0, None), (2, 4), (3, None), *at_night((1, 4), (2, None), (3, 4))]
    for how, trained in run_ranks(2, train_by_the_sigmoid_loss, 2, ways)[0].items():
        assert [s.loss for s in trained.stats] == pytest.approx([s.loss for s in expected.stats], rel=1e-5), how
        assert largest_difference(trained.weights, expected.weights) < 1e-5, how
