"""Processes forked from one that has imported torch, DeepSpeed and Diptych: each starts in a tenth of a second.

Each is a process like any other, the leader of its own session: a `diptych` command, a rank (`ranks.py`), or a process
of `pytest -n` (`conftest.py`). Who first needs the server starts it, and it ends with them; the environment variable
ADDRESS names its socket to the processes below. A request is a line of JSON with three open files, which become the
process's standard input, output and error. The answers are its process id and, when it has ended, its exit status.

For `pytest -n` the server imports the test files too, whose asserts pytest takes seconds to rewrite.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import gc
import importlib
import importlib.metadata
import inspect
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.context import ForkProcess
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[1]
ADDRESS = "DIPTYCH_TESTS_WARM"
ENVIRONMENT = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
HUGE_PAGE = 2 << 20
MADV_COLLAPSE = 25
"""Of Linux's madvise(2)."""
MODULES = (
    "setuptools.command.build_ext",  # by the first `torch.compile`; before DeepSpeed imports distutils
    "diptych.cli",
    "diptych.training.faults",
    "diptych.training.loop",
    "diptych.verbs.train",
    # By `initialize`; with the first comes torch's compiler.
    "deepspeed.runtime.zero.muon.muon_optimizer",
    "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "diptych_shards.cli",
    "open_clip",
    "pytest",
    "hypothesis",
    "sklearn.linear_model",
)


