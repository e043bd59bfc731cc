import errno
import json
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from diptych.checkpoint_folder import (
    FORMAT,
    CheckpointError,
    checkpoints,
    describe,
    keep_newest,
    name_of,
    newest_valid,
    remove_checkpoint,
    verify,
)
from diptych.config.load import ConfigError
from diptych.config.schema import DataConfig, ModelConfig, RunConfig, TrainingConfig
from diptych.data.earlier_order import EarlierSampleOrder
from diptych.data.mixture import Mixture
from diptych.data.order import SampleOrder
from diptych.data.shard_index_file import Shard
from diptych.data.shards import ShardIndex
from diptych.data.tokenizer import train_vocabulary
from diptych.files import lacks_room
from diptych.model_folder import describing_files
from diptych.tensor_files import save_tensors
from diptych.training.checkpoint import Checkpoint, Progress, load_checkpoint
from diptych.training.checkpoint_writer import Writer
from diptych.training.engine import OptimizerState
from diptych.training.job import order_of
from diptych.training.snapshot import Share, SharePart, Snapshot
from diptych.training.writing_orders import Commit, Plan, Task
from tests.ranks import run_ranks

BATCH = 10
CONFIG = RunConfig(
    run_dir="run",
    data=DataConfig(train="shards"),
    training=TrainingConfig(total_samples=1000, global_batch_size=BATCH),
    model=ModelConfig(embed_dim=4),
)
TOKENIZER = train_vocabulary(["a small picture", "a small caption"], 520)


def checkpoint(step):
    weights = {"image.proj": torch.full((3, 4), float(step)), "logit_scale": torch.tensor([step / 7])}
    moments = {kind: {name: tensor + 1 for name, tensor in weights.items()} for kind in ("exp_avg", "exp_avg_sq")}
    progress = Progress(samples_seen=step * BATCH, rejected={"no_caption": step}, tracker_id="id", data="shards")
    averages = {name: tensor / 2 for name, tensor in weights.items()}
    return Checkpoint(progress, weights, OptimizerState(step, moments), averages)


