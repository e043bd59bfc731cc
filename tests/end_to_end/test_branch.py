"""A run that branches from a checkpoint of another one, with Muon and a constant learning rate."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from diptych.config.load import ConfigError, load_config
from diptych.errors import UserError
from diptych.plan.dry_run import describe
from diptych.training import branch
from diptych.training.branch import check_initial_checkpoint
from diptych.training.initial_weights import check_initial_weights, defaults_from_initial_weights
from diptych.verbs.train import STOPPED
from diptych.world import World
from tests.end_to_end.conftest import losses, outcome

BATCH, AT = 32, 10
STABLE = ("optimizer.name=muon", "optimizer.schedule=wsd", "checkpoint.keep=9")


@pytest.fixture(scope="module")
def trunk(warm, recipe, tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("runs") / "trunk"
    command = warm.start("train", recipe, f"run_dir={run_dir}", *STABLE)
    assert command.wait() == 0, command.said
    return run_dir


def initial(trunk: Path) -> str:
    return f"initial_checkpoint={trunk / 'checkpoints' / f'step_{AT:08d}'}"


def test_a_branch_with_the_settings_of_the_trunk_stopped_and_resumed_ends_with_its_bits(warm, recipe, trunk, tmp_path):
    run_dir = tmp_path / "branch"
    command = warm.start("train", recipe, f"run_dir={run_dir}", *STABLE, initial(trunk))
    command.wait_until(lambda: (run_dir / "metrics.jsonl").exists() and len(losses(run_dir)) > 3)
    command.signal_group(signal.SIGTERM)
    assert command.wait() == STOPPED
    command = warm.start("train", recipe, f"run_dir={run_dir}", *STABLE, initial(trunk))
    assert command.wait() == 0, command.said
    assert "\n  Muon updates " in command.said
    assert outcome(run_dir).files == outcome(trunk).files
    assert losses(run_dir) == [each for each in losses(trunk) if each[0] > AT * BATCH]


def test_a_branch_follows_the_trunk_until_its_cool_down_changes_the_rate(warm, recipe, trunk, tmp_path):
    run_dir, steps = tmp_path / "short", AT + 8
    shorter = (f"training.total_samples={steps * BATCH}", f"optimizer.cooldown_samples={4 * BATCH}")
    command = warm.start("train", recipe, f"run_dir={run_dir}", *STABLE, initial(trunk), *shorter)
    assert command.wait() == 0, command.said
    ours, theirs = losses(run_dir), dict(losses(trunk))
    assert [seen for seen, _ in ours] == [step * BATCH for step in range(AT + 1, steps + 1)]
    # The first step of the cool-down has the whole rate, and the loss of a step is that of the weights before it.
    equal = [seen // BATCH for seen, loss in ours if loss == theirs[seen]]
    assert equal == list(range(AT + 1, steps - 1))


@pytest.mark.parametrize(
    ("overrides", "complaint"),
    [
        (
            ["data.shuffle_window=7", "training.seed=3", "optimizer.name=adamw", "optimizer.learning_rate=1e-5"],
            r"does not fit these settings: data.shuffle_window \(there \d+, here 7\), training.seed "
            r"\(there 0, here 3\), optimizer.name \(there 'muon', here 'adamw'\); set them as there",
        ),
        (
            [f"training.total_samples={AT * BATCH + BATCH - 1}"],
            "has seen 320 samples, and .* is 351",
        ),
        (
            ["model.initial_weights=other/model"],
            "initial_checkpoint .* and model.initial_weights other/model both name the weights to start from",
        ),
        (
            ["model.image.initial_weights=other/model"],
            "initial_checkpoint .* and model.image.initial_weights other/model both name the weights to start from",
        ),
    ],
)
def test_a_branch_that_the_state_does_not_fit_is_refused_in_one_line(recipe, trunk, tmp_path, overrides, complaint):
    config = load_config([recipe], [f"run_dir={tmp_path}", *STABLE, initial(trunk), *overrides]).config
    with pytest.raises(ConfigError, match=complaint):
        check_initial_checkpoint(config)


def test_a_branch_may_repeat_the_initial_weights_of_its_trunk_which_are_not_read(recipe, trunk, tmp_path, monkeypatch):
    words = (f"run_dir={tmp_path}", *STABLE, initial(trunk), "model.initial_weights=removed")
    loaded = load_config([recipe], words)
    monkeypatch.setattr(branch, "config_of_checkpoint", lambda _: loaded.config)
    check_initial_checkpoint(loaded.config)
    check_initial_weights(loaded.config)
    needed = ("data.train=x", "training.total_samples=800", "training.global_batch_size=32")
    taken = defaults_from_initial_weights(load_config([], [*words, *needed]))
    assert taken["model"]["embed_dim"] == 32, "the model of the trunk"


def test_a_cool_down_that_begins_before_the_checkpoint_is_noted_in_a_dry_run(recipe, trunk, tmp_path):
    def noted(cooldown: int) -> str:
        words = (f"training.total_samples={(AT + 4) * BATCH}", f"optimizer.cooldown_samples={cooldown * BATCH}")
        config = load_config([recipe], [f"run_dir={tmp_path}", *STABLE, initial(trunk), *words])
        return describe(config, World(0, 0, 1))

    assert "the cool-down would have begun" not in noted(4) and "\noptimizer Muon updates " in noted(4)
    assert (
        "has seen 320 samples, and the cool-down would have begun after 288, so the learning rate jumps to where it "
        "would be by now; set optimizer.cooldown_samples to 128 or less, or training.total_samples to 480 or more"
    ) in noted(5)


def test_a_run_directory_is_not_taken_for_a_checkpoint(recipe, trunk, tmp_path):
    config = load_config([recipe], [f"run_dir={tmp_path}", f"initial_checkpoint={trunk}"]).config
    with pytest.raises(UserError, match=r"is not a checkpoint \(it has no manifest.json\); name one, such as"):
        check_initial_checkpoint(config)
