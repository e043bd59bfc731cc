"""Measure how long a save stops training, with 1 GB of state; prints one line of JSON.

Compared are two ways to save the same engine: in line, where rank 0 gathers whole tensors, writes them, reads them back
for their hashes and waits for the disk while all ranks wait for it; and as `diptych train` saves, where each rank
copies its share and a process of its own writes it. The two alternate. Reported are the medians of the time for which
training stands still, of the time until the checkpoint is complete, and of a step with and without a checkpoint being
written. One rank has ZeRO stage 0, two have stage 1; all run in one thread each.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["DS_ACCELERATOR"] = "cpu"  # read while DeepSpeed is imported

import numpy as np
import torch
from benchmarks.step import CONTEXT, VOCABULARY, make_batch

from diptych.checkpoint_folder import describe
from diptych.config.schema import (
    DataConfig,
    ImageTowerConfig,
    MachineConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    TextTowerConfig,
    TrackingConfig,
    TrainingConfig,
)
from diptych.data.mixture import Mixture
from diptych.data.order import SampleOrder
from diptych.data.shard_index_file import Shard
from diptych.data.shards import ShardIndex
from diptych.data.tokenizer import train_vocabulary
from diptych.files import flush
from diptych.model.dual_encoder import DualEncoder
from diptych.model_folder import save_model_folder
from diptych.process_group import process_group
from diptych.run_dir import RunDir, read_metrics
from diptych.tensor_files import save_tensors
from diptych.training.checkpoint import Progress
from diptych.training.engine import Engine
from diptych.training.job import Job
from diptych.training.metrics import Metrics
from diptych.training.save import Saves
from diptych.training.signals import StopRequest
from diptych.training.tallies import SAVE_STATES
from diptych.world import read_world

PAIRS = 2
"""Pairs of a batch, whose steps fill the time until a checkpoint is complete."""
ROUNDS = 3
MODEL = ModelConfig(
    embed_dim=512,
    image=ImageTowerConfig(name="vit_base_patch32_clip_quickgelu_224", image_size=224, overrides={"depth": 3}),
    text=TextTowerConfig(context_length=CONTEXT, width=512, heads=8, layers=12),
)
"""About 87 M parameters: 1.04 GB of weights and moments."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="where to write; default: the folder for temporary files")
    parser.add_argument("--ranks", type=int, nargs="*", default=[1, 2])
    parser.add_argument("--rank-of", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rank_of:
        measure(arguments.rank_of)
        return
    result: dict[str, Any] = {"benchmark": "saves"}
    for num_ranks in arguments.ranks:
        result[f"ranks_{num_ranks}"] = start(num_ranks, arguments.folder)
    print(json.dumps(result))


def start(num_ranks: int, parent: Path | None) -> dict[str, Any]:
    """Run the ranks, and return what rank 0 has measured."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory(dir=parent) as folder:
        command = [sys.executable, "-m", "benchmarks.saves", "--rank-of", folder]
        shared = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "WORLD_SIZE": str(num_ranks),
        }
        ranks = [subprocess.Popen(command, env={**shared, "RANK": str(rank)}) for rank in range(num_ranks)]
        ended = [rank.wait() for rank in ranks]
        if any(ended):
            raise SystemExit("a rank failed")
        return json.loads((Path(folder) / "result.json").read_text())


def measure(folder: Path) -> None:
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    with process_group(read_world(), timeout_seconds=300) as world:
        config = RunConfig(
            run_dir=str(folder),
            data=DataConfig(train=""),
            training=TrainingConfig(total_samples=10_000 * PAIRS, global_batch_size=PAIRS, precision="fp32"),
            model=MODEL,
            machine=MachineConfig(zero_stage=1),
            tracking=TrackingConfig(wandb="off"),
        )
        engine = Engine(DualEncoder(MODEL, VOCABULARY, config.training.initial_logit_scale), config, world)
        job = job_of(folder, config, world, engine)
        saves = Saves(job, StopRequest())
        first, stop = world.rows(PAIRS)
        batch = make_batch(PAIRS).parts(PAIRS)[first] if stop - first < PAIRS else make_batch(PAIRS)
        steps = 0

        def step() -> float:
            nonlocal steps
            began = time.perf_counter()
            tallies = tuple(saves.states().get(name, 0) for name in SAVE_STATES)
            stats = engine.step(batch, steps * PAIRS, tallies=tallies).read()
            saves.advance(dict(zip(SAVE_STATES, stats.tallies, strict=True)))
            steps += 1
            return time.perf_counter() - began

        alone = [step() for _ in range(4)][1:]
        in_line, started, beside = [], [], []
        for number in range(ROUNDS):
            in_line.append(timed(lambda: save_in_line(job, folder / "in_line")))
            step()
            started.append(timed(lambda number=number: saves.start(Progress(samples_seen=(1 + number) * PAIRS))))
            while saves.states():
                beside.append(step())
            alone += [step(), step()]
        saves.close()
        if world.is_first:
            report(folder, in_line, started, alone, beside)


def report(folder: Path, in_line: list[float], started: list[float], alone: list[float], beside: list[float]) -> None:
    events = [line for line in read_metrics(folder / "metrics.jsonl") if line.get("event") == "save"]
    before, after = statistics.median(in_line), statistics.median(started)
    result = {
        "megabytes": round(events[0]["bytes"] / 1e6),
        "stall_in_line": round(before, 3),
        "stall": round(after, 3),
        "stall_ratio": round(after / before, 3),
        "stall_in_line_rounds": [round(each, 3) for each in in_line],
        "stall_rounds": [round(each, 3) for each in started],
        "seconds_until_complete": statistics.median(event["seconds"] for event in events),
        "step_seconds": round(statistics.median(alone), 3),
        "step_seconds_while_writing": round(statistics.median(beside), 3),
    }
    (folder / "result.json").write_text(json.dumps(result))


def save_in_line(job: Job, folder: Path) -> None:
    """Gather whole tensors on rank 0 and write them there, while the other ranks wait."""
    weights, state = job.engine.weights(), job.engine.optimizer_state()
    if job.world.is_first:
        shutil.rmtree(folder, ignore_errors=True)
        save_model_folder(folder, weights, job.config.model, job.tokenizer)
        moments = {f"{kind}.{name}": tensor for kind, each in state.moments.items() for name, tensor in each.items()}
        save_tensors(moments, folder / "optimizer.safetensors")
        flush(folder / "optimizer.safetensors")
        for file in folder.iterdir():
            describe(file)
    torch.distributed.barrier()


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def job_of(folder: Path, config: RunConfig, world: Any, engine: Engine) -> Job:
    run = RunDir(folder)
    run.checkpoints.mkdir(exist_ok=True)
    mixture = Mixture(ShardIndex([Shard(Path("0.tar"), 9, 1, "00" * 32)]), [SourceConfig(shards="0.tar")], [1])
    order = SampleOrder(np.array([9]), seed=0, global_batch_size=PAIRS, shuffle_window=9)
    metrics = Metrics(run.metrics, config, samples_seen=0, tracker_id="") if world.is_first else None
    tokenizer = train_vocabulary(["a caption"], 520)
    return Job(config, run, world, mixture, order, tokenizer, engine, Progress(), metrics, (_ for _ in ()))


if __name__ == "__main__":
    main()
