"""Compare ours with img2dataset 1.47 in pictures per processor-second, from a table of URLs to shards; prints JSON.

Both fetch the same photographs from the same server on this machine, with two processes and the same settings. Rounds
are paired and their order alternates. Processor time is that of all processes of a command, without the server's; `net`
subtracts what the same command takes for two pictures.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib
import pyarrow
import pyarrow.parquet
import sklearn
from benchmarks.shards import peer
from benchmarks.shards.floor import floors
from benchmarks.shards.measure import Adoption, Cost, measure
from benchmarks.shards.pictures import make_pictures
from benchmarks.shards.quality import Quality, num_stored
from benchmarks.shards.server import Host, Web

PROCESSES = 2
SHARDS = 8
"""A power of two, so that neither process waits long for the other. The peer waits at the end of each shard for its
slowest host; ours starts the next one meanwhile.
"""
IMAGE_SIZE = 256
QUALITY = 95
TIMEOUT_SECONDS = 10
IN_FLIGHT = 256
GOOD_HOSTS = 32
DIFFERENT_PICTURES = 400
MIXED_HOSTS = {
    Host.GOOD: 0.70,
    Host.SLOW: 0.12,
    Host.SILENT: 0.05,
    Host.REFUSING: 0.05,
    Host.GONE: 0.04,
    Host.BROKEN: 0.02,
    Host.RESETTING: 0.01,
    Host.PARKED: 0.01,
}
ROUNDS = 3
ROUNDS_OF_TLS = 2
TLS_SHARE = 1 / 5
"""Of the pictures; this case takes the peer a long time."""


@dataclass
class Case:
    """A table, and the costs of each contestant."""

    table: Path
    numbers: list[int]
    """The number of each row's picture."""
    costs: dict[str, list[Cost]] = field(default_factory=dict)
    stored: dict[str, int] = field(default_factory=dict)

    def ratios(self, quantity: Callable[[Cost], float]) -> float:
        pairs = zip(self.costs["peer"], self.costs["ours"], strict=True)
        return statistics.median(quantity(theirs) / quantity(own) for theirs, own in pairs)

    def median(self, name: str, quantity: Callable[[Cost], float]) -> float:
        return statistics.median(map(quantity, self.costs[name]))


def main() -> None:
    parser = argparse.ArgumentParser("python -m benchmarks.shards", description=__doc__)
    parser.add_argument("--pictures", type=int, default=5_000, metavar="N", help="in each table (default %(default)s)")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, metavar="N", help="of the main case (default %(default)s)"
    )
    chosen = parser.parse_args()
    peer.ensure_environment()
    Adoption()
    with tempfile.TemporaryDirectory(prefix="shards-benchmark-") as folder:
        print(json.dumps(compare(Path(folder), chosen.pictures, chosen.rounds)))


def compare(folder: Path, num_pictures: int, rounds: int) -> dict[str, object]:
    pictures = make_pictures(min(DIFFERENT_PICTURES, num_pictures), photographs())
    quality = Quality(pictures)
    with Web(pictures, folder, num_hosts=GOOD_HOSTS) as web:
        contest = Contest(folder, web)
        start = contest.case("start", PROCESSES)
        main = contest.case("main", num_pictures)
        tls = contest.case("tls", round(TLS_SHARE * num_pictures), tls=True)
        mixed = contest.case("mixed", num_pictures, mixed=True)
        for number in range(rounds):
            for case in (start, main):
                contest.round(case, ("ours", "peer"), turn=number, all_stored=True)
        psnr = {name: quality.psnr(contest.out(main, name), main.numbers) for name in ("ours", "peer")}
        for number in range(min(rounds, ROUNDS_OF_TLS)):
            contest.round(tls, ("ours", "peer"), turn=number, all_stored=True)
        contest.round(mixed, ("ours", "peer"), turn=0)  # once: its time is spent waiting for hosts
    sizes = [len(picture.data) for picture in pictures]
    return {
        "benchmark": "shards",
        "speedup_cpu": round(main.ratios(_cpu), 2),
        "speedup_cpu_net": round(net_speedup(main, start), 2),
        "memory_ratio": round(1 / main.ratios(_memory), 2),
        "speedup_wall": round(main.ratios(_wall), 2),
        "speedup_wall_mixed_hosts": round(mixed.ratios(_wall), 2),
        "speedup_cpu_tls": round(tls.ratios(_cpu), 2),
        "psnr_db": psnr,
        "cpu_milliseconds_a_picture": {
            "decode_resize_encode_alone": floors(pictures, IMAGE_SIZE, QUALITY),
            "net_of_start": {
                name: round(1e3 * (main.median(name, _cpu) - start.median(name, _cpu)) / num_pictures, 2)
                for name in main.costs
            },
        },
        "cpu_seconds": _table((start, main, tls, mixed), _cpu),
        "wall_seconds": _table((start, main, tls, mixed), _wall),
        "peak_memory_mb": _table((start, main, tls, mixed), _memory),
        "stored_of_mixed_hosts": mixed.stored,
        "settings": {
            "pictures": {case.table.stem: len(case.numbers) for case in (main, tls, mixed)},
            "different_pictures": len(pictures),
            "mean_bytes": round(statistics.mean(sizes)),
            "rows_per_shard": _rows_per_shard(num_pictures),
            "processes": PROCESSES,
            "in_flight_a_process": IN_FLIGHT,
            "resize": f"keep_ratio {IMAGE_SIZE}, jpg of quality {QUALITY}",
            "timeout_seconds": TIMEOUT_SECONDS,
            "retries": 0,
            "hosts": GOOD_HOSTS,
            "mixed_hosts": {kind.name.lower(): share for kind, share in MIXED_HOSTS.items()},
            "certificate_authorities": "certifi's and the server's own, the same file for both",
            "rounds": {case.table.stem: len(case.costs["peer"]) for case in (main, tls, mixed)},
            "cpus": len(os.sched_getaffinity(0)),
            "python": platform.python_version(),
            "peer": "img2dataset 1.47.0",
        },
    }


