"""What the training loop decides between steps."""

import resource
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from diptych.checkpoint_folder import checkpoints, newest_valid
from diptych.config.schema import CheckpointConfig, TrackingConfig
from diptych.data.order import SampleOrder
from diptych.data.shards import ShardIndex
from diptych.data.tokenizer import train_vocabulary
from diptych.model.dual_encoder import DualEncoder
from diptych.run_dir import RunDir
from diptych.training.checkpoint import Progress
from diptych.training.console import Console
from diptych.training.engine import Engine
from diptych.training.job import Job
from diptych.training.loop import report, save, save_is_due
from diptych.training.metrics import PANELS, SAMPLES_SEEN, Metrics, read_metrics
from diptych.training.pace import Pace
from diptych.world import World
from tests.ranks import run_ranks
from tests.training.tiny import PAIRS, global_batches, tiny_config


@pytest.mark.parametrize(
    ("every", "due"),
    [(None, [200, 400, 600, 800, 1000]), (500, [600, 1000]), (100, [200, 400, 600, 800, 1000]), (2000, [])],
)
def test_a_checkpoint_is_due_whenever_a_multiple_of_its_interval_was_passed(every, due):
    config = replace(tiny_config(), checkpoint=CheckpointConfig(every_samples=every))
    config = replace(config, training=replace(config.training, total_samples=1000, global_batch_size=200))
    assert [after for after in range(200, 1001, 200) if save_is_due(config, after - 200, after)] == due


def work_on_a_full_disk(rank: int, folder: Path) -> str:
    """A logged step, then saves: one, one on a full disk, and the last of a run on a full disk."""
    config = replace(tiny_config(), tracking=TrackingConfig(wandb="off"))
    run, world, tokenizer = RunDir(folder), World(), train_vocabulary(["a caption"], 520)
    run.checkpoints.mkdir()
    engine = Engine(DualEncoder(config.model, tokenizer.vocab_size, 2.6), config, world)
    order = SampleOrder(np.array([40]), seed=0, global_batch_size=PAIRS, shuffle_window=10)
    metrics = Metrics(run.metrics, config, samples_seen=0, tracker_id="x")
    job = Job(config, run, world, ShardIndex(()), order, tokenizer, engine, Progress(), metrics)

    stats = engine.step(global_batches(1)[0], 0)
    progress = Progress(samples_seen=PAIRS, rejected={"no_caption": 2, "truncated": 1})
    report(job, progress, stats, Pace(0, 0.0), Console(total_samples=40, samples_seen=0, shown=False))

    save(job, progress, must_succeed=True)
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    later = replace(progress, samples_seen=2 * PAIRS)
    save(job, later, must_succeed=False)
    try:
        save(job, later, must_succeed=True)
    except OSError as error:
        return error.strerror
    finally:
        job.close()
    return "no error"


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run_ranks(1, work_on_a_full_disk, folder)[0]


def test_a_logged_step_holds_every_metric_of_the_panels(full_disk):
    line = read_metrics(full_disk[0] / "metrics.jsonl")[0]
    on_a_cpu = {name for names in PANELS.values() for name in names} - {"gpu_memory_gib"}
    assert line.keys() == {SAMPLES_SEEN, "time", *on_a_cpu}
    assert line[SAMPLES_SEEN] == PAIRS and line["epoch"] == PAIRS / 40 and line["rejected_samples"] == 3


def test_a_save_that_finds_no_room_is_recorded_and_ends_a_run_only_if_it_was_the_last_chance(full_disk):
    folder, said = full_disk
    assert "too large" in said.lower()
    events = [line for line in read_metrics(folder / "metrics.jsonl") if "event" in line]
    assert [line["event"] for line in events] == ["save", "save_failed"]
    saved = folder / "checkpoints" / "step_00000001"
    assert newest_valid(folder / "checkpoints") == (saved, [])
    assert checkpoints(folder / "checkpoints") == list((folder / "checkpoints").iterdir()) == [saved]
