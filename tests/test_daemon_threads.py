"""Threads that wait for a server keep no process alive, and their results come in order."""

import subprocess
import sys
import threading

import pytest

from diptych.daemon_threads import in_threads
from tests.commands import PATIENCE_SECONDS

INTERRUPTED = """
import os, signal, time
from diptych.daemon_threads import in_threads
def hang(item):
    time.sleep(0.5)  # until the main thread waits; a signal just before would not end its wait
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(3600)
try:
    list(in_threads(hang, range(3), 1, "hang"))
except KeyboardInterrupt:
    print("interrupted")
"""


def test_after_ctrl_c_a_process_does_not_wait_for_its_threads():
    ended = subprocess.run(
        [sys.executable, "-c", INTERRUPTED], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=True
    )
    assert ended.stdout == "interrupted\n"


def test_results_come_in_order_and_an_error_in_its_turn():
    second_is_done = threading.Event()

    def work(item):
        if item == 0:
            assert second_is_done.wait(PATIENCE_SECONDS)
        if item == 1:
            second_is_done.set()
        return 1 // (3 - item)

    results = in_threads(work, range(9), 2, "work")
    assert [next(results) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
