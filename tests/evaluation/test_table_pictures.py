from __future__ import annotations

import io
import json
import re
import tarfile

import pyarrow
import pyarrow.parquet
import pytest

from diptych.evaluation.labels import named
from diptych.evaluation.left_out import by_reason
from diptych.evaluation.picture_sources import open_captioned, open_labelled
from diptych_shards.cli import main
from tests.evaluation.colours import COLOURS, picture


@pytest.fixture
def here(tmp_path):
    for name in ("a", "b", "c"):
        (tmp_path / f"{name}.png").write_bytes(picture(COLOURS["red"]))
    return tmp_path


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def write_parquet(location, **columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), location)
    return str(location)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.csv", "file_name;text\na.png;one\na.png;two\nb.png;three\n"),
        ("t.tsv", "image\tcaption\na.png\tone\na.png\ttwo\nb.png\tthree\n".encode("utf-16")),
        ("metadata.jsonl", '{"file_name": "a.png", "text": ["one", "two"]}\n{"file_name": "b.png", "text": "three"}\n'),
    ],
    ids=["csv", "tsv", "jsonl"],
)
def test_one_table_serves_pack_and_evaluation(here, tmp_path_factory, name, data):
    out = tmp_path_factory.mktemp("packed")
    table = write(here / name, data)
    opened = open_captioned(table)
    assert dict(zip(opened.names, opened.captions, strict=True)) == {"a.png": ("one", "two"), "b.png": ("three",)}
    assert main(["pack", str(here), str(out / "shards"), "--table", table, "--processes", "1"]) == 0
    assert sorted(open_captioned(str(out / "shards")).captions) == [("one", "two"), ("three",)]


def test_rows_without_a_usable_caption_are_left_out_and_counted(here):
    rows = [
        {"path": "a.png", "caption": "one"},
        {"path": "b.png", "caption": float("nan")},
        {"path": "b.png", "caption": None},
        {"path": "b.png", "caption": 3},
        {"path": "gone.png", "caption": "x"},
    ]
    opened = open_captioned(write(here / "t.jsonl", "".join(json.dumps(row) + "\n" for row in rows) + "[]\n"))
    assert (opened.names, opened.captions) == (("a.png",), (("one",),))
    assert {place: error.reason.value for place, error in opened.refused.items()} == {
        "line 2": "no_caption",
        "line 3": "no_caption",
        "line 4": "caption_not_text",
        "line 5": "missing_file",
        "line 6": "malformed_row",
    }
    assert by_reason(opened.refused)["malformed_row"]["example"] == "line 6: not a JSON object"


def test_a_caption_with_a_comma_is_refused_and_not_cut(here):
    opened = open_captioned(write(here / "t.csv", "path,caption\na.png,A dog, running\nb.png,A cat\n"))
    assert opened.captions == (("A cat",),)
    assert str(opened.refused["line 2"]) == "malformed_row (too many fields)"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([b"cat", b"dog"], "2 rows cannot be used: 2 caption_not_text (for example row 1: bytes)"),
        ([["cat"], ["dog"]], "2 rows cannot be used: 2 caption_not_text (for example row 1: list)"),
        ([1.0, float("nan")], "one row cannot be used: 1 no_caption (for example row 2)"),
        ([1.5, 2.0], "one row cannot be used: 1 caption_not_text (for example row 1: float)"),
        (["cat", None], "one row cannot be used: 1 no_caption (for example row 2)"),
    ],
)
def test_a_label_that_is_not_a_text_is_refused(here, labels, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        open_labelled(write_parquet(here / "t.parquet", path=["a.png", "b.png"], label=labels))


@pytest.mark.parametrize("labels", [[1, 0, 1], [1.0, 0.0, 1.0], ["1", "0", "1"]])
def test_labels_that_are_numbers_number_the_classes(here, labels):
    opened = open_labelled(write_parquet(here / "t.parquet", path=["a.png", "b.png", "c.png"], label=labels))
    assert (opened.labels, opened.labels_are_numbers) == (("1", "0", "1"), True)
    assert named(opened, ["blue", "red"]).labels == ("red", "blue", "red")
    assert named(opened, ["1", "0"]).labels == ("1", "0", "1")


def test_folders_whose_names_are_numbers_number_the_classes(tmp_path):
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "a.png").write_bytes(picture(COLOURS["red"]))
    opened = open_labelled(str(tmp_path))
    assert opened.labels_are_numbers
    assert named(opened, ["zero", "one", "two"]).labels == ("zero", "one", "two")
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "a.png").write_bytes(picture(COLOURS["red"]))
    assert not open_labelled(str(tmp_path)).labels_are_numbers


def test_the_lines_of_a_txt_are_captions_unless_a_json_says_which_there_are(tmp_path):
    """CLIP_benchmark writes the captions of a picture as lines; build writes one caption, perhaps of several lines."""
    samples = {
        "a": {"txt": b"one\ntwo \n\nthree\n"},
        "b": {"txt": b"one\ntwo", "json": b'{"caption": "one\\ntwo"}'},
        "c": {"txt": b"one", "json": b'{"caption": "one", "captions": ["one", "two\\nlines"]}'},
        "d": {"txt": b"\n \n"},
    }
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for key, members in samples.items():
            for suffix, data in {"png": picture(COLOURS["red"]), **members}.items():
                header = tarfile.TarInfo(f"{key}.{suffix}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    opened = open_captioned(str(tmp_path))
    assert opened.captions == (("one", "two", "three"), ("one\ntwo",), ("one", "two\nlines"))
    assert {name: str(error) for name, error in opened.refused.items()} == {"0.tar/d": "empty_caption"}


def test_a_table_with_only_a_header_is_refused(here):
    with pytest.raises(ValueError, match="has no rows; expected the path of a picture"):
        open_captioned(write(here / "t.csv", "path,caption\n"))
    with pytest.raises(ValueError, match="has no rows; expected the path of a picture"):
        open_labelled(write(here / "u.csv", "path,label\n"))
