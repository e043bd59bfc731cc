"""What the training loop decides between steps."""

import resource
import signal
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from diptych.checkpoint_folder import CheckpointError, newest_valid
from diptych.config.schema import CheckpointConfig
from diptych.data.batch import Batch
from diptych.model.dual_encoder import DualEncoder
from diptych.run_dir import RunDir, read_metrics
from diptych.training import loop
from diptych.training import pace as pace_module
from diptych.training.checkpoint import Progress
from diptych.training.console import Console
from diptych.training.engine import Engine
from diptych.training.loop import save_is_due
from diptych.training.metrics import PANELS, SAMPLES_SEEN
from diptych.training.pace import Pace
from diptych.training.save import Saves
from diptych.training.signals import StopRequest
from diptych.training.step_report import report
from diptych.training.step_stats import StepInFlight
from diptych.training.tallies import tallies_of
from diptych.world import World
from tests.ranks import run_ranks
from tests.training.test_pace import Clock, stats
from tests.training.tiny import PAIRS, VOCABULARY, global_batches, rows_of, tiny_config, tiny_job


@pytest.mark.parametrize(
    ("every", "due"),
    [(None, [200, 400, 600, 800, 1000]), (500, [600, 1000]), (100, [200, 400, 600, 800, 1000]), (2000, [])],
)
def test_a_checkpoint_is_due_whenever_a_multiple_of_its_interval_was_passed(every, due):
    config = replace(tiny_config(), checkpoint=CheckpointConfig(every_samples=every))
    config = replace(config, training=replace(config.training, total_samples=1000, global_batch_size=200))
    assert [after for after in range(200, 1001, 200) if save_is_due(config, after - 200, after)] == due


def test_roll_backs_evaluations_and_saves_do_not_count_as_time_of_steps(tmp_path, monkeypatch):
    clock, waited, speeds = Clock(), [], []
    monkeypatch.setattr(pace_module, "time", clock)
    monkeypatch.setattr(loop, "on_any_rank", lambda _, ours: ours)
    monkeypatch.setattr(loop, "report", lambda _, __, steps, pace, *___: speeds.append(pace.measure(steps)))

    def takes(seconds: float, result: object = None) -> Callable[..., Any]:
        def work(*_: object, **__: object) -> Any:
            clock.now += seconds
            return result

        return work

    def step(batch: Batch, seen: int, *, waited_seconds: float, **_: object) -> StepInFlight:
        waited.append(waited_seconds)
        return StepInFlight(takes(1.0, stats(seen + PAIRS, (waited_seconds,))))

    for name, instead in {
        "judge": lambda progress, stats, _, **__: (progress, "wrong" if stats.samples_seen == PAIRS else None),
        "tell": takes(0.0),
        "is_given_up": takes(0.0, True),
        "roll_back": lambda _, progress, *__, **___: takes(9.0, progress)(),
    }.items():
        monkeypatch.setattr(loop, name, instead)
    config = replace(tiny_config(), checkpoint=CheckpointConfig(every_samples=3 * PAIRS))
    config = replace(config, training=replace(config.training, total_samples=5 * PAIRS))
    engine = SimpleNamespace(step=step, has_finite_weights=lambda: True)
    job = tiny_job(tmp_path, config, World(rank=1), engine)  # type: ignore[arg-type]
    job.batches = (batch for batch in global_batches(5) if takes(0.25, True)())
    nothing = takes(0.0)
    saves = SimpleNamespace(states=dict, advance=nothing, take_numbers=dict, wait=nothing)
    saves.start, saves.finish = takes(60.0), takes(7.0)
    evaluations = SimpleNamespace(is_due=lambda _, after: after == 2 * PAIRS, measure=takes(30.0))
    parts = saves, evaluations, SimpleNamespace(move=nothing, say=nothing), SimpleNamespace(enter=nothing)
    assert loop.Training(job, StopRequest(), *parts).go_on()  # type: ignore[arg-type]
    assert waited == [0.25] * 5
    assert {speed[name] for speed in speeds for name in ("step_seconds_p50", "step_seconds_p95")} == {1.25}


def limit_files(saves: Saves, num_bytes: int) -> None:
    """Limit the size of files of the process that writes, so that a larger one raises OSError as on a full disk."""
    process = saves._writer._process.pid
    _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
    resource.prlimit(process, resource.RLIMIT_FSIZE, (num_bytes, hard))


