"""Compare what is learned from the same pictures by four objectives (the paper's figure 2, at a small scale).

The contrast, the contrast with a token head, bag of words and visual n-grams each train the demo's image tower on the
demo's cards, with the demo's recipe and seed. While they train, zero-shot accuracy is measured on new pictures of
combinations that were trained on (seen) and that were not (unseen). The supervised baseline is a logistic regression on
the pixels of all labelled training cards, which can name seen combinations only.

Prints a table, and writes `objectives.html` with the plot into FOLDER.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from diptych.learning_curves import measured
from diptych.pages.charts import LineChart, line_chart
from diptych.pages.template import template
from diptych.run_dir import read_metrics
from diptych.verbs.demo import VOCABULARY_SIZE, claim, command, draw, find_config, from_crawl_to_shards, num_ranks

OBJECTIVES = {
    "contrast": ["loss.name=softmax"],
    "contrast + token head": ["loss.name=softmax", "loss.token_head.weight=1"],
    "bag of words": ["loss.name=bag_of_words"],
    "visual n-grams": ["loss.name=visual_ngrams"],
}
"""What the table calls it → its settings."""
MEASUREMENTS = 6
"""How often a run is measured."""

Points = dict[str, list[tuple[float, float]]]
"""Objective → (pictures seen, top-1)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where cards and runs go")
    parser.add_argument("--samples", type=int, default=15_360, help="pictures that each run sees (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    began = time.monotonic()
    cards = make_data(chosen.folder / "data", chosen.seed)
    for name, settings in OBJECTIVES.items():
        train(run_of(chosen.folder, name), settings, chosen.folder / "data", chosen.samples, chosen.seed)
    supervised = supervised_accuracy(run_of(chosen.folder, "contrast"), cards)
    points = {data: accuracies(chosen.folder, data) for data in ("seen", "unseen")}
    write_page(chosen.folder / "objectives.html", points, supervised)
    print(f"\n{table(points, supervised)}\n\n{chosen.folder / 'objectives.html'}; {time.monotonic() - began:.0f} s")


def make_data(data: Path, seed: int) -> Path:
    """The demo's cards, shards and vocabulary; those of an earlier start are used again."""
    claim(data, seed)
    cards, vocabulary = data / "cards", data / "vocabulary.json"
    draw(cards, seed)
    from_crawl_to_shards(cards / "train", data, seed)
    if not vocabulary.exists():
        command("diptych", "vocab", data / "shards", "--size", VOCABULARY_SIZE, "--output", vocabulary)
    return cards


def run_of(folder: Path, objective: str) -> Path:
    return folder / objective.replace(" ", "_").replace("_+_", "_with_")


def train(run: Path, settings: list[str], data: Path, samples: int, seed: int) -> None:
    cards = data / "cards"
    command(
        *("torchrun", "--standalone", "--nproc-per-node", num_ranks(), "-m", "diptych", "train", find_config()),
        *(f"run_dir={run}", f"data.train={data / 'shards'}", f"tokenizer.vocabulary={data / 'vocabulary.json'}"),
        *(f"training.total_samples={samples}", f"optimizer.warmup_samples={samples // 10}", f"training.seed={seed}"),
        *(f"evaluation.zero_shot.{name}={cards / name}" for name in ("seen", "unseen")),
        *(f"evaluation.classes={cards / 'classes.yaml'}", f"evaluation.every_samples={samples // MEASUREMENTS}"),
        *("tracking.wandb=off", *settings),
    )


def supervised_accuracy(run: Path, cards: Path) -> float:
    """Top-1 of a logistic regression on pixels, on seen combinations; the model of the run plays no part in it."""
    command(
        *("diptych", "evaluate", run, "--classes", cards / "classes.yaml", "--zero-shot", f"seen={cards / 'seen'}"),
        *("--pixel-baseline", cards / "train_labels.csv", "--json", run / "supervised.json"),
    )
    evaluation = json.loads((run / "supervised.json").read_text(encoding="utf-8"))
    return float(evaluation["pixel_baseline"]["seen"]["metrics"]["top1"])


def accuracies(folder: Path, data: str) -> Points:
    records = {name: read_metrics(run_of(folder, name) / "metrics.jsonl") for name in OBJECTIVES}
    return {name: measured(each, "top1")[data] for name, each in records.items()}


def table(points: dict[str, Points], supervised: float) -> str:
    """Top-1 in percent, of seen and unseen combinations, after so many pictures."""
    seen = [f"{samples:,.0f}" for samples, _ in points["seen"]["contrast"]]
    lines = [["seen / unseen, top-1 in %", *seen], ["---"] * (1 + len(seen))]
    for name in OBJECTIVES:
        pairs = zip(points["seen"][name], points["unseen"][name], strict=True)
        lines.append([name, *(f"{100 * one:.1f} / {100 * other:.1f}" for (_, one), (_, other) in pairs)])
    rows = [f"| {' | '.join(line)} |" for line in lines]
    return "\n".join([*rows, f"\nsupervised, logistic regression on pixels: {100 * supervised:.1f} / cannot name them"])


def write_page(path: Path, points: dict[str, Points], supervised: float) -> None:
    charts: list[LineChart | None] = [
        line_chart(
            f"Zero-shot top-1, {data} combinations",
            {name: list(each) for name, each in points[data].items()},
            x_label="pictures seen",
            y_from_zero=True,
            percent=True,
            width=640,
            height=320,
            level=(supervised, "supervised, on pixels") if data == "seen" else None,
        )
        for data in points
    ]
    page = template("benchmarks", "objectives.html.jinja").render(title="Four objectives", charts=filter(None, charts))
    path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
