"""Pairs out of a crawl: a WAT through ours and cc2dataset's parser, a WARC through ours; one line of JSON.

The pages are drawn (`pages.py`), so that the true pairs are known: both must find all that the WAT contains, and ours
all that only the HTML does. Both parse gzipped bytes in memory to pairs in memory, each in one thread; times are of
the processor, medians over paired rounds. `*_to_parquet` is ours with the table written.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.extract.crawl import write_warc, write_wat
from benchmarks.extract.pages import PageSource, PairSet
from benchmarks.extract.peer import Peer
from benchmarks.peer_environment import ensure_environment

from diptych_shards.extract.extract import extract_file, pages_of
from diptych_shards.extract.options import ExtractOptions
from diptych_shards.extract.results import FileReport

OPTIONS = ExtractOptions()


def main() -> None:
    chosen = _arguments()
    ensure_environment("cc2dataset")
    source = PageSource()
    pages = [source.draw() for _ in range(chosen.pages)]
    in_wat = set().union(*(page.in_wat for page in pages))
    in_html = set().union(*(page.in_html for page in pages))
    with tempfile.TemporaryDirectory() as folder:
        wat, warc, out = Path(folder, "drawn.warc.wat.gz"), Path(folder, "drawn.warc.gz"), Path(folder)
        (out / "_index").mkdir()
        wat_mb, warc_mb = write_wat(pages, wat) / 1e6, write_warc(pages, warc) / 1e6
        wat_pairs, warc_pairs = pairs_in(wat.read_bytes()), pairs_in(warc.read_bytes())
        seconds: dict[str, list[float]] = {
            "ours": [],
            "peer": [],
            "warc": [],
            "wat_to_parquet": [],
            "warc_to_parquet": [],
        }
        with Peer(wat) as peer:
            peer_pairs = peer.pairs()
            for _ in range(chosen.rounds):
                seconds["ours"].append(seconds_of(wat))
                seconds["peer"].append(peer.seconds())
                seconds["warc"].append(seconds_of(warc))
                seconds["wat_to_parquet"].append(seconds_to_parquet(wat, out))
                seconds["warc_to_parquet"].append(seconds_to_parquet(warc, out))
    median = {name: statistics.median(times) for name, times in seconds.items()}
    ratios = [peer / ours for ours, peer in zip(seconds["ours"], seconds["peer"], strict=True)]
    result = {
        "benchmark": "extract",
        "speedup_wat": round(statistics.median(ratios), 2),
        "warc_mb_per_second": round(warc_mb / median["warc"], 1),
        "unit": "uncompressed MB/s of one core",
        "ours": round(wat_mb / median["ours"], 1),
        "peer": round(wat_mb / median["peer"], 1),
        "wat_to_parquet": round(wat_mb / median["wat_to_parquet"], 1),
        "warc_to_parquet": round(warc_mb / median["warc_to_parquet"], 1),
        "true_pairs_in_wat": {"all": len(in_wat), "ours": len(in_wat & wat_pairs), "peer": len(in_wat & peer_pairs)},
        "false_pairs_in_wat": {"ours": len(wat_pairs - in_wat), "peer": len(peer_pairs - in_wat)},
        "true_pairs_in_html": {"all": len(in_html), "ours": len(in_html & warc_pairs)},
        "pairs_only_in_html": {"all": len(in_html - in_wat), "ours": len((in_html - in_wat) & warc_pairs)},
        "settings": {
            "pages": chosen.pages,
            "wat_mb": round(wat_mb, 1),
            "html_mb": round(warc_mb, 1),
            "rounds": chosen.rounds,
            "threads": 1,
            "python": platform.python_version(),
        },
    }
    print(json.dumps(result))


def pairs_in(content: bytes) -> PairSet:
    found = pages_of(io.BytesIO(content), OPTIONS, FileReport())
    return {pair for page in found for pair in page.page.pairs}


def seconds_of(path: Path) -> float:
    content = path.read_bytes()
    start = time.process_time()
    found = [pair for page in pages_of(io.BytesIO(content), OPTIONS, FileReport()) for pair in page.page.pairs]
    seconds = time.process_time() - start
    assert found
    return seconds


def seconds_to_parquet(path: Path, out: Path) -> float:
    start = time.process_time()
    extract_file(str(path), out, OPTIONS)
    return time.process_time() - start


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pages", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=11)
    return parser.parse_args()


if __name__ == "__main__":
    main()