def part(whole, rank, size):
    """What a rank has of a tensor: as many elements as the others."""
    first, stop = (whole.numel() * each // size for each in (rank, rank + 1))
    return SharePart(first, whole.view(-1)[first:stop], whole.shape)


def writer_of(folder, checkpoint, rank, size, keep=3):
    """What writes a rank's share of a checkpoint, with a copy of it."""

    def parts(tensors):
        return {name: part(tensor, rank, size) for name, tensor in tensors.items()}

    share = Share(
        torch.tensor(float(checkpoint.optimizer.step)),
        {kind: parts(tensors) for kind, tensors in checkpoint.optimizer.moments.items()},
        {"ema": parts(checkpoint.averages)},
        {"model": checkpoint.weights, "ema": {}} if rank == 0 else {},
    )
    snapshot = Snapshot(share, rank)
    snapshot.take(share)
    snapshot.close()
    texts = {f"model/{name}": text for name, text in describing_files(CONFIG.model, TOKENIZER).items()}
    plan = Plan(folder, rank, snapshot.files, {} if rank else texts, share.checkpoint_bytes, keep, frozenset())
    return Writer(plan, memoryview(snapshot.memory))


def save(folder, step, size=2):
    """Save as the processes of `size` ranks do together."""
    saved = checkpoint(step)
    writers = [writer_of(folder, saved, rank, size) for rank in range(size)]
    texts = {"progress.json": json.dumps(asdict(saved.progress))}
    tasks = [Task(name_of(step), {} if rank else texts) for rank in range(size)]
    written = [writer.write(task) for writer, task in zip(writers, tasks, strict=True)]
    files = {name: each for report in written for name, each in report.files.items()}
    return folder / writers[0].commit(tasks[0], written[0], Commit(files, {"format": FORMAT})).name


def same(one, other):
    return (
        one.progress == other.progress
        and one.optimizer.step == other.optimizer.step
        and all(torch.equal(one.weights[name], other.weights[name]) for name in other.weights)
        and all(torch.equal(one.averages[name], other.averages[name]) for name in other.averages)
        and all(
            torch.equal(one.optimizer.moments[kind][name], tensor)
            for kind, tensors in other.optimizer.moments.items()
            for name, tensor in tensors.items()
        )
    )


def files_of(path):
    return sorted(file for file in path.rglob("*") if file.is_file())


def test_what_was_saved_is_loaded_bit_for_bit(tmp_path):
    path = save(tmp_path, 3)
    verify(path)
    assert path.name == "step_00000003"
    assert same(load_checkpoint(path), checkpoint(3))
    manifest = json.loads((path / "manifest.json").read_text())
    assert {str(f.relative_to(path)) for f in files_of(path)} == {*manifest["files"], "manifest.json"}


def test_a_file_that_the_manifest_does_not_list_is_not_read(tmp_path):
    path = save(tmp_path, 3)
    shutil.copy(path / "optimizer/rank_00001.safetensors", path / "optimizer/rank_00002.safetensors")
    verify(path)
    assert same(load_checkpoint(path), checkpoint(3))


def test_a_checkpoint_of_format_1_is_read(tmp_path):
    path, was = save(tmp_path, 3), checkpoint(3)
    shutil.rmtree(path / "optimizer")
    moments = {f"{kind}.{name}": each for kind, named in was.optimizer.moments.items() for name, each in named.items()}
    save_tensors({**moments, "step": torch.tensor(3)}, path / "optimizer.safetensors")
    files = {str(file.relative_to(path)): describe(file) for file in files_of(path) if file.name != "manifest.json"}
    (path / "manifest.json").write_text(json.dumps({"format": 1, "files": files}))
    assert newest_valid(tmp_path) == (path, [])
    assert same(load_checkpoint(path), was)


def test_a_checkpoint_of_a_later_format_is_refused(tmp_path):
    path = save(tmp_path, 3)
    (path / "manifest.json").write_text(json.dumps({"format": 3, "files": {}}))
    with pytest.raises(CheckpointError, match="has format 3; this version reads 1 and 2"):
        verify(path)


def test_a_field_of_a_later_version_is_named(tmp_path):
    path = save(tmp_path, 3)
    progress = json.loads((path / "progress.json").read_text())
    (path / "progress.json").write_text(json.dumps({**progress, "tokens_seen": 1}))
    with pytest.raises(CheckpointError, match=f"^{path}/progress.json has tokens_seen, which this version .* not know"):
        load_checkpoint(path)


def test_weights_are_written_as_safetensors_writes_them(tmp_path):
    path = save(tmp_path, 3)
    save_tensors(checkpoint(3).weights, tmp_path / "expected.safetensors")
    assert (path / "model" / "model.safetensors").read_bytes() == (tmp_path / "expected.safetensors").read_bytes()


@pytest.mark.parametrize("lost", ["optimizer/rank_00001.safetensors", "parts/rank_00001.safetensors"])
def test_a_share_that_rank_0_does_not_see_is_reported(tmp_path, lost):
    first, other = (writer_of(tmp_path, checkpoint(3), rank, 2) for rank in (0, 1))
    task = Task(name_of(3), {})
    ours, theirs = first.write(task), other.write(task)
    (tmp_path / "step_00000003.partial" / lost).unlink()
    with pytest.raises(CheckpointError, match="put run_dir on a disk that all machines share"):
        first.commit(task, ours, Commit(theirs.files, {"format": FORMAT}))
    assert checkpoints(tmp_path) == []


def test_a_run_whose_checkpoints_record_no_order_goes_on_in_the_first_one(tmp_path):
    path = save(tmp_path, 1)
    record = json.loads((path / "progress.json").read_text())
    assert record.pop("order") == 1
    (path / "progress.json").write_text(json.dumps(record))
    progress = load_checkpoint(path).progress
    mixture = Mixture(ShardIndex([Shard(Path("00000.tar"), 40, 1, "")]), CONFIG.data.sources, [1])
    assert isinstance(order_of(CONFIG, mixture, progress.order), EarlierSampleOrder)
    assert isinstance(order_of(CONFIG, mixture), SampleOrder)
    assert [order_of(CONFIG, mixture, version).fills_from_shard for version in (1, 2, 3)] == [False, False, True]
    with pytest.raises(ConfigError, match="started with version 4 of the order of samples; this diptych knows 1 to 3"):
        order_of(CONFIG, mixture, 4)


@pytest.mark.parametrize("harm", ["flip", "truncate", "remove", "grow"])
def test_any_damage_to_any_file_is_found_and_the_file_named(tmp_path, harm):
    whole = save(tmp_path / "whole", 1)
    for file in files_of(whole):
        path = Path(shutil.copytree(whole, tmp_path / "copy"))
        victim = path / file.relative_to(whole)
        data = bytearray(victim.read_bytes())
        if harm == "flip":
            data[len(data) // 2] ^= 1
        elif harm == "truncate":
            data = data[:-1]
        elif harm == "grow":
            data += b"\0"
        victim.write_bytes(data)
        if harm == "remove":
            victim.unlink()
        named: str | None = victim.name
        if victim.name == "manifest.json" and harm in ("flip", "truncate"):
            # A manifest that still describes every file correctly is as good; any other one is
            # refused.
            before = json.loads((whole / "manifest.json").read_text())
            try:
                if json.loads(bytes(data))["files"] == before["files"]:
                    shutil.rmtree(path)
                    continue
                named = None
            except ValueError:
                pass
        with pytest.raises(CheckpointError, match=named):
            verify(path)
        shutil.rmtree(path)


def test_the_newest_valid_checkpoint_is_used_and_the_faults_of_newer_ones_reported(tmp_path):
    assert newest_valid(tmp_path) == (None, [])
    first, second, third = (save(tmp_path, step) for step in (1, 2, 30))
    weights = third / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    (second / "optimizer" / "rank_00001.safetensors").unlink()
    shutil.copytree(first, tmp_path / "step_00000099.partial")
    (tmp_path / "step_00000050").mkdir()
    path, faults = newest_valid(tmp_path)
    assert path == first
    for fault, name in zip(faults, ("manifest.json", "model.safetensors", "rank_00001.safetensors"), strict=True):
        assert name in fault


def test_a_file_that_the_system_cannot_read_is_not_damage(tmp_path):
    save(tmp_path, 1)
    for name in ("manifest.json", "optimizer/rank_00000.safetensors"):
        newest = save(tmp_path, 2)
        (newest / name).unlink()
        (newest / name).symlink_to("/proc/self/mem")  # a file whose first byte cannot be read
        with pytest.raises(OSError) as caught:
            newest_valid(tmp_path)
        assert caught.value.errno == errno.EIO


def test_files_have_the_mode_that_umask_allows(tmp_path):
    before = os.umask(0o027)
    try:
        path = save(tmp_path, 1)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in files_of(path)} == {0o640}


class Killed(BaseException):
    """Ends the process here, without any of Python's clean-up, like a kill."""


@pytest.fixture
def without_fsync(monkeypatch):
    """A real one takes most of a test's time."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def operations(monkeypatch, at):
    """Let the process die at change number `at` of the file system (open for writing, fsync, rename, unlink)."""
    count = 0

    def counted(function):
        def call(*arguments, **keywords):
            nonlocal count
            count += 1
            if at is not None and count > at:
                raise Killed
            return function(*arguments, **keywords)

        return call

    monkeypatch.setattr(os, "fsync", counted(os.fsync))
    monkeypatch.setattr(Path, "rename", counted(Path.rename))
    monkeypatch.setattr(Path, "unlink", counted(Path.unlink))
    monkeypatch.setattr(Path, "mkdir", counted(Path.mkdir))
    monkeypatch.setattr(Path, "open", counted(Path.open))
    monkeypatch.setattr(shutil, "rmtree", counted(shutil.rmtree))
    return lambda: count


STEP = 1 if os.environ.get("NIGHTLY") else 3
"""By day a kill comes at each third point, from another one on each time."""


@pytest.mark.usefixtures("without_fsync")
def test_a_kill_at_any_point_of_a_save_leaves_the_old_or_the_new(tmp_path, monkeypatch, draw):
    with monkeypatch.context() as patch:
        counted = operations(patch, None)
        save(tmp_path / "all", 1)
        save(tmp_path / "all", 2)
        keep_newest(tmp_path / "all", 1, set())
        total = counted()
    assert total > 20
    for at in range(draw.randrange(STEP), total, STEP):
        folder = tmp_path / f"at_{at}"
        done = 0
        with monkeypatch.context() as patch:
            operations(patch, at)
            try:
                for step in (1, 2):
                    save(folder, step)
                    done = step
                keep_newest(folder, 1, set())
            except Killed:
                pass
        path, faults = newest_valid(folder)
        found = 0 if path is None else load_checkpoint(path).progress.samples_seen // BATCH
        assert found >= done, f"killed after {at} operations, {done} saves were done, {found} is found"
        assert path is None or same(load_checkpoint(path), checkpoint(found))
        # And the next start can save again.
        save(folder, 2)
        keep_newest(folder, 2, set())
        assert newest_valid(folder)[0].name == "step_00000002"
        assert not list(folder.glob("*.partial"))


@pytest.mark.usefixtures("without_fsync")
def test_a_checkpoint_whose_writer_is_killed_at_any_point_is_completed_by_another(tmp_path, monkeypatch, draw):
    task = Task(name_of(2), {"progress.json": json.dumps(asdict(checkpoint(2).progress))})

    def commit(folder, theirs):
        writer = writer_of(folder, checkpoint(2), 0, 2)
        writer.commit(task, writer.write(task), Commit(theirs.files, {"format": FORMAT}))

    at, is_done = draw.randrange(STEP), False
    while not is_done:
        folder = tmp_path / f"at_{at}"
        save(folder, 1)
        theirs = writer_of(folder, checkpoint(2), 1, 2).write(Task(name_of(2), {}))
        with monkeypatch.context() as patch:
            operations(patch, at)
            try:
                commit(folder, theirs)
                is_done = True
            except Killed:
                pass
        commit(folder, theirs)
        assert newest_valid(folder) == (folder / name_of(2), []), f"killed after {at} operations"
        assert same(load_checkpoint(folder / name_of(2)), checkpoint(2))
        assert sorted(path.name for path in folder.iterdir()) == [name_of(1), name_of(2)]
        at += STEP
    assert at > 15


def test_the_same_step_saved_twice_is_there_once(tmp_path):
    assert save(tmp_path, 4) == save(tmp_path, 4)
    assert checkpoints(tmp_path) == [tmp_path / "step_00000004"]


def test_a_step_whose_manifest_is_gone_can_be_saved_again(tmp_path):
    path = save(tmp_path, 4)
    (path / "manifest.json").unlink()
    assert checkpoints(tmp_path) == []
    assert same(load_checkpoint(save(tmp_path, 4)), checkpoint(4))
    verify(path)


def test_what_a_kill_left_of_a_removed_checkpoint_is_cleared_away(tmp_path):
    paths = [save(tmp_path, step) for step in range(1, 4)]
    (paths[0] / "manifest.json").unlink()
    shutil.rmtree(paths[0] / "model")
    keep_newest(tmp_path, 3, set())
    assert sorted(tmp_path.iterdir()) == paths[1:]


def test_a_checkpoint_that_is_being_removed_is_invalid_from_the_first_moment(tmp_path, monkeypatch):
    path = save(tmp_path, 3)
    found = []
    monkeypatch.setattr(shutil, "rmtree", lambda folder: found.append(checkpoints(tmp_path)))
    remove_checkpoint(path)
    assert found == [[]]


def test_every_byte_is_on_the_disk_before_a_checkpoint_gets_its_name(tmp_path, monkeypatch):
    synced, fsync = set(), os.fsync

    def recorded(descriptor):
        synced.add(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    def rename(partial, final, rename=Path.rename):
        unsynced = [path for path in (partial, *partial.rglob("*")) if path.stat().st_ino not in synced]
        assert not [path for path in unsynced if "parts" not in path.parts]  # they do not belong to the checkpoint
        synced.clear()
        return rename(partial, final)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(Path, "rename", rename)
    path = save(tmp_path, 1)
    assert synced == {path.parent.stat().st_ino}, "and then the name itself"


def refuse_unpickling(event, arguments):
    if event == "pickle.find_class":
        raise AssertionError(f"unpickled {arguments}")


def resume_without_pickle(rank, folder):
    sys.addaudithook(refuse_unpickling)  # permanent, so in a process of its own
    path, _ = newest_valid(folder)
    load_checkpoint(path)
    with pytest.raises(AssertionError, match="unpickled"):
        pickle.loads(pickle.dumps(Path("the hook works")))
    return str(path)


def test_nothing_of_a_checkpoint_is_unpickled(tmp_path):
    path = save(tmp_path, 1)
    assert run_ranks(1, resume_without_pickle, tmp_path) == [str(path)]


def test_only_valid_ones_count_among_those_kept(tmp_path):
    paths = [save(tmp_path, step) for step in range(1, 6)]
    for path in paths[3:]:
        (path / "progress.json").write_text("{}")
    keep_newest(tmp_path, 2, set())
    assert checkpoints(tmp_path) == [paths[4], paths[3], paths[2], paths[1]]
    assert newest_valid(tmp_path)[0] == paths[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
@pytest.mark.parametrize("pages_free", range(0, 7))
def test_a_full_disk_leaves_the_old_one_and_nothing_half(tmp_path, pages_free):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", str(disk)], capture_output=True).returncode:
        pytest.skip("no right to mount")
    try:
        save(disk, 1)
        (disk / "ballast").write_bytes(
            b"\0" * (os.statvfs(disk).f_bavail * os.statvfs(disk).f_bsize - 4096 * pages_free)
        )
        with pytest.raises(OSError) as caught:
            save(disk, 2)
        assert caught.value.errno == errno.ENOSPC
        assert newest_valid(disk)[0] == disk / "step_00000001"
        (disk / "ballast").unlink()
        save(disk, 2)
        assert newest_valid(disk)[0] == disk / "step_00000002" and not list(disk.glob("*.partial"))
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_quota_that_is_used_up_lacks_room_and_says_what_to_do(tmp_path):
    error = OSError(errno.EDQUOT, "")
    assert lacks_room(error)
    assert "count against the quota, or raise it" in writer_of(tmp_path, checkpoint(1), 0, 1).describe(error)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.ESTALE])
def test_a_folder_that_cannot_be_reached_is_reported_in_one_line(tmp_path, number):
    said = writer_of(tmp_path / "moved", checkpoint(1), 0, 1).describe(OSError(number, ""))
    assert said.startswith(f"{os.strerror(number)} ({tmp_path / 'moved'}); ") and "\n" not in said


def test_the_first_difference_of_a_changed_file_is_reported_briefly(tmp_path):
    path = save(tmp_path, 1)
    file = path / "progress.json"
    content = file.read_bytes()
    file.write_bytes(content[:-1] + b" ")
    with pytest.raises(CheckpointError, match=r"\(sha256 [0-9a-f]{12}, expected [0-9a-f]{12}\)$"):
        verify(path)
    file.write_bytes(content[:-1])
    with pytest.raises(CheckpointError, match=rf"\(bytes {len(content) - 1}, expected {len(content)}\)$"):
        verify(path)
