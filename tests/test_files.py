"""A file is there whole or not at all; a path is one of this machine or refused."""

from pathlib import Path

import pytest

from diptych.errors import UserError
from diptych.files import committed, local_path


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
def test_what_is_no_path_of_this_machine_is_refused_with_a_way_out(text, way_out):
    with pytest.raises(UserError, match="(?s)^(?!.*\n)") as caught:
        local_path(text)
    assert way_out in str(caught.value)
