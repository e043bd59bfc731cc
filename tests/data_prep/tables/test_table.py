import bz2
import csv
import datetime
import decimal
import gzip
import http.server
import io
import json
import pickle
import threading

import fsspec
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from diptych_shards.tables import table as module
from diptych_shards.tables.columns import ColumnOptions, Columns, TableError
from diptych_shards.tables.table import open_table


def rows_of(table, rows_per_shard=1_000):
    return [row for _, rows in table.shards(rows_per_shard, lambda number: False) for row in rows.to_pylist()]


def numbers_of(table, rows_per_shard, skip=()):
    return {number: rows["url"].to_pylist() for number, rows in table.shards(rows_per_shard, skip.__contains__)}


def spread(table, rows_per_shard, skip=()):
    shards = table.shards(rows_per_shard, skip.__contains__, spread=True)
    return {number: rows["url"].to_pylist() for number, rows in shards}


def of_urls(numbers, **extra):
    return pyarrow.table(
        {"url": [f"http://a/{n}" for n in numbers], "text": [f"caption {n}" for n in numbers], **extra}
    )


def write_parquet(path, table, row_group_size=7):
    pyarrow.parquet.write_table(table, path, row_group_size=row_group_size)
    return str(path)


def write(path, data):
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return str(path)


@pytest.fixture(params=["parquet", "csv", "jsonl"])
def two_files(request, tmp_path):
    """A folder of two files, with 25 and 13 rows; the one made first has the later name."""
    for name, numbers in (("b", range(25, 38)), ("a", range(25))):
        table, path = of_urls(numbers), tmp_path / f"{name}.{request.param}"
        if request.param == "parquet":
            write_parquet(path, table)
        elif request.param == "csv":
            write(path, "url,text\n" + "".join(f"{row['url']},{row['text']}\n" for row in table.to_pylist()))
        else:
            write(path, "".join(json.dumps(row) + "\n" for row in table.to_pylist()))
    (tmp_path / "_SUCCESS").touch()
    (tmp_path / ".hidden.csv").touch()
    return str(tmp_path)


def test_each_file_is_cut_by_itself_and_numbers_continue_over_files_sorted_by_name(two_files):
    urls = [f"http://a/{n}" for n in range(38)]
    expected = {0: urls[:10], 1: urls[10:20], 2: urls[20:25], 3: urls[25:35], 4: urls[35:]}
    assert numbers_of(open_table([two_files]), 10) == expected


@pytest.mark.parametrize("skipped", [{0}, {1, 3}, {2, 4}, {0, 1, 2}, {0, 1, 2, 3, 4}])
def test_skipping_shards_changes_nothing_of_the_others(two_files, skipped):
    table = open_table([two_files])
    every = numbers_of(table, 10)
    assert numbers_of(table, 10, skipped) == {n: urls for n, urls in every.items() if n not in skipped}


def test_a_file_that_ends_with_a_full_shard_makes_no_empty_one(two_files):
    assert [len(urls) for urls in numbers_of(open_table([two_files]), 5).values()] == [5] * 5 + [5, 5, 3]


def test_row_groups_of_finished_shards_are_not_read(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, of_urls(range(30)), row_group_size=10)
    group = pyarrow.parquet.ParquetFile(path).metadata.row_group(0)
    start = group.column(0).dictionary_page_offset
    size = sum(group.column(number).total_compressed_size for number in range(2))
    data = bytearray(path.read_bytes())
    data[start : start + size] = b"\xff" * size
    path.write_bytes(data)
    table = open_table([str(path)])
    assert set(numbers_of(table, 10, {0})) == {1, 2}
    with pytest.raises(TableError, match=r"a.parquet is damaged in row group 0"):
        numbers_of(table, 10)


def test_the_number_of_rows_is_known_for_parquet_alone(two_files):
    assert open_table([two_files]).num_rows == (
        38 if "parquet" in str(open_table([two_files])._readers[0].file) else None
    )


