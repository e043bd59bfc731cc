"""`diptych drill` in short: kills, starts again, and a verdict that can be negative."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest

import diptych.verbs.drill as drill
from diptych.checkpoint_folder import MANIFEST, checkpoints
from diptych.cli import main
from diptych.drill.differences import differences
from diptych.errors import UserError
from diptych.run_dir import RunDir
from tests.commands import forked_launcher

SHORT = ("training.total_samples=960",)


@pytest.fixture(scope="module")
def drilled(tmp_path_factory) -> Path:
    """The folder of a drill of two ranks, with two kills."""
    folder = tmp_path_factory.mktemp("drill")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in forked_launcher(tmp_path_factory.mktemp("launcher")).items():
            patch.setenv(name, value)
        main(["drill", *SHORT, "--folder", str(folder / "runs"), "--kills", "2", "--seed", "5"])
    return folder / "runs"


def test_a_killed_run_ends_as_the_undisturbed_one(drilled):
    result = json.loads((drilled / "drill.json").read_text())
    assert result["differing"] == [] and len(result["kills"]) == 2
    starts = [line for line in (drilled / "disturbed/metrics.jsonl").read_text().splitlines() if '"start"' in line]
    assert len(starts) == 1 + sum(kill["ends_run"] for kill in result["kills"])


def test_another_end_and_a_damaged_file_are_found(drilled):
    whole, disturbed = RunDir(drilled / "undisturbed"), RunDir(drilled / "disturbed")
    checkpoint = checkpoints(disturbed.checkpoints)[0]
    manifest, optimizer = checkpoint / MANIFEST, checkpoint / "optimizer" / "rank_00000.safetensors"
    was = manifest.read_text(), optimizer.read_bytes()
    listed = json.loads(was[0])
    listed["files"]["model/model.safetensors"]["sha256"] = "0" * 64
    try:
        manifest.write_text(json.dumps(listed))
        assert differences(whole, disturbed)[-1] == "model/model.safetensors: differs"
        manifest.write_text(was[0][:-9])
        assert f"{MANIFEST} cannot be read" in differences(whole, disturbed)[0]
        manifest.write_text(was[0])
        optimizer.write_bytes(was[1][:-1])
        [line] = differences(whole, disturbed)
        assert line.startswith(f"{optimizer}: has changed")
    finally:
        manifest.write_text(was[0])
        optimizer.write_bytes(was[1])


def test_a_run_that_fails_by_itself_and_a_folder_with_files_are_one_line(tmp_path, monkeypatch):
    for name, value in forked_launcher(tmp_path).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as end:
        main(["drill", "data.train=nowhere", "--ranks", "1", "--folder", str(tmp_path / "a")])
    assert end.value.code == 2
    with pytest.raises(UserError, match="is not empty"):
        drill.run(drill_arguments(tmp_path))


def drill_arguments(folder: Path) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    drill.add_arguments(parser)
    return parser.parse_args(["--folder", str(folder)])
