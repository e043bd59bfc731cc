"""Save checkpoints while training goes on: each rank copies its share, and a process of its own writes it.

The ranks agree on how far a save is by the numbers that every step sums over ranks, so no step waits for it. At most
one save is in flight; the next one, a stop and the end of the run wait for it.
"""

from __future__ import annotations

import logging
import platform
import socket
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import diptych
from diptych.agreement import decide_on_first_rank, gather_on_first_rank, on_any_rank, sums_over_ranks
from diptych.checkpoint_folder import (
    EMA,
    EVALUATION,
    FORMAT,
    MODEL,
    PROGRESS,
    CheckpointError,
    name_of,
    remove_unfinished,
)
from diptych.config.values import config_to_dict
from diptych.errors import TransientError, UserError
from diptych.model_folder import describing_files
from diptych.terminal import counted
from diptych.training.checkpoint import Progress
from diptych.training.checkpoint_writer import as_json
from diptych.training.deepspeed_config import zero_stage
from diptych.training.job import Job
from diptych.training.signals import StopRequest
from diptych.training.snapshot import Snapshot
from diptych.training.tallies import COMMITTED, FAILING, LOST, SAVE_STATES, WRITTEN
from diptych.training.writing_orders import Commit, Committed, Failed, Kept, MakeRoom, Plan, Task, Warned, Written
from diptych.training.writing_process import WritingProcess

logger = logging.getLogger(__name__)

RECORDED_VERSIONS = ("torch", "deepspeed", "timm", "webdataset", "numpy", "safetensors")
ROUND_SECONDS = 0.5
"""Largest time between two looks of the ranks at a save that they wait for."""
TOLD_AFTER_SECONDS = 60
"""A wait for a checkpoint that is longer than this is reported: its disk is slow, or does not answer."""
KEEP_SECONDS = 20
"""How long the end of a run waits for the removal of older checkpoints."""
SHORTEST_HANG_SECONDS = 60
"""A writing process that does nothing for less is not taken for hung, however small checkpoint.max_wait_seconds is."""
HUNG = "writers_hung"
"""The number of ranks whose writing process has done nothing for too long."""
ATTEMPTS = 2
"""Processes that may end while they write the same share, until the checkpoint is given up."""


@dataclass
class _InFlight:
    """A save that is not over yet, as this rank knows it."""

    progress: Progress
    task: Task
    began: float
    stall_seconds: float = 0.0
    """How long training stood still for the copy."""
    waited_for_since: float | None = None
    """When training began to wait until it is over, if it does."""
    attempts: int = 1
    is_sent: bool = False
    written: Written | None = None
    fault: Failed | None = None
    commit: Commit | None = None
    """What rank 0's process was asked to complete."""
    committed: Committed | None = None
    is_lost: bool = False
    is_committing: bool = False
    """Whether all ranks have written their shares; the same on all ranks."""
    is_announced: bool = False
    """Whether the record says that it failed; the same on all ranks."""
    why: str = ""
    """The reason that the record gives; rank 0 knows it."""


