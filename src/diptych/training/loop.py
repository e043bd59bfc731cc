"""The training loop: resume, step, log, save."""

from __future__ import annotations

import logging
import math
import shlex
from collections import Counter, deque
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from diptych.agreement import decide_on_first_rank, gather_on_first_rank, on_any_rank
from diptych.checkpoint_folder import is_whole, name_of
from diptych.config.load import LoadedConfig
from diptych.config.schema import RunConfig
from diptych.data.batch import Batch
from diptych.data.decoder import REASONS
from diptych.data.loader_processes import LoaderProcesses
from diptych.data.mixture import Mixture
from diptych.errors import UserError
from diptych.machine import peak_teraflops
from diptych.run_dir import RunDir, log_to
from diptych.terminal import counted, percent
from diptych.training.checkpoint import Progress
from diptych.training.console import Console
from diptych.training.engine import StepInFlight, StepStats
from diptych.training.job import Job, prepare
from diptych.training.metrics import EPOCHS_OF, SAMPLES_SEEN, SHARE_OF
from diptych.training.pace import Pace
from diptych.training.roll_back import is_given_up, roll_back
from diptych.training.samples_picture import draw_samples
from diptych.training.save import Saves
from diptych.training.signals import stop_on_request
from diptych.training.tallies import SAVE_STATES, STOP, TOKENS, source_shares, tallies_of, tally
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


def train(loaded: LoadedConfig, world: World, processes: LoaderProcesses) -> bool:
    """Train from the newest valid checkpoint, if there is one, and return whether the run has reached its end.

    A signal or `machine.stop_after` stops it before, with a checkpoint.

    Every rank must call it, inside a process group, with processes that it started before.
    """
    config, run = loaded.config, RunDir(Path(loaded.config.run_dir))
    decide_on_first_rank(world, lambda: run.prepare(loaded))
    log_to(run, world.rank)
    size = config.training.global_batch_size
    last = config.training.total_samples // size
    if decide_on_first_rank(world, lambda: is_whole(run.checkpoints, last)):
        say_finished(run, last * size, world)
        return True
    with Watch(run, world, config.machine, processes) as watch:
        return train_watched(config, run, world, processes, watch)


