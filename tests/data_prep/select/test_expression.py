"""Expressions mean what SQL's words mean, and can do nothing else."""

import duckdb
import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych_shards.select.errors import SelectError
from diptych_shards.select.evaluate import check, truths
from diptych_shards.select.expression import columns_of, parse, parse_conditions

COLUMNS = {
    "width": pyarrow.array([100, 256, None, 512], pyarrow.int32()),
    "score": pyarrow.array([0.5, None, 0.25, -1.0], pyarrow.float32()),
    "caption": pyarrow.array(["a cat", "Ein Hund läuft", None, "100%"], pyarrow.string()),
    "nsfw": pyarrow.array([True, False, None, False]),
    "odd name": pyarrow.array(["1.5", " 2 ", "x", None]).dictionary_encode(),
    "nothing": pyarrow.nulls(4),
    "boxes": pyarrow.array([[1.0], [], None, [2.0]]),
}


def ask(source):
    node = parse(source)
    check(node)
    return truths(node, COLUMNS, 4).to_pylist()


# Each is asked of DuckDB too, whose SQL is another implementation of the same words.
SAME_AS_SQL = [
    "width >= 256 and length(caption) > 5",
    "width > 100 or nsfw",
    "not (width > 100 or nsfw)",
    "not width > 100 and not nsfw",
    "width = 100 or width <> 512 and score < 0",
    "width between 200 and 300",
    "width not between 200 and 300",
    "width in (100, 512)",
    "width not in (100, null)",
    "caption in ('a cat', '100%')",
    "caption like '%un%'",
    "caption not like 'a___t'",
    "caption like '100\\%' or width is null",
    "score is null",
    "score is not null and caption is null",
    "width / 2 + 1 > 100 - -28",
    "width - 100 - 1 < 0",
    "2 + 3 * 4 = 14",
    "-width < -score * 1e3",
    "nothing is null and nothing = 1",
    "nothing > 'a' or width > 1",
    "coalesce(score, 1) > 0.3",
    "lower(caption) = 'ein hund läuft'",
    "upper(caption) like 'A%'",
    "starts_with(caption, 'Ein') or ends_with(caption, '%')",
    "contains(caption, 'a')",
    "least(width, 200) = 200 and greatest(width, 300) > 300",
    "abs(score) >= 0.5",
    "floor(score) = round(score)",
    "nsfw = false",
    "true and (nsfw or null)",
    "caption = 'it''s'",
    "caption >= 'b'",
    "\"odd name\" = ' 2 '",
]


@pytest.mark.parametrize("source", SAME_AS_SQL)
def test_expressions_mean_what_they_mean_in_sql(source):
    table = pyarrow.table({**COLUMNS, "odd name": COLUMNS["odd name"].cast(pyarrow.string())})
    connection = duckdb.connect()
    connection.register("rows", table)
    # Escapes of `like` and functions of nulls are the few places where dialects differ.
    theirs = connection.sql(f"select ({source}) from rows".replace("'100\\%'", "'100\\%' escape '\\'")).fetchall()
    if "least" in source or "greatest" in source:
        theirs = [
            row if width is not None else (None,)
            for row, width in zip(theirs, COLUMNS["width"].to_pylist(), strict=True)
        ]
    assert ask(source) == [row[0] for row in theirs]


def test_what_sql_has_no_word_for():
    assert ask("words(caption) = 3") == [False, True, None, False]
    assert ask('number("odd name") > 1.7') == [False, True, None, None]
    assert ask("matches(caption, '^[a-z ]+$')") == [True, False, None, False]
    assert ask("width / 0 > 1e300") == [True, True, None, True]
    assert ask("length(caption) = 14") == [False, True, None, False]  # characters, not bytes


HOSTILE = [
    "",
    "width >",
    "width > 1; drop table samples",
    "width > 1 -- comment",
    "select 1",
    "(select 1)",
    "exists (select 1 from read_text('/etc/passwd'))",
    "read_csv('/etc/passwd')",
    "getenv('HOME') = 'x'",
    "read_text('/etc/passwd') is null",
    "pg_sleep(10)",
    "__import__('os').system('true')",
    "().__class__",
    "width.__class__ = 1",
    "lambda: 1",
    "width == 1 and [x for x in caption]",
    'caption = "a cat"',
    "caption = 'a cat",
    "width > '256'",
    "length(width) > 1",
    "width and nsfw",
    "boxes = 1",
    "width",
    "length(caption)",
    "length() > 1",
    "length(caption, 1) > 1",
    "matches(caption, '(')",
    "matches(caption, caption)",
    "like(caption)",
    "width = = 1",
    "width not 3",
    "width in ()",
    "in (1)",
    "hight > 1",
    "width > 1 \x00",
    "a" * 20_000,
    "(" * 200 + "width" + ")" * 200,
    "not " * 3_000 + "width",
    "-" * 9_000 + "width > 1",
    "+".join(["1"] * 4_000) + " > 1",
    "coalesce(" * 60 + "width" + ")" * 60 + " > 1",
]


@pytest.mark.parametrize("source", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_no_question_about_one_row_is_refused(source):
    if source.startswith("-"):  # long, but a question: an even number of signs
        assert ask(source) == [False if width == 0 else True if width else None for width in (100, 256, None, 512)]
        return
    with pytest.raises(SelectError) as refused:
        ask(source)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_the_refusal_says_where_and_what_was_meant():
    for source, said in {
        "width >= 256 and": "a value was expected at character 17, but it ends",
        "hight > 1": "no column 'hight'",
        "widht > 1": "did you mean width?",
        "lenght(caption) > 1": "did you mean length?",
        'caption = "a cat"': "in double quotes or none it names a column, as a text it is 'a cat'",
        'caption like "%it\'s%"': "in double quotes or none it names a column, as a text it is '%it''s%'",
        "matches(caption, lower(caption))": "operand 2 of matches must be written down, in single quotes",
        '"odd name" > 1': "number(...) reads one from a text",
    }.items():
        with pytest.raises(SelectError, match=r".*") as refused:
            ask(source)
        assert said in str(refused.value)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("width()'\"<>=!,.+-*/ 01andornots%\\\n") | st.characters(), max_size=60))
def test_any_text_is_an_expression_or_refused(source):
    try:
        ask(source)
    except SelectError:
        pass


def test_a_pattern_that_explodes_elsewhere_takes_linear_time():
    columns = {"caption": pyarrow.array(["a" * 100_000 + "b"])}
    assert truths(parse("matches(caption, '(a+)+$')"), columns, 1).to_pylist() == [False]


def test_conditions_stand_between_the_outermost_ands():
    sources = [each.source for each in parse_conditions(" width >= 256 and (nsfw or  score > 1) and not nsfw ")]
    assert sources == ["width >= 256", "(nsfw or  score > 1)", "not nsfw"]
    assert [each.source for each in parse_conditions("width > 1 and nsfw or score > 1")] == [
        "width > 1 and nsfw or score > 1"
    ]
    assert [each.source for each in parse_conditions("width between 1 and 2 and nsfw")] == [
        "width between 1 and 2",
        "nsfw",
    ]
    assert columns_of(parse("width > 1 and length(caption) > width")) == ["width", "caption"]