@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_the_number_of_rows_of_text_is_estimated_from_its_start(tmp_path, monkeypatch, pack):
    monkeypatch.setattr("diptych_shards.tables.locations._MEASURED_BYTES", 1 << 20)
    suffix = ".csv" if pack is bytes else ".csv.gz"
    for name, num_rows in (("a", 100_000), ("b", 50_000)):
        lines = (f"http://host/{n},{xxhash.xxh3_64_hexdigest(str(n).encode())}\n" for n in range(num_rows))
        write(tmp_path / f"{name}{suffix}", pack(("url,caption\n" + "".join(lines)).encode()))
    assert open_table([str(tmp_path)]).about_rows == pytest.approx(150_000, rel=0.2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "url,caption\nhttp://a/1,x\nhttp://a/2,y"),
        ("t.jsonl", '{"url": "http://a/1"}\n{"url": "http://a/2"}\n'),
    ],
)
def test_the_number_of_rows_of_small_text_is_exact(tmp_path, name, text):
    assert open_table([write(tmp_path / name, text)]).about_rows == 2


def test_rows_travel_without_the_table_around_them(tmp_path):
    table = open_table([write_parquet(tmp_path / "a.parquet", of_urls(range(10_000)), 10_000)])
    _, rows = next(table.shards(10, lambda number: False))
    assert len(pickle.dumps(rows)) < 5_000


@pytest.mark.parametrize(
    ("suffix", "pack"),
    [
        ("", bytes),
        (".gz", gzip.compress),
        (".bz2", bz2.compress),
        (".zst", lambda data: pyarrow.compress(data, codec="zstd", asbytes=True)),
        (".gz", lambda data: b"".join(gzip.compress(data[n : n + 9]) for n in range(0, len(data), 9))),
    ],
)
@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("csv", b"url,caption\nhttp://a/1,one\nhttp://a/2,two\n"),
        ("tsv", b"url\tcaption\r\nhttp://a/1\tone\r\nhttp://a/2\ttwo"),
        ("jsonl", b'{"url": "http://a/1", "caption": "one"}\n\n{"url": "http://a/2", "caption": "two"}'),
        ("json", b'[{"url": "http://a/1", "caption": "one"},\n {"url": "http://a/2", "caption": "two"}]'),
        ("json", b'{"url": ["http://a/1", "http://a/2"], "caption": ["one", "two"]}'),
    ],
)
def test_text_is_read_packed_or_not(tmp_path, kind, data, suffix, pack):
    table = open_table([write(tmp_path / f"t.{kind}{suffix}", pack(data))])
    assert rows_of(table) == [{"url": "http://a/1", "caption": "one"}, {"url": "http://a/2", "caption": "two"}]


def test_packed_text_that_is_cut_off_is_reported(tmp_path):
    data = "url\n" + "".join(f"http://a/{n}\n" for n in range(100_000))
    location = write(tmp_path / "t.csv.gz", gzip.compress(data.encode())[:-1_000])
    with pytest.raises(TableError, match=r"t.csv.gz cannot be read: its gzip data end too early or are damaged"):
        rows_of(open_table([location]))


def test_tables_are_read_through_fsspec(two_files):
    memory = fsspec.filesystem("memory")
    memory.put(two_files, "/tables", recursive=True)
    try:
        for location in ("memory://tables", "memory://tables/[ab].*"):
            there, here = open_table([location]), open_table([two_files])
            assert numbers_of(there, 10) == numbers_of(here, 10)
    finally:
        memory.rm("/tables", recursive=True)


ENDS = ("", "-le", "-be")
"""With a byte order mark, and in both byte orders without one."""