class Saves:
    """The saves of a run; every rank must construct it, and call `start`, `advance`, `wait` and `finish` together."""

    def __init__(self, job: Job, stop: StopRequest):
        self._job = job
        self._stop = stop
        share = job.engine.share()
        self._snapshot = Snapshot(share, job.world.rank)
        is_first = job.world.is_first
        texts = {"config.json": as_json(config_to_dict(job.config))} if is_first else {}
        for folder in [folder for folder in (MODEL, EMA) if folder in share.whole]:
            described = describing_files(job.config.model, job.tokenizer, job.engine.words)
            texts |= {f"{folder}/{name}": text for name, text in described.items()}
        self._plan = Plan(
            folder=job.run.checkpoints,
            rank=job.world.rank,
            files=self._snapshot.files,
            texts=texts,
            checkpoint_bytes=share.checkpoint_bytes,
            keep=job.config.checkpoint.keep,
            known_valid=frozenset(job.known_valid),
        )
        # No rank begins to write before what an earlier start has left is removed.
        decide_on_first_rank(job.world, lambda: remove_unfinished(job.run.checkpoints))
        self._writer = WritingProcess(self._snapshot.descriptor)
        self._save: _InFlight | None = None
        self._numbers: dict[str, float] = {}
        self._is_removing = False
        """Whether the writing process removes older checkpoints now."""

    def start(self, progress: Progress, evaluation: Mapping[str, Any] | None = None) -> None:
        """Copy what is to be saved, and have it written while training goes on; first wait for the save in flight.

        evaluation: what was measured of these weights, if it was.

        Raises:
            CheckpointError: the save before could not be written within `checkpoint.max_wait_seconds`, or a signal
                ended the wait.
        """
        self.wait()
        began = time.monotonic()
        step = progress.samples_seen // self._job.config.training.global_batch_size
        texts = {PROGRESS: as_json(asdict(progress))} if self._job.world.is_first else {}
        if texts and evaluation is not None:
            texts[EVALUATION] = as_json(evaluation)
        self._job.engine.update_after(self._snapshot.take(self._job.engine.share()))
        self._save = _InFlight(progress, Task(name_of(step), texts), time.monotonic())
        self._look()
        self._save.stall_seconds = time.monotonic() - began

    def wait(self) -> None:
        """Wait until no save is in flight.

        Raises:
            CheckpointError: a full disk kept it from being written within `checkpoint.max_wait_seconds`, or until a
                signal ended the wait.
            TransientError: a process that writes it has done nothing for as long.
        """
        if (save := self._save) is None:
            return
        pause, save.waited_for_since = 0.001, time.monotonic()
        is_told = not self._job.world.is_first
        work, worked = 0.0, time.monotonic()
        while self._save is not None:
            before, work = work, self._writer.work_seconds()
            if work != before or not self._is_owed(save):
                worked = time.monotonic()
            is_hung = time.monotonic() - worked > self._hang_seconds
            states = self._states_of_all(is_hung)
            self.advance(states)
            if self._save is None:
                return
            if states[HUNG]:
                self._end_hung(save, is_hung)
            elif states[FAILING]:
                self._wait_for_room(save)
            else:
                time.sleep(pause)
                pause = min(2 * pause, ROUND_SECONDS)
                if not is_told and time.monotonic() - save.waited_for_since > TOLD_AFTER_SECONDS:
                    samples, is_told = save.progress.samples_seen, True
                    logger.warning("training waits until the checkpoint after %d samples is written", samples)

    def finish(self) -> None:
        """Wait until the save in flight is a checkpoint.

        Raises:
            CheckpointError: as `wait` does.
            TransientError: the processes that wrote it were killed, again and again.
        """
        save = self._save
        self.wait()
        if save is not None and save.is_lost:  # no later save makes up for this one, so it is tried again
            save = self._save = _InFlight(save.progress, save.task, time.monotonic())
            self.wait()
            if save.is_lost:
                self._end(save, "the processes that wrote it were killed", TransientError)
        # Older checkpoints are removed after the save; a run that has ended should not leave more than it was told to.
        deadline = time.monotonic() + KEEP_SECONDS
        while self._is_removing and not self._writer.is_lost and time.monotonic() < deadline:
            time.sleep(0.01)
            self._look()

    def states(self) -> dict[str, int]:
        """How far this rank is with the save in flight; the step sums it over ranks, for `advance`."""
        self._look()
        if (save := self._save) is None:
            return {}
        return {
            WRITTEN: int(save.written is not None),
            FAILING: int(save.fault is not None),
            LOST: int(save.is_lost),
            COMMITTED: int(save.committed is not None),
        }

    def advance(self, states: Mapping[str, int]) -> None:
        """Take the save in flight as far as it can go; every rank must pass the same sums of `states`."""
        save, world = self._save, self._job.world
        if save is None:
            return
        if states[COMMITTED]:
            self._record(save)
            self._save = None
        elif states[LOST]:
            save.is_lost = True
            self._announce(save, "the process that writes it ended twice", "training goes on to the next one")
            self._give_up()
            self._writer = WritingProcess(self._snapshot.descriptor)
        elif states[FAILING] and not save.is_announced:
            faults = [each for each in gather_on_first_rank(world, save.fault) if each is not None]
            way_on = "it is tried again while training goes on; the next save waits for it"
            self._announce(save, faults[0].why if faults else "", way_on)
            if any(fault.lacks_room for fault in faults):
                self._writer.send(MakeRoom())
        elif states[WRITTEN] == world.size and not save.is_committing:
            save.is_committing = True
            reports = gather_on_first_rank(world, save.written)
            if world.is_first:
                files = {name: each for each_rank in reports if each_rank for name, each in each_rank.files.items()}
                save.commit = Commit(files, self._manifest(save.progress))
                if save.written is not None:  # else the process has ended, and another one writes the share first
                    self._writer.send(save.commit)

    def take_numbers(self) -> dict[str, float]:
        """Stall, duration and size of the newest checkpoint, for the dashboards; empty if it was taken before."""
        numbers, self._numbers = self._numbers, {}
        return numbers

    def close(self) -> None:
        """End the writing process; a save in flight is lost."""
        self._writer.close()
        self._snapshot.close()

    def _look(self, *, waits: bool = False) -> None:
        """Read what the writing process says; if it has ended, start another, once."""
        save = self._save
        if save is not None and not save.is_sent and self._snapshot.is_taken(waits=waits):
            self._writer.send(self._plan, once=True)
            self._writer.send(save.task)
            save.is_sent = True
        for said in self._writer.said():
            if isinstance(said, Warned):
                logger.warning("%s", said.line)
            elif isinstance(said, Kept):
                self._is_removing = False
            elif save is not None:
                self._hear(save, said)
        if save is not None and self._writer.is_lost and not save.is_lost:
            how = self._writer.close()
            # Rank 0's process completes the checkpoint after it has written its share; the others are done then, and
            # must leave their files alone, which belong to a checkpoint soon.
            is_done = save.committed is not None or (save.written is not None and not self._job.world.is_first)
            save.attempts += not is_done
            save.is_lost = save.attempts > ATTEMPTS
            if not save.is_lost:
                logger.warning("the process that writes checkpoints ended (%s); another one starts", how)
                self._writer = WritingProcess(self._snapshot.descriptor)
            if not is_done:
                save.written, save.is_sent = None, False

    def _hear(self, save: _InFlight, said: Written | Committed | Failed) -> None:
        if isinstance(said, Failed):
            save.fault = said
            return
        save.fault = None
        if isinstance(said, Committed):
            save.committed, self._is_removing = said, True
            return
        save.written = said
        if save.commit is not None:  # the process that was to complete the checkpoint has ended; this is another
            self._writer.send(save.commit)

    def _wait_for_room(self, save: _InFlight) -> None:
        """Wait until no rank's writing fails.

        Raises:
            CheckpointError: the wait took too long, or a signal ended it.
        """
        seconds = self._job.config.checkpoint.max_wait_seconds
        if self._job.world.is_first:
            logger.warning(
                "Training waits up to %s for the checkpoint after %d samples; Ctrl-C or SIGTERM ends the wait, and "
                "loses what came after %s",
                f"{seconds / 60:g} min",
                save.progress.samples_seen,
                self._newest(),
            )
        with self._stop.ending_a_wait():
            before, deadline = self._stop.times, time.monotonic() + seconds
            while True:
                states = self._states_of_all()
                self.advance(states)
                if self._save is None or not states[FAILING]:
                    break
                late = self._job.world.is_first and time.monotonic() >= deadline
                if on_any_rank(self._job.world, late or self._stop.times > before):
                    self._end(save, save.why)
                time.sleep(ROUND_SECONDS)

    def _states_of_all(self, is_hung: bool = False) -> dict[str, int]:
        """The sums of `states` over ranks, and the number of ranks whose writing process hangs."""
        self._look(waits=True)
        states = {**self.states(), HUNG: int(is_hung)}
        names = (*SAVE_STATES, HUNG)
        return dict(zip(names, sums_over_ranks(self._job.world, [states[name] for name in names]), strict=True))

    def _is_owed(self, save: _InFlight) -> bool:
        """Whether this rank's writing process has something of the save left to do."""
        return save.written is None or (save.commit is not None and save.committed is None)

    def _record(self, save: _InFlight) -> None:
        """Record a checkpoint; on rank 0."""
        if save.committed is None:
            return
        job, seconds = self._job, round(time.monotonic() - save.began, 3)
        assert job.metrics is not None
        job.known_valid.add(job.run.checkpoints / save.committed.name)
        waited = time.monotonic() - save.waited_for_since if save.waited_for_since is not None else 0.0
        stall, num_bytes = round(save.stall_seconds + waited, 4), save.committed.num_bytes
        job.metrics.event(
            "save",
            samples_seen=save.progress.samples_seen,
            seconds=seconds,
            stall_seconds=stall,
            bytes=num_bytes,
            path=save.committed.name,
        )
        if save.is_announced:
            logger.warning("the checkpoint after %d samples is written; training goes on", save.progress.samples_seen)
        self._numbers = {"save_seconds": seconds, "save_stall_seconds": stall, "save_bytes": num_bytes}

    def _announce(self, save: _InFlight, fault: str, way_on: str) -> None:
        save.is_announced, save.why = True, fault
        if self._job.metrics is not None:
            samples = save.progress.samples_seen
            self._job.metrics.event("save_failed", samples_seen=samples, error=fault)
            logger.warning("no checkpoint after %d samples: %s; %s", samples, fault, way_on)

    def _give_up(self) -> None:
        """End the writing processes of all ranks, and remove what they have written of the save in flight."""
        self._writer.close()
        self._save = None
        gather_on_first_rank(self._job.world, None)
        if self._job.world.is_first:
            remove_unfinished(self._job.run.checkpoints)

    @property
    def _hang_seconds(self) -> int:
        """How long a writing process may do nothing."""
        return max(self._job.config.checkpoint.max_wait_seconds, SHORTEST_HANG_SECONDS)

    def _end_hung(self, save: _InFlight, is_hung: bool) -> None:
        """End the run on every rank, without a touch of the disk, which may hang too."""
        self._writer.close()
        self._save = None
        hung = [each for each in gather_on_first_rank(self._job.world, socket.gethostname() if is_hung else "") if each]
        where = f"{hung[0]} and {counted(len(hung) - 1, 'other rank')}" if hung[1:] else "".join(hung)
        self._refuse(
            save,
            f"the process that writes it on {where} has done nothing for {self._hang_seconds} seconds "
            f"(checkpoint.max_wait_seconds), as happens when the disk of {self._job.run.checkpoints} does not answer",
            TransientError,
        )

    def _end(self, save: _InFlight, fault: str, error: type[UserError] = CheckpointError) -> None:
        """End the run on every rank, and leave nothing of the save."""
        self._give_up()
        self._refuse(save, fault, error)

    def _refuse(self, save: _InFlight, fault: str, error: type[UserError]) -> None:
        def refuse() -> None:
            raise error(
                f"stopped after {counted(save.progress.samples_seen, 'sample')} without a checkpoint of them: {fault}; "
                f"then the same command goes on from {self._newest()}"
            )

        decide_on_first_rank(self._job.world, refuse)

    def _newest(self) -> str:
        valid = self._job.known_valid
        newest = max(valid, key=lambda path: int(path.name.removeprefix("step_")), default=None)
        return f"the newest checkpoint, {newest.name}" if newest else "the start, for there is no checkpoint"

    def _manifest(self, progress: Progress) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "samples_seen": progress.samples_seen,
            "num_ranks": self._job.world.size,
            "zero_stage": zero_stage(self._job.config, self._job.world.size),
            "versions": {
                "python": platform.python_version(),
                "diptych": diptych.__version__,
                **{name: version(name) for name in RECORDED_VERSIONS},
            },
        }
