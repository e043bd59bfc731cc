"""Record the numbers of a run in `metrics.jsonl`, for wandb, which reads that file, and in TensorBoard.

The x-axis is samples seen. A tracker that fails never stops or delays training.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from diptych.config.schema import RunConfig
from diptych.files import commit_file, flush
from diptych.run_dir import RunDir
from diptych.terminal import counted
from diptych.training.tracker import FINISH_SECONDS, TrackedRun, Tracker, remembered, tracked_run
from diptych.wandb_run import is_disabled

logger = logging.getLogger(__name__)

SAMPLES_SEEN = "samples_seen"
PANELS: dict[str, tuple[str, ...]] = {
    "learning": ("loss", "token_loss", "i2t_accuracy", "t2i_accuracy")
    + ("positive_similarity", "hardest_negative_similarity"),
    "health": ("learning_rate", "logit_scale", "logit_scale_at_limit", "gradient_norm")
    + (
        "image_gradient_norm",
        "text_gradient_norm",
        "image_update_ratio",
        "text_update_ratio",
        "skipped_steps",
        "loss_spikes",
    ),
    "speed": ("samples_per_second", "teraflops_per_rank", "mfu", "gpu_memory_gib")
    + ("step_seconds_p50", "step_seconds_p95", "forward_seconds", "backward_seconds", "update_seconds")
    + ("data_wait_fraction", "data_wait_fraction_of_mean_rank", "data_wait_slowest_rank")
    + ("save_stall_seconds", "save_seconds", "save_bytes"),
    "data": ("rejected_samples", "epoch", "stage", "bytes_read_per_second", "cache_hit_fraction"),
}
"""Section of the dashboard → the metrics that it plots over samples seen."""
SHARE_OF = "share_of_"
EPOCHS_OF = "epochs_of_"
DATA_PREFIXES = ("rejected_", SHARE_OF, EPOCHS_OF)
"""Beginnings of the names of further metrics of the section `data`: one for each reason, one for each source."""

Values = dict[str, float]
Sink = Callable[[Values], None]


class Metrics:
    """Writes the record of a run; only rank 0 constructs it.

    samples_seen: where the run resumes. Lines with more samples were written after the checkpoint; since their steps
    will be repeated, they are moved to `metrics_redone.jsonl`.
    """

    def __init__(self, file: Path, config: RunConfig, *, samples_seen: int, tracker_id: str):
        _set_aside_lines_after(file, samples_seen)
        self._path = file
        self._file = file.open("ab", buffering=0)
        self._unwritten = b""
        # A disk may take minutes to make lines durable, and no step waits for it.
        self._is_written, self._is_over = threading.Event(), False
        self._flusher = threading.Thread(target=self._flush_lines, daemon=True)
        self._flusher.start()
        self._sinks: dict[str, Sink] = {}
        self._finishers: list[Callable[[], None]] = []
        if not is_disabled(config.tracking.wandb):
            run = RunDir(file.parent)
            tracked = tracked_run(run, config, tracker_id)
            if samples_seen:  # otherwise the run starts over, and must not append to the wandb run of the last try
                tracked = replace(tracked, known=remembered(run))
            self._start_wandb(replace(tracked, record=str(file), offset=file.stat().st_size, process=os.getpid()))
        if config.tracking.tensorboard:
            self._start("tensorboard", lambda: self._start_tensorboard(file.parent))

    def log(self, values: Values) -> None:
        """Record a logged step; `values` must contain SAMPLES_SEEN."""
        self._write({**values, "time": round(time.time(), 3)})
        self._sink(values)

    def evaluation(self, samples_seen: int, values: Values, **details: Any) -> None:
        """Record the numbers of an evaluation; the names in `values` are such as `unseen/top1`."""
        self.event("evaluation", samples_seen=samples_seen, values=values, **details)
        self._sink(evaluated(samples_seen, values))

    def _sink(self, values: Values) -> None:
        for name, sink in list(self._sinks.items()):
            try:
                sink(values)
            except Exception as error:  # a tracker may fail in any way; the run goes on
                logger.warning("%s failed and is left out from here on: %s", name, error)
                del self._sinks[name]

    def event(self, name: str, **details: Any) -> None:
        """Record an event: a start, the picture of the first batch, a save, an end."""
        self._write({"event": name, "time": round(time.time(), 3), **details})

    def close(self) -> None:
        self._write_what_is_left()
        if self._unwritten:
            num_lines = self._unwritten.count(b"\n")
            logger.warning("%s lacks its last %s: the disk has no room", self._path, counted(num_lines, "line"))
        self._is_over = True
        self._is_written.set()
        self._flusher.join(FINISH_SECONDS)
        if self._flusher.is_alive():
            logger.warning("%s may lack its last lines: the disk does not answer", self._path)
        else:
            self._file.close()
        threads = [threading.Thread(target=finish, daemon=True) for finish in self._finishers]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(FINISH_SECONDS + 2)
            if thread.is_alive():
                logger.warning("a tracker did not finish within %d s and is left behind", FINISH_SECONDS)

    def _write(self, line: dict[str, Any]) -> None:
        was_behind = bool(self._unwritten)
        self._unwritten += json.dumps(line).encode() + b"\n"
        error = self._write_what_is_left()
        if error is not None and not was_behind:
            logger.warning(
                "%s cannot be written (%s); its lines are kept and written once they can be", self._path, error.strerror
            )

    def _write_what_is_left(self) -> OSError | None:
        """Write to the record; bytes for which the disk has no room stay in memory."""
        try:
            while self._unwritten:
                self._unwritten = self._unwritten[self._file.write(self._unwritten) :]
                self._is_written.set()
        except OSError as error:
            return error
        return None

    def _flush_lines(self) -> None:
        """Make what was written durable, in a thread of its own, until the record is closed."""
        is_last = False
        while not is_last:
            self._is_written.wait()
            self._is_written.clear()
            is_last = self._is_over  # read before the flush, which then covers all lines
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                line = "%s cannot be made durable (%s); if the machine fails, its lines from here on may be lost"
                logger.warning(line, self._path, error.strerror)
                return

    def _start(self, name: str, start: Callable[[], Sink]) -> None:
        try:
            self._sinks[name] = start()
        except Exception as error:  # see log()
            logger.warning("%s could not start and is left out: %s", name, error)

    def _start_wandb(self, run: TrackedRun) -> None:
        try:
            self._finishers.append(Tracker(run).close)
        except OSError as error:  # no process could be started
            logger.warning("wandb could not start and is left out: %s", error)

    def _start_tensorboard(self, folder: Path) -> Sink:
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(folder / "tensorboard"))
        self._finishers.append(writer.close)

        def sink(values: Values) -> None:
            for name, value in in_panels(values).items():
                writer.add_scalar(name, value, int(values[SAMPLES_SEEN]))

        return sink


def evaluated(samples_seen: int, values: Values) -> Values:
    """The numbers of an evaluation as dashboards show them, with the names that `diptych evaluate` gives them there."""
    return {SAMPLES_SEEN: samples_seen, **{f"evaluation/{name}": value for name, value in values.items()}}


def in_panels(values: Values) -> Values:
    """Add the section of the dashboard to each name: `loss` becomes `learning/loss`; samples seen keeps its name."""
    section_of = {metric: section for section, metrics in PANELS.items() for metric in metrics}
    section_of |= {name: "data" for name in values if name.startswith(DATA_PREFIXES)}
    return {f"{section_of[name]}/{name}" if name in section_of else name: value for name, value in values.items()}


def _set_aside_lines_after(file: Path, samples_seen: int) -> None:
    """Move lines with more samples than `samples_seen`, or cut short by a kill, to `metrics_redone.jsonl`."""
    if not file.exists():
        return
    kept: list[bytes] = []
    redone: list[bytes] = []
    for line in file.read_bytes().splitlines():
        (kept if _is_before(line, samples_seen) else redone).append(line + b"\n")
    if not redone:
        return
    # Write the copy first: a kill in between then duplicates lines instead of losing them.
    aside = file.with_name(f"{file.stem}_redone.jsonl")
    with aside.open("ab") as there:
        there.writelines(redone)
    flush(aside)
    commit_file(file, b"".join(kept))


def _is_before(line: bytes, samples_seen: int) -> bool:
    try:
        return bool(json.loads(line).get(SAMPLES_SEEN, 0) <= samples_seen)
    except (ValueError, AttributeError, TypeError):
        return False
