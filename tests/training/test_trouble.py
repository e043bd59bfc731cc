"""Which losses count as spikes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from diptych.training.checkpoint import Progress
from diptych.training.trouble import MAX_IN_A_ROW, MIN_LOSSES, SPIKE_SCORE, judge, spike_score
from tests.training.test_pace import stats


def judged(losses: np.ndarray, edge: int | None = None) -> tuple[Progress, list[int]]:
    """The progress after steps with these losses, and which of them were called wrong.

    edge: the step with which another stage begins.
    """
    progress, called = Progress(), []
    for number, loss in enumerate(losses.tolist()):
        step = replace(stats(number + 1, (0.0,)), loss=loss)
        progress, wrong = judge(progress, step, 1, begins_stage=number == edge)
        if wrong is not None:
            called.append(number)
    return progress, called


def test_a_noisy_falling_loss_gives_no_false_alarm():
    """Noise with the heavy tails (Student's t, 5 degrees of freedom) and the slow drift of real losses."""
    draw = np.random.default_rng(0)
    steps = np.arange(20_000)
    noise = draw.standard_t(5, len(steps)) * 0.05 + np.sin(steps / 300) * 0.05
    falling = 1.5 + 7 * np.exp(-steps / 1500)
    progress, _ = judged(falling + noise)
    assert progress.spikes <= 1e-4 * len(steps)


def test_a_loss_that_jumps_is_told_at_its_first_step_and_when_it_stays_high():
    """After that the high losses are the usual ones."""
    losses = np.concatenate([np.full(200, 2.0), np.full(100, 4.0)]) + np.random.default_rng(1).normal(0, 0.05, 300)
    progress, called = judged(losses)
    assert called == [200, 200 + MAX_IN_A_ROW - 1]
    assert progress.spikes == MAX_IN_A_ROW and progress.spikes_in_a_row == 0


def test_the_losses_of_a_stage_are_not_compared_with_those_of_the_stage_before():
    losses = np.concatenate([np.full(200, 2.0), np.full(100, 4.0)])
    progress, called = judged(losses, edge=200)
    assert called == [] and progress.spikes == 0 and progress.losses == [4.0] * 100


def test_few_losses_and_constant_ones_give_no_alarm():
    assert spike_score(100.0, [1.0] * (MIN_LOSSES - 1)) == 0
    assert spike_score(1.05, [1.0] * MIN_LOSSES) < SPIKE_SCORE < spike_score(1.2, [1.0] * MIN_LOSSES)
