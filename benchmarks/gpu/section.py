"""What a section of the benchmark is given, and how it records its numbers one by one."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.gpu.setting import Scale

from diptych.world import World

OURS = ("diptych", "deepspeed", "benchmarks", "open_clip", "timm")


@dataclass(frozen=True)
class Section:
    scale: Scale
    detail: str
    """What follows the dot in the name of a section, such as the model's name."""
    until: float
    """The time at which it must end, as `time.time` counts."""
    place: World
    """The only rank of its process group."""

    def seconds_left(self) -> float:
        return max(0.0, self.until - time.time())

    @staticmethod
    def measured_in(output: str) -> dict[str, Any]:
        """The measurements that `record` printed."""
        whole = (line for line in output.splitlines() if line.startswith('{"measured": ') and line.endswith("}}"))
        lines = [json.loads(line) for line in whole]
        return {name: value for line in lines for name, value in line["measured"].items()}

    def record(self, name: str, measure: Callable[[], Any], *, seconds: float = 0) -> None:
        """Print the result of `measure`, or why there is none; skip it if fewer than `seconds` are left."""
        if self.seconds_left() < seconds:
            value: Any = {"error": f"{self.seconds_left():.0f} seconds were left, but it may take {seconds:.0f}"}
        else:
            try:
                value = measure()
            except Exception as error:  # one measurement must not cost the others
                value = {"error": f"{type(error).__name__}: {str(error)[:300]}", "at": where(error)}
        print(json.dumps({"measured": {name: value}}), flush=True)


def where(error: Exception) -> list[str]:
    """The last lines of the traceback that are in our code or in one of the libraries involved."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if any(f"/{name}/" in frame.filename for name in OURS)]
    return [f"{Path(frame.filename).name}:{frame.lineno} {frame.name}" for frame in ours[-4:]]
