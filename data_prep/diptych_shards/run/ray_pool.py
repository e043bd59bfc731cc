"""Workers on a Ray cluster: each task is a Ray task, whose messages arrive when it has ended."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from typing import Any

from diptych.errors import UserError
from diptych.extras import pip_install
from diptych_shards.run.worker_pool import LOST, Work, do_work

CONNECT_SECONDS = 10.0
"""How long to try to connect to the address of a cluster."""


class RayPool:
    """Does the work on the cluster at `address` (None: the one that Ray finds)."""

    def __init__(self, work: Work, address: str | None):
        """Connect to the cluster.

        Raises:
            UserError: Ray is not installed, or no cluster answers.
        """
        self._ray = _connected(address)
        self._work = self._ray.put(work)
        self._folder = os.getcwd()
        # With Ray's own retries we would not learn of a lost process.
        self._run = self._ray.remote(_run_on_ray).options(num_cpus=1, max_retries=0)
        self._running: dict[Any, _RayTask] = {}

    @property
    def size(self) -> int:
        """How many tasks to send ahead: for each processor one that runs and one that waits in the object store."""
        return 2 * max(1, int(self._ray.cluster_resources().get("CPU", 1)))

    def asking(self) -> list[_RayTask]:
        return [_RayTask(self) for _ in range(self.size - len(self._running))]

    def messages(self) -> Iterator[tuple[_RayTask, Any]]:
        ray = self._ray
        ready, _ = ray.wait(list(self._running), num_returns=1, timeout=5.0)
        for reference in ready:
            worker = self._running.pop(reference)
            try:
                messages = ray.get(reference)
            except ray.exceptions.RayTaskError as error:
                raise error.as_instanceof_cause() from None
            except ray.exceptions.RayError:  # the process died, or its node
                messages = [LOST]
            for message in messages:
                yield worker, message

    def __enter__(self) -> RayPool:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def submit(self, worker: _RayTask, task: Any) -> None:
        self._running[self._run.remote(self._work, task, self._folder)] = worker


class _RayTask:
    """A worker for one task."""

    may_be_silent = True

    def __init__(self, pool: RayPool):
        self._pool = pool

    def give(self, task: Any) -> None:
        self._pool.submit(self, task)


def _run_on_ray(work: Work, task: Any, folder: str) -> list[Any]:
    """Do the work on one task, in the folder of the command, as paths may be relative; return the messages."""
    with contextlib.suppress(OSError):  # the node may not have this folder; absolute paths do not need it
        os.chdir(folder)
    messages: list[Any] = []
    do_work(work, iter([task]), messages.append)
    return messages


def _connected(address: str | None) -> Any:
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--engine ray needs Ray: {pip_install('ray')}") from error
    if not ray.is_initialized():
        _refuse_silent_address(address)
        try:
            ray.init(address=address, log_to_driver=False, configure_logging=False)
        except (ConnectionError, ValueError) as error:
            raise UserError(f"no Ray cluster at {address}: {error}") from error
    return ray


def _refuse_silent_address(address: str | None) -> None:
    """Refuse an address where no program listens: Ray itself would try for many minutes.

    Raises:
        UserError: no connection can be made.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not host or not port.isdecimal():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster at {address}: {error}; start one there with `ray start`") from None
