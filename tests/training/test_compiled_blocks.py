"""Blocks compiled by the real compiler, if there is one: results, restarts, and blocks that it refuses."""

from __future__ import annotations

import logging
import os
import shutil
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from diptych.config.schema import ImageTowerConfig, RunConfig
from diptych.errors import UserError
from diptych.model.dual_encoder import without_memory
from diptych.training import compiled_blocks
from diptych.training.checks import refuse_blocks_that_cannot_be_compiled
from diptych.training.compiled_blocks import image_blocks
from diptych.training.engine import Engine, OptimizerState
from diptych.world import World
from tests.ranks import run_ranks
from tests.training.test_engine import HALF, STEPS, largest_difference, make_engine, take_steps
from tests.training.tiny import MODEL, tiny_config

Half = tuple[dict[str, torch.Tensor], OptimizerState]


def config_of(compile_blocks: bool, stage: int = 2) -> RunConfig:
    """A config with dropout."""
    config = tiny_config(stage=stage, dropout=0.2)
    return replace(config, machine=replace(config.machine, compile_blocks=compile_blocks))


def is_compiled(engine: Engine) -> bool:
    blocks = [*image_blocks(engine.model), *engine.model.text.transformer.resblocks]
    (compiled,) = {block._compiled_call_impl is not None for block in blocks}
    return compiled


def train(rank: int, half: Half | None = None) -> dict[str, Any]:
    """Weights and state at half time and at the end, and what was compiled after the start; or only the second half."""
    import torch._inductor.config
    from torch._dynamo.utils import counters

    torch._inductor.config.compile_threads = 1  # others would have to be started first
    try_blocks = compiled_blocks._try

    def try_in_turn(*arguments: Any) -> None:
        """Let rank 1 find in the cache what rank 0 has compiled."""
        for turn in range(2):
            if turn == rank:
                try_blocks(*arguments)
            dist.barrier()

    compiled_blocks._try = try_in_turn
    weights, state = half or (None, None)
    engine = make_engine(rank, 2, config_of(True), weights)
    assert is_compiled(engine)
    frames = counters["frames"]["total"]
    if half:
        engine.restore_optimizer(state if rank == 0 else None)
    stats = [] if half else take_steps(engine, rank, 2, 0, HALF)
    half_way = engine.weights(), engine.optimizer_state()
    stats += take_steps(engine, rank, 2, HALF, STEPS)
    compiled_later = counters["frames"]["total"] - frames
    return {"losses": [s.loss for s in stats], "weights": engine.weights(), "half": half_way, "later": compiled_later}


@lru_cache
def uncompiled() -> dict[str, Any]:
    return run_ranks(2, train_uncompiled)[0]


def train_uncompiled(rank: int) -> dict[str, Any]:
    engine = make_engine(rank, 2, config_of(False))
    stats = take_steps(engine, rank, 2, 0, STEPS)
    return {"losses": [s.loss for s in stats], "weights": engine.weights()}


@pytest.mark.skipif(not shutil.which("g++"), reason="there is no compiler")
def test_compiled_blocks_compute_the_same_and_go_on_bit_identical_in_new_processes():
    whole, plain = run_ranks(2, train)[0], uncompiled()
    assert whole["later"] == 0, "captions of any number of tokens are taken by what was compiled at the start"
    # fp32 sums in another order differ a little, and Adam enlarges the difference if a gradient is near epsilon. So the
    # masks of dropout are the same.
    assert whole["losses"] == pytest.approx(plain["losses"], abs=1e-5)
    assert largest_difference(whole["weights"], plain["weights"]) < 1e-5
    again = run_ranks(2, train, whole["half"])[0]
    assert again["losses"] == whole["losses"][HALF:]
    assert largest_difference(again["weights"], whole["weights"]) == 0


def train_without_compiler(rank: int, folder: Path) -> dict[str, Any]:
    """All steps with blocks that rank 1 could compile and rank 0 cannot; what is logged."""
    import torch._inductor.config

    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / f"cache_{rank}")  # in which nothing is compiled yet
    torch._inductor.config.cpp.cxx = (None, str(folder / "nosuch"))
    torch._inductor.config.compile_threads = 1
    if rank == 1:
        compiled_blocks._try = lambda *_: None
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("diptych").addHandler(handler)
    engine = make_engine(rank, 2, config_of(True))
    assert not is_compiled(engine)
    stats = take_steps(engine, rank, 2, 0, STEPS)
    return {"losses": [s.loss for s in stats], "weights": engine.weights(), "said": said}


def test_without_a_compiler_the_blocks_run_as_they_are_and_one_line_says_so(tmp_path):
    result, plain = run_ranks(2, train_without_compiler, tmp_path)[0], uncompiled()
    (line,) = result["said"]
    assert line.startswith("machine.compile_blocks: the blocks run uncompiled, since torch.compile failed (")
    assert "\n" not in line and "compiler" in line.lower()
    assert result["losses"] == plain["losses"]
    assert largest_difference(result["weights"], plain["weights"]) == 0


def step_with_a_frozen_tower(rank: int, tower: str) -> bool:
    # Any code serves as the compiled one; what matters is the forward and backward that try it.
    torch.nn.Module.compile = lambda block, **_: setattr(block, "_compiled_call_impl", block._call_impl)
    config = config_of(True, stage=0)
    engine = make_engine(rank, 1, replace(config, model=replace(config.model, freeze=(f"{tower}.*",))))
    take_steps(engine, rank, 1, 0, 1)
    return is_compiled(engine)


@pytest.mark.parametrize("tower", ["image", "text"])
def test_a_frozen_tower_does_not_keep_blocks_from_being_compiled(tower):
    assert run_ranks(1, step_with_a_frozen_tower, tower)[0]


@pytest.mark.parametrize(
    ("name", "number"), [("resnet10t", 4), ("convnext_atto", 12), ("swin_tiny_patch4_window7_224", 12)]
)
def test_blocks_are_found_in_towers_of_any_kind(name, number):
    model = without_memory(replace(MODEL, image=ImageTowerConfig(name=name, image_size=224)), 100)
    assert len(image_blocks(model)) == number


def test_zero_3_is_refused_and_may_be_set_for_a_rank_alone():
    config = config_of(True, stage=3)
    model = partial(without_memory, config.model, 100)
    with pytest.raises(UserError, match=r"machine.compile_blocks: at ZeRO stage 3 .* set machine.zero_stage to 2"):
        refuse_blocks_that_cannot_be_compiled(config, World(0, 0, 2), model)
    refuse_blocks_that_cannot_be_compiled(config, World(0, 0, 1), model)
    refuse_blocks_that_cannot_be_compiled(config_of(False, stage=3), World(0, 0, 2), model)
