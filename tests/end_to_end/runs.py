"""Real runs of `diptych train` on a toy that takes a second; a forkserver with everything imported starts them at once.

What depends on a launcher is started by the launcher's own command.
"""

from __future__ import annotations

import io
import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from diptych.data.shard_writer import ShardWriter
from diptych.data.tokenizer import train_vocabulary
from diptych.training.metrics import SAMPLES_SEEN, read_metrics

BATCH, STEPS, STEPS_PER_SAVE = 16, 96, 16
TIMEOUT_SECONDS = 120
MAIN = (sys.executable, "-m", "diptych")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "diptych")


def make_toy(folder: Path) -> Path:
    """Three shards of forty pictures of noise, a vocabulary, and the config of a run on them."""
    generator = np.random.default_rng(0)
    captions = [f"a {colour} picture, number {n}" for n in range(40) for colour in ("red", "green", "blue")]
    for shard in range(3):
        with ShardWriter(folder / "shards", shard) as writer:
            for number in range(40 * shard, 40 * (shard + 1)):
                picture = io.BytesIO()
                Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(picture, "PNG")
                writer.add(f"{number:06d}", {"png": picture.getvalue(), "txt": captions[number].encode()})
    train_vocabulary(captions, 560).save(folder / "vocabulary.json")
    config = folder / "toy.yaml"
    config.write_text(f"""\
data: {{train: {folder}/shards}}
tokenizer: {{vocabulary: {folder}/vocabulary.json}}
model:
  embed_dim: 16
  image:
    name: vit_base_patch32_clip_quickgelu_224
    image_size: 16
    overrides: {{patch_size: 8, embed_dim: 16, depth: 1, num_heads: 2}}
  text: {{context_length: 12, width: 16, heads: 2, layers: 1}}
optimizer: {{learning_rate: 1e-3, warmup_samples: 160}}
training: {{total_samples: {STEPS * BATCH}, global_batch_size: {BATCH}}}
checkpoint: {{every_samples: {STEPS_PER_SAVE * BATCH}}}
tracking: {{log_every_steps: 1, wandb: off}}
machine: {{process_group_timeout_seconds: 60}}
""")
    return config


@dataclass(frozen=True)
class Ended:
    statuses: list[int]
    """One a process that we started; minus the signal that killed it."""
    output: str
    errors: str


class Run:
    """A run in progress: one launcher's process, or ranks of our own."""

    def __init__(self, folder: Path, output: Path):
        self.folder = folder
        self._output = output
        self._processes: list[subprocess.Popen | multiprocessing.process.BaseProcess] = []

    @classmethod
    def by_command(cls, folder: Path, *words: object, launcher: tuple[str, ...] = MAIN) -> Run:
        """`launcher train CONFIG run_dir=FOLDER …` as the leader of a process group, as a shell would start it."""
        run = cls(folder, folder.with_name(f"{folder.name}.output"))
        with open(f"{run._output}.1", "a") as output, open(f"{run._output}.2", "a") as errors:
            run._processes.append(
                subprocess.Popen(
                    [*launcher, "train", *map(str, words), f"run_dir={folder}"],
                    env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=errors,
                    start_new_session=True,
                )
            )
        return run

    @classmethod
    def by_fork(cls, folder: Path, *words: object, ranks: int = 1) -> Run:
        """The same without a launcher and without the seconds that imports take."""
        run = cls(folder, folder.with_name(f"{folder.name}.output"))
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["torch", "tests.end_to_end.preload"])
        environment = {} if ranks == 1 else {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        arguments = ["train", *map(str, words), f"run_dir={folder}"]
        for rank in range(ranks):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            process = context.Process(target=_rank, args=(arguments, environment | place, str(run._output)))
            process.start()
            run._processes.append(process)
        return run

    @property
    def pids(self) -> list[int]:
        return [process.pid or 0 for process in self._processes]

    def is_alive(self) -> bool:
        return any(p.poll() is None if isinstance(p, subprocess.Popen) else p.is_alive() for p in self._processes)

    def signal(self, number: signal.Signals, rank: int | None = None) -> None:
        """To the process groups of all that we started, or to one of them alone."""
        for pid in self.pids if rank is None else self.pids[rank : rank + 1]:
            try:
                os.killpg(pid, number)
            except ProcessLookupError:
                continue

    def wait(self) -> Ended:
        """Until all that we started has ended; kills what does not, and fails."""
        statuses = []
        try:
            for process in self._processes:
                if isinstance(process, subprocess.Popen):
                    statuses.append(process.wait(TIMEOUT_SECONDS))
                    continue
                process.join(TIMEOUT_SECONDS)
                assert process.exitcode is not None, f"{self.folder}: still runs"
                statuses.append(process.exitcode)
        finally:
            self.signal(signal.SIGKILL)
        texts = []
        for stream in (1, 2):
            file = Path(f"{self._output}.{stream}")
            texts.append(file.read_text())
            file.unlink()
        return Ended(statuses, *texts)

    def wait_for_step(self, step: int) -> None:
        while samples_seen(self.folder) < step * BATCH:
            assert self.is_alive(), f"ended before step {step}: {self.wait()}"
            time.sleep(0.002)


def samples_seen(folder: Path) -> int:
    """As far as the record goes."""
    file = folder / "metrics.jsonl"
    if not file.exists():
        return 0
    return max((line.get(SAMPLES_SEEN, 0) for line in read_metrics(file) if "loss" in line), default=0)


def losses(folder: Path) -> dict[int, float]:
    """Samples seen → loss."""
    return {line[SAMPLES_SEEN]: line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line}


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _rank(arguments: list[str], environment: dict[str, str], output: str) -> None:
    os.setsid()
    os.environ.update(environment)
    for stream in (1, 2):
        descriptor = os.open(f"{output}.{stream}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, stream)
    from diptych.cli import main

    main(arguments)
