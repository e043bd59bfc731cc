"""What is measured while a model trains: the numbers of `diptych evaluate`, at no cost to the training."""

from __future__ import annotations

import json
import shutil
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from diptych.checkpoint_folder import EVALUATION, MANIFEST, checkpoints
from diptych.config.load import LoadedConfig, load_config
from diptych.data.loader_processes import LoaderProcesses
from diptych.drill.small_run import COLOURS, write_small_run
from diptych.encoder import load
from diptych.errors import UserError
from diptych.evaluation import EVALUATORS
from diptych.evaluation import features as features_module
from diptych.evaluation.evaluator import Evaluator, numbers
from diptych.evaluation.features import Features
from diptych.evaluation.similarity import unit_norm
from diptych.evaluation.validation import GROUP, pair_losses
from diptych.learning_curves import curves
from diptych.report.page import write_report
from diptych.run_dir import RunDir, read_metrics
from diptych.training.engine import Engine
from diptych.training.evaluating import Evaluations, FailedOnARankError, Together, open_asked
from diptych.training.metrics import evaluated
from diptych.training.wandb_results import _numbers
from diptych.world import World
from tests.evaluation.colours import picture
from tests.ranks import run_ranks, train_on_ranks
from tests.training.tiny import at_night

STEPS, BATCH = 6, 36
"""36 pairs can be divided over 1, 2 and 3 ranks."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    draw = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / "tree" / name).mkdir(parents=True)
        for number in range(12):
            noisy = np.array(colour) + draw.integers(-150, 150, (32, 32, 3))
            Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / "tree" / name / f"{number}.png")
    (folder / "tree" / "red" / "0.png").write_bytes(b"\x89PNG\r\n\x1a\n")  # cannot be decoded
    file = write_small_run(folder)
    for name in ("00000.tar", "_index/00000.tar.index"):
        (folder / "few" / name).parent.mkdir(exist_ok=True)
        shutil.copy(folder / "shards" / name, folder / "few" / name)
    return file


def config_of(recipe: Path, run_dir: Path, *words: str, stage: int = 1, measured: bool = True) -> LoadedConfig:
    folder = recipe.parent
    data = [
        f"evaluation.zero_shot.tree={folder}/tree",
        f"evaluation.retrieval.pairs={folder}/few",
        f"evaluation.validation={folder}/shards",
    ]
    return load_config(
        [recipe],
        [
            f"run_dir={run_dir}",
            f"training.total_samples={STEPS * BATCH}",
            f"training.global_batch_size={BATCH}",
            "training.precision=fp32",
            f"checkpoint.every_samples={3 * BATCH}",
            f"machine.zero_stage={stage}",
            "tracking.wandb=off",
            *(data if measured else []),
            *words,
        ],
    )


def with_batch_norm(recipe: Path) -> Path:
    """The recipe with an image tower whose running statistics differ among ranks."""
    document = yaml.safe_load(recipe.read_text())
    overrides = {"channels": [8, 8, 8, 16], "stem_width": 8}
    document["model"]["image"] = {"name": "resnet10t", "image_size": 32, "overrides": overrides}
    other = recipe.with_name("batch_norm.yaml")
    other.write_text(yaml.safe_dump(document))
    return other


def train_on(rank: int, size: int, runs: list[LoadedConfig]) -> None:
    for loaded in runs:
        with LoaderProcesses(0) as processes:
            train_on_ranks(loaded, World(rank=rank, size=size), processes)


def evaluations(run_dir: Path) -> list[dict]:
    return [line for line in read_metrics(run_dir / "metrics.jsonl") if line.get("event") == "evaluation"]


def by_command(loaded: LoadedConfig, checkpoint: Path) -> dict[str, float]:
    """The numbers that one process gives for a checkpoint, of its weights and of their average."""
    asked = open_asked(loaded.config)
    return {
        f"{name}{suffix}/{number.name}": number.value
        for suffix, features in (
            ("", Features(load(checkpoint, "cpu"))),
            (" (EMA)", Features(load(checkpoint, "cpu", ema=True))),
        )
        for evaluator, each in asked.items()
        for name, data in each.items()
        for number in numbers(EVALUATORS[evaluator].measure(features, data))
    }


def tensors_in(run_dir: Path) -> dict[str, dict]:
    """Size and hash of each file of tensors of the newest checkpoint."""
    manifest = json.loads((checkpoints(run_dir / "checkpoints")[0] / MANIFEST).read_text())
    return {name: each for name, each in manifest["files"].items() if name.endswith(".safetensors")}


@pytest.mark.parametrize(
    ("size", "stages", "tower"),
    [(3, [3], "resnet"), *at_night((1, [0], "vit"), (2, [1, 2], "vit"), (2, [1], "resnet"), (3, [3], "vit"))],
)
def test_ranks_measure_what_one_process_measures_of_the_checkpoint_and_train_as_without(
    size, stages, tower, recipe, tmp_path
):
    if tower == "resnet":
        recipe = with_batch_norm(recipe)
    runs = [config_of(recipe, tmp_path / f"stage_{stage}", stage=stage) for stage in stages]
    without = [config_of(recipe, tmp_path / f"plain_{stage}", stage=stage, measured=False) for stage in stages]
    run_ranks(size, train_on, size, [*runs, *without])

    for loaded, plain in zip(runs, without, strict=True):
        run = RunDir(Path(loaded.config.run_dir))
        measured = evaluations(run.path)
        assert [line["samples_seen"] for line in measured] == [3 * BATCH, 6 * BATCH]
        for line, checkpoint in zip(measured, reversed(checkpoints(run.checkpoints)), strict=True):
            assert line["failed"] == {}
            assert {"tree/top1", "pairs/text_to_image_r5", "validation (EMA)/loss"} <= line["values"].keys()
            for number, (low, high) in line["intervals"].items():
                assert low <= line["values"][number] <= high
            assert line["values"] == by_command(loaded, checkpoint)
            assert json.loads((checkpoint / EVALUATION).read_text())["values"] == line["values"]
        assert tensors_in(run.path) == tensors_in(Path(plain.config.run_dir))


def break_one(rank: int, size: int, loaded: LoadedConfig) -> None:
    """Train with an evaluator that fails on the last rank alone, and in the end without room on that rank.

    The rank fails right after the exchange of embeddings, which the others keep for the next evaluator.
    """

    def fails(features, data):
        if rank == size - 1:
            features_module.joined_parts = hanging
        features.pictures(data.pictures)
        features.embed_texts(["a"])
        raise AssertionError("the other rank has failed before")

    def hanging(*_):
        features_module.joined_parts = joined_parts
        raise OSError("the disk hangs")

    def room(self):
        if rank == size - 1 and samples_seen[-1] == 6 * BATCH:
            raise torch.OutOfMemoryError("no room")
        return room_for_copy(self)

    def measure_at(self, seen):
        samples_seen.append(seen)
        return measure(self, seen)

    joined_parts, room_for_copy, measure = features_module.joined_parts, Engine.room_for_copy, Evaluations.measure
    samples_seen: list[int] = []
    Engine.room_for_copy, Evaluations.measure = room, measure_at
    EVALUATORS["retrieval"] = Evaluator("retrieval", fails, "captions", "", headline=("image_to_text_r1",))
    train_on(rank, size, [loaded])


def test_an_evaluator_that_fails_on_one_rank_costs_a_line_and_not_the_run(recipe, tmp_path):
    run_ranks(2, break_one, 2, config_of(recipe, tmp_path / "run"))
    first, last = evaluations(tmp_path / "run")
    why = "the disk hangs (rank 1)"
    assert first["failed"] == {"retrieval of pairs": why, "retrieval of pairs (EMA)": why}
    assert {"tree/top1", "validation/loss"} <= first["values"].keys()
    assert set(last["failed"].values()) == {"no room (rank 1)"} and last["values"] == {}
    assert "retrieval of pairs was not measured after 108 samples" in (tmp_path / "run/log/rank_0.log").read_text()
    assert json.loads((tmp_path / "run/end.json").read_text())["reason"] == "finished"


def stop_one(rank: int) -> str:
    together = Together(World(rank=rank, size=2), is_stopped=lambda: rank == 1)
    try:
        together.together(lambda: together.together(lambda: rank))
    except FailedOnARankError as error:
        return str(error)
    return ""


def test_a_request_to_stop_ends_an_evaluation_on_all_ranks():
    assert run_ranks(2, stop_one) == ["the run was asked to stop (rank 1)"] * 2


def test_the_best_checkpoint_is_kept_with_the_newest_ones(recipe, tmp_path):
    words = f"checkpoint.every_samples={BATCH}", "evaluation.best=tree (EMA)/top1"
    loaded = config_of(recipe, tmp_path / "run", *words)
    run_ranks(1, train_with_scores, loaded)
    kept = sorted(int(path.name.removeprefix("step_")) for path in checkpoints(tmp_path / "run" / "checkpoints"))
    assert kept == [1, 4, 5, 6]


def train_with_scores(rank: int, loaded: LoadedConfig) -> None:
    of_weights, of_averages = [0.25, 0.75, 0.25, 0.25, 0.25, 0.25], [0.75, 0.5, 0.25, 0.5, 0.25, 0.5]
    scores = chain.from_iterable(zip(of_weights, of_averages, strict=True))

    def measure(features, data):
        return {"pictures": 1, "rejected": {}, "metrics": {"top1": next(scores)}, "chance": {}}

    EVALUATORS["zero_shot"] = Evaluator("zero-shot", measure, "labels", "", headline=("top1",))
    train_on(rank, 1, [loaded])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("evaluation.zero_shot.tree=nowhere", "evaluation.zero_shot.tree: nowhere does not exist"),
        ("evaluation.validation={folder}/tree/red", "evaluation.validation: "),
        (
            "evaluation.zero_shot.ids={ids}",
            "{ids} gives WordNet ids such as n01000000 and no names; name them with evaluation.classes=YAML ",
        ),
        (
            "evaluation.best=tree/top2",
            "evaluation.best is 'tree/top2'; it must be one of tree/top1, pairs/",
        ),
    ],
)
def test_data_that_cannot_be_measured_are_refused_before_the_run(word, said, recipe, tmp_path):
    (tmp_path / "n01000000").mkdir()
    (tmp_path / "n01000000" / "0.png").write_bytes(picture((255, 0, 0)))
    loaded = config_of(recipe, tmp_path / "run", word.format(folder=recipe.parent, ids=tmp_path))
    with pytest.raises(UserError) as refused:
        open_asked(loaded.config)
    assert str(refused.value).startswith(said.format(ids=tmp_path))


def test_the_loss_of_every_pair_has_as_many_negatives_for_any_number_of_pairs():
    draw = np.random.default_rng(0)
    images, texts = (unit_norm(draw.normal(size=(GROUP + 40, 8))) for _ in range(2))
    losses = pair_losses(images, texts, 10.0)
    assert np.isfinite(losses).all() and len(losses) == GROUP + 40
    # With a scale of 0 the loss of a pair is the logarithm of the size of its group.
    assert pair_losses(images, texts, 0.0) == pytest.approx(np.full(GROUP + 40, np.log(GROUP)))
    logits = torch.from_numpy(10.0 * (images[:GROUP].astype(np.float64) @ texts[:GROUP].astype(np.float64).T))
    expected = [torch.nn.functional.cross_entropy(each, torch.arange(GROUP)) for each in (logits, logits.T)]
    assert pair_losses(images[:GROUP], texts[:GROUP], 10.0).mean() == pytest.approx(float(sum(expected)) / 2)


def test_the_report_draws_a_line_for_each_data_set_that_was_measured_during_the_run(tmp_path):
    lines = [
        {"event": "evaluation", "samples_seen": seen, "values": {"a/top1": 0.1, "b/top1": 0.2, "validation/loss": 5.0}}
        for seen in (100, 200, 300)
    ]
    drawn = {chart.title: chart for chart in curves([], lines)}
    assert drawn.keys() == {"Zero-shot, top-1", "Validation, loss"}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = write_report(tmp_path, {}).read_text()
    assert "Zero-shot, top-1" in page and "Validation, loss" in page


def test_wandb_gets_the_names_that_evaluate_gives_its_numbers():
    values = {"unseen/top1": 0.5, "validation/loss": 4.0}
    result = {"metrics": {"top1": 0.5}}, {"metrics": {"loss": 4.0}}
    of_command = dict(_numbers({"zero_shot": {"unseen": result[0]}, "validation": {"validation": result[1]}}))
    assert evaluated(300, values) == {"samples_seen": 300, **of_command}
