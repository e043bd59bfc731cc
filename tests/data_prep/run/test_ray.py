"""Results on a Ray cluster of two nodes are the same, even if workers and nodes are lost."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import pytest

from diptych.errors import UserError
from diptych_shards.cli import main
from diptych_shards.fetch.options import FetchOptions
from diptych_shards.pictures.picture import PictureOptions
from diptych_shards.run.engine import LocalEngine, RayEngine
from diptych_shards.shard_build.build import build
from diptych_shards.shard_build.build_progress import BuildProgress
from diptych_shards.shard_build.options import BuildOptions
from diptych_shards.shard_build.shard_files import OutputOptions
from diptych_shards.tables.columns import ColumnOptions
from diptych_shards.tables.table import open_table
from tests.data_prep.curate.pairs import write_lines
from tests.data_prep.extract.crawls import img, page_record, warc_gz, write
from tests.data_prep.hostile_web import HostileWeb
from tests.data_prep.made_pictures import encoded, scene
from tests.data_prep.select.shards import jpeg, tree, write_shards
from tests.data_prep.shard_build.test_build import contents, write_table

pytestmark = [
    pytest.mark.filterwarnings(f"ignore::{kind}") for kind in ("ResourceWarning", "FutureWarning", "DeprecationWarning")
]
NUM_SHARDS, ROWS_PER_SHARD = 10, 4
HEAD = {"num_cpus": 1, "object_store_memory": 80 << 20, "include_dashboard": False, "include_log_monitor": False}


class Quiet(BuildProgress):
    def __init__(self):
        self.finished: list[int] = []
        self.outcomes: Counter[str] = Counter()

    def start(self, num_rows, about_rows, done):
        self.outcomes += done

    def add(self, news):
        self.outcomes += news.rows

    def shard_is_done(self, report):
        self.finished.append(report.number)


@pytest.fixture(scope="module")
def web():
    pictures = {f"{number:03d}.jpg": encoded(scene(200 + number, 150)) for number in range(NUM_SHARDS * ROWS_PER_SHARD)}
    with HostileWeb(pictures) as web:
        yield web


@pytest.fixture(scope="module")
def table(web, tmp_path_factory) -> Path:
    rows = [(web.url(name), f"picture {name}") for name in sorted(web.pictures)]
    return write_table(tmp_path_factory.mktemp("table") / "table.csv", rows)


@pytest.fixture(scope="module")
def options(web) -> BuildOptions:
    return BuildOptions(
        pictures=PictureOptions(image_size=64),
        output=OutputOptions(rows_per_shard=ROWS_PER_SHARD),
        fetch=FetchOptions(allow_networks=(web.network,), in_flight=2),
        resolve=tuple(web.resolve),
    )


@pytest.fixture(scope="module")
def local(table, options, tmp_path_factory) -> dict[str, str]:
    out = tmp_path_factory.mktemp("local") / "out"
    build(open_table([str(table)], ColumnOptions()), out, options, LocalEngine(1), Quiet())
    return contents(out)


@pytest.fixture(scope="module")
def cluster():
    os.environ["RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO"] = "0"
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args=HEAD)
    cluster.second = cluster.add_node(num_cpus=1, object_store_memory=80 << 20)
    yield cluster
    import ray

    ray.shutdown()
    cluster.shutdown()


def workers_of_ray() -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any("ray::_run_on_ray" in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


def test_pairs_extracted_and_curated_on_ray_are_those_of_this_machine(cluster, tmp_path):
    warcs = []
    for number in range(5):
        records = [page_record(f"<html lang=en>{img(f'a dog in house {number * page}')}") for page in range(40)]
        warcs.append(write(tmp_path, f"part-{number}.warc.gz", warc_gz(*records)))
    (tmp_path / "queries.txt").write_text("dog\nhouse\n")
    queries = (f"--queries={tmp_path / 'queries.txt'}", "--pairs-per-query=50")
    for name, engine in (("here", ["--processes=2"]), ("there", ["--engine=ray", f"--ray-address={cluster.address}"])):
        out = tmp_path / name
        assert main(["extract", *map(str, warcs), str(out / "pairs"), *engine]) == 0
        assert main(["curate", str(tmp_path / "here" / "pairs"), str(out / "kept"), *queries, *engine]) == 0
    for stage in ("pairs", "kept"):
        here, there = (
            {path.name: path.read_bytes() for path in (tmp_path / name / stage).glob("*.parquet")}
            for name in ("here", "there")
        )
        assert here and here == there


def test_queries_counted_on_ray_are_those_of_this_machine(cluster, tmp_path):
    texts = []
    for number in range(5):
        lines = [f"a dog in house {number * line}, on new street {line % 7}" for line in range(200)]
        texts.append(str(write_lines(tmp_path / f"text-{number}.txt", lines)))
    limits = ("--min-count=20", "--min-pmi=2", "--min-pair-count=5")
    for name, engine in (("here", ["--processes=1"]), ("there", ["--engine=ray", f"--ray-address={cluster.address}"])):
        assert main(["queries", *texts, str(tmp_path / name), *limits, *engine]) == 0
    here, there = ((tmp_path / name).read_text() for name in ("here", "there"))
    assert here == there and {"dog", "a dog"} < set(here.splitlines())


def test_shards_filtered_deduplicated_and_selected_on_ray_are_those_of_this_machine(cluster, tmp_path, monkeypatch):
    pictures = [jpeg(number) for number in range(5)]
    samples = [(pictures[number % 5], f"picture {number}", {"number": number}) for number in range(24)]
    engines = {"here": ["--processes=1"], "there": ["--engine=ray", f"--ray-address={cluster.address}"]}
    for name, engine in engines.items():
        write_shards(tmp_path / name / "shards", [samples[start : start + 6] for start in range(0, 24, 6)])
        monkeypatch.chdir(tmp_path / name)
        assert main(["filter", "shards", "--where", "number > 2", *engine]) == 0
        assert main(["dedup", "shards", *engine]) == 0
        assert main(["select", "shards", "out", *engine]) == 0
    assert tree(tmp_path / "here") == tree(tmp_path / "there")
    assert len(list((tmp_path / "there" / "out").glob("*.tar"))) == 2


def test_a_task_that_kills_its_worker_ends_ray_map_with_one_line(cluster):
    engine = RayEngine(cluster.address)
    assert list(engine.map(abs, [-3, 2, -1])) == [3, 2, 1]
    assert list(engine.map(os._exit, [1], lost=lambda task: "lost")) == ["lost"]
    with pytest.raises(UserError, match="processes were lost, again and again, at 1; see whether memory runs out"):
        list(engine.map(os._exit, [1]))


def test_a_ray_cluster_that_loses_a_worker_and_a_node_writes_the_same_bytes(cluster, table, options, local, tmp_path):
    out = tmp_path / "out"
    progress = Quiet()
    losses: list[str] = []

    def harm() -> None:
        while not (workers := workers_of_ray()):
            time.sleep(0.01)
        workers[0].kill()
        losses.append("worker")
        while len(progress.finished) < 3:
            time.sleep(0.01)
        cluster.remove_node(cluster.second, allow_graceful=False)
        losses.append("node")

    thread = threading.Thread(target=harm)
    thread.start()
    report = build(open_table([str(table)], ColumnOptions()), out, options, RayEngine(cluster.address), progress)
    thread.join(60)
    assert losses == ["worker", "node"]
    assert report.outcomes == {"success": NUM_SHARDS * ROWS_PER_SHARD}
    assert sorted(progress.finished) == list(range(NUM_SHARDS))
    assert contents(out) == local
