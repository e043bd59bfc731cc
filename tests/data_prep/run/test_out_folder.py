"""What each command wrote down of itself in OUT: damaged, it is one line that names it and the way out."""

import pytest

from diptych_shards.cli import main
from tests.data_prep.curate.pairs import write_pairs
from tests.data_prep.extract.crawls import img, page_record, warc_gz, write
from tests.data_prep.select.shards import jpeg, write_shards
from tests.data_prep.test_pack import fill

DAMAGED = {"cut": b'{\n "options', "list": b"[]", "number": b'{"options": 5}', "bytes": b"\xff\xfe\xfd", "empty": b""}


@pytest.fixture
def inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "table.csv").write_text("url,caption\nhttp://127.0.0.1:1/1.jpg,one\n")
    fill(tmp_path / "pictures", 2)
    write_pairs(tmp_path / "pairs.parquet", [("http://a/1.jpg", "a brown dog")])
    (tmp_path / "crawl").mkdir()
    write(tmp_path / "crawl", "a.warc.gz", warc_gz(page_record(img("a"))))
    write_shards(tmp_path / "shards", [[(jpeg(1), "one", {"width": 64})]])
    return tmp_path


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("build table.csv out", "build.json"),
        ("verify out", "build.json"),
        ("report out", "build.json"),
        ("pack pictures out", "pack.json"),
        ("report out", "pack.json"),
        ("select shards out", "select.json"),
        ("curate pairs.parquet out", "curate.json"),
        ("extract crawl out", "extract.options"),
    ],
)
def test_a_damaged_file_of_options_is_one_line(inputs, capsys, words, name, content):
    if words.startswith("select"):
        assert main(["filter", "shards", "--where", "width > 1"]) == 0
    if name == "extract.options" and content == DAMAGED["number"]:
        content = b"5"
    file = inputs / "out" / "_index" / name
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    capsys.readouterr()
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"diptych-shards: out/_index/{name} is damaged (") and line.endswith("in another folder")
    assert file.read_bytes() == content
