"""Expressions mean what SQL's words mean, and can do nothing else."""

import pyarrow
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.errors import UserError
from diptych_shards.commands import filter as filter_command
from diptych_shards.metadata import no_column
from diptych_shards.select.expression import FUNCTIONS, parse, parse_conditions

COLUMNS = {
    "width": pyarrow.array([100, 256, None, 512], pyarrow.int32()),
    "score": pyarrow.array([0.5, None, 0.25, -1.0], pyarrow.float32()),
    "caption": pyarrow.array(["a cat", "Ein Hund läuft", None, "100%"], pyarrow.string()),
    "nsfw": pyarrow.array([True, False, None, False]),
    "odd name": pyarrow.array(["1.5", " 2 ", "x", None]).dictionary_encode(),
    "nothing": pyarrow.nulls(4),
    "boxes": pyarrow.array([[1.0], [], None, [2.0]]),
    "nan": pyarrow.array([1.0, float("nan"), None, float("nan")]),
    "facts": pyarrow.array(['{"n": 1}', '{"n": 2}', "{}", None]),
}


def ask(source):
    asked = parse(source)
    for name in asked.columns:
        if name not in COLUMNS:
            raise UserError(no_column(name, COLUMNS))
    return asked.truths({name: COLUMNS[name] for name in asked.columns}, 4).to_pylist()


ANSWERS = {
    "width >= 256 and length(caption) > 5": "FT?F",
    "width > 100 or nsfw": "TT?T",
    "not (width > 100 or nsfw)": "FF?F",
    "not width > 100 and not nsfw": "FF?F",
    "width = 100 or width <> 512 and score < 0": "T??F",
    "width between 200 and 300": "FT?F",
    "width not between 200 and 300": "TF?T",
    "width in (100, 512)": "TF?T",
    "width not in (100, null)": "F???",
    "caption in ('a cat', '100%')": "TF?T",
    "caption like '%un%'": "FT?F",
    "caption not like 'a___t'": "FT?T",
    "caption like '100\\%' or width is null": "FFTF",
    "score is null": "FTFF",
    "score is not null and caption is null": "FFTF",
    "width / 2 + 1 > 100 - -28": "FT?T",
    "width - 100 - 1 < 0": "TF?F",
    "2 + 3 * 4 = 14": "TTTT",
    "-width < -score * 1e3": "F??T",
    "nothing is null and nothing = 1": "????",
    "nothing > 'a' or width > 1": "TT?T",
    "coalesce(score, 1) > 0.3": "TTFF",
    "lower(caption) = 'ein hund läuft'": "FT?F",
    "upper(caption) like 'A%'": "TF?F",
    "starts_with(caption, 'Ein') or ends_with(caption, '%')": "FT?T",
    "contains(caption, 'a')": "TF?F",
    "least(width, 200) = 200 and greatest(width, 300) > 300": "FFFT",
    "abs(score) >= 0.5": "T?FT",
    "floor(score) = round(score)": "F?TT",
    "nsfw = false": "FT?T",
    "true and (nsfw or null)": "T???",
    "caption = 'it''s'": "FF?F",
    "caption >= 'b'": "FF?F",
    "\"odd name\" = ' 2 '": "FTF?",
    "words(caption) = 3": "FT?F",
    'number("odd name") > 1.7': "FT??",
    "matches(caption, '^[a-z ]+$')": "TF?F",
    "width / 0 > 1e300": "TT?T",
    "length(caption) = 14": "FT?F",
    "width > 1 -- a comment": "TT?T",
    "caption ilike 'A%'": "TF?F",
    "caption like '100!%' escape '!'": "FF?T",
    "case when nsfw then width < 200 else score is null end": "TTFF",
    "extract(year from date '2020-01-01') = 2020": "TTTT",
    "if(nsfw, 1, 2) = 1": "TFFF",
    "boxes[1] > 1": "F??T",
    "caption || '!' = 'a cat!'": "TF?F",
    "width > '256'": "FF?T",
    "nan > 0": "T???",
    "json_extract_string(facts, 'n') = '1'": "TF??",
}
"""Of the four rows: true, false, or ? for unknown."""


@pytest.mark.parametrize(("source", "answers"), ANSWERS.items(), ids=range(len(ANSWERS)))
def test_expressions_mean_what_they_mean_in_sql(source, answers):
    assert ask(source) == [{"T": True, "F": False, "?": None}[answer] for answer in answers]


