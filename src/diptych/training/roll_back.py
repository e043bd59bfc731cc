"""Give up weights that cannot learn any more: go back to an earlier checkpoint, and on with later samples.

Only the weights (with moments, averages and running statistics) go back. The position in the data does not, so the run
is as long as planned and its learning rate as scheduled; the samples since that checkpoint leave no trace in the
weights. All of it follows from the checkpoints and the losses, so a run that is killed and started again goes back in
the same way.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from diptych.agreement import decide_on_first_rank
from diptych.checkpoint_folder import CheckpointError, checkpoints, verify, was_well
from diptych.config.schema import RunConfig
from diptych.errors import UserError
from diptych.files import local_path
from diptych.terminal import counted
from diptych.training.checkpoint import Checkpoint, Progress, load_checkpoint, read_progress
from diptych.training.job import Job
from diptych.training.trouble import MAX_IN_A_ROW

logger = logging.getLogger(__name__)

MAX_ROLL_BACKS = 3
"""How often a run goes back to the same checkpoint. Each time it goes on with other samples, so if all end in the same
way, the trouble is not in the samples."""


class NonFiniteError(UserError):
    """The weights cannot learn any more, and no checkpoint helps."""


def is_given_up(config: RunConfig, progress: Progress) -> bool:
    """Whether the last steps were so bad that the weights are given up."""
    in_a_row = progress.spikes_in_a_row if config.checkpoint.roll_back_on_loss_spikes else 0
    return max(progress.skipped_in_a_row, in_a_row) >= MAX_IN_A_ROW


def roll_back(job: Job, progress: Progress, why: str, position: int, *, is_lost: bool) -> Progress:
    """Load the newest good checkpoint into the engine; return the progress with which training goes on.

    Every rank must call it.

    position: training goes on with the batch after this many samples.
    is_lost: whether the weights are useless without a roll-back; otherwise training goes on with them where there is no
        good checkpoint, or the run went back to it MAX_ROLL_BACKS times before.
    Raises:
        NonFiniteError: in those cases, if the weights are lost.
    """
    found: list[Checkpoint] = []

    def choose() -> Progress | None:
        path = _newest_good(job)
        before = read_progress(path) if path else Progress()
        times = sum(start == before.weights_after for start, _ in progress.roll_backs)
        if path is None or times == MAX_ROLL_BACKS:
            if is_lost:
                raise NonFiniteError(_cannot_learn(job.config, why, path, before))
            return None
        found.append(load_checkpoint(path))
        return before

    before = decide_on_first_rank(job.world, choose)
    if before is None:
        return replace(progress, spikes_in_a_row=0)
    checkpoint = found[0] if found else None
    job.engine.restore_weights(checkpoint.weights if checkpoint else None)
    job.engine.restore_optimizer(checkpoint.optimizer if checkpoint else None)
    job.engine.restore_average(checkpoint.averages if checkpoint else None)
    if job.metrics is not None:
        job.metrics.event("rolled_back", samples_seen=progress.samples_seen, to=before.weights_after, why=why)
        back, on = (counted(number, "sample") for number in (before.weights_after, position))
        logger.warning("%s: went back to the weights after %s; training goes on after %s", why, back, on)
    size = job.config.training.global_batch_size
    is_same_stage = job.stage_from(before.samples_seen - size) is job.stage_from(position)
    return replace(
        progress,
        skipped_in_a_row=0,
        spikes_in_a_row=0,
        losses=before.losses if is_same_stage else [],
        roll_backs=[*progress.roll_backs, [before.weights_after, position]],
    )


def _newest_good(job: Job) -> Path | None:
    """The newest checkpoint that verifies and was not saved among the bad steps; the last one is that of the trunk."""
    trunk = [] if job.config.initial_checkpoint is None else [local_path(job.config.initial_checkpoint)]
    for path in [*checkpoints(job.run.checkpoints), *trunk]:
        try:
            verify(path)
        except CheckpointError as error:
            logger.warning("skipped a damaged checkpoint: %s", error)
            continue
        if was_well(path):
            return path
    return None


def _cannot_learn(config: RunConfig, why: str, path: Path | None, before: Progress) -> str:
    """The message when a run is given up; it went back to the checkpoint at `path` too often, if there is any."""
    went_back, keep = "there is no good checkpoint to go back to", ""
    if path is not None:
        weights = counted(before.weights_after, "sample")
        went_back = f"the run has gone back to those after {weights} {MAX_ROLL_BACKS} times"
        keep = f" and, to keep what was learned, model.initial_weights={path}"
    return (
        f"{why}, so the weights cannot learn any more, and {went_back}. Start a new run with, for example, "
        f"optimizer.learning_rate below {config.optimizer.learning_rate:g}: a new run_dir{keep}"
    )
