"""Real gloo ranks for tests: a forkserver with torch preloaded starts one in a third of a second."""

from __future__ import annotations

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


def run_ranks(size: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
    """What `function(rank, *arguments)` returned on each of `size` ranks; the parent asserts.

    The function is looked up by name in the ranks, so it must stand at a module's top. They meet by file, on no port.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "tests.ranks"])
    queue = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            context.Process(target=_rank, args=(rank, size, Path(folder) / "meet", queue, function, arguments))
            for rank in range(size)
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


def _rank(rank: int, size: int, meeting: Path, queue: Any, function: Callable[..., Any], arguments: tuple) -> None:
    os.environ["DS_ACCELERATOR"] = "cpu"
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
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
    # As bytes: a tensor in a queue would travel by a file descriptor that ends with its process.
    queue.put(pickle.dumps(result))
    dist.destroy_process_group()
