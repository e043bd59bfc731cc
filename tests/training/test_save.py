"""Checkpoints that real ranks save while they go on training."""

import os
import resource
import shutil
import signal
import socket
import sys
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from diptych.agreement import on_any_rank
from diptych.checkpoint_folder import checkpoints, newest_valid
from diptych.config.schema import RunConfig
from diptych.errors import TransientError
from diptych.run_dir import RunDir, read_metrics
from diptych.training import save
from diptych.training.checkpoint import Progress, load_checkpoint
from diptych.training.engine import Engine
from diptych.training.save import Saves
from diptych.training.signals import StopRequest
from diptych.training.tallies import FAILING, SAVE_STATES, WRITTEN
from diptych.world import World
from tests.ranks import run_ranks
from tests.training.test_engine import make_engine, new_model, take_steps, with_batch_statistics
from tests.training.test_loop import once_a_save_failed
from tests.training.tiny import PAIRS, at_night, global_batches, rows_of, tiny_job

STAGES_OF = {1: (0,), 2: (0, 2, 3, *at_night(1)), 3: (1, *at_night(3))}
FIRST, SECOND = Progress(samples_seen=PAIRS), Progress(samples_seen=2 * PAIRS)


def config_at(stage: int, size: int) -> RunConfig:
    """A model with running statistics and averages.

    At stage 2 moments are in bf16, at stage 3 a parameter is frozen, on 3 ranks the optimizer is offloaded.
    """
    config = with_batch_statistics(stage)
    return replace(
        config,
        model=replace(config.model, freeze=("text.token_embedding.*",) if stage == 3 else ()),
        machine=replace(config.machine, offload_optimizer=size == 3),
        optimizer=replace(config.optimizer, moments="bf16" if stage == 2 else "fp32"),
    )


def start_saves(folder: Path, config: RunConfig, rank: int, size: int) -> tuple[Engine, Saves]:
    engine = make_engine(rank, size, config, new_model(config).state_dict())
    return engine, Saves(tiny_job(folder, config, World(rank, rank, size), engine), StopRequest())


def save_and_train_on(rank: int, size: int, folder: Path) -> dict[int, Any]:
    """ZeRO stage → what the engine had when it was saved, and what the checkpoint has that was written afterwards."""
    result = {}
    for stage in STAGES_OF[size]:
        engine, saves = start_saves(folder / f"{size}_{stage}", config_at(stage, size), rank, size)
        with closing(saves):
            saves.start(Progress())
            saves.finish()
            take_steps(engine, rank, size, 0, 1)
            writer = saves._writer._process.pid
            os.kill(writer, signal.SIGSTOP)
            saves.start(FIRST)
            had = engine.weights(), engine.optimizer_state(), engine.weights(averaged=True)
            take_steps(engine, rank, size, 1, 2)
            os.kill(writer, signal.SIGCONT)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):  # as a scheduler sends to all processes
                os.kill(writer, number)
            saves.finish()
            assert saves._writer._process.pid == writer
        path, faults = newest_valid(folder / f"{size}_{stage}" / "checkpoints")
        assert path is not None and not faults
        result[stage] = had, load_checkpoint(path), sorted(each.name for each in (path / "optimizer").iterdir())
    return result


@pytest.mark.parametrize("size", STAGES_OF)
def test_a_checkpoint_holds_what_the_ranks_had_when_it_was_started(size, tmp_path):
    for stage, (had, saved, files) in run_ranks(size, save_and_train_on, size, tmp_path)[0].items():
        weights, optimizer, averages = had
        assert saved.progress == FIRST
        for ours, theirs in (
            (saved.weights, weights),
            (saved.averages, averages),
            *((saved.optimizer.moments[kind], moments) for kind, moments in optimizer.moments.items()),
        ):
            assert ours.keys() == theirs.keys(), stage
            for name, tensor in theirs.items():
                assert ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor), (stage, name)
        assert saved.optimizer.step == optimizer.step == 1
        assert files == [f"rank_{rank:05d}.safetensors" for rank in range(size)]


