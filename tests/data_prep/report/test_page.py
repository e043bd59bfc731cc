"""The page of `diptych-shards report`, read as a browser reads it."""

import base64
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
from html.parser import HTMLParser

import pyarrow
import pyarrow.parquet as parquet
import pytest
from PIL import Image

from diptych.data.shard_writer import ShardWriter
from diptych_shards.cli import main
from diptych_shards.report.gather import gather
from diptych_shards.report.rows import open_results
from tests.data_prep.conftest import HOSTILE_CAPTIONS, HOSTILE_URLS
from tests.data_prep.made_pictures import encoded, scene

pytestmark = pytest.mark.usefixtures("forked_workers")

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """The elements and the texts of a page."""

    def __init__(self, html: str):
        super().__init__()
        self.html = html
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def report(out, *options) -> Page:
    assert main(["report", str(out), *options]) == 0
    return Page((out / "_index" / "report.html").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def out(built, tmp_path_factory):
    copy = tmp_path_factory.mktemp("reported") / "out <b>&"
    shutil.copytree(built, copy)
    return copy


@pytest.fixture(scope="module")
def page(out):
    return report(out)


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("packed")
    (folder / "in").mkdir()
    for number in range(5):
        (folder / "in" / f"{number} <i>.jpg").write_bytes(encoded(scene(60 + number, 50)))
        (folder / "in" / f"{number} <i>.txt").write_text(HOSTILE_CAPTIONS[number])
    (folder / "in" / "cut.jpg").write_bytes(encoded(scene(60, 50))[:-100])
    (folder / "in" / "cut.txt").write_text("a picture")
    assert main(["pack", str(folder / "in"), str(folder / "out")]) == 0
    return folder / "out"


def test_the_command_prints_where_the_page_is(out, capsys):
    assert main(["report", str(out)]) == 0
    assert capsys.readouterr().out == f"{out}/_index/report.html\n"


def test_the_page_runs_nothing_loads_nothing_and_leads_nowhere(page):
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "link", "iframe", "object", "embed", "form", "base", "video", "audio"}
    for tag, attributes in page.elements:
        assert not [name for name in attributes if name.startswith("on") or name in ("srcset", "action")]
        assert re.fullmatch("#[a-z]+", attributes.get("href", "#a"))  # within the page
        assert ("src" in attributes) == (tag == "img")
    assert all(image["src"].startswith("data:image/webp;base64,") for image in page.all("img"))
    assert "url(" not in page.html and "@import" not in page.html
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none';") and "script-src" not in policy


def test_every_hostile_caption_is_there_as_text_and_nothing_more(page):
    for caption in HOSTILE_CAPTIONS:
        assert (
            caption.translate({0x202E: "⟨U+202E⟩", 0x202C: "⟨U+202C⟩", 0x1B: "⟨U+001B⟩", 7: "⟨U+0007⟩", 10: "↵"})
            in page.text
        )
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", page.html)


def test_refused_urls_are_shown_as_text_under_their_reason(page):
    for url in HOSTILE_URLS:
        assert url.replace("\u202e", "⟨U+202E⟩") in page.text
    assert "/3.jpg HTTP Error 404: Not Found" in page.text


def test_the_funnel_counts_down_from_the_table_to_what_was_kept(page):
    text = page.text[page.text.index("How many rows reached each stage") : page.text.index("Why not")]
    expected = (
        "rows of the table 24 · 100 % "
        "allowed to be requested 22 · 91.7 % −2 address_not_public 1, scheme_not_allowed 1 "
        "gave a file 18 · 75.0 % −4 http_404 kept 18 · 75.0 %"
    )
    assert text.endswith(f"{expected} ")


def test_rows_are_counted_by_domain(page):
    text = page.text[page.text.index("Most frequent") : page.text.index("Most rows lost")]
    assert text.strip().endswith("pictures.test 18 100 % not-found.test 4 0 % (no host) 1 0 % 10.0.0.1 1 0 %")


def test_pictures_are_small_copies_encoded_again(page):
    images = page.all("img")
    assert len(images) == 18 + 4 * 6
    for image in images:
        with Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))) as picture:
            assert picture.format == "WEBP" and max(picture.size) <= 300
            assert not picture.info.keys() & {"exif", "icc_profile", "xmp"}


def test_bars_of_each_chart_add_up_to_all_kept_pictures(page):
    charts = page.html.split('<figure class="chart">')[1:]
    assert len(charts) == 4  # stored sizes differ, but only in how much is white: all are 64 x 64
    for chart in charts:
        assert sum(map(int, re.findall(r": (\d+) \([\d.]+\u202f%\)</title>", chart))) == 18


