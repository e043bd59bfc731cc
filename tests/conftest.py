"""How `pytest -n` starts processes and deals the tests to them: by file."""

from __future__ import annotations

import random
import shlex
import sys
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


@pytest.fixture(scope="session", name="warm")
def warm_commands(tmp_path_factory: pytest.TempPathFactory) -> WarmCommands:
    return WarmCommands(tmp_path_factory.mktemp("commands"))


@pytest.fixture
def draw() -> random.Random:
    """For tests that kill at random; a failure shows the seed."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    return random.Random(seed)


def group_of(test_id: str) -> str:
    # The tests end to end share uninterrupted runs.
    return "end_to_end" if test_id.startswith("tests/end_to_end/") else test_id.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        return next((at for at, start in enumerate(LONGEST) if item.nodeid.startswith(start)), len(LONGEST))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return ByGroup(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(config: pytest.Config, specs: list[Any]) -> None:
    """The processes are forked too: torch and the test files are imported once for all."""
    warm.address(config.args)
    for spec in specs:
        spec.python = shlex.join([sys.executable, "-I", str(Path(warm.__file__))])