def parquet_bytes():
    file = io.BytesIO()
    pyarrow.parquet.write_table(of_urls([1]), file)
    return file.getvalue()


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.json", "t.txt"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (gzip.compress(b"url,caption\nhttp://a/1,a\n"), "is not text but gzip; name it {}.gz"),
        (bz2.compress(b"url,caption\nhttp://a/1,a\n"), "is not text but bzip2; name it {}.bz2"),
        (pyarrow.compress(b"url,caption\n", "zstd", asbytes=True), "is not text but zstd; name it {}.zst"),
        (parquet_bytes(), "is not text but parquet; name it .parquet"),
        (b"PK\x03\x04\x14\x00", "a ZIP archive, perhaps Excel's; save it as CSV"),
    ],
    ids=["gzip", "bz2", "zstd", "parquet", "zip"],
)
def test_a_file_that_is_something_else_than_its_name_says_is_one_line_with_the_way_out(
    tmp_path, name, content, message
):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(TableError) as caught:
        open_table([str(path)])
    assert message.format(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ["url,text,légende\nhttp://a/1,a,b\n".encode("latin-1"), bytes(range(128, 256)) * 9]
)
def test_a_header_that_is_not_utf8_is_one_line_with_the_way_out(tmp_path, content):
    (tmp_path / "t.csv").write_bytes(content)
    with pytest.raises(TableError, match="the name of a column, .*, is not UTF-8; save the table as UTF-8"):
        open_table([str(tmp_path / "t.csv")])


@pytest.mark.parametrize(
    "location", ["memory://nowhere/t.csv", "/nowhere/t.csv", "memory://nowhere/t.parquet", "x://y/t.csv"]
)
def test_a_table_that_is_not_there_is_one_line(location):
    with pytest.raises(TableError, match="nowhere|x://y") as caught:
        open_table([location])
    assert "\n" not in str(caught.value)


def test_a_table_that_nothing_installed_can_open_says_what_to_install():
    with pytest.raises(TableError) as caught:
        open_table(["abfs://bucket/t.csv"])
    assert str(caught.value) == "abfs://bucket/t.csv: to read abfs://, pip install adlfs"


def test_files_of_several_formats_are_no_table(tmp_path):
    write(tmp_path / "a.csv", "url\nhttp://a/1\n")
    write(tmp_path / "b.jsonl", '{"url": "http://a/1"}\n')
    with pytest.raises(TableError, match=r"several formats \(csv, jsonl\)"):
        open_table([str(tmp_path)])
    assert len(rows_of(open_table([str(tmp_path / "*.csv")]))) == 1


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(("suffix", "packing"), [("gz", "gzip"), ("bz2", "bz2"), ("zst", "zstd")])
def test_a_file_that_is_not_compressed_is_reported_with_its_right_name(tmp_path, kind, suffix, packing):
    bare = tmp_path / f"t.{kind}"
    message = f"it is not {packing}, as its name says; if it is plain text, name it {bare}$"
    with pytest.raises(TableError, match=message):
        open_table([write(tmp_path / f"t.{kind}.{suffix}", "url\nhttp://a/1\n")])


def test_a_file_compressed_in_another_way_than_its_name_says_is_reported_with_its_right_name(tmp_path):
    with pytest.raises(TableError, match=r"it is not zstd but gzip; name it .*/t\.csv\.gz$"):
        open_table([write(tmp_path / "t.csv.zst", gzip.compress(b"url\nhttp://a/1\n"))])


def test_lines_without_any_object_are_reported_as_such(tmp_path):
    with pytest.raises(TableError, match="t.jsonl has no line that is a JSON object"):
        open_table([write(tmp_path / "t.jsonl", "url\nhttp://a/1\n")])


def test_a_file_that_is_not_parquet_is_reported(tmp_path):
    with pytest.raises(TableError, match="not a readable parquet file"):
        open_table([write(tmp_path / "t.parquet", "url\nhttp://a/1\n")])


def test_a_file_is_named_once(tmp_path):
    location = write(tmp_path / "a.csv", "url\nhttp://a/1\n")
    with pytest.raises(TableError, match="named twice"):
        open_table([location, location])


@pytest.mark.parametrize("name", ["t.xlsx", "t.parquet.gz", "t"])
def test_an_unknown_format_is_reported(tmp_path, name):
    with pytest.raises(TableError, match="is not a table by its name; expected .parquet"):
        open_table([write(tmp_path / name, b"")])