def train_watched(config: RunConfig, run: RunDir, world: World, processes: LoaderProcesses, watch: Watch) -> bool:
    """Train as `train` does, and keep the watch informed."""
    size = config.training.global_batch_size
    last = config.training.total_samples // size
    job = prepare(config, run, world, processes)
    progress = job.progress
    first = progress.samples_seen // size
    console = Console(total_samples=last * size, samples_seen=progress.samples_seen, shown=world.is_first)
    pace = Pace(progress.samples_seen, progress.seconds)
    in_flight: deque[tuple[StepInFlight, Batch]] = deque()
    steps: list[StepStats] = []
    """Steps whose results were read since the last report."""

    queued = STEPS_IN_FLIGHT[world.device.type]

    def is_logged(done: int) -> bool:
        return done % config.tracking.log_every_steps == 0 or done in (1, last)

    # Signal handlers come first, so that a launcher's SIGTERM after another rank is lost does not kill this rank
    # before it reports the loss.
    with (
        stop_on_request(config.machine.stop_after) as stop,
        closing(job),
        closing(Saves(job, stop)) as saves,
        closing(console),
        watch.training(progress.samples_seen),
    ):
        console.say(str(job))
        for number, batch in enumerate(pace.timed(job.batches), start=first):
            if number == 0 and world.is_first:
                draw(batch, job)
            done, is_last, stopping = number + 1, number + 1 == last, False
            is_saved = is_last or save_is_due(config, number * size, done * size)
            log_rejects(batch)
            tallies = tallies_of(batch, job.mixture, is_stop_requested=stop.requested, save_states=saves.states())
            waited = pace.waited_seconds
            if number * size < progress.trains_from:
                progress = replace(progress, samples_seen=done * size)
            else:
                watch.enter("step", number * size)
                step = job.engine.step(
                    batch, number * size, tallies=tallies, waited_seconds=waited, measures_update=is_logged(done)
                )
                in_flight.append((step, batch))
            while len(in_flight) > (0 if is_saved or stopping else queued):
                step, of_step = in_flight.popleft()
                steps.append(step.read())
                pace.step_is_done()
                saves.advance({name: tally(steps[-1], name) for name in SAVE_STATES})
                progress = advance(progress, steps[-1], pace)
                try:
                    refuse_bad_data(config, progress)
                except TooManyRejectsError:
                    saves.wait()
                    raise
                progress, wrong = judge(progress, steps[-1], size)
                stopping = stopping or tally(steps[-1], STOP) > 0
                if wrong is not None:
                    tell(job, steps[-1], of_step, wrong)
                if is_logged(progress.samples_seen // size):
                    report(job, progress, steps, pace, console, saves.take_numbers())
                    steps.clear()
                if wrong is not None and is_given_up(config, progress):
                    # The steps in flight are given up too, and as many wherever the run was stopped and went on.
                    position = min(progress.samples_seen + queued * size, last * size)
                    progress = replace(progress, samples_seen=done * size)
                    watch.enter("checkpoint", done * size)
                    saves.wait()
                    progress = roll_back(job, progress, wrong, position, is_lost=progress.skipped_in_a_row > 0)
                    in_flight.clear()
                    pace.pause_is_over()
            console.move(done * size)
            if is_saved or stopping:
                watch.enter("checkpoint", done * size)
                if on_any_rank(world, not job.engine.has_finite_weights()):
                    wrong = f"weights are not finite after {counted(done * size, 'sample')}"
                    saves.wait()
                    progress = roll_back(job, progress, wrong, done * size, is_lost=True)
                saves.start(progress)
                if stopping or is_last:
                    saves.finish()
                pace.pause_is_over()
            if stopping and not is_last:
                console.say(describe_rejects(progress))
                reasons = gather_on_first_rank(world, stop.reason)
                job.record_end(progress, stopped_by=next(filter(None, reasons), ""))
                console.say(describe_stop(reasons, progress))
                return False
            if is_last:
                job.record_end(progress)
                console.say(describe_rejects(progress))
                console.say(describe_end(run, progress, done))
            watch.enter("batch", done * size)
    return True


def describe_rejects(progress: Progress) -> str:
    """How many samples of the whole run were rejected and why; empty if none were."""
    rejected = sum(progress.rejected.values())
    if not rejected:
        return ""
    seen = progress.samples_seen
    return (
        f"{rejected:,} of {counted(seen, 'sample')} ({percent(rejected, seen)}) were rejected: "
        f"{_reasons(progress)}; log/ names each"
    )


def _reasons(progress: Progress) -> str:
    return ", ".join(f"{reason} {number}" for reason, number in sorted(progress.rejected.items()))


def describe_stop(reasons: Sequence[str], progress: Progress) -> str:
    """The last line of a run that was stopped, from what asked each rank to stop."""
    rank, reason = next(((rank, reason) for rank, reason in enumerate(reasons) if reason), (0, ""))
    by = f"{reason} to rank {rank}" if rank else reason
    return f"stopped by {by} after {counted(progress.samples_seen, 'sample')}; the same command goes on from there"


def describe_end(run: RunDir, progress: Progress, steps: int) -> str:
    """The last lines of a run: how long it took, where its checkpoint is, and which commands use it."""
    return (
        f"finished {counted(progress.samples_seen, 'sample')} in {tqdm.format_interval(progress.seconds)}: "
        f"{run.checkpoints / name_of(steps)}\n"
        f"next: diptych evaluate {shlex.quote(str(run.path))} --zero-shot FOLDER --report, or diptych classify or embed"
    )


def say_finished(run: RunDir, num_samples: int, world: World) -> None:
    with closing(Console(total_samples=num_samples, samples_seen=num_samples, shown=world.is_first)) as console:
        console.say(
            f"{run.path}: finished: all {counted(num_samples, 'sample')} were seen; for another run set run_dir "
            "to a new one"
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
            f"{rejected} of {counted(progress.samples_seen, 'sample')} were rejected ({_reasons(progress)}); "
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


def report(
    job: Job,
    progress: Progress,
    steps: Sequence[StepStats],
    pace: Pace,
    console: Console,
    last_save: Mapping[str, float],
) -> None:
    """Show the numbers on the console and write them to the record, on rank 0.

    steps: all steps since the last report.
    last_save: the numbers of a checkpoint that was completed since then.
    """
    speed, stats = pace.measure(steps), steps[-1]
    console.show(stats.loss, speed["samples_per_second"], speed["data_wait_fraction"])
    if job.metrics is None:
        return
    num_pairs = job.config.training.global_batch_size
    flops = job.flops.of_pair(tally(stats, TOKENS) / num_pairs) * speed["samples_per_second"] / job.world.size
    at_limit = math.exp(job.config.training.max_logit_scale) * (1 - 1e-6)
    values: dict[str, float] = {
        SAMPLES_SEEN: progress.samples_seen,
        **epochs(job.mixture, progress.samples_seen),
        "loss": stats.loss,
        "learning_rate": stats.learning_rate,
        "logit_scale": stats.logit_scale,
        "logit_scale_at_limit": sum(step.logit_scale >= at_limit for step in steps) / len(steps),
        "gradient_norm": stats.gradient_norm,
        **{f"{tower}_gradient_norm": norm for tower, norm in stats.tower_gradient_norms.items()},
        **{f"{tower}_update_ratio": ratio for tower, ratio in stats.update_ratios.items()},
        "skipped_steps": progress.skipped_steps,
        "loss_spikes": progress.spikes,
        **speed,
        "teraflops_per_rank": flops / 1e12,
        "rejected_samples": sum(progress.rejected.values()),
        **{f"rejected_{reason}": number for reason, number in progress.rejected.items()},
        **cache_hits(steps),
        **mix(job.mixture, steps),
        **last_save,
        **stats.similarities,
    }
    if job.world.device.type == "cuda":
        values["gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
        peak = peak_teraflops(torch.cuda.get_device_name(job.world.device))
        if peak is not None:
            values["mfu"] = round(flops / 1e12 / peak, 4)
    # A skipped step may have no finite loss, and JSON has no NaN.
    job.metrics.log({name: value for name, value in values.items() if math.isfinite(value)})


def cache_hits(steps: Sequence[StepStats]) -> dict[str, float]:
    """The share of remote shards that were in the cache when a rank needed them; empty if none was needed."""
    hits, misses = (sum(tally(step, name) for step in steps) for name in ("cache_hits", "cache_misses"))
    return {"cache_hit_fraction": hits / (hits + misses)} if hits + misses else {}


def epochs(mixture: Mixture, samples_seen: int) -> dict[str, float]:
    """How many times the data was gone through: each source by itself if sources have weights, since they differ."""
    each = mixture.epochs(samples_seen)
    names = [f"{EPOCHS_OF}{name}" for name in mixture.labels] if mixture.weighted else ["epoch"]
    return dict(zip(names, each, strict=True))


def mix(mixture: Mixture, steps: Sequence[StepStats]) -> dict[str, float]:
    """The share of the rows that each source has given, after fillers took their places; empty for a single source."""
    if len(mixture.configs) == 1:
        return {}
    return {f"{SHARE_OF}{name}": share for name, share in zip(mixture.labels, source_shares(steps), strict=True)}


def save_is_due(config: RunConfig, before: int, after: int) -> bool:
    """Whether a multiple of the interval between checkpoints lies between two counts of samples seen."""
    every = config.checkpoint.every_samples or max(1, config.training.total_samples // 10)
    return after // every > before // every
