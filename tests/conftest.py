"""How `pytest -n` deals the tests to several processes: by file, but for those that share what takes long to make."""

from __future__ import annotations

from typing import Any

import pytest

TOGETHER = {
    "tests/end_to_end/": "runs",  # of `end_to_end/conftest.py`
    "tests/loss/": "ranks",  # forked from a process that has imported DeepSpeed
    "tests/training/": "ranks",
}


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
