import html
import json
from collections import Counter

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.captions import caption_of, clean_caption, drawn_caption
from diptych.data.draws import Draws

ASCII = [chr(code) for code in range(128)]
MARKUP = "&#;xamplt39<>\r\n\x1b[m é"


def cleaned_in_full(text: str) -> str:
    """The formula without the shortcut for ASCII."""
    return " ".join(html.unescape(html.unescape(ftfy.fix_text(text))).split())


def test_every_pair_of_ascii_characters_is_cleaned_as_in_full():
    for first in ASCII:
        for second in ASCII:
            text = f"x{first}{second}y"
            assert clean_caption(text) == cleaned_in_full(text), repr(text)


@given(st.text(st.sampled_from(ASCII)) | st.text(st.characters()) | st.text(st.sampled_from(MARKUP)))
@settings(max_examples=300, deadline=None)
def test_any_text_is_cleaned_as_in_full(text):
    assert clean_caption(text) == cleaned_in_full(text)


@pytest.mark.parametrize(
    ("raw", "clean"),
    [
        ("  a\tphoto\r\nof  a cat ", "a photo of a cat"),
        ("donâ€™t", "don't"),
        ("fish &amp;amp; chips", "fish & chips"),
        ("AT&T <b>", "AT&T <b>"),
        ("A&nbsp;B", "A B"),
        ("bell\x07 and \x1b[31mred\x1b[0m", "bell and red"),
        ("<|endoftext|> <start_of_text>", "<|endoftext|> <start_of_text>"),
        ("\ud800", "\ufffd"),
        ("", ""),
    ],
)
def test_captions_are_repaired_and_unescaped_but_keep_their_case(raw, clean):
    assert clean_caption(raw) == clean


@pytest.mark.parametrize(
    ("members", "caption"),
    [
        ({"jpg": b"", "txt": b" a cat\n"}, "a cat"),
        ({"txt": b"from text", "json": b'{"caption": "from json"}'}, "from text"),
        ({"json": json.dumps({"caption": "été"}).encode()}, "été"),
        ({"txt": b"caf\xe9"}, "caf\ufffd"),
        ({"json": b'{"caption": null}'}, ""),
        ({"json": b"[1]"}, ""),
        ({"json": b"{"}, ""),
        ({"json": b"[" * 200_000}, ""),
        ({"jpg": b""}, ""),
    ],
)
def test_the_caption_is_the_text_member_or_a_field_of_the_json(members, caption):
    assert caption_of(members) == caption


FIELDS = {"txt": 0.5, "alt": 0.2, "list": 0.3}


def shares_of(members, fields=FIELDS, draws=2000):
    found = Counter(drawn_caption(members, fields, Draws(key * 7919)) for key in range(draws))
    return {caption: count / draws for caption, count in found.items()}


def test_a_field_is_drawn_by_its_probability_and_one_of_its_captions_equally_often():
    document = json.dumps({"alt": " b ", "list": ["c", "d", "", 5, None], "other": "e"}).encode()
    found = shares_of({"txt": b" a\n", "json": document})
    assert found == pytest.approx({"a": 0.5, "b": 0.2, "c": 0.15, "d": 0.15}, abs=0.04)


def test_the_order_in_which_fields_are_written_changes_no_caption():
    members = {"txt": b"a", "json": b'{"alt": "b", "list": ["c", "d"]}'}
    written = [FIELDS, dict(reversed(FIELDS.items()))]
    one, other = ([drawn_caption(members, fields, Draws(key)) for key in range(200)] for fields in written)
    assert one == other


@pytest.mark.parametrize("document", [{}, {"alt": ""}, {"alt": None}, {"alt": 5}, {"alt": [[]]}, {"alt": "  "}])
def test_fields_that_a_sample_lacks_leave_their_probability_to_the_others(document):
    found = shares_of({"txt": b"a", "json": json.dumps({**document, "list": "c"}).encode()})
    assert found == pytest.approx({"a": 0.625, "c": 0.375}, abs=0.04)


@pytest.mark.parametrize("members", [{}, {"json": b"nonsense"}, {"json": b"[1]"}, {"txt": b" "}, {"json": b"{}"}])
def test_a_sample_without_any_of_the_fields_has_no_caption(members):
    assert drawn_caption(members, FIELDS, Draws(0)) == ""


def test_a_key_of_the_json_named_txt_counts_where_there_is_no_txt_member():
    assert drawn_caption({"json": b'{"txt": "a dog"}'}, {"txt": 1.0}, Draws(0)) == "a dog"
    assert drawn_caption({"json": b'{"txt": "a dog"}', "txt": b"a cat"}, {"txt": 1.0}, Draws(0)) == "a cat"
