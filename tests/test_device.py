"""Which device is used; each test runs a process, since torch reads the environment when it starts."""

import os

import pytest
import torch

from diptych import device
from diptych.device import precision_on, refuse_unusable_gpu, unusable_gpu
from diptych.errors import UserError
from tests.warm import Warm

CPU = torch.device("cpu")
has_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="torch can use the GPU of this machine")


@pytest.fixture
def bare(monkeypatch, tmp_path):
    """A machine without any sign of a GPU."""
    for name in ("CUDA_VISIBLE_DEVICES", "NVIDIA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(device, "DEVICE_FILES", tmp_path)
    return tmp_path


@has_no_gpu
def test_a_gpu_that_torch_cannot_use_is_refused_with_torchs_reason(bare):
    assert unusable_gpu() is None
    (bare / "nvidiactl").touch()
    assert unusable_gpu() is None, "that file is no GPU"
    (bare / "nvidia0").touch()
    with pytest.raises(
        UserError, match=r"an NVIDIA GPU \(.*nvidia0\), and PyTorch .* cannot use it: \w.* CUDA_VISIBLE"
    ):
        refuse_unusable_gpu()


@has_no_gpu
@pytest.mark.parametrize("hidden", ["", "-1", "NoDevFiles"])
def test_a_gpu_that_is_hidden_on_purpose_does_not_count(bare, monkeypatch, hidden):
    (bare / "nvidia0").touch()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    refuse_unusable_gpu()


@has_no_gpu
@pytest.mark.parametrize(
    ("asked_for", "refused"), [("all", True), ("0", True), ("void", False), ("none", False), ("", False)]
)
def test_a_container_that_was_started_with_gpus_counts_as_having_them(bare, monkeypatch, asked_for, refused):
    monkeypatch.setenv("NVIDIA_VISIBLE_DEVICES", asked_for)
    assert bool(unusable_gpu()) == refused


@has_no_gpu
def test_a_run_does_not_go_to_the_cpu_of_a_machine_that_has_a_gpu(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"}
    environment["NVIDIA_VISIBLE_DEVICES"] = "all"

    def said(environment):
        with (tmp_path / "said").open("wb") as file:
            words = ["train", "training.total_samples=8", f"run_dir={tmp_path / 'run'}"]
            command = Warm("diptych.cli:main", words, files=(0, 1, file.fileno()), environment=environment)
        assert command.wait() == 2
        return (tmp_path / "said").read_text()

    refused = said(environment)
    assert "NVIDIA_VISIBLE_DEVICES=all" in refused and "Traceback" not in refused
    assert not (tmp_path / "run").exists()
    assert "data is not set" in said({**environment, "CUDA_VISIBLE_DEVICES": ""})


def test_auto_is_bf16_where_the_device_computes_in_it(monkeypatch):
    assert precision_on(CPU, "auto") == "fp32"
    assert precision_on(CPU, "bf16") == "bf16"
    for has_bf16 in (True, False):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation, has=has_bf16: has)
        assert precision_on(torch.device("cuda", 0), "auto") == ("bf16" if has_bf16 else "fp32")
        assert precision_on(torch.device("cuda", 0), "fp32") == "fp32"


def test_kernels_are_chosen_for_the_device_before_cuda_starts(tmp_path):
    code = """
import os, torch, warnings
from diptych.device import set_arithmetic
warnings.simplefilter("error")
set_arithmetic(torch.device("cpu"), "fp32", deterministic=False)
before = torch.backends.cuda.matmul.allow_tf32, torch.are_deterministic_algorithms_enabled()
set_arithmetic(torch.device("cuda", 0), "bf16", deterministic=True)
now = torch.backends.cuda.matmul.allow_tf32, torch.are_deterministic_algorithms_enabled()
print(*before, *now, os.environ["CUBLAS_WORKSPACE_CONFIG"], torch.cuda.is_initialized())
"""
    with (tmp_path / "said").open("wb") as file:
        assert Warm("tests.warm:interpret", code, files=(0, file.fileno(), 2)).wait() == 0
    assert (tmp_path / "said").read_text().split() == ["False", "False", "True", "True", ":4096:8", "False"]
