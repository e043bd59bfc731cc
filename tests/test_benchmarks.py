"""The benchmarks' own machinery, without the peers."""

import os
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import sklearn
from benchmarks.shards.measure import measure
from benchmarks.shards.pictures import make_pictures
from benchmarks.shards.quality import Quality, num_stored
from benchmarks.shards.server import Host, Web

ROOT = Path(__file__).parents[1]
PHOTOGRAPHS = sorted((Path(sklearn.__file__).parent / "datasets" / "images").glob("*.jpg"))
ROWS = {0: Host.GOOD, 1: Host.GOOD, 2: Host.GONE, 3: Host.PARKED, 4: Host.REFUSING, 5: Host.RESETTING, 6: Host.BROKEN}


def test_shards_are_built_from_a_web_of_good_and_bad_hosts_over_tls_and_without_and_measured(tmp_path):
    pictures = make_pictures(6, PHOTOGRAPHS)
    with Web(pictures, tmp_path, num_hosts=2) as web:
        urls = [web.url(row, host) for row, host in ROWS.items()] + [web.url(7, tls=True)]
        table = pyarrow.table({"url": urls, "caption": [f"number {row}" for row in range(len(urls))]})
        pyarrow.parquet.write_table(table, tmp_path / "table.parquet")
        command = [sys.executable, "-m", "diptych_shards", "build", str(tmp_path / "table.parquet")]
        command += [str(tmp_path / "out"), "--processes", "1", "--retries", "0", "--ca-file", str(web.ca_file)]
        command += ["--allow-network", "127.0.0.0/8", "--resize-mode", "keep_ratio"]
        path = os.pathsep.join((str(ROOT / "src"), str(ROOT / "data_prep")))
        cost = measure(command, {**os.environ, "PYTHONPATH": path}, tmp_path / "log.txt")

    numbers = [web.picture_number(row) for row in range(len(urls))]
    assert num_stored(tmp_path / "out") == 3, (tmp_path / "log.txt").read_text()
    assert Quality(pictures).psnr(tmp_path / "out", numbers)["5th_percentile"] > 30
    assert cost.cpu_seconds > 0 and cost.wall_seconds > 0 and cost.peak_megabytes > 20
