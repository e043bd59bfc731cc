import json

import pytest
import yaml

from diptych.documents import parse_json
from diptych.yaml_documents import parse_yaml


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ('{"a": 1, "a": 1}', 1, "a"),
        ('{"a": 1,\n "b": {"c": 1,\n "c": 2}}', 3, "c"),
        ('[{"a": {"b": 1}},\n{"b": 2,\n"a": {"b": 2},\n"b": 1}]', 4, "b"),
    ],
)
def test_a_repeated_key_in_json_is_refused_with_its_line(text, line, key):
    with pytest.raises(json.JSONDecodeError, match=f"the key '{key}' appears twice.*: line {line} column"):
        parse_json(text)


def test_json_without_repeats_is_read_as_usual():
    text = '{"a": {"a": [1, NaN, {"a": "\\ud83d\\ude00"}]}, "b": {}}'
    assert repr(parse_json(text)) == repr(json.loads(text))
    assert parse_json(text, lambda name: name)["a"]["a"][1] == "NaN"
    with pytest.raises(json.JSONDecodeError, match="Extra data"):
        parse_json("{} {}")


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "a"),
        ("a: {x: 1, x: 2}\n", 1, "x"),
        ("- {}\n- a:\n    - b: 1\n      b: 2\n", 4, "b"),
    ],
)
def test_a_repeated_key_in_yaml_is_refused_with_its_line(text, line, key):
    with pytest.raises(yaml.YAMLError, match=f"the key '{key}' appears twice") as caught:
        parse_yaml(text)
    assert caught.value.problem_mark.line + 1 == line


def test_yaml_without_repeats_is_read_as_usual():
    text = "base: &base {a: 1, b: 2}\nmore: {<<: *base, a: 3}\n1: x\n'1': y\n"
    assert parse_yaml(text) == yaml.safe_load(text)
    assert parse_yaml("") is None
    with pytest.raises(yaml.YAMLError, match="could not determine a constructor"):
        parse_yaml("!!python/object/apply:os.system ['true']")


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a": ' + "9" * 5_000 + "}"], ids=["levels", "digits"])
def test_json_that_python_cannot_represent_is_refused(text):
    with pytest.raises(json.JSONDecodeError, match="too many levels|digits"):
        parse_json(text)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, "a: " + "9" * 5_000, "a: 2024-13-45", "!!int x"], ids=["levels", "digits", "date", "tag"]
)
def test_yaml_that_python_cannot_represent_is_refused(text):
    with pytest.raises(yaml.YAMLError):
        parse_yaml(text)
