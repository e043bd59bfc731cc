"""Megabytes of captions a second in which 500,000 queries are found, ours and ahocorasick_rs; one line of JSON.

Both must find the same. Queries and captions are drawn, not read: words of syllables with Zipf frequencies, as many
as alt texts have, some capitalised, some not in the list, with the punctuation that alt texts have; of the queries,
three quarters are words and the rest are pairs of words, drawn with the same frequencies. Times are of the processor,
for one thread; ours has the spacing of the captions in it, the peer is given them spaced and joined.
"""

from __future__ import annotations

import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from itertools import accumulate

import ahocorasick_rs
import numpy as np
import psutil
import pyarrow

from diptych_shards.curate.matching import Matcher, spaced

NUM_WORDS = 375_000
NUM_PAIRS = 125_000
UNLISTED_WORDS = 125_000
CAPTIONS_A_ROUND = 60_000
ROUNDS = 5
MEDIAN_WORDS = 8


def main() -> None:
    result = {
        "benchmark": "curate",
        **compare(),
        "memory_ratio": round(memory_megabytes("ours") / memory_megabytes("peer"), 2),
        "memory_mb": round(memory_megabytes("ours")),
        "settings": {
            "queries": NUM_WORDS + NUM_PAIRS,
            "captions_a_round": CAPTIONS_A_ROUND,
            "rounds": ROUNDS,
            "threads": 1,
            "python": platform.python_version(),
        },
    }
    print(json.dumps(result))


def compare() -> dict[str, float]:
    """Medians over paired rounds."""
    source = DrawnCaptions()
    queries = source.queries()
    start = time.process_time()
    matcher = Matcher(queries)
    build_seconds = time.process_time() - start
    peer = ahocorasick_rs.AhoCorasick([f" {query} " for query in queries])
    matcher.match(source.captions(1_000))

    seconds: dict[str, list[float]] = {"ours": [], "peer": []}
    sizes = []
    num_matches = 0
    for _ in range(ROUNDS):
        captions = source.captions(CAPTIONS_A_ROUND)
        column = pyarrow.array(captions, pyarrow.large_string())
        joined = "\n".join(spaced(caption) for caption in captions)
        sizes.append(sum(len(caption.encode()) for caption in captions) / 1e6)

        start = time.process_time()
        found = matcher.match(column)
        seconds["ours"].append(time.process_time() - start)
        start = time.process_time()
        found_by_peer = peer.find_matches_as_indexes(joined, overlapping=True)
        seconds["peer"].append(time.process_time() - start)

        check_equal(found, found_by_peer, captions)
        num_matches += len(found.ids)
    rates = {name: [size / spent for size, spent in zip(sizes, times, strict=True)] for name, times in seconds.items()}
    return {
        "match_mb_per_second": round(statistics.median(rates["ours"]), 1),
        "peer_mb_per_second": round(statistics.median(rates["peer"]), 1),
        "speedup": round(statistics.median(a / b for a, b in zip(rates["ours"], rates["peer"], strict=True)), 2),
        "captions_per_second": round(CAPTIONS_A_ROUND / statistics.median(seconds["ours"])),
        "bytes_a_caption": round(1e6 * sum(sizes) / (ROUNDS * CAPTIONS_A_ROUND), 1),
        "matches_a_caption": round(num_matches / (ROUNDS * CAPTIONS_A_ROUND), 1),
        "build_seconds": round(build_seconds, 2),
    }


def check_equal(found, found_by_peer: list[tuple[int, int, int]], captions: list[str]) -> None:
    """Caption for caption the same queries; the peer's matches are by character in the joined text."""
    ends = np.cumsum([len(spaced(caption)) + 1 for caption in captions])
    peer = np.array(found_by_peer, np.int64)
    theirs = np.unique(np.stack([np.searchsorted(ends, peer[:, 1], side="right"), peer[:, 0]], 1), axis=0)
    ours = np.stack([np.repeat(np.arange(len(captions)), found.counts), found.ids], 1)
    np.testing.assert_array_equal(ours[np.lexsort((ours[:, 1], ours[:, 0]))], theirs)


def memory_megabytes(which: str) -> float:
    """What a process of its own holds more once it has built its automaton."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "benchmarks.curate", which]
    return float(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)


def print_memory(which: str) -> None:
    queries = DrawnCaptions().queries()
    Matcher(["compiled before it is measured"]).match(["compiled"])
    before = psutil.Process().memory_info().rss
    if which == "ours":
        kept = Matcher(queries)
    else:
        kept = ahocorasick_rs.AhoCorasick([f" {query} " for query in queries])
    print((psutil.Process().memory_info().rss - before) / 1e6)
    del kept


class DrawnCaptions:
    """Queries, and captions like a crawl's; the same ones every time."""

    def __init__(self) -> None:
        self._draw = random.Random(0)
        syllables = [a + b + c for a in "bcdfghklmnprstvw" for b in "aeiou" for c in ("", "n", "r", "s", "t", "l")]
        words: dict[str, None] = {}
        # Frequent words are short, as they are in languages.
        while len(words) < NUM_WORDS + UNLISTED_WORDS:
            longest = 1 + len(words) // 200 if len(words) < 600 else 4
            words["".join(self._draw.choices(syllables, k=self._draw.randint(1, min(longest, 4))))] = None
        self._words = list(words)
        self._weights = list(accumulate(1 / (rank + 3) for rank in range(len(self._words))))

    def queries(self) -> list[str]:
        """Listed words are those of frequent ranks and every third or so of the others."""
        listed = self._words[:50_000] + self._draw.sample(self._words[50_000:], NUM_WORDS - 50_000)
        pairs: dict[str, None] = {}
        while len(pairs) < NUM_PAIRS:
            pairs[" ".join(self._draw.choices(self._words, cum_weights=self._weights, k=2))] = None
        return listed + list(pairs)

    def captions(self, number: int) -> list[str]:
        return [self._caption() for _ in range(number)]

    def _caption(self) -> str:
        draw = self._draw
        num_words = min(max(round(draw.lognormvariate(0, 0.6) * MEDIAN_WORDS), 1), 60)
        words = draw.choices(self._words, cum_weights=self._weights, k=num_words)
        words = [word.title() if draw.random() < 0.2 else word for word in words]
        words[draw.randrange(num_words)] += draw.choice(["", "", ",", ":", "."])
        words[-1] += draw.choice(["", "", ".", "!", ", 2019", " | Stock Photo"])
        if draw.random() < 1 / 8:
            words.append(f"IMG_{draw.randrange(10**8):08}.jpg")
        return " ".join(words)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print_memory(sys.argv[1])
    else:
        main()
