"""Compare `diptych evaluate` with CLIP_benchmark, zero-shot and retrieval; prints one line of JSON.

Both evaluate the same open_clip model with random weights on the same shards, in fp32, by their command lines, in
turn, each in one process; its processor seconds, with the start, and its peak memory are measured. Torch has one thread
on each side, unless `--threads` says how many: then the full size ends sooner. The towers' part of the seconds is the
floor: what is left of it is reading, decoding, tokenizing and comparing. The numbers, the cosines and the nearest
classes and captions of the two sides are compared too.

The default is a fortieth of the full size, in the same proportions: 10,000 pictures, 1,000 classes by 80 templates, and
25,000 captions of 5,000 pictures, which `--full` takes. With ViT-B/32 that is hours on a CPU (on a GPU: `--gpu`), with
`--model ViT-B-32-narrow`, which has two blocks of width 64 instead of twelve of 768 and 512, minutes.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from benchmarks.evaluate.data import MODEL, NARROW, Sizes, weights_of, write_captioned, write_labelled, write_model
from benchmarks.loader.__main__ import PHOTOGRAPHS
from benchmarks.peer_environment import ensure_environment
from benchmarks.shards.measure import Cost, measure

FULL = Sizes(pictures=10_000, classes=1_000, templates=80, captions=25_000)
DEFAULT = Sizes(pictures=250, classes=25, templates=80, captions=625)
SIDES = ("clip_benchmark", "ours")
TASKS = ("zero_shot", "retrieval")
RECALL_AT = (1, 5, 10)
MOST_SECONDS = 6 * 3600
NAMES = {
    "zero_shot": {"top1": "acc1", "top5": "acc5", "mean_per_class_recall": "mean_per_class_recall"},
    "retrieval": {
        f"{ours}_r{k}": f"{theirs}_retrieval_recall@{k}"
        for ours, theirs in (("image_to_text", "text"), ("text_to_image", "image"))
        for k in RECALL_AT
    },
}
"""Task → our name of a number → CLIP_benchmark's."""


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.evaluate", description=__doc__)
    for name, size in asdict(DEFAULT).items():
        parser.add_argument(f"--{name}", type=int, default=size, metavar="N", help="default %(default)s")
    parser.add_argument("--full", action="store_true", help="the full size")
    parser.add_argument("--model", choices=(MODEL, NARROW), default=MODEL, help="default %(default)s")
    parser.add_argument("--gpu", action="store_true", help="use the GPU, on both sides")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="default %(default)s")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch, on both sides; default 1")
    parser.add_argument("--task", choices=TASKS, nargs="+", default=TASKS, help="default: both")
    chosen = parser.parse_args()
    sizes = FULL if chosen.full else Sizes(*(getattr(chosen, name) for name in asdict(DEFAULT)))
    environment = ensure_environment("clip_benchmark", sees_ours=True)
    (pictures,) = environment.glob("lib/python3*/site-packages/skimage/data")
    photographs = [pictures / name for name in PHOTOGRAPHS]
    pythons = {"ours": Path(sys.executable), "clip_benchmark": environment / "bin" / "python"}
    result: dict[str, Any] = {"benchmark": "evaluate"}
    with tempfile.TemporaryDirectory(prefix="evaluate-benchmark-") as name:
        folder = Path(name)
        write_model(folder / "model", chosen.model)
        write_labelled(folder / "zero_shot", sizes, photographs)
        write_captioned(folder / "retrieval", sizes, photographs)
        for task in chosen.task:
            rounds = [
                {side: evaluate(side, task, pythons[side], folder, chosen) for side in SIDES}
                for _ in range(chosen.rounds)
            ]
            result[task] = {**compared_costs(rounds), **compared_numbers(task, folder)}
            print(json.dumps(result[task]), file=sys.stderr)
    result["settings"] = {
        **asdict(sizes),
        "full_size": asdict(FULL),
        "model": chosen.model,
        "precision": "fp32",
        "device": torch.cuda.get_device_name() if chosen.gpu else "cpu",
        "threads": chosen.threads,
        "torch": torch.__version__,
        "open_clip": open_clip.__version__,
        "python": platform.python_version(),
    }
    print(json.dumps(result))


