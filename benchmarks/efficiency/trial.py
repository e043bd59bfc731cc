"""Train once, in one process with one thread, and print its curve as a line of JSON.

Usage: python -m benchmarks.efficiency.trial CONFIG.yaml [KEY=VALUE ...]. The curve has, for each evaluation, the
samples seen, the seconds of the processor that training took until then (loading included, evaluation not), and the
numbers. What the run prints goes to stderr.
"""

from __future__ import annotations

import json
import sys
import time
from contextlib import redirect_stdout
from typing import Any

from diptych import cli
from diptych.training.evaluating import Evaluations


class Clock:
    """Processor seconds of training: without the start, and without evaluation."""

    def __init__(self) -> None:
        self.curve: list[dict[str, float]] = []
        self._start, self._measure = Evaluations.__init__, Evaluations.measure
        self._began = self._evaluating = 0.0

    def hook(self) -> None:
        clock = self

        def start(self: Evaluations, *given: Any) -> None:
            clock._start(self, *given)
            clock._began = time.process_time()

        def measure(self: Evaluations, samples_seen: int) -> dict[str, Any]:
            before = time.process_time()
            measured = clock._measure(self, samples_seen)
            seconds = before - clock._began - clock._evaluating
            clock.curve.append({"samples": samples_seen, "seconds": round(seconds, 2), **measured["values"]})
            clock._evaluating += time.process_time() - before
            return measured

        Evaluations.__init__, Evaluations.measure = start, measure  # type: ignore[method-assign,assignment]


def main() -> None:
    clock = Clock()
    clock.hook()
    with redirect_stdout(sys.stderr):
        cli.main(["train", *sys.argv[1:], "machine.loader_workers=0", "tracking.wandb=off"])
    print(json.dumps(clock.curve))


if __name__ == "__main__":
    main()
