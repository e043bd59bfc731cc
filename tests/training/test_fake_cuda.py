"""What can be tested of CUDA without a GPU: devices, types, shapes and collectives at every ZeRO stage."""

import json

import pytest

from tests.training.tiny import at_night
from tests.warm import Warm


@pytest.mark.parametrize(
    ("stage", "precision", "num_parts", "offloads"),
    [
        (2, "fp32", 1, False),
        (3, "bf16", 3, False),
        (1, "fp32", 1, True),
        *((*case, False) for case in at_night((0, "bf16", 3), (0, "bf16", 1), (1, "fp32", 1), (1, "bf16", 3))),
        *at_night((2, "bf16", 1, False), (3, "bf16", 1, True)),
    ],
)
def test_a_step_save_and_restore_keep_everything_on_cuda(stage, precision, num_parts, offloads, tmp_path):
    file = tmp_path / "report.json"
    assert Warm("tests.training.fake_cuda:main", stage, precision, num_parts, offloads, str(file)).wait() == 0
    report = json.loads(file.read_text())
    assert report["parameters"] == ["cuda:0"]
    assert report["moments"] == (["cpu"] if offloads else ["cuda:0"])
    assert offloads or report["share"] == ["cuda:0"]
    assert report["saved"] == ["cpu"] and report["has_all_weights"]
    collectives = report["collectives"]
    assert collectives["_allgather_base_"] >= 2, "the texts of two steps"
    assert collectives["_reduce_scatter_base_"] == 2, "and the gradients of their features"
    assert collectives["allreduce_"] >= 2 and collectives["broadcast_"] > 0
    passes = 1 if num_parts == 1 else 2 * num_parts
    assert report["varlen_attentions"] == (2 * passes if precision == "bf16" else 0), "one layer, two steps"
