import contextlib
import functools
import gzip
import http.server
import io
import json
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest

from diptych_shards import cli
from diptych_shards.extract import download
from diptych_shards.extract.crawl_files import expand
from diptych_shards.extract.results import SCHEMA
from tests.commands import PATIENCE_SECONDS
from tests.data_prep.extract.crawls import img, page_record, record, warc_gz, wat_record, write

pytestmark = pytest.mark.usefixtures("forked_workers")


@pytest.fixture
def crawl(tmp_path) -> Path:
    folder = tmp_path / "crawl"
    folder.mkdir()
    for number in range(3):
        records = [page_record(f"<html lang=en>{img(f'a{number}-{page}')}<img src=x.jpg>") for page in range(40)]
        write(folder, f"part-{number}.warc.gz", warc_gz(*records))
    return folder


def extract(*arguments: object) -> int:
    return cli.main(["extract", "--processes", "1", *map(str, arguments)])


@contextlib.contextmanager
def started(warm, *arguments: object):
    """The command in a process of its own, and a function that gives its lines on stderr once it has ended."""
    with tempfile.TemporaryFile() as errors:
        command = warm.start("extract", "--processes", 2, *arguments, program="diptych_shards", errors=errors.fileno())

        def said() -> list[str]:
            command.wait()
            errors.seek(0)
            return errors.read().decode().splitlines()

        yield command, said


def files_of(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}


def test_a_folder_of_warcs_becomes_a_table_each_and_counts(crawl, tmp_path, capsys):
    out = tmp_path / "out"
    assert extract(crawl, out) == 0
    printed = capsys.readouterr().out
    assert "extracted 120 pairs of 120 pages from 3 files" in printed
    assert "120  alt" in printed and "120  no caption" in printed and "120  read" in printed
    table = pq.read_table(out / "part-1.warc.gz.parquet")
    assert table.schema == SCHEMA
    row = table.to_pylist()[1]
    assert row["url"] == "https://a.example/a1-1.jpg" and row["caption"] == "a picture of a1-1"
    assert (row["source"], row["language"], row["warc_file"]) == ("alt", "en", "part-1.warc.gz")
    with open(crawl / "part-1.warc.gz", "rb") as file:
        file.seek(row["record_offset"])
        assert b"a1-1" in gzip.decompress(file.read(row_length(table, 1)))


def row_length(table, row: int) -> int:
    offsets = table["record_offset"].to_pylist()
    return offsets[row + 1] - offsets[row]


def test_a_tilde_among_the_files_is_the_home_folder_too(crawl, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(crawl.parent))
    assert extract(f"~/{crawl.name}", tmp_path / "out") == 0
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 3


def test_wat_and_warc_of_the_same_name_are_written_next_to_each_other(crawl, tmp_path):
    links = [{"path": "IMG@/src", "url": "x.jpg", "alt": "a house"}]
    wat = write(tmp_path, "part-0.warc.wat.gz", warc_gz(wat_record({"Links": links})))
    out = tmp_path / "out"
    assert extract(crawl / "part-0.warc.gz", wat, out) == 0
    (row,) = pq.read_table(out / "part-0.warc.wat.gz.parquet").to_pylist()
    assert (row["warc_file"], row["record_offset"], row["width"]) == ("crawl.warc.gz", 77, None)