class Contest:
    """Runs commands against the server."""

    def __init__(self, folder: Path, web: Web):
        self._folder = folder
        self._web = web

    def case(self, name: str, num_rows: int, *, tls: bool = False, mixed: bool = False) -> Case:
        draw = random.Random(name)
        kinds = [Host.GOOD] * num_rows
        if mixed:
            kinds = draw.choices(list(MIXED_HOSTS), list(MIXED_HOSTS.values()), k=num_rows)
        rows = list(range(num_rows))
        urls = [self._web.url(row, kind, tls=tls) for row, kind in zip(rows, kinds, strict=True)]
        captions = [f"a photograph, continued by its mirror images, number {row}" for row in rows]
        path = self._folder / f"{name}.parquet"
        pyarrow.parquet.write_table(pyarrow.table({"url": urls, "caption": captions}), path)
        return Case(path, [self._web.picture_number(row) for row in rows])

    def out(self, case: Case, name: str) -> Path:
        return self._folder / f"{case.table.stem}-{name}"

    def round(self, case: Case, names: tuple[str, ...], *, turn: int, all_stored: bool = False) -> None:
        """Run each contestant once; the turn decides who starts."""
        for name in names if turn % 2 == 0 else reversed(names):
            out = self.out(case, name)
            shutil.rmtree(out, ignore_errors=True)
            num_rows = len(case.numbers)
            command = (_peer if name == "peer" else _ours)(case.table, out, num_rows, self._web.ca_file)
            environment = {
                **os.environ,
                "SSL_CERT_FILE": str(self._web.ca_file),  # the peer has no option for certificate authorities
                "NO_ALBUMENTATIONS_UPDATE": "1",  # it would use the network when it starts
            }
            cost = measure(command, environment, self._folder / "log.txt")
            case.costs.setdefault(name, []).append(cost)
            case.stored[name] = num_stored(out)
            print(
                f"{case.table.stem} {name}: {cost.cpu_seconds:.1f} CPU-s, {cost.wall_seconds:.1f} s, "
                f"{cost.peak_megabytes:.0f} MB, {case.stored[name]} of {num_rows} stored",
                file=sys.stderr,
            )
            if all_stored and case.stored[name] != num_rows:
                log = (self._folder / "log.txt").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{name} stored {case.stored[name]} of {num_rows} pictures:\n{log}")


def photographs() -> list[Path]:
    """Photographs in colour that installed packages contain."""
    hopper = Path(matplotlib.__file__).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"
    return [*peer.photographs(), *sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg")), hopper]


def net_speedup(case: Case, start: Case) -> float:
    """The ratio of processor times, without that of starting."""

    def net(name: str, cost: Cost) -> float:
        return cost.cpu_seconds - start.median(name, _cpu)

    pairs = zip(case.costs["peer"], case.costs["ours"], strict=True)
    return statistics.median(net("peer", theirs) / net("ours", own) for theirs, own in pairs)


def _ours(table: Path, out: Path, num_rows: int, ca_file: Path) -> list[str]:
    return [
        sys.executable, "-m", "diptych_shards", "build", str(table), str(out), "--keep-order",
        "--processes", str(PROCESSES), "--in-flight", str(IN_FLIGHT),
        "--rows-per-shard", str(_rows_per_shard(num_rows)),
        "--resize-mode", "keep_ratio", "--image-size", str(IMAGE_SIZE), "--encode-quality", str(QUALITY),
        "--timeout", str(TIMEOUT_SECONDS), "--retries", "0",
        "--allow-network", "127.0.0.0/8", "--ca-file", str(ca_file),
    ]  # fmt: skip


def _peer(table: Path, out: Path, num_rows: int, ca_file: Path) -> list[str]:
    return [
        peer.command(), f"--url_list={table}", f"--output_folder={out}", "--input_format=parquet",
        "--url_col=url", "--caption_col=caption", "--output_format=webdataset",
        f"--processes_count={PROCESSES}", f"--thread_count={IN_FLIGHT}",
        f"--number_sample_per_shard={_rows_per_shard(num_rows)}",
        "--resize_mode=keep_ratio", f"--image_size={IMAGE_SIZE}", f"--encode_quality={QUALITY}",
        f"--timeout={TIMEOUT_SECONDS}", "--retries=0",
    ]  # fmt: skip


def _rows_per_shard(num_rows: int) -> int:
    return -(-num_rows // (SHARDS if num_rows > PROCESSES else PROCESSES))


def _cpu(cost: Cost) -> float:
    return cost.cpu_seconds


def _wall(cost: Cost) -> float:
    return cost.wall_seconds


def _memory(cost: Cost) -> float:
    return cost.peak_megabytes


def _table(cases: tuple[Case, ...], quantity: Callable[[Cost], float]) -> dict[str, dict[str, float]]:
    """Medians by case and contestant."""
    return {case.table.stem: {name: round(case.median(name, quantity), 1) for name in case.costs} for case in cases}


if __name__ == "__main__":
    main()