class TestHeaderless:
    def test_cc12m_has_the_url_first_and_cc3m_the_caption(self, tmp_path):
        cc12m = write(tmp_path / "cc12m.tsv", "http://a/1.jpg\ta cat\nhttp://a/2.jpg\tsee https://b/ too\n")
        cc3m = write(tmp_path / "cc3m.tsv", "a cat\thttp://a/1.jpg\nsee https://b/ too\thttp://a/2.jpg\n")
        for location in (cc12m, cc3m):
            table = open_table([location])
            assert table.columns == Columns("url", "caption")
            assert [(row["url"], row["caption"]) for row in rows_of(table)] == [
                ("http://a/1.jpg", "a cat"),
                ("http://a/2.jpg", "see https://b/ too"),
            ]

    def test_columns_beyond_two_are_named_by_number(self, tmp_path):
        location = write(tmp_path / "t.tsv", "1\thttp://a/1.jpg\ta cat\n")
        with pytest.raises(TableError, match="column_1, column_2, column_3"):
            open_table([location])
        options = ColumnOptions(url="column_2", caption="column_3")
        assert rows_of(open_table([location], options)) == [
            {"column_1": 1, "column_2": "http://a/1.jpg", "column_3": "a cat"}
        ]

    def test_a_list_of_urls_is_a_table(self, tmp_path):
        table = open_table([write(tmp_path / "urls.txt", 'http://a/1,"x\nhttp://a/2\n')])
        assert rows_of(table) == [{"url": 'http://a/1,"x'}, {"url": "http://a/2"}]


