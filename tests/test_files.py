"""A file is there whole or not at all."""

import pytest

from diptych.files import committed


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
def test_what_is_not_finished_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path, error):
    path = tmp_path / "model.npz"
    path.write_text("before")
    with pytest.raises(type(error)), committed(path) as partial:
        partial.write_text("half")
        raise error
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
