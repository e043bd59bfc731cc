"""Files of OUT."""

from diptych_shards.curate.state import committed


def test_a_worker_that_outlives_its_run_does_not_spoil_the_file_of_the_next(tmp_path):
    path = tmp_path / "00000.parquet"
    with committed(path) as next_run:
        next_run.write_text("half")
        with committed(path) as outlived:
            outlived.write_text("whole")
        assert path.read_text() == "whole"
        with open(next_run, "a") as file:
            file.write(" and half")
    assert path.read_text() == "half and half" and list(tmp_path.iterdir()) == [path]