def test_equal_outputs_give_equal_pages_and_a_seed_draws_others(out, tmp_path):
    pages = []
    for number, options in enumerate((["--seed", "1"], ["--seed", "1"], ["--seed", "2"])):
        assert main(["report", str(out), "--pictures", "5", "--to", str(tmp_path / str(number)), *options]) == 0
        pages.append((tmp_path / str(number)).read_bytes())
    assert pages[0] == pages[1] != pages[2]


def test_the_output_is_only_read_where_the_page_goes_elsewhere(built, tmp_path):
    before = {path: path.stat().st_mtime_ns for path in built.rglob("*")}
    assert main(["report", str(built), "--to", str(tmp_path / "page.html")]) == 0
    assert {path: path.stat().st_mtime_ns for path in built.rglob("*")} == before
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


def test_a_damaged_picture_is_left_out_and_a_damaged_shard_is_named(out, tmp_path, capsys):
    shutil.copytree(out, tmp_path / "out")
    shutil.copyfile(out / "00002.tar", tmp_path / "tar")
    data = bytearray((out / "00002.tar").read_bytes())
    data[512:1024] = bytes(512)
    (tmp_path / "out" / "00002.tar").write_bytes(data)
    (tmp_path / "out" / "00001.tar").write_bytes(b"")
    page = report(tmp_path / "out")
    assert "1 shard is not whole and left out here: 00001.tar; diptych-shards verify says why." in page.text
    assert capsys.readouterr().err == (
        f"1 shard is not whole and left out here: {tmp_path}/out/00001.tar; diptych-shards verify says why\n"
    )
    assert "cannot be read; see diptych-shards verify" in page.text
    assert len(page.all("img")) > 8


