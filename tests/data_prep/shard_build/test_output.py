"""The output as a user of img2dataset reads it. The GOLDEN values are what img2dataset 1.47.0 wrote."""

import datetime
import decimal
import json
import tarfile

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.data.shards import open_index
from diptych_shards.shard_build.output import output_schema, shard_key
from diptych_shards.shard_build.shard_files import OutputOptions, RowResult, read_stats
from diptych_shards.tables.columns import Columns
from tests.data_prep.shard_build.small_shards import COLUMNS, OPTIONS, rows, success, write

# url_col=URL, caption_col=TEXT, save_additional_columns=[SAMPLE_ID, similarity, boxes, flag], compute_hash=sha256,
# number_sample_per_shard=10; the table as in `rows()`.
GOLDEN_PARQUET = {
    "SAMPLE_ID": "int64",
    "similarity": "float",
    "boxes": "list<element: list<element: double>>",
    "flag": "bool",
    "caption": "string",
    "url": "string",
    "key": "string",
    "status": "string",
    "error_message": "string",
    "width": "int32",
    "height": "int32",
    "original_width": "int32",
    "original_height": "int32",
    "exif": "string",
    "sha256": "string",
}
GOLDEN_JSON = """{
    "SAMPLE_ID": 4,
    "similarity": 0.4000000059604645,
    "boxes": [
        [
            0.1,
            0.2,
            0.3,
            0.4
        ]
    ],
    "flag": true,
    "caption": "caption 4 \\u00e9 \\ud83d\\ude00",
    "url": "http://127.0.0.1:45139/4.jpg",
    "key": "000004",
    "status": "success",
    "error_message": null,
    "width": 64,
    "height": 64,
    "original_width": 400,
    "original_height": 304,
    "exif": "{}",
    "sha256": "b0116807bc62d0a774b643449255f8d77b97241fb2c82f23b119937331583365"
}"""
GOLDEN_STATS = {
    "count": int,
    "successes": int,
    "failed_to_download": int,
    "failed_to_resize": int,
    "duration": float,
    "start_time": float,
    "end_time": float,
    "status_dict": dict,
}
GOLDEN_STATUS_DICT = {"HTTP Error 404: Not Found": 1, "success": 8, "Image decoding error": 1}
GOLDEN_KEYS = {0: "000000", 1: "000010"}
"""The first key of each shard."""


def members(tar):
    with tarfile.open(tar) as opened:
        return {member.name: opened.extractfile(member).read() for member in opened}


