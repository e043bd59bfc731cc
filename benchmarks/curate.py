"""Pairs a core-second from a table of pairs to a balanced one, with 500,000 queries: the whole command, and two peers.

`diptych-shards curate` cleans captions, applies its rules, drops duplicates, matches, balances, and writes tables and
a page. The peers are what a user would write instead, and do less: read the table, match, balance, write the table.
`metaclip` matches as MetaCLIP's published code does, by searching each caption for every spaced query (written here
from its description: it is in no package index); it is given few pairs. `ahocorasick_rs` finds the same queries with
that library, caption by caption.

Each is a process of its own, one after the other in each round; its seconds are the processor's, with its start. All
three count the same captions for each query of the small table, which is checked first. Queries and pairs are drawn,
not read: words of syllables with Zipf frequencies, as many a caption as alt texts have, some capitalised, some not in
the list, with the punctuation of alt texts; an eighth of the pairs is junk or repeats another one.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import resource
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow
from pyarrow import parquet

NUM_WORDS = 375_000
NUM_PAIRS_OF_WORDS = 125_000
UNLISTED_WORDS = 125_000
MEDIAN_WORDS = 8
PAIRS_PER_QUERY = 20_000
JUNK = ("image", "logo", "IMG_2041.JPG", "click here", "photo-3", "https://a.example", "12/3 - 4")
KEEP_ALL = ("--duplicates", "keep", *(word for rule in ("too_short", "file_name", "address", "markup", "boilerplate",
            "few_letters", "repetition") for word in ("--skip", rule)))  # fmt: skip

Match = Callable[[str], list[int]]


def main() -> None:
    chosen = _arguments()
    if chosen.peer:
        balance(chosen.peer, *map(Path, chosen.paths))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        drawn = DrawnPairs()
        (folder / "queries.txt").write_text("\n".join(drawn.queries()) + "\n", encoding="utf-8")
        for name, number in (("large", chosen.pairs), ("small", chosen.metaclip_pairs)):
            parquet.write_table(drawn.table(number), folder / f"{name}.parquet")
        check_equal(folder)
        rates = {name: np.zeros(chosen.rounds) for name in ("ours", "metaclip", "ahocorasick_rs")}
        for one in range(chosen.rounds):
            for name, found in rates.items():
                table, number = ("small", chosen.metaclip_pairs) if name == "metaclip" else ("large", chosen.pairs)
                found[one] = number / seconds_of(name, folder, table)
    result = {
        "benchmark": "curate",
        "unit": "pairs a core-second",
        **{name: round(float(np.median(found)), 1) for name, found in rates.items()},
        "speedup_over_metaclip": round(float(np.median(rates["ours"] / rates["metaclip"])), 1),
        "speedup_over_ahocorasick_rs": round(float(np.median(rates["ours"] / rates["ahocorasick_rs"])), 2),
        "settings": {
            "queries": NUM_WORDS + NUM_PAIRS_OF_WORDS,
            "pairs": chosen.pairs,
            "metaclip_pairs": chosen.metaclip_pairs,
            "rounds": chosen.rounds,
            "python": platform.python_version(),
        },
    }
    print(json.dumps(result))


def seconds_of(name: str, folder: Path, table: str, *options: str) -> float:
    """Processor seconds of one process that balances the table to `folder / name`."""
    paths = [folder / f"{table}.parquet", folder / "queries.txt", folder / name]
    shutil.rmtree(paths[2], ignore_errors=True)
    pairs, queries, out = map(str, paths)
    command = (
        ["diptych_shards", "curate", pairs, out, "--queries", queries, "--processes", "1", *options]
        if name == "ours"
        else ["benchmarks.curate", "--peer", name, pairs, queries, out]
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-m", *command], env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def check_equal(folder: Path) -> None:
    """See that all count the same captions for each query; ours without its rules, as the peers have none."""
    counts = []
    for name in ("metaclip", "ahocorasick_rs", "ours"):
        seconds_of(name, folder, "small", *(KEEP_ALL if name == "ours" else ()))
        table = folder / name / "_index" / "queries.parquet" if name == "ours" else folder / name / "queries.parquet"
        counts.append(parquet.read_table(table)["pairs"].to_numpy())
    for other in counts[1:]:
        np.testing.assert_array_equal(other, counts[0])


def balance(peer: str, pairs: Path, queries: Path, out: Path) -> None:
    """What a peer does: keep each pair if one of its queries draws it."""
    listed = queries.read_text(encoding="utf-8").splitlines()
    match = {"metaclip": substring_search, "ahocorasick_rs": automaton}[peer](listed)
    table = parquet.read_table(pairs)
    found = [match(spaced(caption)) for caption in table["caption"].to_pylist()]
    counts = np.zeros(len(listed), np.int64)
    for matches in found:
        counts[matches] += 1
    probabilities = (PAIRS_PER_QUERY / np.maximum(counts, PAIRS_PER_QUERY)).tolist()
    draw = random.Random(0)
    kept = [any(draw.random() < probabilities[query] for query in matches) for matches in found]
    out.mkdir()
    parquet.write_table(table.filter(pyarrow.array(kept)), out / "00000.parquet", compression="zstd")
    parquet.write_table(pyarrow.table({"query": listed, "pairs": counts}), out / "queries.parquet", compression="zstd")


def spaced(caption: str) -> str:
    for mark in ",.;:?!`":
        caption = caption.replace(mark, f" {mark} ")
    return f" {caption} "


def substring_search(queries: list[str]) -> Match:
    in_spaces = [f" {query} " for query in queries]
    return lambda caption: [number for number, query in enumerate(in_spaces) if query in caption]


def automaton(queries: list[str]) -> Match:
    import ahocorasick_rs

    found = ahocorasick_rs.AhoCorasick([f" {query} " for query in queries])
    return lambda caption: list({match[0] for match in found.find_matches_as_indexes(caption, overlapping=True)})


class DrawnPairs:
    """Queries, and pairs like a crawl's; the same ones every time."""

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
        while len(pairs) < NUM_PAIRS_OF_WORDS:
            pairs[" ".join(self._draw.choices(self._words, cum_weights=self._weights, k=2))] = None
        return listed + list(pairs)

    def table(self, number: int) -> pyarrow.Table:
        """Pairs in the columns that `extract` writes first."""
        urls, captions = zip(*self._pairs(number), strict=True)
        return pyarrow.table({"url": urls, "caption": captions, "source": ["alt"] * number})

    def _pairs(self, number: int) -> Iterator[tuple[str, str]]:
        draw = self._draw
        early: list[tuple[str, str]] = []
        for row in range(number):
            url = (
                f"https://www.site{draw.randrange(20_000)}.example/uploads/2021/{draw.randrange(12)}/{row:x}-photo.jpg"
            )
            pair = (url, draw.choice(JUNK) if draw.random() < 1 / 16 else self._caption())
            if early and draw.random() < 1 / 16:
                pair = draw.choice(early)
            elif row % 50 == 0:
                early.append(pair)
            yield pair

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


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=250_000)
    parser.add_argument("--metaclip-pairs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", choices=("metaclip", "ahocorasick_rs"), help=argparse.SUPPRESS)
    parser.add_argument("paths", nargs="*", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
