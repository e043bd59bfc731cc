"""Save a checkpoint of all ranks; if the disk cannot take it, training waits and tries again."""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from pathlib import Path

from diptych.checkpoint_folder import CheckpointError, keep_newest
from diptych.files import lacks_room
from diptych.terminal import counted
from diptych.training.checkpoint import Checkpoint, Progress, save_checkpoint
from diptych.training.job import Job
from diptych.training.signals import StopRequest
from diptych.world import decide_on_first_rank, on_any_rank

logger = logging.getLogger(__name__)

ROUND_SECONDS = 0.5
"""How often the ranks agree whether the wait is over; far below the timeout of a process group."""
LONGEST_PAUSE = 120
"""Largest number of these rounds between two attempts."""


def save(job: Job, progress: Progress, stop: StopRequest) -> None:
    """Write a checkpoint; every rank must call it.

    If the disk is full, older checkpoints are removed. If it still cannot be written, all ranks wait and try again.

    Raises:
        CheckpointError: it could not be written within `checkpoint.max_wait_seconds`, or a signal ended the wait.
    """
    weights = job.engine.weights()
    averages = job.engine.averaged_weights(weights)
    checkpoint = Checkpoint(progress, weights, job.engine.optimizer_state(), averages)
    fault = decide_on_first_rank(job.world, lambda: _try(job, checkpoint))
    if fault is None:
        return
    seconds = job.config.checkpoint.max_wait_seconds
    if job.metrics is not None:
        job.metrics.event("save_failed", samples_seen=progress.samples_seen, error=fault)
        logger.warning(
            "no checkpoint after %d samples: %s. Training waits up to %s and tries again; Ctrl-C or SIGTERM ends the "
            "wait, and loses what came after %s",
            progress.samples_seen,
            fault,
            f"{seconds / 60:g} min",
            _newest(job),
        )
    with stop.ending_a_wait():
        before, deadline = stop.times, time.monotonic() + seconds
        pause, is_over = 2, False
        while fault is not None and not is_over:
            for _ in range(pause):
                time.sleep(ROUND_SECONDS)
                late = job.world.is_first and time.monotonic() >= deadline
                if is_over := on_any_rank(job.world, late or stop.times > before):
                    break
            pause = min(2 * pause, LONGEST_PAUSE)
            fault = decide_on_first_rank(job.world, lambda: _try(job, checkpoint))
    decide_on_first_rank(job.world, lambda: _report(job, progress, fault))


def _try(job: Job, checkpoint: Checkpoint) -> str | None:
    """Write the checkpoint; on failure return the reason and the way out, else None."""
    began = time.monotonic()
    try:
        path = _write(job, checkpoint)
    except OSError as error:
        return _describe(error, job.run.checkpoints, checkpoint.num_bytes)
    job.known_valid.add(path)
    try:
        keep_newest(job.run.checkpoints, job.config.checkpoint.keep, job.known_valid)
    except OSError as error:
        logger.warning("older checkpoints cannot be removed: %s", error)
    assert job.metrics is not None
    seconds = round(time.monotonic() - began, 3)
    job.metrics.event("save", samples_seen=checkpoint.progress.samples_seen, seconds=seconds, path=path.name)
    return None


def _write(job: Job, checkpoint: Checkpoint) -> Path:
    def write() -> Path:
        return save_checkpoint(job.run.checkpoints, checkpoint, job.config, job.tokenizer, num_ranks=job.world.size)

    try:
        return write()
    except OSError as error:
        if not lacks_room(error):
            raise
        removed = keep_newest(job.run.checkpoints, 1, job.known_valid)
        if not removed:
            raise
        why = os.strerror(error.errno or 0)
        logger.warning("%s: %s; removed all checkpoints but the newest", job.run.checkpoints, why)
    return write()


def _describe(error: OSError, folder: Path, num_bytes: int) -> str:
    free = shutil.disk_usage(folder).free
    needs = f"a checkpoint takes {_megabytes(num_bytes)}"
    way_out = {
        errno.ENOSPC: f"{needs} and {_megabytes(free)} are free: free at least {_megabytes(num_bytes - free)} there",
        errno.EDQUOT: f"{needs}: delete files that count against the quota, or raise it",
        errno.EFBIG: f"{needs}: raise the limit on the size of files (ulimit -f)",
    }
    return f"{os.strerror(error.errno or errno.EIO)} ({folder}); {way_out.get(error.errno or 0, 'make it writable')}"


def _report(job: Job, progress: Progress, fault: str | None) -> None:
    if fault is None:
        logger.warning("the checkpoint after %d samples is written; training goes on", progress.samples_seen)
        return
    raise CheckpointError(
        f"stopped after {counted(progress.samples_seen, 'sample')} without a checkpoint of them: {fault}; then "
        "the same command "
        f"goes on from {_newest(job)}"
    )


def _newest(job: Job) -> str:
    newest = max(job.known_valid, key=lambda path: int(path.name.removeprefix("step_")), default=None)
    return f"the newest checkpoint, {newest.name}" if newest else "the start, for there is no checkpoint"


def _megabytes(num_bytes: int) -> str:
    return f"{max(num_bytes, 0) / 1e6:,.1f} MB"
