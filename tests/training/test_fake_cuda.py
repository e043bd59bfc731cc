"""What can be tested of CUDA without a GPU: devices, types, shapes and collectives at every ZeRO stage."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


CASES = {
    f"{stage},{precision},{num_parts}": (precision, num_parts)
    for stage, precision, num_parts in [(0, "bf16", 1), (1, "fp32", 1), (1, "bf16", 3), (2, "bf16", 1), (3, "bf16", 3)]
}


@pytest.fixture(scope="module")
def reports() -> dict[str, dict]:
    """What each case reports; one that failed has none, and its traceback is shown."""
    command = [sys.executable, "-m", "tests.training.fake_cuda", *CASES]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return {line["case"]: line for line in map(json.loads, re.findall(r"^{.*", done.stdout, re.MULTILINE))}


@pytest.mark.parametrize("case", CASES)
def test_a_step_save_and_restore_keep_everything_on_cuda(case, reports):
    precision, num_parts = CASES[case]
    report = reports[case]
    assert report["parameters"] == report["moments"] == ["cuda:0"]
    assert report["saved"] == ["cpu"] and report["has_all_weights"]
    collectives = report["collectives"]
    assert collectives["_allgather_base_"] >= 2, "the texts of two steps"
    assert collectives["_reduce_scatter_base_"] == 2, "and the gradients of their features"
    assert collectives["allreduce_"] >= 2 and collectives["broadcast_"] > 0
    passes = 1 if num_parts == 1 else 2 * num_parts
    assert report["varlen_attentions"] == (2 * passes if precision == "bf16" else 0), "one layer, two steps"
