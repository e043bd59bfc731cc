"""How `pytest -n` deals the tests to several processes: by file, but for those that share what takes long to make."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import warm
from tests.commands import WarmCommands

TOGETHER = {
    "tests/end_to_end/": "runs",  # of `end_to_end/conftest.py`
    "tests/loss/": "ranks",  # forked from a process that has imported DeepSpeed
    "tests/training/": "ranks",
}


@pytest.fixture(scope="session", name="warm")
def warm_commands(tmp_path_factory: pytest.TempPathFactory) -> WarmCommands:
    return WarmCommands(tmp_path_factory.mktemp("commands"))


def group_of(test_id: str) -> str:
    shared = [group for folder, group in TOGETHER.items() if test_id.startswith(folder)]
    return shared[0] if shared else test_id.partition("::")[0]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The groups that take longest begin first."""
    items.sort(key=lambda item: group_of(item.nodeid) not in TOGETHER.values())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return ByGroup(config, log)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_setupnodes(specs: list[Any]) -> None:
    """The processes are forked too: torch is imported once for all."""
    warm.address()
    for spec in specs:
        spec.python = shlex.join([sys.executable, "-I", str(Path(warm.__file__))])