def test_a_damaged_table_of_a_build_is_one_line_and_no_page(built, tmp_path, capsys):
    shutil.copytree(built, tmp_path / "out")
    table = tmp_path / "out" / "00001.parquet"
    table.write_bytes(table.read_bytes()[:4] + bytes(table.stat().st_size - 4))
    assert main(["report", str(tmp_path / "out")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"diptych-shards: {table} is damaged: ") and "start the same build again" in error
    assert not (tmp_path / "out" / "_index" / "report.html").exists()


@pytest.mark.parametrize("state", ["pack.json", None])
def test_shards_that_are_truncated_or_lack_a_valid_index_are_named_and_left_out(tmp_path, capsys, state):
    for number in range(3):
        with ShardWriter(tmp_path / "out", number) as writer:
            writer.add("000", {"jpg": encoded(scene(60 + number, 50)), "txt": b"a picture"})
    if state:
        (tmp_path / "out" / "_index" / state).write_text('{"options": {}, "finished": false}')
    broken = tmp_path / "out" / "00001.tar", tmp_path / "out" / "_index" / "00002.tar.index"
    for path in broken:
        path.write_bytes(path.read_bytes()[:-1])
    page = report(tmp_path / "out")
    line = "2 shards are not whole and left out here: {}00001.tar and others; diptych-shards verify says why"
    assert line.format("") in page.text and len(page.all("img")) == 1
    assert ("Not finished" in page.text) == bool(state)
    assert capsys.readouterr().err.splitlines() == [line.format(f"{tmp_path}/out/")]
    (tmp_path / "out" / "00000.tar").write_bytes(b"")
    (tmp_path / "out" / "_index" / "report.html").unlink()
    assert main(["report", str(tmp_path / "out")]) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert error.startswith(f"diptych-shards: {tmp_path}/out/00000.tar has 0 bytes") and "it is truncated" in error
    assert not (tmp_path / "out" / "_index" / "report.html").exists()


def test_a_pack_has_its_page_too(packed):
    page = report(packed)
    assert "files and captions found 6 · 100 % packed 5 · 83.3 % −1 truncated" in page.text
    assert "0 <i>.jpg" in page.text and HOSTILE_CAPTIONS[0] in page.text
    assert "truncated" in page.text and "Domains" not in page.text
    assert len(page.all("img")) == 5 + 3 * 5  # all are as high as the others, so none is the smallest
    assert re.search(r"From pictures with captions to shards, \d+ \w+ \d{4}\.", page.text)


def selected(shards, out, where):
    assert main(["filter", str(shards), "--where", where, "--processes", "1"]) == 0
    assert main(["select", str(shards), str(out), "--processes", "1"]) == 0
    return out


def test_what_select_kept_has_a_page_that_says_what_it_does_not_know(built, tmp_path):
    shutil.copytree(built, tmp_path / "built")
    page = report(selected(tmp_path / "built", tmp_path / "out", "caption != 'picture 11'"))
    assert "Shards that select wrote. Not known: what was left out before, and why." in page.text
    assert "Most frequent" not in page.text and "domains 1 pictures.test" in page.text
    assert "pictures 17" in page.text and "Shorter side, original" in page.text and "verdicts filter" in page.text
    assert "refused" not in page.text and "Why not" not in page.text and "Not finished" not in page.text
    assert len(page.all("img")) == 17 + 4 * 6


def test_sizes_that_became_doubles_are_sizes(built, tmp_path):
    shutil.copytree(built, tmp_path / "built")
    out = selected(tmp_path / "built", tmp_path / "out", "length(caption) > 0")
    before = report(out).text
    for path in out.glob("*.parquet"):
        table = parquet.read_table(path)
        for name in ("width", "height", "original_width", "original_height"):
            doubles = table[name].cast(pyarrow.float64())
            table = table.set_column(table.column_names.index(name), name, doubles)
        parquet.write_table(table, path)
    assert "Shorter side, original" in report(out).text
    assert report(out).text == before


def test_a_select_that_was_stopped_has_a_page_that_says_so(packed, tmp_path):
    shutil.copytree(packed, tmp_path / "packed")
    out = selected(tmp_path / "packed", tmp_path / "out", "width > 0")
    state = out / "_index" / "select.json"
    assert "pictures 5" in report(out).text and "0 <i>.jpg" in report(out).text
    state.write_text(json.dumps(json.loads(state.read_text()) | {"finished": False}))
    assert "Not finished" in report(out).text


def test_shards_without_a_history_have_a_page_too(tmp_path):
    picture = encoded(scene(60, 50))
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for name, data in (("x.jpg", picture), ("y.jpg", picture)):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    assert main(["index", str(tmp_path)]) == 0
    page = report(tmp_path)
    assert (
        "Shards whose history is not recorded. Not known: what was left out before, and why; captions; sizes; where "
        "they came from." in page.text
    )
    assert len(page.all("img")) == 3 and "Options" not in page.text
    assert "The same file many times 2 times" in page.text


def test_a_picture_with_an_empty_caption_is_shown_as_such(tmp_path):
    with ShardWriter(tmp_path, 0) as writer:
        writer.add("000", {"jpg": encoded(scene(60, 50)), "txt": b"", "json": b'{"caption": ""}'})
    assert "empty caption" in report(tmp_path).text


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        ("nowhere", [], "nowhere does not exist"),
        ("empty", [], "empty holds no shards; name the folder of a build"),
        ("broken", [], "build.json is damaged"),
        ("bare", [], "a.tar has no index; diptych-shards index bare writes it"),
        ("out", ["--to", "empty"], "empty is a folder"),
        ("out", ["--to", "nowhere/page.html"], "nowhere/page.html cannot be written: there is no folder nowhere"),
    ],
)
def test_a_user_error_is_one_line_and_exit_status_2(out, tmp_path, monkeypatch, capsys, folder, options, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "a.tar").write_bytes(bytes(1024))
    (tmp_path / "broken" / "_index").mkdir(parents=True)
    (tmp_path / "broken" / "_index" / "build.json").write_text("[]")
    (tmp_path / "out").symlink_to(out)
    assert main(["report", folder, *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_an_output_without_a_finished_shard_has_a_page_that_says_so(built, tmp_path):
    (tmp_path / "_index").mkdir()
    state = (built / "_index" / "build.json").read_text()
    (tmp_path / "_index" / "build.json").write_text(state.replace('"finished": true', '"finished": false'))
    assert "Not finished" in report(tmp_path).text


def test_the_command_does_not_load_torch(out):
    program = "import sys, diptych_shards.cli as c; c.main(sys.argv[1:]); print({'torch', 'pandas'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program, "report", out], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "set()"


def test_a_picture_is_above_its_own_caption(built):
    source = open_results(built)
    examples = gather(source, pictures=18, seed=0).grids["random"].items
    assert len(examples) == 18
    for example in examples:
        with tarfile.open(source.tar(example.shard)) as tar:
            captions = [tar.extractfile(member).read().decode() for member in tar if member.name.endswith(".txt")]
        assert captions[example.sample] == example.caption
