"""Training, in one screen: resume, step, log, save."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from diptych.checkpoint_folder import name_of
from diptych.config.load import LoadedConfig
from diptych.config.schema import RunConfig
from diptych.data.batch import Batch
from diptych.data.loader import REASONS, killed_loaders_named
from diptych.errors import UserError
from diptych.run_dir import RunDir, log_to
from diptych.terminal import counted
from diptych.training.checkpoint import Progress, is_whole
from diptych.training.console import Console
from diptych.training.engine import StepStats
from diptych.training.job import Job, prepare
from diptych.training.metrics import SAMPLES_SEEN
from diptych.training.pace import Pace
from diptych.training.samples_picture import draw_samples
from diptych.training.save import save
from diptych.training.signals import stop_on_signals
from diptych.world import World, first_decides

logger = logging.getLogger(__name__)

MIN_SAMPLES_FOR_VERDICT = 1_000
"""Rejected samples are judged as a share of at least this many, so that the first few do not end a run."""


class TooManyRejectsError(UserError):
    """The data is worse than the config allows."""


def train(loaded: LoadedConfig, world: World) -> None:
    """Run the config to its end or to a stop signal; called again, go on from the newest valid checkpoint.

    Every rank calls it, inside a process group.
    """
    config, run = loaded.config, RunDir(Path(loaded.config.run_dir))
    first_decides(world, lambda: run.prepare(loaded))
    log_to(run, world.rank)
    size = config.training.global_batch_size
    last = config.training.total_samples // size
    if first_decides(world, lambda: is_whole(run.checkpoints, last)):
        say_finished(run, last * size, world)
        return
    job = prepare(config, run, world)
    progress = job.progress
    first = progress.samples_seen // size
    console = Console(total_samples=last * size, samples_seen=progress.samples_seen, shown=world.is_first)
    console.say(str(job))
    pace = Pace(progress.samples_seen, progress.seconds)

    named = killed_loaders_named(config.machine.loader_workers)
    with named, closing(job), stop_on_signals() as stop, closing(job.batches(last)) as loader, closing(console):
        for number, batch in enumerate(pace.timed(loader), start=first):
            if number == 0 and world.is_first:
                draw(batch, job)
            done, is_last = number + 1, number + 1 == last
            is_logged = done % config.tracking.log_every_steps == 0 or done == 1 or is_last
            stats = job.engine.step(batch, number * size, tallies=(stop.requested, *count(batch)))
            progress = advance(progress, stats, done * size, pace)
            refuse_bad_data(config, progress)
            if is_logged:
                report(job, progress, stats, pace, console)
            console.move(done * size)
            stopping = stats.tallies[0] > 0
            if stopping or is_last or save_is_due(config, number * size, done * size):
                save(job, progress, stop)
            if stopping and not is_last:
                console.say(describe_rejects(progress))
                console.say(f"stopped after {counted(done * size, 'sample')}; the same command goes on from there")
                break
            if is_last:
                console.say(describe_rejects(progress))
                console.say(describe_end(run, progress, done))
        job.record_end(progress)


def describe_rejects(progress: Progress) -> str:
    """How many samples of the whole run were left out and why; empty where none were."""
    rejected = sum(progress.rejected.values())
    if not rejected:
        return ""
    share = rejected / max(progress.samples_seen, 1)
    return (
        f"{rejected:,} of {counted(progress.samples_seen, 'sample')} ({share:.1%}) were rejected: "
        f"{_reasons(progress)}; log/ names each"
    )


def _reasons(progress: Progress) -> str:
    return ", ".join(f"{reason} {number}" for reason, number in sorted(progress.rejected.items()))


def describe_end(run: RunDir, progress: Progress, steps: int) -> str:
    """In what time, where the checkpoint is, and what can be done with it."""
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
    """The samples picture, into the run directory; a full disk costs the picture, not the run."""
    try:
        draw_samples(batch, job.tokenizer, job.run.samples)
    except OSError as error:
        logger.warning("%s cannot be drawn: %s", job.run.samples, error)
    else:
        job.record_samples()


def count(batch: Batch) -> list[int]:
    """This rank's rejects by reason, in the order of REASONS; each is named in the rank's log."""
    for reject in batch.rejects:
        logger.info("rejected %s of %s: %s", reject.key, reject.shard, reject.reason)
    counts = Counter(reject.reason for reject in batch.rejects)
    return [counts[reason] for reason in REASONS]


def advance(progress: Progress, stats: StepStats, samples_seen: int, pace: Pace) -> Progress:
    rejected = Counter(progress.rejected)
    for reason, number in zip(REASONS, stats.tallies[1:], strict=True):
        if number:
            rejected[reason] += number
    return replace(progress, samples_seen=samples_seen, rejected=dict(rejected), seconds=pace.seconds)


def refuse_bad_data(config: RunConfig, progress: Progress) -> None:
    rejected = sum(progress.rejected.values())
    allowed = config.data.max_rejected_fraction
    if rejected > allowed * max(progress.samples_seen, MIN_SAMPLES_FOR_VERDICT):
        raise TooManyRejectsError(
            f"{rejected} of {counted(progress.samples_seen, 'sample')} were rejected ({_reasons(progress)}); "
            f"data.max_rejected_fraction allows {allowed:g}. The log names each; mend the shards or allow more"
        )


def report(job: Job, progress: Progress, stats: StepStats, pace: Pace, console: Console) -> None:
    """To the console and into the record, where this rank has them."""
    samples_per_second, data_wait_fraction = pace.measure(progress.samples_seen)
    console.show(stats.loss, samples_per_second, data_wait_fraction)
    if job.metrics is None:
        return
    values: dict[str, float] = {
        SAMPLES_SEEN: progress.samples_seen,
        "epoch": progress.samples_seen / job.order.total,
        "loss": stats.loss,
        "learning_rate": stats.learning_rate,
        "logit_scale": stats.logit_scale,
        "gradient_norm": stats.gradient_norm,
        "samples_per_second": round(samples_per_second, 2),
        "data_wait_fraction": round(data_wait_fraction, 4),
        "rejected_samples": sum(progress.rejected.values()),
        **stats.similarities,
    }
    if job.world.device.type == "cuda":
        values["gpu_memory_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 3)
    job.metrics.log(values)


def save_is_due(config: RunConfig, before: int, after: int) -> bool:
    """Whether a multiple of the interval was passed between two counts of samples seen."""
    every = config.checkpoint.every_samples or max(1, config.training.total_samples // 10)
    return after // every > before // every
