"""What the ranks of a run do before the first step."""

import sys
from collections import Counter
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from diptych.config.load import ConfigError
from diptych.config.schema import DataConfig, GroupsConfig, RunConfig, StageConfig, TokenizerConfig, TrackingConfig
from diptych.data.groups import write_groups
from diptych.data.loader_processes import LoaderProcesses
from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import open_index
from diptych.data.tokenizer import train_vocabulary
from diptych.loss.visual_ngrams import VisualNgrams
from diptych.model.flops import TrainingFlops
from diptych.run_dir import RunDir
from diptych.training import job, loop
from diptych.training.checkpoint import Progress
from diptych.training.job import prepare
from diptych.world import World
from tests.ranks import run_ranks
from tests.training.test_pace import stats
from tests.training.tiny import CONTEXT, PAIRS, VOCABULARY, tiny_config, tiny_job


def run_config(folder: Path) -> RunConfig:
    """A run on two shards in the folder, which are written here."""
    for number in range(2):
        with ShardWriter(folder / "shards", number) as writer:
            writer.add(f"{number}", {"txt": b"a caption"})
    train_vocabulary(["a caption"], 520).save(folder / "vocabulary.json")
    (folder / "run" / "log").mkdir(parents=True)
    return replace(
        tiny_config(),
        run_dir=str(folder / "run"),
        data=DataConfig(train=str(folder / "shards")),
        tokenizer=TokenizerConfig(vocabulary=str(folder / "vocabulary.json")),
        tracking=TrackingConfig(wandb="off"),
    )


def look_at_shards(rank: int, config: RunConfig) -> tuple[list[str], str, str]:
    """The files of the shards that this rank opened or listed before the first step, and what it knows of them."""
    seen = []

    def record(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "os.listdir", "os.scandir") and str(arguments[0]).startswith(config.data.train):
            seen.append(str(arguments[0]))

    sys.addaudithook(record)
    job.Engine = lambda *_: None  # it takes seconds, and does not look at data
    world = World(rank=rank, size=2)
    with closing(prepare(config, RunDir(Path(config.run_dir)), world, LoaderProcesses(1))) as prepared:
        before = [*seen]
        return before, prepared.mixture.index.fingerprint, prepared.mixture.index.sample(1, 0).name


def test_only_the_first_rank_looks_at_the_shards_before_they_are_read(tmp_path):
    config = run_config(tmp_path)
    (by_first, *known), (by_second, *known_to_second) = run_ranks(2, look_at_shards, config)
    assert by_first and not by_second
    assert known == known_to_second and known[1] == "00001.tar/1"


def order_and_progress(rank: int, config: RunConfig) -> tuple[list[list[int]], Progress]:
    job.Engine = lambda *_: None
    world = World(rank=rank, size=2)
    with closing(prepare(config, RunDir(Path(config.run_dir)), world, LoaderProcesses(1))) as prepared:
        return [prepared.order.rows(batch).samples.tolist() for batch in range(2)], prepared.progress


def test_ranks_agree_on_an_order_of_groups_with_unique_captions(tmp_path):
    config = run_config(tmp_path)
    write_groups(tmp_path / "groups.npz", np.array([0, 1]), open_index(config.data.train).fingerprint)
    data = replace(
        config.data, unique_captions_in_batch=True, groups=GroupsConfig(file=str(tmp_path / "groups.npz"), power=0.5)
    )
    (order, progress), (order_of_second, _) = run_ranks(2, order_and_progress, replace(config, data=data))
    assert order == order_of_second
    assert [Counter(batch) for batch in order] == [{0: 6, 1: 6}] * 2
    # Other groups would be another run.
    fingerprint = open_index(config.data.train).fingerprint
    assert progress.data != fingerprint
    with pytest.raises(ConfigError, match=r"with data.groups.file .*groups.npz: is not the data that"):
        job._refuse_other_input(
            replace(progress, vocabulary="x"),
            replace(config, data=data),
            fingerprint,
            SameVocabulary(),
            RunDir(tmp_path),
        )


class SameVocabulary:
    fingerprint = "x"


def test_a_batch_belongs_to_a_stage_and_takes_its_operations(tmp_path, monkeypatch):
    config = tiny_config(stages=(StageConfig(samples=PAIRS + 1, image_size=8), StageConfig()))
    staged = tiny_job(tmp_path, config, World(rank=1), SimpleNamespace(words=None))  # type: ignore[arg-type]
    small, whole = (PAIRS * staged.flops_of(stage).of_pair(CONTEXT) for stage in staged.stages)
    assert small < whole
    until = [staged.flops_until(number * PAIRS) for number in range(5)]
    assert until == [0, small, 2 * small, 2 * small + whole, 2 * small + 2 * whole]
    monkeypatch.setattr(loop, "Console", SimpleNamespace)
    assert loop.console_of(staged).work_until(3 * PAIRS) == until[3], "the time left is weighed by it"
    begin = [number for number in range(4) if staged.begins_stage(stats((number + 1) * PAIRS, (0.0,)))]
    assert begin == [2], "the third batch is the first one that begins with a sample of the second stage"


def test_the_outputs_of_n_grams_count_among_the_operations_of_a_run(tmp_path):
    words = VisualNgrams(VOCABULARY, [[0, 1], [1, 2]], 3, 0.2)
    config = tiny_config(loss="visual_ngrams")
    counted = tiny_job(tmp_path, config, World(rank=1), SimpleNamespace(words=words))  # type: ignore[arg-type]
    plain = TrainingFlops(config.model, VOCABULARY, config.loss).of_pair(CONTEXT)
    assert counted.flops_of(counted.stages[0]).of_pair(CONTEXT) == plain + 3 * 2 * 2 * 32, "the trunk is 32 wide"
