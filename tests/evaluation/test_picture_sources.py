from __future__ import annotations

import json

import pyarrow
import pyarrow.parquet
import pytest

from diptych.data.shard_writer import ShardWriter
from diptych.evaluation.picture_sources import open_captioned, open_labelled, open_pictures
from diptych.evaluation.pictures import embed
from tests.evaluation.colours import COLOURS, ColourEncoder, picture, write_tree


def write_shards(folder, samples):
    for number in range(2):
        with ShardWriter(folder, number) as writer:
            for key, members in list(samples.items())[number::2]:
                writer.add(key, members)
    return str(folder)


def test_a_tree_a_table_and_shards_give_the_same_pictures_and_labels(tmp_path):
    tree = write_tree(tmp_path / "tree", ["red", "blue"])
    files = sorted(tree.rglob("*.png"))
    rows = [(file.relative_to(tmp_path), file.parent.name) for file in files]
    table = tmp_path / "table.csv"
    table.write_text("path,label\n" + "".join(f"{path},{label}\n" for path, label in rows))
    columns = {"path": [str(path) for path, _ in rows], "colour": [label for _, label in rows]}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "table.parquet")
    shards = write_shards(
        tmp_path / "shards",
        {
            f"k{number}": {
                "png": file.read_bytes(),
                "json": json.dumps({"colour": file.parent.name}).encode(),
            }
            for number, file in enumerate(files)
        },
    )

    expected = sorted((file.read_bytes(), file.parent.name) for file in files)
    for opened in (
        open_labelled(str(tree)),
        open_labelled(str(table)),
        open_labelled(str(tmp_path / "table.parquet"), "colour"),
        open_labelled(shards, "colour"),
    ):
        assert sorted((opened.read(place), opened.labels[place]) for place in range(len(opened))) == expected


def test_several_captions_of_a_picture_come_from_repeated_rows_or_a_list_in_the_json(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.png").write_bytes(picture(COLOURS["red"]))
    (tmp_path / "table.csv").write_text("path,caption\na.png,one\nb.png,two\na.png,three\n")
    assert open_captioned(str(tmp_path / "table.csv")).captions == (("one", "three"), ("two",))

    red = picture(COLOURS["red"])
    shards = write_shards(
        tmp_path / "shards",
        {
            "a": {"png": red, "txt": b" alt \n", "json": b'{"captions": ["one", "three"]}'},
            "b": {"png": red, "txt": "zwei ü".encode(), "json": b'{"captions": "two"}'},
        },
    )
    assert open_captioned(shards).captions == (("alt",), ("zwei ü",))
    assert open_captioned(shards, "captions").captions == (("one", "three"), ("two",))


def test_a_picture_that_does_not_decode_is_left_out_and_named_and_the_others_stay(tmp_path):
    write_tree(tmp_path, ["red", "blue"], copies=40)
    (tmp_path / "blue" / "7.png").write_bytes(b"<html>no picture here</html>")
    pictures = open_labelled(str(tmp_path))

    embedded = embed(ColourEncoder(), pictures)

    assert list(embedded.rejected) == ["blue/7.png"]
    assert len(embedded.kept) == 79
    assert [pictures.names[place] for place in embedded.kept] == [
        name for name in pictures.names if name != "blue/7.png"
    ]


def test_no_picture_that_decodes_is_an_error(tmp_path):
    (tmp_path / "red").mkdir()
    (tmp_path / "red" / "one.jpg").write_bytes(b"nothing")
    with pytest.raises(ValueError, match=r"none of the 1 pictures .* can be decoded; red/one\.jpg"):
        embed(ColourEncoder(), open_labelled(str(tmp_path)))


def missing(folder):
    open_labelled(str(folder / "nowhere"))


def empty(folder):
    open_labelled(str(folder))


def loose(folder):
    (folder / "one.png").write_bytes(picture((1, 2, 3)))
    open_labelled(str(folder))


def without_caption(folder):
    (folder / "one.png").write_bytes(picture((1, 2, 3)))
    open_captioned(str(folder))


def without_column(folder):
    (folder / "table.csv").write_text("path,class\na.png,red\n")
    open_labelled(str(folder / "table.csv"))


def without_file(folder):
    (folder / "table.csv").write_text("path,label\na.png,red\n")
    open_labelled(str(folder / "table.csv"))


def without_label(folder):
    (folder / "a.png").write_bytes(picture((1, 2, 3)))
    (folder / "table.csv").write_text("path,label\na.png,\n")
    open_labelled(str(folder / "table.csv"))


def without_json(folder):
    open_labelled(write_shards(folder / "s", {"a": {"png": picture((1, 2, 3))}, "b": {"png": picture((1, 2, 3))}}))


def without_key(folder):
    members = {"png": picture((1, 2, 3)), "json": b'{"class": "red"}'}
    open_labelled(write_shards(folder / "s", {"a": members, "b": members}))


def no_pictures(folder):
    open_pictures([str(folder)])


@pytest.mark.parametrize(
    ("attempt", "expected"),
    [
        (missing, "nowhere does not exist; expected a folder with one subfolder for each class"),
        (empty, "has no pictures in subfolders; expected CLASS/PICTURE.jpg"),
        (loose, "but 1 beside one another"),
        (without_caption, "one.png has no caption; expected one.txt beside it"),
        (without_column, "has no column 'label'; it has path, class"),
        (without_file, "row 1: "),
        (without_label, "row 1: label is empty"),
        (without_json, "has no json member; it has png"),
        (without_key, "has no 'label'; it has class"),
        (no_pictures, "holds no pictures"),
    ],
)
def test_mistakes_are_named(tmp_path, attempt, expected):
    with pytest.raises(ValueError) as error:
        attempt(tmp_path)
    assert expected in str(error.value)
