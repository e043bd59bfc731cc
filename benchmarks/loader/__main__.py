"""Loading shards for training: samples a core-second of ours and of open_clip's loader; prints one line of JSON.

Both make batches of 224-pixel pictures and 77 tokens from the same shards, each in one process with one thread, in
turn. `speedup_256` and `speedup_originals` compare open_clip's default training transform (a random resized crop) with
the same crop of ours. `speedup_train_ready` compares ours with the paper's crop on shards made for it (`--for-training
224`) with open_clip's default on the 256-pixel shards. Times are of the processor; the first batch is excluded.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.loader.shards import KINDS, write_shard
from benchmarks.peer_environment import ensure_environment

ROUNDS = 5
PHOTOGRAPHS = ("astronaut.png", "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png")
"""Of scikit-image's pictures, those in colour that a camera took."""
PAIRS = {"256": 1024, "originals": 512, "train_ready": 1024}
RESIZED, SQUARE = "random_resized_crop", "random_square_crop"
ONE_THREAD = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
RUNS = {
    "peer_256": ("open_clip", "256", RESIZED),
    "ours_256": ("ours", "256", RESIZED),
    "peer_originals": ("open_clip", "originals", RESIZED),
    "ours_originals": ("ours", "originals", RESIZED),
    "peer_train_ready": ("open_clip", "train_ready", RESIZED),
    "ours_train_ready": ("ours", "train_ready", SQUARE),
}
"""Who loads which shards, with which crop of ours."""
SPEEDUPS = {
    "speedup_256": ("peer_256", "ours_256"),
    "speedup_originals": ("peer_originals", "ours_originals"),
    "speedup_train_ready": ("peer_256", "ours_train_ready"),
    "speedup_train_ready_same_shards": ("peer_train_ready", "ours_train_ready"),
}


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.loader", description=__doc__)
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="default %(default)s")
    chosen = parser.parse_args()
    environment = ensure_environment("open_clip", sees_ours=True)
    (pictures,) = environment.glob("lib/python3*/site-packages/skimage/data")
    with tempfile.TemporaryDirectory(prefix="loader-benchmark-") as name:
        folder = Path(name)
        for kind in KINDS:
            write_shard(folder / kind.name, kind, PAIRS[kind.name], [pictures / name for name in PHOTOGRAPHS])
        with (
            Contestant("ours", Path(sys.executable)) as us,
            Contestant("open_clip", environment / "bin/python") as peer,
        ):
            contestants = {"ours": us, "open_clip": peer}
            costs: dict[str, list[float]] = {run: [] for run in RUNS}
            for _ in range(chosen.rounds):
                for run, (who, kind_name, crop) in RUNS.items():
                    costs[run].append(contestants[who].seconds_a_pair(folder / kind_name, crop))
        table = stages(environment / "bin" / "python", folder)
    print(json.dumps(result(costs) | {"stages": table, "stages_unit": "microseconds"}))


def stages(python: Path, folder: Path) -> dict[str, object]:
    """By the kind of shard."""
    shards = {str(folder / kind.name / "00000.tar"): kind.name for kind in KINDS}
    command = [python, Path(__file__).with_name("stages.py"), *shards]
    done = subprocess.run(command, env={**os.environ, **ONE_THREAD}, stdout=subprocess.PIPE, text=True, check=True)
    return {shards[shard]: measured for shard, measured in json.loads(done.stdout).items()}


def result(costs: dict[str, list[float]]) -> dict[str, object]:
    return {
        "benchmark": "loader",
        **{name: round(_ratio(costs[peer], costs[ours]), 2) for name, (peer, ours) in SPEEDUPS.items()},
        "unit": "samples/core-second",
        "samples_a_core_second": {run: round(1 / statistics.median(each)) for run, each in costs.items()},
        "rounds": {run: [round(1e6 * seconds) for seconds in each] for run, each in costs.items()},
        "settings": {"pairs": PAIRS, "threads": 1, "python": platform.python_version()},
    }


def _ratio(peer: Sequence[float], ours: Sequence[float]) -> float:
    return statistics.median(theirs / own for theirs, own in zip(peer, ours, strict=True))


class Contestant:
    """A loader in a process of its own."""

    def __init__(self, name: str, python: Path):
        self._process = subprocess.Popen(
            [python, Path(__file__).with_name("contestant.py"), name],
            env={**os.environ, **ONE_THREAD},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def seconds_a_pair(self, shards: Path, augmentation: str) -> float:
        """Of the processor, over one epoch but its first batch."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps({"shards": str(shards), "augmentation": augmentation}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the loader's process ended with status {self._process.wait()}")
        measured = json.loads(answer)
        return float(measured["seconds"] / measured["pairs"])

    def __enter__(self) -> Contestant:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


if __name__ == "__main__":
    main()
