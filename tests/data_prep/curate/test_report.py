"""The page about what was kept."""

import re
from html.parser import HTMLParser

import numpy as np

from diptych_shards.cli import main
from diptych_shards.curate.report import head_and_tail
from tests.data_prep.curate.pairs import curate, report, write_lines, write_pairs

HOSTILE = [
    "a dog <script>alert(1)</script>",
    'a dog" onmouseover="alert(1)',
    "a dog </title><img src=x onerror=alert(1)>",
    "a dog {{ 7*7 }} {% raw %}",
    "a dog \u202egnp.exe",
    "IMG_1<svg/onload=alert(1)>.jpg",
]


class Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.attributes, self.links, self.ids, self.text = set(), set(), [], [], ""

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attributes}
        self.links += [value for name, value in attributes if name == "href"]
        self.ids += [value for name, value in attributes if tag == "section" and name == "id"]

    def handle_data(self, data):
        self.text += data


def test_captions_are_inert_and_the_page_needs_nothing_from_elsewhere(tmp_path):
    table = write_pairs(tmp_path / "in.parquet", [(f"https://a.org/{n}", text) for n, text in enumerate(HOSTILE)])
    queries = write_lines(tmp_path / "queries.txt", ["dog", "<script>alert(2)</script>", "a"])
    assert curate(table, tmp_path / "out", "--queries", queries, "--skip", "markup") == 0
    text = (tmp_path / "out" / "_index" / "report.html").read_text(encoding="utf-8")
    page = Page()
    page.feed(text)
    assert not page.tags & {"script", "img", "iframe", "link", "object"}
    assert not any(name.startswith("on") or name == "src" for name in page.attributes)
    assert page.links and all(link.removeprefix("#") in page.ids for link in page.links)
    assert "\u202e" not in text and "&lt;script&gt;alert(1)" in text
    assert "default-src &#39;none&#39;" in text or "default-src 'none'" in text
    assert "polyline" in page.tags


def test_the_command_for_reports_of_shards_names_this_page(tmp_path, capsys):
    table = write_pairs(tmp_path / "in.parquet", [("https://a.org/1", "a dog in the snow")])
    assert curate(table, tmp_path / "out") == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "out")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("out/_index/report.html") and "holds pairs, not shards" in line


def test_examples_are_different_captions_and_say_how_often_they_come(tmp_path):
    texts = ["click here"] * 30 + ["IMG_0815.jpg"] * 3 + ["IMG_2.jpg"] + [f"a dog number {10**n}" for n in range(9)]
    pairs = [(f"https://host{n % 3}.org/{n}", text) for n, text in enumerate(texts)]
    table = write_pairs(tmp_path / "in.parquet", pairs)
    assert curate(table, tmp_path / "out", "--seed", "7") == 0
    summary = report(tmp_path / "out")
    assert summary["examples"]["file_name"] == ["IMG_0815.jpg", "IMG_2.jpg"]
    assert summary["examples"]["boilerplate"] == ["click here"]
    page = Page()
    page.feed((tmp_path / "out" / "_index" / "report.html").read_text(encoding="utf-8"))
    text = " ".join(page.text.split())
    assert "click here 30 ×" in text and "IMG_0815.jpg 3 × IMG_2.jpg" in text
    assert "host0.org" in text and "seed 7" in text and re.search(r"as of \d+ \w+ \d{4},", text)
    assert "Caption lengths" in text and "ictures" not in text.rpartition("Text is shown")[2]


def test_the_report_counts_every_pair_once(tmp_path):
    pairs = [(f"https://a.org/{n}", f"a dog number {n}") for n in range(20)] + [("x", "no"), ("https://a.org", "")]
    table = write_pairs(tmp_path / "in.parquet", pairs)
    queries = write_lines(tmp_path / "queries.txt", ["dog", "cat", "number 7"])
    assert curate(table, tmp_path / "out", "--queries", queries, "--pairs-per-query", "5") == 0
    summary = report(tmp_path / "out")
    assert summary["pairs"] == summary["kept"] + sum(summary["rules"].values()) == 22
    about = summary["queries"]
    assert (about["queries"], about["without_a_pair"], about["over_pairs_per_query"]) == (3, 1, 1)
    assert about["matches"] == 21
    assert [entry["query"] for entry in about["largest"]] == ["dog", "number 7"]
    assert about["largest"][1] == {"query": "number 7", "pairs": 1, "kept": 1}


def test_the_curve_goes_from_head_to_tail():
    counts = np.array([5, 0, 10_000, 100, 1])
    curves = head_and_tail(counts, np.minimum(counts, 50), 50)
    before, after = ([tuple(map(float, p.split(","))) for p in line.points.split()] for line in curves.lines)
    assert [x for x, _ in before] == sorted(x for x, _ in before) and len(before) == 4
    assert [y for _, y in before] == sorted(y for _, y in before)  # down the page, fewer pairs
    assert all(low >= high for (_, low), (_, high) in zip(after, before, strict=True))
    assert curves.level == (after[0][1], "50 pairs per query")
    assert head_and_tail(counts, counts, 10**5).level is None  # above the plot
    assert [label for _, label in curves.y_ticks] == ["1", "10", "100", "1k", "10k"]
    assert not re.search("nan|inf", "".join(line.points for line in curves.lines))
    assert head_and_tail(np.zeros(3, int), np.zeros(3, int), 5) is None
    assert head_and_tail(np.array([7, 0]), np.array([7, 0]), 5) is None  # One point is no curve.


def test_one_pair_and_one_query_are_written_as_one(tmp_path, capsys):
    table = write_pairs(tmp_path / "in.parquet", [("https://a.org/1", "a dog on the green grass")])
    queries = write_lines(tmp_path / "queries.txt", ["dog"])
    assert curate(table, tmp_path / "out", "--queries", queries) == 0
    assert "kept 1 of 1 pair:" in capsys.readouterr().out
    shown = Page()
    shown.feed((tmp_path / "out" / "_index" / "report.html").read_text(encoding="utf-8"))
    assert "none dropped" in shown.text and "0 of 1 query have more than" in shown.text
    assert not re.search(r"(?<![\d,.])1 (pairs|queries|reasons)", shown.text)
