"""Check results on one GPU, and compare speed and memory with open_clip's; prints one line of JSON.

`python -m benchmarks.gpu` takes at most eight minutes and needs the extra `clip`. Each section runs in a process of its
own with a share of the time. Each measurement is recorded as soon as it is made; one that fails or runs out of time is
recorded with its reason, and the others continue. `--tiny` runs the same code with small models, on a CPU too; its
numbers mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from typing import Any

from benchmarks.gpu.section import Section
from benchmarks.gpu.sections import SECTIONS
from benchmarks.gpu.setting import FULL, TINY, Scale, world

from diptych.process_group import process_group

TOTAL_SECONDS = 480
SECONDS = {
    "no_waiting": 70,
    "losses": 80,
    "resume": 80,
    "loss": 70,
    **{f"towers.{name}": 120 for name in FULL.pairs},
    "largest": 90,
    "loader": 80,
}
"""Section → its limit in seconds, in the order of sections. Together they exceed the total, since few sections will
need all of theirs."""
TO_REPORT = 5
"""Seconds reserved for printing the result at the end."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="small models; runs on the CPU if there is no GPU")
    parser.add_argument("--only", nargs="+", metavar="SECTION", choices=SECONDS, help="run only these sections")
    parser.add_argument("--seconds", type=float, default=TOTAL_SECONDS, help="time for all sections (%(default)s)")
    parser.add_argument("--section", nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--until", type=float, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.section:
        until = arguments.until or time.time() + arguments.seconds
        run_sections(arguments.section, TINY if arguments.tiny else FULL, until)
        return
    began = time.time()
    result: dict[str, Any] = {"benchmark": "gpu", "tiny": arguments.tiny}
    for name in arguments.only or SECONDS:
        left = min(SECONDS[name], began + arguments.seconds - TO_REPORT - time.time())
        result[name] = in_a_process(name, arguments.tiny, left) if left > 0 else {"error": "no time was left for it"}
    result["seconds"] = round(time.time() - began, 1)
    print(json.dumps(result))


def in_a_process(name: str, is_tiny: bool, seconds: float) -> dict[str, Any]:
    """Run a section in a process, and return what it measured until it finished, failed or ran out of time."""
    began = time.time()
    command = [sys.executable, "-m", "benchmarks.gpu", "--section", name, "--until", str(began + seconds)]
    command += ["--tiny"] if is_tiny else []
    # A session of its own, so that all its processes can be killed and none disturbs the next section.
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True)
    problem = None
    try:
        output, errors = process.communicate(timeout=seconds)
        if process.returncode:
            problem = f"exit status {process.returncode}: {last_line(errors)}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        problem = f"ended after {seconds:.0f} seconds"
    result = Section.measured_in(output.decode(errors="replace"))
    if problem:
        result["error"] = problem
    return {**result, "seconds": round(time.time() - began, 1)}


def last_line(text: bytes) -> str:
    lines = text.decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "no message"


def run_sections(names: list[str], scale: Scale, until: float) -> None:
    """Run sections in this process; each measurement is printed as a line."""
    place = world()
    with process_group(place, timeout_seconds=60):
        for name in names:
            kind, _, detail = name.partition(".")
            SECTIONS[kind](Section(scale, detail, until, place))


if __name__ == "__main__":
    main()