def test_the_same_command_again_does_nothing_and_says_the_same(crawl, tmp_path, capsys):
    out = tmp_path / "out"
    extract(crawl, out)
    printed, before = capsys.readouterr().out, files_of(out)
    times = {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    assert extract(crawl, out) == 0
    assert capsys.readouterr().out == printed
    assert files_of(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.parquet")} == times


def test_any_number_of_processes_gives_the_same_bytes(crawl, tmp_path):
    extract(crawl, tmp_path / "one")
    assert cli.main(["extract", "--processes", "2", str(crawl), str(tmp_path / "two")]) == 0
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_killed_anywhere_the_same_command_ends_with_the_same_bytes(warm, tmp_path):
    folder = tmp_path / "crawl"
    folder.mkdir()
    for number in range(5):
        pages = [page_record("<p>text</p>" * 400 + img(f"{number}-{page}")) for page in range(150)]
        write(folder, f"part-{number}.warc.gz", warc_gz(*pages))
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert extract(folder, whole) == 0
    for files_before_kill in (0, 2):
        command = warm.start("extract", "--processes", 1, folder, out, program="diptych_shards")
        command.wait_until(lambda wanted=files_before_kill: len(list(out.glob("*.parquet"))) >= wanted)
        time.sleep(0.02)
        with contextlib.suppress(ProcessLookupError):
            command.signal_group(signal.SIGKILL)
        command.wait()
    assert extract(folder, out) == 0
    assert files_of(out) == files_of(whole)


def test_a_worker_that_dies_is_replaced_and_its_file_read_again(warm, crawl, tmp_path):
    asked: list[str] = []
    is_killed = threading.Event()

    class Stalling(QuietHandler):
        def do_GET(self):
            asked.append(self.path)
            is_killed.wait(PATIENCE_SECONDS)
            with contextlib.suppress(ConnectionError):  # from the process that was killed
                super().do_GET()

    with served(crawl, functools.partial(Stalling, directory=str(crawl))) as address:
        files = [f"{address}/part-{number}.warc.gz" for number in range(2)]
        command = warm.start("extract", "--processes", 2, *files, tmp_path / "out", program="diptych_shards")
        command.wait_until(lambda: len(asked) == 2)
        command.workers()[0].kill()
        is_killed.set()
        assert command.wait() == 0, command.said
    assert len(asked) == 3
    assert "of 80 pages from 2 files" in command.said


def test_other_options_in_the_same_folder_are_refused(crawl, tmp_path, capsys):
    out = tmp_path / "out"
    extract(crawl, out)
    assert extract("--surrounding-text", "--icon-side", 8, crawl, out) == 2
    changed = "surrounding_text False, now True; icon_side 32, now 8"
    assert f"{out} was started with other options ({changed}); use the same ones, or name" in capsys.readouterr().err


def test_what_cannot_be_read_is_named_after_the_others_are_done(crawl, tmp_path, capsys):
    missing = "http://127.0.0.1:9/gone.warc.gz?x"
    out = tmp_path / "out"
    with served(tmp_path) as address:
        missing = f"{address}/gone.warc.gz"
        assert extract(missing, crawl, out) == 2
    error = capsys.readouterr().err
    assert "1 of 4 files do not exist" in error and missing in error and "404" in error
    assert "correct their addresses" in error and "start the same command again" not in error
    assert len(list(out.glob("*.parquet"))) == 3
    assert not list(out.glob("*.partial"))


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, "does not exist"),
        (b"", "no pair was found"),
        (b"no crawl", "no pair was found"),
    ],
)
def test_nothing_found_is_one_line_and_status_2(content, wanted, tmp_path, capsys):
    path = tmp_path / "x.warc.gz"
    if content is not None:
        path.write_bytes(content)
    assert extract(path, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert wanted in error and error.count("\n") == 1


def test_a_file_that_ends_early_is_named_with_what_is_kept_of_it(crawl, tmp_path, capsys):
    part = crawl / "part-1.warc.gz"
    part.write_bytes(part.read_bytes()[:-100])
    for _ in range(2):  # the second time, nothing is left to do
        assert extract(crawl, tmp_path / "out") == 0
        message = f"1 file that ended early, within a record, the first is {part}: its 39 pairs of 39 pages are kept"
        assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        warc_gz(page_record("<p>no picture"), page_record("<img src=x.jpg alt=''>")),
        warc_gz(page_record(img("x") + "<meta name=robots content=noai>")),
        warc_gz(record(b"robots", "warcinfo")),
    ],
)
def test_a_file_of_records_without_a_pair_is_not_an_error(content, tmp_path, capsys):
    path = write(tmp_path, "x.warc.gz", content)
    assert extract(path, tmp_path / "out") == 0
    said = capsys.readouterr()
    assert "no pair was found; the counts say why" in said.out and said.err == ""
    assert pq.read_table(tmp_path / "out" / "x.warc.gz.parquet").num_rows == 0


