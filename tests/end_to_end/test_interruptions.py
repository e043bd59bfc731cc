"""A run stopped, killed or harmed anywhere, and started again by the same command, ends with the very same bytes."""

import os
import random
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest

from diptych.training.checkpoint import newest_valid, verify
from tests.end_to_end.runs import BATCH, MAIN, STEPS, STEPS_PER_SAVE, TORCHRUN, Run, losses, make_toy, samples_seen

FILES = ("model/model.safetensors", "optimizer.safetensors")
LAUNCHERS = {1: MAIN, 2: TORCHRUN}
GOES_ON = "the same command goes on from there"


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    return make_toy(tmp_path_factory.mktemp("toy"))


@pytest.fixture(scope="module")
def uninterrupted(config) -> dict[int, Path]:
    """Number of ranks → the directory of a run from start to end."""
    folders = {}
    for ranks in (1, 2):
        folders[ranks] = config.parent / f"uninterrupted_{ranks}"
        ended = Run.by_fork(folders[ranks], config, ranks=ranks).wait()
        assert ended.statuses == [0] * ranks, ended.errors
    return folders


@pytest.fixture(scope="module")
def stopped(config) -> Path:
    """A run of one rank, stopped in the middle, with three checkpoints."""
    run = Run.by_fork(config.parent / "stopped", config)
    run.wait_for_step(2 * STEPS_PER_SAVE + 3)
    run.signal(signal.SIGTERM)
    assert run.wait().statuses == [0] and samples_seen(run.folder) < STEPS * BATCH
    return run.folder


def final(folder: Path) -> list[bytes]:
    checkpoint = folder / "checkpoints" / f"step_{STEPS:08d}"
    verify(checkpoint)
    return [(checkpoint / name).read_bytes() for name in FILES]


def stopped_at(folder: Path) -> int:
    """The step of the newest checkpoint, which must be whole and not the last one."""
    newest, faults = newest_valid(folder / "checkpoints")
    assert newest is not None and not faults
    step = int(newest.name.removeprefix("step_"))
    assert 0 < step < STEPS
    return step


