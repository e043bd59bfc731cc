"""The launch scripts, on this machine alone: however its ranks are found, a run is the same run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.runs import STEPS, free_port, losses, make_toy

LAUNCH = Path(__file__).parents[1] / "launch"
TIMEOUT_SECONDS = 120
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def start(script: str, *words: object, **environment: object) -> subprocess.Popen[str]:
    programs = Path(sys.executable).parent
    own = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu", "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    return subprocess.Popen(
        [str(LAUNCH / script), *map(str, words)],
        env=os.environ | own | {name: str(value) for name, value in environment.items()},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(*nodes: subprocess.Popen[str]) -> None:
    try:
        for node in nodes:
            said, _ = node.communicate(timeout=TIMEOUT_SECONDS)
            assert node.returncode == 0, said
    finally:
        for node in nodes:
            node.terminate()


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def on_one_node(config) -> dict[int, float]:
    """Samples seen → loss, of two ranks on one node."""
    run_dir = config.parent / "one_node"
    finish(start("one_node.sh", config, f"run_dir={run_dir}", RANKS=2))
    assert len(losses(run_dir)) == STEPS
    return losses(run_dir)


def test_two_nodes_of_one_rank_have_the_losses_of_one_node_of_two(config, on_one_node, tmp_path):
    meeting = {"NNODES": 2, "RANKS": 1, "RDZV_ENDPOINT": f"127.0.0.1:{free_port()}"}
    finish(*(start("many_nodes.sh", config, f"run_dir={tmp_path}", **meeting) for _ in range(2)))
    assert losses(tmp_path) == on_one_node


def test_deepspeed_with_a_hostfile_has_the_losses_of_torchrun(config, on_one_node, tmp_path):
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    # Each node started by hand, since there may be no ssh here.
    options = f"--no_ssh --node_rank 0 --master_addr 127.0.0.1 --master_port {free_port()}"
    run = start(
        "deepspeed.sh",
        config,
        f"run_dir={tmp_path / 'run'}",
        HOSTFILE=tmp_path / "hosts",
        DEEPSPEED_OPTIONS=options,
    )
    finish(run)
    assert losses(tmp_path / "run") == on_one_node


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_called_without_what_it_needs_tells_its_usage(script):
    ended = subprocess.run([script], capture_output=True, text=True, timeout=TIMEOUT_SECONDS)
    assert ended.returncode == 2 and not ended.stdout
    (line,) = ended.stderr.splitlines()
    assert line.startswith("usage: ") and f"{script} CONFIG.yaml" in line


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.name)
def test_a_script_holds_no_logic_and_ends_in_the_launcher(script):
    *before, last = script.read_text(encoding="utf-8").replace("\\\n", "").splitlines()
    assert last.startswith(("exec torchrun ", "exec deepspeed ")) and last.endswith('diptych train "$@"')
    assert "set -eu" in before and os.access(script, os.X_OK)
    assert len(before) <= 10