def find_room_while_training(rank: int, folder: Path) -> list[str]:
    """The events of a save that fails at first and succeeds while the ranks take steps."""
    config = config_at(1, 2)
    engine, saves = start_saves(folder, config, rank, 2)
    writer = saves._writer._process.pid
    before = resource.prlimit(writer, resource.RLIMIT_FSIZE)
    resource.prlimit(writer, resource.RLIMIT_FSIZE, (1000, before[1]))
    with closing(saves):
        saves.start(FIRST)
        number = 0
        while saves.states():
            tallies = tuple(saves.states()[name] for name in SAVE_STATES)
            batch = rows_of(global_batches(1)[0], World(rank, rank, 2).rows(PAIRS))
            sums = engine.step(batch, number * PAIRS, tallies=tallies).read().tallies
            saves.advance(dict(zip(SAVE_STATES, sums, strict=True)))
            if sums[SAVE_STATES.index(FAILING)] == 2:  # only now is there room
                resource.prlimit(writer, resource.RLIMIT_FSIZE, before)
            number += 1
    return [line["event"] for line in read_metrics(folder / "metrics.jsonl") if "event" in line]


def test_a_save_that_finds_room_later_needs_no_wait(tmp_path):
    assert run_ranks(2, find_room_while_training, tmp_path)[0] == ["save_failed", "save"]
    path, faults = newest_valid(tmp_path / "checkpoints")
    assert path is not None and path.name == "step_00000001" and not faults


def lose_writers(rank: int, folder: Path) -> list[str]:
    """Saves during which rank 1's writer is killed: once, twice, never, and twice at the end of the run."""
    config = config_at(1, 2)
    _, saves = start_saves(folder, config, rank, 2)

    def kill() -> None:
        if rank == 1:
            saves._writer._process.kill()
            saves._writer._process.wait()

    python, fails = sys.executable, shutil.which("false")
    assert fails is not None
    with closing(saves):
        kill()
        saves.start(FIRST)
        saves.finish()

        kill()
        sys.executable = fails if rank == 1 else python
        saves.start(SECOND)
        saves.wait()
        sys.executable = python
        left = sorted(path.name for path in (folder / "checkpoints").iterdir())
        saves.start(replace(SECOND, samples_seen=3 * PAIRS))
        saves.finish()

        kill()
        sys.executable = fails if rank == 1 else python
        saves.start(replace(SECOND, samples_seen=4 * PAIRS))
        try:
            saves.finish()
        except (TransientError, SystemExit) as error:
            return [*left, str(error)]
    return left


