import html
import json

import ftfy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diptych.data.captions import caption_of, clean_caption

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