class TestForUsersOfImg2dataset:
    def test_the_parquet_has_its_columns_and_types(self, tmp_path):
        write(tmp_path)
        table = pyarrow.parquet.read_table(tmp_path / "00000.parquet")
        assert {field.name: str(field.type) for field in table.schema} == GOLDEN_PARQUET
        assert list(table.column_names) == list(GOLDEN_PARQUET)
        assert table.num_rows == 10
        assert table["status"].to_pylist()[2:6] == ["success", "failed_to_download", "success", "failed_to_resize"]
        assert table["error_message"].to_pylist()[2:6] == [
            None, "HTTP Error 404: Not Found", None, "Image decoding error",
        ]  # fmt: skip
        assert table["width"].null_count == table["sha256"].null_count == table["exif"].null_count == 2

    def test_the_json_of_a_row_is_the_same_text(self, tmp_path):
        write(tmp_path)
        assert members(tmp_path / "00000.tar")["000004.json"].decode() == GOLDEN_JSON

    def test_the_statistics_have_its_fields(self, tmp_path):
        write(tmp_path)
        (path,) = tmp_path.glob("*.json")
        assert int(path.name.split("_")[0]) == 0
        stats = json.loads(path.read_text())
        assert {name: type(value) for name, value in stats.items()} == GOLDEN_STATS
        assert list(stats) == list(GOLDEN_STATS)
        assert stats["status_dict"] == GOLDEN_STATUS_DICT
        assert (stats["count"], stats["successes"], stats["failed_to_download"], stats["failed_to_resize"]) == (
            10,
            8,
            1,
            1,
        )

    def test_keys_are_made_by_its_rule(self, tmp_path):
        for number, key in GOLDEN_KEYS.items():
            write(tmp_path, number)
            table = pyarrow.parquet.read_table(tmp_path / f"{number:05d}.parquet")
            assert table["key"][0].as_py() == key
        assert shard_key(12, 3, 10_000) == "000120003"
        assert shard_key(12, 3, 10_000, digits=8) == "000000120003"
        assert shard_key(12, 3, 20) == "0001203"
        assert shard_key(12, 0, 1) == "00012"
        assert shard_key(123_456, 3, 1_000) == "123456003"

    # webdataset leaves the tar open
    @pytest.mark.filterwarnings(r"ignore:Exception ignored in. <_io\.FileIO:pytest.PytestUnraisableExceptionWarning")
    def test_webdataset_reads_pictures_captions_and_metadata(self, tmp_path):
        import webdataset

        write(tmp_path)
        samples = list(webdataset.WebDataset(str(tmp_path / "00000.tar"), shardshuffle=False).decode("pil"))
        assert [sample["__key__"] for sample in samples] == [f"00000{row}" for row in (0, 1, 2, 4, 6, 7, 8, 9)]
        assert {sample["jpg"].size for sample in samples} == {(64, 64)}
        assert [sample["txt"] for sample in samples][:3] == ["caption 0 é \U0001f600", "caption 1 é \U0001f600", ""]
        assert [sample["json"]["SAMPLE_ID"] for sample in samples] == [0, 1, 2, 4, 6, 7, 8, 9]
        assert samples[2]["json"]["caption"] is None

    def test_members_are_in_the_order_picture_caption_metadata(self, tmp_path):
        write(tmp_path)
        assert list(members(tmp_path / "00000.tar"))[:4] == ["000000.jpg", "000000.txt", "000000.json", "000001.jpg"]

    def test_the_folder_has_no_other_files_at_its_top(self, tmp_path):
        write(tmp_path)
        write(tmp_path, 1)
        assert sorted(path.name for path in tmp_path.iterdir()) == [
            *("00000.parquet", "00000.tar", "00000_stats.json"), *("00001.parquet", "00001.tar", "00001_stats.json"),
            "_index",
        ]  # fmt: skip
        assert not [*tmp_path.rglob("_index/*.json"), *tmp_path.rglob("_index/*.parquet"), *tmp_path.rglob("*.partial")]


def test_without_captions_there_is_neither_column_nor_member(tmp_path):
    table = rows().drop_columns("TEXT")
    write(tmp_path, table=table, columns=Columns("URL"))
    assert "caption" not in pyarrow.parquet.read_schema(tmp_path / "00000.parquet").names
    assert not [name for name in members(tmp_path / "00000.tar") if name.endswith(".txt")]


def test_our_index_holds_the_same_samples(tmp_path):
    assert write(tmp_path) == 8
    assert open_index(tmp_path).total_samples == 8


def test_columns_with_the_names_of_ours_are_renamed(tmp_path):
    given = ["key", "status", "width", "url", "caption", "sha256", "given_key", "given_width"]
    table = pyarrow.table({"link": ["http://a/1"], "alt": ["x"], **{name: [name] for name in given}})
    write(tmp_path, table=table, found=[success(0)], columns=Columns("link", "alt"))
    (row,) = pyarrow.parquet.read_table(tmp_path / "00000.parquet").to_pylist()
    assert [(name, row[name]) for name in list(row)[:8]] == [
        ("given_key", "key"),
        ("given_status", "status"),
        ("given_width", "width"),
        ("given_url", "url"),
        ("given_caption", "caption"),
        ("given_sha256", "sha256"),
        ("given_given_key", "given_key"),
        ("given_given_width", "given_width"),
    ]
    assert (row["url"], row["caption"], row["width"]) == ("http://a/1", "x", 64)
    assert json.loads(members(tmp_path / "00000.tar")["000000.json"]) == row


