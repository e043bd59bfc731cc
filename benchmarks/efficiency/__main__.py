"""How many samples, and how much computing, an accuracy needs: our recipe and open_clip's; prints one line of JSON.

Both recipes train the same two towers from the same weights on the same cards in the same program, each trial in one
process with one thread. open_clip's: AdamW with its betas, epsilon and decay, a cosine over the whole run. Ours adds
levers (`LEVERS`) and has fewer samples. Each recipe's learning rate is the best of the same five by the development
split; the numbers are of the test split, over three seeds. Then each lever is taken away once: Muon with a sweep of
rates of its own, since AdamW needs another rate; the others at our rate. open_clip's recipe is also tried with fewer
samples, at its rate.

`share_of_samples` and `share_of_seconds` are ours divided by open_clip's (less is better), at nine tenths of the
accuracy that open_clip's recipe has at its end. Trials are kept in the folder, so that a run that was interrupted goes
on. All of it takes about an hour and a half of one core.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml
from benchmarks.efficiency.tasks import PIXELS, TASKS, write_task

LEARNING_RATES = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3)
SEEDS = (0, 1, 2)
SAMPLES = 32_768
SHORTER_SAMPLES = 24_576
"""Another length of open_clip's recipe."""
SHORT_SAMPLES = {"cards": 14_336, "many_nouns": 17_408}
"""Of our recipe: of the lengths tried, the one that reaches the accuracy first on the development split."""
BATCH = 128
EVALUATIONS = 12
SHARE_OF_ACCURACY = 0.9
"""The accuracy to reach is this share of what open_clip's recipe has at its end, on the development split."""

