"""One of several always stays, in any order of the verdicts, or `select` prints what to run again."""

import itertools
import os
import shlex
import shutil

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.shards import open_index
from diptych_shards.cli import main
from tests.data_prep.select.shards import jpeg, verdict, write_shards

pytestmark = pytest.mark.usefixtures("forked_workers")

SIZES = (48, 64)
POOL = {(look, size): jpeg(look, size) for look in range(3) for size in SIZES}


def numbered(pictures):
    return [(picture, f"c {number}", {"number": number}) for number, picture in enumerate(pictures)]


def command(*words):
    return main([*map(str, words), "--processes", "1"])


def keys(folder):
    index = open_index(folder)
    return {sample.key for sample in index.samples()}


@pytest.fixture
def shards(tmp_path):
    """A, a copy of A, B, a smaller A."""
    pictures = [POOL[0, 64], POOL[0, 64], POOL[1, 64], POOL[0, 48]]
    return write_shards(tmp_path / "shards", [numbered(pictures)])


A, COPY, B, SMALL = (f"00000000{row}" for row in range(4))


def test_what_a_filter_leaves_out_does_not_stay_for_others(shards, tmp_path, capsys):
    assert command("filter", shards, "--where", "number > 0") == 0
    assert command("dedup", shards) == 0
    said = capsys.readouterr().out
    assert "1  not judged: left out by other verdicts" in said
    assert "dedup: 2 of 4 samples are kept" in said  # the copy and B
    assert [key for key, row in verdict(shards, "dedup").items() if not row[0]] == [SMALL]
    assert command("select", shards, tmp_path / "out") == 0
    assert keys(tmp_path / "out") == {COPY, B}


def test_a_filter_that_came_after_dedup_makes_it_stale(shards, tmp_path, capsys):
    assert command("dedup", shards, "--distance", 3) == 0
    assert command("filter", shards, "--where", "number > 0") == 0
    again = f"the verdict 'dedup' was written without 'filter'; run again: diptych-shards dedup {shards} --name=dedup"
    assert f"{again} --distance=3\n" in capsys.readouterr().out
    for refusing in (("select", shards, tmp_path / "out"), ("preview", shards)):
        assert command(*refusing) == 2
        assert capsys.readouterr().err == f"diptych-shards: {again} --distance=3\n"
    assert not (tmp_path / "out").exists()
    assert command("dedup", shards, "--distance", 3) == 0
    assert command("select", shards, tmp_path / "out") == 0
    assert keys(tmp_path / "out") == {COPY, B}


def test_a_filter_that_changed_or_went_makes_dedup_stale_and_the_same_filter_does_not(shards, tmp_path, capsys):
    def refused():
        return command("select", shards, tmp_path / "out") == 2 and capsys.readouterr().err

    assert command("filter", shards, "--where", "number > 0") == 0
    assert command("dedup", shards) == 0
    assert command("filter", shards, "--where", "number > 0") == 0
    assert not refused()
    assert command("filter", shards, "--where", "number < 3") == 0
    assert "chose among the samples that 'filter' keeps, which has changed; run again" in refused()
    (shards / "_index" / "select" / "filter.parquet").unlink()
    assert "chose among the samples that 'filter' keeps, which is gone; run again" in refused()


def test_dedup_is_not_selected_by_without_the_filter_that_it_chose_among(shards, tmp_path, capsys):
    assert command("filter", shards, "--where", "number > 0") == 0
    assert command("dedup", shards) == 0
    assert command("select", shards, tmp_path / "out", "--verdict", "dedup") == 2
    assert "chose among the samples that 'filter' keeps; add --verdict filter" in capsys.readouterr().err
    assert command("select", shards, tmp_path / "filtered", "--verdict", "filter") == 0
    assert keys(tmp_path / "filtered") == {COPY, B, SMALL}


def test_a_filter_does_not_hold_for_a_parquet_that_was_edited_and_does_for_a_copy(shards, tmp_path, capsys):
    assert command("filter", shards, "--where", "number > 0") == 0
    assert command("dedup", shards) == 0
    shutil.copytree(shards, tmp_path / "copy", copy_function=shutil.copyfile)  # all of it newer than the verdicts
    assert command("select", tmp_path / "copy", tmp_path / "out of copy") == 0

    edited = pyarrow.parquet.read_table(shards / "00000.parquet")
    number = pyarrow.array([0, 0, 2, 3])
    pyarrow.parquet.write_table(edited.set_column(edited.schema.get_field_index("number"), "number", number),
                                shards / "00000.parquet")  # fmt: skip
    for refusing in (("select", shards, tmp_path / "out"), ("preview", shards), ("dedup", shards)):
        assert command(*refusing) == 2
        assert "'filter' is of these shards as they were before they changed" in capsys.readouterr().err
    assert command("filter", shards, "--where", "number > 0") == 0
    assert command("dedup", shards) == 0
    assert command("select", shards, tmp_path / "out") == 0
    assert keys(tmp_path / "out") == {B, SMALL}


