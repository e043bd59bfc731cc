"""The launch scripts, on this machine only: a run is the same, whichever launcher starts its ranks.

The launchers' code is real. Most of them and all ranks are forked from a process that has torch; with NIGHTLY=1, one
test of `test_resume.py` starts everything as a person starts it, and the test of a lost node also kills a rank alone.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import pytest

from diptych.torchrun import LOST_MACHINES
from tests.commands import PATIENCE_SECONDS, ROOT, Command, forked_launcher, free_port, lint, start
from tests.end_to_end.conftest import STEPS, losses, outcome
from tests.end_to_end.test_resume import after_some_steps
from tests.warm import Warm

LAUNCH = ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
LOST_SOONER = {"PET_RDZV_CONF": "keep_alive_interval=1,keep_alive_max_attempt=5"}
"""Environment of torchrun, which takes a node for lost after 5 seconds then, not 15."""


def listens(endpoint: str) -> bool:
    host, _, port = endpoint.partition(":")
    with socket.socket() as connection:
        return connection.connect_ex((host, int(port))) == 0


def finish(*nodes: Command) -> None:
    """Wait until all have ended, or one has failed: the others might wait for it."""
    for node in nodes:
        node.wait_until(lambda: any(each.poll() for each in nodes))
    assert [node.poll() for node in nodes] == [0] * len(nodes), "".join(node.said for node in nodes)


class Node:
    """A machine that runs many_nodes.sh with one rank; all nodes are this machine."""

    def __init__(self, folder: Path, endpoint: str, *words: object):
        folder.mkdir()
        self._folder = folder
        self._run = (LAUNCH / "many_nodes.sh", *words)
        meeting = {"NNODES": "2", "RANKS": "1", "RDZV_ENDPOINT": endpoint}
        self._environment = meeting | LOST_SOONER | forked_launcher(folder)
        self.start()

    def start(self) -> None:
        self.command = start(self._folder, *self._run, environment=self._environment)

    def pid_of(self, process: str) -> int:
        return int((self._folder / f"started_{process}").read_text().split()[-1])

    def kill(self) -> None:
        """Kill the launcher and its rank at once, as a power failure does."""
        for process in ("launcher", "rank"):
            os.kill(self.pid_of(process), signal.SIGKILL)
        self.command.kill()
        self.command.wait()


def two_nodes(folder: Path, *words: object) -> tuple[Node, Node]:
    """The node at whose port both meet, and the other. On one machine, the first that starts opens the port."""
    endpoint = f"127.0.0.1:{free_port()}"
    meeting = Node(folder / "meeting", endpoint, *words)
    meeting.command.wait_until(lambda: listens(endpoint))
    return meeting, Node(folder / "other", endpoint, *words)


def test_a_lost_node_costs_only_the_steps_since_the_last_checkpoint(recipe, on_two_ranks, tmp_path):
    """And two nodes compute what one does."""
    run_dir = tmp_path / "run"
    meeting, other = two_nodes(tmp_path, recipe, f"run_dir={run_dir}")
    after_some_steps(meeting.command, run_dir, 6)
    if os.environ.get("NIGHTLY"):
        os.kill(other.pid_of("rank"), signal.SIGKILL)  # the launchers start both ranks again
        after_some_steps(meeting.command, run_dir, 2)
    other.kill()
    assert len(losses(run_dir)) < STEPS, "the run ended before it lost the node"
    other.start()  # as a scheduler does, or a person
    finish(meeting.command, other.command)
    assert outcome(run_dir) == outcome(on_two_ranks)


def test_without_the_node_where_they_meet_launchers_end_with_a_line_and_the_same_commands_go_on(
    recipe, on_two_ranks, tmp_path
):
    run_dir = tmp_path / "run"
    meeting, other = two_nodes(tmp_path, recipe, f"run_dir={run_dir}")
    after_some_steps(meeting.command, run_dir, 6)
    meeting.kill()
    assert other.command.wait() == LOST_MACHINES
    last = other.command.said.splitlines()[-1]
    assert "lost the other machines" in last and last.endswith("the same command goes on from the last checkpoint")
    for node in (meeting, other):
        node.start()
    finish(meeting.command, other.command)
    assert outcome(run_dir) == outcome(on_two_ranks)


def test_a_mistake_that_one_machine_prints_ends_the_others_with_its_status(recipe, tmp_path):
    meeting, other = two_nodes(tmp_path, recipe, "run_dir=run", f"data.train={tmp_path}/nowhere")
    assert [node.command.wait() for node in (meeting, other)] == [2, 2]
    said = meeting.command.said + other.command.said
    assert said.count("nowhere") == 1 and "other machines" not in said, said


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


@pytest.mark.parametrize("name", ["USR1", "USR2"])
def test_the_launcher_waits_through_a_signal_that_its_ranks_answer(name, tmp_path):
    rank = ("--no-python", "sh", "-c", f"kill -{name} $PPID; sleep 0.2; exit 3")
    with (tmp_path / "said").open("w") as said, open(os.devnull) as nothing:
        words = ["--standalone", "--nproc-per-node", "1", *rank]
        launcher = Warm("diptych.torchrun:main", words, files=(nothing.fileno(), said.fileno(), said.fileno()))
        assert launcher.wait(PATIENCE_SECONDS) == 3, (tmp_path / "said").read_text()


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_without_its_arguments_prints_its_usage(script):
    ended = subprocess.run([script], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2 and not ended.stdout
    (line,) = ended.stderr.splitlines()
    assert line.startswith("usage: ") and f"{script} CONFIG.yaml" in line


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_holds_no_logic_and_ends_in_the_launcher(script):
    *before, last = script.read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    assert last.startswith(("exec python -m diptych.torchrun ", "exec deepspeed ")) and last.endswith(
        'diptych train "$@"'
    )
    assert "set -eu" in before and os.access(script, os.X_OK)
    assert len(before) <= 10


def test_no_script_has_a_fault_that_shellcheck_finds():
    lint("shellcheck", *LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch"), ROOT / ".ci" / "run", ROOT / ".ci" / "wheel")


@pytest.mark.parametrize("script", sorted(LAUNCH.glob("*.sbatch")), ids=lambda script: script.name)
def test_a_slurm_job_without_its_arguments_prints_its_usage(script):
    ended = subprocess.run(["bash", script], capture_output=True, text=True, timeout=60)
    assert ended.returncode != 0 and f"usage: sbatch {script} " in ended.stderr