MODEL = {
    "embed_dim": 96,
    "image": {
        "name": "vit_base_patch16_clip_224",
        "image_size": PIXELS,
        "overrides": {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
    },
    "text": {"context_length": 24, "width": 64, "heads": 2, "layers": 3},
}
PLAIN: dict[str, Any] = {
    "optimizer": {"name": "adamw", "beta1": 0.9, "beta2": 0.98, "epsilon": 1e-6, "weight_decay": 0.2},
    "training": {"total_samples": SAMPLES},
}
LEVERS = ("muon", "stages", "token_head", "unique_captions")


@dataclass(frozen=True)
class Trial:
    task: str
    recipe: str
    values: Mapping[str, Any]
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        return f"{self.task}-{self.recipe}-{self.learning_rate:g}-{self.seed}"


@dataclass(frozen=True)
class Reached:
    """When a trial had the accuracy."""

    samples: float
    seconds: float


def config_of(trial: Trial, data: Path, run_dir: Path) -> dict[str, Any]:
    total = trial.values["training"]["total_samples"]
    common = {
        "run_dir": str(run_dir),
        "data": {"train": str(data / "shards")},
        "tokenizer": {"vocabulary": str(data / "vocabulary.json")},
        "model": MODEL,
        "optimizer": {"learning_rate": trial.learning_rate, "warmup_samples": total // 12 // BATCH * BATCH},
        "training": {"global_batch_size": BATCH, "seed": trial.seed},
        "checkpoint": {"every_samples": total},
        "evaluation": {
            "every_samples": total // EVALUATIONS,
            "classes": str(data / "classes.yaml"),
            "zero_shot": {split: str(data / split) for split in ("dev", "test")},
        },
    }
    return merged(common, trial.values)


def our_recipe(task: str, without: str | None = None) -> dict[str, Any]:
    """The plain recipe with fewer samples and all levers but this one."""
    samples = SHORT_SAMPLES[task]
    settings: dict[str, dict[str, Any]] = {
        "muon": {"optimizer": {"name": "muon"}},
        "stages": {"training": {"stages": [{"samples": samples // 2, "image_size": PIXELS * 2 // 3}, {}]}},
        "token_head": {"loss": {"token_head": {"weight": 1.0}}},
        "unique_captions": {"data": {"unique_captions_in_batch": True}},
    }
    values = merged(PLAIN, {"training": {"total_samples": samples}})
    for lever in LEVERS:
        values = values if lever == without else merged(values, settings[lever])
    return values


def merged(one: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(one)
    for key, value in other.items():
        both[key] = merged(both[key], value) if isinstance(value, Mapping) and key in both else value
    return both


def curve_of(trial: Trial, folder: Path) -> list[dict[str, float]]:
    """The curve of a trial, from its file in the folder or, if there is none of the same config, by training."""
    kept, run_dir = folder / "trials" / f"{trial.name}.json", folder / "runs" / trial.name
    config, settings = kept.with_suffix(".yaml"), yaml.safe_dump(config_of(trial, folder / trial.task, run_dir))
    if not kept.exists() or config.read_text() != settings:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.unlink(missing_ok=True)
        shutil.rmtree(run_dir, ignore_errors=True)  # an interrupted trial starts over, since its seconds are unknown
        config.write_text(settings)
        words = [sys.executable, "-m", "benchmarks.efficiency.trial", str(config)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        done = subprocess.run(words, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{trial.name}: {done.stderr[-2000:]}")
        # Libraries print lines of their own before.
        kept.write_text(done.stdout.splitlines()[-1])
    curve: list[dict[str, float]] = json.loads(kept.read_text())
    last = curve[-1]
    print(f"{trial.name}: dev {last['dev/top1']:.3f}, test {last['test/top1']:.3f}, {last['seconds']:.0f} s",
          file=sys.stderr, flush=True)  # fmt: skip
    return curve


def reached(curve: Sequence[Mapping[str, float]], split: str, accuracy: float) -> Reached | None:
    """When a curve came to the accuracy, between evaluations on a straight line; None if it did not."""
    points = [{"samples": 0.0, "seconds": 0.0, f"{split}/top1": 0.0}, *curve]
    for before, after in pairwise(points):
        if after[f"{split}/top1"] >= accuracy:
            rise = after[f"{split}/top1"] - before[f"{split}/top1"]
            part = (accuracy - before[f"{split}/top1"]) / rise if rise else 1.0
            return Reached(*(before[key] + part * (after[key] - before[key]) for key in ("samples", "seconds")))
    return None


def best_rate(curves: Mapping[float, Sequence[Mapping[str, float]]], accuracy: float) -> float:
    """The learning rate that is at the accuracy first on the development split; else that which comes nearest."""

    def badness(rate: float) -> tuple[float, float]:
        at = reached(curves[rate], "dev", accuracy)
        return (at.samples if at else math.inf, -curves[rate][-1]["dev/top1"])

    return min(curves, key=badness)


class Sweep:
    """All trials of one task."""

    def __init__(self, task: str, folder: Path, pool: ThreadPoolExecutor):
        self._task, self._folder, self._pool = task, folder, pool

    def result(self) -> dict[str, Any]:
        ours = {f"without_{lever}": our_recipe(self._task, lever) for lever in LEVERS}
        swept = {"open_clip": PLAIN, "ours": our_recipe(self._task), "without_muon": ours.pop("without_muon")}
        curves = {
            name: dict(zip(LEARNING_RATES, self._curves(name, values, LEARNING_RATES, SEEDS[:1]), strict=True))
            for name, values in swept.items()
        }
        accuracy = SHARE_OF_ACCURACY * max(curve[-1]["dev/top1"] for curve in curves["open_clip"].values())
        rates = {name: best_rate(of_rates, accuracy) for name, of_rates in curves.items()}
        shorter = {f"open_clip_{SHORTER_SAMPLES}": merged(PLAIN, {"training": {"total_samples": SHORTER_SAMPLES}})}
        rates |= dict.fromkeys(shorter, rates["open_clip"]) | dict.fromkeys(ours, rates["ours"])
        recipes = {
            name: numbers_of(self._curves(name, values, [rates[name]], SEEDS), accuracy)
            for name, values in {**swept, **shorter, **ours}.items()
        }
        return {
            "accuracy": round(accuracy, 3),
            "share_of_samples": ratio(recipes, "samples"),
            "share_of_seconds": ratio(recipes, "seconds"),
            "learning_rates": rates,
            "dev_at_the_end": {
                name: {f"{rate:g}": round(curve[-1]["dev/top1"], 3) for rate, curve in of_rates.items()}
                for name, of_rates in curves.items()
            },
            "recipes": recipes,
        }

    def _curves(
        self, recipe: str, values: Mapping[str, Any], rates: Sequence[float], seeds: Sequence[int]
    ) -> list[list[dict[str, float]]]:
        trials = [Trial(self._task, recipe, values, rate, seed) for rate in rates for seed in seeds]
        return list(self._pool.map(lambda trial: curve_of(trial, self._folder), trials))


def numbers_of(curves: Sequence[Sequence[Mapping[str, float]]], accuracy: float) -> dict[str, Any]:
    """Samples and seconds to the accuracy on the test split, of each seed and medians; None where it is not reached."""
    at = [reached(curve, "test", accuracy) for curve in curves]
    medians = {
        what: statistics.median([getattr(each, what) if each else math.inf for each in at])
        for what in ("samples", "seconds")
    }
    return {
        **{what: round(median, 1) if math.isfinite(median) else None for what, median in medians.items()},
        "samples_of_seeds": [round(each.samples, 1) if each else None for each in at],
        "seconds_of_seeds": [round(each.seconds, 1) if each else None for each in at],
        "test_at_the_end": [round(curve[-1]["test/top1"], 3) for curve in curves],
        "seconds_in_all": [curve[-1]["seconds"] for curve in curves],
    }


def ratio(numbers: Mapping[str, Mapping[str, Any]], what: str) -> float | None:
    ours, peer = numbers["ours"][what], numbers["open_clip"][what]
    return None if ours is None or peer is None else round(ours / peer, 3)


def plot(folder: Path, results: Mapping[str, Mapping[str, Any]], destination: Path) -> None:
    """Draw test accuracy over samples and over seconds, of all seeds, a row for each task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(results), 2, figsize=(9, 3.2 * len(results)), squeeze=False)
    for row, (task, result) in zip(axes, results.items(), strict=True):
        for axis, what in zip(row, ("samples", "seconds"), strict=True):
            for name, colour in (("open_clip", "tab:grey"), ("ours", "tab:blue")):
                for seed in SEEDS:
                    trial = Trial(task, name, {}, result["learning_rates"][name], seed)
                    curve = json.loads((folder / "trials" / f"{trial.name}.json").read_text())
                    label = name if seed == SEEDS[0] else None
                    axis.plot([0, *(p[what] for p in curve)], [0, *(100 * p["test/top1"] for p in curve)],
                              color=colour, label=label)  # fmt: skip
            axis.axhline(100 * result["accuracy"], color="black", linewidth=0.7, linestyle=":")
            axis.set_xlabel("pairs seen" if what == "samples" else "seconds of one core")
            axis.set_ylabel("zero-shot top-1, never trained, %")
            axis.set_title(task)
            axis.legend()
    figure.tight_layout()
    figure.savefig(destination)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where data and trials are kept")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--workers", type=int, default=2, help="trials at a time, one core each (default: %(default)s)")
    parser.add_argument("--plot", type=Path, help="picture file for the curves, such as curves.svg")
    arguments = parser.parse_args()
    for task in arguments.tasks:
        write_task(task, arguments.folder / task)
    with ThreadPoolExecutor(arguments.workers) as pool:
        results = {task: Sweep(task, arguments.folder, pool).result() for task in arguments.tasks}
    if arguments.plot:
        plot(arguments.folder, results, arguments.plot)
    settings = {"samples": SAMPLES, "shorter_samples": SHORTER_SAMPLES, "our_samples": SHORT_SAMPLES, "batch": BATCH,
                "seeds": len(SEEDS), "learning_rates": LEARNING_RATES, "levers": LEVERS,
                "python": platform.python_version()}  # fmt: skip
    print(json.dumps({"benchmark": "efficiency", **results, "settings": settings}))


if __name__ == "__main__":
    main()
