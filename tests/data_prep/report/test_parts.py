"""The parts of the page of a report, one at a time."""

from collections import Counter

import numpy as np
import pyarrow
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diptych.data.shard_writer import ShardWriter
from diptych.data.shards import open_index
from diptych.pages.histograms import (
    MOST_DOUBLINGS,
    RATIO_STEPS,
    Tally,
    length_histogram,
    ratio_histogram,
    side_histogram,
)
from diptych.pages.template import visible
from diptych_shards.report import hosts
from diptych_shards.report.hosts import NO_HOST, Domains, registrable
from diptych_shards.report.reasons import MEANINGS, funnel, meaning
from diptych_shards.report.tally import LONGEST_CAPTION, RepeatedFiles, Smallest, shuffled_places


@given(st.lists(st.integers(0, 5), max_size=40), st.integers(0, 8), st.integers(1, 7))
def test_the_smallest_are_chosen_however_the_rows_are_cut(values, size, step):
    places = shuffled_places(0, 0, np.arange(len(values)))
    smallest = Smallest(size)
    for first in range(0, len(values), step):
        part = slice(first, first + step)
        smallest.offer(np.array(values[part]), places[part], lambda position, first=first: first + position)
    expected = sorted(range(len(values)), key=lambda number: (values[number], int(places[number])))[:size]
    assert smallest.items == expected


def test_a_draw_is_even_over_all_shards():
    drawn = Counter()
    for seed in range(400):
        sample = Smallest(5)
        for shard in range(10):
            places = shuffled_places(seed, shard, np.arange(20))
            sample.offer(np.zeros(20), places, lambda position, shard=shard: (shard, position))
        drawn.update(sample.items)
    assert len(drawn) == 200
    counts = np.array(list(drawn.values()))
    assert 0.6 < ((counts - 10) ** 2 / 10).mean() < 1.4  # chi-square over its 199 degrees of freedom: 1 ± 0.1


@given(st.text(st.characters()))
def test_nothing_hides_in_a_visible_text(text):
    shown = visible(text)
    shown.encode()
    assert not set(shown) & {chr(code) for code in [*range(32), *range(127, 160), *range(0x202A, 0x202F)]}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\u202eb", "a⟨U+202E⟩b"),
        ("a\nb\tc\x1b", "a↵b⇥c⟨U+001B⟩"),
        ("a\u00a0b \u3000", "a\u00a0b \u3000"),
        ("\ud800\u200b\ufeff", "⟨U+D800⟩⟨U+200B⟩⟨U+FEFF⟩"),
        ("👩\u200d👧 é مرحبا", "👩\u200d👧 é مرحبا"),
    ],
)
def test_invisible_characters_become_codes_and_visible_ones_stay(text, shown):
    assert visible(text) == shown


def test_a_long_text_is_cut():
    assert visible("x" * 50, 10) == "x" * 9 + "…"


@pytest.mark.parametrize(
    ("host", "domain"),
    [
        ("www.bbc.co.uk", "bbc.co.uk"),
        ("co.uk", "co.uk"),
        ("a.b.example.com.", "example.com"),
        ("example.com", "example.com"),
        ("cdn.example.de", "example.de"),
        ("localhost", "localhost"),
        ("10.1.2.3", "10.1.2.3"),
        ("[::1]", "[::1]"),
        ("", NO_HOST),
        ("x" * 300, NO_HOST),
    ],
)
def test_the_domain_is_what_someone_registered(host, domain):
    assert registrable(host) == domain


def test_hosts_are_found_in_urls_as_they_come():
    domains = Domains()
    urls = ["http://u:p@A.Example.com:80/x@y", "HTTPS://b.example.com?q", "http:\\\\example.com\\", "//example.com/",
            "http://[::1]:8/", "data:image/png;base64,http://example.com", "", "http://"]  # fmt: skip
    domains.add(pyarrow.array(urls), np.array([True, False, True, True, True, False, True, False]))
    assert [(each.name, each.kept, each.refused) for each in domains.most_frequent(9)] == [
        (NO_HOST, 2, 2), ("example.com", 2, 1), ("[::1]", 1, 0),
    ]  # fmt: skip


