"""What a machine without a GPU can show of the way on CUDA: devices, types, shapes and collectives of every stage."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("stage", "precision", "num_parts"),
    [(0, "bf16", 1), (1, "fp32", 1), (1, "bf16", 3), (2, "bf16", 1), (3, "bf16", 3)],
)
def test_a_step_save_and_restore_keep_everything_on_cuda(stage, precision, num_parts):
    command = [sys.executable, "-m", "tests.training.fake_cuda", str(stage), precision, str(num_parts)]
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
    passes = 1 if num_parts == 1 else 2 * num_parts
    assert told["varlen_attentions"] == (2 * passes if precision == "bf16" else 0), "one layer, two steps"