class TestBrokenCsv:
    def test_a_malformed_line_is_counted_and_costs_nothing_else(self, tmp_path):
        lines = ["url,caption", "http://a/1,one", "http://a/2", "http://a/3,x,y", "http://a/4,four"]
        table = open_table([write(tmp_path / "t.csv", "\n".join(lines))])
        assert [row["caption"] for row in rows_of(table)] == ["one", "four"]
        assert table.malformed.counts == {"too few fields": 1, "too many fields": 1}
        assert table.malformed.examples["too few fields"].endswith("t.csv, line 3")

    def test_blank_lines_before_the_header_are_skipped_and_reported(self, tmp_path):
        table = open_table([write(tmp_path / "t.csv", "\n \nurl,caption\nhttp://a/1,one\n")])
        assert rows_of(table) == [{"url": "http://a/1", "caption": "one"}]
        assert table.malformed.examples["blank lines before the header"].endswith("t.csv, which is then url,caption")

    def test_captions_of_json_that_are_not_text_cost_their_row(self, tmp_path):
        values = ["one", ["a", "b"], float("nan"), 3, {"en": "a"}, None]
        lines = "".join(json.dumps({"url": f"http://a/{n}", "caption": value}) + "\n" for n, value in enumerate(values))
        table = open_table([write(tmp_path / "t.jsonl", lines)])
        assert [row["caption"] for row in rows_of(table)] == ["one", None]
        reasons = {f"column caption is {kind}, not text": 1 for kind in ("list", "float", "int", "dict")}
        assert table.malformed.counts == reasons
        assert table.malformed.examples["column caption is list, not text"].endswith("t.jsonl, line 2")

    def test_a_key_twice_in_a_row_of_json_costs_the_row(self, tmp_path):
        lines = '{"url": "http://a/1", "caption": "x", "caption": "y"}\n{"url": "http://a/2", "caption": "two"}\n'
        table = open_table([write(tmp_path / "t.jsonl", lines)])
        assert [row["caption"] for row in rows_of(table)] == ["two"]
        assert table.malformed.counts == {"the key 'caption' appears twice; keep one of the two": 1}

    def test_captions_may_hold_newlines_quotes_and_delimiters(self, tmp_path):
        data = 'url,caption\nhttp://a/1,"one\n\n""two"", three\r\nfour"\nhttp://a/2,five "six" seven\n'
        assert [row["caption"] for row in rows_of(open_table([write(tmp_path / "t.csv", data)]))] == [
            'one\n\n"two", three\nfour',
            'five "six" seven',
        ]

    def test_a_quote_that_is_never_closed_costs_no_other_row(self, tmp_path):
        data = "url\tcaption\n" + "".join(f"http://a/{n}\t{chr(34) * (n in (1, 3))}c {n}\n" for n in range(6))
        assert [row["caption"] for row in rows_of(open_table([write(tmp_path / "t.tsv", data)]))] == [
            "c 0", '"c 1', "c 2", '"c 3', "c 4", "c 5",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        ("field", "caption"),
        [
            (r'"a \"quoted\", word"', 'a "quoted", word'),
            ('"a "quoted" word"', '"a "quoted" word"'),
            ('"half" quoted', '"half" quoted'),
            ('""', ""),
            ('"', '"'),
        ],
    )
    def test_quotes_that_break_the_standard_are_understood(self, tmp_path, field, caption):
        table = open_table([write(tmp_path / "t.csv", f"url,caption\nhttp://a/1,{field}\nhttp://a/2,two\n")])
        assert [row["caption"] for row in rows_of(table)] == [caption, "two"]

    def test_very_long_fields_are_read_and_endless_ones_refused(self, tmp_path, monkeypatch):
        monkeypatch.setattr("diptych_shards.tables.delimited.MAX_LINE_CHARS", 1_000_000)
        long, endless = "x" * 500_000, "y" * 3_000_000
        data = f'url,caption\nhttp://a/1,"{long}, z"\nhttp://a/2,{endless}\nhttp://a/3,three\n'
        table = open_table([write(tmp_path / "t.csv", data)])
        assert [row["caption"] for row in rows_of(table)] == [f"{long}, z", "three"]
        assert table.malformed.counts == {"line too long": 1}

    def test_bytes_that_are_not_utf8_cost_no_row(self, tmp_path):
        data = b"url,caption\nhttp://a/caf\xe9.jpg,caf\xe9\nhttp://a/\xc3\xa9.jpg,\x00\xf0\x9f\x98\x80\n"
        table = open_table([write(tmp_path / "t.csv", data)])
        assert rows_of(table) == [
            {"url": "http://a/caf%E9.jpg", "caption": "caf�"},
            {"url": "http://a/é.jpg", "caption": "�😀"},
        ]
        assert table.malformed.counts == {"text that is not UTF-8": 2}

    @given(
        captions=st.lists(st.text(alphabet='a ,"\t;\\\nñ', max_size=12), min_size=1, max_size=8),
        ending=st.sampled_from(["\n", "\r\n"]),
        quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
        delimiter=st.sampled_from([",", "\t"]),
    )
    def test_standard_csv_is_read_by_the_standard(self, tmp_path_factory, captions, ending, quoting, delimiter):
        text = io.StringIO()
        rows = [["url", "caption"], *([f"http://a/{n}", caption] for n, caption in enumerate(captions))]
        csv.writer(text, lineterminator=ending, quoting=quoting, delimiter=delimiter).writerows(rows)
        path = tmp_path_factory.mktemp("csv") / f"t.{'csv' if delimiter == ',' else 'tsv'}"
        table = open_table([write(path, text.getvalue())])
        assert [row["caption"] for row in rows_of(table)] == captions
        assert not table.malformed.counts

    @pytest.mark.parametrize("encoding", ["utf-8-sig", *(f"utf-{bits}{end}" for bits in (16, 32) for end in ENDS)])
    def test_wide_characters_are_read_with_and_without_a_mark_of_byte_order(self, tmp_path, encoding):
        data = "url,caption\nhttp://a/1,häuser\n".encode(encoding)
        assert rows_of(open_table([write(tmp_path / "t.csv", data)])) == [{"url": "http://a/1", "caption": "häuser"}]

    @pytest.mark.parametrize("delimiter", ["\t", ";"])
    def test_another_delimiter_is_recognised(self, tmp_path, delimiter):
        data = f"url{delimiter}caption\nhttp://a/1{delimiter}a, b\n"
        assert rows_of(open_table([write(tmp_path / "t.csv", data)])) == [{"url": "http://a/1", "caption": "a, b"}]

    @pytest.mark.parametrize(("data", "message"), [(b"", "is empty"), (b"url,url\n", "2 columns named 'url'")])
    def test_a_header_that_cannot_be_used_is_reported(self, tmp_path, data, message):
        with pytest.raises(TableError, match=message):
            open_table([write(tmp_path / "t.csv", data)])


