import os
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from functools import partial

import pytest

from diptych.data.shard_index_file import folder_list_path
from diptych.data.shard_list import read_folder_list
from diptych_shards.cli import main
from diptych_shards.commands import index
from diptych_shards.run import progress
from tests.data_prep.test_pack import fill, pack

pytestmark = pytest.mark.usefixtures("forked_workers")


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    assert pack(fill(folder / "in", 6), folder / "out", "--samples-per-shard", "3") == 0
    return folder / "out"


def said(capsys):
    """The one line on stderr."""
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["pack", "nowhere", "out"], "nowhere does not exist"),
        (["pack", "file", "out"], "file is not a folder"),
        (["pack", "empty", "out"], "empty holds no picture"),
        (["pack", "in", "in/out"], "inside"),
        (["pack", "in", "in"], "inside"),
        (["pack", "in", "linked/out"], "inside"),
        (["pack", "in", "file/out"], "file"),
        (["pack", "in", "other"], "something else"),
        (["pack", "in", "tars"], "tars holds files of something else; name a new or empty folder"),
        (["pack", "in", "out", "--samples-per-shard", "0"], "samples_per_shard is 0"),
        (["pack", "in", "out", "--table", "no.csv"], "no.csv does not exist"),
        (["pack", "in", "out", "--table", "file"], "is not a table by its name; expected .parquet"),
        (["pack", "in", "out", "--table", "both.csv"], "--path-column"),
        (["pack", "in", "out", "--table", "two.csv", "--path-column", "x"], "no column 'x'"),
        (["pack", "in", "out", "--table", "empty.csv"], "is empty"),
        (["pack", "in", "out", "--table", "bad.parquet"], "not a readable parquet"),
        (["index", "nowhere"], "does not exist"),
        (["index", "empty"], "no .tar"),
        (["pakc", "in", "out"], "no command 'pakc'; did you mean pack?"),
        (["extract", "in", "--frist", "3", "out"], "no option --frist; did you mean --first?"),
        (["extract", "in", "--frist=3", "out"], "no option --frist; did you mean --first?"),
        (["pack", "in", "out", "--zzz"], "no option --zzz; diptych-shards pack -h lists the options"),
        (["pack", "in"], "required: OUT; diptych-shards pack -h"),
        (["extract", "in", "out", "--first", "no"], "--first: invalid"),
        (["extract", "in", "out", "--icon-side", "-3"], "icon_side is -3; it must be at least 0"),
        (["extract", "in", "out", "--engine", "rya"], "invalid choice: 'rya' (choose from"),
        (["extract", "in", "file", "--first", "1", "tars/out"], "in holds no .warc.gz"),
        (["shuffle", "in"], "no command 'shuffle'; there are build, "),
        (["build", "two.csv", "out", "--retry-failed", "tiemout"], "no reason 'tiemout'; did you mean timeout?"),
        (["build", "two.csv", "out", "--retry-failed", "all,http_5xx"], "no reason 'http_5xx'; "),
        (["build", "two.csv", "out", "--retry-failed", "htp_404"], "no reason 'htp_404'; did you mean http_404?"),
        (["build", "empty.csv", "out"], "empty.csv is empty; expected a line of column names"),
        (["build", "empty.jsonl", "out"], "empty.jsonl has no rows, and so no columns"),
        (["build", "urls.csv", "out", "--block-sha256", "binary"], "binary is not UTF-8 at byte 1; save it as UTF-8"),
        (["build", "urls.csv", "out", "--block-domains", "binary"], "binary is not UTF-8 at byte 1; save it as UTF-8"),
        (["build", "urls.csv", "out", "--block-domains", "none.txt"], "none.txt cannot be read: No such file"),
        (["build", "two.csv", "out", "--caption-column=none", "--url-column=image", "--timeout=nan"], "timeout"),
        (["build", "two.csv", "out", "--caption-column=none", "--url-column=image", "--image-size=0"], "image_size"),
        (["verify", "nowhere"], "nowhere does not exist; expected a folder of shards"),
        (["verify", "empty"], "no .tar"),
    ],
)
def test_a_user_error_is_one_line_and_exit_status_2(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "in", 1)
    for name in ("empty", "other", "tars", "tars/_index"):
        (tmp_path / name).mkdir()
    (tmp_path / "linked").symlink_to("in")
    for name in ("file", "other/file", "tars/00000.tar", "bad.parquet"):
        (tmp_path / name).write_text("x")
    (tmp_path / "two.csv").write_text("path,image,caption\n")
    (tmp_path / "both.csv").write_text("file,image,caption\n")
    (tmp_path / "urls.csv").write_text("url,caption\n")
    (tmp_path / "binary").write_bytes(b"a\xff\xfe")
    for name in ("empty.csv", "empty.jsonl"):
        (tmp_path / name).write_text("")
    assert main(arguments) == 2
    assert message in said(capsys)


