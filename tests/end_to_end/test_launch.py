"""The launch scripts, on this machine only: a run is the same, whichever launcher starts its ranks.

The launchers' code is real. Most of them and all ranks are forked from a process that has torch; in one test of
`test_resume.py` everything is started as a person starts it.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess

import pytest
import yaml

from diptych_shards.commands import build
from tests.commands import ROOT, Command, forked_launcher, free_port, start
from tests.end_to_end.conftest import STEPS, losses

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def finish(*nodes: Command) -> None:
    assert [node.wait() for node in nodes] == [0] * len(nodes), "".join(node.said for node in nodes)


def test_two_nodes_of_one_rank_have_the_losses_of_one_node_of_two(recipe, on_two_ranks, tmp_path):
    assert len(losses(on_two_ranks)) == STEPS
    meeting = {"NNODES": "2", "RANKS": "1", "RDZV_ENDPOINT": f"127.0.0.1:{free_port()}"}
    environment = meeting | forked_launcher(tmp_path)
    run = (LAUNCH / "many_nodes.sh", recipe, f"run_dir={tmp_path / 'run'}")
    finish(*(start(tmp_path, *run, environment=environment) for _ in range(2)))
    assert losses(tmp_path / "run") == losses(on_two_ranks)


def test_deepspeed_with_a_hostfile_has_the_losses_of_torchrun(recipe, on_two_ranks, tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    # Each node is started by the test, since there may be no ssh here.
    options = f"--no_ssh --node_rank 0 --master_addr 127.0.0.1 --master_port {free_port()}"
    environment = {"HOSTFILE": str(tmp_path / "hosts"), "DEEPSPEED_OPTIONS": options, **forked_launcher(tmp_path)}
    finish(start(tmp_path, LAUNCH / "deepspeed.sh", recipe, f"run_dir={tmp_path / 'run'}", environment=environment))
    assert losses(tmp_path / "run") == losses(on_two_ranks)


def test_tasks_of_slurm_have_the_losses_of_torchrun_without_a_launcher(warm, recipe, on_two_ranks, tmp_path):
    step = {
        "SLURM_JOB_ID": "4711",
        "SLURM_STEP_ID": "0",
        "SLURM_NTASKS": "2",
        "SLURM_TASKS_PER_NODE": "2",
        "SLURM_JOB_NODELIST": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    tasks = [
        warm.start(
            *("train", recipe, f"run_dir={tmp_path / 'run'}"),
            environment={**step, "SLURM_PROCID": task, "SLURM_LOCALID": task},
        )
        for task in ("0", "1")
    ]
    finish(*tasks)
    assert losses(tmp_path / "run") == losses(on_two_ranks)


def test_several_ranks_name_the_command_that_indexes_foreign_shards(warm, recipe, tmp_path):
    shards = shutil.copytree(recipe.parent / "shards", tmp_path / "shards")
    (shards / "_index" / "00001.tar.index").unlink()
    ranks = warm.start_ranks(2, "train", recipe, f"run_dir={tmp_path / 'run'}", f"data.train={shards}")
    assert ranks[0].wait() == 2
    ranks[1].kill()  # as a launcher does
    (line,) = (ranks[0].said + ranks[1].said).splitlines()
    assert f"1 of 3 shards have no index, such as {shards / '00001.tar'}" in line
    assert f"run `diptych-shards index {shards}` first" in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_without_its_arguments_prints_its_usage(script):
    ended = subprocess.run([script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and not ended.stdout
    (line,) = ended.stderr.splitlines()
    assert line.startswith("usage: ") and f"{script} CONFIG.yaml" in line


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_holds_no_logic_and_ends_in_the_launcher(script):
    *before, last = script.read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    assert last.startswith(("exec torchrun ", "exec deepspeed ")) and last.endswith('diptych train "$@"')
    assert "set -eu" in before and os.access(script, os.X_OK)
    assert len(before) <= 10


def test_the_kubernetes_job_runs_a_command_that_exists():
    (job,) = yaml.safe_load_all((LAUNCH / "build_on_kuberay.yaml").read_text(encoding="utf-8"))
    program, command, *words = job["spec"]["entrypoint"].split()
    assert (program, command) == ("diptych-shards", "build")
    parser = argparse.ArgumentParser()
    build.add_arguments(parser)
    assert parser.parse_args(words).engine == "ray"
    group = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]
    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]


@pytest.mark.parametrize(
    ("script", "last"),
    [
        ("build_on_slurm.sbatch", 'diptych-shards build --engine ray --ray-address "$head" "$@"'),
        ("train_on_slurm.sbatch", 'python -m diptych train "$@"'),
    ],
)
def test_a_slurm_job_is_valid_shell_and_prints_its_usage(script, last):
    path = LAUNCH / script
    assert subprocess.run(["bash", "-n", path], timeout=60).returncode == 0
    ended = subprocess.run(["bash", path], capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0 and "usage: sbatch" in ended.stderr
    assert path.read_text().splitlines()[-1].endswith(last)
