"""The demo's web site: a crawl finds every card on it, and nothing else becomes a sample."""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections import Counter
from urllib.error import HTTPError

import pytest

from diptych.data.shards import open_index
from diptych.demo.cards import draw_cards
from diptych.demo.crawl import MAX_CLICKS, crawl, serve, serve_at_remembered_port
from diptych.demo.funnel import read_funnel
from diptych.demo.site import DemoSite
from diptych.report.page import parse_funnel
from diptych_shards.cli import main as diptych_shards
from tests.data_prep.extract.crawls import page_record, warc_gz, write


@pytest.fixture(scope="module")
def cards(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cards")
    draw_cards(folder, 3, train_per_class=1, seen_per_class=0, unseen_per_class=0, picture_size=24, processes=1)
    return folder / "train"


def test_every_card_of_the_site_becomes_a_sample_and_nothing_else(cards, tmp_path):
    captions = {path.stem: path.read_text().strip() for path in cards.glob("*.txt")}
    warc, pairs, kept, shards = (tmp_path / name for name in ("crawl.warc.gz", "pairs", "kept", "shards"))

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", "diptych_shards", *map(str, words)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr

    with serve(DemoSite(cards, 3)) as address:
        num_pages = crawl(address, warc)
        run("extract", warc, pairs)
        run("curate", pairs, kept)
        run(*("build", kept, shards, "--allow-network=127.0.0.1/32", "--per-host=16", "--resize-mode=no"),
            *("--encode-format=png", "--skip-reencode"))  # fmt: skip
    assert 40 < num_pages < 40 + len(captions) // 100 + MAX_CLICKS + 5  # the crawl of the calendar ends

    index = open_index(shards)
    stored = Counter()
    for sample in index.samples():
        data = index.read(sample)
        stored[data["txt"].decode(), data["png"]] += 1
    assert stored == Counter((caption, (cards / f"{name}.png").read_bytes()) for name, caption in captions.items())

    funnel = read_funnel(pairs, kept, shards)
    sizes = [stage["kept"] for stage in funnel]
    assert sizes == sorted(sizes, reverse=True) and sizes[-1] == len(captions)
    for before, after in zip(funnel, funnel[1:], strict=False):
        assert before["kept"] == after["kept"] + sum(after["dropped"].values())


def test_a_picture_with_two_captions_is_two_pairs_at_every_stage_of_the_funnel(tmp_path):
    page = """<figure><img src="/a.png" alt="a red dog"><figcaption>Rex in our garden</figcaption></figure>
              <img src="/b.png">"""
    write(tmp_path, "crawl.warc.gz", warc_gz(page_record(page)))
    pairs, kept, shards = (tmp_path / name for name in ("pairs", "kept", "shards"))
    for words in (["extract", tmp_path / "crawl.warc.gz", pairs], ["curate", pairs, kept]):
        assert diptych_shards([*map(str, words), "--processes", "1"]) == 0
    (shards / "_index").mkdir(parents=True)
    (shards / "_index" / "build.json").write_text('{"outcomes": {"success": 1, "http_404": 1}}')
    assert [(stage["stage"], stage["kept"], stage["dropped"]) for stage in read_funnel(pairs, kept, shards)] == [
        ("pictures on the pages, once for each caption", 3, {}),
        ("pairs with a caption (extract)", 2, {"no caption": 1}),
        ("pairs worth fetching (curate)", 2, {}),
        ("pairs fetched and sound (build)", 1, {"http_404": 1}),
    ]


def test_an_address_is_used_again_if_its_port_is_free(cards, tmp_path):
    site, memory, made = DemoSite(cards, 3), tmp_path / "port.txt", tmp_path / "pairs"
    with serve_at_remembered_port(site, memory, [made]) as first:
        made.mkdir()
    with serve_at_remembered_port(site, memory, [made]) as again:
        assert again == first and made.exists()
        with serve_at_remembered_port(site, memory, [made]) as elsewhere:  # another program uses the port
            assert elsewhere != first and not made.exists()


def test_the_site_answers_404_for_what_does_not_exist(cards):
    with serve(DemoSite(cards, 3)) as address:
        for path in ("nowhere.html", "cards/99999.png", "cards/00000_missing.png"):
            with pytest.raises(HTTPError, match="404") as caught:
                urllib.request.urlopen(address + path)
            caught.value.close()


@pytest.mark.parametrize("text", ["{", "[]", '{"stage": 1}', '[{"stage": "x"}]', '[{"stage": "x", "kept": "many"}]'])
def test_a_funnel_of_another_form_is_refused(text):
    with pytest.raises(ValueError, match="funnel"):
        parse_funnel(text)