class TestTypes:
    def test_columns_of_csv_have_the_types_their_first_rows_show(self, tmp_path):
        data = "url,caption,n,x,b,zip,none\nhttp://a/1,7,1,1,true,007,\nhttp://a/2,8,,2.5,False,123,\n"
        table = open_table([write(tmp_path / "t.csv", data)])
        assert rows_of(table) == [
            {"url": "http://a/1", "caption": "7", "n": 1, "x": 1.0, "b": True, "zip": "007", "none": ""},
            {"url": "http://a/2", "caption": "8", "n": None, "x": 2.5, "b": False, "zip": "123", "none": ""},
        ]

    def test_a_value_that_does_not_fit_is_null_and_counted(self, tmp_path, monkeypatch):
        monkeypatch.setattr("diptych_shards.tables.file_readers.HEAD_ROWS", 1)
        csv = open_table([write(tmp_path / "t.csv", "url,n\nhttp://a/1,1\nhttp://a/2,two\nhttp://a/3,3\n")])
        lines = '{"url": "a", "n": 1}\n{"url": "b", "n": "two", "late": 1}\n{"url": "c", "n": 3}\n'
        jsonl = open_table([write(tmp_path / "t.jsonl", lines)])
        for table in (csv, jsonl):
            assert [row["n"] for row in rows_of(table)] == [1, None, 3]
            assert table.malformed.counts["column n is not int64"] == 1
        assert jsonl.malformed.counts["column late starts after the first 1 rows; left out"] == 1

    def test_json_values_of_several_kinds_are_kept_as_json(self, tmp_path):
        lines = [
            {"url": "a", "x": {"k": 1}, "y": 1, "z": [1, 2], "caption": "\ud800é"},
            {"url": "b", "y": "é", "z": None},
        ]
        table = open_table([write(tmp_path / "t.jsonl", "\n".join(map(json.dumps, lines)) + "\nnull\n{broken\n")])
        assert rows_of(table) == [
            {"url": "a", "x": '{"k": 1}', "y": "1", "z": [1, 2], "caption": "�é"},
            {"url": "b", "x": None, "y": "é", "z": None, "caption": None},
        ]
        assert table.malformed.counts == {"not a JSON object": 2}

    def test_a_key_that_the_first_row_of_a_file_lacks_is_no_mistake(self, tmp_path):
        write(tmp_path / "a.jsonl", '{"url": "a", "caption": "x"}\n')
        write(tmp_path / "b.jsonl", '{"url": "b"}\n{"url": "c", "caption": "y"}\n')
        assert [row["caption"] for row in rows_of(open_table([str(tmp_path)]))] == ["x", None, "y"]

    def test_every_shard_has_the_same_schema_whatever_its_files_say(self, tmp_path):
        none = pyarrow.nulls(2)
        write_parquet(tmp_path / "a.parquet", of_urls(range(2), n=none, k=pyarrow.array([1, 2], pyarrow.int32())))
        write_parquet(tmp_path / "b.parquet", of_urls(range(2), n=["x", "y"], k=[1, 2**40]))
        write_parquet(tmp_path / "c.parquet", of_urls(range(2), m=[1.5, 2.5]))
        table = open_table([str(tmp_path)])
        shards = [rows for _, rows in table.shards(10, lambda number: False)]
        assert {rows.schema for rows in shards} == {table.schema}
        assert dict(zip(table.schema.names, table.schema.types, strict=True)) == {
            "url": pyarrow.string(), "text": pyarrow.string(), "n": pyarrow.string(), "k": pyarrow.int64(),
            "m": pyarrow.float64(),
        }  # fmt: skip
        assert shards[2]["k"].to_pylist() == [None, None]

    def test_files_whose_columns_do_not_fit_together_are_named(self, tmp_path):
        write_parquet(tmp_path / "a.parquet", of_urls(range(2), n=[1, 2]))
        write_parquet(tmp_path / "b.parquet", of_urls(range(2), n=[[1], [2]]))
        with pytest.raises(TableError, match=r"b\.parquet: its columns do not fit those"):
            open_table([str(tmp_path)])
        write_parquet(tmp_path / "b.parquet", pyarrow.table({"link": ["http://a/1"]}))
        with pytest.raises(TableError, match=r"b\.parquet has no column 'url'"):
            open_table([str(tmp_path)])

    def test_unusual_types_of_parquet_are_read(self, tmp_path):
        table = pyarrow.table(
            {
                "url": pyarrow.array(["http://a/1", "http://a/1"]).dictionary_encode(),
                "text": pyarrow.array(["x", None], pyarrow.large_string()),
                "when": [datetime.datetime(2020, 1, 1), None],
                "price": [decimal.Decimal("1.50"), None],
                "raw": [b"\xff", None],
                "sha256": pyarrow.array([b"\xab" * 32, None], pyarrow.binary(32)),
                "face_bboxes": pyarrow.array([[[1, 2, 3, 4]], []], pyarrow.list_(pyarrow.list_(pyarrow.int8(), 4))),
            }
        )
        first, second = rows_of(open_table([write_parquet(tmp_path / "t.parquet", table)]))
        assert first == {
            "url": "http://a/1", "text": "x", "when": datetime.datetime(2020, 1, 1), "price": decimal.Decimal("1.50"),
            "raw": b"\xff", "sha256": "ab" * 32, "face_bboxes": [[1.0, 2.0, 3.0, 4.0]],
        }  # fmt: skip
        assert (second["sha256"], second["face_bboxes"]) == (None, [])

    def test_broken_text_in_parquet_is_replaced(self, tmp_path):
        def broken(values):
            return pyarrow.array(values, pyarrow.binary()).view(pyarrow.string())

        captions = broken([b"caf\xe9", b"fine", None])
        tags = pyarrow.ListArray.from_arrays([0, 1, 2, 2], broken([b"\xff", b"ok"]))
        table = pyarrow.table({"url": broken([b"http://a/\xe9", b"http://a/2", b""]), "text": captions, "tags": tags})
        rows = rows_of(open_table([write_parquet(tmp_path / "t.parquet", table)]))
        assert [row["url"] for row in rows] == ["http://a/%E9", "http://a/2", ""]
        assert [row["text"] for row in rows] == ["caf�", "fine", None]
        assert [row["tags"] for row in rows] == [["�"], ["ok"], []]

    def test_hashes_are_compared_in_small_letters(self, tmp_path):
        data = f"url,sha256\nhttp://a/1, {'AB' * 32} \nhttp://a/2,\n"
        assert [row["sha256"] for row in rows_of(open_table([write(tmp_path / "t.csv", data)]))] == ["ab" * 32, None]

    def test_boxes_that_cannot_be_read_hide_the_whole_picture(self, tmp_path):
        lines = ["[[0.1, 0.2, 0.3, 0.4]]", "[]", "", "[[0.1,", "7"]
        data = "url;face_bboxes\n" + "".join(f"http://a/1;{boxes}\n" for boxes in lines)
        table = open_table([write(tmp_path / "t.csv", data)])
        assert [row["face_bboxes"] for row in rows_of(table)] == [
            [[0.1, 0.2, 0.3, 0.4]], [], None, [[0.0, 0.0, 1.0, 1.0]], [[0.0, 0.0, 1.0, 1.0]],
        ]  # fmt: skip
        assert table.malformed.counts == {"boxes that cannot be read": 2}

    def test_a_caption_that_is_not_text_is_reported(self, tmp_path):
        table = pyarrow.table({"url": ["http://a/1"], "caption": [["a", "b"]]})
        with pytest.raises(TableError, match="column 'caption' holds list"):
            open_table([write_parquet(tmp_path / "t.parquet", table)])


