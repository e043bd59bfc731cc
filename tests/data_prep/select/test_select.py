"""New shards contain what all verdicts keep, also after a stop at any point."""

import os
import signal

import pyarrow.parquet
import pytest

from diptych.data.shard_list import read_folder_list
from diptych.data.shards import open_index
from diptych.locks import locked
from diptych_shards.cli import main
from tests.data_prep.select.shards import jpeg, tree, write_shards
from tests.warm import Warm


def facts(number):
    return {"number": number, "odd": bool(number % 2)}


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Six shards of eight samples, two verdicts: one keeps the 24 odd samples, one drops the first 12 and last 9."""
    pictures = [jpeg(seed) for seed in range(4)]
    folder = write_shards(
        tmp_path_factory.mktemp("shards") / "shards",
        [[(pictures[n % 4], f"caption {n}", facts(n)) for n in range(s, s + 8)] for s in range(0, 48, 8)],
        failures=1,
    )
    assert main(["filter", str(folder), "--where", "odd", "--name", "odd"]) == 0
    assert main(["filter", str(folder), "--where", "number >= 12 and number < 39", "--name", "middle"]) == 0
    return folder


KEPT = list(range(13, 39, 2))


def select(shards, out, *options):
    return main(["select", str(shards), str(out), *options])


def samples(folder):
    index = open_index(folder)
    return [(sample.shard.name, sample.key, index.read(sample)) for sample in index.samples()]


def test_a_sample_is_kept_when_every_verdict_keeps_it(shards, tmp_path, capsys):
    assert select(shards, tmp_path / "out") == 0
    assert "13 of 48 samples are kept by middle, odd; 4 shards" in capsys.readouterr().out
    before = {key: (name, members) for name, key, members in samples(shards)}
    after = samples(tmp_path / "out")
    assert [int(members["txt"].split()[1]) for _, _, members in after] == KEPT
    assert all(before[key] == (name, members) for name, key, members in after)
    assert main(["verify", str(tmp_path / "out")]) == 0


def test_one_verdict_may_be_chosen(shards, tmp_path):
    assert select(shards, tmp_path / "out", "--verdict", "odd") == 0
    assert len(open_index(tmp_path / "out")) == 24
    assert select(shards, tmp_path / "none", "--verdict", "even") == 2


def test_the_parquet_next_to_a_shard_has_the_rows_of_kept_samples(shards, tmp_path):
    for options, names in (
        ((), ["00001", "00002", "00003", "00004"]),
        (("--samples-per-shard", "5"), ["00000", "00001", "00002"]),
    ):
        out = tmp_path / f"out{len(options)}"
        assert select(shards, out, *options) == 0
        assert sorted(path.stem for path in out.glob("*.parquet")) == names
        index = open_index(out)
        for number, shard in enumerate(index.shards):
            table = pyarrow.parquet.read_table(shard.path.with_suffix(".parquet"))
            assert table["key"].to_pylist() == index.keys(number)
            assert set(table["status"].to_pylist()) == {"success"}


def test_shards_can_be_cut_again(shards, tmp_path):
    assert select(shards, tmp_path / "out", "--samples-per-shard", "5") == 0
    assert open_index(tmp_path / "out").counts.tolist() == [5, 5, 3]
    assert read_folder_list(tmp_path / "out").samples.tolist() == [5, 5, 3]
    assert [int(members["txt"].split()[1]) for _, _, members in samples(tmp_path / "out")] == KEPT


def test_bare_tars_get_no_parquet(tmp_path):
    folder = write_shards(tmp_path / "shards", [[(jpeg(n), f"c {n}", facts(n)) for n in range(4)]], parquet=False)
    assert main(["filter", str(folder), "--where", "odd"]) == 0
    assert select(folder, tmp_path / "out") == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["00000.tar", "_index"]


def select_until_killed(left, words):
    """In a process of its own: SIGKILL before the system call of this number that makes something durable."""

    def counted(call):
        def instead(*arguments):
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return call(*arguments)

        return instead

    os.replace, os.fsync = counted(os.replace), counted(os.fsync)
    return main(words)


def test_killed_anywhere_and_started_again_the_bytes_are_the_same(shards, tmp_path):
    assert select(shards, tmp_path / "whole", "--samples-per-shard", "5") == 0
    out = tmp_path / "killed"
    words = ["select", str(shards), str(out), "--samples-per-shard", "5", "--processes", "1"]
    kills = 0
    for left in (0, 1, 2, 4, 6, 8, 10, 50):
        status = Warm(f"{__name__}:select_until_killed", left, words).wait()
        kills += status == -signal.SIGKILL
        if status == 0:
            break
    assert status == 0 and kills >= 6
    assert tree(out) == tree(tmp_path / "whole")


def test_a_folder_that_holds_something_else_is_refused(shards, tmp_path, capsys):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").write_text("mine")
    assert select(shards, tmp_path / "other") == 2
    assert "something else" in capsys.readouterr().err
    assert select(shards, shards / "inside") == 2
    assert select(shards, tmp_path / "out") == 0
    assert select(shards, tmp_path / "out", "--verdict", "odd") == 2
    assert "was started with other verdicts" in capsys.readouterr().err


def test_verdicts_on_shards_that_changed_since_do_not_count(tmp_path, capsys):
    folder = write_shards(tmp_path / "shards", [[(jpeg(n), f"c {n}", facts(n)) for n in range(4)]])
    assert select(folder, tmp_path / "out") == 2
    assert "has no verdict yet" in capsys.readouterr().err
    assert main(["filter", str(folder), "--where", "odd"]) == 0
    for path in (folder / "00000.tar", folder / "_index" / "00000.tar.index"):
        path.unlink()
    write_shards(folder, [[(jpeg(n), f"c {n}", facts(n)) for n in range(3)]])
    assert select(folder, tmp_path / "out") == 2
    assert "as they were before they changed" in capsys.readouterr().err
    (folder / "_index" / "select" / "filter.parquet").write_bytes(b"PAR1 no")
    assert select(folder, tmp_path / "out") == 2
    assert "damaged" in capsys.readouterr().err


def test_when_nothing_is_kept_nothing_is_written(shards, tmp_path, capsys):
    folder = write_shards(tmp_path / "shards", [[(jpeg(0), "c", facts(0))]])
    assert main(["filter", str(folder), "--where", "odd"]) == 0
    assert select(folder, tmp_path / "out") == 2
    assert "keep no sample" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_two_commands_do_not_write_to_one_folder(shards, tmp_path):
    """The second one does not wait: it names the first one and ends."""
    (tmp_path / "out" / "_index").mkdir(parents=True)
    (tmp_path / "out" / "_index" / "select.json").write_text("{}")
    with locked(tmp_path / "out" / "_index", "select"):
        assert select(shards, tmp_path / "out") == 2
