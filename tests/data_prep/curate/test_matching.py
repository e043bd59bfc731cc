"""Matches are those of the published rule."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from diptych_shards.curate.matching import Matcher, spaced

WORDS = ["a", "b", "A", "of", "eight888", "ninechars", "ninecharz", "é", "日本", "-", ",", ".", "`", "St", ""]
CAPTIONS = st.lists(
    st.one_of(st.sampled_from(WORDS), st.sampled_from([" ", "  ", "\t", "\r\n", ", ", "?!", "\u3000"])), max_size=30
).map("".join)
QUERIES = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=5).map(" ".join).filter(bool), unique=True)


def found(queries, captions):
    matches = Matcher(queries).match(captions)
    return [sorted(matches[caption].tolist()) for caption in range(len(matches))]


def found_by_the_rule(queries, captions):
    return [[number for number, query in enumerate(queries) if f" {query} " in spaced(caption)] for caption in captions]


@given(QUERIES, st.lists(CAPTIONS, max_size=8))
@example(["a a", "a a a", "a"], ["a a a a"])
@example(["a b", "b"], ["a  b", "a\tb", "a,b"])
@example(["St .  Louis", "St. Louis"], ["St. Louis"])
@example([" a", "a ", " "], ["a", "  a  ", ""])
@settings(max_examples=150, deadline=None)
def test_what_is_found_is_what_the_rule_finds(queries, captions):
    assert found(queries, captions) == found_by_the_rule(queries, captions)


@given(st.lists(st.text(min_size=1, max_size=6), min_size=1, max_size=6, unique=True), st.text(max_size=40))
@settings(max_examples=100, deadline=None)
def test_any_text_may_be_query_and_caption(queries, caption):
    captions = [caption, " ".join([caption, *queries]), queries[0]]
    assert found(queries, captions) == found_by_the_rule(queries, captions)


def test_the_rule_is_that_of_the_published_code():
    assert spaced("a,b\tc") == " a , b c "
    queries = ["the", "The", "cat", "the cat", "sat", "cat sat", "mat", "well-known", "mat .", "."]
    assert found(queries, ["the cat sat on The mat."]) == [[0, 1, 2, 3, 4, 5, 6, 8, 9]]
    assert found(queries, ["a well-known cat (the)"]) == [[2, 7]]  # brackets are no boundary
    assert found(queries, ["cat, sat"]) == [[2, 4]]  # two spaces where the comma was: no bigram


def test_a_query_counts_once_a_caption_however_many_there_are():
    queries = [f"w{number}" for number in range(200)]
    assert found(queries, [" ".join(queries * 3), "w7 w7"]) == [list(range(200)), [7]]


def test_long_captions_with_many_matches_are_found():
    queries = [" ".join(["a"] * length) for length in range(1, 41)]
    captions = ["a " * 3000, "b", "a " * 700 + "b"] * 3
    assert found(queries, captions) == found_by_the_rule(queries, captions)


def test_no_captions_and_no_queries_have_no_matches():
    assert len(Matcher(["a"]).match([])) == 0
    assert len(Matcher([]).match(["a"])[0]) == 0


def test_matches_can_be_kept_of_some_captions_only():
    matches = Matcher(["a", "b"]).match(["a b", "b", "", "a"])
    chosen = matches.only(np.array([False, True, True, True]))
    assert [chosen[number].tolist() for number in range(4)] == [[], [1], [], [0]]


@pytest.mark.parametrize("longest", [1, 3])
def test_words_that_start_alike_are_distinguished(longest):
    stem = "x" * 9
    queries = [" ".join([f"{stem}{number}"] * longest) for number in range(300)]
    assert found(queries, [queries[250], stem]) == [[250], []]
