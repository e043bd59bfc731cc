"""What a run says when it ends, was stopped, or had ended before."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from contextlib import closing

from tqdm import tqdm

from diptych.checkpoint_folder import name_of
from diptych.run_dir import RunDir
from diptych.terminal import counted, percent
from diptych.training.checkpoint import Progress
from diptych.training.console import Console
from diptych.world import World


def describe_rejects(progress: Progress) -> str:
    """How many samples of the whole run were rejected and why; empty if none were."""
    rejected = sum(progress.rejected.values())
    if not rejected:
        return ""
    seen = progress.samples_seen
    return (
        f"{rejected:,} of {counted(seen, 'sample')} ({percent(rejected, seen)}) were rejected: "
        f"{describe_reasons(progress)}; log/ names each"
    )


def describe_reasons(progress: Progress) -> str:
    return ", ".join(f"{reason} {number}" for reason, number in sorted(progress.rejected.items()))


def describe_stop(reasons: Sequence[str], progress: Progress) -> str:
    """The last line of a run that was stopped, from what asked each rank to stop."""
    rank, reason = next(((rank, reason) for rank, reason in enumerate(reasons) if reason), (0, ""))
    by = f"{reason} to rank {rank}" if rank else reason
    return f"stopped by {by} after {counted(progress.samples_seen, 'sample')}; the same command goes on from there"


def describe_end(run: RunDir, progress: Progress, steps: int, *, embeds: bool) -> str:
    """The last lines of a run: how long it took, where its checkpoint is, and which commands use it.

    embeds: whether the model gives embeddings; one that predicts words can only be measured.
    """
    others = ", or diptych classify or embed" if embeds else ""
    return (
        f"finished {counted(progress.samples_seen, 'sample')} in {tqdm.format_interval(progress.seconds)}: "
        f"{run.checkpoints / name_of(steps)}\n"
        f"next: diptych evaluate {shlex.quote(str(run.path))} --zero-shot FOLDER --report{others}"
    )


def say_finished(run: RunDir, num_samples: int, world: World) -> None:
    with closing(Console(total_samples=num_samples, samples_seen=num_samples, shown=world.is_first)) as console:
        console.say(
            f"{run.path}: finished: all {counted(num_samples, 'sample')} were seen; for another run set run_dir "
            "to a new one"
        )
