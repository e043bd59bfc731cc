"""The command on small tables."""

import os
import random
import signal
import sys

import numpy as np
import pyarrow
import pytest
from pyarrow import parquet

from diptych_shards.curate import decide, duplicates, external_sort
from diptych_shards.curate import pairs as pairs_module
from diptych_shards.curate.balance import uniforms
from diptych_shards.curate.duplicates import pair_hash
from diptych_shards.curate.matching import spaced
from tests.data_prep.curate.pairs import curate, files, kept, report, write_lines, write_pairs
from tests.warm import Warm

pytestmark = pytest.mark.usefixtures("forked_workers")

QUERIES = ["red", "apple", "red apple", "on a table", "dog", "zebra", "of", "nowhere to be found"]
WORDS = ["red", "apple", "dog", "of", "on a table", "blue,", "garden", "running"]


def made_pairs(number, seed=0):
    """Captions of frequent and rare words; a tenth without a query, some twice."""
    draw = random.Random(seed)
    weights = [2.0**-rank for rank in range(len(WORDS))]
    pairs = []
    for row in range(number):
        words = draw.choices(WORDS, weights, k=draw.randint(2, 6))
        if draw.random() < 0.01:
            words.append("zebra")
        if draw.random() < 0.1:
            words = ["garden", "running", str(row)]
        pairs.append((f"https://h.org/{row}.jpg", " ".join(words)))
    return pairs


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    pairs = made_pairs(3000)
    write_pairs(folder / "pairs" / "a.parquet", pairs[:2000], row_group_size=300)
    write_pairs(folder / "pairs" / "b.parquet", pairs[2000:], row_group_size=300)
    write_lines(folder / "queries.txt", QUERIES)
    return folder


SMALL = [
    (pairs_module, "ROWS_PER_UNIT", 300),
    (decide, "UNITS_AT_ONCE", 2),
    (duplicates, "PAIRS_AT_ONCE", 200),
    (external_sort, "MOST_FILES", 4),
]
"""Small limits, so that a small table has as many parts and merges as a crawl."""


@pytest.fixture
def small(monkeypatch):
    for setting in SMALL:
        monkeypatch.setattr(*setting)


def test_the_kept_pairs_are_those_of_the_formula(made, tmp_path, small):
    options = ["--queries", made / "queries.txt", "--pairs-per-query", 100, "--seed", 7, "--skip", "repetition"]
    assert curate(made / "pairs", tmp_path / "out", *options) == 0

    pairs = made_pairs(3000)
    queries_of = [[query for query in QUERIES if f" {query} " in spaced(caption)] for _, caption in pairs]
    counts = {query: sum(query in queries for queries in queries_of) for query in QUERIES}
    wanted = []
    for (url, caption), queries in zip(pairs, queries_of, strict=True):
        probability = 1 - np.prod([1 - 100 / max(counts[query], 100) for query in queries])
        if uniforms(np.array([pair_hash(url, caption)], np.uint64), 7)[0] < probability:
            wanted.append((url, caption))

    assert 200 < len(wanted) < 1500
    assert kept(tmp_path / "out") == wanted
    listed = {
        entry["query"]: (entry["pairs"], entry["kept"]) for entry in report(tmp_path / "out")["queries"]["largest"]
    }
    stays = [any(f" {query} " in spaced(caption) for _, caption in [pair]) for pair in wanted for query in QUERIES]
    assert {query: pair_counts[0] for query, pair_counts in listed.items()} == {q: n for q, n in counts.items() if n}
    assert sum(pair_counts[1] for pair_counts in listed.values()) == sum(stays)
    table = parquet.read_table(tmp_path / "out" / "_index" / "queries.parquet")
    assert table["query"].to_pylist() == QUERIES
    assert table["pairs"].to_pylist() == [counts[query] for query in QUERIES]


def test_the_order_of_the_pairs_and_their_files_changes_nothing(made, tmp_path, small):
    pairs = made_pairs(3000)
    random.Random(1).shuffle(pairs)
    table = write_pairs(tmp_path / "pairs.parquet", pairs, row_group_size=5000)
    options = ["--queries", made / "queries.txt", "--pairs-per-query", 100]
    assert curate(made / "pairs", tmp_path / "a", *options) == curate(table, tmp_path / "b", *options) == 0
    assert sorted(kept(tmp_path / "a")) == sorted(kept(tmp_path / "b"))


