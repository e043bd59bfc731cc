"""The sections of the benchmark, one function each."""

from __future__ import annotations

from collections.abc import Callable

import torch
from benchmarks.gpu.checks import (
    compare_losses,
    copy_of_a_save,
    losses_of_steps,
    resumed_run_differs_by,
    steps_without_waiting,
)
from benchmarks.gpu.loader import train_on_shards
from benchmarks.gpu.section import Section
from benchmarks.gpu.speed import compare_loss, largest_batch, our_speed, peer_speed, step_in_parts


def no_waiting(section: Section) -> None:
    scale, place = section.scale, section.place
    section.record("gpu", lambda: torch.cuda.get_device_name(place.device) if place.device.type == "cuda" else "none")
    section.record("torch", lambda: f"{torch.__version__}, CUDA {torch.version.cuda}")
    for stage in (0, 1, 2):
        section.record(f"stage_{stage}", lambda stage=stage: steps_without_waiting(scale, place, stage))
    section.record("stage_0_in_parts", lambda: steps_without_waiting(scale, place, 0, in_parts=True))


def losses_on_cpu(section: Section) -> None:
    section.record("losses", lambda: losses_of_steps(section.scale, section.place, "fp32", tf32=False))


def resume(section: Section) -> None:
    section.record("copy_of_a_save", lambda: copy_of_a_save(section.scale, section.place))
    # The default comes first, since deterministic kernels, once chosen, stay for the whole process.
    section.record("by_default", lambda: resumed_run_differs_by(section.scale, section.place, deterministic=False))
    section.record("deterministic", lambda: resumed_run_differs_by(section.scale, section.place, deterministic=True))


def loss(section: Section) -> None:
    for kind in ("softmax", "sigmoid"):
        for name, pairs in section.scale.loss_batches.items():
            section.record(f"{kind}_{name}", lambda kind=kind, pairs=pairs: compare_loss(kind, pairs, section.place))


def towers(section: Section) -> None:
    name, scale, place = section.detail, section.scale, section.place
    section.record("pairs", lambda: scale.pairs[name])
    section.record("ours", lambda: our_speed(name, scale, place))
    section.record("peer", lambda: peer_speed(name, scale, place))
    # The time for compiling depends more on the machine than on the model.
    section.record("ours_compiled", lambda: our_speed(name, scale, place, compiled=True), seconds=30)
    section.record("peer_compiled", lambda: peer_speed(name, scale, place, compiled=True), seconds=45)


def largest(section: Section) -> None:
    section.record("whole", lambda: largest_batch(section))
    section.record("checkpoint_blocks", lambda: largest_batch(section, checkpoint_blocks=True))
    section.record("in_parts", lambda: step_in_parts(section.scale, section.place), seconds=25)


def loader(section: Section) -> None:
    section.record("train", lambda: train_on_shards(section))


SECTIONS: dict[str, Callable[[Section], None]] = {
    "no_waiting": no_waiting,
    "losses": compare_losses,
    "losses_on_cpu": losses_on_cpu,
    "resume": resume,
    "loss": loss,
    "towers": towers,
    "largest": largest,
    "loader": loader,
}
