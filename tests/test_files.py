"""Files are written completely or not at all, foreign paths are refused, and one process works in a folder."""

import errno
import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from diptych.errors import UserError
from diptych.files import check_writable, committed, local_path
from diptych.locks import LockedError, locked


def test_a_writer_that_outlives_its_run_does_not_spoil_the_file_of_the_next(tmp_path):
    path = tmp_path / "00000.parquet"
    with committed(path) as next_run:
        next_run.write_text("half")
        with committed(path) as outlived:
            outlived.write_text("whole")
        assert path.read_text() == "whole"
        with open(next_run, "a") as file:
            file.write(" and half")
    assert path.read_text() == "half and half" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_an_unfinished_write_leaves_the_file_as_it_was_and_nothing_else(tmp_path, error):
    path = tmp_path / "model.npz"
    path.write_text("before")
    with pytest.raises(type(error)), committed(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_reported_with_a_way_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"file/out cannot be made: Not a directory; name another folder$"):
        with locked(tmp_path / "file" / "out", "build"):
            pass


def test_the_error_of_a_full_disk_names_the_file_that_was_written(tmp_path):
    with pytest.raises(OSError, match="No space") as caught, committed(tmp_path / "model.npz"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.filename == str(tmp_path / "model.npz")


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("out/shards", "out/shards"),
        ("~/out", "/home/ada/out"),
        ("~root/out", "/root/out"),
        ("file:///tmp/my%20run", "/tmp/my run"),
        ("FILE://localhost/tmp/run", "/tmp/run"),
        ("file:/tmp/run", "/tmp/run"),
        ("run:1", "run:1"),
        ("runs/2026-11-29T10:00/x", "runs/2026-11-29T10:00/x"),
        (Path("out"), "out"),
    ],
)
def test_a_path_is_what_a_shell_or_a_browser_makes_of_it(text, meant, monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    assert local_path(text) == Path(meant)


@pytest.mark.parametrize(
    ("text", "way_out"),
    [
        ("s3://bucket/out", "`aws s3 sync`"),
        (Path("s3://bucket/out"), "`aws s3 sync`"),
        ("simplecache::gs://bucket/out", "`gcloud storage rsync -r`"),
        ("hf://datasets/me/out", "`hf upload`"),
        ("memory://out", "mounted folder"),
        ("https://example.com/out", "mounted folder"),
        ("file://server/out", "mounted folder"),
        ("runs/s3://bucket", "mounted folder"),
        ("~no_such_user/out", "./~no_such_user/out"),
        ("", "name a file or a folder"),
        ("a\0b", "name a file or a folder"),
    ],
)
def test_a_path_that_is_not_on_this_machine_is_refused_with_a_way_out(text, way_out):
    with pytest.raises(UserError, match="(?s)^(?!.*\n)") as caught:
        local_path(text)
    assert way_out in str(caught.value)


HOLD = (
    "import sys\n"
    "from pathlib import Path\n"
    "from diptych.locks import locked\n"
    "with locked(Path(sys.argv[1]), 'pack'):\n"
    "    print('held', flush=True)\n"
    "    sys.stdin.read()\n"
)


def holder_of(folder):
    held = subprocess.Popen(
        [sys.executable, "-c", HOLD, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert held.stdout is not None and held.stdout.readline() == "held\n"
    return held


@pytest.mark.parametrize("is_killed", [False, True])
def test_a_folder_is_locked_until_its_holder_ends_however_it_ends(tmp_path, is_killed):
    holder = holder_of(tmp_path / "out")
    with pytest.raises(LockedError, match=f"another pack .* {tmp_path}/out .process {holder.pid} on .*let it finish"):
        with locked(tmp_path / "out", "pack"):
            pass
    if is_killed:
        holder.kill()
    holder.communicate("")
    with locked(tmp_path / "out", "pack"):
        pass
    assert (tmp_path / "out" / "lock").read_bytes() == b""


def test_a_lock_that_is_refused_in_its_own_process_is_kept(tmp_path):
    with locked(tmp_path, "pack"):
        with pytest.raises(LockedError), locked(tmp_path, "pack"):
            pass
        other = subprocess.run([sys.executable, "-c", HOLD, tmp_path], capture_output=True, text=True, input="")
        assert "LockedError: another pack is at work" in other.stderr


THREADS = """
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from diptych.locks import LockedError, locked

def work(_):
    with suppress(LockedError), locked(Path(sys.argv[1]), "pack"):
        inside = Path(sys.argv[1]) / "inside"
        inside.touch(exist_ok=False)
        inside.unlink()

with ThreadPoolExecutor(4) as threads:
    list(threads.map(work, range(1000)))
"""


def test_of_all_threads_of_two_processes_one_at_a_time_holds_a_lock(tmp_path):
    both = [subprocess.Popen([sys.executable, "-c", THREADS, tmp_path], stderr=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[1] for process in both] == [b"", b""]


def test_a_folder_that_its_holder_removes_is_locked_by_the_next_in_line(tmp_path, monkeypatch):
    folder, lockf = tmp_path / "out.counts", fcntl.lockf

    def removed_before(descriptor, how):
        monkeypatch.setattr(fcntl, "lockf", lockf)
        shutil.rmtree(folder)
        lockf(descriptor, how)

    monkeypatch.setattr(fcntl, "lockf", removed_before)
    with locked(folder, "queries"):
        other = subprocess.run([sys.executable, "-c", HOLD, folder], capture_output=True, text=True, input="")
        assert "LockedError" in other.stderr


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EIO])
def test_a_disk_without_locks_is_not_another_process(tmp_path, monkeypatch, number):
    def refused(descriptor, how):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", refused)
    with pytest.raises(UserError, match=f"lock cannot be locked: {os.strerror(number)}; name a folder") as caught:
        with locked(tmp_path, "pack"):
            pass
    assert not isinstance(caught.value, LockedError)


def test_an_error_of_the_work_is_not_taken_for_another_process(tmp_path):
    with pytest.raises(BlockingIOError, match="the work's own"), locked(tmp_path, "pack"):
        raise BlockingIOError(errno.EAGAIN, "the work's own")


def test_a_place_that_can_be_written_is_left_as_it_was(tmp_path):
    check_writable(tmp_path / "new" / "folder" / "file", "name another")
    (tmp_path / "file").write_text("kept")
    check_writable(tmp_path / "file", "name another")
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "kept"


@pytest.mark.parametrize(
    ("place", "told"),
    [
        ("file/x", r".*/file cannot be written: File exists; name another"),
        ("folder", r".*/folder cannot be written: Is a directory; name another"),
        ("/proc/nope/x", r"/proc/nope cannot be written: .*; name another"),
        ("/proc/x", r"/proc/x cannot be written: .*; name another"),
        ("folder/" + 300 * "x", r".*x cannot be written: File name too long; name another"),
        ("folder/new/" + 300 * "x" + "/y", r".*x cannot be written: File name too long; name another"),
    ],
)
def test_a_place_that_cannot_be_written_says_why_and_is_left_as_it_was(tmp_path, place, told):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(UserError, match=told):
        check_writable(tmp_path / place, "name another")
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder"]
