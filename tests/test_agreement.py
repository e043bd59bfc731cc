"""Whether ranks have one folder, tried by real ones."""

from __future__ import annotations

import os

from diptych import agreement
from diptych.errors import UserError
from diptych.world import World
from tests.ranks import run_ranks


def what_is_said_of(rank, folders):
    agreement.LATE_FILE_SECONDS = 1.0
    try:
        agreement.check_shared(World(rank, rank, len(folders)), folders[rank], "run_dir")
    except UserError as error:
        return str(error)
    except SystemExit as error:
        return error.code
    return "shared"


def test_ranks_that_have_one_folder_leave_nothing_in_it(tmp_path):
    (tmp_path / "seen_by_all_ranks").write_text("of a start that was killed")
    assert run_ranks(3, what_is_said_of, [tmp_path] * 3) == ["shared"] * 3
    assert os.listdir(tmp_path) == []


def test_a_folder_that_each_machine_has_for_itself_is_named_with_the_way_out(tmp_path):
    folders = [tmp_path / "a", tmp_path / "b", tmp_path / "is not there"]
    for folder in folders[:2]:
        folder.mkdir()
    said, *others = run_ranks(3, what_is_said_of, folders)
    assert others == [2, 2]
    assert said.startswith(f"run_dir {folders[0]}: what rank 0 on ")
    assert " is not seen by rank 1 on " in said and " and 1 more; " in said
    assert said.endswith("set run_dir to a folder on a disk that all machines share, by its full path")
    assert os.listdir(folders[0]) == []