def test_processes_and_parts_do_not_change_the_pairs(made, tmp_path, capsys):
    options = ["--queries", made / "queries.txt", "--pairs-per-query", 100, "--dropped"]
    assert curate(made / "pairs", tmp_path / "one", *options) == 0
    assert curate(made / "pairs", tmp_path / "two", *options, processes=2) == 0
    assert files(tmp_path / "one") == files(tmp_path / "two")


def test_columns_are_carried_and_captions_cleaned(tmp_path):
    table = write_pairs(
        tmp_path / "in.parquet",
        [
            ("https://a.org/1.jpg", " a  cat&amp;dog "),
            ("https://a.org/2.jpg", "der Hund liegt im Garten unter dem Baum"),
        ],
        width=[3, None],
        tags=[["x"], []],
    )
    assert curate(table, tmp_path / "out") == 0
    rows = parquet.read_table(tmp_path / "out" / "00000.parquet").to_pylist()
    assert rows[0]["caption"] == "a cat&dog"
    assert [row["width"] for row in rows] == [3, None] and [row["tags"] for row in rows] == [["x"], []]
    assert "caption_language" not in rows[0] and report(tmp_path / "out")["languages"] == {}


ROOM = "a room with a view"
SIZES = [
    [
        ("https://a.org/room.jpg", None),
        ("https://a.org/room-150x150.jpg", 5000),
        ("https://a.org/room-1024x768.jpg", 9),
    ],
    [("https://a.org/room-1024x768.jpg", None), ("https://a.org/room-300x225.jpg", None)],
    [("https://a.org/room.jpg?v=1", 640), ("https://www.a.org/room.jpg", None), ("http://a.org/room.jpg", 320)],
    [("https://a.org/room.jpg?resize=800,600", None), ("https://a.org/room.jpg?w=300", 4000)],
    [("https://a.org/room.jpg", 400), ("https://a.org/room.jpg", 20), ("https://a.org/room.jpg", None)],
]


@pytest.mark.parametrize("first_is_largest", SIZES)
def test_the_largest_of_several_sizes_of_a_picture_stays(tmp_path, monkeypatch, first_is_largest):
    monkeypatch.setattr(pairs_module, "ROWS_PER_UNIT", 1)
    for number, rows in enumerate((first_is_largest, first_is_largest[::-1])):
        urls, widths = zip(*rows, strict=True)
        table = write_pairs(tmp_path / f"{number}.parquet", [(url, ROOM) for url in urls], row_group_size=1,
                            Width=widths, HEIGHT=widths)  # fmt: skip
        out = tmp_path / f"out{number}"
        assert curate(table, out) == 0
        (row,) = parquet.read_table(out / "00000.parquet").to_pylist()
        assert (row["url"], row["Width"]) == first_is_largest[0]


def test_dropped_pairs_are_written_with_their_reason(tmp_path):
    table = write_pairs(
        tmp_path / "in.parquet",
        [
            ("https://a.org/1.jpg", "a cat on a mat"),
            ("ftp://a.org/2.jpg", "a cat on a mat"),
            ("https://ads.bad.org/3.jpg", "a cat on a mat"),
            ("https://a.org/4.jpg", None),
            ("https://a.org/5.jpg", "IMG_2041.JPG"),
            ("https://a.org/6.jpg", "a dog and Nasty, Words"),
            ("https://a.org/7.jpg", "some other thing"),
            ("https://a.org/1.jpg", "a cat on a  mat"),
            ("http://www.a.org/1-300x200.jpg?v=3", "A cat on a mat!"),
            (None, "a cat on a mat"),
        ],
    )
    hosts = write_lines(tmp_path / "hosts.txt", ["bad.org"])
    phrases = write_lines(tmp_path / "phrases.txt", ["nasty words"])
    queries = write_lines(tmp_path / "queries.txt", ["cat", "dog"])
    lists = ["--block-hosts", hosts, "--block-phrases", phrases, "--queries", queries]
    assert curate(table, tmp_path / "out", *lists, "--dropped") == 0
    dropped = parquet.read_table(tmp_path / "out" / "_index" / "dropped" / "00000.parquet")
    assert sorted(dropped["reason"].to_pylist()) == sorted(
        ["no_url", "blocked_host", "empty", "file_name", "blocked_phrase", "no_query", "exact_duplicate",
         "near_duplicate", "no_url"]
    )  # fmt: skip
    summary = report(tmp_path / "out")
    assert summary["pairs"] == 10 and summary["kept"] == 1 and sum(summary["rules"].values()) == 9


