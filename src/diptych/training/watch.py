"""Notice that a rank hangs: write the stacks of all ranks, name it in one line, and end all, so that they start again.

Two threads of each rank work however long its main thread is stuck in C code. One compares with a limit how long the
main thread has been in a step, or for how long no rank has shown a sign of life in a phase that may last for hours. The
other exchanges these signs and heartbeats through the store where the ranks met, each rank looking at the next one's,
which stop if that process is stopped or its machine is lost. If the threads themselves are stuck, since C code holds
Python's lock, faulthandler's own thread writes the stacks and ends the process.

The sign of life is that the main thread has used processor time: whatever it works at, a file, a tensor or a batch of
pictures, moves that clock, and it stands still while the thread waits for a disk, a lock or another rank. An endless
loop moves it too, so such phases also have a limit, far longer than any work takes.
"""

from __future__ import annotations

import faulthandler
import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from types import FrameType
from typing import NoReturn, TextIO

import torch.distributed as dist

from diptych.agreement import on_any_rank
from diptych.config.schema import MachineConfig
from diptych.data.loader_processes import LoaderProcesses
from diptych.process_group import ENDED, first_to_claim, set_timeout_of_tensors
from diptych.run_dir import RunDir
from diptych.training.places import LIMITED, LONG, Phase, Place, blame, describe
from diptych.world import World

LONGEST_STEP = 3
"""A step may take this many times the shortest one so far, if that is more than `machine.step_timeout_seconds`."""
LONGEST_PHASE = 100
"""A phase of LONG may take this many times `machine.process_group_timeout_seconds`."""
MARGIN_SECONDS = 30
"""How much longer an operation on tensors may take than a step, so that the watch comes first and names the rank."""
LOOK_SECONDS, EXCHANGE_SECONDS, HEARTBEAT_SECONDS = 1, 2, 5
ANSWER_SECONDS = 6
"""How long a rank may take to report what it does after another has noticed a hang."""
LAST_WORDS_SECONDS = 5
"""How long a rank may take to end by itself after another has ended with an error."""
HANG, REPORTED = "hang", "hang reported"
"""Notes in the store."""
SIGNS_OF_LIFE = "signs of life"
"""How often ranks have found in an exchange that they were at work since the one before; all add to it."""
OVER = "over"
"""The last heartbeat of a rank that ends the run."""


