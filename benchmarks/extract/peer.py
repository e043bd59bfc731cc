"""The installed cc2dataset, in a virtual environment of its own, which is made if it is not there."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import TracebackType

ROOT = Path(__file__).parents[2]
REQUIREMENTS = ROOT / "benchmarks" / "peers" / "cc2dataset.txt"
ENVIRONMENT = ROOT / ".venv-peers" / "cc2dataset"


def ensure_environment() -> None:
    """Install it, unless what is there was installed from the same requirements."""
    stamp = ENVIRONMENT / "installed-from.txt"
    if stamp.exists() and stamp.read_bytes() == REQUIREMENTS.read_bytes():
        return
    print(f"installing cc2dataset into {ENVIRONMENT}", file=sys.stderr)
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True, stdout=sys.stderr)
    pip = [ENVIRONMENT / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--requirement", REQUIREMENTS], check=True, stdout=sys.stderr)
    shutil.copyfile(REQUIREMENTS, stamp)


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