def test_files_without_a_record_are_counted_and_the_first_is_named(crawl, tmp_path, capsys):
    write(crawl, "part-1.warc.gz", b"")
    write(crawl, "part-2.warc.gz", gzip.compress(b""))
    for _ in range(2):  # the second time, nothing is left to do
        assert extract(crawl, tmp_path / "out") == 0
        printed = capsys.readouterr().out
        assert "extracted 40 pairs of 40 pages from 3 files" in printed
        assert f"2 files without a record, the first is {crawl}/part-1.warc.gz" in printed
    assert extract(crawl / "part-0.warc.gz", tmp_path / "out") == 0
    assert "without a record" not in capsys.readouterr().out


def test_two_files_of_one_name_are_refused(tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "x.warc", page_record(img("x")))
    assert extract(tmp_path / "a", tmp_path / "b", tmp_path / "out") == 2
    assert "would both become x.warc.parquet" in capsys.readouterr().err


def test_a_file_whose_name_another_crawl_took_before_is_refused_and_nothing_is_lost(tmp_path, capsys):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder, "x.warc", page_record(img(folder)))
    write(tmp_path / "b", "a-new-one.warc", page_record(img("new")))
    out = tmp_path / "out"
    assert extract(tmp_path / "a", out) == 0
    before = files_of(out)
    capsys.readouterr()
    assert extract(tmp_path / "b", out) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    for message in (tmp_path / "a" / "x.warc", tmp_path / "b" / "x.warc", "new folder", out / "_index" / "x.warc.json"):
        assert str(message) in error
    assert files_of(out) == before
    with served(tmp_path / "a") as address:
        assert extract(f"{address}/x.warc", out) == 2
    (out / "_index" / "x.warc.json").unlink()
    assert extract(tmp_path / "b", out) == 0
    assert captions_of(out / "x.warc.parquet") == ["a picture of b"]


def test_a_file_that_changed_is_extracted_again_and_one_that_is_gone_stays_done(tmp_path, monkeypatch, capsys):
    out = tmp_path / "out"
    path = write(tmp_path, "x.warc", page_record(img("before")))
    other = write(tmp_path, "y.warc", page_record(img("other")))
    assert extract(path, other, out) == 0
    path.write_bytes(page_record(img("after")))
    listed = write(tmp_path, "both.paths", b"x.warc\ny.warc\n")
    other.unlink()
    monkeypatch.chdir(tmp_path)
    assert extract(listed, "--prefix", ".", out) == 0
    assert captions_of(out / "x.warc.parquet") == ["a picture of after"]
    assert captions_of(out / "y.warc.parquet") == ["a picture of other"]


def test_the_report_of_a_file_records_where_it_came_from(tmp_path):
    path = write(tmp_path, "x.warc", page_record(img("x")))
    out = tmp_path / "out"
    assert extract(path, out) == 0
    origin = json.loads((out / "_index" / "x.warc.json").read_bytes())["origin"]
    status = path.stat()
    assert origin == {"location": str(path), "size": status.st_size, "version": str(status.st_mtime_ns)}
    with served(tmp_path) as address:
        assert extract(f"{address}/x.warc", tmp_path / "web") == 0
        assert extract(f"{address}/x.warc", tmp_path / "web") == 0
    origin = json.loads((tmp_path / "web" / "_index" / "x.warc.json").read_bytes())["origin"]
    assert (origin["location"], origin["size"]) == (f"{address}/x.warc", status.st_size)
    assert origin["version"].endswith("GMT")


def captions_of(table: Path) -> list[str]:
    return pq.read_table(table)["caption"].to_pylist()


def test_a_full_disk_is_one_line_that_names_the_table_and_the_same_command_resumes(crawl, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "diptych_shards", "extract", "--processes", "1", crawl, out]
    full = subprocess.run(
        command, capture_output=True, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
    )  # fmt: skip
    (error,) = full.stderr.splitlines()
    assert full.returncode == 2
    assert str(out / "part-0.warc.gz.parquet") in error and "make room" in error and ".partial" not in error
    assert not list(out.rglob("*.partial"))
    assert extract(crawl, out) == 0