def once_a_save_failed(run: RunDir, times: int, then: Callable[[], None]) -> threading.Thread:
    """Call a function as soon as the record says that a save failed."""

    def watch() -> None:
        while sum(line.get("event") == "save_failed" for line in read_metrics(run.metrics)) < times:
            time.sleep(0.01)
        then()

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def work_on_a_full_disk(rank: int, folder: Path) -> list[str]:
    """A logged step, then saves: one that works, one that waits for room, one that a signal ends, one with no wait."""
    config, run, world = tiny_config(), RunDir(folder), World(rank=rank, size=2)
    engine = Engine(DualEncoder(config.model, VOCABULARY, 2.6), config, world)
    job = tiny_job(folder, config, world, engine)
    no_limit, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    stop = StopRequest()

    saves = Saves(job, stop)
    progress = Progress(samples_seen=PAIRS, rejected={"no_caption": 2, "truncated": 1})
    saves.start(progress)
    saves.finish()

    batch = rows_of(global_batches(1)[0], world.rows(PAIRS))
    batch.reads.update(cache_hits=3, cache_misses=rank)
    steps = [
        engine.step(
            batch,
            0,
            tallies=tallies_of(batch, job.mixture, is_stop_requested=False, save_states=saves.states()),
            measures_update=True,
        ).read()
    ]
    pace = Pace(PAIRS, 0.0)
    pace.step_is_done()
    console = Console(total_samples=40, samples_seen=0, shown=False)
    report(job, progress, steps, pace, console, saves.take_numbers())

    limit_files(saves, 20_000)
    makes_room = once_a_save_failed(run, 1, lambda: limit_files(saves, no_limit))
    saves.start(replace(progress, samples_seen=2 * PAIRS))
    saves.finish()
    makes_room.join()

    asks = once_a_save_failed(run, 2, lambda: stop.ask(signal.SIGTERM, None) if rank == 1 else None)
    said = [how_it_ends(saves, replace(progress, samples_seen=3 * PAIRS))]
    asks.join()
    job.config = replace(config, checkpoint=replace(config.checkpoint, max_wait_seconds=0))
    said.append(how_it_ends(Saves(job, stop), replace(progress, samples_seen=4 * PAIRS)))
    job.close()
    return said


def how_it_ends(saves: Saves, progress: Progress) -> str:
    """The error of a save for which there is no room."""
    limit_files(saves, 20_000)
    with closing(saves):
        saves.start(progress)
        try:
            saves.finish()
        except (CheckpointError, SystemExit) as error:
            return str(error)
    return "saved"


@pytest.fixture(scope="module")
def full_disk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run_ranks(2, work_on_a_full_disk, folder)


def test_a_logged_step_holds_every_metric_of_the_panels(full_disk):
    line = next(line for line in read_metrics(full_disk[0] / "metrics.jsonl") if "loss" in line)
    on_a_cpu = {name for names in PANELS.values() for name in names} - {"gpu_memory_gib", "mfu", "stage", "token_loss"}
    assert line.keys() == {
        SAMPLES_SEEN,
        "time",
        *on_a_cpu,
        "rejected_no_caption",
        "rejected_truncated",
        "share_of_web",
        "share_of_books",
    }
    assert (line["share_of_web"], line["share_of_books"]) == (9 / PAIRS, 3 / PAIRS)
    assert (line["rejected_no_caption"], line["rejected_truncated"]) == (2, 1)
    assert line["cache_hit_fraction"] == 6 / 7  # 3 of 3 on one rank, 3 of 4 on the other
    assert line[SAMPLES_SEEN] == PAIRS and line["epoch"] == PAIRS / 40 and line["rejected_samples"] == 3


def test_a_save_that_finds_no_room_waits_for_it_on_all_ranks(full_disk):
    events = [line for line in read_metrics(full_disk[0] / "metrics.jsonl") if "event" in line]
    assert [(line["event"], line["samples_seen"] // PAIRS) for line in events] == [
        ("save", 1),
        *[("save_failed", 2), ("save", 2)],
        *[("save_failed", 3), ("save_failed", 4)],
    ]
    assert "File too large" in events[1]["error"]


def test_a_wait_for_room_ends_with_its_time_or_a_signal_to_any_rank(full_disk):
    folder, (first, other) = full_disk
    assert other == ["2", "2"]  # the exit status: one rank prints the error, all stop
    for line, samples in zip(first, (3 * PAIRS, 4 * PAIRS), strict=True):
        assert line.startswith(f"stopped after {samples} samples without a checkpoint of them: File too large")
        assert "a checkpoint takes 0." in line and line.endswith("goes on from the newest checkpoint, step_00000002")
    saves = folder / "checkpoints"
    assert newest_valid(saves) == (saves / "step_00000002", [])
    assert sorted(saves.iterdir()) == [saves / "step_00000001", saves / "step_00000002"]


def test_a_second_signal_soon_after_the_first_is_the_same_request():
    stop = StopRequest()
    for _ in range(3):
        stop.ask(signal.SIGINT, None)
    assert stop.requested and stop.times == 1
