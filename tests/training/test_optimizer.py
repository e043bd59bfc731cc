import math
from dataclasses import replace

import pytest

from diptych.config.schema import OptimizerConfig
from diptych.training.optimizer import learning_rate_at


def open_clips_cosine(step, steps, warmup, base):
    """open_clip 3.3's schedule, step by step, written out."""
    if step < warmup:
        return base * (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) * base


@pytest.mark.parametrize(("steps", "warmup"), [(50, 7), (10, 0), (1000, 999)])
def test_the_schedule_in_samples_is_open_clips_in_steps(steps, warmup):
    batch = 32
    config = OptimizerConfig(learning_rate=5e-4, warmup_samples=warmup * batch)
    for step in range(steps):
        ours = learning_rate_at(step * batch, batch, steps * batch, config)
        assert ours == pytest.approx(open_clips_cosine(step, steps, warmup, 5e-4), rel=1e-12)


def rates(config, total, batch=10):
    return {seen: learning_rate_at(seen, batch, total, config) for seen in range(0, total, batch)}


def test_wsd_warms_up_stays_and_cools_down_as_one_minus_a_square_root():
    config = OptimizerConfig(learning_rate=2.0, schedule="wsd", warmup_samples=100, cooldown_samples=200)
    found = rates(config, 1000)
    assert [found[seen] for seen in (0, 40, 90)] == pytest.approx([0.2, 1.0, 2.0])
    assert {found[seen] for seen in range(90, 801, 10)} == {2.0}, "the first step of the cool-down is not cooler"
    for seen in range(800, 1000, 10):
        assert found[seen] == pytest.approx(2.0 * (1 - ((seen - 800) / 200) ** 0.5))
    assert 0 < found[990] < 0.06


def test_rsqrt_falls_with_the_square_root_of_the_samples_and_cools_down_too():
    config = OptimizerConfig(learning_rate=2.0, schedule="rsqrt", warmup_samples=100, cooldown_samples=200)
    found = rates(config, 1000)
    assert found[90] == found[100] == 2.0
    for seen in range(100, 801, 10):
        assert found[seen] == pytest.approx(2.0 * (100 / seen) ** 0.5)
    for seen in range(800, 1000, 10):
        assert found[seen] == pytest.approx(2.0 * (100 / seen) ** 0.5 * (1 - ((seen - 800) / 200) ** 0.5))


@pytest.mark.parametrize("schedule", ["wsd", "rsqrt"])
def test_before_the_cool_down_the_length_of_the_run_does_not_matter(schedule):
    config = OptimizerConfig(schedule=schedule, warmup_samples=100)
    trunk, branch = rates(config, 5000), rates(replace(config, cooldown_samples=300), 1300)
    assert all(branch[seen] == trunk[seen] for seen in range(0, 1001, 10)), "to the last bit"