@pytest.mark.parametrize(
    "taken", ["part-0.warc.gz.parquet", "part-0.warc.gz.parquet.partial", "_index/part-0.warc.gz.json"]
)
def test_a_folder_where_a_result_should_be_is_one_line(crawl, taken, tmp_path, capsys):
    assert extract(crawl, tmp_path / "out") == 0
    for result in (*(tmp_path / "out").glob("*.parquet"), *(tmp_path / "out").glob("_index/*.json")):
        result.unlink()
    (tmp_path / "out" / taken / "x").mkdir(parents=True)
    capsys.readouterr()
    assert extract(crawl, tmp_path / "out") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert "Is a directory" in error and "part-0.warc.gz" in error and ".partial" not in error


def test_out_that_is_a_file_is_refused(crawl, tmp_path, capsys):
    assert extract(crawl, write(tmp_path, "out", b"")) == 2
    assert "is not a folder" in capsys.readouterr().err


@contextlib.contextmanager
def served(folder: Path, handler: type | None = None):
    handler = handler or functools.partial(QuietHandler, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_a_list_of_paths_is_read_from_the_web_with_a_prefix(crawl, tmp_path, capsys):
    (crawl / "warc.paths.gz").write_bytes(gzip.compress(b"part-0.warc.gz\npart-1.warc.gz\npart-2.warc.gz\n"))
    with served(crawl) as address:
        assert extract(f"{address}/warc.paths.gz", "--prefix", address, "--first", "2", tmp_path / "out") == 0
    assert "80 pairs of 80 pages from 2 files" in capsys.readouterr().out


def test_lists_and_folders_are_expanded_in_order(crawl, tmp_path):
    listed = write(tmp_path, "wat.paths", b"crawl-data/x.wat.gz\n/y.wat.gz\ns3://b/z.wat.gz\n")
    assert expand([str(listed)]) == [
        "https://data.commoncrawl.org/crawl-data/x.wat.gz",
        "https://data.commoncrawl.org/y.wat.gz",
        "s3://b/z.wat.gz",
    ]
    assert expand([str(crawl)]) == [str(crawl / f"part-{number}.warc.gz") for number in range(3)]


def test_a_download_resumes_where_the_connection_broke(crawl, tmp_path, monkeypatch):
    monkeypatch.setattr(download, "_PAUSES", (0.1, 0.1))
    content = (crawl / "part-0.warc.gz").read_bytes()
    ranges: list[str | None] = []

    class Breaking(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            ranges.append(self.headers["Range"])
            start = int(ranges[-1][6:-1]) if ranges[-1] else 0
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : start + 1500] if len(ranges) < 3 else content[start:])

        def log_message(self, *arguments):
            pass

    out = tmp_path / "out"
    with served(crawl, Breaking) as address:
        assert extract(f"{address}/part-0.warc.gz", out) == 0
    assert ranges == [None, "bytes=1500-", "bytes=3000-"]
    assert pq.read_table(out / "part-0.warc.gz.parquet").num_rows == 40


def test_a_server_that_is_not_there_is_given_up_soon_and_named_at_once(warm, tmp_path):
    with socket.socket() as bound:  # and does not listen
        bound.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{bound.getsockname()[1]}/x.warc.gz"
        unknown = "http://no-such-host.invalid/x.warc.gz"
        with started(warm, address, tmp_path / "out") as one, started(warm, unknown, tmp_path / "other") as two:
            message, error = one[1]()
            assert message == f"{address}: Connection refused; trying again for 3 s"
            assert "1 of 1 file could" in error and error.count(address) == 1
            assert "Connection refused (3 tries)" in error
            message, error = two[1]()
            assert "trying again for 3 s" in message
            assert one[0].wait() == two[0].wait() == 2