def everything_in(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_stopped_by_sigterm_goes_on_to_the_same_bytes(ranks, config, uninterrupted, tmp_path):
    run = Run.by_command(tmp_path / "run", config, launcher=LAUNCHERS[ranks])
    run.wait_for_step(random.randint(1, STEPS // 2))
    run.signal(signal.SIGTERM)
    ended = run.wait()
    step = stopped_at(run.folder)
    assert f"stopped after {step * BATCH} samples; {GOES_ON}" in ended.output
    ended = Run.by_command(run.folder, config, launcher=LAUNCHERS[ranks]).wait()
    assert ended.statuses == [0] and f"going on after {step * BATCH} samples" in ended.output
    assert final(run.folder) == final(uninterrupted[ranks])
    assert losses(run.folder) == losses(uninterrupted[ranks])


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_killed_while_it_saves_goes_on_to_the_same_bytes(ranks, config, uninterrupted, tmp_path):
    left_over = 0
    for save in range(3):
        run = Run.by_fork(tmp_path / "run", config, ranks=ranks)
        run.wait_for_step(save * STEPS_PER_SAVE + 1)
        while not list(run.folder.glob("checkpoints/*.partial")):
            assert run.is_alive()
        time.sleep(random.uniform(0, 0.01))
        run.signal(signal.SIGKILL)
        assert run.wait().statuses == [-signal.SIGKILL] * ranks
        left_over += bool(list(run.folder.glob("checkpoints/*.partial")))
    assert left_over > 0
    assert Run.by_fork(run.folder, config, ranks=ranks).wait().statuses == [0] * ranks
    assert final(run.folder) == final(uninterrupted[ranks])
    assert not list(run.folder.glob("checkpoints/*.partial"))


@pytest.mark.parametrize("file", [*FILES, "progress.json"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_taken(file, config, uninterrupted, stopped, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    newest = folder / "checkpoints" / f"step_{stopped_at(folder):08d}"
    content = bytearray((newest / file).read_bytes())
    content[len(content) // 2] ^= 1
    (newest / file).write_bytes(content)

    ended = Run.by_fork(folder, config).wait()
    assert ended.statuses == [0]
    assert f"{newest / file}: has changed since it was written" in ended.errors
    assert f"going on after {2 * STEPS_PER_SAVE * BATCH} samples" in ended.output
    assert final(folder) == final(uninterrupted[1])


@pytest.mark.parametrize("ranks", [1, 2])
def test_ctrl_c_saves_and_says_how_to_go_on_and_leaves_no_process(ranks, config, tmp_path):
    run = Run.by_command(tmp_path / "run", config, "machine.loader_workers=2", launcher=LAUNCHERS[ranks])
    run.wait_for_step(5)
    family = psutil.Process(run.pids[0]).children(recursive=True)
    assert len(family) >= 2 * ranks
    run.signal(signal.SIGINT)
    ended = run.wait()
    assert f"stopped after {stopped_at(run.folder) * BATCH} samples; {GOES_ON}" in ended.output
    if ranks == 1:
        assert ended.statuses == [0] and not ended.errors
    _, alive = psutil.wait_procs(family, timeout=5)
    assert not alive


def test_sigterm_to_one_of_two_ranks_stops_both_at_the_same_step(config, uninterrupted, tmp_path):
    run = Run.by_fork(tmp_path / "run", config, ranks=2)
    run.wait_for_step(random.randint(1, STEPS // 2))
    run.signal(signal.SIGTERM, rank=1)
    ended = run.wait()
    assert ended.statuses == [0, 0] and ended.output.count(GOES_ON) == 1
    assert stopped_at(run.folder) * BATCH == samples_seen(run.folder)
    assert Run.by_fork(run.folder, config, ranks=2).wait().statuses == [0, 0]
    assert final(run.folder) == final(uninterrupted[2])


def test_a_finished_run_says_so_and_stays_as_it_is(config, uninterrupted):
    before = everything_in(uninterrupted[1] / "checkpoints"), losses(uninterrupted[1])
    ended = Run.by_fork(uninterrupted[1], config).wait()
    assert ended.statuses == [0] and not ended.errors
    assert f"finished: all {STEPS * BATCH} samples were seen" in ended.output
    assert (everything_in(uninterrupted[1] / "checkpoints"), losses(uninterrupted[1])) == before


@pytest.mark.parametrize("ranks", [1, 2])
def test_another_learning_rate_in_the_same_directory_is_refused_and_changes_nothing(ranks, config, stopped):
    before = everything_in(stopped)
    ended = Run.by_fork(stopped, config, "optimizer.learning_rate=2e-3", ranks=ranks).wait()
    assert ended.statuses == [2] * ranks
    assert ended.errors.count("optimizer.learning_rate = 0.001, this one has 0.002") == 1
    assert "Traceback" not in ended.errors and everything_in(stopped) == before


@pytest.mark.parametrize("workers", [0, 2])
def test_the_number_of_loader_workers_changes_no_loss(workers, config, uninterrupted, tmp_path):
    run = Run.by_fork(tmp_path / "run", config, f"machine.loader_workers={workers}")
    assert run.wait().statuses == [0]
    assert losses(run.folder) == losses(uninterrupted[1])


def test_two_ranks_have_the_losses_of_one(uninterrupted):
    one, two = losses(uninterrupted[1]), losses(uninterrupted[2])
    assert len(one) == STEPS
    assert two == pytest.approx(one, rel=0, abs=1e-5)  # fp32 sums in another order


@pytest.fixture
def harmed(config, tmp_path) -> Path:
    """Its own copy of the toy's shards, one byte of one picture flipped since they were indexed."""
    folder = tmp_path / "shards"
    shutil.copytree(config.parent / "shards", folder)
    with (folder / "00001.tar").open("r+b") as file:
        file.seek(512 + 100)  # the first member, behind its header
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    return folder


def test_a_damaged_sample_is_counted_and_replaced(config, harmed, tmp_path):
    run = Run.by_fork(tmp_path / "run", config, f"data.train={harmed}")
    assert run.wait().statuses == [0]
    (log,) = (run.folder / "log").iterdir()
    named = log.read_text().count("rejected 000040 of 00001.tar: damaged_shard")
    assert named == -(-STEPS * BATCH // 120)  # in every epoch, once
    assert f'"rejected_samples": {named}' in (run.folder / "metrics.jsonl").read_text().splitlines()[-3]
    assert len(losses(run.folder)) == STEPS


@pytest.mark.parametrize("ranks", [1, 2])
def test_too_many_damaged_samples_end_the_run_with_a_table(ranks, config, harmed, tmp_path):
    words = (f"data.train={harmed}", "data.max_rejected_fraction=0.005")
    ended = Run.by_fork(tmp_path / "run", config, *words, ranks=ranks).wait()
    assert ended.statuses == [2] * ranks
    (line,) = ended.errors.splitlines()
    assert "samples were rejected (damaged_shard 6); data.max_rejected_fraction allows 0.005" in line


def test_a_truncated_shard_is_one_line(config, harmed, tmp_path):
    os.truncate(harmed / "00002.tar", 3000)
    ended = Run.by_fork(tmp_path / "run", config, f"data.train={harmed}").wait()
    assert ended.statuses == [2] and not (tmp_path / "run").exists()
    (line,) = ended.errors.splitlines()
    assert "00002.tar" in line and "truncated" in line
