"""What `diptych-shards build` prints before and after a build, and how it records a block list."""

import os
import subprocess
import sys

import pyarrow
import pyarrow.parquet as parquet
import pytest

from diptych_shards.cli import main
from diptych_shards.shard_build.options import BuildOptions

pytestmark = pytest.mark.usefixtures("forked_workers")


def test_wandb_without_a_login_is_one_line_before_anything_is_written(tmp_path):
    (tmp_path / "table.csv").write_text("url,caption\nhttp://127.0.0.1:1/1.jpg,one\n")
    command = [sys.executable, "-m", "diptych_shards", "build", "table.csv", "out", "--wandb", "project"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("WANDB_")}
    environment["HOME"] = str(tmp_path)
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert "wandb login" in line and "WANDB_MODE=offline" in line
    assert {path.name for path in tmp_path.iterdir()} == {"table.csv"}


def test_a_table_of_a_header_alone_is_no_error(tmp_path, capsys):
    (tmp_path / "table.csv").write_text("url,caption\n")
    assert main(["build", str(tmp_path / "table.csv"), str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out == f"the table has no rows: nothing to store in {tmp_path / 'out'}\n"
    assert main(["verify", str(tmp_path / "out")]) == 0
    assert "0 shards, 0 samples, all as written" in capsys.readouterr().out


def test_a_table_without_one_valid_line_is_an_error(tmp_path, capsys):
    (tmp_path / "table.csv").write_text("url,caption\na,b,c\n")
    assert main(["build", str(tmp_path / "table.csv"), str(tmp_path / "out")]) == 2
    said = capsys.readouterr()
    assert "too many fields" in said.out and "\n\n" not in said.out
    assert said.err.splitlines()[-1] == "diptych-shards: no line of the table is a row; the reasons are above"


def test_a_column_without_captions_is_reported_with_the_option_that_names_another(tmp_path, capsys):
    (tmp_path / "table.csv").write_text("url,caption,label\nhttp://127.0.0.1:1/1.jpg,,a dog\n")
    out = tmp_path / "out"
    assert main(["build", str(tmp_path / "table.csv"), str(out), "--processes", "1"]) == 2
    said = capsys.readouterr()
    assert "  100 %  empty_caption" in said.out and "--caption-column" in said.err
    assert main(["build", str(tmp_path / "table.csv"), str(out), "--retry-failed", "empty_caption"]) == 2
    assert "  100 %  empty_caption" in capsys.readouterr().out


def test_the_output_of_a_build_is_not_read_as_a_table_where_the_pattern_matches_it(tmp_path, capsys):
    folder = tmp_path / "tables"
    folder.mkdir()
    parquet.write_table(pyarrow.table({"url": ["ftp://a/1"], "caption": ["one"]}), folder / "a.parquet")
    command = ["build", str(folder / "**" / "*.parquet"), str(folder / "out"), "--processes", "1"]
    for _ in range(2):
        assert main(command) == 2  # no picture comes of that address
        assert "stored 0 of 1 row in 1 shard" in capsys.readouterr().out


def test_a_long_block_list_is_recorded_by_its_digest_and_any_change_of_it_is_seen():
    digests = [f"{number:064x}" for number in range(1_000)]
    options = BuildOptions(blocked_sha256=frozenset(digests))
    assert len(options.identity) < 2_000
    assert str(options.deciding["blocked_sha256"]).startswith("1,000 lines, ")
    assert options.identity is options.identity  # asked for at each shard
    assert options.identity == BuildOptions(blocked_sha256=frozenset(reversed(digests))).identity
    others = [BuildOptions(blocked_sha256=frozenset([*digests[1:], "f" * 64])), BuildOptions()]
    assert len({options.identity, *(other.identity for other in others)}) == 3


def test_a_build_from_before_there_were_digests_resumes_without_a_block_list():
    assert BuildOptions().deciding["blocked_sha256"] == []