def test_a_busy_server_is_asked_again(warm, crawl, tmp_path):
    statuses = {"/part-0.warc.gz": [200, 503], "/part-1.warc.gz": [200, 429]}

    class Busy(QuietHandler):
        def do_GET(self):
            status = statuses[self.path].pop()
            super().do_GET() if status == 200 else self.send_error(status)

    with served(crawl, functools.partial(Busy, directory=str(crawl))) as address:
        files = [f"{address}{path}" for path in statuses]
        with started(warm, *files, tmp_path / "out") as (command, said):
            messages = sorted(said())
            assert command.wait() == 0
    assert [message.removeprefix(address) for message in messages] == [
        "/part-0.warc.gz: HTTP Error 503: Service Unavailable; trying again for 141 s",
        "/part-1.warc.gz: HTTP Error 429: Too Many Requests; trying again for 141 s",
    ]
    assert statuses == {path: [] for path in statuses}


@pytest.mark.parametrize("address", ["http://127.0.0.1:port/x.warc", "http://a..b/x.warc", "http://127.0.0.1/a b.warc"])
def test_an_address_that_cannot_be_requested_is_one_line(address, tmp_path, capsys):
    assert extract(address, tmp_path / "out") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert address in error


def test_whatever_fsspec_can_open_is_read(crawl, tmp_path):
    assert extract(f"file://{crawl}/part-0.warc.gz", tmp_path / "out") == 0
    assert (tmp_path / "out" / "part-0.warc.gz.parquet").exists()


def test_what_a_store_calls_its_errors_is_one_line_with_the_address(crawl, tmp_path, capsys):
    class Stored(io.BytesIO):
        def read(self, size=-1):
            if self.tell() > 1000:
                raise RuntimeError("the store is tired")
            return super().read(min(size, 500))

    class Store(fsspec.AbstractFileSystem):
        protocol = "tired"

        def _open(self, path, *arguments, **more):
            if "gone" in path:
                raise FileNotFoundError(path)
            return Stored((crawl / path).read_bytes())

    fsspec.register_implementation("tired", Store, clobber=True)
    for name, message in (("part-0.warc.gz", "RuntimeError: the store is tired"), ("gone.warc.gz", "does not exist")):
        assert extract(f"tired://{name}", tmp_path / "out") == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert error.count(f"tired://{name}") == 1 and message in error
    assert not list((tmp_path / "out").glob("*.parquet*"))


def test_a_store_that_says_very_much_is_cut_to_a_line(tmp_path, capsys):
    class Store(fsspec.AbstractFileSystem):
        protocol = "verbose"

        def _open(self, path, *arguments, **more):
            raise OSError("no library in\n" + "/some/folder\n" * 2_000)

    fsspec.register_implementation("verbose", Store, clobber=True)
    for command in (["extract"], ["build"]):
        assert cli.main([*command, "verbose://a.parquet", str(tmp_path / "out")]) == 2
        (error,) = capsys.readouterr().err.splitlines()
        assert "verbose://a.parquet cannot be read: no library in /some/folder" in error and len(error) < 600


def test_files_that_do_not_exist_and_those_that_cannot_be_read_are_counted_apart(crawl, tmp_path, capsys):
    (crawl / "part-3.warc.gz").symlink_to(crawl / "part-3.warc.gz")
    with served(tmp_path) as address:
        assert extract(f"{address}/gone.warc.gz", crawl, tmp_path / "out") == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "1 of 5 files do not exist" in error and "1 of 5 files could not be read, the first is" in error
    assert error.endswith("start the same command again to try them once more")


@pytest.mark.parametrize("name", ["x.warc.gz", "warc.paths.gz"])
@pytest.mark.parametrize(
    ("scheme", "message"),
    [
        ("abfs", "to read abfs://, pip install adlfs"),
        ("smb", "smbprotocol"),
        ("s4", "s4:// cannot be read; name a path, or an address at http(s)://, s3://, gs:// or the like"),
    ],
)
def test_an_address_that_nothing_installed_can_open_says_what_to_install(name, scheme, message, tmp_path, capsys):
    assert extract(f"{scheme}://bucket/{name}", tmp_path / "out") == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"diptych-shards: {scheme}://bucket/{name}: ") and message in error and "again" not in error
    assert not (tmp_path / "out").exists()
