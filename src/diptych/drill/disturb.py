"""Train a run undisturbed, or kill it again and again."""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from diptych.checkpoint_folder import checkpoints
from diptych.config.schema import RunConfig
from diptych.drill.attempt import Attempt, Kill, newest_sample
from diptych.errors import UserError
from diptych.run_dir import RunDir

VICTIMS = ("rank", "save", "writer")


def train(words: Sequence[str], run: RunDir, num_ranks: int, folder: Path) -> float:
    """Train without disturbing; return the seconds it took.

    Raises:
        UserError: the run fails by itself.
    """
    began = time.monotonic()
    with Attempt([*words, f"run_dir={run.path}"], run, num_ranks, folder / "undisturbed.log") as attempt:
        if status := attempt.wait():
            print(attempt.last_words, file=sys.stderr)
            raise UserError(f"the undisturbed run ended with status {status}; {folder / 'undisturbed.log'} says why")
    return time.monotonic() - began


def disturb(
    words: Sequence[str], run: RunDir, num_ranks: int, kills: int, config: RunConfig, draw: random.Random, folder: Path
) -> list[Kill]:
    """Kill something `kills` times, start the run again whenever its ranks ended, and let it finish; print each kill.

    Raises:
        UserError: the run fails although none of its ranks was killed.
    """
    size, total = config.training.global_batch_size, config.training.total_samples
    done: list[Kill] = []
    print(f"{'kill':>4}  {'what':<18} {'after step':>10}  {'in a save':<9}  {'starts again after step':>23}")
    while True:
        kill, seen = None, _saved_samples(run, size)
        with Attempt([*words, f"run_dir={run.path}"], run, num_ranks, folder / "disturbed.log") as attempt:
            while len(done) < kills:
                # Spread the kills that are left evenly, on average, over what is left of the run.
                moment = seen + int(draw.uniform(0, 2 * (total - seen) / (kills - len(done) + 1)))
                kill = attempt.kill_at(moment, draw.choice(VICTIMS), draw)
                if kill is None:
                    break
                done.append(kill)
                _tell(len(done), kill, size)
                if kill.ends_run:
                    break
                seen = max(newest_sample(run), seen)
            status = attempt.wait()
        if status == 0:
            return done
        if kill is None or not kill.ends_run:
            print(attempt.last_words, file=sys.stderr)
            raise UserError(f"the run ended with status {status} by itself; {folder / 'disturbed.log'} says why")
        print(f"{_saved_samples(run, size) // size:>23}", flush=True)


def _tell(number: int, kill: Kill, size: int) -> None:
    in_save = "yes" if kill.in_save else ""
    end = "" if kill.ends_run else f"{'goes on':>23}\n"
    print(f"{number:>4}  {kill.victim:<18} {kill.samples_seen // size:>10}  {in_save:<9}  ", end=end, flush=True)


def _saved_samples(run: RunDir, size: int) -> int:
    """The samples seen of the newest checkpoint."""
    found = checkpoints(run.checkpoints) if run.checkpoints.exists() else []
    return int(found[0].name.removeprefix("step_")) * size if found else 0
