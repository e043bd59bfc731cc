"""Whether a shard is done, and what its files say."""

import errno
import itertools
import json
import os
from types import SimpleNamespace

import pytest

from diptych_shards.shard_build.shard_files import OutputOptions, RowResult, is_done, read_failures, read_stats
from tests.data_prep.shard_build.small_shards import OPTIONS, results, success, write


def test_a_shard_with_statistics_is_done(tmp_path):
    assert not is_done(tmp_path, 0, OPTIONS)
    write(tmp_path)
    assert is_done(tmp_path, 0, OPTIONS)
    assert not is_done(tmp_path, 1, OPTIONS)
    assert read_stats(tmp_path)[0].status_dict == {
        "HTTP Error 404: Not Found": 1,
        "success": 8,
        "Image decoding error": 1,
    }


@pytest.mark.parametrize("name", ["00000.tar", "00000.parquet", "_index/00000.tar.index", "_index/00000.outcomes"])
@pytest.mark.parametrize("damage", ["missing", "shorter", "longer"])
def test_a_shard_with_a_damaged_file_is_built_again(tmp_path, name, damage):
    write(tmp_path)
    path = tmp_path / name
    before = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "shorter":
        path.write_bytes(before[: len(before) // 2])
    elif name.endswith(".outcomes"):
        path.write_bytes(b"x" + before)
    else:
        path.write_bytes(before + b"x")
    if damage == "shorter" and name.endswith(".outcomes"):
        path.write_bytes(before[:10])
    assert not is_done(tmp_path, 0, OPTIONS)
    assert set(read_stats(tmp_path)) == {0}
    write(tmp_path)
    assert path.read_bytes() == before
    assert is_done(tmp_path, 0, OPTIONS)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"count": 1}'])
def test_torn_statistics_are_not_read(tmp_path, text):
    write(tmp_path)
    (tmp_path / "00000_stats.json").write_text(text)
    assert not is_done(tmp_path, 0, OPTIONS)
    assert read_stats(tmp_path) == {}


def test_files_of_other_programs_are_not_read(tmp_path):
    (tmp_path / "my_stats.json").write_text("{}")
    assert read_stats(tmp_path) == {}


def test_statistics_are_removed_before_anything_is_written_again(tmp_path):
    write(tmp_path)

    def stop_at_once():
        assert not (tmp_path / "00000_stats.json").exists()
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path, found=stop_at_once())
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("step", range(5))
def test_a_shard_cut_short_at_any_commit_is_not_done_and_is_built_again(tmp_path, step, monkeypatch):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    write(whole)
    calls = itertools.count()
    replace = os.replace

    def cut_short(source, target):
        if next(calls) == step:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), target)
        replace(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(os, "replace", cut_short)
        with pytest.raises(OSError, match="No space left"):
            write(cut)
    assert not is_done(cut, 0, OPTIONS)
    assert not (cut / "00000_stats.json").exists()
    assert not list(cut.rglob("*.partial"))
    write(cut)
    for name in ("00000.tar", "00000.parquet", "_index/00000.tar.index", "_index/00000.outcomes"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()


def test_the_reason_of_each_failure_can_be_read_back(tmp_path):
    write(tmp_path)
    assert read_failures(tmp_path, 0, OPTIONS) == {"http_404": [3], "not_a_picture": [5]}


def test_results_pass_through_json():
    for result in results():
        assert RowResult.from_facts(result.row, json.loads(json.dumps(result.facts()))) == result
    stored = SimpleNamespace(
        data=b"", suffix="jpg", width=64, height=64, original_width=400, original_height=300, exif="{}"
    )
    assert RowResult.of_picture(0, stored, success(0).digest) == success(0)


@pytest.mark.parametrize("wrong", [{"rows_per_shard": 0}, {"shard_digits": 0}, {"compute_hash": "crc32"}])
def test_options_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        OutputOptions(**wrong)
