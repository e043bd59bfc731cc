import os
import subprocess
import sys

import pytest

from diptych.machine import peak_teraflops, usable_cpus


def test_the_cpus_are_those_that_we_may_use():
    assert usable_cpus() == len(os.sched_getaffinity(0))


def test_a_system_that_cannot_say_which_cpus_are_ours_has_all(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert usable_cpus() == os.cpu_count()


def test_shards_are_packed_where_the_system_has_neither_affinity_nor_prctl(tmp_path):
    (tmp_path / "in").mkdir()
    code = """
import ctypes, os, sys
del os.sched_getaffinity
loaded = ctypes.CDLL
ctypes.CDLL = lambda name, **kept: object() if name is None else loaded(name, **kept)
from PIL import Image
Image.new("RGB", (64, 64)).save("in/a.png")
open("in/a.txt", "w").write("a caption")
from diptych_shards.cli import main
sys.exit(main(["pack", "in", "out", "--processes", "2"]))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "00000.tar").exists()


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA TITAN V", None),
    ],
)
def test_a_gpu_is_known_by_the_words_of_its_name(name, teraflops):
    assert peak_teraflops(name) == teraflops


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc can be told to keep memory")
def test_memory_that_was_freed_is_taken_again_without_the_kernel():
    code = """
import resource
from diptych.machine import keep_freed_memory
def page_faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        bytearray(2**26)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = page_faults()
keep_freed_memory()
page_faults()
print(given_back, page_faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    given_back, kept = map(int, done.stdout.split())
    assert given_back > 3 * 2**26 / 2**21 and kept < given_back / 10