def test_verify_reads_every_byte_and_finds_nothing_wrong(packed, capsys):
    assert main(["verify", str(packed)]) == 0
    assert "2 shards, 6 samples" in capsys.readouterr().out


def harm(data, offset):
    return data[:offset] + bytes([data[offset] ^ 1]) + data[offset + 1 :]


def test_verify_names_the_first_broken_member(packed, tmp_path, capsys):
    shutil.copytree(packed, tmp_path / "out")
    tar = tmp_path / "out" / "00001.tar"
    with tarfile.open(tar) as archive:
        member = archive.getmembers()[4]
    tar.write_bytes(harm(tar.read_bytes(), member.offset_data))
    assert main(["verify", str(tmp_path / "out")]) == 2
    assert f"00001.tar: {member.name}: at byte {member.offset_data}" in capsys.readouterr().err


def test_verify_finds_a_changed_header(packed, tmp_path, capsys):
    shutil.copytree(packed, tmp_path / "out")
    tar = tmp_path / "out" / "00000.tar"
    tar.write_bytes(harm(tar.read_bytes(), 3))
    assert main(["verify", str(tmp_path / "out")]) == 2
    assert "bytes between them" in capsys.readouterr().err


@pytest.mark.parametrize("gone", [["00001.tar"], ["_index/00001.tar.index"], ["00001.tar", "_index/00001.tar.index"]])
def test_verify_reports_a_shard_that_is_gone(packed, tmp_path, capsys, gone):
    shutil.copytree(packed, tmp_path / "out")
    for name in gone:
        (tmp_path / "out" / name).unlink()
    assert main(["verify", str(tmp_path / "out")]) == 2
    assert "diptych-shards:" in said(capsys)


def test_index_makes_third_party_shards_usable_and_does_it_once(packed, tmp_path, capsys):
    shutil.copy(packed / "00000.tar", tmp_path / "a.tar")
    assert main(["index", str(tmp_path)]) == 0
    before = (tmp_path / "_index" / "a.tar.index").stat().st_mtime_ns
    assert read_folder_list(tmp_path).samples.tolist() == [3]
    folder_list_path(tmp_path).unlink()
    assert main(["index", str(tmp_path)]) == 0
    assert (tmp_path / "_index" / "a.tar.index").stat().st_mtime_ns == before
    assert read_folder_list(tmp_path).samples.tolist() == [3]
    assert "1 shard, 3 samples" in capsys.readouterr().out
    assert main(["verify", str(tmp_path)]) == 0


def test_index_reads_all_tars_and_then_says_which_are_broken(packed, tmp_path, capsys):
    for name in "abcd":
        shutil.copy(packed / "00000.tar", tmp_path / f"{name}.tar")
    for name in "bc":
        with open(tmp_path / f"{name}.tar", "r+b") as file:
            file.truncate(3000)
    assert main(["index", str(tmp_path), "--processes", "2"]) == 2
    *named, last = capsys.readouterr().err.splitlines()
    assert [line.split(":")[0] for line in named] == [str(tmp_path / "b.tar"), str(tmp_path / "c.tar")]
    assert last.startswith("diptych-shards: 2 of 4 ") and "b.tar" in last
    assert sorted(path.name for path in (tmp_path / "_index").iterdir()) == ["a.tar.index", "d.tar.index"]


