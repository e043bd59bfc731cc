"""Loader processes are forked from a rank that has no threads yet, and end with it whatever happens."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import torch.distributed as dist

import diptych.world
from diptych.cli import main
from diptych.data.loader_processes import LoaderProcesses
from diptych.training import job
from diptych.world import World
from tests.commands import free_port, gone
from tests.warm import Warm

WORKERS = 2


def train_and_record(recipe: str, run_dir: str, device: str, record: str) -> int:
    """Train for a step on the CPU, or until the GPU would be touched, and write what happened in which order."""
    events: list[str] = []

    def recorded(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **keywords: Any) -> Any:
            events.append(name)
            return function(*arguments, **keywords)

        return call

    def audit(event: str, _: object) -> None:
        if event == "os.fork":
            threads = len(os.listdir("/proc/self/task"))
            events.append("fork" if threads == 1 else f"fork of {threads} threads")

    sys.addaudithook(audit)
    dist.init_process_group = recorded("ranks meet", dist.init_process_group)
    job.Engine = recorded("engine", job.Engine)  # type: ignore[misc, assignment]
    LoaderProcesses.run = recorded("load", LoaderProcesses.run)  # type: ignore[method-assign]
    torch.cuda.set_device = recorded("GPU", sys.exit)
    if device == "cuda":
        diptych.world.read_world = lambda: World(device=torch.device("cuda"))
    one_step = ("training.total_samples=32", "optimizer.warmup_samples=0")
    try:
        main(["train", recipe, f"run_dir={run_dir}", f"machine.loader_workers={WORKERS}", *one_step])
    except SystemExit:
        events.append("end")
    Path(record).write_text(json.dumps(events))
    return len(multiprocessing.active_children())


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="Linux says how many threads a process has")
@pytest.mark.parametrize(
    ("device", "then"), [("cpu", ["ranks meet", "load", "engine"]), ("cuda", ["GPU", "end"])], ids=["cpu", "cuda"]
)
def test_loader_processes_are_forked_before_threads_of_cuda_and_of_the_process_group(device, then, recipe, tmp_path):
    target = f"{__name__}:train_and_record"
    rank = Warm(target, str(recipe), str(tmp_path / "run"), device, str(tmp_path / "record"))
    assert rank.wait(60) == 0
    assert json.loads((tmp_path / "record").read_text()) == ["fork"] * WORKERS + then


def wait_with_processes(record: str) -> None:
    processes = LoaderProcesses(WORKERS)
    Path(record).write_text(f"{processes.number} processes")
    time.sleep(600)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_loader_processes_end_with_a_rank_that_is_killed_before_they_know_their_samples(number, tmp_path):
    rank = Warm(f"{__name__}:wait_with_processes", str(tmp_path / "record"))
    process = psutil.Process(rank.pid)
    while not (tmp_path / "record").exists():
        assert rank.poll() is None
        time.sleep(0.02)
    loaders = process.children()
    assert len(loaders) == WORKERS
    os.kill(rank.pid, number)
    assert gone([process, *loaders])


def test_a_loader_process_that_is_killed_while_the_ranks_meet_is_one_line(recipe, warm, tmp_path):
    meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    words = ("train", recipe, f"run_dir={tmp_path / 'run'}", "machine.loader_workers=1")
    ranks = [warm.start(*words, environment={**meeting, "RANK": "0", "LOCAL_RANK": "0"})]
    try:
        rank = psutil.Process(ranks[0].pid)
        ranks[0].wait_until(lambda: rank.num_threads() > 1)  # of the store at which ranks meet
        (loader,) = rank.children()
        loader.kill()
        ranks.append(warm.start(*words, environment={**meeting, "RANK": "1", "LOCAL_RANK": "1"}))
        first, second = (command.wait() for command in ranks)
        assert first == 2 and second in (1, 2)  # rank 1 loses rank 0, or comes when it has ended
        first, second = [
            [line for line in command.said.splitlines() if line.startswith("diptych train: ")] for command in ranks
        ]
        assert len(first) == 1 and first[0].startswith(f"diptych train: loader process {loader.pid} was killed or died")
        assert len(second) == 1 and ("lost the other ranks (" in second[0] or "does not meet" in second[0])
        assert "Traceback" not in ranks[0].said + ranks[1].said
    finally:
        for command in ranks:
            command.kill()
