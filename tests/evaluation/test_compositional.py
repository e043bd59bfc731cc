from __future__ import annotations

import json

import numpy as np
import pytest

from diptych.evaluation.compositional import CHANCE, compositional, right_answers
from diptych.evaluation.data_sets import DataSet
from diptych.evaluation.features import Features
from diptych.evaluation.matched_pictures import matched_table
from tests.evaluation.colours import COLOURS, ColourEncoder, picture


def winoground(cosines):
    """The scores of one example as the paper of Winoground defines them: s(caption, picture)."""

    def s(caption, image):
        return cosines[image, caption]

    text = s(0, 0) > s(1, 0) and s(1, 1) > s(0, 1)
    image = s(0, 0) > s(0, 1) and s(1, 1) > s(1, 0)
    return text, image, text and image


def test_scores_equal_the_definition_of_winoground():
    cosines = np.random.default_rng(0).normal(size=(10_000, 2, 2)).astype(np.float32)
    expected = np.array([winoground(each) for each in cosines]).mean(axis=0)
    measured = [each.mean() for each in right_answers(cosines).values()]
    assert measured == pytest.approx(expected)
    # Random similarities reach chance; 10,000 examples have a standard deviation of 0.0043, of which these are four.
    assert measured == pytest.approx(list(CHANCE.values()), abs=0.018)


def test_ties_are_errors():
    assert not any(each.any() for each in right_answers(np.ones((3, 2, 2), np.float32)).values())


def write_examples(folder, rows):
    (folder / "images").mkdir()
    for colour, pixels in COLOURS.items():
        (folder / "images" / f"{colour}.png").write_bytes(picture(pixels))
    (folder / "examples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "examples.jsonl")


def example(first, second, **other):
    captions = {"caption_0": f"a {first} wall", "caption_1": f"a {second} wall"}
    return {"id": 1, "image_0": first, "image_1": second, **captions, **other}


def test_winogrounds_own_files_are_read(tmp_path):
    pictures = matched_table(write_examples(tmp_path, [example("red", "blue"), example("cyan", "yellow")]))
    assert pictures.names == ("images/red.png", "images/blue.png", "images/cyan.png", "images/yellow.png")
    assert pictures.captions[1] == ("a blue wall",)
    assert pictures.read(0) == picture(COLOURS["red"])


def test_an_example_without_one_of_its_parts_is_left_out_with_the_reason(tmp_path):
    rows = [example("red", "blue"), example("red", "grey"), example("red", "blue", caption_1=" ")]
    pictures = matched_table(write_examples(tmp_path, rows))
    assert len(pictures) == 2
    assert sorted(error.reason.value for error in pictures.refused.values()) == ["empty_caption", "missing_file"]


def test_a_table_with_other_columns_is_one_line(tmp_path):
    row = {"image_0": "red", "caption_0": "a red wall", "caption_1": "a blue wall"}
    with pytest.raises(ValueError, match="image_1; expected the columns image_0, image_1, caption_0, caption_1"):
        matched_table(write_examples(tmp_path, [row]))
    with pytest.raises(ValueError, match="image_0"):
        (tmp_path / "other.csv").write_text("path,caption\nred.png,red\n")
        matched_table(str(tmp_path / "other.csv"))


def test_real_pictures_are_matched_and_broken_ones_leave_their_example_out(tmp_path):
    rows = [example("red", "blue"), example("cyan", "yellow"), example("green", "red")]
    rows.append(example("red", "blue") | {"caption_0": "a blue wall", "caption_1": "a red wall"})
    table = write_examples(tmp_path, rows)
    (tmp_path / "images" / "cyan.png").write_bytes(b"broken")

    result = compositional(Features(ColourEncoder()), DataSet(matched_table(table)))

    assert (result["examples"], list(result["rejected"])) == (3, ["images/cyan.png"])
    assert set(result["metrics"].values()) == {2 / 3}  # the last example's captions are swapped
    assert result["answers"]["right"]["text_score"] == [1, 1, 0]
    # What a comparison takes for the same examples has the same captions.
    (tmp_path / "examples.jsonl").write_text((tmp_path / "examples.jsonl").read_text().replace("green", "yellow"))
    other = compositional(Features(ColourEncoder()), DataSet(matched_table(table)))
    assert other["answers"]["of"] != result["answers"]["of"]
