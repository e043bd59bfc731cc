"""Real gloo ranks for tests: a forkserver with torch preloaded starts one in a third of a second."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 60
# DeepSpeed imports the last one, and with it torch's compiler, during `initialize`: 10 s a rank if not done once.
PRELOAD = ["tests.ranks", "diptych.training.engine", "deepspeed.runtime.zero.muon.muon_optimizer"]


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(rank, *arguments)` returned on each of `size` ranks; the parent asserts.

    The function is looked up by name in the ranks, so it must stand at a module's top. They meet by file, on no port.
    """
    os.environ["DS_ACCELERATOR"] = "cpu"  # read while DeepSpeed is imported, in the forkserver already
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    queue = context.Queue()
    # As bytes, here and on the way back: a tensor would travel by a file descriptor, of which few are allowed.
    task = pickle.dumps((function, arguments))
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_rank, args=(rank, size, Path(folder) / "meet", queue, task)) for rank in range(size)
        ]
        for process in processes:
            process.start()
        try:
            results = dict(pickle.loads(queue.get(timeout=2 * TIMEOUT_SECONDS)) for _ in processes)
        finally:
            for process in processes:
                process.join(TIMEOUT_SECONDS)
                process.kill()
    for rank, (succeeded, value) in sorted(results.items()):
        if not succeeded:
            raise AssertionError(f"rank {rank} of {size} failed:\n{value}")
    return [results[rank][1] for rank in range(size)]


def _rank(rank: int, size: int, meeting: Path, queue: Any, task: bytes) -> None:
    import torch
    import torch.distributed as dist

    function, arguments = pickle.loads(task)
    torch.set_num_threads(1)
    gc.freeze()  # DeepSpeed collects garbage at every turn: 0.1 s each with the million objects that were preloaded
    dist.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=size,
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    try:
        result = (rank, (True, function(rank, *arguments)))
    except BaseException:
        result = (rank, (False, traceback.format_exc()))
    queue.put(pickle.dumps(result))
    dist.destroy_process_group()