def test_a_killed_writer_costs_at_most_the_checkpoint_that_it_wrote(tmp_path):
    (first, other) = run_ranks(2, lose_writers, tmp_path)
    assert first[:-1] == ["step_00000001"]
    assert first[-1].startswith(f"stopped after {4 * PAIRS} samples without a checkpoint of them")
    assert other[-1] == "1", "the status after which launchers start the ranks again"
    assert [path.name for path in checkpoints(tmp_path / "checkpoints")] == ["step_00000003", "step_00000001"]
    events = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "event" in line]
    assert [(line["event"], line["samples_seen"] // PAIRS) for line in events] == [
        ("save", 1),
        ("save_failed", 2),
        ("save", 3),
        ("save_failed", 4),
        ("save_failed", 4),
    ]
    assert {"seconds", "stall_seconds", "bytes", "path"} <= events[0].keys()


def end_without_an_answer(rank: int, folder: Path) -> tuple[str, bool]:
    """The end of a run in which rank 1's writer does not answer in the second save."""
    config = config_at(1, 2)
    config = replace(config, checkpoint=replace(config.checkpoint, max_wait_seconds=1))
    save.SHORTEST_HANG_SECONDS = 2
    _, saves = start_saves(folder, config, rank, 2)
    writer = saves._writer._process
    with closing(saves):
        saves.start(FIRST)
        saves.finish()
        if rank == 1:
            writer.send_signal(signal.SIGSTOP)
        saves.start(SECOND)
        try:
            saves.finish()
        except (TransientError, SystemExit) as error:
            return str(error), writer.poll() is not None
    return "saved", False


def test_a_writer_that_hangs_ends_the_run_with_a_line(tmp_path):
    (said, _), (status, is_ended) = run_ranks(2, end_without_an_answer, tmp_path)
    assert said == (
        f"stopped after {2 * PAIRS} samples without a checkpoint of them: the process that writes it on "
        f"{socket.gethostname()} has done nothing for 2 seconds (checkpoint.max_wait_seconds), as happens when the "
        f"disk of {tmp_path / 'checkpoints'} does not answer; then the same command goes on from the newest "
        "checkpoint, step_00000001"
    )
    assert status == "1" and is_ended


def until_written(saves: Saves) -> None:
    while not saves.states()[WRITTEN]:
        time.sleep(0.01)


def lose_a_writer_whose_share_is_done(rank: int, folder: Path) -> bool:
    """Kill rank 1's writer while rank 0's completes the checkpoint; whether rank 1's file is left as it was."""
    _, saves = start_saves(folder, config_at(1, 2), rank, 2)
    with closing(saves):
        saves.start(FIRST)
        until_written(saves)
        writer = saves._writer._process
        if rank == 0:
            writer.send_signal(signal.SIGSTOP)
        while not saves._save.is_committing:
            saves.advance(saves._states_of_all())
        [share] = (folder / "checkpoints").glob("*.partial/optimizer/rank_00001.safetensors")
        written = share.stat().st_mtime_ns
        if rank == 1:
            writer.kill()
            writer.wait()
            for _ in range(15):
                saves.states()
                time.sleep(0.05)
        is_untouched = share.stat().st_mtime_ns == written
        on_any_rank(World(rank, rank, 2), False)
        if rank == 0:
            writer.send_signal(signal.SIGCONT)
        saves.finish()
    return is_untouched


def test_a_writer_whose_share_is_done_may_be_killed_while_the_checkpoint_is_completed(tmp_path):
    assert run_ranks(2, lose_a_writer_whose_share_is_done, tmp_path) == [True, True]
    path, faults = newest_valid(tmp_path / "checkpoints")
    assert path is not None and not faults


def lose_the_writer_that_is_to_complete(rank: int, folder: Path) -> list[str]:
    """Notice the end of rank 0's writer after the step that counted its share as written; the events."""
    _, saves = start_saves(folder, config_at(0, 1), rank, 1)
    with closing(saves):
        saves.start(FIRST)
        until_written(saves)
        counted = saves.states()
        saves._writer._process.kill()
        while saves.states()[WRITTEN]:
            time.sleep(0.01)
        saves.advance(counted)
        saves.finish()
    return [line["event"] for line in read_metrics(folder / "metrics.jsonl") if "event" in line]


def test_a_writer_that_follows_a_killed_one_writes_the_share_before_it_completes_the_checkpoint(tmp_path):
    assert run_ranks(1, lose_the_writer_that_is_to_complete, tmp_path) == [["save"]]
    path, faults = newest_valid(tmp_path / "checkpoints")
    assert path is not None and not faults


def find_room_for_the_manifest(rank: int, folder: Path) -> list[str]:
    """Wait for a save that all ranks have written but whose completion has no room at first; the events."""
    _, saves = start_saves(folder, config_at(1, 2), rank, 2)
    writer = saves._writer._process.pid
    before = resource.prlimit(writer, resource.RLIMIT_FSIZE)
    with closing(saves):
        saves.start(FIRST)
        until_written(saves)
        if rank == 0:
            resource.prlimit(writer, resource.RLIMIT_FSIZE, (10, before[1]))
            once_a_save_failed(RunDir(folder), 1, lambda: resource.prlimit(writer, resource.RLIMIT_FSIZE, before))
        saves.wait()
    return [line["event"] for line in read_metrics(folder / "metrics.jsonl") if "event" in line]


def test_a_save_whose_completion_finds_room_later_goes_on(tmp_path):
    assert run_ranks(2, find_room_for_the_manifest, tmp_path)[0] == ["save_failed", "save"]