def test_domains_take_bounded_memory_and_lose_no_row(monkeypatch):
    monkeypatch.setattr(hosts, "MAX_DOMAINS", 10)
    domains = Domains()
    for number in range(50):
        urls = pyarrow.array(["http://often.com/", f"http://rare{number}.com/"])
        domains.add(urls, np.array([True, False]))
    number, is_all = domains.num
    assert number <= 20 and not is_all
    assert domains.most_frequent(1)[0].kept == 50
    assert sum(each.rows for each in domains.most_frequent(100)) + domains.rare.rows == 100


@given(st.lists(st.integers(0, 300), min_size=1, max_size=50))
def test_bars_hold_every_number_once_and_are_inside_the_chart(values):
    tally = Tally(LONGEST_CAPTION)
    tally.add(np.array(values))
    sides = Tally(LONGEST_CAPTION)
    sides.add(np.array(values) + 1)
    ratios = Tally(2 * MOST_DOUBLINGS * RATIO_STEPS)
    ratios.add(np.array(values) * 3)
    for chart in (length_histogram("", "words", tally), side_histogram("", sides), ratio_histogram("", ratios)):
        counts = [int(bar.title.rpartition(": ")[2].split(" ")[0]) for bar in chart.bars]
        assert sum(counts) == len(values)
        for bar in chart.bars:
            assert 0 <= bar.x and bar.x + bar.width <= chart.frame.width
            assert chart.frame.top <= bar.y + 0.1 and bar.y + bar.height <= chart.frame.bottom + 0.2
        assert chart.median is None or 0 <= chart.median[0] <= chart.frame.width


def test_numbers_beyond_the_largest_count_as_it():
    tally = Tally(100)
    tally.add(np.array([5, 7, 10**9]))
    assert tally.quantile(0.5) == 7 and tally.quantile(1) == 100


def test_an_empty_tally_has_no_chart():
    empty = Tally(10)
    assert length_histogram("", "", empty) is side_histogram("", empty) is ratio_histogram("", empty) is None


def test_every_stage_of_the_funnel_loses_its_own_reasons():
    stages = funnel("build", 5, Counter(empty_caption=2, robots_txt=1, timeout=2, http_404=3, too_many_bytes=1,
                                        hash_mismatch=1, truncated=4, too_small=1, something_new=1))  # fmt: skip
    assert [(stage.title, stage.rows) for stage in stages] == [
        ("rows of the table", 21),
        ("with a caption", 19),
        ("allowed to be requested", 18),
        ("answered", 16),
        ("gave a file", 12),
        ("the expected file", 11),
        ("a picture that decodes", 7),
        ("kept", 5),
    ]
    assert stages[-1].lost == [("something_new", 1), ("too_small", 1)]


def test_every_reason_that_the_code_can_give_has_a_meaning():
    from diptych.data.caption_files import CaptionReason
    from diptych.data.picture_files import FileReason
    from diptych.data.picture_safety import PictureReason
    from diptych_shards.fetch.outcome import FetchReason
    from diptych_shards.refusals import Reason

    reasons = {
        reason.value for kind in (FetchReason, PictureReason, CaptionReason, FileReason, Reason) for reason in kind
    }
    assert reasons - MEANINGS.keys() <= {"too_many_bytes"}
    assert meaning("http_503") == "the server says: Service Unavailable" and meaning("http_999") and not meaning("new")


def test_the_most_frequent_file_is_found_though_rare_ones_are_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr("diptych_shards.report.tally.MAX_FILES", 3)
    found = RepeatedFiles()
    for number in range(4):
        with ShardWriter(tmp_path / str(number), 0) as writer:
            for sample in range(4):
                picture = b"the same" if sample == 2 else f"{number} {sample}".encode()
                writer.add(str(sample), {"png": picture, "txt": b"a caption that all have"})
        found.add(number, open_index(str(tmp_path / str(number))))
    (most,) = found.most_frequent(5)
    assert (most.shard, most.sample, most.times) == (0, 2, 4)
