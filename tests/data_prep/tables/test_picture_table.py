import gzip
import json
import re

import pyarrow
import pyarrow.parquet
import pytest

from diptych_shards.tables.columns import TableError
from diptych_shards.tables.picture_table import BadRow, PictureRow, Wanted, read_picture_table

ROWS = [("a.jpg", "one"), ("b.jpg", "zwei ü, drei"), ("c.jpg", 'said "so"')]


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


def read(location, **wanted):
    """(path, value) of the rows, and (place, why) of the bad ones."""
    rows = list(read_picture_table(location, Wanted(**wanted)))
    return (
        [(row.path, row.value) for row in rows if isinstance(row, PictureRow)],
        [(row.place, row.why) for row in rows if isinstance(row, BadRow)],
    )


def delimited(delimiter, ending="\n"):
    quoted = [",".join('"' + field.replace('"', '""') + '"' for field in row) for row in ROWS]
    lines = [line.replace('","', f'"{delimiter}"') for line in ("path,caption".replace(",", delimiter), *quoted)]
    return ending.join(lines) + ending


LAYOUTS = {
    "comma.csv": delimited(","),
    "semicolon.csv": delimited(";"),
    "tabs.csv": delimited("\t"),
    "tabs.tsv": delimited("\t"),
    "mark.csv": "\ufeff" + delimited(","),
    "windows.csv": delimited(",", "\r\n"),
    "blank.csv": "\n \n" + delimited(","),
    "mac.csv": delimited(",", "\r"),
    "utf16.csv": delimited(",").encode("utf-16"),
    "packed.csv.gz": gzip.compress(delimited(",").encode()),
    "UPPER.CSV": delimited(","),
    "metadata.jsonl": "".join(json.dumps({"file_name": path, "text": text}) + "\n" for path, text in ROWS),
    "rows.ndjson": "".join(json.dumps({"image": path, "captions": text}) + "\n" for path, text in ROWS),
    "rows.json": json.dumps([{"path": path, "title": text} for path, text in ROWS], indent=1),
    "columns.json": json.dumps({"path": [path for path, _ in ROWS], "caption": [text for _, text in ROWS]}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_all_layouts_of_text_give_the_same_rows(tmp_path, name):
    assert read(write(tmp_path / name, LAYOUTS[name])) == (ROWS, [])


TEXT_TYPES = [pyarrow.string(), pyarrow.large_string(), pyarrow.dictionary(pyarrow.int32(), pyarrow.string())]
if hasattr(pyarrow, "string_view"):
    TEXT_TYPES.append(pyarrow.string_view())


@pytest.mark.parametrize("kind", TEXT_TYPES, ids=str)
def test_every_kind_of_text_in_parquet_is_text(tmp_path, kind):
    paths, captions = (pyarrow.array(column, pyarrow.string()).cast(kind) for column in zip(*ROWS, strict=True))
    pyarrow.parquet.write_table(pyarrow.table({"path": paths, "caption": captions}), tmp_path / "t.parquet")
    assert read(str(tmp_path / "t.parquet")) == (ROWS, [])


def test_values_keep_their_types(tmp_path):
    values = ["one", ["a", "b"], None, float("nan"), 3, True, {"en": "a"}, []]
    lines = "".join(json.dumps({"path": f"{n}.jpg", "caption": value}) + "\n" for n, value in enumerate(values))
    rows, bad = read(write(tmp_path / "t.jsonl", lines))
    assert repr([value for _, value in rows]) == repr(values) and not bad
    table = pyarrow.table({"path": ["a.jpg", "b.jpg"], "caption": [b"a", b"\xff"], "n": pyarrow.nulls(2)})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    assert read(str(tmp_path / "t.parquet"))[0] == [("a.jpg", b"a"), ("b.jpg", b"\xff")]


def test_text_of_parquet_that_is_not_utf8_is_marked_and_costs_no_other_row(tmp_path):
    captions = pyarrow.array([["é".encode("latin-1"), b"x"], [b"two"]], pyarrow.list_(pyarrow.binary()))
    captions = captions.view(pyarrow.list_(pyarrow.string()))
    pyarrow.parquet.write_table(
        pyarrow.table({"path": ["a.jpg", "b.jpg"], "caption": captions}), tmp_path / "t.parquet"
    )
    assert read(str(tmp_path / "t.parquet"))[0] == [("a.jpg", ["\udce9", "x"]), ("b.jpg", ["two"])]


def test_a_malformed_row_is_named_by_its_line(tmp_path):
    lines = ["path,caption", "a.jpg,A dog, running", "b.jpg", "", 'c.jpg,"two', 'lines"', ",x", "d.jpg,four"]
    rows, bad = read(write(tmp_path / "t.csv", "\n".join(lines)))
    assert rows == [("c.jpg", "two\nlines"), ("d.jpg", "four")]
    assert bad == [("line 2", "too many fields"), ("line 3", "too few fields"), ("line 7", "no path")]
    lines = ['{"path": "a.jpg", "caption": "x", "caption": "y"}', "[]", '{"path": 3}', '{"path": "b.jpg"}', "{"]
    rows, bad = read(write(tmp_path / "t.jsonl", '{"path": "0.jpg", "caption": "x"}\n' + "\n".join(lines)))
    assert rows == [("0.jpg", "x"), ("b.jpg", None)]
    assert [place for place, _ in bad] == ["line 2", "line 3", "line 4", "line 6"]
    assert "'caption' appears twice" in bad[0][1] and bad[1][1] == "not a JSON object" and "'3'" in bad[2][1]


def test_a_quote_that_is_never_closed_takes_no_other_row_with_it(tmp_path):
    lines = ["path,caption", 'a.jpg,"A dog', "b.jpg,a cat", 'c.jpg,a 12"', 'd.jpg,"four"', 'e.jpg,"']
    rows, _ = read(write(tmp_path / "t.csv", "\n".join(lines)))
    assert rows == [("a.jpg", '"A dog'), ("b.jpg", "a cat"), ("c.jpg", 'a 12"'), ("d.jpg", "four"), ("e.jpg", '"')]


@pytest.mark.parametrize(
    ("name", "data", "wanted", "message"),
    [
        ("t.csv", "path,label,label\na,b,c\n", {"label": "label"}, "2 columns named 'label'"),
        ("t.csv", "a.jpg,a dog\n", {}, "its first line is not a header"),
        (
            "t.csv",
            "file;words\n",
            {},
            "no column that could be the caption; name it with --caption-column. Its columns",
        ),
        (
            "t.csv",
            "file,image,caption\n",
            {},
            "2 columns that could be the path: file, image; name one with --path-column",
        ),
        ("t.csv", "", {}, "is empty"),
        ("t.csv", "path,caption\n", {"caption": "words"}, "has no column 'words'. Its columns: path, caption"),
        ("t.csv", "path,caption\n", {"caption": "path"}, "cannot be both the path and the caption"),
        ("t.jsonl", "\n", {}, "has no rows"),
        ("t.txt", "http://a/1.jpg\n", {}, "is not a table by its name; expected .parquet"),
        ("t.xlsx", "", {}, "is not a table by its name; expected .parquet"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_line(tmp_path, name, data, wanted, message):
    with pytest.raises(TableError, match=re.escape(message)) as caught:
        read(write(tmp_path / name, data), **wanted)
    assert "\n" not in str(caught.value)


def test_the_plain_word_wins_where_several_columns_could_be_meant(tmp_path):
    location = write(tmp_path / "t.csv", "path,file_name,text,caption\na.jpg,b.jpg,x,y\n")
    assert read(location)[0] == [("a.jpg", "y")]
    assert read(location, path="FILE_NAME", caption="text")[0] == [("b.jpg", "x")]


def test_pictures_inside_a_parquet_are_no_paths(tmp_path):
    pictures = [{"bytes": b"x", "path": "a.jpg"}]
    pyarrow.parquet.write_table(pyarrow.table({"image": pictures, "text": ["a"]}), tmp_path / "t.parquet")
    with pytest.raises(TableError, match="holds pictures themselves"):
        read(str(tmp_path / "t.parquet"))


def test_a_remote_or_missing_table_is_named(tmp_path):
    with pytest.raises(TableError, match="download both"):
        read("s3://bucket/t.csv")
    with pytest.raises(TableError, match="does not exist"):
        read(str(tmp_path / "t.csv"))
