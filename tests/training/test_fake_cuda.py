"""What a machine without a GPU can show of the way on CUDA: devices, types, shapes and collectives of every stage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("stage", "precision"), [(0, "bf16"), (1, "bf16"), (2, "bf16"), (3, "bf16"), (1, "fp32")], ids=str
)
def test_a_step_save_and_restore_keep_everything_on_cuda(stage, precision):
    command = [sys.executable, "-m", "tests.training.fake_cuda", str(stage), precision]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["parameters"] == told["moments"] == ["cuda:0"]
    assert told["saved"] == ["cpu"] and told["has_all_weights"]
    collectives = told["collectives"]
    assert collectives["_allgather_base_"] >= 2, "the texts of two steps"
    assert collectives["_reduce_scatter_base_"] == 2, "and the gradients of their features"
    assert collectives["allreduce_"] >= 2 and collectives["broadcast_"] > 0
    assert told["varlen_attentions"] == (2 if precision == "bf16" else 0), "one layer, two steps"
