"""Shards that changed after they were indexed: lost samples are counted, or the run reports the fault and stops."""

import json
import os
import shutil
from pathlib import Path

import pytest

from diptych.terminal import percent
from tests.end_to_end.conftest import STEPS, losses

BATCH, SAMPLES = 32, 300
TOTAL = STEPS * BATCH
EPOCHS_BEGUN = -(-TOTAL // SAMPLES)


@pytest.fixture
def harmed(recipe, tmp_path) -> Path:
    """A copy of the recipe's shards, one byte of one picture flipped."""
    folder = Path(shutil.copytree(recipe.parent / "shards", tmp_path / "shards"))
    with (folder / "00001.tar").open("r+b") as file:
        file.seek(512 + 100)  # in the first member, after its header
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
    return folder


def test_a_damaged_sample_is_counted_by_reason_and_replaced(warm, recipe, harmed, tmp_path):
    run_dir = tmp_path / "run"
    command = warm.start("train", recipe, f"run_dir={run_dir}", f"data.train={harmed}")
    assert command.wait() == 0
    named = (run_dir / "log" / "rank_0.log").read_text().count("rejected 1_000 of 00001.tar: damaged_shard")
    assert EPOCHS_BEGUN - 1 <= named <= EPOCHS_BEGUN  # once in every epoch; the last one is not finished
    progress = json.loads(max((run_dir / "checkpoints").glob("step_*/progress.json")).read_text())
    assert progress["rejected"] == {"damaged_shard": named}
    assert (
        f"{named} of {TOTAL:,} samples ({percent(named, TOTAL)}) were rejected: damaged_shard {named};" in command.said
    )
    end, next_step = command.said.splitlines()[-2:]
    assert end.startswith(f"finished {TOTAL:,} samples in ") and end.endswith(f"{run_dir}/checkpoints/step_{STEPS:08d}")
    assert next_step.startswith(f"next: diptych evaluate {run_dir} ")
    assert len(losses(run_dir)) == STEPS


def test_too_much_damage_ends_the_run_with_a_table(warm, recipe, harmed, tmp_path):
    words = (f"run_dir={tmp_path / 'run'}", f"data.train={harmed}", "data.max_rejected_fraction=0.001")
    command = warm.start("train", recipe, *words)
    assert command.wait() == 2
    line = command.said.splitlines()[-1]
    assert "samples were rejected (damaged_shard " in line and "data.max_rejected_fraction allows 0.001" in line
    assert "Traceback" not in command.said


def test_a_truncated_shard_is_one_line_and_nothing_starts(warm, recipe, harmed, tmp_path):
    os.truncate(harmed / "00002.tar", 3000)
    command = warm.start("train", recipe, f"run_dir={tmp_path / 'run'}", f"data.train={harmed}")
    assert command.wait() == 2 and not (tmp_path / "run").exists()
    (line,) = command.said.splitlines()
    assert "00002.tar" in line and "truncated" in line
