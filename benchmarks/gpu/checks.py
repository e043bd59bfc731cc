"""Check that losses equal those on the CPU, that a resume gives the same bits, and that no step waits for the GPU."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from benchmarks.gpu.section import Section
from benchmarks.gpu.setting import CPU, Scale, make_batch, our_engine, recipe, synchronize, take_steps

from diptych.training.snapshot import Snapshot
from diptych.world import World

RECIPE = "vit_b_32"


def steps_without_waiting(scale: Scale, place: World, stage: int, *, in_parts: bool = False) -> str:
    """Take five steps in which torch raises at the first operation that waits for the device."""
    pairs = scale.pairs_of_checks
    # A single rank uses stage 0 unless machine.deepspeed has settings of ZeRO.
    expert = {"zero_optimization": {"contiguous_gradients": True}} if stage else {}
    config = recipe(
        RECIPE, scale, pairs, zero_stage=stage, deepspeed=expert, pairs_per_forward=pairs // 2 if in_parts else None
    )
    engine = our_engine(config, place)
    batches = [make_batch(config, place, seed) for seed in range(8)]
    for flight in take_steps(engine, batches[:3]):
        flight.read()
    synchronize(place)
    with no_wait_allowed(place):
        flights = take_steps(engine, batches[3:], first=3)
    losses = [flight.read().loss for flight in flights]
    assert all(map(torch.isfinite, map(torch.tensor, losses))), losses
    return "none waited"


@contextmanager
def no_wait_allowed(place: World) -> Iterator[None]:
    if place.device.type != "cuda":
        yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def losses_of_steps(scale: Scale, place: World, precision: str, *, tf32: bool) -> list[float]:
    """The losses of some steps on different batches, from weights that were initialised on the CPU."""
    config = recipe(RECIPE, scale, scale.pairs_of_checks, precision)
    engine = our_engine(config, place, CPU)
    if place.device.type == "cuda":
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    batches = (make_batch(config, place, seed) for seed in range(scale.steps_of_checks))
    return [engine.step(b, number * len(b)).read().loss for number, b in enumerate(batches)]


def compare_losses(section: Section) -> None:
    """Compare the losses at each precision with those on the CPU, which are computed at the same time."""
    words = [sys.executable, "-m", "benchmarks.gpu", "--section", "losses_on_cpu", "--until", str(section.until)]
    words += ["--tiny"] if section.scale.overrides else []
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    on_cpu = subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kinds = {"fp32": ("fp32", False), "tf32": ("fp32", True), "bf16": ("bf16", True)}
    ours: dict[str, list[float]] = {}

    def compute(name: str) -> list[float]:
        ours[name] = losses_of_steps(section.scale, section.place, kinds[name][0], tf32=kinds[name][1])
        return [ours[name][0], ours[name][-1]]

    for name in kinds:
        section.record(f"first_and_last_{name}", lambda name=name: compute(name))
    try:
        output, errors = on_cpu.communicate(timeout=section.seconds_left())
    except subprocess.TimeoutExpired:
        on_cpu.kill()
        output, errors = on_cpu.communicate()
    expected: Any = section.measured_in(output).get("losses", {"error": errors[-300:]})
    if not isinstance(expected, list):
        section.record("cpu", lambda: expected)
        return
    for name, losses in ours.items():
        section.record(
            f"difference_{name}", lambda losses=losses: max(abs(a - b) for a, b in zip(losses, expected, strict=True))
        )


def resumed_run_differs_by(scale: Scale, place: World, deterministic: bool) -> dict[str, Any]:
    """Compare the weights of an uninterrupted run with those of a run that is resumed halfway in a new engine."""
    config = recipe(RECIPE, scale, scale.pairs_of_checks, deterministic=deterministic)
    half = scale.steps_of_checks // 2
    batches = [make_batch(config, place, seed) for seed in range(2 * half)]
    engine = our_engine(config, place, CPU)
    take_steps(engine, batches[:half])
    weights, state = engine.weights(), engine.optimizer_state()
    take_steps(engine, batches[half:], first=half)
    whole = engine.weights()
    del engine
    again = our_engine(config, place, CPU)
    again.model.load_state_dict(weights)
    again.restore_optimizer(state)
    take_steps(again, batches[half:], first=half)
    resumed = again.weights()
    changed = max(float((whole[name] - weights[name]).abs().max()) for name in whole)
    return {
        "identical": all(torch.equal(whole[name], resumed[name]) for name in whole),
        "largest_difference": max(float((whole[name] - resumed[name]).abs().max()) for name in whole),
        "largest_change_by_training": changed,
    }


def copy_of_a_save(scale: Scale, place: World) -> dict[str, Any]:
    """Copy what a rank saves while steps go on, and compare the copy with the weights before them."""
    config = recipe(RECIPE, scale, scale.pairs_of_checks)
    engine = our_engine(config, place, CPU)
    batches = [make_batch(config, place, seed) for seed in range(4)]
    take_steps(engine, batches[:2])[-1].read()
    snapshot = Snapshot(engine.share(), rank=0)
    snapshot.take(engine.share())  # allocates and pins the memory
    snapshot.is_taken(waits=True)
    weights = engine.weights()
    began = time.perf_counter()
    engine.update_after(snapshot.take(engine.share()))
    stopped = time.perf_counter() - began
    take_steps(engine, batches[2:], first=2)
    snapshot.is_taken(waits=True)
    seconds = time.perf_counter() - began
    differing = []
    for name, plan in snapshot.files["model/model.safetensors"].tensors.items():
        [part] = plan.parts
        copied = torch.frombuffer(snapshot.memory, dtype=torch.uint8, count=part.num_bytes, offset=part.offset)
        if not torch.equal(copied, weights[name].contiguous().reshape(-1).view(torch.uint8)):
            differing.append(name)
    snapshot.close()
    return {
        "identical": not differing,
        "differing": differing[:3],
        "changed_by_training": not torch.equal(engine.weights()["logit_scale"], weights["logit_scale"]),
        "megabytes": len(snapshot.memory) / 1e6,
        "host_stopped_seconds": stopped,
        "seconds_with_two_steps": seconds,
    }
