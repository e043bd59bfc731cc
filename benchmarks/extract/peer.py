"""The installed cc2dataset, in a virtual environment of its own, which is made if it is not there."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import TracebackType

from benchmarks.peer_environment import ENVIRONMENTS

ENVIRONMENT = ENVIRONMENTS / "cc2dataset"


class Peer:
    """Its parser in a process that holds the WAT in memory and parses it on demand."""

    def __init__(self, wat: Path):
        worker = Path(__file__).with_name("peer_worker.py")
        self._process = subprocess.Popen(
            [ENVIRONMENT / "bin" / "python", worker, wat], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def seconds(self) -> float:
        """Of the processor, for the whole file once."""
        return float(self._asked("parse"))

    def pairs(self) -> set[tuple[str, str]]:
        return {(url, caption) for url, caption in json.loads(self._asked("pairs"))}

    def __enter__(self) -> Peer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def _asked(self, question: str) -> str:
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(f"{question}\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"the peer's process ended with status {self._process.wait()}")
        return answer
