"""A disk that fills up costs older checkpoints and time, never work."""

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from diptych.checkpoint_folder import checkpoints
from tests.end_to_end.conftest import STEPS, outcome


@pytest.fixture
def small_disk(alone, tmp_path) -> Iterator[Path]:
    """A disk with room for a run and two and a half checkpoints, while three are to be kept."""
    newest = checkpoints(alone / "checkpoints")[0]
    one = sum(file.stat().st_blocks * 512 for file in newest.rglob("*"))
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={int(2.5 * one) + 200_000}", "tmpfs", str(disk)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no right to mount")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_older_checkpoints_make_room_for_the_next(warm, recipe, alone, small_disk):
    command = warm.start("train", recipe, f"run_dir={small_disk / 'run'}")
    assert command.wait() == 0, command.said
    assert "No space left on device; removed all checkpoints but the newest" in command.said
    assert outcome(small_disk / "run") == outcome(alone)


def test_training_waits_for_room_where_no_checkpoint_can_make_any(warm, recipe, alone, small_disk):
    run_dir, ballast = small_disk / "run", small_disk / "ballast"
    command = warm.start("train", recipe, f"run_dir={run_dir}")
    command.wait_until(lambda: checkpoints(run_dir / "checkpoints"))
    with pytest.raises(OSError), ballast.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))
    command.wait_until(lambda: "Training waits up to 60 min" in command.said)
    assert "free at least" in command.said and "is written" not in command.said
    ballast.unlink()
    assert command.wait() == 0, command.said
    assert "is written; training goes on" in command.said
    assert outcome(run_dir) == outcome(alone)
    events = [json.loads(line).get("event") for line in (run_dir / "metrics.jsonl").read_bytes().splitlines()]
    assert "save_failed" in events and len(events) >= STEPS


def test_training_waits_while_the_folder_of_checkpoints_can_only_be_read(warm, recipe, alone, tmp_path):
    run_dir = tmp_path / "run"
    folder = run_dir / "checkpoints"
    command = warm.start("train", recipe, f"run_dir={run_dir}")
    command.wait_until(lambda: checkpoints(folder))
    mount = ["mount", "--bind", str(folder), str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        command.kill()
        pytest.skip("no right to mount")
    try:
        # The folder is busy as long as a file in it is open for writing.
        remount = ["mount", "-o", "remount,bind,ro", str(folder)]
        command.wait_until(lambda: not subprocess.run(remount, capture_output=True).returncode)
        command.wait_until(lambda: "Training waits up to 60 min" in command.said)
        assert f"Read-only file system ({folder}); make it writable" in command.said
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
    assert command.wait() == 0, command.said
    assert outcome(run_dir) == outcome(alone)
