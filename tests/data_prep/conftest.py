"""For all tests of the data side: few processes, and one small build; a test that damages it copies it first."""

from __future__ import annotations

import csv
import pickle
import random
from multiprocessing.context import ForkContext
from pathlib import Path

import pytest

from diptych_shards.cli import main
from diptych_shards.run import worker_pool
from tests.data_prep.hostile_web import HostileWeb
from tests.data_prep.made_pictures import encoded, scene

HOSTILE_CAPTIONS = (
    "<script>document.title = 'owned'</script>",
    '"><img src=x onerror=alert(1)>',
    "</bdi></span></style></title><a href='javascript:alert(1)'>here</a>",
    "\u202egnp.exe\u202c",
    "one\nline, and \x1b[31manother\x07",
    "{{ 7 * 7 }}{% include 'x' %}",
)
HOSTILE_URLS = (
    "javascript:alert(1)//\"><script>alert('url')</script>",
    "http://10.0.0.1/\u202e<img src=x onerror=alert(2)>",
)
ROWS_PER_SHARD = 10


@pytest.fixture(scope="package", autouse=True)
def one_process_by_default():
    """Let commands start one process, as on a machine with one CPU, unless the test says how many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("diptych_shards.arguments.usable_cpus", lambda: 1)
        yield


@pytest.fixture(scope="module")
def forked_workers():
    """Fork worker processes, which takes a tenth of the time in which Python starts and imports what they need.

    They inherit what a test has patched, and also its open connections.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worker_pool, "PROCESSES", Forks())
        yield


class Forks(ForkContext):
    """Forks each process after its work was pickled and read back, as the work of a spawned one is."""

    def Process(self, *, target, args, daemon):
        connection, work = args
        return super().Process(target=target, args=(connection, pickle.loads(pickle.dumps(work))), daemon=daemon)


@pytest.fixture(scope="session")
def built(tmp_path_factory) -> Path:
    """Three shards of 24 rows: 18 stored, 4 answered with 404, 2 not requested."""
    folder = tmp_path_factory.mktemp("built")
    sizes = random.Random(0)
    pictures = {f"{n}.jpg": encoded(scene(sizes.randrange(60, 300), sizes.randrange(60, 300))) for n in range(18)}
    captions = [*HOSTILE_CAPTIONS, *(f"picture {number}" for number in range(18 - len(HOSTILE_CAPTIONS)))]
    with HostileWeb(pictures) as web:
        rows = [(web.url(name), caption) for name, caption in zip(pictures, captions, strict=True)]
        for number in range(4):
            rows.insert(5 * number, (web.url("not_found", f"/{number}.jpg"), "gone"))
        rows += [(url, "never asked for") for url in HOSTILE_URLS]
        with (folder / "table.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("url", "caption"), *rows])
        allowed = [f"--allow-network={web.network}", *(f"--resolve={entry}" for entry in web.resolve)]
        how = [f"--rows-per-shard={ROWS_PER_SHARD}", "--image-size=64", "--processes=1", "--keep-order"]
        assert main(["build", str(folder / "table.csv"), str(folder / "out"), *allowed, *how]) == 0
    return folder / "out"
