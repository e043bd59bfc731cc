"""The list of queries from a corpus."""

import gzip
import math
import random
from collections import Counter

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from diptych_shards.cli import main
from diptych_shards.curate import corpus as corpus_module
from diptych_shards.curate import external_sort
from diptych_shards.curate.corpus import corpus_counts, segments
from diptych_shards.curate.external_sort import DiskCounter
from diptych_shards.curate.matching import spaced
from diptych_shards.curate.queries import QueryOptions, build_queries, title_query
from diptych_shards.run.engine import LocalEngine
from tests.data_prep.curate.pairs import write_lines

pytestmark = pytest.mark.usefixtures("forked_workers")

TEXTS = ["new york is new", "New York, new york", "the york of old", "(new york) and the new"]


def build(tmp_path, texts, **options):
    more = {name: options.pop(name) for name in ("first", "titles") if name in options}
    corpus = write_lines(tmp_path / "corpus.txt", texts)
    with corpus_counts([corpus], None, tmp_path / "out.txt", LocalEngine(1)) as counts:
        return build_queries(counts, QueryOptions(**options), **more)


def test_words_are_those_that_occur_often_enough_most_frequent_first(tmp_path):
    found = build(tmp_path, TEXTS, min_count=2)
    assert found.queries == ["new", "york", "the"]
    assert found.num_words == 17 and found.words == 3
    assert [path.name for path in tmp_path.iterdir()] == ["corpus.txt"]


def test_pairs_are_those_whose_mutual_information_is_high_enough(tmp_path):
    words = Counter(word for text in TEXTS for part in segments(text) for word in part)
    pairs = Counter(pair for text in TEXTS for part in segments(text) for pair in zip(part, part[1:], strict=False))
    total = sum(words.values())
    pmi = {pair: math.log2(n * total / (words[pair[0]] * words[pair[1]])) for pair, n in pairs.items()}
    for threshold in sorted(set(pmi.values())):
        found = build(tmp_path, TEXTS, min_count=100, min_pmi=threshold - 1e-9, min_pair_count=1)
        assert set(found.queries) == {" ".join(pair) for pair in pmi if pmi[pair] >= threshold - 1e-9}
        informations = [pmi[tuple(pair.split(" "))] for pair in found.queries]
        assert informations == sorted(informations, reverse=True)
    assert "new york" in build(tmp_path, TEXTS, min_count=100, min_pmi=0, min_pair_count=3).queries


def test_the_list_is_cut_in_the_order_of_its_sources(tmp_path):
    given = {"first": ["7", "york"], "titles": ["St._Louis", "Talk:York", "new", "Old"]}
    options = {"min_count": 3, "min_pmi": 0, "min_pair_count": 3}
    whole = build(tmp_path, TEXTS, **options, **given)
    assert whole.queries == ["7", "york", "new", "new york", "St .  Louis", "Old"]
    assert (whole.given, whole.words, whole.pairs, whole.titles) == (2, 1, 1, 2)
    for most in range(1, 6):
        assert build(tmp_path, TEXTS, **options, **given, most=most).queries == whole.queries[:most]


def test_punctuation_ends_pairs_and_is_no_query(tmp_path):
    parts = [["A", "dog's"], ["big"], ["red"], ["ball", "-", "see"], ["it"]]
    assert list(segments("A dog's, 'big' (red) ball - see  it")) == parts
    found = build(tmp_path, ["- - & & -"], min_count=1, min_pmi=-99, min_pair_count=1)
    assert found.queries == []


@given(st.text(alphabet="aB.,:;?!` _", min_size=1, max_size=12))
def test_a_title_is_found_in_a_caption_that_contains_it(title):
    query = title_query(title)
    if query:
        caption = " ".join(title.replace("_", " ").split())
        assert f" {query} " in spaced(f"x {caption} x")


@given(st.lists(st.lists(st.sampled_from(["a", "b", "ab", "é", "日", "a b", ""]), max_size=9), max_size=30))
@settings(deadline=None)
def test_counting_on_disk_is_counting(tmp_path_factory, texts):
    folder = tmp_path_factory.mktemp("counts")
    counter = DiskCounter(folder / "counts", most_in_memory=2)
    for text in texts:
        counter.add(text)
    assert dict(counter.items()) == Counter(word for text in texts for word in text)
    assert [text for text, _ in counter.items()] == sorted({word for text in texts for word in text})


def test_many_runs_are_merged_to_few_files(tmp_path):
    counter = DiskCounter(tmp_path / "counts", most_in_memory=1)
    for number in range(3 * external_sort.MOST_RUNS):
        counter.add([str(number), "x"])
    assert len(list((tmp_path / "counts").iterdir())) < external_sort.MOST_RUNS
    assert dict(counter.items())["x"] == 3 * external_sort.MOST_RUNS