class TestFingerprint:
    @pytest.fixture(params=["parquet", "csv"])
    def location(self, request, tmp_path):
        return self.make(tmp_path / f"t.{request.param}", "caption")

    def make(self, path, caption):
        if path.suffix == ".parquet":
            return write_parquet(path, of_urls(range(3), note=[caption] * 3))
        return write(path, "url,text,note\n" + f"http://a/1,x,{caption}\n" * 3)

    def test_it_stays_when_nothing_changes(self, location):
        assert open_table([location]).fingerprint == open_table([location]).fingerprint

    def test_it_changes_with_the_table(self, location, tmp_path):
        before = open_table([location]).fingerprint
        self.make(tmp_path / location.rpartition("/")[2], "another")
        assert open_table([location]).fingerprint != before

    def test_it_changes_with_what_is_chosen(self, location):
        chosen = [
            ColumnOptions(),
            ColumnOptions(caption="note"),
            ColumnOptions(extra=()),
            ColumnOptions(hash="note", hash_kind="md5"),
        ]
        assert len({open_table([location], options).fingerprint for options in chosen}) == len(chosen)


@pytest.mark.parametrize("kind", ["parquet", "csv"])
@pytest.mark.parametrize("skipped", [(), {0}, {1}, {0, 2}])
def test_a_subset_takes_the_rows_with_its_uids(tmp_path, kind, skipped):
    uids = [n * 2**70 for n in range(40)]
    chosen = [3, 4, 5, 11, 12, 13, 30, 39]
    np.save(tmp_path / "s.npy", np.array([divmod(uids[n], 2**64) for n in chosen], "u8,u8"))
    table = of_urls(range(40), uid=[f"{uid:032x}" for uid in uids])
    if kind == "parquet":
        location = write_parquet(tmp_path / "t.parquet", table, row_group_size=9)
    else:
        rows = "".join(f"{row['url']},{row['text']},{row['uid']}\n" for row in table.to_pylist())
        location = write(tmp_path / "t.csv", "url,text,uid\n" + rows)
    opened = open_table([location], subset=tmp_path / "s.npy")
    shards = {number: [f"http://a/{n}" for n in chosen[number * 3 : number * 3 + 3]] for number in range(3)}
    assert numbers_of(opened, 3, skipped) == {n: urls for n, urls in shards.items() if n not in skipped}
    assert opened.num_rows is None


