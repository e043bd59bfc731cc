"""The training loop: resume, step, log, save."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.agreement import check_shared, decide_on_first_rank, gather_on_first_rank, on_any_rank
from diptych.checkpoint_folder import is_whole
from diptych.config.load import LoadedConfig
from diptych.config.schema import RunConfig
from diptych.data.batch import Batch
from diptych.data.decoder import REASONS
from diptych.data.loader_processes import LoaderProcesses
from diptych.data.shard_download import PATIENCE_SECONDS
from diptych.errors import UserError
from diptych.run_dir import RunDir, log_to
from diptych.terminal import counted
from diptych.training.checkpoint import Progress
from diptych.training.console import Console
from diptych.training.evaluating import Evaluations
from diptych.training.job import Job, prepare
from diptych.training.last_words import describe_end, describe_reasons, describe_rejects, describe_stop, say_finished
from diptych.training.pace import Pace
from diptych.training.roll_back import is_given_up, roll_back
from diptych.training.samples_picture import draw_samples
from diptych.training.save import Saves
from diptych.training.signals import StopRequest, StopWaiting, stop_on_request
from diptych.training.step_report import report
from diptych.training.step_stats import StepInFlight, StepStats
from diptych.training.tallies import SAVE_STATES, STOP, tallies_of, tally
from diptych.training.trouble import judge, write_bad_step
from diptych.training.watch import Watch
from diptych.world import World

logger = logging.getLogger(__name__)

STEPS_IN_FLIGHT = {"cpu": 0, "cuda": 2}
"""How many steps may be queued on a device before the host reads the result of the first one."""
MIN_SAMPLES_FOR_VERDICT = 1_000
"""The share of rejected samples is computed over at least this many, so that the first few do not end a run."""


class TooManyRejectsError(UserError):
    """More samples were rejected than the config allows."""


def train(loaded: LoadedConfig, world: World, processes: LoaderProcesses, watch: Watch) -> bool:
    """Train from the newest valid checkpoint, if there is one, and return whether the run has reached its end.

    A signal or `machine.stop_after` stops it before, with a checkpoint.

    Every rank must call it, inside a process group and its watch, with processes that it started before.
    """
    config, run = loaded.config, RunDir(Path(loaded.config.run_dir))
    decide_on_first_rank(world, lambda: run.prepare(loaded))
    check_shared(world, run.path, "run_dir")
    log_to(run, world.rank)
    watch.open_files()
    size = config.training.global_batch_size
    last = config.training.total_samples // size
    if decide_on_first_rank(world, lambda: is_whole(run.checkpoints, last)):
        say_finished(run, last * size, world)
        return True
    job = prepare(config, run, world, processes)
    # Signal handlers come first, so that a launcher's SIGTERM after another rank is lost does not kill this rank
    # before it reports the loss.
    with (
        stop_on_request(config.machine.stop_after) as stop,
        closing(job),
        closing(Saves(job, stop)) as saves,
        closing(console_of(job)) as console,
        watch.training(job.progress.samples_seen, PATIENCE_SECONDS if job.mixture.index.shards.is_elsewhere else 0),
    ):
        console.say(str(job))
        evaluations = Evaluations(job, stop)
        return Training(job, stop, saves, evaluations, console, watch).go_on()


class Training:
    """A run between two steps; every rank has one, and all ranks do the same with it."""

    def __init__(
        self,
        job: Job,
        stop: StopRequest,
        saves: Saves,
        evaluations: Evaluations,
        console: Console,
        watch: Watch,
    ):
        self._job, self._stop, self._saves, self._evaluations = job, stop, saves, evaluations
        self._console, self._watch = console, watch
        config = job.config
        self._size = config.training.global_batch_size
        self._last = config.training.total_samples // self._size
        self._queued = STEPS_IN_FLIGHT[job.world.device.type]
        self._progress = job.progress
        self._stage = job.stage_from(job.progress.samples_seen)
        """Of the last step that was started."""
        self._pace = Pace(self._size, job.progress.seconds)
        self._in_flight: deque[tuple[StepInFlight, Batch]] = deque()
        self._steps: list[StepStats] = []
        """Steps whose results were read since the last report."""
        self._is_stopping = False

    def go_on(self) -> bool:
        """Train until the end of the run or a stop; return whether it was the end."""
        first = done = saved = self._progress.samples_seen // self._size
        for number, batch in enumerate(self._batches(), start=first):
            if number == 0 and self._job.world.is_first:
                draw(batch, self._job)
            done = number + 1
            is_last = done == self._last
            is_saved = is_last or save_is_due(self._job.config, number * self._size, done * self._size)
            is_measured = self._evaluations.is_due(number * self._size, done * self._size)
            self._start_step(number, batch)
            self._read_steps(done, leaves=0 if is_saved or is_measured else self._queued)
            self._console.move(done * self._size)
            evaluation = self._measure(done) if is_measured and not self._is_stopping else None
            if is_saved or self._is_stopping:
                self._save(done, evaluation, waits=is_last or self._is_stopping)
                saved = done
            if is_last:
                self._end(done)
                return True
            if self._is_stopping:
                self._end_early()
                return False
            self._watch.enter("batch", done * self._size)
        if self._is_stopping:
            self._read_steps(done, leaves=0)
            if saved < done:
                self._save(done, None, waits=True)
            else:
                self._saves.finish()
            self._end_early()
        return not self._is_stopping

    def _batches(self) -> Iterator[Batch]:
        """The batches of this rank until the end of the run, or until a rank that is alone is asked to stop.

        It does not wait for the next batch then, which a store that does not answer may keep back for minutes. Ranks
        that are several agree on a stop in the next step, for which they need its batch.
        """
        is_alone = self._job.world.size == 1
        timed = self._pace.timed(self._job.batches)
        try:
            while True:
                with self._stop.ending_a_wait_at_once() if is_alone else nullcontext():
                    batch = next(timed, None)
                if batch is None:
                    return
                yield batch
        except StopWaiting:
            self._is_stopping = True

    def _measure(self, done: int) -> dict[str, Any]:
        """Measure the weights; what their checkpoint says about them."""
        self._watch.enter("evaluation", done * self._size)
        evaluation = self._evaluations.measure(done * self._size)
        self._pace.pause_is_over()
        return evaluation

    def _start_step(self, number: int, batch: Batch) -> None:
        """Start to train on a batch, unless a roll-back passes over it."""
        log_rejects(batch)
        seen, states = number * self._size, self._saves.states()
        if seen < self._progress.trains_from:
            self._progress = replace(self._progress, samples_seen=seen + self._size)
            return
        self._watch.enter("step", seen)
        if (stage := self._job.stage_from(seen)) is not self._stage:
            self._watch.expect_other_steps()
            self._stage = stage
        step = self._job.engine.step(
            batch,
            seen,
            tallies=tallies_of(batch, self._job.mixture, is_stop_requested=self._stop.requested, save_states=states),
            waited_seconds=self._pace.waited_seconds,
            measures_update=self._is_logged(number + 1),
        )
        self._in_flight.append((step, batch))

    def _read_steps(self, done: int, *, leaves: int) -> None:
        """Read what the oldest steps in flight did, until `leaves` are left, or none once a stop is asked for."""
        while len(self._in_flight) > (0 if self._is_stopping else leaves):
            step, batch = self._in_flight.popleft()
            stats = step.read()
            self._pace.step_is_done()
            self._steps.append(stats)
            self._saves.advance({name: tally(stats, name) for name in SAVE_STATES})
            advanced, begins_stage = advance(self._progress, stats, self._pace), self._job.begins_stage(stats)
            self._progress, wrong = judge(advanced, stats, self._size, begins_stage=begins_stage)
            try:
                refuse_bad_data(self._job.config, self._progress)
            except TooManyRejectsError:
                self._watch.enter("checkpoint", done * self._size)
                self._saves.wait()
                raise
            self._is_stopping = self._is_stopping or tally(stats, STOP) > 0
            if wrong is not None:
                tell(self._job, stats, batch, wrong)
            if self._is_logged(self._progress.samples_seen // self._size):
                report(self._job, self._progress, self._steps, self._pace, self._console, self._saves.take_numbers())
                self._steps.clear()
            if wrong is not None and is_given_up(self._job.config, self._progress):
                # The steps in flight are given up too, and as many wherever the run was stopped and went on.
                position = min(self._progress.samples_seen + self._queued * self._size, self._last * self._size)
                self._go_back(done, wrong, position, is_lost=self._progress.skipped_in_a_row > 0)

    def _go_back(self, done: int, why: str, position: int, *, is_lost: bool) -> None:
        self._watch.enter("checkpoint", done * self._size)
        self._saves.wait()
        progress = replace(self._progress, samples_seen=done * self._size)
        gone_back = roll_back(self._job, progress, why, position, is_lost=is_lost)
        if len(gone_back.roll_backs) > len(self._progress.roll_backs):
            self._progress = gone_back
            self._in_flight.clear()
        else:  # the loss jumped, and there is nothing to go back to
            self._progress = replace(self._progress, spikes_in_a_row=0)
        self._pace.pause_is_over()

    def _save(self, done: int, evaluation: dict[str, Any] | None, *, waits: bool) -> None:
        """Start to save; with `waits`, return once the checkpoint is complete. Weights that are not finite go back.

        evaluation: what was measured of the weights, if it was.
        """
        seen = done * self._size
        self._watch.enter("checkpoint", seen)
        if on_any_rank(self._job.world, not self._job.engine.has_finite_weights()):
            self._go_back(done, f"weights are not finite after {counted(seen, 'sample')}", seen, is_lost=True)
            evaluation = None
        self._saves.start(self._progress, evaluation)
        if waits:
            self._saves.finish()
        self._pace.pause_is_over()

    def _end_early(self) -> None:
        reasons = gather_on_first_rank(self._job.world, self._stop.reason)
        self._console.say(describe_rejects(self._progress))
        self._job.record_end(self._progress, stopped_by=next(filter(None, reasons), ""))
        self._console.say(describe_stop(reasons, self._progress))

    def _end(self, steps: int) -> None:
        self._job.record_end(self._progress)
        self._console.say(describe_rejects(self._progress))
        embeds = not self._job.config.loss.predicts_words
        self._console.say(describe_end(self._job.run, self._progress, steps, embeds=embeds))

    def _is_logged(self, done: int) -> bool:
        return done % self._job.config.tracking.log_every_steps == 0 or done in (1, self._last)


def console_of(job: Job) -> Console:
    training = job.config.training
    whole = training.total_samples // training.global_batch_size * training.global_batch_size
    return Console(
        total_samples=whole,
        samples_seen=job.progress.samples_seen,
        shown=job.world.is_first,
        work_until=job.flops_until if training.stages else float,
    )


def draw(batch: Batch, job: Job) -> None:
    """Draw the samples picture into the run directory; if that fails, log a warning and go on."""
    try:
        draw_samples(batch, job.tokenizer, job.run.samples)
    except OSError as error:
        logger.warning("%s cannot be drawn: %s", job.run.samples, error)
    else:
        job.record_samples()


def log_rejects(batch: Batch) -> None:
    for reject in batch.rejects:
        logger.info("rejected %s of %s: %s", reject.key, reject.shard, reject.reason)


def advance(progress: Progress, stats: StepStats, pace: Pace) -> Progress:
    rejected = Counter(progress.rejected) + Counter({reason: tally(stats, reason) for reason in REASONS})
    return replace(
        progress,
        samples_seen=stats.samples_seen,
        rejected=dict(rejected),
        seconds=pace.seconds,
    )


def refuse_bad_data(config: RunConfig, progress: Progress) -> None:
    rejected = sum(progress.rejected.values())
    allowed = config.data.max_rejected_fraction
    if rejected > allowed * max(progress.samples_seen, MIN_SAMPLES_FOR_VERDICT):
        raise TooManyRejectsError(
            f"{rejected} of {counted(progress.samples_seen, 'sample')} were rejected ({describe_reasons(progress)}); "
            f"data.max_rejected_fraction allows {allowed:g}. The log names each; repair the shards or allow more"
        )


def tell(job: Job, stats: StepStats, batch: Batch, wrong: str) -> None:
    """Log what is wrong with a step, and write down its samples; every rank must call it."""
    samples = gather_on_first_rank(job.world, batch.samples)
    if not job.world.is_first:
        return
    try:
        where = str(write_bad_step(job.run, job.mixture.index, stats, wrong, samples))
    except OSError as error:
        where = f"nowhere ({error})"
    logger.warning("%s%s; its samples: %s", wrong, ": left out on all ranks" if stats.is_skipped else "", where)


def save_is_due(config: RunConfig, before: int, after: int) -> bool:
    """Whether a multiple of the interval between checkpoints lies between two counts of samples seen."""
    every = config.samples_between_checkpoints
    return after // every > before // every
