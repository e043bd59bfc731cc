"""A run that is stopped, killed or damaged resumes with the same command and ends with the same bytes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from diptych.checkpoint_folder import checkpoints
from diptych.verbs.train import STOPPED
from tests.commands import Command, forked_launcher, gone, start
from tests.end_to_end.conftest import STEPS, losses, outcome, verify_whole

GOES_ON = "the same command goes on from there"


def after_some_steps(command: Command, run_dir: Path, steps: int) -> None:
    """Wait until the record has that many more steps than now."""
    wanted = num_logged(run_dir) + steps
    command.wait_until(lambda: num_logged(run_dir) >= wanted)


def num_logged(run_dir: Path) -> int:
    record = run_dir / "metrics.jsonl"
    return record.read_bytes().count(b'"loss"') if record.exists() else 0


def stopped_step(run_dir: Path) -> int:
    """The last step of a run that was stopped before its end; checks that it has a valid checkpoint of that step."""
    last = checkpoints(run_dir / "checkpoints")[0]
    verify_whole(last)
    step = int(last.name.removeprefix("step_"))
    assert step == losses(run_dir)[-1][0] // 32 < STEPS
    return step


def writers_of(rank: Command) -> list[psutil.Process]:
    """The process that writes the checkpoints of a rank, unless it has just ended."""
    found = []
    for process in rank.family():
        with suppress(psutil.Error):
            found += [process] * ("writing_service" in " ".join(process.cmdline()))
    return found


def end_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "end.json").read_text())


def test_a_run_stopped_at_any_step_and_started_with_other_workers_ends_bit_identical(
    warm, recipe, alone, tmp_path, draw
):
    run_dir = tmp_path / "run"
    # SIGUSR1 is sent in test_launch_on_slurm.py, SIGINT by the Ctrl-C below.
    for workers, number in ((0, signal.SIGTERM), (2, signal.SIGUSR2)):
        command = warm.start("train", recipe, f"run_dir={run_dir}", f"machine.loader_workers={workers}")
        after_some_steps(command, run_dir, draw.randint(1, 6))
        family = command.family()
        command.signal_group(number)
        assert command.wait() == STOPPED
        assert gone(family)
        samples = stopped_step(run_dir) * 32
        assert command.said.endswith(f"stopped by {number.name} after {samples:,} samples; {GOES_ON}\n")
        assert end_of(run_dir) == {"reason": "stopped", "by": number.name, "samples_seen": samples}

    command = warm.start("train", recipe, f"run_dir={run_dir}")
    assert command.wait() == 0
    assert outcome(run_dir) == outcome(alone)
    assert end_of(run_dir) == {"reason": "finished", "samples_seen": STEPS * 32}


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(warm, recipe, alone, tmp_path, draw):
    run_dir = tmp_path / "run"
    shutil.copytree(alone, run_dir)
    record = (run_dir / "metrics.jsonl").read_bytes().splitlines()
    weights = checkpoints(run_dir / "checkpoints")[0] / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[draw.randrange(len(content))] ^= 1
    weights.write_bytes(content)

    command = warm.start("train", recipe, f"run_dir={run_dir}")
    assert command.wait() == 0
    assert f"skipped a damaged checkpoint: {weights}: has changed since it was written" in command.said
    assert f"going on after {(STEPS - 5) * 32:,} samples" in command.said
    assert outcome(run_dir) == outcome(alone)
    # The lines of steps that were repeated are kept.
    aside = (run_dir / "metrics_redone.jsonl").read_bytes().splitlines()
    assert aside == [line for line in record if json.loads(line).get("samples_seen", 0) > (STEPS - 5) * 32]


def test_a_finished_run_started_again_says_so_and_changes_nothing(warm, recipe, alone, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(alone, run_dir)
    record = (run_dir / "metrics.jsonl").read_text()
    command = warm.start("train", recipe, f"run_dir={run_dir}")
    assert command.wait() == 0
    assert command.said == (
        f"{run_dir}: finished: all {STEPS * 32:,} samples were seen; for another run set run_dir to a new one\n"
    )
    assert (run_dir / "metrics.jsonl").read_text() == record
    assert outcome(run_dir) == outcome(alone)


def test_another_learning_rate_in_a_runs_directory_is_refused_by_name(warm, recipe, alone):
    command = warm.start("train", recipe, f"run_dir={alone}", "optimizer.learning_rate=2e-3")
    assert command.wait() == 2
    assert command.said.splitlines() == [
        f"diptych train: {alone}: holds a run with optimizer.learning_rate = 0.001, this one has 0.002",
        "diptych train: set run_dir to a new directory, or the settings back",
    ]


def test_moved_shards_and_vocabulary_are_recognised_and_changed_ones_refused(warm, recipe, alone, tmp_path):
    run_dir = Path(shutil.copytree(alone, tmp_path / "run"))
    shutil.rmtree(checkpoints(run_dir / "checkpoints")[0])
    shards = Path(shutil.copytree(recipe.parent / "shards", tmp_path / "elsewhere"))
    vocabulary = Path(shutil.copy(recipe.parent / "vocabulary.json", tmp_path / "words.json"))
    words = (f"run_dir={run_dir}", f"data.train={shards}", f"tokenizer.vocabulary={vocabulary}")
    learned = json.loads(vocabulary.read_text())
    learned["merges"][-2:] = learned["merges"][:-3:-1]
    before = (run_dir / "config.yaml").read_bytes()

    vocabulary.write_text(json.dumps(learned))
    shutil.copy(shards / "00000.tar", shards / "00003.tar")
    command = warm.start("train", recipe, *words)
    assert command.wait() == 2
    way_out = "put it back, or set run_dir to a new directory"
    assert command.said.splitlines() == [
        f"diptych train: data.train {shards}: is not the data that {run_dir} was started with; {way_out}",
        f"diptych train: tokenizer.vocabulary {vocabulary}: is not the vocabulary that {run_dir} was started with; "
        f"{way_out}",
    ]
    assert (run_dir / "config.yaml").read_bytes() == before

    (shards / "00003.tar").unlink()
    (shards / "_index" / "00003.tar.index").unlink()
    shutil.copy(recipe.parent / "vocabulary.json", vocabulary)
    command = warm.start("train", recipe, *words)
    assert command.wait() == 0
    assert outcome(run_dir) == outcome(alone)


def test_a_second_command_in_the_same_directory_is_refused_and_harms_nothing(warm, recipe, alone, tmp_path):
    run_dir = tmp_path / "run"
    first = warm.start("train", recipe, f"run_dir={run_dir}")
    after_some_steps(first, run_dir, 1)
    second = warm.start("train", recipe, f"run_dir={run_dir}")
    assert second.wait() == 2
    (line,) = second.said.splitlines()
    assert "is training here; let it finish or stop it" in line
    assert first.wait() == 0
    assert outcome(run_dir) == outcome(alone)


def test_two_ranks_compute_what_one_does(alone, on_two_ranks):
    one, two = losses(alone), losses(on_two_ranks)
    assert [samples for samples, _ in one] == [samples for samples, _ in two]
    # Sums over ranks have another order, and early steps amplify the difference little: 1e-5 of losses around 3.
    assert [loss for _, loss in two] == pytest.approx([loss for _, loss in one], abs=1e-5)


def test_two_ranks_stop_at_the_same_step_when_one_gets_a_signal(warm, recipe, on_two_ranks, tmp_path, draw):
    run_dir = tmp_path / "run"
    ranks = warm.start_ranks(2, "train", recipe, f"run_dir={run_dir}")
    after_some_steps(ranks[0], run_dir, draw.randint(1, 6))
    family = [process for rank in ranks for process in rank.family()]
    ranks[1].signal(signal.SIGTERM)
    assert [rank.wait() for rank in ranks] == [STOPPED] * 2
    assert gone(family)
    step = stopped_step(run_dir)
    assert f"stopped by SIGTERM to rank 1 after {step * 32:,} samples; {GOES_ON}" in ranks[0].said

    ranks = warm.start_ranks(2, "train", recipe, f"run_dir={run_dir}", "machine.stop_after=0s")
    assert [rank.wait() for rank in ranks] == [STOPPED] * 2
    assert f"stopped by machine.stop_after=0s after {(step + 1) * 32:,} samples; {GOES_ON}" in ranks[0].said
    assert stopped_step(run_dir) == step + 1

    ranks = warm.start_ranks(2, "train", recipe, f"run_dir={run_dir}")
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert outcome(run_dir) == outcome(on_two_ranks)


def test_a_killed_process_of_a_rank_ends_the_other_rank_with_one_line(warm, recipe, tmp_path, draw):
    run_dir = tmp_path / "run"
    settings = f"run_dir={run_dir}", "machine.loader_workers=1", f"training.total_samples={32 * 40 * STEPS}"
    for whose in ("rank 0", "rank 1", "a loader process of rank 1"):
        ranks = warm.start_ranks(2, "train", recipe, *settings)
        after_some_steps(ranks[0], run_dir, draw.randint(1, 4))
        family = [process for rank in ranks for process in rank.family()]
        victim, other = ranks[int(whose[-1])], ranks[1 - int(whose[-1])]
        victim.family()["loader" in whose].kill()
        # A launcher ends all ranks as soon as one has ended: an error that is not printed by then is lost.
        assert other.wait() == 1
        (told,) = [line for line in other.said.splitlines() if line.startswith("diptych train: ")]
        assert "lost the other ranks (" in told and "by peer" in told and "the same command goes on" in told
        assert victim.wait() == (2 if "loader" in whose else -signal.SIGKILL)
        if "loader" in whose:
            assert "diptych train: rank 1: " in victim.said and " was killed or died" in victim.said
        assert "Traceback" not in victim.said + other.said
        assert gone(family)


def test_a_run_whose_writing_processes_are_killed_goes_on_and_ends_bit_identical(warm, recipe, on_two_ranks, tmp_path):
    run_dir = tmp_path / "run"
    saves = run_dir / "checkpoints"
    ranks = warm.start_ranks(2, "train", recipe, f"run_dir={run_dir}")
    num_killed = 0
    for victim in (0, 1, 0):
        newest = checkpoints(saves)[:1]
        ranks[0].wait_until(
            lambda newest=newest: list(saves.glob("step_*.partial")) or checkpoints(saves)[:1] != newest
        )
        for writer in writers_of(ranks[victim]):
            writer.kill()
            num_killed += 1
        ranks[0].wait_until(lambda newest=newest: checkpoints(saves)[:1] != newest)
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert num_killed, "no process was killed"
    assert not list(saves.glob("*.partial"))
    assert outcome(run_dir) == outcome(on_two_ranks)


def test_two_ranks_killed_in_a_save_that_lose_the_newest_checkpoint_end_bit_identical(
    warm, recipe, on_two_ranks, tmp_path, draw
):
    run_dir = tmp_path / "run"
    saves = run_dir / "checkpoints"
    ranks = warm.start_ranks(2, "train", recipe, f"run_dir={run_dir}")
    # Two, so that one is left when the newest is damaged.
    ranks[0].wait_until(lambda: checkpoints(saves)[1:])
    for writer in writers_of(ranks[1]):
        writer.suspend()  # so that no save is ever complete
    ranks[0].wait_until(lambda: list(saves.glob("step_*.partial/model")))
    for rank in ranks:
        rank.kill()
    for rank in ranks:
        rank.wait()
    assert list(saves.glob("step_*.partial"))

    weights = checkpoints(saves)[0] / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[draw.randrange(len(content))] ^= 1
    weights.write_bytes(content)
    ranks = warm.start_ranks(2, "train", recipe, f"run_dir={run_dir}")
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert f"skipped a damaged checkpoint: {weights}: has changed since it was written" in ranks[0].said
    assert outcome(run_dir) == outcome(on_two_ranks)


def test_after_ctrl_c_in_the_terminal_of_a_launcher_the_same_command_resumes(warm, recipe, on_two_ranks, tmp_path):
    run_dir = tmp_path / "run"
    words = ["train", recipe, f"run_dir={run_dir}"]
    # Every night, everything is started as a person starts it.
    is_nightly = bool(os.environ.get("NIGHTLY"))
    launcher = ["torchrun"] if is_nightly else [sys.executable, "-m", "diptych.torchrun"]
    environment = {} if is_nightly else forked_launcher(tmp_path)
    ranks = ("--standalone", "--nproc-per-node", 2, "-m", "diptych", *words)
    command = start(tmp_path, *launcher, *ranks, environment=environment)
    after_some_steps(command, run_dir, 2)
    family = command.family()
    command.signal_group(signal.SIGINT)
    ended = command.wait()
    assert gone(family)
    assert f"stopped by SIGINT after {stopped_step(run_dir) * 32:,} samples; {GOES_ON}" in command.said
    # The launchers report the signal, whatever their ranks do.
    assert ended == (1 if is_nightly else 128 + signal.SIGINT)

    assert {rank.wait() for rank in warm.start_ranks(2, *words)} == {0}
    assert outcome(run_dir) == outcome(on_two_ranks)


def test_a_run_without_a_valid_checkpoint_is_refused_and_its_record_kept(warm, recipe, alone, tmp_path):
    run_dir = Path(shutil.copytree(alone, tmp_path / "run"))
    record = (run_dir / "metrics.jsonl").read_bytes()
    newest, *older = checkpoints(run_dir / "checkpoints")
    (newest / "manifest.json").unlink()
    for path in older:
        (path / "progress.json").write_text("{}")
    command = warm.start("train", recipe, f"run_dir={run_dir}")
    assert command.wait() == 2
    *faults, way_out = command.said.splitlines()
    assert [path.name in line for path, line in zip([newest, *older], faults, strict=True)] == [True] * 3
    assert "manifest.json" in faults[0] and "progress.json" in faults[1]
    assert f"move or delete {run_dir / 'checkpoints'}, or set run_dir to a new directory" in way_out
    assert (run_dir / "metrics.jsonl").read_bytes() == record


def test_a_checkpoint_that_cannot_be_read_stops_the_start_rather_than_being_skipped(warm, recipe, alone, tmp_path):
    run_dir = Path(shutil.copytree(alone, tmp_path / "run"))
    record = (run_dir / "metrics.jsonl").read_bytes()
    newest = checkpoints(run_dir / "checkpoints")[0]
    (newest / "progress.json").unlink()
    (newest / "progress.json").symlink_to("/proc/self/mem")  # a file whose first byte cannot be read
    command = warm.start("train", recipe, f"run_dir={run_dir}")
    assert command.wait() == 2
    (line,) = command.said.splitlines()
    assert "Input/output error" in line and str(newest / "progress.json") in line
    assert (run_dir / "metrics.jsonl").read_bytes() == record and newest.exists()


def test_a_killed_loader_process_is_one_line(warm, recipe, tmp_path):
    run_dir = tmp_path / "run"
    command = warm.start("train", recipe, f"run_dir={run_dir}", "machine.loader_workers=1")
    after_some_steps(command, run_dir, 2)
    loader = next(process for process in command.family()[1:] if process.is_running())
    loader.kill()
    assert command.wait() == 2, command.said
    assert "loader process" in command.said and " was killed or died" in command.said
    assert "Traceback" not in command.said


def test_full_memory_is_one_line_with_ways_out(warm, recipe, tmp_path):
    command = warm.start("train", recipe, f"run_dir={tmp_path / 'run'}", "model.embed_dim=10000000000000")
    assert command.wait() == 2, command.said
    told = command.said.splitlines()[-1]
    assert told.startswith("diptych train: out of memory on cpu: 32 of its 32 pairs a batch go through")
    for way in ("machine.pairs_per_forward=16", "machine.checkpoint_blocks=true", "more ranks"):
        assert way in told
    assert "Traceback" not in command.said
