"""Report what the steps did since the last report: on the console, and in the record."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from diptych.data.mixture import Mixture
from diptych.machine import peak_teraflops
from diptych.training.checkpoint import Progress
from diptych.training.console import Console
from diptych.training.job import Job
from diptych.training.metrics import EPOCHS_OF, SAMPLES_SEEN, SHARE_OF
from diptych.training.pace import Pace
from diptych.training.step_stats import StepStats
from diptych.training.tallies import TOKENS, source_shares, tally


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
    flops = flops_of_pair(job, steps) * speed["samples_per_second"] / job.world.size
    at_limit = math.exp(job.config.training.max_logit_scale) * (1 - 1e-6)
    values: dict[str, float] = {
        SAMPLES_SEEN: progress.samples_seen,
        **epochs(job.mixture, progress.samples_seen),
        **({"stage": job.stage_of(stats).number} if job.config.training.stages else {}),
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


def flops_of_pair(job: Job, steps: Sequence[StepStats]) -> float:
    """The mean over the stages of these steps, with captions as long as those of the last step."""
    num_tokens = tally(steps[-1], TOKENS) / job.config.training.global_batch_size
    return sum(job.flops_of(job.stage_of(step)).of_pair(num_tokens) for step in steps) / len(steps)


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
