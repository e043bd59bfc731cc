"""The journal keeps every finished row, even if the process that writes it dies."""

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych_shards.shard_build.journal import Journal

TASK, ANOTHER = b"a" * 32, b"b" * 32


def written(path, rows=(3, 0, 7)):
    with Journal(path, TASK) as journal:
        for row in rows:
            journal.append(row, {"status": "success", "row": row}, bytes([row]) * 100)
    return path


def test_the_next_process_reads_what_was_written(tmp_path):
    with Journal(written(tmp_path / "j"), TASK) as journal:
        assert journal.rows == [0, 3, 7] and 3 in journal and 1 not in journal
        assert journal.facts(7) == {"status": "success", "row": 7}
        assert journal.picture(3) == b"\x03" * 100
        journal.append(3, {"status": "another"})
        assert journal.facts(3)["status"] == "success"


def test_the_journal_of_another_task_is_emptied(tmp_path):
    with Journal(written(tmp_path / "j"), ANOTHER) as journal:
        assert len(journal) == 0


@given(cut=st.integers(1, 600))
def test_a_torn_end_costs_only_what_was_torn(tmp_path_factory, cut):
    path = written(tmp_path_factory.mktemp("torn") / "j")
    os.truncate(path, os.path.getsize(path) - min(cut, os.path.getsize(path) - 4096))
    with Journal(path, TASK) as journal:
        kept = journal.rows
        assert set(kept) <= {0, 3, 7} and all(journal.picture(row) == bytes([row]) * 100 for row in kept)
        journal.append(9, {}, b"more")
    with Journal(path, TASK) as journal:
        assert journal.rows == sorted([*kept, 9]) and journal.picture(9) == b"more"


def test_nothing_after_a_flipped_byte_is_used(tmp_path):
    path = written(tmp_path / "j")
    with path.open("r+b") as file:
        file.seek(-5, os.SEEK_END)
        file.write(b"!")
    with Journal(path, TASK) as journal:
        assert journal.rows == [0, 3]


def killed_while_decoding(path, row, **how):
    child = os.fork()
    if child == 0:
        Journal(path, TASK, **how).begin_decoding(row)
        os._exit(9)
    os.waitpid(child, 0)


def test_the_row_at_which_processes_died_is_known(tmp_path):
    path = tmp_path / "j"
    killed_while_decoding(path, 5)
    killed_while_decoding(path, 5, process_was_lost=True)
    with Journal(path, TASK, process_was_lost=True) as journal:
        assert (journal.lost_row, journal.num_lost) == (5, 2)


def test_a_journal_of_another_purpose_is_emptied_if_a_purpose_is_named(tmp_path):
    path = tmp_path / "j"
    with Journal(path, TASK, purpose=b"p" * 32) as journal:
        journal.append(1, {})
    for purpose, rows in ((b"p" * 32, [1]), (None, [1]), (b"q" * 32, [])):
        with Journal(path, TASK, purpose=purpose) as journal:
            assert journal.rows == rows


def test_a_kill_by_the_user_is_counted_for_no_row(tmp_path):
    path = tmp_path / "j"
    killed_while_decoding(path, 5)
    killed_while_decoding(path, 5)
    with Journal(path, TASK) as journal:
        assert journal.num_lost == 0


def test_only_one_process_opens_a_journal(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych_shards.shard_build.journal.LOCK_SECONDS", 0.1)
    with Journal(tmp_path / "j", TASK), pytest.raises(BlockingIOError):
        Journal(tmp_path / "j", TASK)
