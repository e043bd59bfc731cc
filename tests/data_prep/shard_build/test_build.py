"""All of `diptych-shards build` on a local web: hostile hosts, kills, full disks, second passes."""

from __future__ import annotations

import csv
import gc
import hashlib
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from diptych.data.shards import open_index
from diptych_shards.cli import main
from diptych_shards.shard_build import shard
from diptych_shards.shard_build.shard_files import OutputOptions, read_failures
from tests.commands import Command
from tests.data_prep.hostile_web import BEHAVIOURS, ELSEWHERE, HostileWeb
from tests.data_prep.made_pictures import encoded, scene

pytestmark = pytest.mark.usefixtures("forked_workers")

ROOT = Path(__file__).parents[3]
NUM_PICTURES = 60
ROWS_PER_SHARD = 10
HOSTILE = sorted({*BEHAVIOURS, *ELSEWHERE, "tls_ok", "tls_self_signed", "tls_wrong_host", "tls_none"} - {"pictures"})
ANSWERED = {"ok", "html", "polyglot", "redirect", "relative_redirect", "hints", "gzipped", "truncated_once",
            "retry_after", "retry_after_date", "others_opted_out", "robots_moved", "troubled",
            "odd_encoding"}  # fmt: skip
"""Hosts that give some bytes at last; none is a picture."""
ENDLESS = {"silent", "slow_headers", "steady_but_long"}
"""Hosts that only the timeout ends. All others may take as long as a busy machine needs."""


@pytest.fixture(scope="module")
def web():
    sizes = random.Random(0)
    pictures = {
        f"{number:03d}.jpg": encoded(scene(sizes.randrange(60, 400), sizes.randrange(60, 300)))
        for number in range(NUM_PICTURES)
    }
    with HostileWeb(pictures) as web:
        yield web


@pytest.fixture
def table(web, tmp_path) -> Path:
    return write_table(tmp_path / "table.csv", [(web.url(name), f"picture {name}") for name in sorted(web.pictures)])


def write_table(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("url", "caption"), *rows])
    return path


@dataclass(frozen=True)
class Printed:
    """What a command printed."""

    stdout: str
    stderr: str


def arguments(web, table, out, *options) -> list[str]:
    network = [f"--allow-network={web.network}", *(f"--resolve={entry}" for entry in web.resolve)]
    small = [f"--rows-per-shard={ROWS_PER_SHARD}", "--image-size=64", "--processes=1", "--keep-order"]
    return list(map(str, ["build", table, out, *network, *small, *options]))


def words(web, table, out, *options) -> list[str]:
    """The command for a process that Python starts, which a test limits."""
    return [sys.executable, "-m", "diptych_shards", *arguments(web, table, out, *options)]


def build(web, table, out, *options, status=0) -> Printed:
    with redirect_stdout(io.StringIO()) as stdout, redirect_stderr(io.StringIO()) as stderr:
        ended = main(arguments(web, table, out, *options))
    assert ended == status, stderr.getvalue()
    return Printed(stdout.getvalue(), stderr.getvalue())


def start(warm, web, table, out, *options) -> Command:
    """Start the command in a process of its own, which a test kills."""
    return warm.start(*arguments(web, table, out, *options), program="diptych_shards")


