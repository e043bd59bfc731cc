"""What asks a run to stop; signals and times are tested on whole runs in end_to_end/test_resume.py."""

from __future__ import annotations

import os
import subprocess
import sys

from diptych.training.signals import KILLED_LAUNCHER

RANK = """
import time
from diptych.training.signals import StopRequest
stop = StopRequest()
print(stop.requested, flush=True)
deadline = time.monotonic() + 30
while not stop.requested and time.monotonic() < deadline:
    time.sleep(0.01)
print(stop.reason)
"""
LAUNCHER = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {RANK!r}])"


def test_a_rank_whose_launcher_was_killed_is_asked_to_stop():
    environment = os.environ | {"TORCHELASTIC_RUN_ID": "one"}
    command = [sys.executable, "-c", LAUNCHER]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as launcher:
        assert launcher.stdout is not None and launcher.stdout.readline() == "False\n"
        launcher.kill()
        assert launcher.stdout.read() == f"{KILLED_LAUNCHER}\n"  # when the rank has ended
