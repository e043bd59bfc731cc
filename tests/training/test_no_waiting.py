"""A step never waits for the device; counted on a CPU, where a wait costs nothing but can be seen."""

from __future__ import annotations

import traceback
from collections import Counter
from dataclasses import replace
from typing import Any

import torch
from deepspeed.accelerator import get_accelerator
from torch.utils._python_dispatch import TorchDispatchMode

from diptych.config.schema import RunConfig
from diptych.world import World
from tests.ranks import run_ranks
from tests.training.test_engine import make_engine
from tests.training.tiny import PAIRS, at_night, global_batches, rows_of, tiny_config

WAITING = {"aten._local_scalar_dense.default", "aten.nonzero.default", "aten.equal.default", "aten.is_nonzero.default"}
"""Operations that give the host a number or a shape that only the device knows."""


class Waits(TorchDispatchMode):
    """Counts operations that would wait for a device if the tensors were on one, by their place in the code."""

    def __init__(self) -> None:
        super().__init__()
        self.places: Counter[str] = Counter()

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        # Lengths of captions are on the host, so reading them does not wait.
        if str(function) in WAITING and arguments[0].dtype != torch.int64:
            self.note(str(function))
        return function(*arguments, **(keywords or {}))

    def note(self, what: str) -> None:
        frames = [frame for frame in traceback.extract_stack() if "/torch/" not in frame.filename][:-2]
        self.places[f"{what} from {frames[-1].filename.rpartition('/')[2]}:{frames[-1].lineno}"] += 1


def with_hashes(config: RunConfig) -> RunConfig:
    """A config that uses hashes: for masks of patches, and for finding equal captions."""
    image = config.model.image
    image = replace(image, overrides={**image.overrides, "patch_drop_rate": 0.5})
    model, loss = replace(config.model, image=image), replace(config.loss, duplicates="positives")
    return replace(config, model=model, loss=loss)


def waits_of_a_step(rank: int) -> dict[tuple[int, int | None], dict[str, int]]:
    """(ZeRO stage, pairs at once) → what would wait in the third step."""
    found = {}
    for stage in (0, 1, 2, 3):
        for pairs in ((None, 3)[stage % 2], *at_night((3, None)[stage % 2])):
            config = with_hashes(tiny_config(stage=stage)) if pairs else tiny_config(stage=stage)
            world = World(rank, rank, 2)
            engine = make_engine(rank, 2, replace(config, machine=replace(config.machine, pairs_per_forward=pairs)))
            steps = [
                (rows_of(batch, world.rows(PAIRS)), number * PAIRS) for number, batch in enumerate(global_batches(3))
            ]
            for batch, seen in steps[:2]:
                engine.step(batch, seen).read()
            waits = Waits()
            synchronize, tensor = type(get_accelerator()).synchronize, torch.tensor

            def counted_synchronize(self: Any, *arguments: Any, waits: Waits = waits) -> None:
                waits.note("synchronize")

            def counted_tensor(*arguments: Any, waits: Waits = waits, tensor: Any = tensor, **keywords: Any) -> Any:
                if keywords.get("device") is not None:
                    waits.note("a tensor from the host")
                return tensor(*arguments, **keywords)

            type(get_accelerator()).synchronize, torch.tensor = counted_synchronize, counted_tensor
            try:
                with waits:
                    in_flight = engine.step(*steps[2], tallies=(1, 2))
            finally:
                type(get_accelerator()).synchronize, torch.tensor = synchronize, tensor
            assert in_flight.read().tallies == (2, 4)
            found[stage, pairs] = dict(waits.places)
    return found


def test_a_step_waits_for_the_device_at_stage_3_alone():
    for (stage, pairs), places in run_ranks(2, waits_of_a_step)[0].items():
        assert bool(places) == (stage == 3), (stage, pairs, places)
