"""The sections of the benchmark, one function each; they record their numbers one by one."""

from __future__ import annotations

import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
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


def no_waiting(section: Section) -> None:
    from benchmarks.gpu.checks import steps_without_waiting

    scale, place = section.scale, section.place
    section.record("gpu", lambda: torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else "none")
    section.record("torch", lambda: f"{torch.__version__}, CUDA {torch.version.cuda}")
    for stage in (0, 1, 2):
        section.record(f"stage_{stage}", lambda stage=stage: steps_without_waiting(scale, place, stage))
    section.record("stage_0_in_parts", lambda: steps_without_waiting(scale, place, 0, in_parts=True))


def losses(section: Section) -> None:
    from benchmarks.gpu.checks import compare_losses

    compare_losses(section)


def losses_on_cpu(section: Section) -> None:
    from benchmarks.gpu.checks import losses_of_steps

    section.record("losses", lambda: losses_of_steps(section.scale, section.place, "fp32", tf32=False))


def resume(section: Section) -> None:
    from benchmarks.gpu.checks import copy_of_a_save, resumed_run_differs_by

    section.record("copy_of_a_save", lambda: copy_of_a_save(section.scale, section.place))
    # The default comes first, since deterministic kernels, once chosen, stay for the whole process.
    section.record("by_default", lambda: resumed_run_differs_by(section.scale, section.place, deterministic=False))
    section.record("deterministic", lambda: resumed_run_differs_by(section.scale, section.place, deterministic=True))


def loss(section: Section) -> None:
    from benchmarks.gpu.speed import compare_loss

    for kind in ("softmax", "sigmoid"):
        for name, pairs in section.scale.loss_batches.items():
            section.record(f"{kind}_{name}", lambda kind=kind, pairs=pairs: compare_loss(kind, pairs, section.place))


def towers(section: Section) -> None:
    from benchmarks.gpu.speed import our_speed, peer_speed

    name, scale, place = section.detail, section.scale, section.place
    section.record("pairs", lambda: scale.pairs[name])
    section.record("ours", lambda: our_speed(name, scale, place))
    section.record("peer", lambda: peer_speed(name, scale, place))
    # The time for compiling depends more on the machine than on the model.
    section.record("ours_compiled", lambda: our_speed(name, scale, place, compiled=True), seconds=30)
    section.record("peer_compiled", lambda: peer_speed(name, scale, place, compiled=True), seconds=45)


def largest(section: Section) -> None:
    from benchmarks.gpu.speed import largest_batch, step_in_parts

    section.record("whole", lambda: largest_batch(section))
    section.record("checkpoint_blocks", lambda: largest_batch(section, checkpoint_blocks=True))
    section.record("in_parts", lambda: step_in_parts(section.scale, section.place), seconds=25)


def loader(section: Section) -> None:
    from benchmarks.gpu.loader import train_on_shards

    section.record("train", lambda: train_on_shards(section))


SECTIONS: dict[str, Callable[[Section], None]] = {
    "no_waiting": no_waiting,
    "losses": losses,
    "losses_on_cpu": losses_on_cpu,
    "resume": resume,
    "loss": loss,
    "towers": towers,
    "largest": largest,
    "loader": loader,
}
