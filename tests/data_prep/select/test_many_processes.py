"""The bytes do not depend on the number of processes, or on kills."""

import os
import shutil
import signal
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from diptych.data.shards import open_index
from diptych_shards.cli import main
from diptych_shards.run.engine import LocalEngine
from diptych_shards.run.progress import Progress
from diptych_shards.select import hashes
from diptych_shards.select.hashes import HASHED, NOT_DECODED, PICTURES_AT_ONCE, hash_missing, read_hashes
from diptych_shards.select.picture_places import FilesUnit, Place
from tests.commands import gone
from tests.data_prep.select.shards import jpeg, tree, write_shards
from tests.warm import Warm

pytestmark = pytest.mark.usefixtures("forked_workers")

COMMANDS = (
    ["filter", "shards", "--where", "number <> 3 and length(caption) > 1"],
    ["dedup", "shards", "--against", "evaluation"],
    ["select", "shards", "out", "--samples-per-shard", "7"],
)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Six shards of 50 samples, and an evaluation picture."""
    folder = tmp_path_factory.mktemp("made")
    pictures = [jpeg(seed) for seed in range(60)]
    samples = [(pictures[n % 60], f"caption {n}", {"number": n}) for n in range(300)]
    write_shards(folder / "shards", [samples[start : start + 50] for start in range(0, 300, 50)])
    (folder / "evaluation").mkdir()
    (folder / "evaluation" / "7.jpg").write_bytes(pictures[7])
    return folder


@pytest.fixture(scope="module")
def by_one_process(made, tmp_path_factory):
    return whole(made, tmp_path_factory.mktemp("one") / "one", 1)


def whole(made, folder, processes):
    """All commands, in a folder of their own, so that verdicts name the same paths."""
    shutil.copytree(made, folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        for command in COMMANDS:
            assert main([*command, "--processes", str(processes)]) == 0
    return {name: data for name, data in tree(folder).items() if "against-" not in name}  # named for the time of files


def test_any_number_of_processes_writes_the_same_bytes(made, by_one_process, tmp_path):
    assert by_one_process == whole(made, tmp_path / "three", 3)
    assert len(open_index(tmp_path / "three" / "out")) == 59


@dataclass(frozen=True)
class DeadlyPlace(Place):
    """A picture that crashes its decoder."""

    def read(self):
        os._exit(1)


class OneDeadly(FilesUnit):
    def places(self, start, stop):
        return [DeadlyPlace(p.path) if p.path.endswith("150") else p for p in super().places(start, stop)]


def test_a_picture_that_crashes_its_decoder_counts_as_one_that_does_not_decode_and_no_other_does(tmp_path):
    (tmp_path / "p").mkdir()
    files = [str(tmp_path / "p" / str(number)) for number in range(PICTURES_AT_ONCE + 72)]
    for file in files:
        with open(file, "wb") as opened:
            opened.write(jpeg(0, 16))
    unit = OneDeadly(str(tmp_path / "p"), files)
    progress = Progress(len(files))
    hash_missing([(unit, tmp_path / "p.hashes")], LocalEngine(2), progress)
    progress.close()
    states = read_hashes(unit, tmp_path / "p.hashes")["state"]
    assert np.flatnonzero(states == NOT_DECODED).tolist() == [150]
    assert (np.delete(states, 150) == HASHED).all()


def decode_for_too_long():
    hashes.SECONDS_PER_PICTURE = 0.2
    with hashes._deadline():
        pass
    with hashes._deadline():
        time.sleep(60)


def test_a_process_whose_decoder_hangs_is_ended():
    assert Warm(f"{__name__}:decode_for_too_long").wait() == -signal.SIGALRM


@pytest.mark.parametrize("processes", [1, 2] if os.environ.get("NIGHTLY") else [2])
def test_killed_again_and_again_every_command_resumes_and_ends_with_the_same_bytes(
    made, by_one_process, tmp_path, monkeypatch, warm, processes
):
    shutil.copytree(made, tmp_path / "killed")
    monkeypatch.chdir(tmp_path / "killed")
    kills = 0
    for command in COMMANDS:
        for num_files in (2, 5, 1_000):
            enough = count_files(tmp_path / "killed") + num_files
            process = warm.start(*command, "--processes", processes, program="diptych_shards")
            process.wait_until(lambda enough=enough: count_files(tmp_path / "killed") >= enough)
            if process.poll() is None:
                process.signal(signal.SIGKILL)  # the parent alone: its workers have to notice
            status = process.wait()
            if status == 0:
                break
            assert status == -signal.SIGKILL, process.said
            kills += 1
        assert status == 0
    assert kills > 3
    now = tree(tmp_path / "killed")
    assert {name: data for name, data in now.items() if "against-" not in name} == by_one_process


def test_processes_that_write_shards_end_with_a_command_that_is_killed(made, warm, tmp_path):
    """Otherwise they would write to the same files as the processes of the next start."""
    shards = tmp_path / "shards"
    shutil.copytree(made / "shards", shards)
    assert main(["dedup", str(shards), "--processes", "1"]) == 0
    for table in shards.glob("*.parquet"):
        table.unlink()
        os.mkfifo(table)  # a reader of it waits
    command = warm.start("select", shards, tmp_path / "out", "--processes", 2, program="diptych_shards")
    workers = []

    def all_wait():
        places = {each: Path(f"/proc/{each.pid}/wchan") for each in command.family()}
        workers[:] = [each for each, place in places.items() if "wait_for_partner" in place.read_text()]
        return len(workers) == 2

    command.wait_until(all_wait)
    command.signal(signal.SIGKILL)
    command.wait()
    assert len(workers) == 2
    assert gone(workers)


def count_files(folder):
    return sum(len(files) for _, _, files in os.walk(folder))


def test_what_is_done_for_a_shard_is_not_done_again(made, tmp_path, monkeypatch, capsys):
    shutil.copytree(made, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    shards = tmp_path / "w" / "shards"
    (shards / "00005.parquet").rename(tmp_path / "hidden")
    (shards / "00005.parquet").write_bytes(b"PAR1 is no parquet")
    command = [*COMMANDS[0], "--processes", "1"]
    assert main(command) == 2
    parts = shards / "_index" / "select" / "filter.parts"
    made_parts = {path.name: path.stat().st_mtime_ns for path in parts.iterdir()}
    assert len(made_parts) == 5
    assert main([*COMMANDS[0][:3], "number > 5", "--processes", "1"]) == 2  # another expression starts again
    assert main(command) == 2
    capsys.readouterr()
    (tmp_path / "hidden").replace(shards / "00005.parquet")
    assert main(command) == 0
    assert "00004" not in capsys.readouterr().err and not parts.exists()


def test_a_new_shard_that_was_damaged_is_written_again(made, tmp_path, monkeypatch):
    expected = whole(made, tmp_path / "w", 1)
    monkeypatch.chdir(tmp_path / "w")
    out = tmp_path / "w" / "out"
    (out / "00001.tar").write_bytes((out / "00001.tar").read_bytes()[:-512])
    (out / "00002.parquet").unlink()
    (out / "00003.parquet").write_bytes(b"PAR1")
    (out / "_index" / "00004.tar.index").write_bytes(b"{")
    kept = (out / "00005.tar").stat().st_mtime_ns
    assert main([*COMMANDS[2], "--processes", "1"]) == 0
    assert {name: data for name, data in tree(tmp_path / "w").items() if "against-" not in name} == expected
    assert (out / "00005.tar").stat().st_mtime_ns == kept