def test_the_command_reads_lines_gzip_and_columns(tmp_path, capsys):
    write_lines(tmp_path / "a.txt", ["one two one"])
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"two three \xff\n"))
    parquet.write_table(pyarrow.table({"text": ["three", None, "two"]}), tmp_path / "c.parquet")
    corpus = [str(tmp_path / name) for name in ("a.txt", "b.txt.gz", "c.parquet")]
    assert main(["queries", *corpus, str(tmp_path / "out.txt"), "--min-count", "2"]) == 0
    assert (tmp_path / "out.txt").read_text() == "two\none\nthree\n"
    assert "wrote 3 queries from 8 words" in capsys.readouterr().out


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    """Seven files, counted in two rounds of merging."""
    monkeypatch.setattr(external_sort, "MOST_FILES", 2)
    draw = random.Random(0)
    texts = [" ".join(draw.choices("abcdefgh", k=9)) for _ in range(70)]
    return [write_lines(tmp_path / f"{number}.txt", texts[number * 10 :][:10]) for number in range(7)]


OPTIONS = ["--min-count", "3", "--min-pmi", "-9", "--processes"]


def test_files_and_processes_change_nothing(corpus, tmp_path):
    whole = write_lines(tmp_path / "whole.txt", [path.read_text() for path in corpus])
    for name, texts, processes in (("whole", [whole], "1"), ("one", corpus, "1"), ("two", corpus, "2")):
        assert main(["queries", *map(str, texts), str(tmp_path / name), *OPTIONS, processes]) == 0
    assert (tmp_path / "whole").read_bytes() == (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    assert len((tmp_path / "one").read_text().splitlines()) > 40
    assert not list(tmp_path.glob("*.counts"))


def test_a_stopped_run_counts_only_the_other_files(corpus, tmp_path, monkeypatch):
    arguments = ["queries", *map(str, corpus), str(tmp_path / "out"), *OPTIONS, "1"]
    assert main([*arguments[:8], str(tmp_path / "whole"), *OPTIONS, "1"]) == 0
    counted = []
    read = corpus_module.read_corpus

    def read_or_stop(path, column):
        counted.append(path)
        if len(counted) == 5:
            raise KeyboardInterrupt
        return read(path, column)

    monkeypatch.setattr(corpus_module, "read_corpus", read_or_stop)
    assert main(arguments) == 130
    assert not (tmp_path / "out").exists()
    assert main(arguments) == 0
    assert counted == [*corpus[:5], *corpus[4:]]
    assert (tmp_path / "out").read_bytes() == (tmp_path / "whole").read_bytes()


def test_counts_serve_other_thresholds_but_not_other_texts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "a.txt", ["one two one"])
    assert main(["queries", "a.txt", "out"]) == 2
    assert main(["queries", "a.txt", "out", "--min-count", "9"]) == 2
    write_lines(tmp_path / "a.txt", ["three four three four"])
    assert main(["queries", "a.txt", "out", "--min-count", "2"]) == 0
    assert (tmp_path / "out").read_text() == "four\nthree\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "out"]


def test_a_mutual_information_that_no_pair_can_reach_is_reported(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "a.txt", ["ping pong"] * 2 + ["other words"] * 2)  # log2(2 * 8 / (2 * 2)) = 2
    assert main(["queries", "a.txt", "out", "--min-count", "2"]) == 0
    assert "no pair of words can reach --min-pmi 30 in 8 words; 2.0 is the highest" in capsys.readouterr().out
    assert main(["queries", "a.txt", "two", "--min-count", "2", "--min-pmi", "2"]) == 0
    output = capsys.readouterr().out
    assert "can reach" not in output and "2  pairs of words" in output


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["a.txt", "a.txt"], "a.txt exists"),
        (["nowhere.txt", "out"], "nowhere.txt does not exist"),
        (["folder", "out"], "is a folder"),
        (["a.txt", "folder"], "folder exists"),
        (["a.txt", "nowhere/out"], "nowhere is not a folder"),
        (["a.txt", "used"], "used.counts is where counts go, and holds something else"),
        (["a.txt", "out"], "no word occurs 100 times among 2; lower --min-count (out.counts has what was counted)"),
        (["a.parquet", "out", "--text-column", "worsd"], "did you mean words?"),
        (["a.parquet", "out"], "could be the text; name it with --text-column. Its columns of text: words"),
        (["a.txt", "out", "--min-count", "-3"], "at least 1"),
        (["a.txt", "out", "--min-pmi", "nan"], "a number of bits"),
        (["bad.gz", "out"], "bad.gz: damaged"),
        (["bad.parquet", "out"], "not a readable parquet"),
        (["a.txt", "out", "--most", "0"], "at least 1"),
        (["a.txt", "out", "--titles", "nowhere.txt"], "nowhere.txt"),
    ],
)
def test_a_user_error_is_one_line_and_exit_status_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write_lines(tmp_path / "a.txt", ["one two"])
    (tmp_path / "bad.gz").write_bytes(gzip.compress(b"one two" * 99)[:-9])
    (tmp_path / "bad.parquet").write_text("x")
    parquet.write_table(pyarrow.table({"words": ["one"], "number": [1]}), tmp_path / "a.parquet")
    (tmp_path / "folder").mkdir()
    (tmp_path / "used.counts").mkdir()
    (tmp_path / "used.counts" / "mine").write_text("x")
    assert main(["queries", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and message in lines[0], lines
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "used.counts" / "mine").exists()
    assert (tmp_path / "out.counts").exists() == ("no word" in message)
