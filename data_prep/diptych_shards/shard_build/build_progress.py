"""Show how far a build is: one line on a terminal, lines in a log elsewhere, the same numbers in wandb."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from typing import Any

from tqdm import tqdm

from diptych.errors import UserError
from diptych.terminal import counted, percent, printable
from diptych.wandb_run import find_mode, is_silent, location, open_run, reason, refuse_unknown_mode, user_command
from diptych_shards.shard_build.shard import News, ShardReport
from diptych_shards.shard_build.shard_files import SUCCESS

SECONDS_BETWEEN_LINES = 10.0
WINDOW_SECONDS = 20.0
"""Rates are averages over this time."""
NUM_SHOWN_FAILURES = 3


class BuildProgress:
    """Counts rows and bytes as workers report them, and shows the counts."""

    def __init__(self, wandb_project: str | None = None):
        self._on_terminal = sys.stderr.isatty()
        self._wandb_run = _start_wandb_run(wandb_project) if wandb_project else None
        self._outcomes: Counter[str] = Counter()
        self._bytes = 0
        self._num_rows: int | None = None
        self._num_rows_is_known = True
        self._history: deque[tuple[float, int, int, int]] = deque()
        self._last_line_at = time.monotonic()
        self._bar: tqdm | None = None

    def start(self, num_rows: int | None, about_rows: int | None, done: Counter[str]) -> None:
        """Start to count.

        num_rows: None if the table does not say; about_rows is a guess then.
        done: outcomes of rows in shards that were finished before.
        """
        self._outcomes += done
        self._num_rows_is_known = num_rows is not None
        self._num_rows = num_rows if self._num_rows_is_known else about_rows
        self._history.append((time.monotonic(), done.total(), done[SUCCESS], 0))
        if self._on_terminal:
            self._bar = tqdm(total=self._num_rows, initial=done.total(), unit=" rows", bar_format="{desc}", leave=False)

    def add(self, news: News) -> None:
        self._outcomes += news.rows
        self._bytes += news.fetched_bytes
        if not self._num_rows_is_known and self._outcomes.total() > (self._num_rows or 0):
            self._num_rows = None  # the guess was too low
        self._history.append((time.monotonic(), self._outcomes.total(), self._outcomes[SUCCESS], self._bytes))
        while self._history[0][0] < time.monotonic() - WINDOW_SECONDS and len(self._history) > 2:
            self._history.popleft()
        if self._bar is not None:
            self._bar.set_description_str(self.line)
        elif time.monotonic() - self._last_line_at > SECONDS_BETWEEN_LINES:
            self._last_line_at = time.monotonic()
            print(self.line, file=sys.stderr, flush=True)
        if self._wandb_run is not None:
            self._wandb_run.log(self.numbers)

    def shard_is_done(self, report: ShardReport) -> None:
        if self._bar is None:
            print(f"shard {report.number}: {report.successes:,} of {counted(report.rows, 'row')} stored; {self.line}",
                  file=sys.stderr, flush=True)  # fmt: skip

    @property
    def line(self) -> str:
        """How far the build is, in about 110 characters."""
        num_rows, numbers = self._outcomes.total(), self.numbers
        parts = [
            f"{num_rows:,}{self._of_all()} rows",
            f"{percent(numbers['success_rate'])} stored",
            f"{numbers['pictures_per_second']:.0f} pictures/s",
            f"{numbers['bytes_per_second'] / 1e6:.1f} MB/s",
        ]
        if (seconds := self._seconds_left()) is not None:
            parts.append(f"{_hours_minutes_seconds(seconds)} left")
        failures = [(reason, n) for reason, n in self._outcomes.most_common() if reason != SUCCESS]
        shares = ", ".join(f"{reason} {percent(n, num_rows)}" for reason, n in failures[:NUM_SHOWN_FAILURES])
        return ", ".join(parts) + (f"; {shares}" if shares else "")

    @property
    def numbers(self) -> dict[str, float]:
        started_at, rows, pictures, num_bytes = self._history[0]
        seconds = max(time.monotonic() - started_at, 1e-3)
        total = self._outcomes.total()
        return {
            "rows": total,
            "success_rate": self._outcomes[SUCCESS] / max(total, 1),
            "rows_per_second": (total - rows) / seconds,
            "pictures_per_second": (self._outcomes[SUCCESS] - pictures) / seconds,
            "bytes_per_second": (self._bytes - num_bytes) / seconds,
            **{f"failed/{reason}": n for reason, n in self._outcomes.items() if reason != SUCCESS},
        }

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()
        if self._wandb_run is not None:
            self._wandb_run.finish()
            _print_location(self._wandb_run)

    def _of_all(self) -> str:
        if self._num_rows is None:
            return ""
        return f" of {'' if self._num_rows_is_known else 'about '}{self._num_rows:,}"

    def _seconds_left(self) -> float | None:
        speed = self.numbers["rows_per_second"]
        if self._num_rows is None or speed <= 0:
            return None
        return max(0, self._num_rows - self._outcomes.total()) / speed


def _start_wandb_run(project: str) -> Any:
    """Start a run in the project; None if the environment disables wandb."""
    try:
        refuse_unknown_mode()
        mode = find_mode(without_key="online")
        if mode == "disabled":
            return None
        run = open_run(mode, wanted={"project": project}, defaults={"run_job_type": "build"}, command=user_command())
    except ImportError as error:
        raise UserError("--wandb needs wandb: pip install wandb") from error
    except Exception as error:  # wandb may fail in any way
        way_out = "run `wandb login`, or set WANDB_MODE=offline and `wandb sync` later"
        raise UserError(f"--wandb {printable(project)}: {reason(error)}; {way_out}") from error
    _print_location(run)
    return run


def _print_location(run: Any) -> None:
    if not is_silent():
        print(f"wandb: {location(run)}", file=sys.stderr, flush=True)


def _hours_minutes_seconds(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