def evaluate(side: str, task: str, python: Path, folder: Path, chosen: argparse.Namespace) -> dict[str, Any]:
    """Run one side's command once."""
    out = folder / f"{task}_{side}"
    out.mkdir(exist_ok=True)
    for file in out.iterdir():
        file.unlink()
    numbers = out / "numbers.json"
    words = our_words(task, folder, numbers) if side == "ours" else peer_words(task, folder, numbers, chosen.model)
    environment = {**os.environ, "OMP_NUM_THREADS": str(chosen.threads), "HF_HUB_OFFLINE": "1"}
    environment |= {} if chosen.gpu else {"CUDA_VISIBLE_DEVICES": ""}
    command = [str(python), str(Path(__file__).with_name("contestant.py")), side, str(out), *words]
    cost = measure(command, environment, out / "log.txt", most_seconds=MOST_SECONDS)
    print(f"{task}, {side}: {cost.cpu_seconds:.0f} s of processor, {cost.wall_seconds:.0f} s", file=sys.stderr)
    return {"cost": cost, "towers": json.loads((out / "towers.json").read_text())}


def our_words(task: str, folder: Path, numbers: Path) -> list[str]:
    words = ["evaluate", str(folder / "model"), "--json", str(numbers)]
    if task == "retrieval":
        return [*words, "--retrieval", f"data={folder / task / 'test'}"]
    prompts = folder / task / "prompts.yaml"
    return [*words, "--zero-shot", f"data={folder / task / 'test'}", "--classes", str(prompts)]


def peer_words(task: str, folder: Path, numbers: Path, model: str) -> list[str]:
    kind = {"zero_shot": "zeroshot_classification", "retrieval": "zeroshot_retrieval"}[task]
    words = ["eval", "--dataset", "wds/data", "--dataset_root", str(folder / task), "--task", kind]
    words += ["--model", model, "--pretrained", str(weights_of(folder / "model")), "--output", str(numbers)]
    return [*words, "--no_amp", "--num_workers", "0", "--recall_k", *map(str, RECALL_AT)]


def compared_costs(rounds: list[Mapping[str, Mapping[str, Any]]]) -> dict[str, Any]:
    def median(side: str, of: str) -> float:
        return statistics.median(getattr(each[side]["cost"], of) for each in rounds)

    ratios = [each["clip_benchmark"]["cost"].cpu_seconds / each["ours"]["cost"].cpu_seconds for each in rounds]
    return {
        "speedup": round(statistics.median(ratios), 2),
        "speedups": [round(ratio, 2) for ratio in ratios],
        "memory_ratio": round(median("ours", "peak_megabytes") / median("clip_benchmark", "peak_megabytes"), 2),
        **{
            side: {
                **{name: round(median(side, name), 1) for name in Cost.__annotations__},
                "tower_seconds": {tower: round(seconds, 1) for tower, seconds in rounds[-1][side]["towers"].items()},
            }
            for side in SIDES
        },
    }


def compared_numbers(task: str, folder: Path) -> dict[str, Any]:
    """How far the two sides differ: their numbers, their cosines, and how many queries find something else nearest."""
    ours, theirs = (json.loads((folder / f"{task}_{side}" / "numbers.json").read_text()) for side in ("ours", SIDES[0]))
    numbers = ours[task]["data"]["metrics"]
    peers = {our_name: theirs["metrics"][name] for our_name, name in NAMES[task].items()}
    peers_cosines = np.load(folder / f"{task}_clip_benchmark" / "0.npy")
    cosines = our_cosines(folder / f"{task}_ours", len(peers_cosines))
    return {
        "numbers": {name: round(numbers[name], 6) for name in peers},
        "largest_difference_of_a_number": max(abs(numbers[name] - value) for name, value in peers.items()),
        "largest_difference_of_a_cosine": float(np.abs(cosines - peers_cosines).max()),
        "pictures_with_another_nearest_text": int(np.sum(cosines.argmax(1) != peers_cosines.argmax(1))),
        "texts_with_another_nearest_picture": int(np.sum(cosines.argmax(0) != peers_cosines.argmax(0))),
        "different_nearest_texts": len(np.unique(cosines.argmax(1))),
    }


def our_cosines(folder: Path, rows: int) -> np.ndarray:
    """f32[pictures texts]; the blocks of pictures come first."""
    blocks, number = [], 0
    while sum(map(len, blocks)) < rows:
        blocks.append(np.load(folder / f"{number}.npy"))
        number += 1
    return np.concatenate(blocks)


if __name__ == "__main__":
    main()