def test_the_later_of_two_dedups_takes_the_earlier_one_into_account(shards, tmp_path, capsys):
    """The earlier one alone would keep A, the later one alone the small copy: together, nothing would be left."""
    assert command("dedup", shards, "--name", "exact", "--exact-only") == 0
    assert command("dedup", shards, "--name", "look", "--prefer", "number") == 0
    assert command("select", shards, tmp_path / "out") == 0
    assert keys(tmp_path / "out") == {B, SMALL}
    assert command("dedup", shards, "--name", "exact", "--exact-only") == 0
    assert command("select", shards, tmp_path / "out") == 0  # the same bytes: nothing is stale
    assert command("dedup", shards, "--name", "exact", "--exact-only", "--prefer", "number") == 0
    assert command("select", shards, tmp_path / "other") == 2
    output = capsys.readouterr().err.splitlines()[-1]
    assert output.endswith(f"'exact' keeps, which has changed; run again: "
                         f"diptych-shards dedup {shards} --name=look --distance=4 --prefer=number")  # fmt: skip


def test_the_command_to_run_again_has_all_options(shards, tmp_path, capsys):
    (tmp_path / "the set").mkdir()
    (tmp_path / "the set" / "b.jpg").write_bytes(POOL[1, 64])
    options = ["--name=d", "--exact-only", f"--against={tmp_path / 'the set'}", "--prefer=number * 2"]
    assert command("dedup", shards, *options) == 0
    assert command("filter", shards, "--where", "number > 0") == 0
    assert command("select", shards, tmp_path / "out") == 2
    again = shlex.split(capsys.readouterr().err.partition("run again: ")[2])
    assert again[:3] == ["diptych-shards", "dedup", str(shards)]
    assert sorted(again[3:]) == sorted(options)


FILTERS = st.tuples(st.just("filter"), st.sampled_from("fg"), st.sets(st.integers(0, 7)))
DEDUPS = st.tuples(st.just("dedup"), st.sampled_from(["exact", "look"]), st.sampled_from(["number", "-number", ""]))
DELETIONS = st.tuples(st.just("delete"), st.sampled_from(["f", "g", "exact", "look"]), st.none())


@settings(max_examples=25 if os.environ.get("NIGHTLY") else 8, deadline=None)
@given(
    st.lists(st.sampled_from(sorted(POOL)), min_size=8, max_size=8),
    st.lists(FILTERS | DEDUPS | DEDUPS | DELETIONS, min_size=1, max_size=8),
)
def test_one_of_every_group_stays_if_filters_keep_any_of_it(tmp_path_factory, kinds, steps):
    folder = tmp_path_factory.mktemp("group")
    samples = numbered([POOL[kind] for kind in kinds])
    shards = write_shards(folder / "shards", [samples[:3], samples[3:]])
    verdicts = shards / "_index" / "select"
    left_out: dict[str, set[int]] = {}
    for what, name, how in steps:
        if what == "filter":
            numbers = ", ".join(map(str, how)) or "-1"
            assert command("filter", shards, "--name", name, "--where", f"not number in ({numbers})") == 0
            left_out[name] = how
        elif what == "dedup":
            options = [*(["--exact-only"] if name == "exact" else []), *([f"--prefer={how}"] if how else [])]
            assert command("dedup", shards, "--name", name, *options) == 0
        else:
            (verdicts / f"{name}.parquet").unlink(missing_ok=True)
            left_out.pop(name, None)
    names = {path.stem for path in verdicts.glob("*.parquet")}
    if names:
        status, out = selected(shards, folder)
        kept = {int(key[-4:]) + 3 * int(key[:5]) for key in keys(out)} if status == 0 else set()
        passing = set(range(8)) - set().union(*left_out.values())
        group_of = [kind[0] if "look" in names else kind if "exact" in names else n for n, kind in enumerate(kinds)]
        assert sorted(group_of[number] for number in kept) == sorted({group_of[number] for number in passing})
        assert kept <= passing
    shutil.rmtree(folder)


def selected(shards, folder):
    """Select, running again each command that it names; return the last status, and the folder of the result."""
    for attempt in itertools.count():
        out = folder / f"out{attempt}"
        said = []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.stderr", type("Kept", (), {"write": said.append, "flush": lambda: None, "isatty": bool}))
            status = command("select", shards, out)
        again = "".join(said).partition("run again: ")[2]
        if not again:
            assert status == 0 or "together keep no sample" in "".join(said)
            return status, out
        assert command(*shlex.split(again)[1:]) == 0
        assert attempt < 6
