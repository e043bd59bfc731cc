"""What asks a run to stop; signals and times are tested on whole runs in end_to_end/test_resume.py."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import contextmanager

from diptych.training.signals import KILLED_LAUNCHER

RANK = """
import os, time
from diptych.training.signals import StopRequest, parent
launcher = parent()
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
while os.getppid() == launcher:
    time.sleep(0.01)
"""


@contextmanager
def launcher_of(rank):
    """A process that starts the rank, as torchrun does; its output is the rank's."""
    command = [sys.executable, "-c", f"import subprocess, sys; subprocess.run([sys.executable, '-c', {rank!r}])"]
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "one"}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as launcher:
        yield launcher


def test_a_rank_whose_launcher_was_killed_is_asked_to_stop():
    with launcher_of(RANK.format(before="")) as launcher:
        assert launcher.stdout.readline() == "False\n"
        launcher.kill()
        assert launcher.stdout.read() == f"{KILLED_LAUNCHER}\n"  # when the rank has ended


def test_a_rank_whose_launcher_was_killed_while_it_started_is_asked_to_stop_at_once():
    with launcher_of(RANK.format(before=KILLED_WHILE_STARTING)) as launcher:
        assert launcher.stdout.readline() == "starting\n"
        launcher.kill()
        assert launcher.stdout.read() == f"True\n{KILLED_LAUNCHER}\n"
