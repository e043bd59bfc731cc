"""Filters on the metadata of samples, from parquet or from json members."""

import pytest

from diptych_shards.cli import main
from tests.data_prep.select.shards import jpeg, verdict, write_shards

SHARDS = [
    [(jpeg(0), "a red cat", {"width": 300, "license": "cc"}), (jpeg(1), "cat", {"width": 200, "license": "cc"})],
    [(jpeg(2), "two dogs in a park", {"width": 400, "license": None}), (jpeg(3), "", {"width": None, "license": "?"})],
]


def keep(folder, where, *options):
    return main(["filter", str(folder), "--where", where, "--processes", "1", *options])


@pytest.mark.parametrize("parquet", [True, False])
def test_samples_are_kept_where_all_conditions_hold_and_the_others_say_which_does_not(tmp_path, parquet, capsys):
    folder = write_shards(tmp_path / "shards", SHARDS, parquet=parquet, failures=2 * parquet)
    assert keep(folder, "length(caption) > 5 and  width >= 256 and license is not null") == 0
    assert list(verdict(folder, "filter").items()) == [
        ("000000000", (True, "", None)),
        ("000000001", (False, "not length(caption) > 5", None)),
        ("000010000", (False, "not license is not null", None)),
        ("000010001", (False, "not length(caption) > 5", None)),
    ]
    output, progress = capsys.readouterr()
    assert "filter: 1 of 4 samples are kept" in output and "2  not length(caption) > 5" in output
    assert progress.splitlines()[-1] == "00001.tar: 4 of 4 samples, 3 left out"


@pytest.mark.parametrize("parquet", [True, False])
def test_what_is_not_known_is_not_true(tmp_path, parquet):
    folder = write_shards(tmp_path / "shards", SHARDS, parquet=parquet)
    assert keep(folder, "width > 250", "--name", "wide") == 0
    assert verdict(folder, "wide")["000010001"] == (False, "unknown width > 250", None)
    assert verdict(folder, "wide")["000000001"] == (False, "not width > 250", None)


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("not contains(caption, 'a')", "contains(caption, 'a')"),
        ("NOT  contains(caption, 'a')", "contains(caption, 'a')"),
        ("not(contains(caption, 'a') or true)", "(contains(caption, 'a') or true)"),
        ("not not length(caption) > 5000", "not length(caption) > 5000"),
        ("not not not length(caption) > 0", "length(caption) > 0"),
        ("not length(caption) > 0 or key = 'x'", "not (not length(caption) > 0 or key = 'x')"),
        ("key = 'x' or key = 'y'", "not (key = 'x' or key = 'y')"),
        ("key not like '0%'", "not key not like '0%'"),
    ],
)
def test_the_opposite_of_a_condition_is_a_condition_that_reads_well(tmp_path, where, reason):
    folder = write_shards(tmp_path / "shards", SHARDS, parquet=False)
    assert keep(folder, where) == 0
    reasons = {reason for _, reason, _ in verdict(folder, "filter").values()}
    assert reason in reasons, reasons


def test_captions_and_keys_are_known_of_bare_samples(tmp_path):
    folder = write_shards(tmp_path / "shards", SHARDS, parquet=False)
    assert keep(folder, "words(caption) >= 3 and key like '00000%'") == 0
    assert [key for key, row in verdict(folder, "filter").items() if row[0]] == ["000000000"]


def test_json_of_other_tools_is_read_as_far_as_it_makes_sense(tmp_path):
    facts = [{"n": 1}, {"n": "12"}, {"n": [1]}, {"n": 10**400}, {"n": "\udcff"}, {"n": True}, {}]
    folder = write_shards(tmp_path / "shards", [[(jpeg(0), "c", each) for each in facts]], parquet=False)
    assert keep(folder, "number(n) between 1 and 20") == 0
    assert [kept for kept, _, _ in verdict(folder, "filter").values()] == [True, True] + [False] * 5


def test_a_misspelt_column_is_named_and_no_verdict_is_left(tmp_path, capsys):
    for name, parquet in (("a", True), ("b", False)):
        folder = write_shards(tmp_path / name, SHARDS, parquet=parquet)
        assert keep(folder, "widht > 1") == 2
        assert "did you mean width?" in capsys.readouterr().err
        assert not list((folder / "_index" / "select").glob("*.p*"))


def test_a_parquet_that_belongs_to_other_samples_is_refused(tmp_path, capsys):
    folder = write_shards(tmp_path / "shards", SHARDS)
    (folder / "00001.parquet").write_bytes((folder / "00000.parquet").read_bytes())
    assert keep(folder, "width > 1") == 2
    assert "has no row for the key '000010000'" in capsys.readouterr().err


def test_only_a_folder_of_shards_can_be_judged(tmp_path, capsys):
    folder = write_shards(tmp_path / "shards", SHARDS)
    for wrong, said in ((folder / "00000.tar", "is not a folder"), (tmp_path / "none", "does not exist")):
        assert keep(wrong, "width > 1") == 2
        assert said in capsys.readouterr().err


def test_a_filter_that_replaces_another_one_says_so(tmp_path, capsys):
    folder = write_shards(tmp_path / "shards", SHARDS)
    assert keep(folder, "width > 1") == 0 and keep(folder, "width > 1") == 0
    assert "takes the place" not in capsys.readouterr().out
    assert keep(folder, "width > 2") == 0
    assert "it replaces width > 1; under another --name, both would count" in capsys.readouterr().out


def test_a_broken_shard_is_named_as_the_user_names_it(tmp_path, monkeypatch, capsys):
    write_shards(tmp_path / "shards", SHARDS, parquet=False)
    monkeypatch.chdir(tmp_path)
    tar = tmp_path / "shards" / "00001.tar"
    whole = tar.read_bytes()
    damaged = whole.replace(b'"width": 400', b'"width": 401')
    for broken, what in ((whole[:-1], "it is truncated"), (damaged, "not those that were indexed")):
        tar.write_bytes(broken)
        assert keep("shards", "width > 300", "--processes", "2") == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("diptych-shards: shards/00001.tar") and what in error
