"""Compare forward and backward of our losses with open_clip's, on one of 8 ranks; prints one line of JSON.

Each measurement runs in a process of its own with one thread, so that its peak memory can be read. The other seven
ranks are replaced by torch's fake process group: everything is computed and nothing is sent. The peer, open_clip, runs
in its exact mode (`local_loss` with `gather_with_grad`); its SigLIP loss runs in the default mode.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

RANKS = 8
DIM = 512
BATCHES = {"4k": 4096, "16k": 16384, "32k": 32768}
ROUNDS = {"4k": 5, "16k": 3, "32k": 1}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--measure", nargs=3, metavar=("SIDE", "LOSS", "BATCH"), help="one measurement, in this process"
    )
    arguments = parser.parse_args()
    if arguments.measure:
        side, name, batch = arguments.measure
        print(json.dumps(measure(side, name, int(batch))))
        return
    result: dict[str, object] = {"benchmark": "loss"}
    for name, suffix in (("softmax", ""), ("sigmoid", "_sigmoid")):
        for size, batch in BATCHES.items():
            rounds = [{side: start(side, name, batch) for side in ("ours", "peer")} for _ in range(ROUNDS[size])]
            seconds = [each["peer"]["seconds"] / each["ours"]["seconds"] for each in rounds]
            memory = [each["ours"]["mebibytes"] / each["peer"]["mebibytes"] for each in rounds]
            result[f"speedup{suffix}_{size}"] = round(statistics.median(seconds), 2)
            result[f"memory_ratio{suffix}_{size}"] = round(statistics.median(memory), 3)
            result[f"ours{suffix}_{size}"], result[f"peer{suffix}_{size}"] = rounds[-1]["ours"], rounds[-1]["peer"]
    result["settings"] = {
        "ranks": RANKS,
        "dim": DIM,
        "threads": 1,
        "rounds": ROUNDS,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(result))


def start(side: str, name: str, batch: int) -> dict[str, float]:
    words = [sys.executable, "-m", "benchmarks.loss", "--measure", side, name, str(batch)]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measure(side: str, name: str, batch: int) -> dict[str, float]:
    """Measure processor seconds of a forward and a backward, and their peak memory in addition to the features."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    step = {"ours": our_step, "peer": peer_step}[side](name)
    step(*features(64))  # warm up: load libraries, allocate what is allocated once
    image, text, scale, bias = features(batch // RANKS)
    before = peak_mebibytes(reset=True)
    began = time.process_time()
    step(image, text, scale, bias)
    return {
        "seconds": round(time.process_time() - began, 3),
        "mebibytes": round(peak_mebibytes() - before, 1),
    }


Step = Callable[[Tensor, Tensor, Tensor, Tensor], None]


def our_step(name: str) -> Step:
    from diptych.loss import LOSSES

    return lambda image, text, scale, bias: LOSSES[name](image, text, scale, bias, None).loss.backward()


def peer_step(name: str) -> Step:
    from open_clip.loss import ClipLoss, SigLipLoss

    if name == "sigmoid":
        siglip = SigLipLoss(rank=0, world_size=RANKS)
        return lambda image, text, scale, bias: siglip(image, text, scale.exp(), bias).backward()
    clip = ClipLoss(local_loss=True, gather_with_grad=True, rank=0, world_size=RANKS)
    return lambda image, text, scale, bias: clip(image, text, scale.exp()).backward()


def features(batch: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    image, text = (torch.nn.functional.normalize(torch.randn(batch, DIM)).requires_grad_() for _ in range(2))
    return image, text, torch.tensor([2.66], requires_grad=True), torch.tensor([-10.0], requires_grad=True)


def peak_mebibytes(*, reset: bool = False) -> float:
    """The process's peak resident memory since the last reset, on Linux."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024


if __name__ == "__main__":
    main()
