import subprocess
import sys
from pathlib import Path

import pytest
import torch

from diptych.config.load import ConfigError, load_config
from diptych.run_dir import RunDir
from diptych.verbs.train import settle_precision
from diptych.world import World

HOLD = """
import sys, time
from pathlib import Path
from diptych.config.load import load_config
from diptych.run_dir import RunDir
run = RunDir(Path(sys.argv[2]))
run.prepare(load_config([Path(sys.argv[1])], [f"run_dir={sys.argv[2]}"]))
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def loaded(tmp_path):
    file = tmp_path / "my.yaml"
    file.write_text("data: {train: shards}\ntraining: {total_samples: 1000, global_batch_size: 10}")

    def loaded(*overrides):
        return load_config([file], [f"run_dir={tmp_path / 'run'}", *overrides])

    return loaded


def test_a_directory_that_cannot_be_made_is_named(loaded):
    with pytest.raises(ConfigError, match=r"^run_dir /proc/nope/run cannot be made \(.*\); set run_dir to"):
        RunDir(Path("/proc/nope/run")).prepare(loaded())


def test_the_directory_says_what_was_run_and_with_what(loaded):
    run = RunDir(Path(loaded().config.run_dir))
    run.prepare(loaded())
    run.record_start(loaded().config)
    assert run.read_config() == loaded().config
    assert "torch==" in (run.path / "environment.txt").read_text()


@pytest.mark.parametrize(
    ("written", "said"),
    [
        (b"data: [", "expected the node content"),
        (b"\xff\xfe", "can't decode byte 0xff"),
        (b"- data", "contains a list; expected a mapping"),
        (
            b"run_dir: runs/my\ndata: {train: shards}\ntraining: {total_samples: many}",
            "training.total_samples is 'many'",
        ),
    ],
)
def test_a_damaged_config_of_a_run_is_one_line(written, said, tmp_path):
    (tmp_path / "config.yaml").write_bytes(written)
    with pytest.raises(ConfigError) as refused:
        RunDir(tmp_path).read_config()
    assert str(refused.value).startswith(f"{tmp_path}/config.yaml: is damaged: ")
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_an_equal_run_resumes_even_if_it_is_executed_differently(loaded):
    run = RunDir(Path(loaded().config.run_dir))
    run.prepare(loaded())
    otherwise = loaded("machine.loader_workers=0", "tracking.wandb=off", "checkpoint.keep=5", "data.train=moved")
    run.prepare(otherwise)
    assert run.read_config() == loaded().config  # until all checks have passed
    run.record_start(otherwise.config)
    assert run.read_config() == otherwise.config


def test_a_mixture_may_move_but_not_change_its_weights_or_captions(loaded):
    def mixture(place, weight, captions):
        return loaded(f"data.train=[{{shards: {place}, weight: {weight}, captions: {captions}}}]")

    run = RunDir(Path(loaded().config.run_dir))
    run.prepare(mixture("a", 1, "{alt: 1}"))
    (run.checkpoints / "step_00000001").mkdir()
    run.prepare(mixture("moved", 1, "{alt: 1}"))
    for other in (mixture("a", 2, "{alt: 1}"), mixture("a", 1, "{txt: 1}"), loaded("data.train=a")):
        with pytest.raises(ConfigError, match=r"a run whose data.train has the weights and captions 1.0 {'alt': 1.0}"):
            run.prepare(other)


def test_another_run_is_refused_naming_every_differing_key(loaded):
    run = RunDir(Path(loaded().config.run_dir))
    run.prepare(loaded())
    (run.checkpoints / "step_00000001.partial").mkdir()
    run.prepare(loaded("training.seed=5"))  # nothing was saved yet, for the first save did not end
    (run.checkpoints / "step_00000001").mkdir()
    before = run.config_file.read_bytes()
    with pytest.raises(ConfigError) as caught:
        run.prepare(loaded("training.seed=4", "optimizer.beta2=0.9"))
    lines = str(caught.value).splitlines()
    assert any("training.seed = 0, this one has 4" in line for line in lines)
    assert any("optimizer.beta2 = 0.98, this one has 0.9" in line for line in lines)
    assert len(lines) == 3 and "set run_dir" in lines[2]
    assert run.config_file.read_bytes() == before


def test_the_precision_of_auto_is_recorded_and_kept_when_the_run_resumes_elsewhere(loaded):
    run, world = RunDir(Path(loaded().config.run_dir)), World(device=torch.device("cpu"))
    assert loaded().config.training.precision == "auto"
    settled = settle_precision(loaded(), world)
    assert settled.config.training.precision == "fp32" and "cpu" in settled.source_of("training.precision")
    for_a_gpu = settle_precision(loaded("machine.gpu_memory_gib=79"), world)
    assert for_a_gpu.config.training.precision == "fp32", "it starts here"
    run.prepare(loaded("training.precision=bf16"))  # as on a GPU
    assert settle_precision(loaded(), world).config.training.precision == "fp32", "nothing was saved yet"
    (run.checkpoints / "step_00000001").mkdir()
    settled = settle_precision(loaded(), world)
    assert settled.config.training.precision == "bf16" and "started with" in settled.source_of("training.precision")
    run.prepare(settled)
    with pytest.raises(ConfigError, match="training.precision = 'bf16', this one has 'fp32'"):
        run.prepare(settle_precision(loaded("training.precision=fp32"), world))


def test_one_process_at_a_time_trains_in_a_directory(loaded, tmp_path):
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path / "my.yaml", tmp_path / "run"], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    refusal = f"{tmp_path / 'run'}: process {holder.pid} on .* is training here; .* set run_dir to a new directory"
    with pytest.raises(ConfigError, match=refusal):
        RunDir(tmp_path / "run").prepare(loaded())
    holder.kill()
    holder.communicate()
    RunDir(tmp_path / "run").prepare(loaded())


def test_a_directory_with_checkpoints_of_unknown_origin_is_refused(loaded, tmp_path):
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds checkpoints but no config.yaml"):
        RunDir(tmp_path / "run").prepare(loaded())
