"""How `pytest -n` starts processes and deals the tests to them: by file."""

from __future__ import annotations

import fcntl
import random
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.commands import WarmCommands

LONGEST = (
    "tests/end_to_end/",
    "tests/test_benchmarks.py",
    "tests/training/",
    "tests/data_prep/shard_build/",
    "tests/data_prep/fetch/",
    "tests/data_prep/select/",
)
"""These begin first, so that no process is left with one of them at the end."""


MadeOnce = Callable[[str, Callable[[Path], object]], Path]
"""The folder of a name, which a function has filled."""


@pytest.fixture(scope="session", name="warm")
def warm_commands(tmp_path_factory: pytest.TempPathFactory) -> WarmCommands:
    return WarmCommands(tmp_path_factory.mktemp("commands"))


@pytest.fixture
def draw() -> random.Random:
    """For tests that kill at random; a failure shows the seed."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> MadeOnce:
    """What several test files read and none changes: made by the first process of `pytest -n` that asks for it."""
    folder = tmp_path_factory.getbasetemp()
    if hasattr(request.config, "workerinput"):
        folder = folder.parent

    def make(name: str, fill: Callable[[Path], object]) -> Path:
        made = folder / f"shared_{name}"
        with made.with_suffix(".lock").open("a+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            lock.seek(0)
            if not lock.read():
                shutil.rmtree(made, ignore_errors=True)  # what another process failed to make
                made.mkdir()
                fill(made)
                lock.write("made")
        return made

    return make


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((at for at, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByFile(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return nodeid.partition("::")[0]

    config.option.loadscopereorder = False
    return ByFile(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """The processes are forked too: torch and the test files are imported once for all."""
    warm.address(config.args)
    for spec in specs:
        spec.python = shlex.join([sys.executable, "-I", str(Path(warm.__file__))])
