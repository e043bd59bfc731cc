"""The numbers about a run's speed, with a clock that the test sets."""

from __future__ import annotations

from typing import Any

import pytest

from diptych.training import pace as pace_module
from diptych.training.pace import Pace
from diptych.training.step_stats import StepStats
from diptych.training.tallies import NAMES


class Clock:
    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(pace_module, "time", clock)
    return clock


def stats(samples_seen: int, waits: tuple[float, ...], forward: float = 1.0) -> StepStats:
    others: dict[str, Any] = dict.fromkeys(("loss", "learning_rate", "logit_scale", "gradient_norm"), 1.0)
    return StepStats(
        samples_seen=samples_seen,
        **others,
        tower_gradient_norms={},
        update_ratios={},
        is_skipped=False,
        bad_ranks=(),
        similarities={},
        tallies=tuple(500 if name == "bytes_read" else 0 for name in NAMES),
        waits=waits,
        seconds={"forward": forward, "backward": 2.0},
    )


def take_steps(pace: Pace, clock: Clock, durations: list[float]) -> None:
    for seconds in durations:
        clock.now += seconds
        pace.step_is_done()


def test_speed_waits_and_phases_are_those_between_two_measurements(clock):
    pace = Pace(20, 7.0)
    take_steps(pace, clock, [4.0, 6.0])
    # A roll-back has passed over some batches between the two.
    speed = pace.measure([stats(60, (1.0, 0.0, 2.0)), stats(180, (1.0, 3.0, 0.5), forward=2.0)])
    assert speed["samples_per_second"] == 2 * 20 / 10
    assert speed["bytes_read_per_second"] == 2 * 500 / 10
    # The rank that waited longest delayed the others: 2 s in the first step, 3 s in the second.
    assert speed["data_wait_fraction"] == (2 + 3) / 10
    assert speed["data_wait_fraction_of_mean_rank"] == (2 + 3 + 2.5) / 3 / 10
    assert speed["data_wait_slowest_rank"] == 1
    assert (speed["forward_seconds"], speed["backward_seconds"]) == (1.5, 2.0)
    assert pace.seconds == 7 + 10
    clock.now += 5
    assert pace.measure([stats(200, (0.0,) * 3)])["samples_per_second"] == 20 / 5


def test_percentiles_are_of_the_steps_and_not_of_the_saves_between_them(clock):
    pace = Pace(1, 0.0)
    for number in range(20):
        take_steps(pace, clock, [3.0 if number == 7 else 1.0])
        clock.now += 60  # a save
        pace.pause_is_over()
    speed = pace.measure([stats(20, (0.0,))])
    assert speed["step_seconds_p50"] == 1
    assert 1 < speed["step_seconds_p95"] <= 3
