"""`diptych-shards verify` on a build: it finds every kind of damage, and names it."""

import json
import shutil
import tarfile

import pyarrow
import pyarrow.parquet as parquet
import pytest

from diptych_shards.cli import main


@pytest.fixture
def out(built, tmp_path):
    shutil.copytree(built, tmp_path / "out")
    return tmp_path / "out"


def refusal(out, capsys) -> str:
    assert main(["verify", str(out)]) == 2
    return capsys.readouterr().err.splitlines()[-1]


def rewrite(path, **columns):
    """The same parquet with other values in some columns."""
    table = parquet.read_table(path)
    for name, change in columns.items():
        place = table.column_names.index(name)
        values = pyarrow.array(change(table[name].to_pylist()), table.schema.field(name).type)
        table = table.set_column(place, table.schema.field(name), values)
    parquet.write_table(table, path)


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def test_a_build_as_it_was_written_passes(built, capsys):
    assert main(["verify", str(built)]) == 0
    assert "3 shards, 18 samples, all as written" in capsys.readouterr().out


def test_a_flipped_byte_is_reported_with_its_member(out, capsys):
    with tarfile.open(out / "00001.tar") as tar:
        member = tar.getmembers()[6]
    flip(out / "00001.tar", member.offset_data + 3)
    assert f"00001.tar: {member.name}: at byte {member.offset_data}" in refusal(out, capsys)


def test_a_truncated_tar_is_reported_with_the_first_member_that_was_cut(out, capsys):
    with tarfile.open(out / "00001.tar") as tar:
        member = tar.getmembers()[6]
    with open(out / "00001.tar", "r+b") as tar:
        tar.truncate(member.offset_data + member.size - 1)
    said = refusal(out, capsys)
    assert "00001.tar" in said and "truncated" in said and f"not whole is {member.name}; start the build again" in said
    assert "delete" not in said


def test_a_tar_that_has_grown_is_written_again(out, capsys):
    with open(out / "00001.tar", "ab") as tar:
        tar.write(b"more")
    assert refusal(out, capsys).endswith("start the build again to rewrite the shard")


@pytest.mark.parametrize("name", ["00001.parquet", "00001_stats.json", "00001.tar", "_index/00001.outcomes"])
def test_a_missing_file_is_named(out, capsys, name):
    (out / name).unlink()
    assert name.rpartition("/")[2] in refusal(out, capsys)


def test_a_missing_tar_is_written_again(out, capsys):
    (out / "00001.tar").unlink()
    assert refusal(out, capsys).endswith("00001.tar is missing; start the build again to rewrite the shard")


def test_a_build_without_any_shard_is_reported(out, capsys):
    for path in [*out.glob("0000*"), *(out / "_index").glob("0000*")]:
        path.unlink()
    assert "one is missing" in refusal(out, capsys)


def test_a_shard_without_any_file_is_reported(out, capsys):
    for path in [*out.glob("00001*"), *(out / "_index").glob("00001*")]:
        path.unlink()
    assert "one is missing" in refusal(out, capsys)


def test_a_row_whose_key_is_not_in_the_tar_is_reported(out, capsys):
    rewrite(out / "00000.parquet", key=lambda keys: [*keys[:3], "000009", *keys[4:]])
    assert "00000.parquet: row 3 (key 000009) is not in 00000.tar" in refusal(out, capsys)


def test_a_row_more_than_the_tar_has_samples_is_reported(out, capsys):
    rewrite(out / "00002.parquet", status=lambda statuses: ["success"] * len(statuses))
    assert "00002.parquet: row " in refusal(out, capsys)


def test_a_row_that_differs_from_its_json_in_the_tar_is_reported(out, capsys):
    rewrite(out / "00000.parquet", width=lambda widths: [None if width is None else width + 1 for width in widths])
    assert "00000.parquet: row 1 (key 000001) differs from its .json" in refusal(out, capsys)


def test_a_parquet_that_cannot_be_read_is_reported(out, capsys):
    with open(out / "00000.parquet", "r+b") as file:
        file.truncate(100)
    assert "00000.parquet cannot be read" in refusal(out, capsys)


def test_statistics_with_another_count_are_reported(out, capsys):
    path = out / "00000_stats.json"
    stats = json.loads(path.read_bytes())
    path.write_text(json.dumps(stats | {"failed_to_resize": stats["failed_to_resize"] + 1}))
    assert "00000_stats.json counts" in refusal(out, capsys)


def test_a_build_that_has_not_finished_is_reported(out, capsys):
    path = out / "_index" / "build.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"finished": False}))
    assert "has not finished" in refusal(out, capsys)


def test_a_reason_for_a_row_that_was_stored_is_reported(out, capsys):
    path = out / "_index" / "00000.outcomes"
    sizes, failures = path.read_text().splitlines()
    path.write_text(f"{sizes}\n{json.dumps(json.loads(failures) | {'timeout': [2]})}\n")
    assert "row 2" in refusal(out, capsys)