HOSTILE = [
    "",
    "width >",
    "width > 1; drop table samples",
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
    "length(width) > 1",
    "boxes = 1",
    "width",
    "length(caption)",
    "length() > 1",
    "length(caption, 1) > 1",
    "matches(caption, '(')",
    "like(caption)",
    "width = = 1",
    "width not 3",
    "width in ()",
    "in (1)",
    "--",
    "hight > 1",
    "1) from samples where (1",
    "true), (true",
    "true) union select (true",
    "true limit 1",
    "width as wide",
    "sum(width) > 1",
    "count(*) > 1",
    "row_number() over () > 1",
    "unnest([1, 2]) = 1",
    "columns('w.*') > 1",
    "list_filter(boxes, x -> x > 1) is null",
    "width = ?",
    "width = $1",
    "#1 > 1",
    "now() > timestamp '2020-01-01'",
    "current_date > date '2020-01-01'",
    "age(timestamp '2020-01-01') is null",
    "random() > 0.5",
    "current_setting('threads') = 1",
    "sleep_ms(1) is null",
    "length(repeat('a', 1000000000)) > 1",
    "len(range(1000000000)) > 1",
    "replace(caption, 'a', 'aaaa') = 'a'",
    "error('no')",
    "caption::integer > 1",
    "width * 1e18::bigint * 1e18::bigint > 1",
    "samples.width > 1",
    "caption = '\ud800'",
    "width > 1 \x00",
    "a" * 20_000,
    "(" * 200 + "width" + ")" * 200,
    "not " * 3_000 + "width",
    "-" * 9_000 + "width > 1",
    "+".join(["1"] * 4_000) + " > 1",
]


@pytest.mark.parametrize("source", HOSTILE, ids=range(len(HOSTILE)))
def test_what_is_not_a_question_about_one_row_is_refused(source):
    with pytest.raises(UserError) as refused:
        ask(source)
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 500


def test_the_refusal_says_where_and_what_was_meant():
    for source, said in {
        "width >= ) 256": 'syntax error at or near ")", at character 10',
        "width >=": "'width >=': syntax error at its end",
        "hight > 1": "no column 'hight'",
        "widht > 1": "did you mean width?",
        "lenght(caption) > 1": "did you mean length?",
        'caption = "a cat"': "in double quotes or none it names a column, as a text it is 'a cat'",
        'caption like "%it\'s%"': "in double quotes or none it names a column, as a text it is '%it''s%'",
        "length(width) > 1": "No function matches the given name and argument types 'length(BIGINT)'",
        "width": "gives values of type int64, not true or false",
        "+".join(["1"] * 400) + " > 1": "Max expression depth limit of 100 exceeded.",
        "now()": "`diptych-shards filter -h` names those that there are",
        '"odd name" > 1': "number(...) reads one from a text",
    }.items():
        with pytest.raises(UserError, match=r".*") as refused:
            ask(source)
        assert said in str(refused.value)


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("width()'\"<>=!,.+-*/ 01andornots%\\\n") | st.characters(), max_size=60))
def test_any_text_is_an_expression_or_refused(source):
    try:
        ask(source)
    except UserError:
        pass


def test_a_pattern_that_explodes_elsewhere_takes_linear_time():
    columns = {"caption": pyarrow.array(["a" * 100_000 + "b"])}
    assert parse("matches(caption, '(a+)+$')").truths(columns, 1).to_pylist() == [False]


def test_conditions_are_what_the_outermost_ands_separate():
    sources = [each.source for each in parse_conditions(" width >= 256 and (nsfw or  score > 1) and not nsfw ")]
    assert sources == ["width >= 256", "(nsfw or  score > 1)", "not nsfw"]
    assert [each.source for each in parse_conditions("width > 1 and nsfw or score > 1")] == [
        "width > 1 and nsfw or score > 1"
    ]
    assert [each.source for each in parse_conditions("width between 1 and 2 and nsfw")] == [
        "width between 1 and 2",
        "nsfw",
    ]
    for one in (
        "((nsfw) and (nsfw))",
        "case when nsfw and nsfw then true end",
        "caption = $$a and b$$ and nsfw",
        "caption = ' and ' /* and */ -- and",
    ):
        assert [each.source for each in parse_conditions(one)] == [one]
    assert parse("width > 1 and length(caption) > width").columns == ("width", "caption")


def test_an_expression_may_give_numbers():
    columns = {"width": COLUMNS["width"], "score": COLUMNS["score"]}
    assert parse("width * score").numbers(columns, 4).to_pylist() == [50.0, None, None, -512.0]
    assert parse("null").numbers({}, 2).to_pylist() == [None, None]
    with pytest.raises(UserError, match="gives values of type bool, not a number"):
        parse("width > 1").numbers({"width": COLUMNS["width"]}, 4)


def test_no_rows_and_columns_that_sql_cannot_distinguish():
    assert parse("width > 1").truths({"width": COLUMNS["width"].slice(0, 0)}, 0).to_pylist() == []
    with pytest.raises(UserError, match="are one to SQL; rename one of them"):
        parse("width > Width").truths({"width": COLUMNS["width"], "Width": COLUMNS["width"]}, 4)


def test_many_rows_keep_their_order():
    rows = pyarrow.array(range(300_000))
    assert parse("row % 7 + 0").numbers({"row": rows}, len(rows)).to_pylist() == [row % 7 for row in range(300_000)]


def test_the_help_names_every_function():
    words = set(filter_command.__doc__.replace("(", " ").split())
    assert not set(FUNCTIONS) - words