class Warm:
    """A process that was forked for us."""

    def __init__(
        self,
        target: str,
        *arguments: Any,
        files: tuple[int, int, int] = (0, 1, 2),
        environment: Mapping[str, str] | None = None,
    ):
        """target: the function to call, as "module:function", with arguments that JSON can hold."""
        request = {
            "target": target,
            "arguments": arguments,
            "environment": dict(os.environ | ENVIRONMENT if environment is None else environment),
            "folder": os.getcwd(),
        }
        self._connection = socket.socket(socket.AF_UNIX)
        self._connection.connect(address())
        socket.send_fds(self._connection, [json.dumps(request).encode() + b"\n"], files)
        self._answers = self._connection.makefile()
        self.pid = int(self._answers.readline())
        self._status: int | None = None

    def poll(self) -> int | None:
        """Its exit status, negative for the signal that ended it; None while it runs."""
        return self.wait(0)

    def wait(self, timeout_seconds: float | None = None) -> int | None:
        """As `poll`, once it has ended or after this time."""
        if self._status is None and select.select([self._connection], [], [], timeout_seconds)[0]:
            self._status = int(self._answers.readline())
            self._answers.close()
            self._connection.close()
        return self._status

    def __del__(self) -> None:
        self._answers.close()
        self._connection.close()

    def kill(self) -> None:
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def address(test_files: Iterable[str] = ()) -> str:
    """The socket of the server, which is started if there is none.

    test_files: what the server imports before it forks, as arguments of pytest.
    """
    if ADDRESS not in os.environ:
        folder = tempfile.mkdtemp()
        server = subprocess.Popen(
            [sys.executable, str(Path(__file__)), "serve", *test_files],
            cwd=ROOT,
            env=os.environ | ENVIRONMENT | {ADDRESS: f"{folder}/socket"},
            stdin=subprocess.PIPE,  # closed when we end, which ends the server
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert server.stdout is not None and server.stdout.readline() == b"ready\n"
        os.environ[ADDRESS] = f"{folder}/socket"
        atexit.register(server.communicate)
    return os.environ[ADDRESS]


def serve(test_files: list[str]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for module in MODULES:
            importlib.import_module(module)
    if test_files:
        import_tests(test_files)
    use_once()
    gc.freeze()
    use_huge_pages()
    running: dict[ForkProcess, socket.socket] = {}
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    signal.set_wakeup_fd(wake.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.environ[ADDRESS])
        listener.listen(64)
        print("ready", flush=True)
        while 0 not in (ready := select.select([listener, woken, 0], [], [])[0]):
            if listener in ready:
                connection, _ = listener.accept()
                running[start(connection, [listener, woken, wake, *running.values()])] = connection
            if woken in ready:
                woken.recv(1 << 12)
                for process in [process for process in running if process.exitcode is not None]:
                    answer(running[process], process.exitcode)
                    running.pop(process).close()
    os.unlink(os.environ[ADDRESS])
    os.rmdir(os.path.dirname(os.environ[ADDRESS]))
    for process in running:  # such as a launcher that waits for another, which a failed test has left behind
        process.kill()
    os._exit(0)


def use_once() -> None:
    """Do what a process does slowly the first time: the checks of a run, and the search of all modules and packages."""
    from diptych.config.load import load_config
    from diptych.training.checks import check_run
    from diptych.world import World

    words = ("data.train=nowhere", "training.total_samples=2", "training.global_batch_size=2", "run_dir=/nowhere")
    list(check_run(load_config([], words).config, World()))
    importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)  # asked by `init_process_group`
    inspect.getmodule(compile("", "no module's file", "exec"))


def import_tests(files: list[str]) -> None:
    """Import test files as pytest does; what is wrong with one is reported by the process that runs its tests."""
    import pytest

    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        pytest.main(["--collect-only", "-p", "no:cacheprovider", *files])


def use_huge_pages() -> None:
    """Put our 600 MB into pages of 2 MB, of which a fork and its end take half the time that they take of 4 kB.

    Linux can since 6.1; elsewhere the pages stay as they are.
    """
    maps, libc = Path("/proc/self/maps"), ctypes.CDLL(None)
    for line in maps.read_text().splitlines() if maps.exists() else ():
        (addresses, permissions, _, _, file, *name) = line.split()
        if "w" in permissions and file == "0" and name in ([], ["[heap]"]):
            first, end = (int(address, 16) for address in addresses.split("-"))
            for page in range(-(-first // HUGE_PAGE) * HUGE_PAGE, end - HUGE_PAGE + 1, HUGE_PAGE):
                libc.madvise(ctypes.c_void_p(page), ctypes.c_size_t(HUGE_PAGE), MADV_COLLAPSE)


def start(connection: socket.socket, others: list[socket.socket]) -> ForkProcess:
    """The process that is asked for, which has none of our sockets."""
    line, files, *_ = socket.recv_fds(connection, 1 << 16, 3)
    while not line.endswith(b"\n"):
        line += connection.recv(1 << 16)
    # This ends it without clearing a million objects away, which would take a second.
    process = ForkProcess(target=become, args=(json.loads(line), files, [connection, *others]))
    process.start()
    for file in files:
        os.close(file)
    answer(connection, process.pid)
    return process


def answer(connection: socket.socket, number: int | None) -> None:
    try:
        connection.sendall(f"{number}\n".encode())
    except OSError:  # nobody waits for it
        pass


def become(request: dict[str, Any], files: list[int], ours: list[socket.socket]) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for each in ours:
        each.close()
    os.setsid()
    os.chdir(request["folder"])
    for descriptor, file in enumerate(files):
        os.dup2(file, descriptor)
        os.close(file)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)
    sys.stderr = open(2, "w", buffering=1, errors="backslashreplace", closefd=False)
    os.environ.clear()
    os.environ.update(request["environment"])
    sys.modules["__main__"] = ModuleType("__main__")
    module, _, function = request["target"].partition(":")
    sys.exit(getattr(importlib.import_module(module), function)(*request["arguments"]))


def interpret(code: str) -> None:
    """As `python -c` does."""
    exec(code, vars(sys.modules["__main__"]))


def stand_in(code: str) -> int | None:
    """In a process that somebody else started: have the work done by one that was forked."""
    return Warm("tests.warm:interpret", code, environment=os.environ).wait()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        # The lowest frames of each process are ours. `inspect.stack`, which torchrun calls at every turn, searches all
        # 6,000 modules, 0.4 s, for a frame whose file belongs to none, such as runpy's.
        sys.path[0] = str(ROOT)
        sys.exit(importlib.import_module("tests.warm").serve(sys.argv[2:]))
    sys.exit(stand_in(sys.argv[-1]))