def test_a_subset_needs_uids(tmp_path):
    np.save(tmp_path / "s.npy", np.zeros(1, "u8,u8"))
    with pytest.raises(TableError, match="no column uid"):
        open_table([write_parquet(tmp_path / "t.parquet", of_urls(range(3)))], subset=tmp_path / "s.npy")


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers /404.csv with status 404, and so on."""

    def do_GET(self):
        self.send_response(int(self.path[1:4]))
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *arguments):
        pass


def test_a_table_on_a_server_is_missing_only_if_the_server_says_so():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        for name, message in (
            ("404.csv", "does not exist$"),
            ("410.parquet", "does not exist$"),
            ("403.parquet", "cannot be read: the server answers 403 Forbidden$"),
            ("500.csv", "cannot be read: the server answers 500 Internal Server Error$"),
        ):
            with pytest.raises(TableError, match=f"^{address}/{name} {message}"):
                open_table([f"{address}/{name}"])
        server.shutdown()
    with pytest.raises(TableError, match=f"^{address}/t.parquet cannot be read: the server could not be reached"):
        open_table([f"{address}/t.parquet"])  # the server is gone


def test_spread_rows_are_those_of_the_file_in_the_order_of_a_hash_and_skipped_shards_change_nothing(
    two_files, monkeypatch
):
    monkeypatch.setattr(module, "SPREAD_ROWS", 12)  # blocks of three shards of four rows
    table = open_table([two_files])
    plain, whole = numbers_of(table, 4), spread(table, 4)
    assert {number: len(urls) for number, urls in whole.items()} == {n: len(urls) for n, urls in plain.items()}
    files = range(7), range(7, 11)  # 25 and 13 rows
    for first, last in ((0, 3), (3, 6), (6, 7), (7, 10), (10, 11)):
        block = [url for number in range(first, last) for url in whole[number]]
        assert sorted(block) == sorted(url for number in range(first, last) for url in plain[number])
        assert block == sorted(block, key=lambda url: xxhash.xxh3_64_intdigest(url.encode()))
    assert whole.keys() == {number for numbers in files for number in numbers}
    for skip in ({0}, {0, 1, 2}, {1, 4, 6}, {3, 4, 5, 10}, set(whole)):
        assert spread(table, 4, skip) == {number: urls for number, urls in whole.items() if number not in skip}
