"""launch/train_on_slurm.sbatch on two "nodes" of this machine: its own logic with stand-ins for Slurm's commands."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from diptych.verbs.train import STOPPED
from tests.commands import ROOT, Command, forked_launcher, free_port, start
from tests.end_to_end.conftest import outcome
from tests.end_to_end.test_resume import after_some_steps, stopped_step

SCRIPT = ROOT / "launch" / "train_on_slurm.sbatch"

SRUN = """#!{python}
import os, signal, subprocess, sys
import psutil

step = {{"SLURM_JOB_ID": os.environ["SLURM_JOB_ID"], "SLURM_STEP_ID": "0"}}
words = sys.argv[1:]
while words[0].startswith("--"):
    words.pop(0)

def pass_on(number, frame):
    # As slurmstepd does: to every process of the step, also those in sessions of their own.
    for process in psutil.process_iter():
        try:
            environment = process.environ()
            if step.items() <= environment.items():
                process.send_signal(number)
        except psutil.Error:
            pass

signal.signal(signal.SIGUSR1, pass_on)
signal.signal(signal.SIGTERM, pass_on)
nodes = range(int(os.environ["SLURM_JOB_NUM_NODES"]))
places = [{{"SLURM_PROCID": str(node), "SLURM_NODEID": str(node), "SLURM_LOCALID": "0"}} for node in nodes]
tasks = [subprocess.Popen(words, env=os.environ | step | place) for place in places]
sys.exit(max(task.wait() for task in tasks))
"""


class SlurmJob:
    """A job of two nodes with one rank each."""

    def __init__(self, folder: Path, *words: object):
        self._folder = folder
        self._words = words
        self._starts = 0
        programs = folder / "programs"
        programs.mkdir()
        (programs / "srun").write_text(SRUN.format(python=sys.executable))
        (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {folder}/scontrol\n')
        for program in programs.iterdir():
            program.chmod(0o755)
        self._environment = forked_launcher(folder) | {
            "PATH": os.pathsep.join(map(str, (programs, Path(sys.executable).parent, os.environ["PATH"]))),
            "RANKS": "1",
            "RDZV_ENDPOINT": f"127.0.0.1:{free_port()}",
            "SLURM_JOB_ID": str(os.getpid()),
            "SLURM_JOB_NUM_NODES": "2",
            "SLURM_NTASKS": "2",
            "SLURM_CPUS_PER_TASK": "1",
        }

    def start(self) -> Command:
        """Start the batch script as Slurm does, first and after each requeue."""
        restarts = {"SLURM_RESTART_COUNT": str(self._starts)} if self._starts else {}
        self._starts += 1
        return start(self._folder, "bash", SCRIPT, *self._words, environment=self._environment | restarts)

    @property
    def commands_to_slurm(self) -> list[str]:
        asked = self._folder / "scontrol"
        return asked.read_text().splitlines() if asked.exists() else []


def signal_before_the_time_limit() -> signal.Signals:
    name, seconds = re.search(r"^#SBATCH --signal=B:(\w+)@(\d+)$", SCRIPT.read_text(), re.MULTILINE).groups()
    assert int(seconds) >= 120
    return signal.Signals[f"SIG{name}"]


@contextmanager
def held(run_dir: Path) -> Iterator[list[psutil.Process]]:
    """Stop the processes of both ranks during the block."""
    beats = [json.loads(file.read_bytes()) for file in (run_dir / "heartbeats").iterdir()]
    ranks = [psutil.Process(beat["pid"]) for beat in beats]
    assert len(ranks) == 2
    for rank in ranks:
        rank.suspend()
    try:
        yield ranks
    finally:
        for rank in ranks:
            rank.resume()


def is_pending(number: int, process: psutil.Process) -> bool:
    """Whether a signal waits for a stopped process."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    masks = re.findall(r"^(?:Sig|Shd)Pnd:\t(\w+)$", status, re.MULTILINE)
    return any(int(mask, 16) >> (number - 1) & 1 for mask in masks)


def test_a_signalled_job_saves_a_checkpoint_and_its_next_start_ends_bit_identical(recipe, on_two_ranks, tmp_path):
    run_dir = tmp_path / "run"
    job = SlurmJob(tmp_path, recipe, f"run_dir={run_dir}")
    requeue = [f"requeue {os.getpid()}"]
    # Near its time limit the job asks Slurm for another start, which is then ended by scancel.
    for number, status in ((signal_before_the_time_limit(), STOPPED), (signal.SIGTERM, 128 + signal.SIGTERM)):
        batch = job.start()
        after_some_steps(batch, run_dir, 4)
        with held(run_dir) as ranks:  # else the run could be over before the signal has come to them
            batch.signal(number)
            batch.wait_until(lambda ranks=ranks, number=number: all(is_pending(number, rank) for rank in ranks))
        assert batch.wait() == status
        assert f"stopped by {number.name} after {stopped_step(run_dir) * 32:,} samples" in batch.said
        assert "Traceback" not in batch.said
        assert job.commands_to_slurm == requeue

    again = job.start()
    assert again.wait() == 0, again.said
    assert outcome(run_dir) == outcome(on_two_ranks)
    assert job.commands_to_slurm == requeue