class Watch:
    """Watches a run from its start to its end; every rank must open it, inside the process group.

    A block that ends well waits for the other ranks, so that one which hangs as it ends is noticed.
    """

    def __init__(self, run: RunDir, world: World, machine: MachineConfig, processes: LoaderProcesses):
        self._run, self._world, self._machine, self._processes = run, world, machine, processes
        self._phase: Phase = "start"
        self._samples_seen = 0
        self._since = time.monotonic()
        self._num_steps = 0
        self._shortest_step = float("inf")
        self._patience_seconds = 0.0
        self._heartbeat: int | None = None
        self._stacks: TextIO | None = None
        store = world.store or dist.HashStore()
        self._exchanging, self._reporting = store.clone(), store.clone()
        self._heard = time.monotonic()
        """When the store answered last."""
        self._neighbour: tuple[bytes, float] = b"", time.monotonic()
        """The newest heartbeat of the next rank, and when it came."""
        self._alive = time.monotonic()
        """When a rank gave a sign of life last."""
        self._exceeded = ""
        """The setting that this rank found exceeded, and its value."""
        self._alarm = False
        self._over = threading.Event()
        self._others_ended: float | None = None
        """When another rank was found to have ended with an error."""

    def enter(self, phase: Phase, samples_seen: int) -> None:
        """Record what the main thread does from now on."""
        now = time.monotonic()
        if self._phase == "step":
            self._num_steps += 1
            self._shortest_step = min(self._shortest_step, now - self._since)
            if self._num_steps == 2:
                set_timeout_of_tensors(self._world, timedelta(seconds=self._limit() + MARGIN_SECONDS))
        self._phase, self._samples_seen, self._since = phase, samples_seen, now

    def expect_other_steps(self) -> None:
        """Forget how long steps took: those from here on are longer or shorter."""
        self._num_steps, self._shortest_step = 0, float("inf")
        set_timeout_of_tensors(self._world, timedelta(seconds=self._limit() + MARGIN_SECONDS))

    @contextmanager
    def training(self, samples_seen: int, patience_seconds: float = 0.0) -> Iterator[None]:
        """Record that the main thread takes steps during the block, and afterwards ends the run.

        patience_seconds: how long the loaders wait for shards before they report a fault themselves.
        """
        self._patience_seconds = patience_seconds
        self.enter("batch", samples_seen)
        try:
            yield
        finally:
            self.enter("end", self._samples_seen)

    def __enter__(self) -> Watch:
        self._postpone_the_end()
        set_timeout_of_tensors(self._world, timedelta(seconds=self._limit() + MARGIN_SECONDS))
        self._threads = [threading.Thread(target=each, daemon=True) for each in (self._look, self._exchange)]
        for thread in self._threads:
            thread.start()
        return self

    def open_files(self) -> None:
        """Write heartbeats and stacks into the run directory from now on; rank 0 must have prepared it."""
        self._run.heartbeats.mkdir(exist_ok=True)
        heartbeat = self._run.heartbeat_of(self._world.rank)
        self._heartbeat = os.open(heartbeat, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self._open_stacks()
        self._postpone_the_end()
        beating = threading.Thread(target=self._beat, daemon=True)
        beating.start()
        self._threads.append(beating)

    def _open_stacks(self) -> None:
        if self._stacks is None:
            self._run.stacks.mkdir(parents=True, exist_ok=True)
            self._stacks = open(self._run.stacks / f"rank_{self._world.rank}.txt", "a", encoding="utf-8")

    @property
    def _file(self) -> TextIO:
        """Where stacks are written: to the console as long as the run directory is not prepared."""
        file = self._stacks or sys.__stderr__
        assert file is not None
        return file

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            on_any_rank(self._world, False)
        self._over.set()
        for thread in self._threads:
            thread.join(LOOK_SECONDS)
        faulthandler.cancel_dump_traceback_later()
        with suppress(OSError):
            if self._stacks is not None and not os.path.getsize(self._stacks.name):
                os.unlink(self._stacks.name)
                self._run.stacks.rmdir()  # if it is empty now

    def _limit(self) -> float:
        """Seconds that a step may take, or a heartbeat be late; the first two steps may compile, and open shards."""
        if self._num_steps < 2:
            return self._machine.process_group_timeout_seconds
        waits_for_shards = self._patience_seconds + MARGIN_SECONDS if self._patience_seconds else 0.0
        return max(self._machine.step_timeout_seconds, LONGEST_STEP * self._shortest_step, waits_for_shards)

    def _place(self) -> Place:
        waits = any(_is_of_communication(thread) for thread in sys._current_frames().values())
        seconds = time.monotonic() - self._since
        return Place(self._phase, self._samples_seen, round(seconds, 1), waits, socket.gethostname())

    def _look(self) -> None:
        looked = time.monotonic()
        while not self._over.wait(LOOK_SECONDS):
            now, limit = time.monotonic(), self._limit()
            stopped, looked = now - looked, now
            self._postpone_the_end()
            if stopped > limit and self._world.size == 1:  # by Ctrl-Z, for example
                self._since += stopped
                self._heard = self._alive = now
                continue
            is_store_lost = now - self._heard > limit
            is_neighbour_lost = self._neighbour[0] != OVER.encode() and self._heard - self._neighbour[1] > limit
            is_late = self._phase in LIMITED and now - self._since > limit
            patience = self._machine.process_group_timeout_seconds
            is_lifeless = self._phase not in LIMITED and now - max(self._since, self._alive) > patience
            is_endless = self._phase in LONG and now - self._since > LONGEST_PHASE * patience
            if stopped > limit:
                faulthandler.dump_traceback(self._file)
                self._exit()  # the others have reported it
            if self._alarm or is_late or is_lifeless or is_endless or is_store_lost or is_neighbour_lost:
                is_outside = is_lifeless or is_endless
                is_long = is_outside or self._num_steps < 2
                key = "process_group_timeout_seconds" if is_long else "step_timeout_seconds"
                self._exceeded = f"machine.{key} above {patience if is_outside else limit:.0f}"
                self._end(is_store_lost=is_store_lost)
            is_left_alone = self._others_ended is not None and now - self._others_ended > LAST_WORDS_SECONDS
            if is_left_alone and self._phase != "end":
                self._exit()

    def _postpone_the_end(self) -> None:
        """Have faulthandler's thread write the stacks and end this process unless this is called again in time."""
        # A process without others may have been stopped by Ctrl-Z and then go on.
        seconds, ends = self._limit() + MARGIN_SECONDS / 2, self._world.size > 1
        faulthandler.dump_traceback_later(seconds, file=self._file, exit=ends)

    def _beat(self) -> None:
        """Write the heartbeat file, in a thread of its own, since a disk may hang for minutes."""
        assert self._heartbeat is not None
        while True:
            is_last = self._over.is_set()
            place = asdict(self._place())
            line = json.dumps({"rank": self._world.rank, "pid": os.getpid(), "time": round(time.time(), 1), **place})
            with suppress(OSError):  # such as a full disk
                os.pwrite(self._heartbeat, f"{line:<255}\n".encode(), 0)  # at once, so that no reader sees a part
            if is_last:
                return
            self._over.wait(HEARTBEAT_SECONDS)

    def _exchange(self) -> None:
        rank, beat, store = self._world.rank, 0, self._exchanging
        signs, worked = 0, 0
        neighbour = f"heartbeat {(rank + 1) % self._world.size}"
        while not self._over.is_set():
            beat += 1
            try:
                store.set(f"heartbeat {rank}", str(beat))
                newest = store.get(neighbour) if store.check([neighbour]) else b""
                if newest != self._neighbour[0]:
                    self._neighbour = newest, time.monotonic()
                before, worked = worked, _time_at_work()
                before_of_all, signs = signs, store.add(SIGNS_OF_LIFE, int(worked != before))
                if signs != before_of_all:
                    self._alive = time.monotonic()
                self._alarm = self._alarm or store.check([HANG])
                if self._others_ended is None and store.check([ENDED]):
                    self._others_ended = time.monotonic()
                self._heard = time.monotonic()
                if self._alarm:
                    return  # torch would print that the store is gone once the rank that holds it has ended
            except RuntimeError:  # the process that holds the store has ended
                self._others_ended = self._others_ended or time.monotonic()
                return
            self._over.wait(EXCHANGE_SECONDS)
        with suppress(RuntimeError):
            store.set(f"heartbeat {rank}", OVER)

    def _end(self, *, is_store_lost: bool) -> None:
        """Write the stacks, report, and end this process."""
        place = self._place()
        writing = threading.Thread(target=self._write_stacks, args=(place,), daemon=True)  # its disk may hang
        writing.start()
        writing.join(ANSWER_SECONDS / 2)
        reporting = threading.Thread(target=self._report, args=(place,), daemon=True)
        reporting.start()
        reporting.join(0 if is_store_lost else 2 * ANSWER_SECONDS)
        if is_store_lost and self._world.rank <= 1:
            self._say("the process that holds the store of the ranks, rank 0 or its launcher, does not answer", [0])
        self._exit()

    def _exit(self) -> NoReturn:
        """End this process although its main thread may be stuck; launchers start ranks again that end with 1."""
        self._processes.kill()
        os._exit(1)

    def _write_stacks(self, place: Place) -> None:
        """Write the stacks of this process and its loader processes."""
        with suppress(OSError):
            self._open_stacks()
        said = f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {self._world.rank} on {place.host} {describe(place)}"
        print(f"{said}, process {os.getpid()}", file=self._file, flush=True)
        faulthandler.dump_traceback(self._file)
        with suppress(ValueError):  # the main thread has closed them by now
            print(self._processes.stacks(), file=self._file, flush=True)

    def _report(self, place: Place) -> None:
        """Answer the call of the first rank that noticed; that one waits for the others' answers and prints a line."""
        rank, size, store = self._world.rank, self._world.size, self._reporting
        store.set(f"place {rank}", json.dumps(asdict(place)))
        # Before the alarm, so that the first rank which noticed reports, and names the limit that it found exceeded.
        is_reporter = first_to_claim(store, "the report of a hang", rank) == rank
        store.set(HANG, "")
        deadline = time.monotonic() + ANSWER_SECONDS
        expected = [f"place {each}" for each in range(size)] if is_reporter else [REPORTED]
        while not store.check(expected) and time.monotonic() < deadline:
            time.sleep(0.1)
        if is_reporter:
            answered = [each for each in range(size) if store.check([expected[each]])]
            places = {each: Place(**json.loads(store.get(expected[each]))) for each in answered}
            self._say(*blame(places, size, self._host_of))
            store.set(REPORTED, "")
            time.sleep(0.5)  # so that no rank has time to report the end of this one

    def _say(self, message: str, ranks: list[int]) -> None:
        line = (
            f"hung: {message}; stacks are in {self._run.stacks}; the same command goes on from the last checkpoint; if "
            f"it was only slow, set {self._exceeded}"
        )
        print("\n" * sys.stderr.isatty() + f"diptych train: {line}", file=sys.stderr, flush=True)
        if self._heartbeat is not None:  # else the directory may be that of another run
            self._run.record_end("hung", ranks=ranks)
        for rank in ranks:
            self._wake(rank)

    def _wake(self, rank: int) -> None:
        """Let a process of this machine that was stopped go on: faulthandler then writes its stacks and ends it."""
        with suppress(OSError, ValueError):
            beat = json.loads(self._run.heartbeat_of(rank).read_text())
            if beat["host"] == socket.gethostname():
                os.kill(beat["pid"], signal.SIGCONT)

    def _host_of(self, rank: int) -> str:
        with suppress(OSError, ValueError):
            return str(json.loads(self._run.heartbeat_of(rank).read_text())["host"])
        return "an unknown machine"


def _time_at_work() -> int:
    """Processor time of the main thread, in nanoseconds; where the system does not tell, the time of day."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return time.monotonic_ns()
    main = threading.main_thread().ident
    assert main is not None
    return time.clock_gettime_ns(time.pthread_getcpuclockid(main))


def _is_of_communication(frame: FrameType | None) -> bool:
    """Whether a thread is inside torch's collectives, called through Python."""
    while frame is not None:
        if "/torch/distributed/" in frame.f_code.co_filename:
            return True
        frame = frame.f_back
    return False