def build_limited(web, table, out, limit) -> subprocess.CompletedProcess[str]:
    """Build in a process of its own, which calls `limit` at its start and must fail."""
    done = subprocess.run(words(web, table, out), preexec_fn=limit, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2, done.stderr
    return done


def in_every_worker(monkeypatch, folder: Path, code: str) -> None:
    """Run the code at the start of each Python process that starts from now on."""
    (folder / "sitecustomize.py").write_text(code)
    paths = [str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(paths))


def contents(out: Path) -> dict[str, str]:
    """The sha256 of every file except the statistics, which contain times."""
    files = [
        *out.glob("*.tar"),
        *out.glob("*.parquet"),
        *out.glob("_index/*.tar.index"),
        out / "_index" / "all.index",
        *out.glob("_index/*.outcomes"),
    ]
    return {str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def rows_of(out: Path) -> list[dict]:
    return [row for path in sorted(out.glob("*.parquet")) for row in parquet.read_table(path).to_pylist()]


@pytest.fixture(scope="module")
def uninterrupted(web, tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    rows = [(web.url(name), f"picture {name}") for name in sorted(web.pictures)]
    build(web, write_table(folder / "table.csv", rows), folder / "out", "--processes=2")
    found = contents(folder / "out")
    assert sum(name.endswith(".tar") for name in found) == NUM_PICTURES / ROWS_PER_SHARD
    return found


@pytest.mark.filterwarnings(r"ignore:unclosed file:ResourceWarning")  # webdataset leaves its last tar open
def test_rows_keep_the_order_of_the_table_and_plain_webdataset_reads_them(web, table, tmp_path, uninterrupted):
    import webdataset

    build(web, table, tmp_path / "out")
    assert contents(tmp_path / "out") == uninterrupted
    shards = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    captions = [sample["txt"].decode() for sample in webdataset.WebDataset(shards, shardshuffle=False)]
    gc.collect()
    assert captions == [f"picture {name}" for name in sorted(web.pictures)]
    assert len(open_index(tmp_path / "out")) == NUM_PICTURES


def test_killed_at_any_moment_the_same_command_ends_with_the_same_bytes(
    warm, web, table, tmp_path, uninterrupted, draw
):
    out = tmp_path / "out"
    for _ in range(3):
        finished = {path.name for path in out.glob("*_stats.json")}
        web.requests.clear()
        process = start(warm, web, table, out)
        enough = draw.randrange(1, 2 * ROWS_PER_SHARD)
        process.wait_until(lambda enough=enough: len(web.requests) >= enough)
        time.sleep(draw.uniform(0, 0.05))  # at pictures, or at the files of a shard
        if process.poll() is None:  # otherwise it has built all that was left
            process.signal_group(signal.SIGKILL)
        process.wait()
        asked_again = {path for _, path in web.requests}
        for name in finished:
            first = int(name[:5]) * ROWS_PER_SHARD
            assert not asked_again & {f"/{number:03d}.jpg" for number in range(first, first + ROWS_PER_SHARD)}
    build(web, table, out)
    assert contents(out) == uninterrupted
    assert not list(out.rglob("*.partial")) and not list(out.rglob("*.journal"))


def test_a_killed_worker_costs_nothing(warm, web, table, tmp_path, uninterrupted):
    out = tmp_path / "out"
    process = start(warm, web, table, out, "--processes=2")
    killed = set()
    while process.poll() is None and len(killed) < 2:
        workers = process.workers()
        if len(workers) == 2 and list(out.glob("_index/*.journal")):
            workers[-1].kill()
            killed.add(workers[-1].pid)
        time.sleep(0.05)
    assert process.wait() == 0, process.said
    assert killed
    assert contents(out) == uninterrupted


def test_pictures_that_kill_their_decoder_are_refused_and_cost_no_other_row(web, tmp_path, monkeypatch):
    comments = {"deadly1.jpg": b"deadly", "deadly2.jpg": b"too large", "deadly3.jpg": b"deadly"}
    pictures = {name: encoded(scene(), comment=comment) for name, comment in comments.items()}
    process_picture = shard.process_picture

    def deadly(data, *rest):
        if b"deadly" in data:
            os.kill(os.getpid(), signal.SIGKILL)
        if b"too large" in data:
            bytearray(1 << 60)
        return process_picture(data, *rest)

    monkeypatch.setattr(shard, "process_picture", deadly)
    one, two, three, four = sorted(web.pictures)[:4]
    names = [one, "deadly1.jpg", two, "deadly2.jpg", three, "deadly3.jpg", four]
    web.pictures |= pictures
    table = write_table(tmp_path / "table.csv", [(web.url(name), name) for name in names])
    build(web, table, tmp_path / "out")
    rows = rows_of(tmp_path / "out")
    assert [row["error_message"] for row in rows] == [None, "the decoder crashed"] * 3 + [None]
    for name in pictures:
        del web.pictures[name]


def test_a_start_right_after_a_kill_finds_no_lock(warm, web, table, tmp_path):
    names = [*sorted(web.pictures)[:4], "silent"]
    table = write_table(tmp_path / "table.csv", [(web.url(name), name) for name in names])
    process = start(warm, web, table, tmp_path / "out")
    process.wait_until(lambda: list((tmp_path / "out").glob("_index/*.journal")))
    process.signal(signal.SIGKILL)  # the parent alone
    assert process.wait() == -signal.SIGKILL
    done = build(web, table, tmp_path / "out", "--timeout=1")
    assert "stored 4 of 5 rows" in done.stdout


def test_a_full_disk_is_one_line_and_loses_nothing(web, table, tmp_path, uninterrupted):
    out = tmp_path / "out"

    def small_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    done = build_limited(web, table, out, small_files)
    line = done.stderr.splitlines()[-1]
    assert line.startswith("diptych-shards: ") and "make room" in line and "Traceback" not in done.stderr
    build(web, table, out)
    assert contents(out) == uninterrupted


def test_a_build_starts_in_a_folder_where_an_earlier_start_failed(web, table, tmp_path):
    table = write_table(tmp_path / "table.csv", [(web.url(name), name) for name in sorted(web.pictures)[:3]])
    out = tmp_path / "out"

    def no_files():
        resource.setrlimit(resource.RLIMIT_FSIZE, (1, 1))

    assert "make room" in build_limited(web, table, out, no_files).stderr
    assert {path.name for path in (out / "_index").iterdir()} <= {"lock"}
    (out / "_index" / "build.json.0123abcd.partial").write_text("{")  # of a start that was killed
    build(web, table, out)
    assert len(open_index(out)) == 3 and not list(out.rglob("*.partial"))


def test_other_options_another_table_and_a_foreign_folder_are_refused(web, table, tmp_path):
    out = tmp_path / "out"
    build(web, table, out)
    done = build(web, table, out, "--image-size=32", status=2)
    assert "started with other options (image_size 64, now 32)" in done.stderr
    table.write_text(table.read_text() + "http://another.test/,more\n")
    assert "the table is not the one" in build(web, table, out, status=2).stderr
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    assert "holds files of something else" in build(web, table, tmp_path / "full", status=2).stderr
    assert "does not exist" in build(web, tmp_path / "nowhere.csv", tmp_path / "new", status=2).stderr
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("option", "expected"),
    [
        ("--resolve=x", "'x' is not of the form host:port:address"),
        ("--ca-file=nope.pem", "ca_file 'nope.pem' is not a file of certificates"),
    ],
)
def test_an_option_that_no_worker_can_use_is_one_line_before_there_is_a_folder(web, table, tmp_path, option, expected):
    (line,) = build(web, table, tmp_path / "out", option, status=2).stderr.splitlines()
    assert expected in line
    assert not (tmp_path / "out").exists()


UNGUARDED = """
import sys
from pathlib import Path
from diptych_shards.shard_build.build import build
from diptych_shards.shard_build.options import BuildOptions
from diptych_shards.shard_build.build_progress import BuildProgress
from diptych_shards.run import worker_pool
from diptych_shards.run.engine import LocalEngine
from diptych_shards.tables.columns import ColumnOptions
from diptych_shards.tables.table import open_table
table = open_table([sys.argv[1]], ColumnOptions())
worker_pool.MAX_FAILED_STARTS = 0
build(table, Path(sys.argv[2]), BuildOptions(), LocalEngine(1), BuildProgress())
"""


def test_a_script_without_a_main_guard_is_named_as_the_cause(table, tmp_path):
    script = tmp_path / "unguarded.py"
    script.write_text(UNGUARDED)
    command = [sys.executable, str(script), str(table), str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    *_, line = done.stderr.splitlines()
    assert done.returncode == 1 and "UserError" in line and "if __name__ == '__main__'" in line


def test_a_second_pass_tries_chosen_failures_and_keeps_the_rest(web, tmp_path):
    out = tmp_path / "out"
    names = [*sorted(web.pictures)[:12], "truncated_once", "not_found"]
    table = write_table(tmp_path / "table.csv", [(web.url(name), name) for name in names])
    web.requests.clear()
    first = build(web, table, out, "--retries=0", "--ignore-robots-txt")
    assert "truncated_body" in first.stdout and "http_404" in first.stdout
    before = contents(out)
    web.requests.clear()
    build(web, table, out, "--retries=0", "--ignore-robots-txt", "--retry-failed=http_503")
    assert contents(out) == before and not web.requests
    web.requests[:] = [("truncated-once.test", "/picture.jpg")]  # what the first pass had asked for
    build(web, table, out, "--retries=0", "--ignore-robots-txt", "--retry-failed=truncated_body")
    assert [host for host, _ in web.requests[1:]] == ["truncated-once.test"]
    messages = [row["error_message"] for row in rows_of(out)]  # what arrives at last is not a picture
    assert messages == [None] * 12 + ["Image decoding error", "HTTP Error 404: Not Found"]
    assert len(open_index(out)) == 12


def test_a_second_pass_killed_at_any_moment_loses_no_picture(warm, web, tmp_path, monkeypatch):
    out, whole = tmp_path / "out", tmp_path / "whole"
    names = [*sorted(web.pictures)[:30], "not_found"]
    table = write_table(tmp_path / "table.csv", [(web.url(name), name) for name in names])
    options = ("--ignore-robots-txt", "--rows-per-shard=100")
    build(web, table, whole, *options)
    kill_at = "from diptych_shards.shard_build.journal import Journal as J\nimport os\n" \
        "append = J.append\nleft = [{}]\n" \
        "def dying(*a, **k):\n    left[0] -= 1\n    if left[0] < 0: os.kill(os.getppid(), 9); os._exit(9)\n" \
        "    append(*a, **k)\nJ.append = dying\n"  # fmt: skip
    for moment in (0, 1, 17, 30) if os.environ.get("NIGHTLY") else (0, 17):
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(whole, out)
        web.requests.clear()
        in_every_worker(monkeypatch, tmp_path, kill_at.format(moment))
        killed = start(warm, web, table, out, *options, "--retry-failed=http_404")
        assert killed.wait() == -signal.SIGKILL
        (tmp_path / "sitecustomize.py").unlink()
        build(web, table, out, *options, "--retry-failed=http_404")
        assert {host for host, _ in web.requests} <= {"not-found.test"}
        assert contents(out) == contents(whole)


def test_rows_are_spread_over_the_shards_and_a_build_in_the_tables_order_goes_on_in_it(web, table, tmp_path):
    command = [word for word in arguments(web, table, tmp_path / "spread") if word != "--keep-order"]
    assert main(command) == 0
    index = open_index(tmp_path / "spread")
    captions = [index.read(sample, "txt")["txt"].decode() for sample in index.samples()]
    assert sorted(captions) == [f"picture {name}" for name in sorted(web.pictures)] != captions
    kept = tmp_path / "kept"
    build(web, table, kept)
    before = contents(kept)
    (kept / "00001_stats.json").unlink()
    assert main([str(kept) if word == str(tmp_path / "spread") else word for word in command]) == 0
    assert contents(kept) == before
    assert main([*command, "--keep-order"]) == 2


def test_the_way_out_that_is_named_if_all_addresses_are_refused_works(tmp_path, web, capsys):
    url = web.url("000.jpg").replace("pictures.test", "127.0.0.1")
    table = write_table(tmp_path / "table.csv", [(url, "a picture")])
    command = ["build", str(table), str(tmp_path / "out"), "--ignore-robots-txt", "--processes=1"]
    assert main(command) == 2
    *_, line = capsys.readouterr().err.splitlines()
    named = re.findall(r"--allow-network \w+|--retry-failed \w+", line)
    assert named == ["--allow-network localhost", "--retry-failed address_not_public"]
    main([*command, *(word for option in named for word in option.split())])
    assert "address_not_public" not in capsys.readouterr().out


def test_a_second_pass_always_takes_what_was_not_asked_for(web, tmp_path):
    out = tmp_path / "out"
    rows = [(web.url("retry_next_hour", f"/{number}.jpg"), "a caption") for number in range(6)]
    table = write_table(tmp_path / "table.csv", [*rows, (web.url("000.jpg"), "a picture")])
    printed = build(web, table, out, "--ignore-robots-txt").stdout
    assert "1   14.3 %  http_429" in printed and "5   71.4 %  host_given_up" in printed
    web.requests.clear()
    build(web, table, out, "--ignore-robots-txt", "--retry-failed=http_404")
    assert {host for host, _ in web.requests} == {"retry-next-hour.test"}


def test_neighbouring_failures_cost_no_other_row_in_any_number_of_processes(web, tmp_path):
    bad = {"/011.jpg": "truncated", "/012.jpg": "truncated", "/031.jpg": "no_answer", "/032.jpg": "reset_at_once",
           "/049.jpg": "unavailable", "/050.jpg": "unavailable"}  # fmt: skip
    web.trouble = bad.get
    names = sorted(web.pictures)
    table = write_table(tmp_path / "table.csv", [(web.url("troubled", f"/{name}"), name) for name in names])
    for processes in (1, 3):
        out = tmp_path / f"by_{processes}"
        build(web, table, out, f"--processes={processes}")
        failures = {
            names[ROWS_PER_SHARD * number + row]: reason
            for number in range(NUM_PICTURES // ROWS_PER_SHARD)
            for reason, failed in read_failures(out, number, OutputOptions()).items()
            for row in failed
        }
        assert failures == {
            "011.jpg": "truncated_body", "012.jpg": "truncated_body", "031.jpg": "no_answer",
            "032.jpg": "connection_reset", "049.jpg": "http_503", "050.jpg": "http_503",
        }  # fmt: skip


def test_hosts_that_are_down_for_a_while_cost_nothing_killed_or_not(warm, web, tmp_path):
    with HostileWeb(web.pictures) as other:
        names = sorted(web.pictures)
        webs = {web: "reset_at_once", other: "unavailable"}
        rows = [(each.url("troubled", f"/{name}"), name) for each in webs for name in names[::2]]
        table = write_table(tmp_path / "table.csv", rows)
        resolve = [f"--resolve={entry}" for entry in other.resolve]
        web.trouble = lambda path: None
        build(web, table, tmp_path / "whole", *resolve)
        down = {}

        def trouble(each, asked=0):
            def kind(path):
                nonlocal asked
                asked += 1
                if asked == 10:
                    down[each] = time.monotonic()
                return webs[each] if each in down and time.monotonic() - down[each] < 2.5 else None

            return kind

        for each in webs:
            each.trouble = trouble(each)
        out = tmp_path / "out"
        process = start(warm, web, table, out, *resolve)
        process.wait_until(lambda: len(down) == 2)
        time.sleep(1.0)
        process.signal_group(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        build(web, table, out, *resolve)
    assert contents(out) == contents(tmp_path / "whole")
    assert len(open_index(out)) == NUM_PICTURES


def test_a_url_with_many_captions_is_fetched_once(web, tmp_path):
    name = sorted(web.pictures)[0]
    table = write_table(tmp_path / "table.csv", [(web.url(name), f"caption {n}") for n in range(5)])
    web.requests.clear()
    build(web, table, tmp_path / "out")
    assert Counter(path for _, path in web.requests)[f"/{name}"] == 1
    assert [row["caption"] for row in rows_of(tmp_path / "out")] == [f"caption {n}" for n in range(5)]


def test_nobody_is_asked_for_a_picture_without_a_caption(web, tmp_path):
    asked, *others = sorted(web.pictures)[: ROWS_PER_SHARD + 3]
    rows = [{"url": web.url(asked), "caption": "a caption"}]
    rows += [{"url": web.url(name), "caption": None if n % 2 else "\t "} for n, name in enumerate(others)]
    table = tmp_path / "table.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    web.requests.clear()
    printed = build(web, table, tmp_path / "out").stdout
    assert {path for _, path in web.requests} == {"/robots.txt", f"/{asked}"}
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["success"] + ["failed_to_download"] * len(others)
    assert "empty_caption" in printed and "no_caption" in printed
    assert len(open_index(tmp_path / "out")) == 1


def test_pictures_on_a_block_list_are_refused(web, tmp_path):
    names = sorted(web.pictures)[:3]
    table = write_table(tmp_path / "table.csv", [(web.url(name), name) for name in names])
    digests = tmp_path / "digests.txt"
    digests.write_text(hashlib.sha256(web.pictures[names[1]]).hexdigest() + "\n")
    build(web, table, tmp_path / "out", f"--block-sha256={digests}")
    assert [row["status"] for row in rows_of(tmp_path / "out")] == ["success", "failed_to_download", "success"]
    digests.write_text("not a digest\n")
    done = build(web, table, tmp_path / "other", f"--block-sha256={digests}", status=2)
    assert "line 1 is 'not a digest'" in done.stderr


def test_every_hostile_host_has_its_reason_and_the_run_ends(warm, web, tmp_path):
    name = sorted(web.pictures)[0]
    others = set(HOSTILE) - ENDLESS
    running = []
    for hosts, timeout_seconds in ((ENDLESS, 4), (others, 60)):
        rows = [(web.url(name), "good"), *((web.url(host), host) for host in sorted(hosts))]
        table = write_table(tmp_path / f"timeout_{timeout_seconds}.csv", rows)
        options = (f"--timeout={timeout_seconds}", "--retries=1", "--max-bytes=1000000", "--rows-per-shard=1000")
        out = tmp_path / f"timeout_{timeout_seconds}"
        running.append((start(warm, web, table, out, f"--ca-file={web.certificate}", *options), rows, out))
    reason = {}
    for process, rows, out in running:
        assert process.wait() == 0 and "Traceback" not in process.said, process.said
        for each, failed in read_failures(out, 0, OutputOptions()).items():
            reason |= {rows[row][1]: each for row in failed}
    assert set(reason) == set(HOSTILE)
    assert {reason[host] for host in ENDLESS} == {"headers_too_slow", "timeout"}
    assert {host for host in others if reason[host] in ("not_a_picture", "decode_error", "truncated")} >= ANSWERED
    assert reason["pixel_bomb"] == "too_many_pixels"
    for host in ("redirect_to_loopback", "rebinding", "redirect_to_decimal"):
        assert reason[host] == "address_not_public"
    assert web.refused_visits == 0
    assert {path.stem for path in tmp_path.iterdir()} == {"timeout_4", "timeout_60"}
