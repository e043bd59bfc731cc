"""Which losses count as spikes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from diptych.training.checkpoint import Progress
from diptych.training.trouble import MAX_IN_A_ROW, MIN_LOSSES, SPIKE_SCORE, judge, spike_score
from tests.training.test_pace import stats


def judged(losses: np.ndarray) -> tuple[Progress, list[int]]:
    """The progress after steps with these losses, and which of them were called wrong."""
    progress, called = Progress(), []
    for number, loss in enumerate(losses.tolist()):
        progress, wrong = judge(progress, replace(stats(number + 1, (0.0,)), loss=loss), 1)
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


def test_few_losses_and_constant_ones_give_no_alarm():
    assert spike_score(100.0, [1.0] * (MIN_LOSSES - 1)) == 0
    assert spike_score(1.05, [1.0] * MIN_LOSSES) < SPIKE_SCORE < spike_score(1.2, [1.0] * MIN_LOSSES)