def test_a_query_list_may_have_blanks_and_repetitions(tmp_path):
    table = write_pairs(tmp_path / "in.parquet", [("https://a.org/1", "a cat"), ("https://a.org/2", "a dog")])
    queries = write_lines(tmp_path / "queries.txt", ["", "  ", "cat", " dog\t", "cat", "Cat"])
    assert curate(table, tmp_path / "out", "--queries", queries) == 0
    assert parquet.read_table(tmp_path / "out" / "_index" / "queries.parquet")["query"].to_pylist() == [
        "cat",
        "dog",
        "Cat",
    ]
    assert len(kept(tmp_path / "out")) == 2


def test_a_query_list_may_be_that_of_metaclip(tmp_path, capsys):
    table = write_pairs(tmp_path / "in.parquet", [("https://a.org/1", "a cat"), ("https://a.org/2", "a dog")])
    queries = tmp_path / "metadata.json"
    queries.write_text('["cat", "dog", " "]', encoding="utf-8")
    assert curate(table, tmp_path / "out", "--queries", queries) == 0
    assert len(kept(tmp_path / "out")) == 2
    for text, message in (("cat", "is not JSON"), ('{"cat": 1}', "is not a list of texts")):
        queries.write_text(text, encoding="utf-8")
        assert curate(table, tmp_path / "other", "--queries", queries) == 2
        assert message in capsys.readouterr().err


def test_a_number_of_pairs_for_each_query_needs_queries(tmp_path, capsys):
    table = write_pairs(tmp_path / "in.parquet", [("https://a.org/1", "a cat")])
    assert curate(table, tmp_path / "out", "--pairs-per-query", 5) == 2
    assert "--pairs-per-query balances over --queries FILE" in capsys.readouterr().err


def test_languages_are_chosen(tmp_path):
    captions = ["der Hund liegt im Garten unter dem Baum", "the dog lies in the garden under the tree", "asdf"]
    table = write_pairs(tmp_path / "in.parquet", [(f"https://a.org/{n}", text) for n, text in enumerate(captions)])
    assert curate(table, tmp_path / "de", "--languages", "de") == 0
    assert [caption for _, caption in kept(tmp_path / "de")] == captions[:1]
    assert curate(table, tmp_path / "some", "--languages", "en,und") == 0
    assert [caption for _, caption in kept(tmp_path / "some")] == captions[1:]
    (row,) = parquet.read_table(tmp_path / "de" / "00000.parquet").to_pylist()
    assert row["caption_language"] == "de" and row["caption_language_score"] > 0.5
    assert report(tmp_path / "some")["languages"] == {"en": 1, "und": 1}


def test_only_the_characters_that_are_not_utf8_are_lost(tmp_path):
    data, ends = pyarrow.py_buffer(b"a cat \xff hereb dog"), pyarrow.py_buffer(np.array([0, 12, 17], np.int32))
    captions = pyarrow.StringArray.from_buffers(2, ends, data)
    table = pyarrow.table({"url": ["https://a.org/1", "https://a.org/2"], "caption": captions})
    parquet.write_table(table, tmp_path / "in.parquet")
    assert curate(tmp_path / "in.parquet", tmp_path / "out") == 0
    assert [caption for _, caption in kept(tmp_path / "out")] == ["a cat \ufffd here", "b dog"]


