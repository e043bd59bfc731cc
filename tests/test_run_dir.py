from pathlib import Path

import pytest

from diptych.config.load import ConfigError, load_config
from diptych.run_dir import RunDir


@pytest.fixture
def loaded(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("data: {train: shards}\ntraining: {total_samples: 1000, global_batch_size: 10}")

    def loaded(*overrides):
        return load_config([file], [f"run_dir={tmp_path / 'run'}", *overrides])

    return loaded


def test_the_directory_says_what_was_run_and_with_what(loaded):
    run = RunDir(Path(loaded().config.run_dir))
    run.prepare(loaded())
    assert run.read_config() == loaded().config
    assert "torch==" in (run.path / "environment.txt").read_text()


def test_an_equal_run_goes_on_and_may_be_carried_out_otherwise(loaded):
    run = RunDir(Path(loaded().config.run_dir))
    run.prepare(loaded())
    run.prepare(loaded("machine.loader_workers=0", "tracking.wandb=off", "checkpoint.keep=5"))
    assert run.read_config().checkpoint.keep == 5


def test_another_run_is_refused_naming_every_differing_key(loaded):
    run = RunDir(Path(loaded().config.run_dir))
    run.prepare(loaded())
    before = run.config_file.read_bytes()
    with pytest.raises(ConfigError) as caught:
        run.prepare(loaded("training.seed=4", "optimizer.beta2=0.9"))
    lines = str(caught.value).splitlines()
    assert any("training.seed = 0, this one has 4" in line for line in lines)
    assert any("optimizer.beta2 = 0.98, this one has 0.9" in line for line in lines)
    assert len(lines) == 3 and "set run_dir" in lines[2]
    assert run.config_file.read_bytes() == before


def test_a_directory_with_checkpoints_of_unknown_origin_is_refused(loaded, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds checkpoints but no config.yaml"):
        RunDir(tmp_path / "run").prepare(loaded())
