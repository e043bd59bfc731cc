"""Recognise steps that harm a run: a loss or gradient that is not finite, and a loss that jumps.

A step that is not finite changes nothing on any rank, and a single jump of the loss is only reported. After
MAX_IN_A_ROW of them the weights themselves are the trouble, and `roll_back` gives them up.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from diptych.checkpoint_folder import name_of
from diptych.data.shards import ShardIndex
from diptych.files import commit_file
from diptych.run_dir import RunDir
from diptych.terminal import counted
from diptych.training.checkpoint import Progress
from diptych.training.step_stats import StepStats

MAX_IN_A_ROW = 10
"""After this many steps in a row without finite numbers, or with a spike of the loss, the weights are given up."""
WINDOW = 128
"""The number of newest finite losses that the next one is compared with."""
MIN_LOSSES = 32
"""With fewer losses there is no score: their spread is not known yet."""
SPIKE_SCORE = 10.0
"""A loss with a higher score is a spike; the score of a steady loss with normal noise reaches 10 once in 10^15 steps
or more rarely."""
LEAST_SPREAD = 0.01
"""The smallest spread, as a share of the median, so that a loss that hardly varies gives no false alarm."""


def spike_score(loss: float, before: Sequence[float]) -> float:
    """How far a loss lies above the median of those before, in robust standard deviations; 0 if there are too few.

    The spread is 1.4826 times the median absolute deviation: the standard deviation of a normal distribution, and
    hardly moved by the spikes themselves (Iglewicz and Hoaglin 1993, "How to Detect and Handle Outliers").
    """
    if len(before) < MIN_LOSSES:
        return 0.0
    median = statistics.median(before)
    spread = 1.4826 * statistics.median(abs(each - median) for each in before)
    return (loss - median) / max(spread, LEAST_SPREAD * abs(median))


def judge(
    progress: Progress, stats: StepStats, global_batch_size: int, *, begins_stage: bool = False
) -> tuple[Progress, str | None]:
    """Count a step that was just read as good or bad; return what is wrong with it, or None.

    If the loss stays high, only two steps are called wrong: the first, and the one that makes it MAX_IN_A_ROW.

    begins_stage: whether it is the first one with other sizes, whose losses are not those of the steps before.
    """
    if begins_stage:
        progress = replace(progress, losses=[], spikes_in_a_row=0)
    where = f"the step after {counted(stats.samples_seen - global_batch_size, 'sample')}"
    if stats.is_skipped:
        progress = replace(
            progress, skipped_steps=progress.skipped_steps + 1, skipped_in_a_row=progress.skipped_in_a_row + 1
        )
        what = "loss" if not math.isfinite(stats.loss) else "gradient"
        whose = f", from {_ranks(stats.bad_ranks)}" if stats.bad_ranks else ""
        return progress, (
            f"the {what} of {where} is not finite (loss {stats.loss:g}, norm {stats.gradient_norm:g}{whose})"
        )
    score = spike_score(stats.loss, progress.losses)
    is_spike = score > SPIKE_SCORE
    in_a_row = progress.spikes_in_a_row + 1 if is_spike else 0
    losses = progress.losses if is_spike else [*progress.losses, stats.loss][-WINDOW:]
    judged = replace(
        progress,
        skipped_in_a_row=0,
        spikes=progress.spikes + is_spike,
        spikes_in_a_row=in_a_row,
        # A loss that stays high is compared with what comes after.
        losses=losses if in_a_row < MAX_IN_A_ROW else [],
    )
    if in_a_row not in (1, MAX_IN_A_ROW):
        return judged, None
    return judged, (
        f"the loss of {where} is {stats.loss:.4g}, {score:.0f} robust standard deviations above "
        f"{statistics.median(progress.losses):.4g}, the median of the {len(progress.losses)} losses before"
    )


def write_bad_step(run: RunDir, index: ShardIndex, stats: StepStats, why: str, samples: Sequence[np.ndarray]) -> Path:
    """Write down which samples a bad step saw: for each rank, the rows that it took from each shard; return the file.

    Only rank 0 calls it. The file has the name of the step, so a step that is repeated after a kill writes it again.

    samples: the numbers in the index of each rank's samples, in the order of their rows.
    Raises:
        OSError: it cannot be written.
    """
    ranks = []
    for rank, numbers in enumerate(samples):
        shards, rows = index.locate_many(numbers)
        by_shard: dict[str, list[int]] = {}
        for shard, row in zip(shards.tolist(), rows.tolist(), strict=True):
            by_shard.setdefault(str(index.shards[shard].path), []).append(row)
        ranks.append({"rank": rank, "is_bad": rank in stats.bad_ranks, "rows_by_shard": by_shard})
    step = stats.samples_seen // sum(map(len, samples))
    value = {"samples_seen": stats.samples_seen, "why": why, "ranks": ranks}
    run.bad_steps.mkdir(exist_ok=True)
    file = run.bad_steps / f"{name_of(step)}.json"
    commit_file(file, (json.dumps(value, indent=1) + "\n").encode())
    return file


def _ranks(numbers: Sequence[int]) -> str:
    shown = ", ".join(map(str, numbers[:4])) + (", …" if len(numbers) > 4 else "")
    return f"rank{'s' if len(numbers) > 1 else ''} {shown}"