def test_four_times_the_pairs_open_four_times_the_files(tmp_path, small):
    opened = []
    is_counting = True
    sys.addaudithook(lambda event, about: opened.append(about[0]) if is_counting and event == "open" else None)
    numbers = []
    for size in (1_500, 6_000):
        table = write_pairs(tmp_path / f"{size}.parquet", made_pairs(size // 2) * 2, row_group_size=100)
        opened.clear()
        assert curate(table, tmp_path / str(size)) == 0
        numbers.append(sum("work" in os.fspath(path) for path in opened if isinstance(path, (str, os.PathLike))))
    is_counting = False
    assert numbers[1] / numbers[0] < 6, numbers  # merging adds a little, a search of all by each would be 16


class Stopped(BaseException):
    """Raised in place of a kill; nothing in the program catches it."""


def stop_at(monkeypatch, moment):
    """Stop before (even) or after (odd) the file of that number gets its name; yield how many got theirs."""
    real, named = os.replace, [0]

    def replace_or_stop(*names):
        named[0] += 1
        if moment == 2 * named[0]:
            raise Stopped
        real(*names)
        if moment == 2 * named[0] + 1:
            raise Stopped

    monkeypatch.setattr(os, "replace", replace_or_stop)
    return named


def test_stopped_at_any_file_it_ends_with_the_same_bytes(made, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs_module, "ROWS_PER_UNIT", 300)
    monkeypatch.setattr(external_sort, "MOST_FILES", 2)
    table = write_pairs(tmp_path / "pairs.parquet", made_pairs(600) + made_pairs(20), row_group_size=300)
    options = ["--queries", made / "queries.txt", "--pairs-per-query", 20, "--dropped"]
    with monkeypatch.context() as patched:
        named = stop_at(patched, 0)
        assert curate(table, tmp_path / "whole", *options) == 0
    whole = files(tmp_path / "whole")
    assert named[0] > 10
    # By day before every fifth file gets its name, and after every fifth.
    for moment in range(2, 2 * named[0] + 2, 1 if os.environ.get("NIGHTLY") else 5):
        out = tmp_path / str(moment)
        with monkeypatch.context() as patched, pytest.raises(Stopped):
            stop_at(patched, moment)
            curate(table, out, *options)
        assert curate(table, out, *options) == 0
        assert files(out) == whole


def curate_until_killed(seed, arguments):
    """In a process of its own, which may end before or after any file gets its name."""
    draw, replace = random.Random(seed), os.replace

    def replace_or_die(*names):
        if draw.random() < 0.03:
            os.kill(os.getpid(), signal.SIGKILL)
        replace(*names)

    os.replace = replace_or_die
    for module, name, value in SMALL:
        setattr(module, name, value)
    sys.exit(curate(*arguments))


def test_killed_again_and_again_it_ends_with_the_same_bytes(made, tmp_path, small):
    options = ["--queries", made / "queries.txt", "--pairs-per-query", 100, "--dropped"]
    assert curate(made / "pairs", tmp_path / "whole", *options) == 0
    statuses = []
    while not statuses or statuses[-1] != 0:
        arguments = [str(word) for word in (made / "pairs", tmp_path / "killed", *options)]
        statuses.append(Warm(f"{__name__}:curate_until_killed", len(statuses) + 1, arguments).wait())
    assert set(statuses[:-1]) == {-signal.SIGKILL}
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_columns_of_the_views_that_newer_tools_write_are_read_and_kept_as_texts(tmp_path):
    captions = [f"a cat number {number} on a mat" for number in range(5)]
    columns = {
        "url": pyarrow.array([f"https://a.example/{number}.jpg" for number in range(5)], pyarrow.string_view()),
        "caption": pyarrow.array(captions, pyarrow.string_view()),
        "bytes": pyarrow.array([caption.encode() for caption in captions], pyarrow.binary_view()),
        "words": pyarrow.array([caption.split() for caption in captions], pyarrow.list_(pyarrow.string_view())),
        "places": pyarrow.array([[1, 2]] * 5, pyarrow.list_view(pyarrow.int32())),
        "more": pyarrow.array(
            [{"text": caption} for caption in captions], pyarrow.struct([("text", pyarrow.string_view())])
        ),
    }
    parquet.write_table(pyarrow.table(columns), tmp_path / "in.parquet")
    assert curate(tmp_path / "in.parquet", tmp_path / "out") == 0
    kept = parquet.read_table(tmp_path / "out" / "00000.parquet")
    assert sorted(kept["caption"].to_pylist()) == captions and kept["places"].to_pylist() == [[1, 2]] * 5
    assert [row["text"] for row in kept["more"].to_pylist()] == kept["caption"].to_pylist()


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["urls.csv", "out"], "curate reads parquet, such as extract writes"),
        (["nowhere", "out"], "nowhere does not exist"),
        (["empty", "out"], "empty has no .parquet"),
        (["empty", "empty"], "another folder"),
        (["bad.parquet", "out"], "not a readable parquet"),
        (["cut.parquet", "out"], "cut.parquet is not a readable parquet file"),
        (["damaged.parquet", "out"], "damaged.parquet: damaged"),
        (["none.parquet", "out"], "holds no pairs"),
        (["other.parquet", "out"], "--caption-column"),
        (["in.parquet", "other"], "something else"),
        (["in.parquet", "file"], "not a folder"),
        (["in.parquet", "out", "--skip", "nonsense"], "no rule 'nonsense'; there are empty"),
        (["in.parquet", "out", "--skip", "boilerplat"], "did you mean boilerplate?"),
        (["in.parquet", "out", "--caption-column", "captoin"], "in.parquet: no column of text 'captoin'; did you mean"),
        (["in.parquet", "out", "--min-words", "-1"], "min_words is -1; it must be at least 0"),
        (["in.parquet", "out", "--max-characters", "0"], "at least 1"),
        (["in.parquet", "out", "--min-characters", "-1"], "at least 0"),
        (["in.parquet", "out", "--seed", "-1"], "at least 0"),
        (["in.parquet", "out", "--queries", "blank.txt"], "no query"),
        (["in.parquet", "out", "--queries", "nowhere.txt"], "nowhere.txt"),
        (["in.parquet", "out", "--block-phrases", "nowhere.txt"], "nowhere.txt"),
        (["in.parquet", "out", "--pairs-per-query", "0"], "at least 1"),
        (["in.parquet", "out", "--pairs-per-query", str(2**63)], "it must be below 2**63"),
        (["in.parquet", "out", "--skip", "language"], "no rule 'language'"),
        (["in.parquet", "out", "--duplicates", "all"], "near, exact, keep"),
        (["in.parquet", "out", "--languages", "en,english"], "no language 'english'; give codes such as en"),
        (["in.parquet", "out", "--languages", "eu"], "no pair is left"),
    ],
)
def test_a_user_error_is_one_line_and_exit_status_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "other"):
        (tmp_path / name).mkdir()
    for name in ("file", "other/file", "bad.parquet", "urls.csv"):
        (tmp_path / name).write_text("x")
    write_lines(tmp_path / "blank.txt", [""])
    write_pairs(tmp_path / "in.parquet", [("https://a.org/1", "a cat")])
    data = write_pairs(
        tmp_path / "cut.parquet", [(f"https://a.org/{n}", f"a cat {n}") for n in range(999)]
    ).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(data[:-100])
    (tmp_path / "damaged.parquet").write_bytes(data[:100] + bytes(900) + data[1000:])
    parquet.write_table(pyarrow.table({"url": ["u"], "says": ["x"]}), tmp_path / "other.parquet")
    parquet.write_table(pyarrow.table({"url": pyarrow.array([], pyarrow.string())}), tmp_path / "none.parquet")
    assert curate(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0], lines


def test_a_complete_run_is_reported_again_and_other_options_are_refused(made, tmp_path, capsys):
    assert curate(made / "pairs", tmp_path / "out") == 0
    first, before = capsys.readouterr().out, files(tmp_path / "out")
    assert curate(made / "pairs", tmp_path / "out") == 0
    assert capsys.readouterr().out == first
    assert curate(made / "pairs", tmp_path / "out", "--seed", 1, "--min-words", 2) == 2
    assert "started with other options (seed 0, now 1; min_words 1, now 2); use the same" in capsys.readouterr().err
    assert curate(made / "pairs" / "a.parquet", tmp_path / "out") == 2
    assert "started with other files; give those again" in capsys.readouterr().err
    assert files(tmp_path / "out") == before
