import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from diptych_shards.run.worker_pool import WorkerPool, for_each, results_in_order

ROOT = Path(__file__).parents[2]


def square(number):
    return number * number


def die_at_three(number):
    if number == 3:
        os._exit(11)
    return number


def die_once(path):
    """Dies the first time it is given a path."""
    if not os.path.exists(path):
        open(path, "w").close()
        os._exit(11)
    return path


def lack_memory_at_three(number):
    return bytearray(1 << 60) if number == 3 else number


def hang_at_three(number):
    if number == 3:
        time.sleep(1000)
    return number


def raise_at_three(number):
    if number == 3:
        raise KeyError("a bug")
    return number


def large(number):
    return b"%d" % number * 1_000_000


class EndsTheProcess:
    """Ends its process as soon as it is unpickled there."""

    def __reduce__(self):
        return os._exit, (11,)

    def __call__(self, number):
        return number


def numbers(total=10, size=4):
    return [list(range(start, min(start + size, total))) for start in range(0, total, size)]


def give_up(item):
    return f"gave up {item}"


def results(work, size, batches, silence_seconds=60.0):
    with WorkerPool(for_each(work), size, silence_seconds=silence_seconds) as pool:
        yield from results_in_order(pool, batches, give_up=give_up)


def test_results_come_in_the_order_of_the_items():
    assert list(results(square, 3, numbers(100, 3))) == [number * number for number in range(100)]


def test_batches_are_taken_as_they_are_needed():
    taken = []

    def batches():
        for batch in numbers(400, 4):
            taken.append(batch)
            yield batch

    next(results(square, 1, batches()))
    assert len(taken) <= 4


def test_large_results_pass_without_a_deadlock():
    assert [result[:1] for result in results(large, 2, numbers())] == [b"%d" % number for number in range(10)]


@pytest.mark.parametrize("work", [die_at_three, lack_memory_at_three])
def test_an_item_at_which_processes_die_is_given_up_and_no_other(work):
    assert list(results(work, 2, numbers())) == [0, 1, 2, "gave up 3", 4, 5, 6, 7, 8, 9]


def test_an_item_is_tried_again_before_it_is_given_up(tmp_path):
    paths = [str(tmp_path / str(number)) for number in range(3)]
    assert list(results(die_once, 1, [paths])) == paths


def test_an_item_at_which_a_process_hangs_is_given_up():
    assert list(results(hang_at_three, 1, [[1, 2, 3, 4]], silence_seconds=1.5)) == [1, 2, "gave up 3", 4]


def test_a_bug_in_the_work_is_raised_with_its_traceback():
    with pytest.raises(RuntimeError, match="raise_at_three"):
        list(results(raise_at_three, 1, numbers()))


HANGING = """
from tests.data_prep.run.test_worker_pool import print_and_hang, results
if __name__ == "__main__":
    list(results(print_and_hang, 2, [["one"], ["two"]]))
"""


def print_and_hang(item):
    print(os.getpid(), flush=True)
    time.sleep(1000)


def test_processes_end_with_their_parent_however_it_ends(tmp_path):
    script = tmp_path / "hanging.py"
    script.write_text(HANGING)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=environment) as parent:
        assert parent.stdout is not None
        workers = [psutil.Process(int(parent.stdout.readline())) for _ in range(2)]
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=30)
    assert not alive


ORPHAN = """
import ctypes, multiprocessing, os, sys, time
from diptych_shards.run.worker_pool import end_with_parent

def outlive(parent):
    while os.getppid() == parent:
        time.sleep(0.01)
    end_with_parent()
    print("still there", flush=True)

def be_parent():
    multiprocessing.get_context("spawn").Process(target=outlive, args=(os.getpid(),)).start()
    os._exit(0)

if __name__ == "__main__":
    adopt = 36  # PR_SET_CHILD_SUBREAPER
    assert ctypes.CDLL(None).prctl(adopt, 1, 0, 0, 0) == 0
    if os.fork() == 0:
        be_parent()
    for _ in range(3):  # parent, resource tracker, orphan
        os.wait()
"""


def test_a_process_whose_parent_ended_first_ends_whoever_adopts_it(tmp_path):
    script = tmp_path / "orphan.py"
    script.write_text(ORPHAN)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


FIRST = """
import os
from tests.data_prep.run.test_worker_pool import results, square
if __name__ == "__main__":
    assert os.getpid() == 1
    print(*results(square, 2, [[2], [3]]))
"""
IN_CONTAINER = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--mount-proc"]


def can_be_first_process() -> bool:
    try:
        return subprocess.run([*IN_CONTAINER, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_be_first_process(), reason="unshare is not allowed here")
def test_the_first_process_of_a_container_has_workers_too(tmp_path):
    script = tmp_path / "first.py"
    script.write_text(FIRST)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [*IN_CONTAINER, sys.executable, str(script)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert done.stdout == "4 9\n", done.stderr


def test_processes_that_cannot_start_end_the_work():
    with pytest.raises(ValueError, match="end before they have started"):
        list(results(EndsTheProcess(), 2, numbers()))
