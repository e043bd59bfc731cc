"""Real gloo ranks for tests, each started in a tenth of a second; see `warm.py`."""

from __future__ import annotations

import gc
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diptych.run_dir import RunDir
from tests.warm import Warm

if TYPE_CHECKING:
    from diptych.config.load import LoadedConfig
    from diptych.data.loader_processes import LoaderProcesses
    from diptych.world import World

TIMEOUT_SECONDS = 120
"""A first `torch.compile` on a machine takes up to a minute."""


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """Call `function(rank, *arguments)` on each of `size` ranks and return the results, on which the parent asserts.

    The ranks look the function up by its name, so it must be at a module's top. They meet by file, on no port.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "task").write_bytes(pickle.dumps((function, arguments)))
        ranks = [Warm("tests.ranks:rank_of", rank, size, folder) for rank in range(size)]
        deadline = time.monotonic() + 2 * TIMEOUT_SECONDS
        ended = [rank.wait(max(0.0, deadline - time.monotonic())) for rank in ranks]
        for rank, status in zip(ranks, ended, strict=True):
            if status is None:
                rank.kill()
        results = []
        for rank, status in enumerate(ended):
            if status != 0:
                fault = Path(folder) / f"fault_{rank}"
                reason = fault.read_text() if fault.exists() else f"exit status {status}"
                raise AssertionError(f"rank {rank} of {size} failed:\n{reason}")
            results.append(pickle.loads((Path(folder) / f"result_{rank}").read_bytes()))
        return results


def train_on_ranks(loaded: LoadedConfig, world: World, processes: LoaderProcesses) -> bool:
    """Train as `diptych train` does on ranks that have met."""
    from diptych.training.loop import train
    from diptych.training.watch import Watch

    with Watch(RunDir(Path(loaded.config.run_dir)), world, loaded.config.machine, processes) as watch:
        return train(loaded, world, processes, watch)


def rank_of(rank: int, size: int, folder: str) -> int:
    """One rank's life: its result or its fault is written to the folder; the exit status."""
    import torch
    import torch.distributed as dist

    function, arguments = pickle.loads((Path(folder) / "task").read_bytes())
    torch.set_num_threads(1)
    torch.nn.Parameter.__repr__ = object.__repr__  # type: ignore[method-assign]  # DeepSpeed writes them all at ZeRO 3
    gc.freeze()  # DeepSpeed collects garbage at every turn: 0.1 s each with the million objects of the imports
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meet",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    try:
        result = function(rank, *arguments)
    except BaseException:
        (Path(folder) / f"fault_{rank}").write_text(traceback.format_exc())
        return 1
    (Path(folder) / f"result_{rank}").write_bytes(pickle.dumps(result))
    if dist.is_initialized():  # else the function has ended it
        dist.destroy_process_group()
    return 0
