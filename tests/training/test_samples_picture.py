"""The picture of the first batch, with captions in any script."""

import json

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from PIL import Image, ImageDraw

from diptych.data.batch import Batch
from diptych.data.tokenizer import train_vocabulary
from diptych.training.samples_picture import CELL, draw_samples, joined
from diptych.training.typeface import Typeface

CHINESE = "一只猫坐在红色的垫子上看着窗外的鸟儿飞过屋顶然后睡着了"
LATIN = "a cat on a red mat"


def font_of(path, letters):
    """A font in which each letter is a black square."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    square = pen.glyph()
    names = [f"uni{ord(letter):04X}" for letter in letters]
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", *names])
    builder.setupCharacterMap({ord(letter): name for letter, name in zip(letters, names, strict=True)})
    builder.setupGlyf(dict.fromkeys([".notdef", *names], square))
    builder.setupHorizontalMetrics(dict.fromkeys([".notdef", *names], (1000, 0)))
    builder.setupHorizontalHeader(ascent=800, descent=-200)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return path


def test_letters_that_dejavu_lacks_are_taken_from_a_font_of_the_system(tmp_path):
    (tmp_path / "damaged.ttf").write_bytes(b"no font")
    fonts = [tmp_path / "damaged.ttf", font_of(tmp_path / "few.ttf", "x"), font_of(tmp_path / "cats.ttf", "猫")]
    face = Typeface(["a 猫 坐"], 11, fonts)
    assert face.missing == {"坐"}
    sheet = Image.new("L", (40, 20), "white")
    face.draw(ImageDraw.Draw(sheet), (2, 15), "猫")
    assert np.asarray(sheet)[8:14, 3:9].max() == 0, "a black square"


@pytest.mark.parametrize("text", [CHINESE, LATIN * 3, "Donaudampfschifffahrtsgesellschaftskapitän" * 2, "WWW " * 40])
@pytest.mark.parametrize("max_lines", [1, 3, 100])
def test_no_line_is_wider_than_asked_and_no_letter_is_lost_but_behind_an_ellipsis(text, max_lines):
    face = Typeface([text], 11, [])
    lines = face.wrap(text, CELL, max_lines)
    assert 1 <= len(lines) <= max_lines
    assert all(face.width(line) <= CELL for line in lines)
    told = "".join(lines).replace(" ", "")
    whole = text.replace(" ", "")
    assert told == whole if max_lines == 100 else whole.startswith(told.removesuffix("…"))
    assert told == whole or told.endswith("…")


def test_words_stay_whole_and_letters_keep_their_marks():
    face = Typeface([], 11, [])
    assert " ".join(face.wrap(LATIN, face.width("a cat on"), 100)) == LATIN
    for letter in ("e\u0301", "\u0915\u093f"):
        lines = face.wrap(letter * 60, 50, 100)
        assert len(lines) > 1 and all(line.startswith(letter) for line in lines)


def batch_of(captions, tokenizer):
    tokens, lengths = tokenizer(captions, 64)
    images = torch.zeros(len(captions), 3, 16, 16, dtype=torch.uint8)
    return Batch(images, torch.from_numpy(tokens), torch.from_numpy(lengths), np.arange(len(captions)))


def size_of(path):
    with Image.open(path) as picture:
        return picture.size


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        ("a pig , and behind it", "a pig, and behind it"),
        ("its tongue stuck - out", "its tongue stuck-out"),
        ("the cat 's 1 9 9 5 ( photo ) , 3 . 5 km & 1 0 %", "the cat's 1995 (photo), 3.5 km & 10%"),
        ("don 't stop : now !!! ok", "don't stop: now!!! ok"),
        ("by @ john # cats for $ 5 . 0 0", "by @john #cats for $5.00"),
        ("a red mat", "a red mat"),
        (CHINESE, CHINESE),
    ],
)
def test_pieces_are_joined_as_people_write_them(pieces, text):
    assert joined(pieces) == text


def test_the_report_finds_pictures_and_captions_of_the_batch(tmp_path):
    tokenizer = train_vocabulary([LATIN], 560)
    draw_samples(batch_of([LATIN, f"{LATIN}, two"], tokenizer), tokenizer, tmp_path / "samples.png")
    shown = json.loads((tmp_path / "samples.json").read_text())
    assert [tile["caption"] for tile in shown] == [LATIN, f"{LATIN}, two"]
    assert all(tile["picture"].startswith("data:image/webp;base64,") for tile in shown)


def test_captions_are_complete_next_to_the_picture_and_boxes_are_explained(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych.training.typeface.findSystemFonts", lambda: [])
    tokenizer = train_vocabulary([LATIN], 560)
    draw_samples(batch_of([LATIN, LATIN], tokenizer), tokenizer, tmp_path / "latin.png")
    draw_samples(batch_of([LATIN, CHINESE[:18]], tokenizer), tokenizer, tmp_path / "samples.png")
    said = (tmp_path / "samples.txt").read_text(encoding="utf-8").splitlines()
    assert said == [f" 1  {LATIN}", f" 2  {CHINESE[:18]}"]
    plain, explained = (size_of(tmp_path / name) for name in ("latin.png", "samples.png"))
    assert plain[0] == explained[0] and plain[1] < explained[1], "a note stands below"
