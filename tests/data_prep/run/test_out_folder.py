"""The output folder of five commands: one process at a time, the same input and options, no partial files."""

import json
import shutil

import pytest

from diptych.locks import locked
from diptych_shards.cli import main
from tests.data_prep.curate.pairs import write_pairs
from tests.data_prep.extract.crawls import img, page_record, warc_gz, write
from tests.data_prep.select.shards import jpeg, write_shards
from tests.data_prep.test_pack import fill

pytestmark = pytest.mark.usefixtures("forked_workers")

DAMAGED = {"cut": b'{\n "options', "list": b"[]", "number": b'{"options": 5}', "bytes": b"\xff\xfe\xfd", "empty": b""}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    (folder / "table.csv").write_text("url,caption\nhttp://127.0.0.1:1/1.jpg,one\n")
    fill(folder / "pictures", 2)
    write_pairs(folder / "pairs.parquet", [("http://a/1.jpg", "a brown dog")])
    (folder / "crawl").mkdir()
    write(folder / "crawl", "a.warc.gz", warc_gz(page_record(img("a"))))
    write_shards(folder / "shards", [[(jpeg(1), "one", {"width": 64})]])
    assert main(["filter", str(folder / "shards"), "--where", "width > 1"]) == 0
    return folder


@pytest.fixture
def inputs(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(made, tmp_path, dirs_exist_ok=True)


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


COMMANDS = {
    "build": ("build table.csv out", "build.json", {"format", "options", "table", "finished", "outcomes"}),
    "pack": ("pack pictures out", "pack.json",
             {"format", "options", "input", "finished", "packed", "shards", "refused"}),
    "select": ("select shards out", "select.json", {"format", "options", "shards", "verdicts", "finished"}),
    "curate": ("curate pairs.parquet out", "curate.json", {"format", "options", "files", "pyarrow"}),
    "extract": ("extract crawl out", "extract.options",
                {"surrounding_text", "max_page_bytes", "max_pictures_per_page", "icon_side", "opt_outs",
                 "max_caption_characters"}),
}  # fmt: skip
of_each_command = pytest.mark.parametrize(("words", "name", "layout"), COMMANDS.values(), ids=COMMANDS)


def finish(words):
    """Run a command to its end; `build` fetches no picture here, and exits with 2."""
    assert main(words.split()) == (2 if words.startswith("build") else 0)


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@of_each_command
def test_a_folder_that_an_earlier_version_started_is_continued(inputs, words, name, layout):
    finish(words)
    file = inputs / "out" / "_index" / name
    state = json.loads(file.read_bytes())
    assert state.keys() == layout
    if "finished" in layout:
        assert state["finished"] is True
    before = contents(inputs / "out")
    file.write_bytes(json.dumps(dict(sorted(state.items()))).encode())
    finish(words)
    assert contents(inputs / "out").keys() == before.keys()
    assert json.loads(file.read_bytes()) == state


def test_the_options_of_a_build_are_recorded_as_the_first_version_did(inputs):
    """One that is no longer an option is recorded with its usual value."""
    finish("build table.csv out --keep-order")
    finish("build table.csv spread")
    kept, spread = (json.loads((inputs / out / "_index" / "build.json").read_bytes()) for out in ("out", "spread"))
    assert spread["options"] == {**kept["options"], "order": "hash"}
    assert kept["options"] == {
        "blocked_phash": [], "blocked_sha256": [], "compute_hash": "sha256", "encode_format": "jpg",
        "encode_quality": None, "fast_decode": False, "hash_perceptually": False, "image_size": 256,
        "keep_exif": False, "max_aspect_ratio": None, "max_image_area": None, "max_pixels": 100_000_000,
        "min_image_size": 0, "phash_distance": 4, "read_exif": True, "resize_mode": "border",
        "resize_only_if_bigger": False, "rows_per_shard": 10_000, "shard_digits": 5, "skip_reencode": False,
        "subsampling": "420",
    }  # fmt: skip


@of_each_command
def test_only_one_process_works_in_a_folder(inputs, capsys, words, name, layout):
    command = words.split()[0]
    with locked(inputs / "out" / "_index", command):
        assert main(words.split()) == 2
    assert f"another {command} is at work in out/_index (this process); let it finish" in capsys.readouterr().err


@of_each_command
def test_a_folder_of_something_else_is_refused_and_stays_as_it_was(inputs, capsys, words, name, layout):
    for path in ("out/mine", "out/_index/mine"):
        file = inputs / path
        file.parent.mkdir(parents=True)
        file.write_text("mine")
        assert main(words.split()) == 2
        assert "out holds files of something else; name a new or empty folder" in capsys.readouterr().err
        assert contents(inputs / "out") == {file: b"mine"}
        shutil.rmtree(inputs / "out")
    (inputs / "out").write_text("mine")
    assert main(words.split()) == 2
    assert "out is not a folder; name another one" in capsys.readouterr().err


@of_each_command
def test_what_a_killed_process_left_is_removed(inputs, words, name, layout):
    index = inputs / "out" / "_index"
    index.mkdir(parents=True)
    (index / "lock").touch()
    (index / f"{name}.0123abcd.partial").touch()  # killed before it recorded anything
    finish(words)
    whole = contents(inputs / "out").keys()
    for path in (inputs / "out" / "00000.tar.partial", index / "00000.tar.index.77.partial"):
        path.touch()
    finish(words)
    assert contents(inputs / "out").keys() == whole


@of_each_command
def test_other_options_are_named_with_both_values_and_other_formats_refused(inputs, capsys, words, name, layout):
    finish(words)
    file = inputs / "out" / "_index" / name
    state = json.loads(file.read_bytes())
    options = state.get("options", state)
    option, now = next(iter(options.items()))
    options |= {option: "other", "gone": 5}
    file.write_text(json.dumps(state))
    before = contents(inputs / "out")
    capsys.readouterr()
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    differing = f"({option} other, now {now}; gone 5, now None)"
    assert f"out was started with other options {differing}; use the same ones, or name another folder" in line
    if "format" in layout:
        file.write_text(json.dumps(state | {"format": "other"}))
        before = contents(inputs / "out")
        assert main(words.split()) == 2
        assert "out was started by another version; name another folder" in capsys.readouterr().err
    assert contents(inputs / "out") == before


@of_each_command
def test_other_input_is_refused(inputs, capsys, words, name, layout):
    finish(words)
    if name == "extract.options":  # `extract` allows more files in a later run
        return
    (inputs / "table.csv").write_text("url,caption\nhttp://127.0.0.1:1/2.jpg,two\n")
    fill(inputs / "pictures", 3)
    write_pairs(inputs / "pairs.parquet", [("http://a/2.jpg", "a red dog")])
    assert main(["filter", "shards", "--where", "width > 2"]) == 0
    before = contents(inputs / "out")
    capsys.readouterr()
    assert main(words.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "started with" in line and "other options" not in line
    assert contents(inputs / "out") == before