def test_index_reports_what_it_skips_and_how_far_it_is(packed, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)
    shutil.copy(packed / "00000.tar", tmp_path / "a.tar")
    with tarfile.open(tmp_path / "b.tar", "w:") as tar:
        tar.addfile(tarfile.TarInfo("b.txt"))
        tar.addfile(tarfile.TarInfo("b.pyd"))
    assert main(["index", str(tmp_path)]) == 0
    assert capsys.readouterr().err.splitlines() == [
        "1 of 2 shards",
        f"{tmp_path}/b.tar: skipped 1 suffix_not_allowed",
        "2 of 2 shards",
    ]
    assert main(["index", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""


def write_tar(path, members):
    with tarfile.open(path, "w:") as tar:
        for name in members:
            header = tarfile.TarInfo(name)
            if name.endswith("/"):
                header.type = tarfile.DIRTYPE
            tar.addfile(header)


def test_index_says_what_a_sample_is_where_there_is_none(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", ["readme.md"])
    assert main(["index", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"1 shard, 0 samples: {tmp_path}"
    write_tar(tmp_path / "b.tar", ["1.jpg"])
    assert main(["index", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"2 shards, 1 sample: {tmp_path}\n"


def test_index_names_the_one_broken_tar_once(tmp_path, capsys):
    (tmp_path / "a.tar").write_bytes(b"")
    assert main(["index", str(tmp_path)]) == 2
    assert capsys.readouterr().err == f"diptych-shards: {tmp_path}/a.tar: at byte 0: the file is empty\n"


def test_index_on_a_full_disk_names_the_tar_and_the_way_out(tmp_path):
    write_tar(tmp_path / "a.tar", ["1.jpg", "1.txt"])
    command = [sys.executable, "-m", "diptych_shards", "index", str(tmp_path)]
    no_files = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (16, 16))
    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=no_files)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert f"{tmp_path}/a.tar cannot be indexed: File too large; correct that" in line


def test_index_does_not_count_folders(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", ["./", "./b/", "b/a.txt"])
    assert main(["index", str(tmp_path)]) == 0
    assert "skipped" not in capsys.readouterr().err


def test_index_reports_keys_with_dots_and_members_that_are_not_neighbours(tmp_path, capsys):
    write_tar(tmp_path / "a.tar", ["img.0001.jpg", "img.0001.txt", "img.0002.jpg"])
    write_tar(tmp_path / "b.tar", ["1.jpg", "2.jpg", "1.txt", "2.txt"])
    assert main(["index", str(tmp_path)]) == 0
    a, b = (line for line in capsys.readouterr().err.splitlines() if ".tar" in line)
    assert "skipped 3 suffix_not_allowed; 3 names such as img.0001.jpg: all that follows the first dot" in a
    assert "2 keys such as 1 come again later, as samples of their own" in b and "neighbours" in b


@pytest.mark.parametrize("command", ["verify", "report"])
def test_commands_on_shards_of_another_tool_name_index(tmp_path, capsys, command):
    write_tar(tmp_path / "a.tar", ["1.jpg", "1.txt"])
    assert main([command, str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert f"diptych-shards index {tmp_path}" in said and len(said.splitlines()) == 1


def test_an_interrupted_index_resumes_with_the_tars_that_are_left(warm, packed, tmp_path):
    for number in range(100):
        shutil.copy(packed / "00000.tar", tmp_path / f"{number:03d}.tar")
    command = warm.start("index", tmp_path, "--processes", 1, program="diptych_shards")
    command.wait_until(lambda: list(tmp_path.glob("_index/*.index")))
    command.signal_group(signal.SIGINT)
    assert command.wait() == 130
    assert command.said == "interrupted; the same command resumes where this one stopped\n"
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("_index/*.index")}
    assert 0 < len(done) < 100
    assert main(["index", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("_index/*.tar.index"))) == 100
    assert done == {path: path.stat().st_mtime_ns for path in done}


@pytest.mark.parametrize("with_errors", [False, True])
@pytest.mark.parametrize("words", [["--help"], ["pack", "--help"], ["verify", "packed"], ["index", "nowhere"]])
def test_a_command_whose_reader_is_gone_ends_as_others_do(packed, words, with_errors, monkeypatch):
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # with it, argparse hides the broken pipe of its help
    reader, writer = os.pipe()
    os.close(reader)
    words = [str(packed) if word == "packed" else word for word in words]
    errors = writer if with_errors else subprocess.PIPE
    done = subprocess.run([sys.executable, "-m", "diptych_shards", *words], stdout=writer, stderr=errors, text=True)
    os.close(writer)
    if words == ["index", "nowhere"] and not with_errors:  # it has nothing to say there
        assert done.returncode == 2 and done.stderr.count("\n") == 1
    else:
        assert done.returncode == 141 and "Errno" not in (done.stderr or "") and "Traceback" not in (done.stderr or "")


@pytest.mark.parametrize(
    ("bug", "error"),
    [
        ("raise BrokenPipeError(32, 'Broken pipe')", BrokenPipeError),
        ("int('no number')", ValueError),
        ("open(1 << 20)", OSError),
        ("raise OSError('no name')", OSError),
        ("[][0]", IndexError),
        ("one, two = [1]", ValueError),
    ],
)
def test_a_bug_keeps_its_traceback(monkeypatch, bug, error):
    monkeypatch.setattr(index, "run", lambda chosen: exec(bug))
    with pytest.raises(error):
        main(["index", "x"])


def test_the_command_loads_neither_torch_nor_webdataset():
    program = (
        "import sys, diptych_shards.cli as cli, diptych_shards.pack.folder_input, diptych_shards.pack.table_input\n"
        "import diptych_shards.verify, diptych_shards.pack.examine\n"
        "for words in ['--help'], ['pack', '--help'], ['index', 'nowhere']:\n"
        "    try: cli.main(words)\n"
        "    except SystemExit: pass\n"
        "print(sorted({'torch', 'webdataset', 'pandas', 'deepspeed'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


REMOTE_OUTPUTS = [
    ["build", "urls.csv", "REMOTE"],
    ["pack", "in", "REMOTE"],
    ["extract", "page.warc", "REMOTE"],
    ["curate", "pairs.parquet", "REMOTE"],
    ["queries", "corpus.txt", "REMOTE"],
    ["select", "shards", "REMOTE"],
    ["preview", "shards", "--to", "REMOTE"],
    ["report", "shards", "--to", "REMOTE"],
    ["report", "REMOTE"],
    ["dedup", "REMOTE"],
    ["filter", "REMOTE", "--where", "width > 1"],
    ["index", "REMOTE"],
]
REMOTE_INPUTS = [
    ["pack", "REMOTE", "out"],
    ["pack", "in", "out", "--table", "REMOTE"],
    ["curate", "REMOTE", "out"],
    ["queries", "REMOTE", "out"],
    ["select", "REMOTE", "out"],
    ["dedup", "packed", "--against", "REMOTE"],
    ["dedup", "packed", "--embeddings", "REMOTE"],
]


@pytest.mark.parametrize("address", ["s3://bucket/out", "memory://out", "hf://datasets/me/out", "gs://b/o"])
@pytest.mark.parametrize("words", REMOTE_OUTPUTS + REMOTE_INPUTS, ids=" ".join)
def test_a_url_in_place_of_a_path_is_refused_before_anything_is_read_or_written(
    packed, tmp_path, monkeypatch, capsys, words, address
):
    monkeypatch.chdir(tmp_path)
    words = [{"REMOTE": address, "packed": str(packed)}.get(word, word) for word in words]
    before = sorted(packed.rglob("*"))
    assert main(words) == 2
    line = said(capsys)
    assert address in line and ("mounted folder" in line or "copy them here" in line) and "exist" not in line
    assert list(tmp_path.iterdir()) == []
    assert {path.name for path in packed.rglob("*")} - {path.name for path in before} <= {"select", "lock"}


def test_a_home_that_no_shell_has_expanded_is_expanded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    fill(tmp_path / "in", 1)
    assert main(["pack", "~/in", "~/out"]) == 0
    assert main(["report", "~/out", "--to=~/page.html"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out", "page.html"]


def test_one_sample_is_written_in_the_singular(tmp_path, capsys):
    pack(fill(tmp_path / "in", 1), tmp_path / "shards")
    capsys.readouterr()
    shards = str(tmp_path / "shards")
    assert main(["filter", shards, "--where", "width > 1", "--processes", "1"]) == 0
    assert main(["dedup", shards, "--processes", "1"]) == 0
    assert main(["select", shards, str(tmp_path / "out"), "--processes", "1"]) == 0
    said = capsys.readouterr()
    assert "filter: 1 of 1 sample is kept" in said.out and "dedup: 1 of 1 sample is kept" in said.out
    assert "1 of 1 sample is kept by dedup, filter" in said.out
    assert said.err.splitlines() == [f"00000.tar: 1 of 1 {noun}" for noun in ("sample", "picture", "sample")]
