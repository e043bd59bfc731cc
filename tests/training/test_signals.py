"""What asks a run to stop; signals and times are tested on whole runs in end_to_end/test_resume.py."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

import psutil
import pytest

from diptych.training.signals import KILLED_LAUNCHER

RANK = """
import os, time
from diptych.training.signals import StopRequest, launchers
launchers()
{before}
stop = StopRequest()
print(stop.requested, flush=True)
deadline = time.monotonic() + 30
while not stop.requested and time.monotonic() < deadline:
    time.sleep(0.01)
print(stop.reason)
"""
KILLED_WHILE_STARTING = """
print("starting", flush=True)
while os.getppid() == launchers()[0]:
    time.sleep(0.01)
"""


TORCHRUN, DEEPSPEED = {"TORCHELASTIC_RUN_ID": "one"}, {"CROSS_RANK": "0"}
"""What a launcher sets for its ranks."""
NESTED = "import subprocess, sys; subprocess.run([sys.executable, '-c', {program!r}])"


@contextmanager
def launcher_of(rank, environment, above=0):
    """A process that starts the rank, as launchers do; its output is the rank's. above: processes in between."""
    program = rank
    for _ in range(above + 1):
        program = NESTED.format(program=program)
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, env=os.environ | environment, stdout=subprocess.PIPE, text=True) as launcher:
        yield launcher


@pytest.mark.parametrize(
    ("environment", "above", "killed"),
    [(TORCHRUN, 0, 0), (DEEPSPEED, 1, 0), (DEEPSPEED, 1, 1)],
    ids=["torchrun", "deepspeed", "deepspeed's process of the machine"],
)
def test_a_rank_whose_launcher_was_killed_is_asked_to_stop(environment, above, killed):
    with launcher_of(RANK.format(before=""), environment, above) as launcher:
        assert launcher.stdout.readline() == "False\n"
        process = psutil.Process(launcher.pid)
        for _ in range(killed):
            (process,) = process.children()
        process.kill()
        assert launcher.stdout.read() == f"{KILLED_LAUNCHER}\n"  # when the rank has ended


def test_a_rank_whose_launcher_was_killed_while_it_started_is_asked_to_stop_at_once():
    with launcher_of(RANK.format(before=KILLED_WHILE_STARTING), TORCHRUN) as launcher:
        assert launcher.stdout.readline() == "starting\n"
        launcher.kill()
        assert launcher.stdout.read() == f"True\n{KILLED_LAUNCHER}\n"