def test_values_that_json_does_not_have_cost_no_row(tmp_path):
    values = {
        "when": pyarrow.array([datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.timezone.utc)]),
        "nanoseconds": pyarrow.array([1], pyarrow.timestamp("ns")),
        "beyond": pyarrow.array([2**60], pyarrow.timestamp("ms")),
        "day": pyarrow.array([datetime.date(2020, 1, 2)]),
        "price": pyarrow.array([decimal.Decimal("1.50")]),
        "raw": pyarrow.array([b"\xff\x00"]),
        "nan": pyarrow.array([float("nan")]),
        "infinite": pyarrow.array([[float("inf"), 1.0]]),
        "half": pyarrow.array([0.5], pyarrow.float16()),
        "thing": pyarrow.array([{"a": [decimal.Decimal("2")], "b": None}]),
        "map": pyarrow.array([[("k", 1)]], pyarrow.map_(pyarrow.string(), pyarrow.int64())),
        "100%": pyarrow.array(["%s"]),
        "took": pyarrow.array([datetime.timedelta(seconds=2)]),
    }
    table = pyarrow.table({"URL": ["http://a/1"], "TEXT": ["x"], **values})
    assert write(tmp_path, table=table, found=[success(0)]) == 1
    written = json.loads(members(tmp_path / "00000.tar")["000000.json"], parse_constant=pytest.fail)
    assert {name: written[name] for name in ("when", "day", "price", "raw", "nan", "infinite", "half", "thing")} == {
        "when": "2020-01-02T03:00:00+00:00", "day": "2020-01-02", "price": "1.50", "raw": "ff00", "nan": None,
        "infinite": [None, 1.0], "half": 0.5, "thing": {"a": ["2"], "b": None},
    }  # fmt: skip
    assert written["100%"] == "%s"
    stored = pyarrow.parquet.read_table(tmp_path / "00000.parquet")
    assert stored["price"][0].as_py() == decimal.Decimal("1.50")
    assert stored["raw"][0].as_py() == b"\xff\x00"


JSON_VALUES = (
    st.none() | st.text() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)


@given(st.dictionaries(st.text(), JSON_VALUES | st.lists(st.lists(st.integers(0, 9))), min_size=1))
def test_a_row_is_written_as_the_standard_library_writes_it(row):
    from diptych_shards.tables.json_text import json_texts, template

    columns = [pyarrow.chunked_array([pyarrow.array([value])]) for value in row.values()]
    text = template(list(row)) % tuple(json_texts(column)[0] for column in columns)
    assert text == json.dumps(row, indent=4)


def test_every_shard_has_the_same_schema_even_if_all_fail(tmp_path):
    write(tmp_path, 0)
    failures = [RowResult(row, "failed_to_download", message="timed out", reason="timeout") for row in range(10)]
    write(tmp_path, 1, found=failures)
    schemas = [pyarrow.parquet.read_schema(tmp_path / f"0000{number}.parquet") for number in range(2)]
    assert schemas[0] == schemas[1] == output_schema(rows().schema, COLUMNS, OPTIONS)
    assert members(tmp_path / "00001.tar") == {}
    assert pyarrow.parquet.read_table(sorted(map(str, tmp_path.glob("*.parquet")))).num_rows == 20


def test_the_metadata_of_pandas_are_not_passed_on(tmp_path):
    write(tmp_path, table=rows().replace_schema_metadata({"pandas": "{}"}))
    assert b"pandas" not in (pyarrow.parquet.read_schema(tmp_path / "00000.parquet").metadata or {})


def test_equal_results_give_equal_bytes(tmp_path):
    for out in (tmp_path / "a", tmp_path / "b"):
        out.mkdir()
        write(out)
    for name in ("00000.tar", "00000.parquet", "_index/00000.tar.index", "_index/00000.outcomes"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_a_shard_may_have_more_rows_than_are_held_at_once(tmp_path):
    options = OutputOptions(rows_per_shard=3_000)
    table = rows(num_rows=2_500)
    write(tmp_path, table=table, found=map(success, range(2_500)), options=options)
    stored = pyarrow.parquet.ParquetFile(tmp_path / "00000.parquet")
    assert (stored.metadata.num_rows, stored.metadata.num_row_groups) == (2_500, 1)
    assert open_index(tmp_path).total_samples == 2_500


@pytest.mark.parametrize("found", [[], [success(0)], [success(row) for row in (0, 2, 1, *range(3, 10))]])
def test_results_that_are_not_those_of_the_rows_in_order_are_refused(tmp_path, found):
    with pytest.raises(ValueError, match="a result for each row"):
        write(tmp_path, found=found)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_message_may_hold_anything(tmp_path):
    message = 'a\ud800\n"é'
    write(tmp_path, found=[RowResult(row, "failed_to_download", message=message, reason="bad") for row in range(10)])
    assert pyarrow.parquet.read_table(tmp_path / "00000.parquet")["error_message"][0].as_py() == 'a?\n"é'
    assert read_stats(tmp_path)[0].status_dict == {'a?\n"é': 10}
